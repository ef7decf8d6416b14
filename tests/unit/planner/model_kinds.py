"""Small models of every kind, written out by hand; their shapes stand for no published model."""

from dataclasses import replace

from planner.models.blocks import (
    Activation,
    Block,
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
from planner.models.specs import BlockRun, ModelSpec, MultiTokenPrediction, Trait, VisionTower
from tests.builders import tiny_dense_model

DENSE = DenseFeedForward(intermediate_size=160, gated=True, activation=Activation.SILU)
ATTENTION = SelfAttention(num_attention_heads=8, num_key_value_heads=4, head_dim=8)


def experts_of(num_experts: int) -> MixtureOfExperts:
    """Return routed experts of which each token visits two."""
    return MixtureOfExperts(
        num_experts=num_experts,
        experts_per_token=2,
        expert=DenseFeedForward(intermediate_size=32, gated=True, activation=Activation.SILU),
        router=Router(),
    )


def expert_model(*, num_experts: int = 16) -> ModelSpec:
    """Return a dense layer and three with experts, a window in every other."""
    experts = experts_of(num_experts)
    windowed = replace(ATTENTION, window=128, qk_norm=QueryKeyNorm.HEAD, sinks=True)
    return replace(
        tiny_dense_model(),
        name="experts",
        runs=(
            BlockRun(block=Block(mixer=ATTENTION, feed_forward=DENSE), count=1),
            BlockRun(block=Block(mixer=windowed, feed_forward=experts), count=2),
            BlockRun(block=Block(mixer=ATTENTION, feed_forward=experts, num_post_norms=2), count=1),
        ),
    )


def latent_model() -> ModelSpec:
    """Return latent attention with an indexer, shared experts, a grouped sigmoid router, and a prediction module."""
    mixer = LatentAttention(
        num_attention_heads=8,
        q_lora_rank=None,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        indexer=SparseIndexer(num_heads=4, head_dim=8, top_k=64),
    )
    experts = replace(
        experts_of(16),
        router=Router(
            score=RouterScore.SIGMOID, num_groups=4, groups_per_token=2, correction_bias=True, weight_factor=2.5
        ),
        shared=DENSE,
        shared_gate=True,
        latent_size=32,
        num_norms=1,
    )
    block = Block(mixer=mixer, feed_forward=experts)
    return replace(
        tiny_dense_model(),
        name="latent",
        runs=(BlockRun(block=block, count=4),),
        mtp=MultiTokenPrediction(num_modules=1, block=block),
        traits=(Trait.SCALED_EMBEDDING, Trait.CAPPED_LOGITS),
    )


def hybrid_model() -> ModelSpec:
    """Return a chain of state-space, attention, linear-attention and feed-forward layers under a vision tower."""
    state_space = StateSpace(num_heads=8, head_dim=16, state_size=16, num_groups=2, conv_kernel=4, chunk_size=64)
    linear = LinearAttention(
        rule=LinearRule.LIGHTNING, num_key_heads=4, num_value_heads=8, key_head_dim=8, value_head_dim=8, conv_kernel=0
    )
    blocks = (
        Block(mixer=state_space, feed_forward=None, num_norms=1),
        Block(mixer=None, feed_forward=DENSE, num_norms=1),
        Block(mixer=replace(ATTENTION, chunk=256, rotary=False), feed_forward=DENSE, parallel=True, num_norms=0),
        Block(mixer=linear, feed_forward=experts_of(8)),
    )
    return replace(
        tiny_dense_model(),
        name="hybrid",
        runs=tuple(BlockRun(block=block, count=1) for block in blocks),
        vision=VisionTower(num_parameters=1000, source="made up"),
    )
