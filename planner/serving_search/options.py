"""The engines that a composition chooses from: of each kind of GPU, role and size the few that bear most.

An engine that bears less on as many of the same GPUs never helps. All are ranked in closed form, and as the simulation
may say less of the first than the closed form, the next shapes stay in the list. With a fixed number of requests under
way an engine is also an option with a half, a third and so on of them: how many it gets decides how fast it is.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from planner.serving_plans.layout import Role
from planner.serving_plans.request import ServeRequest, Splits
from planner.serving_search.candidates import Candidate
from planner.serving_search.closed_form import Point, best_of_both, best_of_decode, best_of_prefill, both_at
from planner.serving_search.passing import Pairing, kind_of, pairings_of, split_refusal
from planner.serving_search.shapes import shape_words
from planner.serving_search.simulated import bearing, keeps, served_at, targets_of
from planner.serving_search.transfer import longest_transfer_seconds

TIED = 0.005
"""Part of the best rate within which builds of a shape count as equal; of equals the one with the fewest guesses and
copies is taken, and the engine's own budget."""

WAITED_STEPS = 2
"""Steps of decode in the time to the first token: the one that runs when a cache arrives, and the token's own."""

SHAPES_OF_A_SIZE = 3
"""Shapes of one kind of GPU, role and size that a composition chooses from."""

MOST_SHARES = 64
"""Parts into which a fixed number of requests under way is cut at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An engine that a composition may have.

    Args:
        point: The engine at the most that it bears.
        first_seconds: Its part of the time to the first token, where another engine has the rest; else infinite.
        share: Requests under way that it takes, where their number is fixed.
        simulated: The rate is the simulation's.
    """

    point: Point
    first_seconds: float = math.inf
    share: float = 0.0
    simulated: bool = False

    @property
    def rate(self) -> float:
        """Return the requests a second that it bears."""
        return self.point.requests_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionTable:
    """Every option, and the points that they were chosen from.

    Args:
        options: What a composition chooses from.
        both: Engines that do everything, at their most, the best for a GPU first.
        priced: Engines and roles that were priced.
        pruned: Those that were left out, by reason.
    """

    options: tuple[Option, ...]
    both: tuple[Point, ...]
    priced: int
    pruned: Counter[str]


def option_table(request: ServeRequest, candidates: list[Candidate], *, one_node: bool) -> OptionTable:
    """Return what a composition chooses from.

    Args:
        request: What is asked.
        candidates: Engines that fit.
        one_node: All pools stand on one node.
    """
    pruned: Counter[str] = Counter()
    options: list[Option] = []
    priced = 0
    both: list[Point] = []
    if request.constraints.split is not Splits.ONLY or not candidates:
        found = _bearing_alone(candidates)
        priced += len(found)
        pruned["no batch keeps the targets"] += sum(point is None for point in found)
        both = sorted((point for point in found if point is not None), key=_order)
        if request.workload.concurrency is not None:
            options += _shares(request.workload.concurrency, both)
        else:
            options += [Option(point=point) for point in _best_of_each(both)]
    if request.constraints.split is not Splits.NEVER and request.workload.concurrency is None:
        halves, count = _halves(candidates, pruned, one_node=one_node)
        options += halves
        priced += count
    kept = tuple(option for option in options if option.rate > 0)
    return OptionTable(options=kept, both=tuple(both), priced=priced, pruned=+pruned)


def _bearing_alone(candidates: list[Candidate]) -> list[Point | None]:
    """Return what each engine bears that does everything; builds of one shape bear much the same."""
    found: list[Point | None] = []
    last: Point | None = None
    for candidate in candidates:
        near = last.batch if last is not None and last.candidate.shape == candidate.shape else None
        last = best_of_both(candidate, near=near)
        found.append(last)
    return found


def _order(point: Point) -> tuple[float, tuple[int, int, str, int]]:
    return -point.per_gpu, point.candidate.order


def _halves(candidates: list[Candidate], pruned: Counter[str], *, one_node: bool) -> tuple[list[Option], int]:
    """Return prefill and decode engines, and how many were priced."""
    able: dict[Role, list[Candidate]] = {Role.PREFILL: [], Role.DECODE: []}
    for candidate in candidates:
        refusals = {role: split_refusal(candidate, role) for role in able}
        for role, refusal in refusals.items():
            if refusal is None:
                able[role].append(candidate)
        pruned.update({refusal for refusal in refusals.values() if refusal is not None})
    if not all(able.values()):
        return [], 0
    count = sum(len(found) for found in able.values())
    decodes = [point for candidate in able[Role.DECODE] if (point := best_of_decode(candidate)) is not None]
    pruned["decode: no batch keeps the targets"] += len(able[Role.DECODE]) - len(decodes)
    if not decodes:
        return [], len(able[Role.DECODE])
    transfer = longest_transfer_seconds(able[Role.PREFILL], able[Role.DECODE], one_node=one_node)
    # A request passes the door of either engine.
    door = max(point.candidate.costs.first_token_seconds for point in decodes)
    begin = door + WAITED_STEPS * max(point.ttft_seconds for point in decodes)
    targets = candidates[0].ground.request.workload.targets
    first = min(targets.ttft_seconds or math.inf, targets.e2e_seconds or math.inf) - transfer - begin
    prefills = [
        point
        for candidate in able[Role.PREFILL]
        if (point := best_of_prefill(candidate, first_seconds=first)) is not None
    ]
    pruned["prefill: one prompt alone is late"] += len(able[Role.PREFILL]) - len(prefills)
    begins = math.inf if math.isinf(first) else begin
    options = [Option(point=point, first_seconds=first) for point in _best_of_each_kind(prefills)]
    options += [Option(point=point, first_seconds=begins) for point in _best_of_each_kind(decodes)]
    return options, count


def _best_of_each_kind(points: Iterable[Point]) -> list[Point]:
    """Return the best of each kind of GPU and size, among engines that pair alike."""
    kinds: dict[tuple[int, ...], list[Point]] = {}
    for point in points:
        kinds.setdefault(kind_of(point.candidate), []).append(point)
    return [point for _, group in sorted(kinds.items()) for point in _best_of_each(group)]


def _best_of_each(points: Iterable[Point]) -> list[Point]:
    """Return for each kind of GPU and size the shapes with the highest rates; of equal builds the plainest."""
    groups: dict[tuple[int, int], dict[str, list[Point]]] = {}
    for point in points:
        shapes = groups.setdefault((point.candidate.ground.index, point.candidate.num_gpus), {})
        shapes.setdefault(shape_words(point.candidate.shape), []).append(point)
    found: list[Point] = []
    for _, shapes in sorted(groups.items()):
        best = sorted((_best(of_shape) for of_shape in shapes.values()), key=_order)
        found += best[:SHAPES_OF_A_SIZE]
    return found


def _best(points: list[Point]) -> Point:
    most = max(point.requests_per_second for point in points)
    tied = [point for point in points if point.requests_per_second >= most * (1 - TIED)]
    usual = tied[0].candidate.ground.engine.default_batched_tokens
    return min(
        tied,
        key=lambda point: (
            point.candidate.build.guesses,
            -1 if point.candidate.build.balance.redundant is None else point.candidate.build.balance.redundant,
            abs(math.log2(point.candidate.budget / usual)),
            -point.requests_per_second,
            _order(point),
        ),
    )


def _shares(concurrency: int, both: list[Point]) -> list[Option]:
    """Return engines that each take one of so many equal shares of the requests under way, in whole requests.

    Where they do not divide, some engines take one more on each data-parallel rank than others, and all together no
    more than there are.
    """
    found: list[Option] = []
    groups: dict[tuple[int, int, int], list[Point]] = {}
    for point in both:
        cluster, dp = point.candidate.ground.prices.cluster, point.candidate.shape.dp
        most = min(cluster.world_size // point.candidate.num_gpus, MOST_SHARES, concurrency)
        shares = [concurrency / parts / dp for parts in range(1, most + 1)]
        for batch in sorted({whole for share in shares for whole in (math.floor(share), math.ceil(share))}):
            if 0 < batch <= point.batch and batch * dp <= concurrency:
                shared = both_at(point.candidate, float(batch))
                groups.setdefault((point.candidate.ground.index, point.candidate.num_gpus, batch * dp), []).append(
                    shared
                )
    for (_, _, under_way), points in sorted(groups.items(), key=lambda item: item[0]):
        found.append(Option(point=_best(points), share=float(under_way)))
    return found


class Simulations:
    """Simulates options, each once.

    Args:
        options: By their place among the options.
    """

    def __init__(self, options: tuple[Option, ...]) -> None:
        self.options: dict[int, Option] = dict(enumerate(options))
        self.runs = 0

    def require(self, indices: Iterable[int]) -> bool:
        """Simulate those of these options that were not; return whether there was one."""
        new = [index for index in indices if not self.options[index].simulated]
        for index in new:
            option = self.options[index]
            if option.share:
                point = at_share(option)
                self.runs += 1
            else:
                point, runs = bearing(option.point, first_seconds=option.first_seconds)
                self.runs += runs
            self.options[index] = replace(option, point=point, simulated=True)
        return bool(new)

    def scale(self, factor: float, *, halves_alone: bool) -> None:
        """Let every engine bear less, or every engine of a split plan alone."""
        for index, option in self.options.items():
            if not halves_alone or option.point.role is not Role.BOTH:
                point = replace(option.point, requests_per_second=option.rate * factor)
                self.options[index] = replace(option, point=point)

    @property
    def pairings(self) -> tuple[Pairing, ...]:
        """Return the sets of prefill and decode options that work together."""
        halves: dict[Role, dict[int, Candidate]] = {Role.PREFILL: {}, Role.DECODE: {}}
        for index, option in self.options.items():
            if option.point.role in halves:
                halves[option.point.role][index] = option.point.candidate
        return pairings_of(halves[Role.PREFILL], halves[Role.DECODE])

    @property
    def rates(self) -> Mapping[int, float]:
        """Return what each option bears."""
        return {index: option.rate for index, option in self.options.items()}


def at_share(option: Option) -> Point:
    """Return an engine with its share of the requests under way, by simulation; it bears nothing if they are late."""
    served = served_at(option.point)
    if not keeps(served, targets_of(option.point)):
        return replace(option.point, requests_per_second=0.0)
    return replace(
        option.point,
        requests_per_second=served.requests_per_second,
        ttft_seconds=served.ttft.mean,
        tpot_seconds=served.tpot.mean,
    )
