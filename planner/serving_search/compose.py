"""How many engines of which option: the fleet problem of `solvers.fleet` in the planner's words, and back.

Resources are the GPUs of each kind, the price and the power where they are bounded, and the requests under way where
their number is fixed. Engines inside a node have sizes that divide one another, and larger ones take whole nodes, so
that the sum of the GPUs says whether they have a place (`planner.serving_search.shapes`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.requests.objectives import watts_of as watts_of_gpu
from planner.serving_plans.layout import Role
from planner.serving_plans.request import ServeObjective, ServeRequest
from planner.serving_search.options import Option
from profiles.hardware import Cluster
from solvers.fleet import Fleet, FleetProblem, Goal, Part
from solvers.fleet_registry import compose

PARTS = {Role.BOTH: Part.WHOLE, Role.PREFILL: Part.FIRST, Role.DECODE: Part.SECOND}

DEFAULT_SOLVER = "mathopt"


NUM_GPUS, MAX_PRICE, MAX_WATTS = "num_gpus", "max_price_per_hour", "max_watts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """A resource of which there is as much as is needed, and the least of it is wanted.

    Args:
        name: `NUM_GPUS`, `MAX_PRICE` or `MAX_WATTS`.
        times: The GPUs of each kind over those that there are; 1 unless GPUs are what is free.
    """

    name: str
    times: int

    def cost_of(self, option: "Option") -> float:
        """Return what an engine takes of it."""
        return {NUM_GPUS: gpus_of, MAX_PRICE: price_of, MAX_WATTS: watts_of}[self.name](option)


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A composition.

    Args:
        fleet: The solver's answer.
        counts: Engines by option, those that there are.
    """

    fleet: Fleet
    counts: Mapping[int, int]


def composed(  # noqa: PLR0913 - what is composed, of what, for what
    request: ServeRequest,
    clusters: tuple[Cluster, ...],
    options: Mapping[int, Option],
    *,
    demand: float | None,
    solver: str = DEFAULT_SOLVER,
    freed: Freed | None = None,
) -> Composed:
    """Return the best composition of options.

    Args:
        request: What is asked.
        clusters: The GPUs.
        options: What may be composed.
        demand: Requests a second that must be served at least cost; None for as many as there can be.
        solver: Which solver composes.
        freed: A resource of which there is as much as is needed, and the least of it wanted; None for none.
    """
    chosen = sorted(options)
    problem = fleet_problem(request, clusters, [options[index] for index in chosen], demand=demand, freed=freed)
    fleet = compose(problem, solver=solver)
    counts = {index: count for index, count in zip(chosen, fleet.count_O, strict=False) if count}
    return Composed(fleet=fleet, counts=counts)


def fleet_problem(
    request: ServeRequest,
    clusters: tuple[Cluster, ...],
    options: list[Option],
    *,
    demand: float | None,
    freed: Freed | None = None,
) -> FleetProblem:
    """Return the fleet problem of some options; `demand` and `freed` as in `composed`."""
    by_price = request.objective is ServeObjective.COST
    cost_of = freed.cost_of if freed is not None else price_of if by_price else gpus_of
    uses: list[tuple[float, ...]] = []
    capacities: list[float] = []
    for index, cluster in enumerate(clusters):
        uses.append(
            tuple(
                float(option.point.candidate.num_gpus) if option.point.candidate.ground.index == index else 0.0
                for option in options
            )
        )
        capacities.append(float(cluster.world_size) * (1 if freed is None else freed.times))
    constraints = request.constraints
    if constraints.max_price_per_hour is not None and (freed is None or freed.name != MAX_PRICE):
        uses.append(tuple(price_of(option) for option in options))
        capacities.append(constraints.max_price_per_hour)
    if constraints.max_watts is not None and (freed is None or freed.name != MAX_WATTS):
        uses.append(tuple(watts_of(option) for option in options))
        capacities.append(constraints.max_watts)
    if request.workload.concurrency is not None:
        uses.append(tuple(option.share for option in options))
        capacities.append(float(request.workload.concurrency))
    return FleetProblem(
        part_O=tuple(PARTS[option.point.role] for option in options),
        rate_O=tuple(option.rate for option in options),
        cost_O=tuple(cost_of(option) for option in options),
        use_RO=tuple(uses),
        capacity_R=tuple(capacities),
        goal=Goal.MOST_SERVED if demand is None else Goal.LEAST_COST,
        demand=demand or 0.0,
    )


def gpus_of(option: Option) -> float:
    """Return the GPUs of an engine."""
    return float(option.point.candidate.num_gpus)


def price_of(option: Option) -> float:
    """Return the price an hour of an engine's GPUs."""
    candidate = option.point.candidate
    price = candidate.ground.prices.cluster.price_per_gpu_hour
    assert price is not None, "prices are asked for before they are needed"
    return price * candidate.num_gpus


def watts_of(option: Option) -> float:
    """Return the power of an engine's GPUs: the cluster's figure with the share of the node, or the board's."""
    candidate = option.point.candidate
    cluster = candidate.ground.prices.cluster
    return watts_of_gpu(cluster) * candidate.num_gpus
