"""Why no plan keeps the targets: the binding constraint, the nearest plan, and how far each target must move.

In the way can be, looked at in this order: memory, where no engine holds the model and one sequence; a split, where it
is asked for and engines cannot be parts of one, or are late only in one; the requests under way, the price or the
power, where engines keep the targets and none is within these; a target, where no engine keeps it even with one request
at a time; and the GPUs, where engines keep the targets and there are too few of them.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from planner.serving_plans.layout import EngineShape, Role
from planner.serving_plans.plan import Move, ServeInfeasible
from planner.serving_plans.request import ServeRequest, Splits
from planner.serving_search.candidates import (
    TOKEN_BUDGETS,
    Build,
    Candidate,
    Ground,
    balances_of,
    budgets_of,
    least_seats,
    ledger_of,
)
from planner.serving_search.closed_form import Point, both_at, in_a_loop
from planner.serving_search.compose import MAX_PRICE, MAX_WATTS, NUM_GPUS, fleet_problem, price_of, watts_of
from planner.serving_search.options import Option, option_table
from planner.serving_search.passing import split_refusal
from planner.serving_search.shapes import CONSTRAINED, engine_shapes, nested_sizes, shape_words
from planner.serving_search.simulated import served_at
from profiles.hardware import Cluster
from solvers.fleet_registry import compose

SIMULATED = 8
"""Engines whose light load is simulated, the nearest in closed form first."""

FACTORS = (1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
"""How much a target is loosened until the GPUs bear the load."""

MOST_REASONS = 3
"""Rules that are named where every shape breaks one, those that refuse most first."""

MORE_GPUS = 64
"""Times the inventory in which the fewest GPUs for a load are looked for, at least."""

Least = Callable[[str, int], float | None]
"""From a resource of `planner.serving_search.compose` and how many times the GPUs there are, to the least of it that
bears the load while the others stay; None where none does."""

LIGHT_BATCH = 0.02
"""Running answers in the mean that stand for one request at a time, where they come by the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """An engine with one request at a time: the statistic that the targets speak of, by target."""

    candidate: Candidate
    values: dict[str, float]


def explain(  # noqa: PLR0913 - what was looked at, and what came of it
    grounds: tuple[Ground, ...],
    candidates: list[Candidate],
    clusters: tuple[Cluster, ...],
    *,
    borne: float,
    demand: float | None,
    one_node: bool,
    able: tuple[Option, ...],
    least: Least,
) -> ServeInfeasible:
    """Return why there is no plan.

    Args:
        grounds: Of each kind of GPU.
        candidates: Engines that fit.
        clusters: The GPUs.
        borne: Requests a second that the best composition bears.
        demand: Those that are asked for; None for as many as there can be.
        one_node: All GPUs stand in one node.
        able: Engines that keep the targets, as far as they were looked at.
        least: What the load takes at least.
    """
    request = grounds[0].request
    if not candidates:
        return _memory(grounds, request)
    if borne <= 0 and request.constraints.split is Splits.ONLY:
        in_the_way = _split(candidates, request)
        if in_the_way is not None:
            return in_the_way
    if borne <= 0:
        under_way = _under_way(candidates, clusters, request, one_node=one_node)
        return under_way or _limits(able, request) or _targets(candidates, request)
    assert demand is not None, "what bears something bears as much as it can"
    return _inventory(candidates, clusters, request, borne=borne, demand=demand, one_node=one_node, least=least)


def _memory(grounds: tuple[Ground, ...], request: ServeRequest) -> ServeInfeasible:
    """Return what the engine that lacks least lacks."""
    best: tuple[int, str, int, str] | None = None
    for ground in grounds:
        cluster = ground.prices.cluster
        shapes = engine_shapes(ground.prices.model, cluster, ground.formats, request.constraints).shapes
        for shape in shapes:
            lacking, limit = _shortfall(ground, shape)
            entry = (lacking, shape_words(shape), limit, cluster.device.name)
            best = entry if best is None or entry < best else best
    if best is None:
        return _no_shape(grounds, request)
    lacking, words, limit, gpu = best
    if not lacking:
        return ServeInfeasible(
            binding="no number of sequences that is allowed goes with a budget of tokens that is",
            moves=(),
            nearest="another max_num_seqs or max_num_batched_tokens",
            nearest_values={},
        )
    seats = least_seats(request.constraints)
    beside = f", beside room for {seats:,} at once" if seats > 1 else ""
    return ServeInfeasible(
        binding=f"memory: the weights, a step and a sequence of {request.workload.max_model_len:,} tokens do not fit"
        f"{beside}",
        moves=(
            Move(
                target="memory",
                given=float(limit),
                needed=float(limit + lacking),
                together=float(limit + lacking),
                unit="bytes a GPU",
            ),
        ),
        nearest=f"{words} on {gpu}",
        nearest_values={"memory": float(lacking)},
    )


def _no_shape(grounds: tuple[Ground, ...], request: ServeRequest) -> ServeInfeasible:
    """Return which rules refuse every shape that the constraints leave, or that they leave none."""
    refused: Counter[str] = Counter()
    for ground in grounds:
        space = engine_shapes(ground.prices.model, ground.prices.cluster, ground.formats, request.constraints)
        refused.update({reason: count for reason, count in space.pruned.items() if not reason.endswith(CONSTRAINED)})
    if refused:
        reasons = [reason for reason, _ in sorted(refused.items(), key=lambda item: (-item[1], item[0]))]
        why = "; ".join(reasons[:MOST_REASONS])
    else:
        clusters = [ground.prices.cluster for ground in grounds]
        sizes = "; on ".join(
            f"{cluster.device.name} {', '.join(map(str, nested_sizes(cluster.gpus_per_node)))}" for cluster in clusters
        )
        why = f"no engine has the pinned degrees, with so many GPUs as pack into a node (on {sizes}) or in whole nodes"
    return ServeInfeasible(
        binding=f"no shape of an engine keeps the constraints and the rules of the target: {why}",
        moves=(),
        nearest="",
        nearest_values={},
    )


def _shortfall(ground: Ground, shape: EngineShape) -> tuple[int, int]:
    """Return the bytes that a GPU lacks, and those that an engine may take of it."""
    constraints = ground.request.constraints
    budgets = [budget for budget in budgets_of(ground) if constraints.admits("max_num_batched_tokens", budget)]
    build = Build(shape=shape, budget=min(budgets, default=TOKEN_BUDGETS[0]), balance=balances_of(ground, shape)[0])
    seats = least_seats(constraints)
    ledger = ledger_of(ground, build, seqs=seats)
    lacking = ledger.shortfall_bytes
    if ledger.most_seats is not None and ledger.pool is not None and seats > ledger.most_seats:
        lacking = max(lacking, seats * ledger.pool.block_bytes - ledger.pool_bytes)
    return lacking, ledger.capacity_bytes


def _split(candidates: list[Candidate], request: ServeRequest) -> ServeInfeasible | None:
    """Return that a split is what is in the way; None where engines that do everything are late too."""
    barred = [role for role in (Role.PREFILL, Role.DECODE) if all(split_refusal(one, role) for one in candidates)]
    if barred:
        refusals = Counter(reason for one in candidates if (reason := split_refusal(one, barred[0])) is not None)
        reasons = ", ".join(reason.removeprefix("split: ") for reason, _ in refusals.most_common())
        part = "a part of one" if len(barred) > 1 else f"the {barred[0]} part of one"
        binding = f"split: no engine can be {part}: {reasons}"
    else:
        given = request.workload.targets.given
        if min(_misses(light, given) for light in _lights(candidates, given)) > 1.0:
            return None
        binding = "split: a prompt, the transfer of its cache and the first step behind it are late together"
    return ServeInfeasible(
        binding=binding,
        moves=(),
        nearest="engines that do everything, with constraints.split: allowed",
        nearest_values={},
    )


def _under_way(
    candidates: list[Candidate], clusters: tuple[Cluster, ...], request: ServeRequest, *, one_node: bool
) -> ServeInfeasible | None:
    """Return that fewer requests may be under way; None where their number is free, or fewer do not help."""
    given = request.workload.concurrency
    if given is None:
        return None
    free = replace(request, workload=replace(request.workload, concurrency=None))
    moved = [replace(candidate, ground=replace(candidate.ground, request=free)) for candidate in candidates]
    whole = replace(free, constraints=replace(free.constraints, split=Splits.NEVER))
    options = list(option_table(whole, moved, one_node=one_node).options)
    if not options:
        return None
    found = compose(fleet_problem(free, clusters, options, demand=None))
    most = sum(count * option.point.concurrency for count, option in zip(found.count_O, options, strict=True))
    return ServeInfeasible(
        binding=f"requests under way: the GPUs keep the targets with {most:,} at once, {given:,} are asked for",
        moves=(
            Move(
                target="concurrency",
                given=float(given),
                needed=float(most),
                together=float(most),
                unit="requests",
            ),
        ),
        nearest="the same targets with fewer requests under way",
        nearest_values={"concurrency": float(most)},
    )


def _limits(able: tuple[Option, ...], request: ServeRequest) -> ServeInfeasible | None:
    """Return that price or power are below those of any engine; None where they are not."""
    constraints = request.constraints
    bounds = {
        MAX_PRICE: (constraints.max_price_per_hour, price_of, "an hour"),
        MAX_WATTS: (constraints.max_watts, watts_of, "W"),
    }
    moves = []
    for name, (given, figure, unit) in bounds.items():
        if given is not None and able:
            least = min(figure(option) for option in able)
            moves.append(
                Move(target=name, given=given, needed=max(least, given), together=max(least, given), unit=unit)
            )
    if not moves:
        return None
    return ServeInfeasible(
        binding=" and ".join(f"{move.target}: {move.given:,.2f} {move.unit}" for move in moves)
        + " pay for no engine that keeps the targets",
        moves=tuple(moves),
        nearest="one engine within the targets",
        nearest_values={move.target: move.together for move in moves},
    )


def _targets(candidates: list[Candidate], request: ServeRequest) -> ServeInfeasible:
    """Return which targets no engine keeps even with one request at a time."""
    given = request.workload.targets.given
    lights = _lights(candidates, given)
    nearest = min(lights, key=lambda light: (_misses(light, given), light.candidate.order))
    moves = []
    for name, seconds in given.items():
        others = {other: limit for other, limit in given.items() if other != name}
        able = [light.values[name] for light in lights if _misses(light, others) <= 1.0]
        moves.append(
            Move(
                target=name,
                given=seconds,
                needed=max(seconds, min(able)) if able else None,
                together=max(seconds, nearest.values[name]),
                unit="s",
            )
        )
    least = {name: min(light.values[name] for light in lights) for name in given}
    broken = [name for name, seconds in given.items() if least[name] > seconds]
    if broken:
        binding = "; ".join(
            f"{name}: no engine comes below {least[name] * 1e3:,.1f} ms, {given[name] * 1e3:,.1f} ms are asked for"
            for name in broken
        )
    else:
        binding = f"{' and '.join(given)} together: each can be kept alone" if given else "no engine serves a request"
    candidate = nearest.candidate
    return ServeInfeasible(
        binding=binding,
        moves=tuple(moves),
        nearest=f"{candidate.words} on {candidate.ground.prices.cluster.device.name}, one request at a time",
        nearest_values=nearest.values,
    )


def _misses(light: Light, given: Mapping[str, float]) -> float:
    """Return how many times over its target the worst metric is; 0 without targets."""
    return max((light.values[name] / seconds for name, seconds in given.items()), default=0.0)


def _lights(candidates: list[Candidate], given: Mapping[str, float]) -> list[Light]:
    """Return the nearest engines with one request at a time, simulated."""
    closed = [Light(candidate=candidate, values=_closed_form(candidate)) for candidate in candidates]
    closed.sort(key=lambda light: (_misses(light, given), light.candidate.order))
    chosen = closed[:SIMULATED]
    # The best in each metric are among them: what one target must move to is theirs to say.
    for name in given:
        chosen.append(min(closed, key=lambda light: (light.values[name], light.candidate.order)))
    distinct = {light.candidate.order: light.candidate for light in chosen}
    return [_simulated(candidate) for candidate in distinct.values()]


def _light_load(candidate: Candidate) -> Point:
    return both_at(candidate, 1.0 if in_a_loop(candidate) else LIGHT_BATCH)


def _closed_form(candidate: Candidate) -> dict[str, float]:
    point = _light_load(candidate)
    behind = candidate.ground.mean.output - 1
    return {
        "ttft": point.ttft_seconds,
        "tpot": point.tpot_seconds,
        "e2e": point.ttft_seconds + point.tpot_seconds * behind,
    }


def _simulated(candidate: Candidate) -> Light:
    served = served_at(_light_load(candidate))
    return Light(
        candidate=candidate,
        values={"ttft": served.ttft.stated, "tpot": served.tpot.stated, "e2e": served.e2e.stated},
    )


def _inventory(  # noqa: PLR0913 - as `explain`
    candidates: list[Candidate],
    clusters: tuple[Cluster, ...],
    request: ServeRequest,
    *,
    borne: float,
    demand: float,
    one_node: bool,
    least: Least,
) -> ServeInfeasible:
    """Return how many GPUs, how much more money or power, or which other targets, would bear the load."""
    gpus = sum(cluster.world_size for cluster in clusters)
    moves = [Move(target="requests_per_second", given=demand, needed=borne, together=borne, unit="requests/s")]
    bounds = {
        name: (bound, unit)
        for name, bound, unit in (
            (MAX_PRICE, request.constraints.max_price_per_hour, "an hour"),
            (MAX_WATTS, request.constraints.max_watts, "W"),
        )
        if bound is not None
    }
    times = max(MORE_GPUS, math.ceil(2 * demand / borne))
    fewest = least(NUM_GPUS, times)
    moves.append(Move(target=NUM_GPUS, given=float(gpus), needed=fewest, together=float(gpus), unit="GPUs"))
    for name, (bound, unit) in bounds.items():
        moves.append(Move(target=name, given=bound, needed=least(name, 1), together=bound, unit=unit))
    for name, seconds in request.workload.targets.given.items():
        moves.append(
            Move(
                target=name,
                given=seconds,
                needed=_loosened(candidates, clusters, request, name, demand=demand, one_node=one_node),
                together=seconds,
                unit="s",
            )
        )
    limits = "".join(f" within {name}" for name in bounds)
    return ServeInfeasible(
        binding=f"GPUs: {gpus}{limits} bear {borne:,.2f} requests/s within the targets, {demand:,.2f} are asked for",
        moves=tuple(moves),
        nearest="the same targets at the load that the GPUs bear",
        nearest_values={"requests_per_second": borne},
    )


def _loosened(  # noqa: PLR0913 - as `explain`
    candidates: list[Candidate],
    clusters: tuple[Cluster, ...],
    request: ServeRequest,
    name: str,
    *,
    demand: float,
    one_node: bool,
) -> float | None:
    """Return the first of some looser values of a target at which the GPUs bear the load, in closed form."""
    seconds = request.workload.targets.given[name]
    for factor in FACTORS:
        targets = replace(request.workload.targets, **{f"{name}_seconds": seconds * factor})
        loose = replace(request, workload=replace(request.workload, targets=targets))
        moved = [replace(candidate, ground=replace(candidate.ground, request=loose)) for candidate in candidates]
        options = list(option_table(loose, moved, one_node=one_node).options)
        found = compose(fleet_problem(loose, clusters, options, demand=None)) if options else None
        if found is not None and (found.objective or 0.0) >= demand:
            return seconds * factor
    return None
