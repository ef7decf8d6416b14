"""Options of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register what the suite can be told on its command line."""
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the expected outputs instead of comparing with them"
    )
