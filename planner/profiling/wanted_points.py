"""Which points a profile should have for a spec: every operation that a search asks the price of.

The search runs once with the prices that stand, and whatever it asks is noted: shapes of every sharding, and every
group of ranks that a layout of the cluster can use. A point weighs as much as the seconds that were asked of it, for an
error of its price spoils as much of the answer.
"""

from collections import defaultdict

from planner.errors import InputError
from planner.models.specs import ModelSpec
from planner.requests.request import PlanRequest
from planner.search.search import search
from profiles.collectives import CollectivePrices
from profiles.estimate import CostModel, Estimate
from profiles.hardware import Cluster
from profiles.measure.points import Point, Wanted
from profiles.measured_operations import points_of
from profiles.ops import Collective, ComputeOp
from profiles.planned import cost_model_on
from profiles.software import Software, TensorParallelOverlap


class NotedCostModel:
    """A cost model that keeps what it is asked.

    Args:
        prices: Prices everything.
        seconds: Where seconds by operation are added up.
    """

    def __init__(self, prices: CostModel, seconds: defaultdict[ComputeOp | Collective, float]) -> None:
        self._prices = prices
        self._seconds = seconds

    def compute(self, operation: ComputeOp) -> Estimate:
        """Return the time of one operation on one GPU."""
        found = self._prices.compute(operation)
        self._seconds[operation] += found.seconds
        return found

    def collective(self, operation: Collective) -> Estimate:
        """Return the time of one collective, all its ranks taking part."""
        found = self._prices.collective(operation)
        self._seconds[operation] += found.seconds
        return found

    @property
    def launch_seconds(self) -> float:
        """Return the host's time for one launch."""
        return self._prices.launch_seconds

    @property
    def tensor_parallel_overlap(self) -> TensorParallelOverlap:
        """Return what tensor-parallel collectives run beside."""
        return self._prices.tensor_parallel_overlap

    @property
    def overlap_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a collective runs beside it."""
        return self._prices.overlap_slowdown

    @property
    def transfer_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a pipeline send or receive runs beside it."""
        return self._prices.transfer_slowdown

    @property
    def copy_slowdown(self) -> float | None:
        """Return the seconds that a kernel loses for each second of a copy to or from the host beside it, if known."""
        return self._prices.copy_slowdown


def wanted_points(model: ModelSpec, cluster: Cluster, request: PlanRequest) -> tuple[Wanted, ...]:
    """Return the points that price a spec's layouts, in the order in which the search asks; weights average to 1.

    Raises:
        planner.errors.InputError: The nodes of the cluster differ.
        profiles.errors.CoverageError: An operation has no cost on this cluster.
        planner.errors.NotExpressibleError: The target has no way to say the model or the workload.
        solvers.errors.SolverError: The search stopped with nothing.
    """
    if cluster.unequal is not None:
        raise InputError(
            "Points are measured for nodes that are alike, and those of this cluster differ.",
            hint="Measure each kind of node with a spec of its own.",
        )
    seconds: defaultdict[ComputeOp | Collective, float] = defaultdict(float)

    def noted(on: Cluster, software: Software) -> CostModel:
        return NotedCostModel(cost_model_on(on, software), seconds)

    search(model, cluster, request, top=1, price_on=noted)
    links = CollectivePrices(cluster, Software(), sustained=False)
    weights: defaultdict[Point, float] = defaultdict(float)
    for operation, asked_seconds in seconds.items():
        crosses = isinstance(operation, Collective) and links.leaves_node(operation)
        for wanted in points_of(operation, node=cluster.gpus_per_node, crosses=crosses):
            weights[wanted] += asked_seconds
    mean = sum(weights.values()) / max(len(weights), 1)
    return tuple(Wanted(point=wanted, weight=weight / mean) for wanted, weight in weights.items())
