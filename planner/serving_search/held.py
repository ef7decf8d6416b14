"""Engines of a plan as files tell them to be: their memory, and what becomes of the planned requests.

What such engines bear within the targets is searched below the planned load, down from all of it: nobody plans more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.errors import InputError
from planner.serving.ledger import KvLedger
from planner.serving.rank_operators import Balance
from planner.serving.simulate import seats_of
from planner.serving_plans.layout import EngineSettings, EngineShape, Role, ServingLayout, check_layout
from planner.serving_plans.plan import Deployment, PlannedPool, Served, ServePlan, ServeStatus
from planner.serving_plans.request import ServeObjective
from planner.serving_search.candidates import Build, Candidate, Ground, costs_of, ledger_told
from planner.serving_search.closed_form import Point, in_a_loop
from planner.serving_search.deployments import joined, keep_targets, planned_pool
from planner.serving_search.expert_places import balance_of, in_order
from planner.serving_search.field import ground_of
from planner.serving_search.passing import connector_of, pair_refusal
from planner.serving_search.simulated import PRECISION, keeps, served_at, served_of, times_of
from planner.serving_search.transfer import transfer_of
from planner.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldEngine:
    """An engine at the load of the pool that it was planned for.

    Args:
        ledger: Memory of its fullest GPU.
        served: What becomes of its requests; None where it does not fit, or does a part of the way only.
        keeps: They keep the targets; None likewise.
    """

    ledger: KvLedger
    served: Served | None
    keeps: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a file tells the engines of a pool.

    Args:
        shape: How each lies on its GPUs.
        settings: What each is told beside.
    """

    shape: EngineShape
    settings: EngineSettings


def held_engine(plan: ServePlan, entry: PlannedPool, shape: EngineShape, settings: EngineSettings) -> HeldEngine:
    """Return an engine of a pool, told otherwise than the plan tells it.

    Args:
        plan: The plan.
        entry: The pool.
        shape: How the engine lies on its GPUs.
        settings: What it is told.

    Raises:
        profiles.errors.CoverageError: An operation has no cost on the GPU.
    """
    ground = _ground(plan, entry)
    build = _build(ground, shape, settings)
    ledger = ledger_told(ground, build, settings)
    if not ledger.fits or entry.pool.role is not Role.BOTH:
        return HeldEngine(ledger=ledger, served=None, keeps=None)
    served = served_at(_point(entry, _candidate(ground, build, settings, ledger), count=entry.pool.replicas))
    return HeldEngine(ledger=ledger, served=served, keeps=keeps(served, plan.request.workload.targets))


def plan_told(plan: ServePlan, told: Mapping[str, Told]) -> ServePlan:
    """Return a plan with some pools told otherwise, at the most of its load that keeps the targets.

    A pool has as many engines as before, or as its GPUs hold.

    Args:
        plan: The plan.
        told: By pool's name what its engines are told.

    Raises:
        InputError: Engines do not fit their GPUs, or cannot pass caches on to one another.
        profiles.errors.CoverageError: An operation has no cost on the GPU.
    """
    changed = {entry.pool.name for entry in plan.pools if _differs(entry, told)}
    if not changed:
        return plan
    deployments = tuple(
        _told(plan, deployment, told) if changed & {entry.pool.name for entry in deployment.pools} else deployment
        for deployment in plan.deployments
    )
    found = replace(plan, deployments=deployments, status=ServeStatus.FEASIBLE, bound=None)
    values = {
        ServeObjective.GOODPUT: found.requests_per_second,
        ServeObjective.FEWEST_GPUS: float(found.num_gpus),
        ServeObjective.COST: found.price_per_hour,
    }
    return replace(found, value=values[plan.objective])


def _differs(entry: PlannedPool, told: Mapping[str, Told]) -> bool:
    other = told.get(entry.pool.name)
    return other is not None and (other.shape, other.settings) != (entry.pool.shape, entry.pool.settings)


def _told(plan: ServePlan, deployment: Deployment, told: Mapping[str, Told]) -> Deployment:
    """Return a deployment with some pools told otherwise."""
    engines: list[tuple[PlannedPool, Point, int]] = []
    for entry in deployment.pools:
        other = told.get(entry.pool.name, Told(shape=entry.pool.shape, settings=entry.pool.settings))
        ground = _ground(plan, entry)
        build = _build(ground, other.shape, other.settings)
        ledger = ledger_told(ground, build, other.settings)
        count = min(entry.pool.replicas, entry.pool.num_gpus // other.shape.num_gpus)
        _check(entry, other.shape, ledger, count)
        candidate = _candidate(ground, build, other.settings, ledger)
        engines.append((entry, _point(entry, candidate, count=count), count))
    found = _at(plan, deployment, engines, 1.0)
    if keep_targets(plan.request, (found,)):
        return found
    low, high = 0.0, 1.0
    best = replace(found, requests_per_second=0.0)
    while high - low > PRECISION:
        middle = (low + high) / 2
        tried = _at(plan, deployment, engines, middle)
        if keep_targets(plan.request, (tried,)):
            best, low = tried, middle
        else:
            high = middle
    return best


def _check(entry: PlannedPool, shape: EngineShape, ledger: KvLedger, count: int) -> None:
    if not count:
        raise InputError(
            f"An engine of pool {entry.pool.name} takes {shape.num_gpus} GPUs, and the pool has {entry.pool.num_gpus}.",
            hint="Plan again with its degrees pinned.",
        )
    if not ledger.fits:
        lacking = ledger.shortfall_bytes / GIB
        raise InputError(
            f"A GPU of pool {entry.pool.name} lacks {lacking:.2f} GiB for weights, a step and the longest sequence.",
            hint="Take the change back, or plan again.",
        )


def _at(
    plan: ServePlan, deployment: Deployment, engines: list[tuple[PlannedPool, Point, int]], part: float
) -> Deployment:
    """Return a deployment at a part of its load."""
    points = [_part(point, part) for _, point, _ in engines]
    times = [times_of(point) for point in points]
    pools = tuple(
        planned_pool(
            point, count, name=entry.pool.name, batch=found.mean_batch, bears=max(found.requests_per_second, 0.0)
        )
        for (entry, _, count), point, found in zip(engines, points, times, strict=True)
    )
    rate = deployment.requests_per_second * part
    layout = replace(deployment.layout, pools=tuple(pool.pool for pool in pools))
    targets = plan.request.workload.targets
    if not deployment.layout.is_split:
        served = tuple(
            served_of(found, targets, in_loop=in_a_loop(point.candidate, Role.BOTH))
            for point, found in zip(points, times, strict=True)
        )
        rate = sum(one.requests_per_second * count for one, (_, _, count) in zip(served, engines, strict=True))
        return Deployment(layout=_checked(layout), pools=pools, requests_per_second=rate, served=served)
    first = [index for index, point in enumerate(points) if point.role is Role.PREFILL]
    second = [index for index, point in enumerate(points) if point.role is Role.DECODE]
    connector = connector_of([points[index].candidate for index in first])
    pairs = [(points[one].candidate, points[other].candidate) for one in first for other in second]
    refusal = next((reason for pair in pairs if (reason := pair_refusal(*pair, connector)) is not None), None)
    if refusal is not None:
        raise InputError(f"The pools cannot pass caches on: {refusal}.", hint="Change both pools, or plan again.")
    slowest = max(
        (transfer_of(*pair, one_node=_is_one_node(plan)) for pair in pairs), key=lambda transfer: transfer.seconds
    )
    return Deployment(
        layout=_checked(replace(layout, connector=connector)),
        pools=pools,
        requests_per_second=rate,
        served=tuple(
            joined(times[one], times[other], transfer_seconds=slowest.seconds, rate=rate, request=plan.request)
            for one in first
            for other in second
        ),
        transfer=slowest,
    )


def _checked(layout: ServingLayout) -> ServingLayout:
    check_layout(layout)
    return layout


def _is_one_node(plan: ServePlan) -> bool:
    return len(plan.clusters) == 1 and plan.clusters[0].num_nodes == 1


def _ground(plan: ServePlan, entry: PlannedPool) -> Ground:
    index = next(number for number, cluster in enumerate(plan.clusters) if cluster.name == entry.cluster)
    return ground_of(plan.model, plan.clusters[index], plan.request, index=index)


def _build(ground: Ground, shape: EngineShape, settings: EngineSettings) -> Build:
    return Build(
        shape=shape,
        budget=settings.max_num_batched_tokens,
        guesses=0 if settings.draft is None else settings.draft.num_tokens,
        balance=_balance(ground, shape, settings),
    )


def _candidate(ground: Ground, build: Build, settings: EngineSettings, ledger: KvLedger) -> Candidate:
    return Candidate(
        ground=ground,
        build=build,
        costs=costs_of(ground, build),
        most_seats=seats_of(ledger, settings, typical_tokens=ground.mean.typical_tokens),
        fixed=settings,
    )


def _point(entry: PlannedPool, candidate: Candidate, *, count: int) -> Point:
    """Return an engine at its part of the load of its pool, which so many engines share."""
    before, dp = entry.pool, candidate.shape.dp
    more = before.replicas / count
    batch = entry.batch * more * before.shape.dp / dp
    closed = in_a_loop(candidate, before.role)
    return Point(
        candidate=candidate,
        role=before.role,
        batch=batch,
        seqs=candidate.most_seqs,
        requests_per_second=entry.requests_per_second * more,
        tpot_seconds=0.0,
        ttft_seconds=0.0,
        concurrency=round(batch) * dp if closed else 0,
    )


def _part(point: Point, part: float) -> Point:
    """Return an engine with a part of its load."""
    batch = point.batch * part
    if in_a_loop(point.candidate, point.role):
        batch = float(max(1, round(batch)))
        return replace(point, batch=batch, concurrency=round(batch) * point.candidate.shape.dp)
    return replace(point, batch=batch, requests_per_second=point.requests_per_second * part)


def _balance(ground: Ground, shape: EngineShape, settings: EngineSettings) -> Balance:
    """Return how experts fall on ranks with the copies that the engine is told."""
    routing, copies = ground.request.workload.routing, settings.redundant_experts
    if routing is None:
        return Balance(redundant=copies)
    if not shape.expert_parallel:
        return in_order(routing, 1)
    ranks = shape.tp * shape.pcp * shape.dp
    slots, left = divmod(routing.num_experts + (copies or 0), ranks)
    if left or slots > routing.num_experts:
        # No balancer places experts so; their memory counts all the same.
        return Balance(redundant=copies)
    return in_order(routing, ranks) if copies is None else balance_of(routing, ranks, slots)
