"""An engine of a plan as a file tells it to be: its memory, and what becomes of the planned requests."""

from dataclasses import dataclass

from planner.serve_plan import PlannedPool, Served, ServePlan
from planner.serving.ledger import KvLedger
from planner.serving.rank_operators import Balance
from planner.serving.simulate import seats_of
from planner.serving_layout import EngineSettings, EngineShape, Role
from planner.serving_search.candidates import Build, Candidate, Ground, costs_of, ledger_told
from planner.serving_search.closed_form import Point, in_a_loop
from planner.serving_search.expert_places import balance_of, in_order
from planner.serving_search.search import ground_of
from planner.serving_search.simulated import keeps, served_at


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
    index = next(number for number, cluster in enumerate(plan.clusters) if cluster.name == entry.cluster)
    ground = ground_of(plan.model, plan.clusters[index], plan.request, index=index)
    build = Build(
        shape=shape,
        budget=settings.max_num_batched_tokens,
        guesses=0 if settings.draft is None else settings.draft.num_tokens,
        balance=_balance(ground, shape, settings),
    )
    ledger = ledger_told(ground, build, settings)
    if not ledger.fits or entry.pool.role is not Role.BOTH:
        return HeldEngine(ledger=ledger, served=None, keeps=None)
    candidate = Candidate(
        ground=ground,
        build=build,
        costs=costs_of(ground, build),
        most_seqs=settings.max_num_seqs,
        most_seats=seats_of(ledger, settings, typical_tokens=ground.mean.typical_tokens),
    )
    closed = in_a_loop(candidate)
    point = Point(
        candidate=candidate,
        role=Role.BOTH,
        batch=entry.batch,
        seqs=settings.max_num_seqs,
        requests_per_second=entry.requests_per_second,
        tpot_seconds=0.0,
        ttft_seconds=0.0,
        concurrency=round(entry.batch) * shape.dp if closed else 0,
    )
    served = served_at(point)
    return HeldEngine(ledger=ledger, served=served, keeps=keeps(served, plan.request.workload.targets))


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
