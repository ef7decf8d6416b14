"""What one rank of an engine holds of a model and runs for a token, layer by layer.

`planner.serving.rank_operators` makes it of the operator graph; memory, times and files are read off it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.serving.placed_experts import PlacedExperts
from profiles.kernels.operations import Format

PLAIN_BYTES = 2
"""Bytes of a number that nothing quantises: 16 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """Products `[tokens, depth] [depth, columns]` of one linear layer."""

    columns: int
    depth: int
    format: Format


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCore:
    """Softmax attention of one layer on one rank.

    Args:
        num_heads: Query heads.
        num_kv_heads: Key heads, copies included; 1 for latent attention in decode.
        qk_head_dim: Width of a query head against a whole prompt.
        v_head_dim: Width of a value head against a whole prompt.
        decode_qk_dim: Width of a query head against the cache.
        decode_v_dim: Width of what decode sums.
        cache_elements: Cached numbers of a token.
        seen_tokens: Most tokens that one sees: a window, a chunk, or what an indexer keeps; None sees all.
        kept_tokens: Most tokens whose cache is kept; None keeps all.
        index_bytes: Cached bytes of a token's index keys, which every step reads of all tokens.
    """

    num_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    decode_qk_dim: int
    decode_v_dim: int
    cache_elements: int
    seen_tokens: int | None = None
    kept_tokens: int | None = None
    index_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """A recurrence of one layer on one rank.

    Args:
        state_bytes: State of one sequence, its convolution's last inputs included.
        cached_states: States of a sequence that vLLM keeps where it caches prefixes: the current one, the last at the
            end of a block and, of Mamba-2, one within a prompt (`MambaSpec.max_memory_usage_bytes` in mode "align").
        flops_per_token: Products inside chunks for one prompt token.
        bytes_per_token: Inputs and outputs of one token.
    """

    state_bytes: int
    cached_states: int
    flops_per_token: float
    bytes_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedExperts:
    """The routed experts of one layer on one rank.

    Args:
        hidden: Width of a token.
        inter: Width of this rank's part of an expert.
        gated: Gate and up projection; else up alone.
        experts: Experts in all.
        copies: The same with their further copies.
        on_rank: Experts and copies of this rank.
        topk: Experts of one token.
        format: Of their weights.
        grouped: Name of the kernels that multiply them.
        placed: Where they stand, and how often tokens choose each; None where nothing was counted.
    """

    hidden: int
    inter: int
    gated: bool
    experts: int
    copies: int
    on_rank: int
    topk: int
    format: Format
    grouped: str
    placed: PlacedExperts | None = None

    @property
    def busiest_share(self) -> float:
        """Return the part of all choices of experts that the busiest rank gets in some layer."""
        return self.on_rank / self.copies if self.placed is None else self.placed.worst_share

    @property
    def parameters_of_one(self) -> int:
        """Return the weights of this rank's part of one expert, in numbers."""
        return (3 if self.gated else 2) * self.hidden * self.inter


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLayer:
    """One kind of layer on one rank.

    Args:
        count: Layers of this kind.
        products: Linear layers that every token passes.
        attention: Softmax attention; None without.
        recurrence: A recurrence; None without.
        experts: Routed experts; None without.
        stream_bytes_per_token: Traffic of element-wise kernels for a token.
        num_kernels: Element-wise kernels, casts included, of an engine that runs each apart.
        fused: By engine how many of them it does not.
        streams: Both by measured kernel (`profiles.measured_operations.kernel_named`): its bytes for a token, and how
            often it runs.
        reductions: Sums over the tensor-parallel group.
        weight_bytes: Bytes of the layer's weights on this rank.
        is_latent: Its attention is latent.
    """

    count: int
    products: tuple[Product, ...]
    attention: AttentionCore | None
    recurrence: Recurrence | None
    experts: RoutedExperts | None
    stream_bytes_per_token: float
    num_kernels: int
    fused: Mapping[str, int]
    streams: Mapping[str, tuple[float, int]]
    reductions: int
    weight_bytes: float
    is_latent: bool

    @property
    def cache_elements(self) -> int:
        """Return the cached numbers of a token that are kept for as long as it is seen."""
        return 0 if self.attention is None else self.attention.cache_elements


@dataclass(frozen=True, slots=True, kw_only=True)
class RankModel:
    """A model on one rank of an engine.

    Args:
        layers: Each kind of layer.
        hidden_size: Width of the stream.
        head: The LM head.
        end_bytes: Bytes of embedding and LM head.
        num_layers: Layers in all.
    """

    layers: tuple[RankLayer, ...]
    hidden_size: int
    head: Product
    end_bytes: float
    num_layers: int

    @property
    def weight_bytes(self) -> float:
        """Return the bytes of all weights on a rank of an engine without pipeline stages."""
        return self.end_bytes + sum(layer.count * layer.weight_bytes for layer in self.layers)

    @property
    def bytes_of_one_expert(self) -> float:
        """Return what one routed expert of every layer takes on a rank of an engine without pipeline stages."""
        parts = [(layer.count, layer.experts) for layer in self.layers if layer.experts is not None]
        return sum(count * experts.parameters_of_one * experts.format.weight_bytes for count, experts in parts)

    @property
    def has_experts(self) -> bool:
        """Return whether some layer has routed experts."""
        return any(layer.experts is not None for layer in self.layers)
