"""Hypothesis strategies over plans of every kind of model and layout that Megatron-LM can express."""

import math
from dataclasses import replace

from hypothesis import strategies as st

from planner.layout import Granularity, Layout, Recompute
from planner.models.blocks import (
    Block,
    FeedForward,
    LatentAttention,
    LinearAttention,
    LinearRule,
    Mixer,
    MixtureOfExperts,
    QueryKeyNorm,
    Router,
    RouterScore,
    SelfAttention,
    SparseIndexer,
    StateSpace,
)
from planner.models.specs import ModelSpec, MultiTokenPrediction, Trait
from planner.plans.plan import Plan
from planner.requests.workload import AttentionKernel, DocumentLengths, Packing, Precision, TrainWorkload
from tests.emitted.models import DEEPSEEK_SCALING, LLAMA3_SCALING, chain, spec, squared_relu, swiglu
from tests.emitted.plans import NO_RECOMPUTE, cluster_of, layout_of_degrees, plan_of

SEQ_LEN = 4096

RANK_ORDERS = ("tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp")

DOCUMENTS = DocumentLengths(lengths=(512, 2048), weights=(0.75, 0.25), packing=Packing.PACKED)


@st.composite
def plans_of_every_kind(draw: st.DrawFn) -> Plan:
    """Draw a model of any kind and a layout that suits it."""
    tp, dp = draw(st.sampled_from((1, 2, 4))), draw(st.sampled_from((1, 2, 4)))
    cp = draw(st.sampled_from((1, 2, 4)))
    pp = draw(st.sampled_from((1, 2, 3)))
    vpp = draw(st.sampled_from((1, 2))) if pp > 1 else 1
    kind = draw(st.sampled_from(("experts", "latent", "windows", "linear", "hybrid", "layers")))
    vpp = 1 if kind == "layers" else vpp
    layers = draw(_stages(pp * vpp))
    model = draw(_model(kind, sum(layers), units=tp * cp))
    layout = draw(_layout(model, layers, tp=tp, pp=pp, dp=dp, cp=cp))
    gpus_per_node = math.gcd(layout.world_size, 8)
    packed = cp == 1 and draw(st.booleans())
    workload = TrainWorkload(
        seq_len=SEQ_LEN,
        global_batch_size=layout.global_batch_size,
        precision=draw(st.sampled_from((Precision.BF16, Precision.FP16))),
        attention_kernel=draw(st.sampled_from((AttentionKernel.FLASH, AttentionKernel.FUSED))),
        tokens_to_train=SEQ_LEN * layout.global_batch_size * 10,
        documents=DOCUMENTS if packed else None,
    )
    workload = replace(workload, gradient_dtype=workload.precision.parameter_dtype)
    return plan_of(model, workload, layout, cluster_of(layout.world_size // gpus_per_node, gpus_per_node))


@st.composite
def _stages(draw: st.DrawFn, stages: int) -> tuple[int, ...]:
    """Draw layers of each stage; the ends of a longer pipeline may hold none."""
    inner = draw(st.lists(st.integers(1, 3), min_size=stages, max_size=stages))
    if stages > 2 and draw(st.booleans()):
        inner[0] = 0
    if stages > 2 and draw(st.booleans()):
        inner[-1] = 0
    return tuple(inner)


@st.composite
def _layout(
    draw: st.DrawFn, model: ModelSpec, layers: tuple[int, ...], *, tp: int, pp: int, dp: int, cp: int
) -> Layout:
    blocks = (*model.distinct_blocks, *((model.mtp.block,) if model.mtp else ()))
    attentions = [block.mixer for block in blocks if isinstance(block.mixer, SelfAttention)]
    ring_hurts = any(attention.window or attention.sinks for attention in attentions)
    sparse = any(isinstance(block.mixer, LatentAttention) and block.mixer.indexer for block in blocks)
    cp = 1 if sparse else cp
    ulysses = cp if ring_hurts else draw(st.sampled_from([part for part in (1, 2, 4) if cp % part == 0]))
    ep, etp = draw(_grid(tp * cp * dp)) if model.has_experts else (1, 1)
    etp = 1 if any(attention.output_bias for attention in attentions) else etp
    edp = tp * cp * dp // (ep * etp)
    zero_stage = draw(st.sampled_from((0, 1) if max(tp, pp, cp, ep) > 1 else (0, 1, 2, 3)))
    shared = math.gcd(dp * cp, edp) if model.has_experts else dp * cp
    replicas = draw(st.sampled_from([part for part in (1, 2, 4) if shared % part == 0])) if zero_stage else 1
    any_order = pp == 1 or (edp if model.has_experts else dp * cp) == dp
    return layout_of_degrees(
        layers=layers,
        num_microbatches=draw(st.integers(1, 3)) * pp,
        tp=tp,
        pp=pp,
        dp=dp,
        cp=cp,
        ulysses=ulysses,
        ep=ep,
        etp=etp,
        zero_stage=zero_stage,
        state_replicas=replicas,
        recompute=draw(_recompute(model)),
        rank_order=draw(st.sampled_from(RANK_ORDERS if any_order else RANK_ORDERS[:1])),
    )


@st.composite
def _grid(draw: st.DrawFn, ranks: int) -> tuple[int, int]:
    ep = draw(st.sampled_from([part for part in (1, 2, 4, 8) if ranks % part == 0]))
    return ep, draw(st.sampled_from([part for part in (1, 2) if ranks % (ep * part) == 0]))


@st.composite
def _recompute(draw: st.DrawFn, model: ModelSpec) -> Recompute:
    kind = draw(st.sampled_from(Granularity))
    if kind is Granularity.FULL:
        return Recompute(granularity=kind, num_layers=draw(st.none() | st.integers(1, 2)))
    modules = _modules(model)
    if kind is Granularity.NONE or not modules:
        return NO_RECOMPUTE
    chosen = draw(st.lists(st.sampled_from(modules), min_size=1, max_size=2, unique=True))
    return Recompute(granularity=Granularity.SELECTIVE, modules=tuple(chosen))


def _modules(model: ModelSpec) -> list[str]:
    """Return what of the model's layers can be recomputed."""
    found: set[str] = set()
    for block in model.distinct_blocks:
        if isinstance(block.mixer, SelfAttention | LatentAttention):
            found.add("core_attn")
        if isinstance(block.mixer, LatentAttention):
            found.add("mla_up_proj")
        if isinstance(block.feed_forward, MixtureOfExperts):
            found |= {"moe", "moe_act", *(("shared_experts",) if block.feed_forward.shared else ())}
        elif block.feed_forward is not None:
            found.add("mlp")
    return sorted(found)


@st.composite
def _router(draw: st.DrawFn, *, top_k: int, bias: bool) -> Router:
    score = draw(st.sampled_from(RouterScore))
    sigmoid = score is RouterScore.SIGMOID
    grouped = top_k == 4 and draw(st.booleans())
    return Router(
        score=score,
        num_groups=4 if grouped else 1,
        groups_per_token=2 if grouped else 1,
        bias=bias,
        correction_bias=sigmoid and draw(st.booleans()),
        normalized=top_k > 1 if sigmoid else (top_k > 1 and draw(st.booleans())),
        weight_factor=draw(st.sampled_from((1.0, 2.5))),
    )


@st.composite
def _experts(draw: st.DrawFn, units: int, *, gated: bool = True, bias: bool = False) -> MixtureOfExperts:
    top_k = draw(st.sampled_from((1, 2, 4)))
    make = swiglu if gated else squared_relu
    shared = not bias and draw(st.booleans())
    return MixtureOfExperts(
        num_experts=16,
        experts_per_token=top_k,
        expert=replace(make(64), bias=bias),
        router=draw(_router(top_k=top_k, bias=bias)),
        shared=make(32 * units) if shared else None,
        shared_gate=shared and draw(st.booleans()),
        latent_size=draw(st.sampled_from((None, 64))),
    )


@st.composite
def _attention(draw: st.DrawFn, units: int) -> SelfAttention:
    return SelfAttention(
        num_attention_heads=2 * units,
        num_key_value_heads=draw(st.sampled_from((units, 2 * units))),
        head_dim=64,
        qk_norm=draw(st.sampled_from((QueryKeyNorm.NONE, QueryKeyNorm.HEAD, QueryKeyNorm.UNIT))),
        output_gate=draw(st.booleans()),
    )


@st.composite
def _model(draw: st.DrawFn, kind: str, num_layers: int, *, units: int) -> ModelSpec:
    """Draw a model whose heads are a multiple of `units`."""
    drawers = {
        "experts": _with_experts,
        "latent": _latent,
        "windows": _windows,
        "linear": _linear,
        "hybrid": _hybrid,
        "layers": _layers_that_differ,
    }
    return draw(drawers[kind](num_layers, units))


def _plain(blocks: tuple[Block, ...], *, rope_theta: float | None = 10000.0) -> ModelSpec:
    runs = chain(*((block, 1) for block in blocks))
    merged: list[tuple[Block, int]] = []
    for run in runs:
        if merged and merged[-1][0] == run.block:
            merged[-1] = (run.block, merged[-1][1] + 1)
        else:
            merged.append((run.block, 1))
    return spec("model", hidden_size=256, vocab_size=1000, runs=chain(*merged), rope_theta=rope_theta)


@st.composite
def _with_experts(draw: st.DrawFn, num_layers: int, units: int) -> ModelSpec:
    attention = draw(_attention(units))
    sparse = Block(mixer=attention, feed_forward=draw(_experts(units)))
    dense = Block(mixer=attention, feed_forward=swiglu(64 * units))
    chosen = draw(st.lists(st.booleans(), min_size=num_layers, max_size=num_layers))
    chosen[-1] = True
    model = _plain(tuple(sparse if choice else dense for choice in chosen))
    predicts = draw(st.booleans())
    return replace(model, mtp=MultiTokenPrediction(num_modules=2, block=sparse) if predicts else None)


@st.composite
def _latent(draw: st.DrawFn, num_layers: int, units: int) -> ModelSpec:
    sparse = draw(st.booleans())
    attention = LatentAttention(
        num_attention_heads=2 * units,
        q_lora_rank=96,
        kv_lora_rank=64,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        indexer=SparseIndexer(num_heads=4, head_dim=64, top_k=256) if sparse else None,
    )
    expert = draw(_experts(units))
    feed_forwards: tuple[FeedForward, ...] = (swiglu(64 * units),) * (num_layers // 2) + (expert,) * (
        num_layers - num_layers // 2
    )
    blocks = tuple(Block(mixer=attention, feed_forward=part) for part in feed_forwards)
    predicts = not sparse and draw(st.booleans())
    return replace(
        _plain(blocks),
        rope_scaling=draw(st.sampled_from(({}, DEEPSEEK_SCALING))),
        traits=(Trait.INTERLEAVED_ROTARY,),
        mtp=MultiTokenPrediction(num_modules=1, block=blocks[-1]) if predicts else None,
    )


@st.composite
def _windows(draw: st.DrawFn, num_layers: int, units: int) -> ModelSpec:
    attention = replace(draw(_attention(units)), sinks=draw(st.booleans()))
    biased = draw(st.booleans())
    attention = replace(attention, qkv_bias=biased, output_bias=biased)
    experts = draw(st.booleans())
    feed_forward: FeedForward = (
        draw(_experts(units, bias=biased)) if experts else replace(swiglu(64 * units), bias=biased)
    )
    period = draw(st.integers(1, 3))
    blocks = tuple(
        Block(
            mixer=replace(
                attention,
                window=None if (index + 1) % period == 0 else 128,
                rotary=(index + 1) % period != 0 or period == 1,
            ),
            feed_forward=feed_forward,
        )
        for index in range(num_layers)
    )
    clamped = biased and draw(st.booleans())
    return replace(_plain(blocks), traits=(Trait.CLAMPED_ACTIVATION,) if clamped else ())


def _delta(units: int) -> LinearAttention:
    return LinearAttention(
        rule=LinearRule.GATED_DELTA,
        num_key_heads=units,
        num_value_heads=2 * units,
        key_head_dim=64,
        value_head_dim=32,
        conv_kernel=4,
    )


@st.composite
def _linear(draw: st.DrawFn, num_layers: int, units: int) -> ModelSpec:
    feed_forward = draw(st.one_of(st.just(swiglu(64 * units)), _experts(units)))
    full = draw(_attention(units))
    chosen = draw(st.lists(st.booleans(), min_size=num_layers, max_size=num_layers))
    chosen[0], chosen[-1] = True, num_layers == 1
    return _plain(tuple(Block(mixer=_delta(units) if choice else full, feed_forward=feed_forward) for choice in chosen))


@st.composite
def _hybrid(draw: st.DrawFn, num_layers: int, units: int) -> ModelSpec:
    mamba = StateSpace(num_heads=2 * units, head_dim=32, state_size=64, num_groups=units, conv_kernel=4, chunk_size=128)
    gated = draw(st.booleans())
    dense = swiglu(64 * units) if gated else squared_relu(64 * units)
    full = draw(_attention(units))
    expert = draw(_experts(units, gated=gated))
    mixers: tuple[Mixer, ...] = (mamba, full, _delta(units))
    choices: list[tuple[Mixer | None, FeedForward | None]] = [
        *((mixer, None) for mixer in mixers),
        (None, dense),
        (None, expert),
    ]
    # Attention and one feed-forward are always there: without, no flag would say their sizes.
    chosen = [
        choices[1],
        choices[3],
        *draw(st.lists(st.sampled_from(choices), min_size=num_layers, max_size=num_layers)),
    ]
    blocks = tuple(
        Block(mixer=mixer, feed_forward=feed_forward, num_norms=1) for mixer, feed_forward in chosen[:num_layers]
    )
    model = _plain(blocks, rope_theta=draw(st.sampled_from((None, 10000.0))))
    predicts = draw(st.booleans())
    module = Block(mixer=full, feed_forward=dense)
    return replace(model, mtp=MultiTokenPrediction(num_modules=2, block=module) if predicts else None)


@st.composite
def _layers_that_differ(draw: st.DrawFn, num_layers: int, units: int) -> ModelSpec:
    attention = replace(draw(_attention(units)), output_gate=False)
    sizes = [64 * units, 128 * units]
    blocks = [
        Block(mixer=attention, feed_forward=swiglu(sizes[0])),
        *(
            Block(mixer=attention, feed_forward=swiglu(size))
            if whole
            else Block(mixer=None, feed_forward=swiglu(size), num_norms=1)
            for whole, size in draw(
                st.lists(
                    st.tuples(st.booleans(), st.sampled_from(sizes)), min_size=num_layers - 1, max_size=num_layers - 1
                )
            )
        ),
    ]
    return replace(_plain(tuple(blocks)), rope_scaling=LLAMA3_SCALING)
