"""What one rank's kernels take in a step by prediction, class by class, each as if it ran alone.

Collectives count whole, whatever hides them, as the durations of their kernels do in a trace; sends and receives are
left out, which wait for other stages.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from planner.evaluation.node_costs import part_costs
from planner.layout import Granularity, Recompute
from planner.ranks.communication import data_parallel_traffic, gradient_norm_reduction, optimizer_traffic
from planner.ranks.placement import PlacedModel
from planner.ranks.step import Step, Term
from profiles.estimate import CostModel
from profiles.ops import Collective, CollectiveKind
from profiles.slowed import OperationClass, class_of


class _Sum:
    """Adds up seconds by class on one rank."""

    def __init__(self, costs: CostModel) -> None:
        self.costs = costs
        self.seconds: defaultdict[OperationClass, float] = defaultdict(float)

    def steps(self, steps: Iterable[Step], times: int) -> None:
        """Add steps that run so many times."""
        for step in steps:
            if step.compute is not None:
                self.seconds[class_of(step.compute)] += times * self.costs.compute(step.compute).seconds
            if step.collective is not None:
                self.collectives((step.collective,), times * step.repeats)

    def collectives(self, collectives: Iterable[Collective], times: int) -> None:
        """Add collectives that run so many times, but for sends and receives."""
        for collective in collectives:
            if collective.size > 1 and collective.kind is not CollectiveKind.SEND_RECV:
                self.seconds[OperationClass.INSIDE] += times * self.costs.collective(collective).seconds


def class_seconds(placed: PlacedModel, cost_model: CostModel, *, pipeline_rank: int) -> Mapping[OperationClass, float]:
    """Return the seconds of one step by class; collectives of both kinds count as those inside a node.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    layout, nothing = placed.layout, Recompute(granularity=Granularity.NONE)
    total = _Sum(part_costs(layout, cost_model).of_stage(pipeline_rank))
    often = layout.num_microbatches
    for stage in layout.chunks(pipeline_rank):
        held = placed.rank_model.stage_layers(stage)
        layers = list(zip(held, layout.layer_recomputes(stage), strict=True))
        layers += [(placed.rank_model.embedding, nothing)] if stage.has_embedding else []
        layers += [(placed.rank_model.head, nothing)] if stage.has_head else []
        for layer, recompute in layers:
            total.steps((*layer.forward, *layer.backward, *layer.recomputed_steps(recompute)), often)
        traffic = data_parallel_traffic(
            placed.rank_model.stage_elements(stage, pp=layout.pp, trainable=True),
            layout,
            placed.workload,
            everything=placed.rank_model.stage_elements(stage, pp=layout.pp),
            capabilities=placed.capabilities,
        )
        total.collectives(traffic.reduce, often if layout.zero_stage >= 2 else 1)
        total.collectives((*traffic.gather, *traffic.gather_again), often if layout.zero_stage == 3 else 1)
    total.collectives((gradient_norm_reduction(layout),), 1)
    if layout.offload is None:
        update = optimizer_traffic(placed.elements(pipeline_rank, trainable=True), layout, placed.workload)
        total.steps((Step(term=Term.POINTWISE, compute=update),), 1)
    return total.seconds
