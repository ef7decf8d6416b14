"""What a search has found so far, and whom it asks and tells meanwhile."""

from collections.abc import Callable
from dataclasses import replace

from planner.errors import NotExpressibleError
from planner.layout import Layout
from planner.search.splits.candidates import Candidate

Watch = Callable[[str, int, int], None]
"""Is told what is looked at, how many of it are done, and how many there are."""

Refused = Callable[[Layout], NotExpressibleError | None]
"""Returns why the target has no words for a layout, if it has none."""


def insert(found: list[Candidate], candidate: Candidate) -> None:
    """Add a candidate at its place; of two that are the same point, the better one stays, with the sharper bound."""
    same = next((entry for entry in found if entry.point == candidate.point), None)
    if same is not None:
        found.remove(same)
        better = min(same, candidate, key=lambda entry: entry.merit)
        sharper = better.lower_bound_seconds
        if same.layout.recompute.is_per_layer == candidate.layout.recompute.is_per_layer:
            sharper = max(same.lower_bound_seconds, candidate.lower_bound_seconds)
        candidate = replace(better, lower_bound_seconds=min(sharper, better.step_seconds))
    found.append(candidate)
    found.sort(key=lambda entry: entry.merit)
