"""The parts that a Megatron-LM argument list describes: one of each kind, as if every layer had it.

Defaults: `megatron/training/arguments.py` and `core/transformer/transformer_config.py` of megatron-core 0.19.2.
"""

from planner.errors import InputError
from planner.models.blocks import (
    Activation,
    DenseFeedForward,
    LatentAttention,
    LinearAttention,
    LinearRule,
    MixtureOfExperts,
    QueryKeyNorm,
    Router,
    RouterScore,
    SelfAttention,
    SparseIndexer,
    StateSpace,
)
from planner.readers.launch_line import LaunchLine

MAMBA_CONV_KERNEL, MAMBA_CHUNK = 4, 128
"""What `core/ssm/mamba_mixer.py` has built in."""

CLAMPED_ACTIVATION = ("7.0", "1.0")
"""Limit and offset of gpt-oss's activation, the only one behind `--quick-geglu` that plans know."""


def attention(job: LaunchLine) -> SelfAttention:
    """Return attention without window, rotated."""
    heads = job.positive("--num-attention-heads")
    biased = not job.has("--disable-bias-linear")
    softmax = job.choice("--softmax-type", "vanilla", ("vanilla", "learnable"))
    groups = job.positive("--num-query-groups", 1) if job.has("--group-query-attention") else heads
    if heads % groups:
        raise InputError(
            f"{heads} attention heads in {groups} groups.",
            location=job.location(job.flag("--num-query-groups")),
            hint="The groups must divide the heads.",
        )
    return SelfAttention(
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=job.positive("--kv-channels", max(1, job.positive("--hidden-size") // heads)),
        qkv_bias=biased or job.has("--add-qkv-bias"),
        output_bias=biased,
        qk_norm=_query_key_norm(job),
        sinks=softmax == "learnable",
        output_gate=job.has("--attention-output-gate"),
    )


def _query_key_norm(job: LaunchLine) -> QueryKeyNorm:
    if job.has("--qk-l2-norm"):
        return QueryKeyNorm.UNIT
    return QueryKeyNorm.HEAD if job.has("--qk-layernorm") else QueryKeyNorm.NONE


def latent_attention(job: LaunchLine) -> LatentAttention:
    """Return multi-head latent attention, with an indexer where it is sparse.

    Queries without a latent would have one norm more than plans know (`MLASelfAttention._resolve_qk_norm_config`).
    """
    sparse = job.text("--experimental-attention-variant", "") == "dsa"
    if not job.has("--qk-layernorm"):
        raise InputError(
            "--multi-latent-attention without --qk-layernorm, so with latents that are not normalised.",
            location=job.location(job.flag("--multi-latent-attention")),
            hint="Plans know latents that are normalised.",
        )
    return LatentAttention(
        num_attention_heads=job.positive("--num-attention-heads"),
        q_lora_rank=job.positive("--q-lora-rank"),
        kv_lora_rank=job.positive("--kv-lora-rank", 32),
        qk_nope_head_dim=job.positive("--qk-head-dim", 128),
        qk_rope_head_dim=job.positive("--qk-pos-emb-head-dim", 64),
        v_head_dim=job.positive("--v-head-dim", 128),
        indexer=SparseIndexer(
            num_heads=job.positive("--dsa-indexer-n-heads"),
            head_dim=job.positive("--dsa-indexer-head-dim"),
            top_k=job.positive("--dsa-indexer-topk"),
        )
        if sparse
        else None,
    )


def linear_attention(job: LaunchLine, rule: LinearRule) -> LinearAttention:
    """Return linear attention."""
    return LinearAttention(
        rule=rule,
        num_key_heads=job.positive("--linear-num-key-heads", 16),
        num_value_heads=job.positive("--linear-num-value-heads", 32),
        key_head_dim=job.positive("--linear-key-head-dim", 128),
        value_head_dim=job.positive("--linear-value-head-dim", 128),
        conv_kernel=job.positive("--linear-conv-kernel-dim", 4),
    )


def state_space(job: LaunchLine) -> StateSpace:
    """Return a Mamba-2 mixer; without a number of heads it is twice as wide as the residual stream."""
    head_dim = job.positive("--mamba-head-dim", 64)
    return StateSpace(
        num_heads=job.positive("--mamba-num-heads", max(1, 2 * job.positive("--hidden-size") // head_dim)),
        head_dim=head_dim,
        state_size=job.positive("--mamba-state-dim", 128),
        num_groups=job.positive("--mamba-num-groups", 8),
        conv_kernel=MAMBA_CONV_KERNEL,
        chunk_size=MAMBA_CHUNK,
    )


def dense(job: LaunchLine) -> DenseFeedForward:
    """Return the dense feed-forward."""
    hidden_size = job.positive("--hidden-size")
    size = hidden_size * 8 // 3 // 64 * 64 if job.has("--swiglu") else 4 * hidden_size
    return _feed_forward(job, job.positive("--ffn-hidden-size", size))


def _feed_forward(job: LaunchLine, size: int) -> DenseFeedForward:
    biased = not job.has("--disable-bias-linear")
    gated = job.has("--swiglu") or job.has("--quick-geglu")
    return DenseFeedForward(
        intermediate_size=size, gated=gated, activation=_activation(job, biased=biased), bias=biased
    )


def _activation(job: LaunchLine, *, biased: bool) -> Activation:
    """Return the activation; gelu fused with a bias is the tanh form (`core/fusions/fused_bias_gelu.py`)."""
    if job.has("--quick-geglu"):
        _require_clamped(job)
        return Activation.SILU
    if job.has("--swiglu"):
        return Activation.SILU
    if job.has("--squared-relu"):
        return Activation.RELU2
    return Activation.GELU_TANH if biased and not job.has("--no-bias-gelu-fusion") else Activation.GELU


def _require_clamped(job: LaunchLine) -> None:
    found = (job.number("--activation-func-clamp-value", 0.0), job.number("--glu-linear-offset", 0.0))
    if found != tuple(float(value) for value in CLAMPED_ACTIVATION):
        raise InputError(
            "--quick-geglu is an activation that plans do not know.",
            location=job.location(job.flag("--quick-geglu")),
            hint="Use --swiglu, --squared-relu or gelu, or clamp it at 7.0 with the offset 1.0, as gpt-oss does.",
        )


def experts(job: LaunchLine) -> MixtureOfExperts:
    """Return the routed experts."""
    count, top_k = job.positive("--num-experts"), job.positive("--moe-router-topk", 2)
    flag = job.flag("--moe-router-topk")
    if not 1 <= top_k <= count:
        raise InputError(
            f"{top_k} of {count} experts a token.", location=job.location(flag), hint="Change --moe-router-topk."
        )
    shared = job.has("--moe-shared-expert-intermediate-size")
    return MixtureOfExperts(
        num_experts=count,
        experts_per_token=top_k,
        expert=_feed_forward(job, job.positive("--moe-ffn-hidden-size", dense(job).intermediate_size)),
        router=_router(job, top_k),
        shared=_feed_forward(job, job.positive("--moe-shared-expert-intermediate-size")) if shared else None,
        shared_gate=job.has("--moe-shared-expert-gate"),
        latent_size=job.positive("--moe-latent-size") if job.has("--moe-latent-size") else None,
    )


def _router(job: LaunchLine, top_k: int) -> Router:
    score = RouterScore(job.choice("--moe-router-score-function", "softmax", list(RouterScore)))
    normalized = not job.has("--moe-router-pre-softmax") if score is RouterScore.SOFTMAX else top_k > 1
    grouped = job.has("--moe-router-group-topk")
    return Router(
        score=score,
        num_groups=job.positive("--moe-router-num-groups") if grouped else 1,
        groups_per_token=job.positive("--moe-router-group-topk") if grouped else 1,
        bias=not job.has("--disable-bias-linear"),
        correction_bias=job.has("--moe-router-enable-expert-bias"),
        normalized=normalized,
        weight_factor=job.number("--moe-router-topk-scaling-factor", 1.0),
    )
