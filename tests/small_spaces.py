"""Hypothesis strategies: small decoders and runs, the points of their spaces, and every split of a few layers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from hypothesis import strategies as st

from planner.candidates import Pricer, layout_at
from planner.costs import CostTable
from planner.graph import ModelGraph, build_graph
from planner.layout import Layout, stages_from_counts
from planner.memory import PlacedModel, place
from planner.space import Points, enumerate_layouts
from planner.specs import (
    Activation,
    AttentionKernel,
    Block,
    BlockRun,
    Bounds,
    Constraints,
    DenseFeedForward,
    DType,
    Lora,
    ModelSpec,
    Norm,
    PositionEmbedding,
    Precision,
    SelfAttention,
    TrainMethod,
    TrainWorkload,
)
from profiles.analytic import AnalyticCostModel
from profiles.hardware import Cluster
from tests.builders import two_node_cluster

NO_LIMIT_BYTES = 1 << 50


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """Return a decoder layer of a few heads, with any of its flags."""
    heads = draw(st.sampled_from((4, 8)))
    groups = draw(st.sampled_from([count for count in (1, 2, 4, 8) if heads % count == 0]))
    parallel = draw(st.booleans())
    return Block(
        mixer=SelfAttention(
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=draw(st.sampled_from((8, 16, 64))),
            qkv_bias=draw(st.booleans()),
            output_bias=draw(st.booleans()),
            qk_norm=draw(st.booleans()),
        ),
        feed_forward=DenseFeedForward(
            intermediate_size=draw(st.sampled_from((128, 256, 384, 4096))),
            gated=draw(st.booleans()),
            activation=draw(st.sampled_from(Activation)),
            bias=draw(st.booleans()),
        ),
        parallel=parallel,
        num_norms=draw(st.sampled_from((1, 2))) if parallel else 2,
    )


@st.composite
def models(draw: st.DrawFn, *, most_layers: int = 6, kinds: int = 2) -> ModelSpec:
    """Return a decoder of 3 to `most_layers` layers of at most `kinds` kinds."""
    counts = draw(st.lists(st.integers(2, most_layers // kinds), min_size=1, max_size=kinds))
    counts[0] = max(counts[0], 3)
    return ModelSpec(
        name="small",
        architecture="inline",
        hidden_size=draw(st.sampled_from((64, 128, 512))),
        vocab_size=draw(st.sampled_from((500, 4096))),
        tie_word_embeddings=draw(st.booleans()),
        max_position_embeddings=1024,
        norm=draw(st.sampled_from(Norm)),
        position_embedding=draw(st.sampled_from(PositionEmbedding)),
        runs=tuple(BlockRun(block=draw(blocks()), count=count) for count in counts),
        norm_epsilon=1e-5,
        lm_head_bias=draw(st.booleans()),
        embedding_norm=draw(st.booleans()),
        position_offset=draw(st.sampled_from((0, 2))),
    )


@st.composite
def workloads(draw: st.DrawFn) -> TrainWorkload:
    """Return a run of a few short sequences, in any format, with any kernel, with or without adapters."""
    lora = None
    if draw(st.booleans()):
        targets = draw(st.sets(st.sampled_from(("qkv", "proj", "fc1", "fc2")), min_size=1))
        lora = Lora(rank=draw(st.sampled_from((4, 8))), alpha=16.0, target_modules=tuple(sorted(targets)))
    return TrainWorkload(
        seq_len=draw(st.sampled_from((64, 256, 1024))),
        global_batch_size=draw(st.sampled_from((4, 8, 16))),
        precision=draw(st.sampled_from((Precision.BF16, Precision.FP16, Precision.FP8_DELAYED))),
        moment_dtype=draw(st.sampled_from((DType.FP32, DType.BF16))),
        gradient_dtype=draw(st.sampled_from((DType.FP32, DType.BF16))),
        attention_kernel=draw(st.sampled_from(AttentionKernel)),
        hidden_dropout=draw(st.sampled_from((0.0, 0.1))),
        attention_dropout=draw(st.sampled_from((0.0, 0.1))),
        method=TrainMethod.PRETRAIN if lora is None else TrainMethod.LORA,
        lora=lora,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SmallSpace:
    """The legal points of a small model on 8 GPUs in two nodes, with their cost table.

    Args:
        model: The model.
        workload: The run.
        cluster: The cluster.
        graph: The model's operators.
        points: The legal points.
        table: Their costs.
    """

    model: ModelSpec
    workload: TrainWorkload
    cluster: Cluster
    graph: ModelGraph
    points: Points
    table: CostTable

    def __repr__(self) -> str:
        return f"SmallSpace({self.model!r}, {self.workload!r})"

    def pricer(self, limit_bytes: int = NO_LIMIT_BYTES) -> Pricer:
        """Return a pricer under a limit."""
        return Pricer(self.table, limit_bytes=limit_bytes)

    def layout(self, index: int) -> Layout:
        """Return one point, its layers not placed."""
        return layout_at(self.points, index, self.table)

    def place(self, layout: Layout) -> PlacedModel:
        """Return the model under `layout`, from the graph and not from the table."""
        return place(self.model, self.graph, layout, self.workload)

    def splits(self, layout: Layout) -> Iterator[Layout]:
        """Yield `layout` with its layers placed in every way that the search stands for.

        Every stage holds at least one layer, and as many as are recomputed whole; an interleaved split is as even as
        the layer count allows.
        """
        num_stages = layout.pp * layout.vpp
        fewest, most = max(layout.recompute.num_layers or 1, 1), self.model.num_layers
        if layout.vpp > 1:
            fewest, most = most // num_stages, -(-most // num_stages)
        for counts in compositions(self.model.num_layers, num_stages):
            if min(counts) >= fewest and max(counts) <= most:
                yield replace(layout, stages=stages_from_counts(counts))


def small_space(model: ModelSpec, workload: TrainWorkload, cluster: Cluster | None = None) -> SmallSpace:
    """Return the space of a model; tensor parallelism may leave the fast domain."""
    cluster = cluster or two_node_cluster()
    graph = build_graph(model, workload)
    constraints = Constraints(degrees={"tp": Bounds(minimum=1)})
    space = enumerate_layouts(model, cluster, workload, constraints)
    table = CostTable(
        model=model,
        graph=graph,
        workload=workload,
        cost_model=AnalyticCostModel(cluster),
        recomputes=space.recomputes,
    )
    return SmallSpace(model=model, workload=workload, cluster=cluster, graph=graph, points=space.points, table=table)


@st.composite
def points_of_small_spaces(draw: st.DrawFn) -> tuple[SmallSpace, int]:
    """Return a space and the index of one of its points."""
    space = small_space(draw(models()), draw(workloads()))
    return space, draw(st.integers(0, len(space.points) - 1))


@st.composite
def placed_layouts(draw: st.DrawFn) -> tuple[SmallSpace, Layout]:
    """Return a space and a layout of it with its layers placed in one of the searched ways."""
    space, index = draw(points_of_small_spaces())
    splits = list(space.splits(space.layout(index)))
    return space, draw(st.sampled_from(splits))


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to write `total` as a sum of `parts` positive numbers, order mattering."""
    for cuts in combinations(range(1, total), parts - 1):
        bounds = (0, *cuts, total)
        yield tuple(bounds[part + 1] - bounds[part] for part in range(parts))
