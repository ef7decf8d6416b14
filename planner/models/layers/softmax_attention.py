"""Softmax attention from projection to projection: multi-head, grouped, windowed, gated."""

from planner.models.blocks import PositionEmbedding, QueryKeyNorm, SelfAttention
from planner.models.graph import Axis, CoreAttention, Divisible, Module, Operator, Parallel, Region, Saved, Weight
from planner.models.layers import eager
from planner.models.layers.builder import COPY, GATED, PLAIN, Builder, Part
from planner.requests.workload import AttentionKernel, causal_pairs, chunk_pairs, window_pairs

LOGSUMEXP_BYTES = 4


def softmax_attention(builder: Builder, spec: SelfAttention, input_name: str) -> Part:
    """Return the operators of `spec`, whose projections read `input_name`."""
    values = 0 if spec.shared_key_value else spec.key_value_size
    gate = spec.query_size if spec.output_gate else 0
    projected = spec.query_size + gate + spec.key_value_size + values
    operators = [
        builder.linear(
            "qkv",
            in_features=builder.hidden,
            out_features=projected,
            parallel=Parallel.COLUMN,
            bias=spec.qkv_bias,
            input_name=input_name,
            whole_heads=spec.num_key_value_heads,
        )
    ]
    if spec.qk_norm is not QueryKeyNorm.NONE:
        operators.append(_qk_norm(builder, spec))
    if spec.value_norm:
        operators.append(_value_norm(builder, spec))
    if builder.model.position_embedding is PositionEmbedding.ROPE and spec.rotary:
        whole = spec.query_size + spec.key_value_size
        rotated = round(whole * builder.model.rotary_fraction)
        if builder.eager:
            operators += eager.rotation(builder, rotated=rotated, whole=whole)
        else:
            operators.append(builder.pointwise("rotary", rotated, COPY, region=Region.SHARDED))
    operators.append(
        Operator(
            name="core attention",
            work=CoreAttention(
                num_heads=spec.num_attention_heads,
                num_kv_heads=spec.num_key_value_heads,
                qk_head_dim=spec.head_dim,
                v_head_dim=spec.head_dim,
                pairs=visible_pairs(builder, spec),
                dtype=builder.dtype,
                fused=builder.workload.attention_kernel is not AttentionKernel.UNFUSED,
                local=spec.window is not None or spec.chunk is not None or spec.sinks,
            ),
            weights=(builder.weight("sinks", spec.num_attention_heads, split_dim=0),) if spec.sinks else (),
            saved=attention_saved(
                builder,
                num_heads=spec.num_attention_heads,
                num_kv_heads=spec.num_key_value_heads,
                qk_head_dim=spec.head_dim,
                v_head_dim=spec.head_dim,
                window=spec.window,
                chunk=spec.chunk,
            ),
            modules=(Module.CORE_ATTENTION,),
        )
    )
    output = "attention output"
    if spec.output_gate:
        operators.append(_output_gate(builder, spec))
        output = "gated attention output"
    operators.append(
        builder.linear(
            "proj",
            in_features=spec.query_size,
            out_features=builder.hidden,
            parallel=Parallel.ROW,
            bias=spec.output_bias,
            input_name=output,
            keeps_original=not spec.output_gate,
        )
    )
    return Part(operators=tuple(operators), divisible=_rules(spec, projected))


def visible_pairs(builder: Builder, spec: SelfAttention) -> int:
    """Return the query-key pairs of one sequence that the mask of `spec` lets through."""
    window, chunk = spec.window, spec.chunk
    if window is not None:
        return builder.workload.visible_pairs(lambda length: window_pairs(length, window))
    if chunk is not None:
        return builder.workload.visible_pairs(lambda length: chunk_pairs(length, chunk))
    return builder.workload.visible_pairs(causal_pairs)


def _rules(spec: SelfAttention, projected: int) -> tuple[Divisible, ...]:
    """Return what tp must divide, and Ulysses, which splits the heads that tp leaves."""
    groups = spec.num_key_value_heads
    return (
        Divisible(what="num_attention_heads", size=spec.num_attention_heads, axes=(Axis.TP, Axis.ULYSSES)),
        Divisible(what="num_key_value_heads", size=groups, axes=(Axis.TP,), either_way=True),
        Divisible(what="num_key_value_heads", size=groups, axes=(Axis.TP, Axis.ULYSSES), only_above_one=Axis.ULYSSES),
        Divisible(what="the width of q, k and v together", size=projected, axes=(Axis.TP,)),
    )


def attention_saved(  # noqa: PLR0913 - the shape of an attention core
    builder: Builder,
    *,
    num_heads: int,
    num_kv_heads: int,
    qk_head_dim: int,
    v_head_dim: int,
    projections_dropped_by: tuple[Module, ...] = (),
    window: int | None = None,
    chunk: int | None = None,
) -> tuple[Saved, ...]:
    """Return what the attention core keeps; a fused kernel needs the output too, an unfused one the scores."""
    if builder.eager:
        return eager.attention_saved(
            builder,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            qk_head_dim=qk_head_dim,
            v_head_dim=v_head_dim,
            window=window,
            chunk=chunk,
        )

    def heads(name: str, count: int, head_dim: int, dropped_by: tuple[Module, ...]) -> Saved:
        return builder.kept(name, count * head_dim, region=Region.SHARDED, granule=head_dim, dropped_by=dropped_by)

    workload = builder.workload
    unfused = workload.attention_kernel is AttentionKernel.UNFUSED
    # The unfused core copies each key/value head for each of its query heads (`repeat_interleave`).
    held = num_heads if unfused else num_kv_heads
    saved = [
        heads("query", num_heads, qk_head_dim, projections_dropped_by),
        heads("key", held, qk_head_dim, projections_dropped_by),
        heads("value", held, v_head_dim, projections_dropped_by),
    ]
    again = (Module.CORE_ATTENTION,)
    if not unfused:
        rows = Saved(
            name="log-sum-exp",
            features=num_heads,
            element_bytes=LOGSUMEXP_BYTES,
            region=Region.SHARDED,
            dropped_by=again,
        )
        return (*saved, heads("attention output", num_heads, v_head_dim, ()), rows)
    row = num_heads * workload.seq_len
    saved.append(builder.kept("softmax output", row, region=Region.SHARDED, dropped_by=again))
    if workload.attention_dropout > 0:
        mask = Saved(
            name="attention dropout mask", features=row, element_bytes=1, region=Region.SHARDED, dropped_by=again
        )
        saved += [mask, builder.kept("attention dropout output", row, region=Region.SHARDED, dropped_by=again)]
    return tuple(saved)


def _qk_norm(builder: Builder, spec: SelfAttention) -> Operator:
    """Return the norms of queries and keys, which keep their inputs."""
    weights: tuple[Weight, ...] = ()
    if spec.qk_norm is QueryKeyNorm.HEAD:
        weights = (
            *builder.norm_weights("query norm", spec.head_dim),
            *builder.norm_weights("key norm", spec.head_dim),
        )
    elif spec.qk_norm is QueryKeyNorm.WIDTH:
        weights = (
            *builder.norm_weights("query norm", spec.query_size, split_dim=0),
            *builder.norm_weights("key norm", spec.key_value_size, split_dim=0),
        )
    return builder.pointwise(
        "qk norm",
        spec.query_size + spec.key_value_size,
        builder.norm_passes,
        region=Region.SHARDED,
        num_kernels=2,
        is_norm=True,
        weights=weights,
        saved=tuple(
            saved
            for which, features in (("query", spec.query_size), ("key", spec.key_value_size))
            for saved in builder.norm_saved(
                f"{which} norm",
                builder.kept(f"{which} norm input", features, region=Region.SHARDED, granule=spec.head_dim),
                rows=1 if spec.qk_norm is QueryKeyNorm.WIDTH else features // spec.head_dim,
            )
        ),
    )


def _value_norm(builder: Builder, spec: SelfAttention) -> Operator:
    """Return the unscaled norm of the values; shared with the keys, its input is what the keys' norm keeps."""
    shared = spec.shared_key_value and spec.qk_norm is not QueryKeyNorm.NONE
    name = "key norm input" if shared else "value norm input"
    saved = builder.kept(name, spec.key_value_size, region=Region.SHARDED, granule=spec.head_dim)
    return builder.pointwise(
        "value norm", spec.key_value_size, PLAIN, region=Region.SHARDED, saved=(saved,), is_norm=True
    )


def _output_gate(builder: Builder, spec: SelfAttention) -> Operator:
    """Return the product of the attention output with the sigmoid of its gate; both are kept."""
    return builder.pointwise(
        "output gate",
        spec.query_size,
        GATED,
        region=Region.SHARDED,
        saved=tuple(
            builder.kept(name, spec.query_size, region=Region.SHARDED, granule=spec.head_dim)
            for name in ("output gate", "attention output")
        ),
    )
