"""Multi-head latent attention: down projections, norms of the latents, up projections, attention, output.

As Megatron-LM's `MLASelfAttention` runs it: the down projections are whole on every rank and work on the tokens that
the rank holds; the up projections are split over tp and their norms are fused into them. Its recompute module
`mla_up_proj` runs again from the latents to queries, keys and values, so all that lies between is dropped.
"""

from planner.models.blocks import LatentAttention, PositionEmbedding, SparseIndexer
from planner.models.graph import Axis, CoreAttention, Divisible, Module, Operator, Parallel, Region, Saved
from planner.models.layers import eager
from planner.models.layers.builder import COPY, PLAIN, Builder, Part
from planner.models.layers.softmax_attention import attention_saved
from planner.requests.workload import AttentionKernel, causal_pairs, window_pairs

AGAIN = (Module.MLA_UP_PROJECTION,)
CORE = (Module.CORE_ATTENTION,)
INDEX_BYTES = 8  # a key that the indexer chose (int64)


def _of_latents(spec: LatentAttention) -> tuple[Module, ...]:
    """Return what runs the norms of the latents again: with an indexer they are layers of their own, and stay."""
    return AGAIN if spec.indexer is None else ()


def latent_attention(builder: Builder, spec: LatentAttention, input_name: str) -> Part:
    """Return the operators of `spec`, whose down projections read `input_name`."""
    heads = spec.num_attention_heads
    operators = [*_queries(builder, spec, input_name), *_keys_and_values(builder, spec, input_name)]
    if builder.model.position_embedding is PositionEmbedding.ROPE:
        # Queries and keys are copied whole: rotation joins the rotated part to the rest.
        whole = 2 * heads * spec.qk_head_dim
        if builder.eager:
            rotated = (heads + 1) * spec.qk_rope_head_dim  # all heads share the keys' part
            operators += eager.rotation(builder, rotated=rotated, whole=whole, modules=AGAIN)
        else:
            operators.append(builder.pointwise("rotary", whole, COPY, region=Region.SHARDED, modules=AGAIN))
    pairs = builder.workload.visible_pairs(causal_pairs)
    if spec.indexer is not None:
        operators += _indexer(builder, spec, spec.indexer, input_name)
        top_k = spec.indexer.top_k
        pairs = builder.workload.visible_pairs(lambda length: window_pairs(length, top_k))
    operators += [
        Operator(
            name="core attention",
            work=CoreAttention(
                num_heads=heads,
                num_kv_heads=heads,
                qk_head_dim=spec.qk_head_dim,
                v_head_dim=spec.v_head_dim,
                pairs=pairs,
                dtype=builder.dtype,
                fused=builder.workload.attention_kernel is not AttentionKernel.UNFUSED,
                chosen=spec.indexer is not None,
            ),
            saved=attention_saved(
                builder,
                num_heads=heads,
                num_kv_heads=heads,
                qk_head_dim=spec.qk_head_dim,
                v_head_dim=spec.v_head_dim,
                projections_dropped_by=AGAIN,
            ),
            modules=CORE,
        ),
        builder.linear(
            "proj",
            in_features=heads * spec.v_head_dim,
            out_features=builder.hidden,
            parallel=Parallel.ROW,
            bias=spec.bias,
            input_name="attention output",
            keeps_original=True,
        ),
    ]
    rule = Divisible(what="num_attention_heads", size=heads, axes=(Axis.TP, Axis.ULYSSES))
    return Part(operators=tuple(operators), divisible=(rule,))


def _queries(builder: Builder, spec: LatentAttention, input_name: str) -> list[Operator]:
    width = spec.num_attention_heads * spec.qk_head_dim
    if spec.q_lora_rank is None:
        projection = builder.linear(
            "query projection",
            in_features=builder.hidden,
            out_features=width,
            parallel=Parallel.COLUMN,
            bias=False,
            input_name=input_name,
            modules=AGAIN,
            normed_input=False,
            shares_input=True,
        )
        return [projection]
    return [
        builder.linear(
            "query down projection",
            in_features=builder.hidden,
            out_features=spec.q_lora_rank,
            parallel=Parallel.REPLICATED,
            bias=spec.bias,
            input_name=input_name,
            shares_input=True,
        ),
        builder.norm(
            "query latent norm", features=spec.q_lora_rank, input_name="query latent", modules=_of_latents(spec)
        ),
        builder.linear(
            "query up projection",
            in_features=spec.q_lora_rank,
            out_features=width,
            parallel=Parallel.COLUMN,
            bias=False,
            input_name="query latent norm output",
            modules=AGAIN,
            input_dropped_by=_of_latents(spec),
        ),
    ]


def _keys_and_values(builder: Builder, spec: LatentAttention, input_name: str) -> list[Operator]:
    """Return what makes keys and values; the rotated part of the keys lies beside the latent and is kept with it."""
    rank = spec.kv_lora_rank
    latent = rank + spec.qk_rope_head_dim
    return [
        builder.linear(
            "key-value down projection",
            in_features=builder.hidden,
            out_features=latent,
            parallel=Parallel.REPLICATED,
            bias=spec.bias,
            input_name=input_name,
            shares_input=True,
        ),
        builder.pointwise(
            "key-value latent norm",
            rank,
            builder.norm_passes,
            is_norm=True,
            region=Region.RESIDUAL,
            weights=builder.norm_weights("key-value latent norm", rank),
            saved=builder.norm_saved(
                "key-value latent norm",
                builder.kept("key-value latent", latent, region=Region.RESIDUAL),
                features=rank,
            ),
            modules=_of_latents(spec),
        ),
        builder.linear(
            "key-value up projection",
            in_features=rank,
            out_features=spec.num_attention_heads * (spec.qk_nope_head_dim + spec.v_head_dim),
            parallel=Parallel.COLUMN,
            bias=False,
            input_name="key-value latent norm output",
            modules=AGAIN,
            input_dropped_by=_of_latents(spec),
        ),
    ]


def _indexer(builder: Builder, spec: LatentAttention, indexer: SparseIndexer, input_name: str) -> list[Operator]:
    """Return the projections of a sparse indexer, its scores of every pair and its choice.

    Its one key head is common to all its heads. It is a part of the attention core that Megatron-LM's `DSAttention`
    runs, reads the layer's input and the queries' latent behind its norm, and gives neither a gradient. Its
    projections are whole on every rank; they are counted on the tokens that the rank holds, although Megatron-LM
    gathers these over tp first.
    """
    inputs = {
        "query": (
            builder.hidden if spec.q_lora_rank is None else spec.q_lora_rank,
            indexer.num_heads * indexer.head_dim,
        ),
        "key": (builder.hidden, indexer.head_dim),
        "weight": (builder.hidden, indexer.num_heads),
    }
    linears = {
        which: builder.linear(
            f"indexer {which} projection",
            in_features=in_features,
            out_features=out_features,
            parallel=Parallel.REPLICATED,
            bias=False,
            input_name=input_name if which != "query" or spec.q_lora_rank is None else "query latent norm output",
            modules=CORE,
            input_dropped_by=CORE,
            shares_input=True,
            needs_input_gradient=False,
        )
        for which, (in_features, out_features) in inputs.items()
    }
    norm = builder.pointwise(
        "indexer key norm",
        indexer.head_dim,
        PLAIN,
        is_norm=True,
        region=Region.RESIDUAL,
        weights=tuple(builder.weight(f"indexer key norm {part}", indexer.head_dim) for part in ("scale", "shift")),
        saved=(builder.kept("indexer key norm input", indexer.head_dim, region=Region.RESIDUAL, dropped_by=CORE),),
        modules=CORE,
    )
    chosen = Saved(
        name="chosen keys",
        features=min(indexer.top_k, builder.workload.seq_len),
        element_bytes=INDEX_BYTES,
        region=Region.RESIDUAL,
        dropped_by=CORE,
    )
    scores = Operator(
        name="indexer scores",
        work=CoreAttention(
            num_heads=indexer.num_heads,
            num_kv_heads=1,
            qk_head_dim=indexer.head_dim,
            v_head_dim=0,
            pairs=builder.workload.visible_pairs(causal_pairs),
            dtype=builder.dtype,
            fused=True,
        ),
        saved=(
            *(
                builder.kept(f"indexer {which} output", inputs[which][1], region=Region.RESIDUAL, dropped_by=CORE)
                for which in inputs
            ),
            chosen,
        ),
        modules=CORE,
    )
    return [linears["query"], linears["key"], norm, linears["weight"], scores]
