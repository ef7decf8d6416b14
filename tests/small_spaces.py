"""Hypothesis strategies: small decoders and runs, the points of their spaces, and every split of a few layers."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations

from hypothesis import assume
from hypothesis import strategies as st

from planner.blocks import Activation, Block, DenseFeedForward, Norm, PositionEmbedding, SelfAttention
from planner.candidates import Pricer, layout_at
from planner.costs import CostTable
from planner.layers import build_graph
from planner.layout import Layout, stages_from_counts
from planner.placement import PlacedModel, place
from planner.request import Bounds, Constraints
from planner.space import enumerate_layouts, interleaved_counts
from planner.specs import BlockRun, ModelSpec
from planner.workload import AttentionKernel, DType, Lora, Precision, TrainMethod, TrainWorkload
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


class SmallSpace:
    """The legal points of a small model, with their cost table; tensor parallelism may leave the fast domain.

    Args:
        model: The model.
        workload: The run.
        cluster: The cluster.
    """

    def __init__(self, model: ModelSpec, workload: TrainWorkload, cluster: Cluster) -> None:
        self.model = model
        self.workload = workload
        self.cluster = cluster
        self.graph = build_graph(model, workload)
        space = enumerate_layouts(model, cluster, workload, Constraints(degrees={"tp": Bounds(minimum=1)}))
        self.points = space.points
        self.table = CostTable(
            model=model,
            graph=self.graph,
            workload=workload,
            cost_model=AnalyticCostModel(cluster),
            recomputes=space.recomputes,
        )

    def __repr__(self) -> str:
        return f"SmallSpace({self.model!r}, {self.workload!r}, {self.cluster.name!r})"

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

        Every stage holds at least one layer, and as many as are recomputed whole. Interleaved stages come out even in
        one way.
        """
        num_stages = layout.pp * layout.vpp
        counts_of_splits: Iterable[tuple[int, ...] | None] = compositions(self.model.num_layers, num_stages)
        if layout.vpp > 1:
            counts_of_splits = [interleaved_counts(self.model.num_layers, num_stages)]
        for counts in counts_of_splits:
            assert counts is not None
            if min(counts) >= (layout.recompute.num_layers or 1):
                yield replace(layout, stages=stages_from_counts(counts))


@st.composite
def points_of_small_spaces(draw: st.DrawFn) -> tuple[SmallSpace, int]:
    """Return a space and the index of one of its points."""
    space = SmallSpace(draw(models()), draw(workloads()), two_node_cluster())
    assume(len(space.points) > 0)
    return space, draw(st.integers(0, len(space.points) - 1))


@st.composite
def placed_layouts(draw: st.DrawFn) -> tuple[SmallSpace, Layout]:
    """Return a space and a layout of it with its layers placed in one of the searched ways."""
    space, index = draw(points_of_small_spaces())
    splits = list(space.splits(space.layout(index)))
    return space, draw(st.sampled_from(splits))


def legal_tensor_degrees(model: ModelSpec) -> list[int]:
    """Return the degrees up to 16 that the model's heads and widths allow, by Megatron-LM's rules."""

    def allows(block: Block, tp: int) -> bool:
        attention, feed_forward = block.mixer, block.feed_forward
        assert attention is not None
        assert feed_forward is not None
        groups = attention.num_key_value_heads
        return (
            attention.num_attention_heads % tp == 0
            and (groups % tp == 0 or tp % groups == 0)
            and (attention.query_size + 2 * attention.key_value_size) % tp == 0
            and feed_forward.intermediate_size % tp == 0
        )

    return [tp for tp in (1, 2, 4, 8, 16) if all(allows(block, tp) for block in model.distinct_blocks)]


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to write `total` as a sum of `parts` positive numbers, order mattering."""
    for cuts in combinations(range(1, total), parts - 1):
        bounds = (0, *cuts, total)
        yield tuple(bounds[part + 1] - bounds[part] for part in range(parts))
