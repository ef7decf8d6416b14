"""Interleaved points whose layers do not lie as evenly as they could: those that gain by it, and those that need it.

The search proves its answer for the even split of interleaved stages. Where another one may be faster, or the even one
does not fit, layers are moved one by one and two by two from there (`planner.search.splits.uneven`). The points with
the fastest split to begin with come first: what is found of them soon tells of the others that they are slower.
"""

import math
from dataclasses import dataclass

from planner.errors import NotExpressibleError
from planner.search.found import Refused, Watch, insert
from planner.search.splits.candidates import Candidate, Pricer, Rejected
from planner.search.splits.interleaved import Interleaved
from planner.search.splits.uneven import fitted, improved

MOST_IMPROVED = 8
"""Interleaved points whose layers are moved: of the even splits those with the best bounds and, of the others, the
fastest, as many each; and as many of which none fits.

This and the next two are choices.
"""

MOST_PRICED = 32
"""Interleaved points whose even split is simulated to see which are the fastest: those with the best bounds of it."""

MOST_CROWDED = 64
"""Interleaved points whose layers are moved until they fit, while nothing else does: those with the best bounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedUnevenly:
    """Of how many points only an uneven split was found that fits; what the target has against the first refused."""

    placed: int
    refusal: NotExpressibleError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """A split that layers may be moved from, and a step time that no split of its point undercuts."""

    candidate: Candidate
    least_seconds: float


def place_unevenly(  # noqa: PLR0913 - the points, what is known, and who may refuse
    even: Interleaved,
    crowded: Interleaved,
    pricer: Pricer,
    found: list[Candidate],
    *,
    beside_rivals: bool,
    refused: Refused,
    watch: Watch,
) -> PlacedUnevenly:
    """Move layers of interleaved points that may beat the best plan so, and of those whose even split does not fit.

    Args:
        even: Points whose even split may fit.
        crowded: Points whose even split does not.
        pricer: Prices them.
        found: Candidates by merit; what is better is added.
        beside_rivals: Some of the candidates are of another space; layers are moved of candidates of this one alone.
        refused: Returns why the target has no words for a layout, if it has none.
        watch: Called as the points are looked at.
    """
    starts = _even_starts(even, pricer, found, all_open=not beside_rivals) if found else []
    unevenly = PlacedUnevenly(placed=0, refusal=None)
    if not beside_rivals:
        fitting, unevenly = _fitting_starts(crowded, pricer, found, refused=refused, watch=watch)
        for start in fitting:
            insert(found, start.candidate)
        starts += fitting[:MOST_IMPROVED]
    starts.sort(key=lambda start: start.candidate.merit)
    for done, start in enumerate(starts):
        watch("moving layers of interleaved stages", done, len(starts))
        if start.least_seconds >= found[0].step_seconds:
            continue
        moved = improved(pricer, start.candidate, rival_seconds=found[0].step_seconds)
        if refused(moved.layout) is None and pricer.hosts_hold(pricer.prices(moved.layout), moved.layout):
            insert(found, moved)
    return unevenly


def _even_starts(even: Interleaved, pricer: Pricer, found: list[Candidate], *, all_open: bool) -> list[_Start]:
    """Return even splits of points that may beat the best plan by another split, of all or of candidates alone."""
    only = None if all_open else frozenset(candidate.point for candidate in found)
    open_points = even.open_below(pricer, found[0].step_seconds, at_most=MOST_PRICED, by_even_split=True, only=only)
    starts = []
    for least, index in open_points:
        priced = pricer.price(even.layout(pricer, index), bound=even.known(index), ceiling_seconds=math.inf)
        if not isinstance(priced, Rejected):
            starts.append(_Start(candidate=priced, least_seconds=least))
    first, others = starts[:MOST_IMPROVED], starts[MOST_IMPROVED:]
    others.sort(key=lambda start: start.candidate.merit)
    return first + others[:MOST_IMPROVED]


def _fitting_starts(
    crowded: Interleaved, pricer: Pricer, found: list[Candidate], *, refused: Refused, watch: Watch
) -> tuple[list[_Start], PlacedUnevenly]:
    """Return splits that fit of points whose even split does not, the fastest first, and what came of all.

    Of points that may beat the best plan, those with the least bounds are tried; where there is no plan, those with
    most room.
    """
    first_refusal: NotExpressibleError | None = None
    if found:
        chosen = crowded.open_below(pricer, found[0].step_seconds, at_most=MOST_IMPROVED)
    else:
        chosen = crowded.roomiest(pricer, at_most=MOST_CROWDED)
    starts = []
    for done, (least, index) in enumerate(chosen):
        watch("placing layers unevenly", done, len(chosen))
        split = fitted(pricer, crowded.layout(pricer, index))
        refusal = None if split is None else refused(split)
        first_refusal = first_refusal or refusal
        candidate = None if split is None or refusal is not None else pricer.placed(split, lower_bound_seconds=least)
        if candidate is not None:
            starts.append(_Start(candidate=candidate, least_seconds=least))
    starts.sort(key=lambda start: start.candidate.merit)
    return starts, PlacedUnevenly(placed=len(starts), refusal=first_refusal)
