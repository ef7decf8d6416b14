"""A decoder of the planned shapes, in plain torch.

`model.json` beside this file names the shapes. Linear layers carry the names of Hugging Face's Llama, which is what
AutoTP is told to split. Every layer draws its initial weights from a seed of its own: however layers are spread over
processes, the whole model starts the same.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

INITIAL_STD = 0.02

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}

KERNELS = {
    "flash": [SDPBackend.FLASH_ATTENTION],
    "fused": [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
    "unfused": [SDPBackend.MATH],
}

Facts = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What layers are told besides their shapes.

    Args:
        attention: Kernel of the attention core: flash, fused or unfused.
        attention_dropout: Dropout probability inside attention.
        hidden_dropout: Dropout probability behind each sub-block.
        sequence_rank: Which part of each sequence this process holds.
        sequence_size: Processes that share a sequence.
        split_heads: Called on what every head reads where each process holds a part of the heads; adds up gradients.
        distribute: Wraps the attention core so that it sees whole sequences of a part of the heads.
    """

    attention: str
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    sequence_rank: int = 0
    sequence_size: int = 1
    split_heads: Callable[[Tensor], Tensor] = lambda shared: shared
    distribute: Callable[[nn.Module], Callable[[Tensor, Tensor, Tensor], Tensor]] = lambda core: core


def read_facts(path: Path) -> Facts:
    """Return the shapes that `model.json` names."""
    return json.loads(path.read_text(encoding="utf-8"))


def block_facts(facts: Facts) -> list[Facts]:
    """Return the shapes of each layer, in order."""
    return [run["block"] for run in facts["runs"] for _ in range(run["count"])]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random numbers from `seed` inside, and go on outside as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Linear(nn.Linear):
    """A linear layer with normally distributed weights and a bias of zeros."""

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        nn.init.normal_(self.weight, std=INITIAL_STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class TokenTable(nn.Embedding):
    """The embedding table; a tied LM head multiplies by it."""

    def __init__(self, rows: int, width: int, seed: int) -> None:
        with seeded(seed):
            super().__init__(rows, width)

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        nn.init.normal_(self.weight, std=INITIAL_STD)


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension, computed in fp32.

    Torch's kernels keep the input and an fp32 number or two a row for backward. RMSNorm has one on a GPU since torch
    2.9; before that, and on a CPU, it keeps fp32 copies.

    Args:
        facts: The model's shapes; they name kind and epsilon.
        width: Size of the last dimension.
    """

    def __init__(self, facts: Facts, width: int) -> None:
        super().__init__()
        kind = facts["norm"]
        self.mean_free = kind != "rmsnorm"
        self.width = (width,)
        self.epsilon = facts["norm_epsilon"]
        self.zero_centered = "zero-centered-norm" in facts["traits"]
        has_scale, has_shift = kind != "layernorm-plain", kind == "layernorm"
        self.weight = nn.Parameter(torch.full((width,), 0.0 if self.zero_centered else 1.0)) if has_scale else None
        self.bias = nn.Parameter(torch.zeros(width)) if has_shift else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the normalised input."""
        x, weight, bias = hidden, self.weight, self.bias
        if self.zero_centered and weight is not None:  # in 16 bit there are few numbers near one
            x, weight, bias = x.float(), weight.float() + 1.0, None if bias is None else bias.float()
        if self.mean_free:
            x = functional.layer_norm(x, self.width, weight, bias, self.epsilon)
        else:
            x = functional.rms_norm(x, self.width, weight, self.epsilon)
        return x.to(hidden.dtype)


class Rotary:
    """Rotation of queries and keys by their positions (Su et al., arXiv 2104.09864).

    Args:
        facts: The model's shapes; they name base, fraction and scaling.
        width: Width of what is rotated, before the fraction is taken.
        fraction: Part of it that is rotated.
    """

    def __init__(self, facts: Facts, width: int, fraction: float) -> None:
        self.width = int(width * fraction) // 2 * 2
        self.interleaved = "interleaved-rotary" in facts["traits"]
        scaling = facts["rope_scaling"]
        self.key = (self.width, facts["rope_theta"], tuple(sorted(scaling.items())))

    def __call__(self, x: Tensor, first: int) -> Tensor:
        """Return `x` `[batch, tokens, heads, width]` rotated; its first token stands at position `first`."""
        cosine, sine = _angles(self.key, first, x.shape[1], x.device)
        turned, kept = x[..., : self.width].float(), x[..., self.width :]
        if self.interleaved:
            even, odd = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1).flatten(-2)
        else:
            low, high = turned.chunk(2, dim=-1)
            turned = torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)
        turned = turned.to(x.dtype)
        return torch.cat((turned, kept), dim=-1) if kept.shape[-1] else turned


@lru_cache(maxsize=8)
def _angles(key: tuple, first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines `[tokens, 1, width / 2]` of the positions from `first` on."""
    width, base, scaling = key
    frequencies, magnitude = _frequencies(width, base, dict(scaling))
    positions = torch.arange(first, first + count, dtype=torch.float32)
    angles = torch.outer(positions, frequencies).unsqueeze(1).to(device)
    return angles.cos() * magnitude, angles.sin() * magnitude


def _frequencies(width: int, base: float, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    """Return the angle a position turns each pair by, and the factor of what is turned."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies, 1.0
    factor = scaling["factor"]
    if kind == "linear":
        return frequencies / factor, 1.0
    original = scaling["original_max_position_embeddings"]
    if kind == "llama3":
        turns = original * frequencies / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        return frequencies * (kept + (1.0 - kept) / factor), 1.0
    if kind == "yarn":  # Peng et al., arXiv 2309.00071

        def pair_of(turns: float) -> float:
            return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

        low = max(math.floor(pair_of(scaling.get("beta_fast", 32.0))), 0)
        high = min(math.ceil(pair_of(scaling.get("beta_slow", 1.0))), width - 1)
        stretched = ((torch.arange(width // 2) - low) / max(high - low, 1e-3)).clamp(0.0, 1.0)
        return frequencies * (1.0 - stretched + stretched / factor), 0.1 * math.log(factor) + 1.0
    raise ValueError(f"rope scaling of kind {kind!r}")


class CoreAttention(nn.Module):
    """Causal attention over whole sequences; queries, keys and values are `[batch, tokens, heads, width]`.

    Args:
        context: Names kernel and dropout.
        window: A token sees itself and this many less one before it.
        chunk: A token sees only its own chunk of this many tokens.
    """

    def __init__(self, context: Context, window: int | None = None, chunk: int | None = None) -> None:
        super().__init__()
        self.kernel, self.dropout = context.attention, context.attention_dropout
        self.window, self.chunk = window, chunk

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attended values, as wide as the values."""
        tokens = query.shape[1]
        if self.chunk is not None and self.chunk < tokens:
            parts = (x.split(self.chunk, dim=1) for x in (query, key, value))
            return torch.cat([self._attend(*part) for part in zip(*parts, strict=True)], dim=1)
        return self._attend(query, key, value)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tokens = query.shape[1]
        dropout = self.dropout if self.training else 0.0
        windowed = self.window is not None and self.window < tokens
        if windowed and self.kernel == "flash" and query.is_cuda:
            from flash_attn import flash_attn_func  # noqa: PLC0415 - only this case needs the package

            return flash_attn_func(query, key, value, dropout_p=dropout, causal=True, window_size=(self.window - 1, 0))
        mask = None
        if windowed:
            distance = torch.arange(tokens, device=query.device)
            distance = distance[:, None] - distance[None, :]
            mask = (distance >= 0) & (distance < self.window)
        width = value.shape[-1]
        if self.kernel == "flash" and width < query.shape[-1]:
            value = functional.pad(value, (0, query.shape[-1] - width))
        groups = query.shape[2] // key.shape[2]
        # The memory-efficient kernel wants a key head for each query head.
        shared = groups > 1 and self.kernel != "fused"
        if groups > 1 and not shared:
            key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        backends = sdpa_kernel(KERNELS[self.kernel]) if query.is_cuda else contextlib.nullcontext()
        with backends:
            out = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=shared
            )
        return out.transpose(1, 2)[..., :width]


class SelfAttention(nn.Module):
    """Attention with query heads in groups that share a key and a value head."""

    def __init__(self, facts: Facts, mixer: Facts, context: Context) -> None:
        super().__init__()
        hidden, self.head_dim = facts["hidden_size"], mixer["head_dim"]
        queries = mixer["num_attention_heads"] * self.head_dim
        keys = mixer["num_key_value_heads"] * self.head_dim
        bias = mixer["qkv_bias"]
        self.q_proj = Linear(hidden, queries, bias=bias)
        self.k_proj = Linear(hidden, keys, bias=bias)
        self.v_proj = Linear(hidden, keys, bias=bias)
        self.o_proj = Linear(queries, hidden, bias=mixer["output_bias"])
        self.norm_over = mixer["qk_norm"]
        if self.norm_over != "none":
            self.q_norm = Norm(facts, self.head_dim if self.norm_over == "head" else queries)
            self.k_norm = Norm(facts, self.head_dim if self.norm_over == "head" else keys)
        rotary = facts["position_embedding"] == "rope" and mixer["rotary"]
        self.rotary = Rotary(facts, self.head_dim, facts["rotary_fraction"]) if rotary else None
        self.sequence_rank = context.sequence_rank
        self.core = context.distribute(CoreAttention(context, mixer["window"], mixer["chunk"]))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what the tokens get from one another."""
        query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        if self.norm_over == "width":
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (x.unflatten(-1, (-1, self.head_dim)) for x in (query, key, value))
        if self.norm_over == "head":
            query, key = self.q_norm(query), self.k_norm(key)
        if self.rotary is not None:
            first = self.sequence_rank * hidden.shape[1]
            query, key = self.rotary(query, first), self.rotary(key, first)
        return self.o_proj(self.core(query, key, value).flatten(-2))


class LatentAttention(nn.Module):
    """Attention whose keys and values come from a common narrow latent (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    def __init__(self, facts: Facts, mixer: Facts, context: Context) -> None:
        super().__init__()
        hidden, heads = facts["hidden_size"], mixer["num_attention_heads"]
        self.plain, self.turned = mixer["qk_nope_head_dim"], mixer["qk_rope_head_dim"]
        self.latent, self.value = mixer["kv_lora_rank"], mixer["v_head_dim"]
        queries, rank, bias = heads * (self.plain + self.turned), mixer["q_lora_rank"], mixer["bias"]
        down = () if rank is None else (Linear(hidden, rank, bias=bias), Norm(facts, rank))
        self.q_down = nn.Sequential(*down)
        self.q_proj = Linear(hidden if rank is None else rank, queries, bias=False)
        self.kv_a_proj = Linear(hidden, self.latent + self.turned, bias=bias)
        self.kv_a_norm = Norm(facts, self.latent)
        self.kv_b_proj = Linear(self.latent, heads * (self.plain + self.value), bias=False)
        self.o_proj = Linear(heads * self.value, hidden, bias=bias)
        self.rotary = Rotary(facts, self.turned, 1.0)
        self.split_heads = context.split_heads
        self.sequence_rank = context.sequence_rank
        self.core = context.distribute(CoreAttention(context))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what the tokens get from one another."""
        query = self.q_proj(self.q_down(hidden)).unflatten(-1, (-1, self.plain + self.turned))
        latent, shared = self.kv_a_proj(hidden).split((self.latent, self.turned), dim=-1)
        both = self.kv_b_proj(self.kv_a_norm(latent)).unflatten(-1, (-1, self.plain + self.value))
        key, value = both.split((self.plain, self.value), dim=-1)
        first = self.sequence_rank * hidden.shape[1]
        query = torch.cat((query[..., : self.plain], self.rotary(query[..., self.plain :], first)), dim=-1)
        shared = self.rotary(self.split_heads(shared).unsqueeze(2), first).expand(-1, -1, query.shape[2], -1)
        key = torch.cat((key, shared), dim=-1)
        return self.o_proj(self.core(query, key, value.contiguous()).flatten(-2))


class FeedForward(nn.Module):
    """Two projections around an activation, or three with a gate."""

    def __init__(self, hidden: int, shapes: Facts) -> None:
        super().__init__()
        inner, bias = shapes["intermediate_size"], shapes["bias"]
        self.activation = ACTIVATIONS[shapes["activation"]]
        self.gate_proj = Linear(hidden, inner, bias=bias) if shapes["gated"] else None
        self.up_proj = Linear(hidden, inner, bias=bias)
        self.down_proj = Linear(inner, hidden, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what each token becomes by itself."""
        inner = self.up_proj(hidden)
        inner = self.activation(inner) if self.gate_proj is None else self.activation(self.gate_proj(hidden)) * inner
        return self.down_proj(inner)


class Router(nn.Module):
    """Chooses the experts of each token, in fp32.

    `correction` is DeepSeek-V3's bias that balances load (arXiv 2412.19437, section 2.1.2): it takes part in the choice
    only, and whoever trains moves it by hand. There is no loss that balances load.
    """

    def __init__(self, hidden: int, shapes: Facts) -> None:
        super().__init__()
        self.shapes, self.chosen = shapes["router"], shapes["experts_per_token"]
        self.proj = Linear(hidden, shapes["num_experts"], bias=self.shapes["bias"])
        correction = torch.zeros(shapes["num_experts"]) if self.shapes["correction_bias"] else None
        self.register_buffer("correction", correction)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and numbers of the chosen experts, `[tokens, chosen]` each."""
        logits = self.proj(hidden).float()
        scores = logits.softmax(-1) if self.shapes["score"] == "softmax" else logits.sigmoid()
        choice = scores.detach() if self.correction is None else scores.detach() + self.correction
        groups, kept = self.shapes["num_groups"], self.shapes["groups_per_token"]
        if groups > kept:
            grouped = choice.unflatten(-1, (groups, -1))
            best = 2 if self.correction is not None else 1
            order = grouped.topk(best, dim=-1).values.sum(-1)
            open_groups = torch.zeros_like(order).scatter(-1, order.topk(kept, dim=-1).indices, 1.0)
            choice = grouped.masked_fill(open_groups.unsqueeze(-1) == 0, float("-inf")).flatten(-2)
        experts = choice.topk(self.chosen, dim=-1).indices
        weights = scores.gather(-1, experts)
        if self.shapes["normalized"]:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.shapes["weight_factor"], experts


class MixtureOfExperts(nn.Module):
    """Routed experts, of which each token visits a few, and one that every token visits; all of them on every process.

    Experts are stacked in one tensor each way, so that ZeRO-3 gathers them together whichever are visited.
    """

    def __init__(self, hidden: int, shapes: Facts) -> None:
        super().__init__()
        expert, count = shapes["expert"], shapes["num_experts"]
        inner, gated = expert["intermediate_size"], expert["gated"]
        self.activation, self.gated = ACTIVATIONS[expert["activation"]], gated
        self.router = Router(hidden, shapes)
        self.up = nn.Parameter(torch.empty(count, inner * (2 if gated else 1), hidden))
        self.down = nn.Parameter(torch.empty(count, hidden, inner))
        for weight in (self.up, self.down):
            nn.init.normal_(weight, std=INITIAL_STD)
        self.shared = FeedForward(hidden, shapes["shared"]) if shapes["shared"] is not None else None
        self.shared_gate = Linear(hidden, 1, bias=False) if shapes["shared_gate"] else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the weighted sum of what the chosen experts make of each token."""
        tokens = hidden.flatten(0, -2)
        weights, experts = self.router(tokens)
        out = torch.zeros_like(tokens)
        for number in range(self.up.shape[0]):
            rows, place = (experts == number).nonzero(as_tuple=True)
            inner = functional.linear(tokens[rows], self.up[number])
            if self.gated:
                gate, inner = inner.chunk(2, dim=-1)
                inner = self.activation(gate) * inner
            else:
                inner = self.activation(inner)
            inner = inner * weights[rows, place, None].to(inner.dtype)  # here it is narrower than behind `down`
            visited = functional.linear(inner, self.down[number])
            out.scatter_add_(0, rows.unsqueeze(-1).expand_as(visited), visited)  # `index_add_` would keep `visited`
        if self.shared is not None:
            always = self.shared(tokens)
            out = out + (always if self.shared_gate is None else self.shared_gate(tokens).sigmoid() * always)
        return out.view_as(hidden)


def _mixer(facts: Facts, shapes: Facts, context: Context) -> nn.Module:
    kinds = {"attention": SelfAttention, "latent-attention": LatentAttention}
    return kinds[shapes["kind"]](facts, shapes, context)


def _feed_forward(hidden: int, shapes: Facts) -> nn.Module:
    kinds = {"dense": FeedForward, "experts": MixtureOfExperts}
    return kinds[shapes["kind"]](hidden, shapes)


class Block(nn.Module):
    """One decoder layer.

    Args:
        facts: The model's shapes.
        shapes: This layer's.
        context: What it is told besides.
        seed: Of its initial weights.
    """

    def __init__(self, facts: Facts, shapes: Facts, context: Context, seed: int) -> None:
        super().__init__()
        hidden = facts["hidden_size"]
        with seeded(seed):
            parts = [_mixer(facts, shapes["mixer"], context)] if shapes["mixer"] is not None else []
            parts += [_feed_forward(hidden, shapes["feed_forward"])] if shapes["feed_forward"] is not None else []
            self.parts = nn.ModuleList(parts)
            self.norms = nn.ModuleList(Norm(facts, hidden) for _ in range(shapes["num_norms"]))
            self.post_norms = nn.ModuleList(Norm(facts, hidden) for _ in range(shapes["num_post_norms"]))
        self.parallel = shapes["parallel"]
        self.dropout = nn.Dropout(context.hidden_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the stream behind this layer."""
        stream = hidden
        one_norm = 0 < len(self.norms) < len(self.parts)
        entering = self.norms[0](hidden) if one_norm else hidden
        for index, part in enumerate(self.parts):
            x = entering if self.parallel else stream
            if self.norms and not one_norm:
                x = self.norms[index](x)
            x = part(x)
            if self.post_norms:
                x = self.post_norms[index](x)
            stream = stream + self.dropout(x)
        return stream


class Positions(nn.Module):
    """What is done to embedded tokens before the first layer: positions are added, norm and dropout applied."""

    def __init__(self, facts: Facts, context: Context, seed: int) -> None:
        super().__init__()
        learned = facts["position_embedding"] == "learned"
        self.first = context.sequence_rank, facts["position_offset"]
        rows = facts["max_position_embeddings"] + facts["position_offset"]
        self.table = TokenTable(rows, facts["hidden_size"], seed) if learned else None
        self.norm = Norm(facts, facts["hidden_size"]) if facts["embedding_norm"] else None
        self.dropout = nn.Dropout(context.hidden_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the stream in front of the first layer."""
        if self.table is not None:
            rank, offset = self.first
            tokens = hidden.shape[1]
            first = rank * tokens + offset
            hidden = hidden + self.table(torch.arange(first, first + tokens, device=hidden.device))
        if self.norm is not None:
            hidden = self.norm(hidden)
        return self.dropout(hidden)


class Head(Linear):
    """The LM head where it is a matrix of its own."""

    def __init__(self, width: int, rows: int, *, bias: bool, seed: int) -> None:
        with seeded(seed):
            super().__init__(width, rows, bias=bias)


def loss_of(logits: Tensor, *, shift_labels: Tensor, num_items_in_batch: int) -> Tensor:
    """Return the cross entropy in fp32, summed over these tokens and divided by those of the whole micro-batch."""
    total = functional.cross_entropy(logits.flatten(0, -2).float(), shift_labels.flatten(), reduction="sum")
    return total / num_items_in_batch


class Decoder(nn.Module):
    """The whole model, from tokens to the loss.

    Args:
        facts: The model's shapes.
        rows: Rows of the embedding table, padding included.
        context: What layers are told besides.
        checkpoint: Runs a layer so that only its input is kept for backward; None keeps everything.
        seed: Of the initial weights.
    """

    def __init__(
        self, facts: Facts, rows: int, context: Context, checkpoint: Callable[..., Tensor] | None, seed: int
    ) -> None:
        super().__init__()
        hidden, blocks = facts["hidden_size"], block_facts(facts)
        self.sequence_size, self.checkpoint = context.sequence_size, checkpoint
        self.loss_function = loss_of  # AutoTP puts its own here where it splits the LM head
        self.embed_tokens = TokenTable(rows, hidden, seed)
        self.positions = Positions(facts, context, seed + 1)
        self.layers = nn.ModuleList(
            Block(facts, shapes, context, layer_seed(seed, index)) for index, shapes in enumerate(blocks)
        )
        self.norm = Norm(facts, hidden)
        self.lm_head = Head(hidden, rows, bias=facts["lm_head_bias"], seed=seed + 2)
        if facts["tie_word_embeddings"]:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return this process's part of the loss."""
        hidden = self.positions(self.embed_tokens(tokens))
        for layer in self.layers:
            hidden = layer(hidden) if self.checkpoint is None else self.checkpoint(layer, hidden)
        logits = self.lm_head(self.norm(hidden))
        return self.loss_function(
            logits=logits, shift_labels=labels, num_items_in_batch=labels.numel() * self.sequence_size
        )


def layer_seed(seed: int, index: int) -> int:
    """Return the seed of one decoder layer's weights; 0 to 2 are the embedding's, the positions' and the LM head's."""
    return seed + 3 + index
