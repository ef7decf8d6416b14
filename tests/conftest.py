"""Options of the whole suite."""

import gc
import os

import pytest
from hypothesis import settings

settings.register_profile("same every time", derandomize=True)
settings.register_profile("nightly", max_examples=1000)
settings.load_profile("nightly" if "SHARDWRIGHT_NIGHTLY" in os.environ else "same every time")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register what the suite can be told on its command line."""
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the expected outputs instead of comparing with them"
    )


def pytest_collection_finish() -> None:
    """Spare every later search for garbage what was collected: half a million objects that live to the end."""
    gc.collect()
    gc.freeze()
