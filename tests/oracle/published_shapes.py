"""Published models with experts, put together by hand from their `config.json`."""

from planner.models.blocks import (
    Activation,
    Block,
    DenseFeedForward,
    LatentAttention,
    MixtureOfExperts,
    Norm,
    PositionEmbedding,
    QueryKeyNorm,
    Router,
    RouterScore,
    SelfAttention,
)
from planner.models.specs import BlockRun, ModelSpec, MultiTokenPrediction


def swiglu(intermediate_size: int) -> DenseFeedForward:
    """Return a feed-forward with SwiGLU."""
    return DenseFeedForward(intermediate_size=intermediate_size, gated=True, activation=Activation.SILU)


def decoder(
    *runs: tuple[Block, int], hidden_size: int, vocab_size: int, mtp: MultiTokenPrediction | None = None
) -> ModelSpec:
    """Return a pre-norm decoder with RMSNorm, rotary positions and an LM head of its own."""
    return ModelSpec(
        name="by hand",
        architecture="inline",
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
        norm=Norm.RMS,
        position_embedding=PositionEmbedding.ROPE,
        runs=tuple(BlockRun(block=block, count=count) for block, count in runs),
        norm_epsilon=1e-6,
        mtp=mtp,
    )


def mixtral_8x7b() -> ModelSpec:
    """Return mistralai/Mixtral-8x7B-v0.1."""
    block = Block(
        mixer=SelfAttention(num_attention_heads=32, num_key_value_heads=8, head_dim=128),
        feed_forward=MixtureOfExperts(num_experts=8, experts_per_token=2, expert=swiglu(14336), router=Router()),
    )
    return decoder((block, 32), hidden_size=4096, vocab_size=32000)


def qwen3_235b() -> ModelSpec:
    """Return Qwen/Qwen3-235B-A22B."""
    block = Block(
        mixer=SelfAttention(num_attention_heads=64, num_key_value_heads=4, head_dim=128, qk_norm=QueryKeyNorm.HEAD),
        feed_forward=MixtureOfExperts(num_experts=128, experts_per_token=8, expert=swiglu(1536), router=Router()),
    )
    return decoder((block, 94), hidden_size=4096, vocab_size=151936)


def deepseek_v3(*, num_prediction_modules: int = 0) -> ModelSpec:
    """Return deepseek-ai/DeepSeek-V3-Base; its published total leaves the prediction module out."""
    mixer = LatentAttention(
        num_attention_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )
    router = Router(
        score=RouterScore.SIGMOID, num_groups=8, groups_per_token=4, correction_bias=True, weight_factor=2.5
    )
    experts = MixtureOfExperts(
        num_experts=256, experts_per_token=8, expert=swiglu(2048), router=router, shared=swiglu(2048)
    )
    sparse = Block(mixer=mixer, feed_forward=experts)
    return decoder(
        (Block(mixer=mixer, feed_forward=swiglu(18432)), 3),
        (sparse, 58),
        hidden_size=7168,
        vocab_size=129280,
        mtp=MultiTokenPrediction(num_modules=num_prediction_modules, block=sparse) if num_prediction_modules else None,
    )
