"""Linear attention: projections, short convolutions, a recurrence over states, gated norm, output projection.

Gated DeltaNet as Megatron-LM's `GatedDeltaNet` runs it on the kernels of flash-linear-attention, Kimi Delta Attention
on the kernels of the same library, lightning attention as MiniMax-Text-01 lays it out. The convolution keeps its
input, the recurrence what it reads and, for delta rules, the inverse of each chunk's corrections (`chunk_size` numbers
a token and head; Yang et al., arXiv 2406.06484, section 3.2), Kimi's also each chunk's scores; it computes the states
of the chunks again in backward (`ChunkGatedDeltaRuleFunction` and `ChunkKDAFunction` of flash-linear-attention).
"""

from planner.models.blocks import LinearAttention, LinearRule
from planner.models.graph import Axis, Divisible, Operator, Parallel, Region, Saved, StateScan, Weight
from planner.models.layers.builder import GATED, PLAIN, Builder, Part
from planner.requests.workload import DType

FP32_BYTES = DType.FP32.num_bytes


def linear_attention(builder: Builder, spec: LinearAttention, input_name: str) -> Part:
    """Return the operators of `spec`, whose projections read `input_name`."""
    match spec.rule:
        case LinearRule.GATED_DELTA:
            operators = _gated_delta(builder, spec, input_name)
        case LinearRule.KIMI_DELTA:
            operators = _kimi_delta(builder, spec, input_name)
        case LinearRule.LIGHTNING:
            operators = _lightning(builder, spec, input_name)
    heads = (("linear_num_key_heads", spec.num_key_heads), ("linear_num_value_heads", spec.num_value_heads))
    return Part(
        operators=tuple(operators),
        divisible=tuple(Divisible(what=what, size=size, axes=(Axis.TP, Axis.STATE_HEADS)) for what, size in heads),
    )


def _gated_delta(builder: Builder, spec: LinearAttention, input_name: str) -> list[Operator]:
    """Return Gated DeltaNet: one projection to queries, keys, values, gate, and two numbers a value head."""
    heads = spec.num_value_heads
    return [
        _projection(
            builder, "input projection", 2 * spec.key_size + 2 * spec.value_size + 2 * heads, input_name=input_name
        ),
        *_convolution(builder, spec),
        _scan(
            builder,
            spec,
            decays=heads,
            weights=tuple(builder.weight(name, heads, split_dim=0) for name in ("dt_bias", "A_log")),
        ),
        *_gated_output(builder, spec, norm_size=spec.value_head_dim, split_dim=None),
    ]


def _kimi_delta(builder: Builder, spec: LinearAttention, input_name: str) -> list[Operator]:
    """Return Kimi Delta Attention: a decay for each channel of a key, it and the gate through a narrow projection."""
    decays = spec.num_value_heads * spec.key_head_dim
    return [
        _projection(
            builder,
            "input projection",
            2 * spec.key_size + spec.value_size + spec.num_value_heads,
            input_name=input_name,
        ),
        *_narrow(builder, "decay", inner=spec.key_head_dim, out_features=decays, input_name=input_name),
        *_narrow(builder, "gate", inner=spec.value_head_dim, out_features=spec.value_size, input_name=input_name),
        *_convolution(builder, spec),
        _scan(
            builder,
            spec,
            decays=decays,
            weights=(
                builder.weight("dt_bias", decays, split_dim=0),
                builder.weight("A_log", spec.num_value_heads, split_dim=0),
            ),
        ),
        *_gated_output(builder, spec, norm_size=spec.value_head_dim, split_dim=None),
    ]


def _lightning(builder: Builder, spec: LinearAttention, input_name: str) -> list[Operator]:
    """Return lightning attention: fixed decays, an activation on queries, keys and values, a norm over all heads."""
    width = 2 * spec.key_size + spec.value_size
    activation = builder.pointwise(
        "silu of queries, keys and values",
        width,
        PLAIN,
        region=Region.SHARDED,
        saved=(builder.kept("activation of linear attention input", width, region=Region.SHARDED),),
    )
    return [
        _projection(builder, "input projection", width + spec.value_size, input_name=input_name),
        activation,
        _scan(builder, spec, decays=0, weights=()),
        *_gated_output(builder, spec, norm_size=spec.value_size, split_dim=0),
    ]


def _projection(builder: Builder, name: str, out_features: int, *, input_name: str) -> Operator:
    return builder.linear(
        name,
        in_features=builder.hidden,
        out_features=out_features,
        parallel=Parallel.COLUMN,
        bias=False,
        input_name=input_name,
    )


def _narrow(builder: Builder, name: str, *, inner: int, out_features: int, input_name: str) -> list[Operator]:
    """Return a projection through `inner` features, which are whole on every rank."""
    return [
        builder.linear(
            f"{name} down projection",
            in_features=builder.hidden,
            out_features=inner,
            parallel=Parallel.REPLICATED,
            bias=False,
            input_name=input_name,
            shares_input=True,
        ),
        builder.linear(
            f"{name} up projection",
            in_features=inner,
            out_features=out_features,
            parallel=Parallel.COLUMN,
            bias=False,
            input_name=f"{name} latent",
            normed_input=False,
        ),
    ]


def _convolution(builder: Builder, spec: LinearAttention) -> list[Operator]:
    """Return the convolutions of queries, keys and values, and the norms of queries and keys to unit length."""
    width = 2 * spec.key_size + spec.value_size
    norm = builder.pointwise(
        "unit norm of queries and keys",
        2 * spec.key_size,
        PLAIN,
        is_norm=True,
        region=Region.SHARDED,
        saved=(builder.kept("unit queries and keys", 2 * spec.key_size, region=Region.SHARDED),)
        if spec.num_value_heads > spec.num_key_heads
        else (),
    )
    if not spec.conv_kernel:
        return [norm]
    convolution = builder.pointwise(
        "convolution",
        width,
        PLAIN,
        region=Region.SHARDED,
        weights=(builder.weight("convolution weight", width, spec.conv_kernel, split_dim=0),),
        saved=(builder.kept("convolution input", width, region=Region.SHARDED),),
    )
    return [convolution, norm]


def _scan(builder: Builder, spec: LinearAttention, *, decays: int, weights: tuple[Weight, ...]) -> Operator:
    """Return the recurrence; each value head has its own copy of its group's query and key.

    Args:
        builder: What builders share.
        spec: The mixer.
        decays: Numbers a token that decide how much of a state is forgotten; 0 where that is fixed.
        weights: Parameters of the decays.
    """
    heads = spec.num_value_heads
    keys = heads * spec.key_head_dim
    corrects = spec.rule is not LinearRule.LIGHTNING
    saved = [
        builder.kept(name, features, region=Region.SHARDED, granule=granule)
        for name, features, granule in (
            ("query", keys, spec.key_head_dim),
            ("key", keys, spec.key_head_dim),
            ("value", spec.value_size, spec.value_head_dim),
        )
    ]
    strengths = heads if corrects else 0
    num_matrices = 2 if spec.rule is LinearRule.KIMI_DELTA else 1
    if corrects:
        saved += [
            # What the decays are computed from, and their running sums in fp32.
            builder.kept("decay input", decays, region=Region.SHARDED),
            Saved(name="decays", features=decays, element_bytes=FP32_BYTES, region=Region.SHARDED),
            builder.kept("update strengths", strengths, region=Region.SHARDED),
            builder.kept("chunk matrices", num_matrices * heads * spec.chunk_size, region=Region.SHARDED),
        ]
    return Operator(
        name="state scan",
        work=StateScan(
            num_heads=heads,
            num_groups=spec.num_key_heads,
            key_dim=spec.key_head_dim,
            value_dim=spec.value_head_dim,
            chunk_size=spec.chunk_size,
            corrects=corrects,
            in_features=2 * spec.key_size + spec.value_size + decays + strengths,
            dtype=builder.dtype,
        ),
        weights=weights,
        saved=tuple(saved),
    )


def _gated_output(builder: Builder, spec: LinearAttention, *, norm_size: int, split_dim: int | None) -> list[Operator]:
    """Return the norm of the recurrence's output, its gate and the output projection.

    The norm keeps its input, the gate itself and what it multiplies.
    """
    value = spec.value_size
    return [
        builder.pointwise(
            "output norm",
            value,
            PLAIN,
            is_norm=True,
            region=Region.SHARDED,
            weights=(builder.weight("output norm scale", norm_size, split_dim=split_dim),),
            saved=(builder.kept("output norm input", value, region=Region.SHARDED),),
        ),
        builder.pointwise(
            "output gate",
            value,
            GATED,
            region=Region.SHARDED,
            saved=tuple(
                builder.kept(name, value, region=Region.SHARDED) for name in ("output gate", "output norm output")
            ),
        ),
        builder.linear(
            "output projection",
            in_features=value,
            out_features=builder.hidden,
            parallel=Parallel.ROW,
            bias=False,
            input_name="gated output",
        ),
    ]
