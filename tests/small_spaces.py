"""Hypothesis strategies: small models and runs, the points of their spaces, and every split of a few layers.

`models` are decoders of dense layers, for laws that say what tensor parallelism alone does. `mixed_models` have layers
of several kinds in any order, experts and recurrences among them, and their spaces have every degree.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations, groupby

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from planner.frameworks.capabilities import CAPABILITIES
from planner.layout import GPU_WEIGHTS, ON_HOSTS, Layout, Recompute, stages_from_counts
from planner.models.blocks import (
    Activation,
    Block,
    DenseFeedForward,
    FeedForward,
    LatentAttention,
    Mixer,
    MixtureOfExperts,
    Norm,
    PositionEmbedding,
    QueryKeyNorm,
    Router,
    SelfAttention,
    StateSpace,
)
from planner.models.layers import build_graph
from planner.models.specs import BlockRun, ModelSpec, MultiTokenPrediction, VisionTower
from planner.ranks.placement import PlacedModel, place
from planner.requests.request import Bounds, Constraints, Target
from planner.requests.workload import AttentionKernel, DType, Lora, Precision, TrainMethod, TrainWorkload
from planner.search.bounds.costs import CostTable
from planner.search.offload_search import least_node_bytes_by_part
from planner.search.space.dimensions import interleaved_counts
from planner.search.space.enumeration import enumerate_layouts
from planner.search.space.points import Scope
from planner.search.splits.candidates import Pricer, layout_at
from planner.search.splits.point_prices import PointPrices
from profiles.analytic import AnalyticCostModel
from profiles.drives import has_drives
from profiles.hardware import Cluster
from tests.builders import two_node_cluster

NO_LIMIT_BYTES = 1 << 50

EVERY_DEGREE = Constraints(degrees={name: Bounds(minimum=1) for name in ("tp", "cp", "etp")})
"""Pins nothing, and lets tp leave the fast domain, cp cut short sequences, and etp be any divisor."""

UNBLOCKED = (Precision.BF16, Precision.FP16, Precision.FP8_DELAYED)
"""Formats without a scale for each block of elements: a block that is split over ranks has a scale on each."""


@st.composite
def attentions(draw: st.DrawFn) -> SelfAttention:
    """Return softmax attention of a few heads, with any of its flags."""
    heads = draw(st.sampled_from((4, 8)))
    groups = draw(st.sampled_from([count for count in (1, 2, 4, 8) if heads % count == 0]))
    return SelfAttention(
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=draw(st.sampled_from((8, 16, 64))),
        qkv_bias=draw(st.booleans()),
        output_bias=draw(st.booleans()),
        qk_norm=draw(st.sampled_from((QueryKeyNorm.NONE, QueryKeyNorm.HEAD))),
    )


@st.composite
def dense_feed_forwards(draw: st.DrawFn) -> DenseFeedForward:
    """Return a dense feed-forward of any width and form."""
    return DenseFeedForward(
        intermediate_size=draw(st.sampled_from((128, 256, 384, 4096))),
        gated=draw(st.booleans()),
        activation=draw(st.sampled_from(Activation)),
        bias=draw(st.booleans()),
    )


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """Return a decoder layer of attention and a dense feed-forward, with any of its flags."""
    parallel = draw(st.booleans())
    return Block(
        mixer=draw(attentions()),
        feed_forward=draw(dense_feed_forwards()),
        parallel=parallel,
        num_norms=draw(st.sampled_from((1, 2))) if parallel else 2,
    )


@st.composite
def experts(draw: st.DrawFn) -> MixtureOfExperts:
    """Return a few routed experts, thin or wide, with or without a shared one."""
    num_experts = draw(st.sampled_from((4, 8)))
    return MixtureOfExperts(
        num_experts=num_experts,
        experts_per_token=draw(st.sampled_from((1, 2))),
        expert=replace(draw(dense_feed_forwards()), bias=False),
        router=Router(),
        shared=draw(st.none() | dense_feed_forwards()),
    )


@st.composite
def mixed_blocks(draw: st.DrawFn) -> Block:
    """Return a layer of any kind: attention (windowed, latent), a recurrence, experts, or a feed-forward alone."""
    mixer: Mixer | None = draw(
        st.none()
        | attentions()
        | attentions().map(lambda attention: replace(attention, window=32))
        | st.just(
            LatentAttention(
                num_attention_heads=8,
                q_lora_rank=32,
                kv_lora_rank=16,
                qk_nope_head_dim=16,
                qk_rope_head_dim=8,
                v_head_dim=16,
            )
        )
        | st.just(
            StateSpace(num_heads=8, head_dim=16, state_size=16, num_groups=8, conv_kernel=4, chunk_size=32),
        )
    )
    feed_forward: FeedForward = draw(st.one_of(dense_feed_forwards(), experts()))
    return Block(mixer=mixer, feed_forward=feed_forward, num_norms=2 if mixer else 1)


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
def mixed_models(draw: st.DrawFn, *, most_layers: int = 6) -> ModelSpec:
    """Return a model of 3 to `most_layers` layers of up to three kinds in any order, heavy ones among them.

    Some predict further tokens, some stand beside a vision tower.
    """
    kinds = draw(st.lists(mixed_blocks(), min_size=1, max_size=3, unique=True))
    chain = draw(st.lists(st.sampled_from(kinds), min_size=3, max_size=most_layers))
    model = draw(models(most_layers=3, kinds=1))
    further = MultiTokenPrediction(num_modules=1, block=chain[-1])
    return replace(
        model,
        name="mixed",
        runs=tuple(BlockRun(block=block, count=len(list(equal))) for block, equal in groupby(chain)),
        mtp=draw(st.sampled_from((None, None, further))),
        vision=draw(st.sampled_from((None, None, VisionTower(num_parameters=1_000_000, source="made up")))),
    )


@st.composite
def workloads(draw: st.DrawFn, *, precisions: Iterable[Precision] = UNBLOCKED) -> TrainWorkload:
    """Return a run of a few short sequences, in one of some formats, with any kernel, with or without adapters."""
    lora = None
    if draw(st.booleans()):
        targets = draw(st.sets(st.sampled_from(("qkv", "proj", "fc1", "fc2")), min_size=1))
        lora = Lora(rank=draw(st.sampled_from((4, 8))), alpha=16.0, target_modules=tuple(sorted(targets)))
    return TrainWorkload(
        seq_len=draw(st.sampled_from((64, 256, 1024))),
        global_batch_size=draw(st.sampled_from((4, 8, 16))),
        precision=draw(st.sampled_from(tuple(precisions))),
        moment_dtype=draw(st.sampled_from((DType.FP32, DType.BF16))),
        gradient_dtype=draw(st.sampled_from((DType.FP32, DType.BF16))),
        attention_kernel=draw(st.sampled_from(AttentionKernel)),
        hidden_dropout=draw(st.sampled_from((0.0, 0.1))),
        attention_dropout=draw(st.sampled_from((0.0, 0.1))),
        method=TrainMethod.PRETRAIN if lora is None else TrainMethod.LORA,
        lora=lora,
    )


class SmallSpace:
    """The legal points of a small model, with their cost table; unless pinned, tp, cp and etp are what they can be.

    Args:
        model: The model.
        workload: The run.
        cluster: The cluster.
        target: What the plans are for.
        constraints: What is pinned.
        offload_percent: Part of the optimizer's states that every point has on the host.
        parameters: Where every point has its weights.
        activations: Every point has what some layers save on the host.
        modules: Every point has what these modules of its layers save there.
    """

    def __init__(
        self,
        model: ModelSpec,
        workload: TrainWorkload,
        cluster: Cluster,
        *,
        target: Target = Target.ANY,
        constraints: Constraints = EVERY_DEGREE,
        offload_percent: int = 0,
        parameters: int = GPU_WEIGHTS,
        drives: int = ON_HOSTS,
        activations: bool = False,
        modules: tuple[str, ...] = (),
    ) -> None:
        self.model = model
        self.workload = workload
        self.cluster = cluster
        self.target = target
        self.capabilities = CAPABILITIES[target]
        self.graph = build_graph(model, workload)
        self.scope = Scope(
            model=model,
            graph=self.graph,
            num_gpus=cluster.world_size,
            fast_domain_size=cluster.fast_domain_size,
            workload=workload,
            constraints=constraints,
            capabilities=self.capabilities,
            has_drives=has_drives(cluster),
        )
        space = enumerate_layouts(
            self.scope,
            offload_percent=offload_percent,
            parameters=parameters,
            drives=drives,
            activations=activations,
            modules=modules,
        )
        self.points = space.points
        self.table = CostTable(
            model=model,
            graph=self.graph,
            workload=workload,
            cost_model=AnalyticCostModel(cluster),
            recomputes=space.recomputes,
            capabilities=self.capabilities,
        ).with_modules(modules)

    def __repr__(self) -> str:
        return f"SmallSpace({self.model!r}, {self.workload!r}, {self.cluster.name!r}, target={self.target!r})"

    def pricer(self, limit_bytes: int = NO_LIMIT_BYTES) -> Pricer:
        """Return a pricer under a limit."""
        return Pricer(self.table, limit_bytes=limit_bytes, cluster=self.cluster)

    def least_node_bytes(self, index: int, *, percent: int) -> float:
        """Return what the search says that some node keeps at least of a point with so much of its states there."""
        points = self.points.where(np.array([index]))
        updated_X = self.table.mean_updated_X(points)
        bound = least_node_bytes_by_part(points, updated_X, table=self.table, cluster=self.cluster)
        return float(bound(np.array([percent]))[0])

    def layout(self, index: int) -> Layout:
        """Return one point, its layers not placed."""
        return layout_at(self.points, index, self.table)

    def place(self, layout: Layout) -> PlacedModel:
        """Return the model under `layout`, from the graph and not from the table."""
        return place(self.model, self.graph, layout, self.workload, self.capabilities)

    def splits(self, layout: Layout) -> Iterator[Layout]:
        """Yield `layout` with its layers placed in every way that the search stands for.

        A stage between others holds at least one layer, and every stage as many as are recomputed whole; a stage at
        either end of a plain pipeline may hold none. Interleaved stages come out even in one way. Where each layer has
        a recompute choice of its own, `layer_choices` gives them some.
        """
        num_stages, partial = layout.pp * layout.vpp, layout.recompute.num_layers or 0
        counts_of_splits: Iterable[tuple[int, ...]] = splits_of(self.model.num_layers, num_stages)
        if layout.vpp > 1:
            even = interleaved_counts(self.model.num_layers, num_stages)
            assert even is not None
            counts_of_splits = [even]
        recomputes = layer_choices(self.table, layout)
        for counts in counts_of_splits:
            if min(counts) >= partial:
                for recompute in recomputes:
                    yield replace(layout, stages=stages_from_counts(counts), recompute=recompute)


def layer_choices(table: CostTable, layout: Layout) -> tuple[Recompute, ...]:
    """Return a layout's recompute choice as it is, or where each layer has its own, some ways to fill it.

    All layers alike, all mixtures that go through the choices in turn, and the most frugal choice of each layer.
    """
    recompute = layout.recompute
    if not recompute.is_per_layer:
        return (recompute,)
    choices = [choice for choice in table.recomputes if not choice.is_per_layer]
    num_layers = table.model.num_layers
    filled = [(choice,) * num_layers for choice in choices]
    filled += [tuple(choices[(start + layer) % len(choices)] for layer in range(num_layers)) for start in range(3)]
    whole = PointPrices(table, layout).costs.rank_model.stage_layers(stages_from_counts((num_layers,))[0])
    filled.append(tuple(min(choices, key=layer.saved_bytes) for layer in whole))
    return tuple(replace(recompute, layers=layers) for layers in dict.fromkeys(filled))


def targets() -> st.SearchStrategy[Target]:
    """Return a framework, or none in particular."""
    return st.sampled_from((Target.ANY, Target.MEGATRON, Target.DEEPSPEED))


@st.composite
def spaces(draw: st.DrawFn) -> SmallSpace:
    """Return the space of a model of dense layers, or of mixed ones, for any target."""
    model = draw(st.one_of(models(), mixed_models(), mixed_models()))
    space = SmallSpace(model, draw(workloads(precisions=Precision)), two_node_cluster(), target=draw(targets()))
    assume(len(space.points) > 0)
    return space


@st.composite
def points_of_small_spaces(draw: st.DrawFn) -> tuple[SmallSpace, int]:
    """Return a space and the index of one of its points: of any, or of those that have some degree above 1."""
    space = draw(spaces())
    points = space.points
    rare = {
        "any": np.ones(len(points), dtype=np.bool_),
        "cp": points.cp_X > 1,
        "ep": points.ep_X > 1,
        "etp": points.etp_X > 1,
        "vpp": points.vpp_X > 1,
        "plain pipeline": (points.pp_X > 1) & (points.vpp_X == 1),
        "state_replicas": points.state_replicas_X > 1,
        "secondary_shard": points.secondary_shard_X > 1,
        "recomputed layers": points.recompute_layers_X > 0,
        "each layer": np.array([choice.is_per_layer for choice in space.table.recomputes])[points.recompute_X],
    }
    mask_X = rare[draw(st.sampled_from(sorted(name for name, mask_X in rare.items() if mask_X.any())))]
    return space, int(draw(st.sampled_from(np.flatnonzero(mask_X).tolist())))


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
        assert isinstance(attention, SelfAttention)
        assert isinstance(feed_forward, DenseFeedForward)
        groups = attention.num_key_value_heads
        return (
            attention.num_attention_heads % tp == 0
            and (groups % tp == 0 or tp % groups == 0)
            and (attention.query_size + 2 * attention.key_value_size) % tp == 0
            and feed_forward.intermediate_size % tp == 0
        )

    return [tp for tp in (1, 2, 4, 8, 16) if all(allows(block, tp) for block in model.distinct_blocks)]


def splits_of(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to write `total` as a sum of `parts` numbers, order mattering, none of them 0 but at the ends."""
    if parts == 1:
        yield (total,)
        return
    for cuts in combinations(range(total + 1), parts - 1):
        bounds = (0, *cuts, total)
        yield tuple(bounds[part + 1] - bounds[part] for part in range(parts))
