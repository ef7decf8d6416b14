"""The search's price and the independent one agree for every kind of model and every dimension, to the last byte."""

import math
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.evaluation.evaluate import evaluate
from planner.experts.ordering import reordered
from planner.frameworks.capabilities import ANY, MEGATRON, Capabilities
from planner.layout import Layout, even_counts, stages_from_counts
from planner.models.layers import build_graph
from planner.models.specs import BlockRun, ModelSpec, MultiTokenPrediction
from planner.ranks.placement import place
from planner.requests.request import Bounds, Constraints
from planner.requests.routing import Routing
from planner.requests.workload import AttentionKernel, DocumentLengths, Packing, Precision, TrainWorkload
from planner.search.bounds.costs import CostTable
from planner.search.space.dimensions import interleaved_counts
from planner.search.space.enumeration import enumerate_layouts
from planner.search.space.points import Points, Scope
from planner.search.splits.candidates import PointBound, Pricer, Rejected, layout_at
from profiles.analytic import AnalyticCostModel
from tests.builders import two_node_cluster
from tests.examples import examples
from tests.kinds import even_workload, handmade_models
from tests.small_spaces import layer_choices

NO_LIMIT_BYTES = 1 << 60
PINNED = Constraints(degrees={name: Bounds(minimum=1) for name in ("tp", "cp", "etp")})
DOCUMENTS = DocumentLengths(lengths=(32, 256), weights=(0.9, 0.1), packing=Packing.PACKED)
PRECISIONS = (Precision.BF16, Precision.BF16, Precision.FP8_DELAYED, Precision.FP16)
POINTS_OF_EACH_SPACE = 12


class PricedSpace:
    """The legal points of a model on eight GPUs, with what prices them in both ways."""

    def __init__(self, model: ModelSpec, workload: TrainWorkload, capabilities: Capabilities) -> None:
        self.model, self.workload, self.capabilities = model, workload, capabilities
        self.graph = build_graph(model, workload)
        cluster = two_node_cluster()
        self.cost_model = AnalyticCostModel(cluster)
        scope = Scope(
            model=model,
            graph=self.graph,
            num_gpus=cluster.world_size,
            fast_domain_size=cluster.fast_domain_size,
            workload=workload,
            constraints=PINNED,
            capabilities=capabilities,
        )
        space = enumerate_layouts(scope)
        self.points: Points = space.points
        self.table = CostTable(
            model=model,
            graph=self.graph,
            workload=workload,
            cost_model=self.cost_model,
            recomputes=space.recomputes,
            capabilities=capabilities,
        )
        self.pricer = Pricer(self.table, limit_bytes=NO_LIMIT_BYTES)

    def layout(self, index: int, *, filled: int = 0) -> Layout:
        """Return one point, its layers placed as evenly as they go.

        Args:
            index: Which point.
            filled: Which of some ways to recompute each layer, where each has a choice of its own.
        """
        layout = layout_at(self.points, index, self.table)
        layers, stages = self.model.num_layers, layout.pp * layout.vpp
        counts = interleaved_counts(layers, stages) if layout.vpp > 1 else even_counts(layers, stages)
        assert counts is not None
        ways = layer_choices(self.table, layout)
        return replace(layout, stages=stages_from_counts(counts), recompute=ways[filled % len(ways)])


ROUTINGS = (
    Routing(source="made up", layers=(0, 3), counts=("9,1,4,2,0,8,3,5", "1,1,1,1,1,1,1,17")),
    Routing(source="made up", layers=(1,), counts=("9,1,4,2,0,8,3,5",), capacity_factor=1.1),
    Routing(source="made up", layers=(1,), counts=("9,1,4,2,0,8,3,5",), capacity_factor=0.5, pads_to_capacity=True),
    Routing(source="made up", layers=(0, 3), counts=("9,1,4,2,0,8,3,5", "1,1,1,1,1,1,1,17"), reroutes=True),
    reordered(Routing(source="made up", layers=(0, 3), counts=("9,1,4,2,0,8,3,5", "1,1,1,1,1,1,1,17"))),
)
"""Ranks get more in some layers than in others, less than all choices, what they are padded to, or all as much."""


@cache
def priced_models() -> tuple[ModelSpec, ...]:
    """Return models of every kind with enough layers for stages, one of them with two prediction modules."""
    longer = tuple(
        replace(model, runs=tuple(BlockRun(block=run.block, count=2 * run.count) for run in model.runs))
        for model in handmade_models()
    )
    predicting = MultiTokenPrediction(num_modules=2, block=longer[0].runs[-1].block)
    return (*longer, replace(longer[0], mtp=predicting, tie_word_embeddings=True))


@st.composite
def spaces(draw: st.DrawFn) -> PricedSpace:
    """Return a space of any kind of model, run and target; half of the runs are over sequences of many documents."""
    workload = replace(
        even_workload(seq_len=draw(st.sampled_from((256, 1024))), precision=draw(st.sampled_from(PRECISIONS))),
        routing_skew=draw(st.sampled_from((1.0, 1.3))),
        attention_kernel=draw(st.sampled_from(AttentionKernel)),
        documents=draw(st.sampled_from((None, DOCUMENTS))),
        routing=draw(st.sampled_from((None, *ROUTINGS))),
    )
    return PricedSpace(draw(st.sampled_from(priced_models())), workload, draw(st.sampled_from((MEGATRON, ANY))))


@settings(max_examples=examples(few=15, many=50), deadline=None)
@given(space=spaces(), data=st.data())
def test_the_searchs_price_and_peak_equal_the_independent_ones(space: PricedSpace, data: st.DataObject) -> None:
    assume(len(space.points) > 0)
    indices = st.lists(st.integers(0, len(space.points) - 1), min_size=4, max_size=POINTS_OF_EACH_SPACE, unique=True)
    for index in data.draw(indices):
        layout = space.layout(index, filled=data.draw(st.integers(0, 20)))
        placed = place(space.model, space.graph, layout, space.workload, space.capabilities)
        checked = evaluate(placed, AnalyticCostModel(two_node_cluster()))
        searched = space.pricer.prices(layout).step_seconds(layout)
        assert abs(searched - checked.step_seconds) <= 1e-9 * checked.step_seconds, (
            f"{space.model.name}: searched at {searched} s, evaluated at {checked.step_seconds} s, {layout}"
        )
        peak = space.pricer.prices(layout).peak_bytes(layout)
        assert peak == checked.peak_memory_bytes, f"{space.model.name}: {layout}"


@st.composite
def splits(draw: st.DrawFn) -> tuple[PricedSpace, int, Layout]:
    """Return a point of a space with its layers placed in any way that the search stands for."""
    space = draw(spaces())
    assume(len(space.points) > 0)
    index = draw(st.integers(0, len(space.points) - 1))
    layout = space.layout(index, filled=draw(st.integers(0, 20)))
    if layout.pp == 1 or layout.vpp > 1:
        return space, index, layout
    fewest = layout.recompute.num_layers or 1
    spare = space.model.num_layers - fewest * layout.pp
    cuts = sorted(draw(st.lists(st.integers(0, spare), min_size=layout.pp - 1, max_size=layout.pp - 1)))
    counts = tuple(fewest + after - before for before, after in pairwise((0, *cuts, spare)))
    return space, index, replace(layout, stages=stages_from_counts(counts))


@settings(max_examples=examples(few=25, many=80), deadline=None)
@given(drawn=splits())
def test_no_bound_of_a_point_lies_above_a_split_of_it_that_just_fits(drawn: tuple[PricedSpace, int, Layout]) -> None:
    space, index, layout = drawn
    seconds = space.pricer.prices(layout).step_seconds(layout)
    limit = space.pricer.prices(layout).peak_bytes(layout)
    alone = space.points.where(np.array([index]))
    where = f"{space.model.name} in {space.workload.precision}: {layout}"
    assert space.table.fits_X(alone, limit_bytes=limit)[0], f"ruled out for memory, but {limit} bytes do: {where}"
    bounds = space.table.bounds(alone, limit_bytes=limit)
    assert bounds.step_seconds_X[0] <= seconds * (1 + 1e-9), f"bounded above its price: {where}"
    point = PointBound(
        pipeline_seconds=float(bounds.pipeline_seconds_X[0]), tail_seconds=float(bounds.tail_seconds_X[0])
    )
    outcome = Pricer(space.table, limit_bytes=limit).price(
        layout_at(space.points, index, space.table), bound=point, ceiling_seconds=math.inf
    )
    below = outcome.bound_seconds if isinstance(outcome, Rejected) else outcome.lower_bound_seconds
    assert below <= seconds * (1 + 1e-9), f"the search's bound lies above a split that fits: {where}"


def test_among_the_points_priced_every_dimension_is_used() -> None:
    seen: Counter[str] = Counter()
    for model in priced_models():
        space = PricedSpace(model, even_workload(seq_len=1024), ANY)
        points = space.points
        seen["cp"] += int((points.cp_X > 1).sum())
        seen["2D cp"] += int(((points.ulysses_X > 1) & (points.ulysses_X < points.cp_X)).sum())
        for name in ("tp", "pp", "vpp", "dp", "ep", "etp", "ulysses", "state_replicas", "secondary_shard"):
            seen[name] += int((getattr(points, f"{name}_X") > 1).sum())
        seen["recompute of each layer"] += sum(
            space.table.recomputes[choice].is_per_layer for choice in points.recompute_X.tolist()
        )
        for stage in range(4):
            seen[f"zero_stage {stage}"] += int((points.zero_stage_X == stage).sum())
    assert min(seen.values()) > 0, seen
