"""Solvers by their names: the module of one is imported when it runs, so that its libraries load only then."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def solve_named(solver: str, modules: Mapping[str, str]) -> Callable[..., Any]:
    """Return the `solve` of a solver's module.

    Args:
        solver: Its name.
        modules: The module of each solver that there is.

    Raises:
        ValueError: There is no such solver.
    """
    if solver not in modules:
        raise ValueError(f"there is no solver {solver!r}; there are {', '.join(modules)}")
    solve: Callable[..., Any] = import_module(modules[solver]).solve
    return solve
