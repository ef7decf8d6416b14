"""Parameters of a model in closed form, from its facts and without the planner's graph.

Each term is written from the published code of a model that has it; weights that are not trained by gradients, such as
the bias that balances experts' load, are parameters of the checkpoint and are counted.
"""

from planner.models.blocks import (
    Block,
    DenseFeedForward,
    LatentAttention,
    LinearAttention,
    LinearRule,
    MixtureOfExperts,
    QueryKeyNorm,
    SelfAttention,
    StateSpace,
)
from planner.models.specs import ModelSpec


def text_parameters(model: ModelSpec) -> int:
    """Return the parameters of the text part without its multi-token prediction."""
    hidden = model.hidden_size
    total = model.vocab_size * hidden * (1 if model.tie_word_embeddings else 2)
    total += model.vocab_size if model.lm_head_bias else 0
    total += model.num_position_rows * hidden
    total += hidden * model.norm.num_vectors * (2 if model.embedding_norm else 1)
    return total + sum(run.count * block_parameters(model, run.block) for run in model.runs)


def mtp_parameters(model: ModelSpec) -> int:
    """Return the parameters of multi-token prediction: two norms, a projection, a block and a norm each."""
    if model.mtp is None:
        return 0
    hidden = model.hidden_size
    joint = 2 * hidden * hidden + 3 * hidden * model.norm.num_vectors
    return model.mtp.num_modules * (joint + block_parameters(model, model.mtp.block))


def active_parameters(model: ModelSpec) -> int:
    """Return the parameters of the text part that one token visits, both embedding tables included."""
    idle = sum(run.count * _idle(model, run.block) for run in model.runs)
    return text_parameters(model) - idle


def block_parameters(model: ModelSpec, block: Block) -> int:
    """Return the parameters of one layer."""
    norms = (block.num_norms + block.num_post_norms) * model.hidden_size * model.norm.num_vectors
    return norms + _mixer(model, block) + _feed_forward(model, block)


def _idle(model: ModelSpec, block: Block) -> int:
    experts = block.feed_forward
    if not isinstance(experts, MixtureOfExperts):
        return 0
    width = experts.latent_size or model.hidden_size
    return (experts.num_experts - experts.experts_per_token) * _dense(experts.expert, width)


def _mixer(model: ModelSpec, block: Block) -> int:
    mixer, hidden = block.mixer, model.hidden_size
    if isinstance(mixer, SelfAttention):
        return _attention(mixer, hidden, model.norm.num_vectors)
    if isinstance(mixer, LatentAttention):
        return _latent(mixer, hidden)
    if isinstance(mixer, StateSpace):
        return _state_space(mixer, hidden)
    return _linear_attention(mixer, hidden) if isinstance(mixer, LinearAttention) else 0


def _attention(mixer: SelfAttention, hidden: int, norm_vectors: int) -> int:
    query = mixer.num_attention_heads * mixer.head_dim
    key = mixer.num_key_value_heads * mixer.head_dim
    qkv = query * (2 if mixer.output_gate else 1) + key * (1 if mixer.shared_key_value else 2)
    total = hidden * qkv + query * hidden
    total += qkv if mixer.qkv_bias else 0
    total += hidden if mixer.output_bias else 0
    total += mixer.num_attention_heads if mixer.sinks else 0
    scales = {QueryKeyNorm.HEAD: 2 * mixer.head_dim, QueryKeyNorm.WIDTH: query + key}
    return total + scales.get(mixer.qk_norm, 0) * norm_vectors


def _latent(mixer: LatentAttention, hidden: int) -> int:
    heads, latent = mixer.num_attention_heads, mixer.kv_lora_rank
    head = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
    total = hidden * (latent + mixer.qk_rope_head_dim) + latent
    total += latent * heads * (mixer.qk_nope_head_dim + mixer.v_head_dim)
    total += heads * mixer.v_head_dim * hidden
    total += hidden + latent + mixer.qk_rope_head_dim if mixer.bias else 0
    rank = mixer.q_lora_rank
    if rank is None:
        total += hidden * heads * head
    else:
        total += hidden * rank + rank + rank * heads * head + (rank if mixer.bias else 0)
    if mixer.indexer is not None:
        index = mixer.indexer
        # Queries from their latent, one key with a LayerNorm, and a weight for each head.
        total += (rank or 0) * index.num_heads * index.head_dim + hidden * index.head_dim
        total += 2 * index.head_dim + hidden * index.num_heads
    return total


def _state_space(mixer: StateSpace, hidden: int) -> int:
    inner = mixer.num_heads * mixer.head_dim
    states = 2 * mixer.num_groups * mixer.state_size
    inputs = 2 * inner + states + mixer.num_heads
    total = hidden * inputs + inner * hidden + (inputs + hidden if mixer.projection_bias else 0)
    total += (inner + states) * (mixer.conv_kernel + (1 if mixer.conv_bias else 0))
    return total + 3 * mixer.num_heads + inner


def _linear_attention(mixer: LinearAttention, hidden: int) -> int:
    keys = mixer.num_key_heads * mixer.key_head_dim
    values = mixer.num_value_heads * mixer.value_head_dim
    if mixer.rule is LinearRule.LIGHTNING:
        return hidden * (2 * keys + values) + 2 * hidden * values + values
    total = hidden * (2 * keys + values) + values * hidden + (2 * keys + values) * mixer.conv_kernel
    if mixer.rule is LinearRule.GATED_DELTA:
        total += hidden * values + 2 * hidden * mixer.num_value_heads
        return total + 2 * mixer.num_value_heads + mixer.value_head_dim
    # Kimi Delta Attention: the decay of each channel and the output's gate go through one head's width.
    total += hidden * mixer.key_head_dim + mixer.key_head_dim * keys + keys
    total += hidden * mixer.value_head_dim + mixer.value_head_dim * values
    return total + hidden * mixer.num_value_heads + mixer.num_value_heads + mixer.value_head_dim


def _feed_forward(model: ModelSpec, block: Block) -> int:
    part, hidden = block.feed_forward, model.hidden_size
    if isinstance(part, DenseFeedForward):
        return _dense(part, hidden)
    if part is None:
        return 0
    total = part.num_experts * _dense(part.expert, part.latent_size or hidden)
    total += hidden * part.num_experts
    total += part.num_experts * (part.router.bias + part.router.correction_bias)
    total += hidden + part.num_experts if part.router.scales else 0
    total += 2 * hidden * part.latent_size if part.latent_size is not None else 0
    total += part.num_norms * hidden * model.norm.num_vectors
    if part.shared is not None:
        total += _dense(part.shared, hidden) + (hidden if part.shared_gate else 0)
    return total


def _dense(part: DenseFeedForward, hidden: int) -> int:
    up = part.intermediate_size * (2 if part.gated else 1)
    return hidden * up + part.intermediate_size * hidden + (up + hidden if part.bias else 0)
