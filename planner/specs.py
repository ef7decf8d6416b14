"""The things a user describes: a model, a training workload, constraints, an objective.

Everything here is frozen and already checked; the pydantic schemas read users' files and build these. Model fields
use Hugging Face names. Lengths are in tokens, sizes in elements, rates in their unit.

A model is a chain of blocks. A block is a `mixer` (something that lets tokens see one another) and a `feed_forward`
(something per token), joined in sequence or in parallel. Hybrid models, first-k-dense and non-uniform chains are
different `Block`s in one chain; equal neighbours are stored once with their count, because every cost is computed
once per distinct block.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

MAX_LENGTH = 1 << 24
"""Longest sequence and largest batch: far above any run, small enough that nothing derived from them overflows."""

MAX_DEGREE = 1 << 20
"""Largest degree; the largest clusters have about 2**17 GPUs."""


class DType(StrEnum):
    """Number formats that tensors are kept or multiplied in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"

    @property
    def num_bytes(self) -> int:
        """Return the bytes of one element."""
        return {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}[self.value]


class Norm(StrEnum):
    """Normalisation kinds: RMSNorm has a scale, LayerNorm a scale and a shift."""

    RMS = "rmsnorm"
    LAYER = "layernorm"


class Activation(StrEnum):
    """Feed-forward activations, without their gate."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"
    RELU2 = "relu2"


class PositionEmbedding(StrEnum):
    """How positions enter the model."""

    ROPE = "rope"
    LEARNED = "learned"
    NONE = "none"


class Trait(StrEnum):
    """What changes a model's results but not its cost; an emitter says it in its target's words, or refuses."""

    ZERO_CENTERED_NORM = "zero-centered-norm"
    SCALED_EMBEDDING = "scaled-embedding"
    INTERLEAVED_ROTARY = "interleaved-rotary"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfAttention:
    """Softmax attention with `num_attention_heads` query heads and `num_key_value_heads` key/value heads."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        """Check that the heads are whole groups."""
        if min(self.num_attention_heads, self.num_key_value_heads, self.head_dim) < 1:
            raise ValueError("heads and head_dim must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )

    @property
    def query_size(self) -> int:
        """Return the width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Return the width of all key heads together (equally of all value heads)."""
        return self.num_key_value_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFeedForward:
    """Two projections around an activation, or three with a gate."""

    intermediate_size: int
    gated: bool
    activation: Activation
    bias: bool = False


Mixer = SelfAttention
FeedForward = DenseFeedForward


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One decoder layer.

    Args:
        mixer: Sub-block that mixes tokens; None where the layer has none.
        feed_forward: Sub-block per token; None where the layer has none.
        parallel: Both sub-blocks read the same residual stream and are added together.
        num_norms: Norms in front of the sub-blocks (a parallel block may share one).
    """

    mixer: Mixer | None
    feed_forward: FeedForward | None
    parallel: bool = False
    num_norms: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRun:
    """`count` equal neighbouring blocks."""

    block: Block
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only language model, by its shapes.

    Args:
        name: What the user calls it.
        architecture: The Hugging Face architecture, or "inline".
        hidden_size: Width of the residual stream.
        vocab_size: Rows of the embedding table, before any padding.
        tie_word_embeddings: The LM head is the embedding table.
        max_position_embeddings: Longest sequence the model is made for.
        norm: Kind of every norm.
        position_embedding: How positions enter.
        runs: The chain of blocks, equal neighbours collapsed.
        rope_theta: Base of the rotary embedding; None without one.
        rotary_fraction: Part of each head that is rotated.
        norm_epsilon: The norm's epsilon.
        lm_head_bias: The LM head adds a bias.
        embedding_norm: A norm directly behind the embedding.
        rope_scaling: Scaling of the rotary embedding (factor and its parameters), for emitters; costs nothing.
        position_offset: Rows of a learned position table in front of position 0 (OPT has 2).
        traits: What else an emitter must express; costs nothing.
    """

    name: str
    architecture: str
    hidden_size: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    norm: Norm
    position_embedding: PositionEmbedding
    runs: tuple[BlockRun, ...]
    norm_epsilon: float
    rope_theta: float | None = None
    rotary_fraction: float = 1.0
    lm_head_bias: bool = False
    embedding_norm: bool = False
    rope_scaling: Mapping[str, float | str] = field(default_factory=dict)
    position_offset: int = 0
    traits: tuple[Trait, ...] = ()

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return sum(run.count for run in self.runs)

    @property
    def num_position_rows(self) -> int:
        """Return the rows of the learned position table; 0 without one."""
        if self.position_embedding is not PositionEmbedding.LEARNED:
            return 0
        return self.max_position_embeddings + self.position_offset

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the chain, one entry a layer."""
        return tuple(run.block for run in self.runs for _ in range(run.count))

    def blocks_between(self, first_layer: int, num_layers: int) -> tuple[Block, ...]:
        """Return `num_layers` blocks of the chain from `first_layer` on."""
        found: list[Block] = []
        start = 0
        for run in self.runs:
            held = min(start + run.count, first_layer + num_layers) - max(start, first_layer)
            found += [run.block] * max(held, 0)
            start += run.count
        return tuple(found)

    @property
    def distinct_blocks(self) -> tuple[Block, ...]:
        """Return each kind of block once, in order of first appearance."""
        return tuple(dict.fromkeys(run.block for run in self.runs))


class Precision(StrEnum):
    """What the matrix multiplications of training run in."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8_DELAYED = "fp8-delayed"
    FP8_TENSORWISE = "fp8-tensorwise"
    FP8_BLOCKWISE = "fp8-blockwise"
    FP8_MXFP8 = "fp8-mxfp8"

    @property
    def is_fp8(self) -> bool:
        """Return whether the linear layers multiply in fp8."""
        return self.value.startswith("fp8")

    @property
    def parameter_dtype(self) -> DType:
        """Return the format that weights and activations are kept in."""
        return DType.FP16 if self is Precision.FP16 else DType.BF16

    @property
    def gemm_dtype(self) -> DType:
        """Return the format that the linear layers multiply in."""
        return DType.FP8 if self.is_fp8 else self.parameter_dtype


class Optimizer(StrEnum):
    """Optimizers whose states the ledger knows."""

    ADAM = "adam"
    SGD = "sgd"


class AttentionKernel(StrEnum):
    """Kernels of the attention core: `unfused` materialises the score matrix."""

    FLASH = "flash"
    FUSED = "fused"
    UNFUSED = "unfused"


class TrainMethod(StrEnum):
    """What is trained."""

    PRETRAIN = "pretrain"
    FULL_FINETUNE = "full-finetune"
    LORA = "lora"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Low-rank adapters on every linear layer named in `target_modules`; everything else is frozen.

    Args:
        rank: Inner width r of each adapter pair A `[r, in]`, B `[out, r]`.
        alpha: Scale alpha / r of the adapter's output.
        target_modules: Operators that carry an adapter: qkv, proj, fc1, fc2.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainWorkload:
    """One training run, as its user describes it.

    Args:
        seq_len: Tokens of one sequence.
        global_batch_size: Sequences of one optimizer step; the user's own, never changed.
        precision: Format of the matrix multiplications.
        master_dtype: Format of the optimizer's copy of the weights.
        gradient_dtype: Format that gradients are accumulated and reduced in.
        moment_dtype: Format of the optimizer's moments.
        optimizer: The optimizer.
        attention_kernel: Kernel of the attention core.
        method: What is trained.
        lora: The adapters, with method lora; else None.
        tokens_to_train: Token budget of the whole run; None leaves days and cost out.
        hidden_dropout: Dropout probability behind each sub-block.
        attention_dropout: Dropout probability inside attention.
        data_path: Prefixes of the user's tokenised data; empty means mock data.
        tokenizer_model: The user's tokenizer; None means a null tokenizer.
    """

    seq_len: int
    global_batch_size: int
    precision: Precision
    master_dtype: DType = DType.FP32
    gradient_dtype: DType = DType.FP32
    moment_dtype: DType = DType.FP32
    optimizer: Optimizer = Optimizer.ADAM
    attention_kernel: AttentionKernel = AttentionKernel.FLASH
    method: TrainMethod = TrainMethod.PRETRAIN
    lora: Lora | None = None
    tokens_to_train: int | None = None
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    data_path: tuple[str, ...] = ()
    tokenizer_model: str | None = None

    def __post_init__(self) -> None:
        """Check that adapters are described exactly when they are trained."""
        if (self.method is TrainMethod.LORA) != (self.lora is not None):
            raise ValueError("`lora` is given exactly when method is lora")

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens of one optimizer step."""
        return self.seq_len * self.global_batch_size


class Target(StrEnum):
    """Frameworks that a plan can be written for."""

    MEGATRON = "megatron"
    DEEPSPEED = "deepspeed"
    VLLM = "vllm"
    ANY = "any"


class Objective(StrEnum):
    """What the search minimises or maximises."""

    STEP_TIME = "step-time"
    TOKENS_PER_GPU = "tokens-per-gpu"
    COST = "cost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Values that one dimension may take: an explicit set, or a range with either end open."""

    allowed: tuple[int, ...] | None = None
    minimum: int | None = None
    maximum: int | None = None

    def admits(self, value: int) -> bool:
        """Return whether `value` is allowed."""
        if self.allowed is not None and value not in self.allowed:
            return False
        if self.minimum is not None and value < self.minimum:
            return False
        return self.maximum is None or value <= self.maximum


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What the user pins or bounds.

    Args:
        degrees: Bounds by dimension: tp, pp, vpp, dp, zero_stage, micro_batch_size, num_microbatches.
        recompute: Allowed recompute granularities; None allows all.
        sequence_parallel: Pinned value; None leaves it to the search.
    """

    degrees: Mapping[str, Bounds] = field(default_factory=dict)
    recompute: tuple[str, ...] | None = None
    sequence_parallel: bool | None = None

    def admits(self, dimension: str, value: int) -> bool:
        """Return whether `dimension` may take `value`."""
        bounds = self.degrees.get(dimension)
        return bounds is None or bounds.admits(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a plan is asked for, apart from model and cluster.

    Args:
        workload: The training run.
        constraints: What the user pins.
        memory_headroom: Fraction of each GPU's memory that the plan leaves free.
        target: Framework that must be able to express the plan.
        objective: What is optimised.
    """

    workload: TrainWorkload
    constraints: Constraints
    memory_headroom: float
    target: Target
    objective: Objective
