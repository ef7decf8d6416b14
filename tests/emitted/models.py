"""Models of every kind that Megatron-LM can build: the shapes of known ones with few layers, and small drawn ones."""

from dataclasses import replace

from planner.models.blocks import (
    Activation,
    Block,
    DenseFeedForward,
    LatentAttention,
    LinearAttention,
    LinearRule,
    MixtureOfExperts,
    Norm,
    PositionEmbedding,
    QueryKeyNorm,
    Router,
    RouterScore,
    SelfAttention,
    SparseIndexer,
    StateSpace,
)
from planner.models.specs import BlockRun, ModelSpec, MultiTokenPrediction, Trait

LLAMA3_SCALING: dict[str, float | str] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

DEEPSEEK_SCALING: dict[str, float | str] = {
    "rope_type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def swiglu(intermediate_size: int) -> DenseFeedForward:
    """Return a feed-forward that gates with silu."""
    return DenseFeedForward(intermediate_size=intermediate_size, gated=True, activation=Activation.SILU)


def squared_relu(intermediate_size: int) -> DenseFeedForward:
    """Return a feed-forward with squared ReLU."""
    return DenseFeedForward(intermediate_size=intermediate_size, gated=False, activation=Activation.RELU2)


def chain(*runs: tuple[Block, int]) -> tuple[BlockRun, ...]:
    """Return runs of blocks."""
    return tuple(BlockRun(block=block, count=count) for block, count in runs)


def alternating(first: Block, second: Block, times: int) -> tuple[BlockRun, ...]:
    """Return two blocks in turn."""
    return chain(*((first, 1), (second, 1)) * times)


def spec(
    name: str, *, hidden_size: int, vocab_size: int, runs: tuple[BlockRun, ...], rope_theta: float | None = 10000.0
) -> ModelSpec:
    """Return a model with RMSNorm and rope, or without positions where there is no base."""
    rotary = rope_theta is not None
    return ModelSpec(
        name=name,
        architecture="inline",
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        tie_word_embeddings=False,
        max_position_embeddings=131072,
        norm=Norm.RMS,
        position_embedding=PositionEmbedding.ROPE if rotary else PositionEmbedding.NONE,
        runs=runs,
        norm_epsilon=1e-5,
        rope_theta=rope_theta,
    )


def mixtral(num_layers: int = 4) -> ModelSpec:
    """Return Mixtral-8x7B-shaped layers: eight experts, two a token."""
    attention = SelfAttention(num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    experts = MixtureOfExperts(num_experts=8, experts_per_token=2, expert=swiglu(14336), router=Router())
    return spec(
        "mixtral",
        hidden_size=4096,
        vocab_size=32000,
        runs=chain((Block(mixer=attention, feed_forward=experts), num_layers)),
        rope_theta=1e6,
    )


def qwen3_experts(num_layers: int = 4) -> ModelSpec:
    """Return Qwen3-235B-A22B-shaped layers: 128 small experts, norms of queries and keys."""
    attention = SelfAttention(num_attention_heads=64, num_key_value_heads=4, head_dim=128, qk_norm=QueryKeyNorm.HEAD)
    experts = MixtureOfExperts(num_experts=128, experts_per_token=8, expert=swiglu(1536), router=Router())
    return spec(
        "qwen3-experts",
        hidden_size=4096,
        vocab_size=151936,
        runs=chain((Block(mixer=attention, feed_forward=experts), num_layers)),
        rope_theta=1e6,
    )


DEEPSEEK_ATTENTION = LatentAttention(
    num_attention_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)

DEEPSEEK_EXPERTS = MixtureOfExperts(
    num_experts=256,
    experts_per_token=8,
    expert=swiglu(2048),
    router=Router(score=RouterScore.SIGMOID, num_groups=8, groups_per_token=4, correction_bias=True, weight_factor=2.5),
    shared=swiglu(2048),
)


def deepseek(num_dense: int = 1, num_sparse: int = 4, *, predicts: bool = True) -> ModelSpec:
    """Return DeepSeek-V3-shaped layers: latent attention, dense layers first, and a prediction module."""
    sparse = Block(mixer=DEEPSEEK_ATTENTION, feed_forward=DEEPSEEK_EXPERTS)
    dense = Block(mixer=DEEPSEEK_ATTENTION, feed_forward=swiglu(18432))
    model = spec("deepseek", hidden_size=7168, vocab_size=129280, runs=chain((dense, num_dense), (sparse, num_sparse)))
    return replace(
        model,
        rope_scaling=DEEPSEEK_SCALING,
        norm_epsilon=1e-6,
        traits=(Trait.INTERLEAVED_ROTARY,),
        mtp=MultiTokenPrediction(num_modules=1, block=sparse) if predicts else None,
    )


def kimi(num_dense: int = 1, num_sparse: int = 3) -> ModelSpec:
    """Return Kimi-K2-shaped layers: half the heads, more experts, no groups, no prediction."""
    attention = replace(DEEPSEEK_ATTENTION, num_attention_heads=64)
    router = Router(score=RouterScore.SIGMOID, correction_bias=True, weight_factor=2.827)
    experts = replace(DEEPSEEK_EXPERTS, num_experts=384, router=router)
    model = spec(
        "kimi",
        hidden_size=7168,
        vocab_size=163840,
        runs=chain(
            (Block(mixer=attention, feed_forward=swiglu(18432)), num_dense),
            (Block(mixer=attention, feed_forward=experts), num_sparse),
        ),
        rope_theta=50000.0,
    )
    return replace(model, rope_scaling={**DEEPSEEK_SCALING, "factor": 32.0}, traits=(Trait.INTERLEAVED_ROTARY,))


def sparse_latent(num_layers: int = 3) -> ModelSpec:
    """Return DeepSeek-V3.2-shaped layers: an indexer picks the keys of latent attention."""
    attention = replace(DEEPSEEK_ATTENTION, indexer=SparseIndexer(num_heads=64, head_dim=128, top_k=2048))
    model = deepseek(num_dense=1, num_sparse=num_layers - 1, predicts=False)
    return replace(
        model,
        name="sparse-latent",
        runs=tuple(replace(run, block=replace(run.block, mixer=attention)) for run in model.runs),
    )


def gpt_oss(times: int = 2) -> ModelSpec:
    """Return gpt-oss-120b-shaped layers: windows in turn, sinks, biases, clamped activation."""
    full = SelfAttention(
        num_attention_heads=64, num_key_value_heads=8, head_dim=64, qkv_bias=True, output_bias=True, sinks=True
    )
    experts = MixtureOfExperts(
        num_experts=128,
        experts_per_token=4,
        expert=replace(swiglu(2880), bias=True),
        router=Router(bias=True),
    )
    model = spec(
        "gpt-oss",
        hidden_size=2880,
        vocab_size=201088,
        runs=alternating(
            Block(mixer=replace(full, window=128), feed_forward=experts),
            Block(mixer=full, feed_forward=experts),
            times,
        ),
        rope_theta=150000.0,
    )
    return replace(
        model,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
        traits=(Trait.CLAMPED_ACTIVATION,),
    )


MAMBA = Block(
    mixer=StateSpace(num_heads=128, head_dim=64, state_size=128, num_groups=8, conv_kernel=4, chunk_size=128),
    feed_forward=None,
    num_norms=1,
)


def nemotron_h(times: int = 2) -> ModelSpec:
    """Return Nemotron-H-8B-shaped layers: Mamba-2, feed-forward and attention, one to a layer, without positions."""
    attention = SelfAttention(num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    dense = Block(mixer=None, feed_forward=squared_relu(21504), num_norms=1)
    full = Block(mixer=attention, feed_forward=None, num_norms=1)
    return spec(
        "nemotron-h",
        hidden_size=4096,
        vocab_size=131072,
        runs=chain(*((MAMBA, 1), (dense, 1), (MAMBA, 1), (full, 1), (dense, 1)) * times),
        rope_theta=None,
    )


def mamba(num_layers: int = 4) -> ModelSpec:
    """Return Mamba-2-2.7B-shaped layers, and nothing else."""
    mixer = StateSpace(num_heads=80, head_dim=64, state_size=128, num_groups=1, conv_kernel=4, chunk_size=128)
    return spec(
        "mamba",
        hidden_size=2560,
        vocab_size=50288,
        runs=chain((Block(mixer=mixer, feed_forward=None, num_norms=1), num_layers)),
        rope_theta=None,
    )


def nemotron_3(times: int = 2) -> ModelSpec:
    """Return Nemotron-3-Nano-shaped layers: Mamba-2, experts and attention, one to a layer."""
    mixer = StateSpace(num_heads=64, head_dim=64, state_size=128, num_groups=8, conv_kernel=4, chunk_size=128)
    experts = MixtureOfExperts(
        num_experts=128,
        experts_per_token=6,
        expert=squared_relu(1856),
        router=Router(score=RouterScore.SIGMOID, correction_bias=True, weight_factor=2.5),
        shared=squared_relu(3712),
    )
    attention = SelfAttention(num_attention_heads=32, num_key_value_heads=2, head_dim=128)
    mamba = Block(mixer=mixer, feed_forward=None, num_norms=1)
    sparse = Block(mixer=None, feed_forward=experts, num_norms=1)
    full = Block(mixer=attention, feed_forward=None, num_norms=1)
    return spec(
        "nemotron-3",
        hidden_size=2688,
        vocab_size=131072,
        runs=chain(*((mamba, 1), (sparse, 1), (mamba, 1), (full, 1), (sparse, 1)) * times),
        rope_theta=None,
    )


def linear_hybrid(times: int = 1) -> ModelSpec:
    """Return Qwen3-Next-shaped layers: three of gated delta, one of gated attention, all with experts."""
    linear = LinearAttention(
        rule=LinearRule.GATED_DELTA,
        num_key_heads=16,
        num_value_heads=32,
        key_head_dim=128,
        value_head_dim=128,
        conv_kernel=4,
    )
    attention = SelfAttention(
        num_attention_heads=16, num_key_value_heads=2, head_dim=256, qk_norm=QueryKeyNorm.HEAD, output_gate=True
    )
    experts = MixtureOfExperts(
        num_experts=512,
        experts_per_token=10,
        expert=swiglu(512),
        router=Router(),
        shared=swiglu(512),
        shared_gate=True,
    )
    delta, full = Block(mixer=linear, feed_forward=experts), Block(mixer=attention, feed_forward=experts)
    model = spec(
        "linear-hybrid",
        hidden_size=2048,
        vocab_size=151936,
        runs=chain(*((delta, 3), (full, 1)) * times),
        rope_theta=1e7,
    )
    return replace(model, rotary_fraction=0.25, traits=(Trait.ZERO_CENTERED_NORM,))


def nemotron_super() -> ModelSpec:
    """Return a chain shaped like Llama-3.3-Nemotron-Super's: attention left out of some layers, several widths."""
    attention = SelfAttention(num_attention_heads=64, num_key_value_heads=8, head_dim=128)
    wide = Block(mixer=attention, feed_forward=swiglu(28672))
    narrow = Block(mixer=attention, feed_forward=swiglu(14336))
    without = Block(mixer=None, feed_forward=swiglu(7168), num_norms=1)
    model = spec(
        "nemotron-super",
        hidden_size=8192,
        vocab_size=128256,
        runs=chain((narrow, 1), (wide, 1), (without, 2), (wide, 2)),
        rope_theta=500000.0,
    )
    return replace(model, rope_scaling=LLAMA3_SCALING)
