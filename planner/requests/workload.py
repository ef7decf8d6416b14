"""A training run, as its user describes it: lengths in tokens, number formats, what is trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from statistics import fmean
from typing import NamedTuple

from planner.requests.routing import Routing

MAX_LENGTH = 1 << 24
"""Longest sequence and largest batch: far above any run, small enough that nothing derived from them overflows."""


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


DEFAULT_ROUTING_SKEW = 1.2
"""Load of the busiest rank's experts over the mean, assumed unless the user gives one.

With it a published estimate of peak memory came within 7 % and 1 % of H100 measurements (issue 18 of
mlc-ai/pith-train).
"""


def causal_pairs(length: int) -> int:
    """Return the query-key pairs of causal attention over `length` tokens."""
    return length * (length + 1) // 2


def window_pairs(length: int, window: int) -> int:
    """Return the query-key pairs where each token sees at most `window` tokens, itself included."""
    inside = min(length, window)
    return causal_pairs(inside) + (length - inside) * inside


def chunk_pairs(length: int, chunk: int) -> int:
    """Return the query-key pairs where each token sees only its own chunk of `chunk` tokens."""
    whole, rest = divmod(length, chunk)
    return whole * causal_pairs(chunk) + causal_pairs(rest)


class Packing(StrEnum):
    """How documents of unequal lengths fill sequences: several in one, or one in each with padding behind it."""

    PACKED = "packed"
    PADDED = "padded"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLengths:
    """How long the documents are that the sequences of a run are made of.

    Args:
        lengths: Lengths in tokens, ascending, none above the run's `seq_len`.
        weights: Share of the documents that have each length; they sum to 1.
        packing: How they fill sequences. Packed documents do not see one another.
    """

    lengths: tuple[int, ...]
    weights: tuple[float, ...]
    packing: Packing

    def __post_init__(self) -> None:
        """Check that this is a distribution."""
        if not self.lengths or len(self.lengths) != len(self.weights):
            raise ValueError("every length has a weight, and there is at least one")
        if list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < 1:
            raise ValueError("lengths are positive and ascend")
        if min(self.weights) < 0 or abs(sum(self.weights) - 1.0) > 1e-6:
            raise ValueError("weights are not negative and sum to 1")

    def mean(self, value: Callable[[int], float]) -> float:
        """Return the mean of `value` of a document's length."""
        return sum(weight * value(length) for length, weight in zip(self.lengths, self.weights, strict=True))


class BusiestRank(NamedTuple):
    """Tokens that the busiest rank's experts get, over the mean of all ranks.

    Args:
        on_average: Over the layers: what times are of.
        at_worst: In the worst layer: what memory is of.
        moved: Experts whose weights some rank sends or gets because of rerouting, on average over the layers.
        moved_at_worst: The same in the worst layer.
    """

    on_average: float
    at_worst: float
    moved: float = 0.0
    moved_at_worst: int = 0


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
        documents: Lengths of the documents in the sequences; None means that every sequence is one document.
        routing_skew: Tokens of the busiest rank's experts over the mean of all ranks, where experts are spread.
        routing: Which experts tokens choose; takes the place of `routing_skew`. None where that is not known.
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
    documents: DocumentLengths | None = None
    routing_skew: float = DEFAULT_ROUTING_SKEW
    routing: Routing | None = None

    def __post_init__(self) -> None:
        """Check that adapters are described exactly when they are trained."""
        if (self.method is TrainMethod.LORA) != (self.lora is not None):
            raise ValueError("`lora` is given exactly when method is lora")
        if self.routing_skew < 1:
            raise ValueError("the busiest rank has at least the mean load: `routing_skew` is at least 1")
        if self.documents is not None and self.documents.lengths[-1] > self.seq_len:
            raise ValueError("no document is longer than a sequence")

    def busiest_rank(self, ep: int) -> "BusiestRank":
        """Return what the busiest of `ep` ranks gets over the mean; one rank alone has all experts."""
        if self.routing is not None:
            loads = self.routing.loads(ep)
            moved_L = self.routing.moved_L(ep)
            return BusiestRank(
                on_average=loads.mean, at_worst=loads.worst, moved=fmean(moved_L), moved_at_worst=max(moved_L)
            )
        skew = self.routing_skew if ep > 1 else 1.0
        return BusiestRank(on_average=skew, at_worst=skew)

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens of one optimizer step, padding included."""
        return self.seq_len * self.global_batch_size

    @property
    def useful_tokens_per_step(self) -> float:
        """Return the tokens of one optimizer step that are not padding."""
        return self.tokens_per_step * self.useful_fraction

    @property
    def steps_to_train(self) -> int | None:
        """Return the optimizer steps that the token budget takes, padding not counted as tokens; None without one."""
        if self.tokens_to_train is None:
            return None
        return max(1, math.ceil(self.tokens_to_train / self.useful_tokens_per_step))

    @property
    def useful_fraction(self) -> float:
        """Return the share of a step's tokens that are not padding."""
        documents = self.documents
        if documents is None or documents.packing is Packing.PACKED:
            return 1.0
        return documents.mean(float) / self.seq_len

    def visible_pairs(self, reach: Callable[[int], int] = causal_pairs) -> int:
        """Return the query-key pairs of one sequence that the attention mask lets through, rounded up.

        A padded sequence is computed whole. A packed one is full: a document of length l stands in it
        `seq_len / mean(l)` times its share.

        Args:
            reach: Pairs of one document of a given length.
        """
        documents = self.documents
        if documents is None or documents.packing is Packing.PADDED:
            return reach(self.seq_len)
        shares = [
            (length, Fraction(weight)) for length, weight in zip(documents.lengths, documents.weights, strict=True)
        ]
        pairs = sum(share * reach(length) for length, share in shares)
        return math.ceil(self.seq_len * pairs / sum(share * length for length, share in shares))
