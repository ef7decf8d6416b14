"""Options of the whole suite."""

import gc
from functools import cache

import pytest
import typer
from hypothesis import settings

from cli.start import GARBAGE_THRESHOLD

settings.register_profile("same every time", derandomize=True)
settings.load_profile("same every time")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register what the suite can be told on its command line."""
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the expected outputs instead of comparing with them"
    )


def pytest_configure() -> None:
    """Look for garbage as seldom as a command does, and build the tree of an application's commands once.

    A runner of commands builds the tree at each call, by what `typer.testing` knows under this name; under another name
    calls only take as long as ever.
    """
    gc.set_threshold(GARBAGE_THRESHOLD)
    pytest.MonkeyPatch().setattr("typer.testing._get_command", cache(typer.main.get_command), raising=False)


def pytest_collection_finish() -> None:
    """Spare every later search for garbage what was collected: half a million objects that live to the end."""
    gc.collect()
    gc.freeze()
