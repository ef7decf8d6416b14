"""What every builder of operators uses: weights, saved tensors, norms, linear layers, element-wise kernels."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from planner.models.blocks import Norm
from planner.models.graph import (
    Divisible,
    Linear,
    Module,
    Operator,
    Parallel,
    Pointwise,
    Region,
    Saved,
    Weight,
)
from planner.models.specs import ModelSpec, Trait
from planner.requests.workload import DType, Precision, TrainMethod, TrainWorkload


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How often an element-wise kernel reads or writes its tensor, each way."""

    forward: int
    backward: int


GATED = Passes(forward=3, backward=5)  # read gate, up, write; read gate, up, grad, write two
PLAIN = Passes(forward=2, backward=3)  # read, write; read input, grad, write
RESIDUAL = Passes(forward=3, backward=3)  # read branch, read stream, write
COPY = Passes(forward=2, backward=2)  # read, write
# Plain PyTorch: gradients of a norm's weights and of its input in kernels of their own; a norm in fp32 counts twice and
# is cast on either side; dropout is a kernel of its own, with its mask of one byte.
EAGER_NORM = Passes(forward=2, backward=5)
EAGER_FP32_NORM = Passes(forward=10, backward=16)
EAGER_DROPPED_RESIDUAL = Passes(forward=6, backward=6)

BLOCK_SCALE_ELEMENTS, BLOCK_SCALE_BYTES = 128, 4
"""Blockwise fp8 scales each 128 elements of an activation by one fp32 number (Transformer Engine's
`Float8BlockScaling`, after DeepSeek-V3, arXiv 2412.19437, section 3.3.2)."""
MX_SCALE_ELEMENTS, MX_SCALE_BYTES = 32, 1
"""MXFP8 scales each 32 elements by one 8-bit exponent (OCP Microscaling Formats specification v1.0, section 5.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of a layer.

    Args:
        operators: In forward order.
        divisible: Sizes that degrees of parallelism must divide.
    """

    operators: tuple[Operator, ...]
    divisible: tuple[Divisible, ...] = ()


class Builder:
    """Builds operators of one model under one workload; holds what they all share.

    Args:
        model: The model.
        workload: The training run.
        eager: Layers are plain PyTorch modules, without fused kernels.
    """

    def __init__(self, model: ModelSpec, workload: TrainWorkload, *, eager: bool = False) -> None:
        self.eager = eager
        self.model = model
        self.workload = workload
        self.hidden = model.hidden_size
        self.dtype = workload.precision.parameter_dtype
        self.gemm_dtype = workload.precision.gemm_dtype
        self.width = self.dtype.num_bytes
        self.lora = workload.lora
        self.base_trains = workload.method is not TrainMethod.LORA

    def weight(
        self,
        name: str,
        *shape: int,
        split_dim: int | None = None,
        expert_dim: int | None = None,
        vocab_dim: int | None = None,
        gemm_operand: bool = False,
    ) -> Weight:
        """Return a weight of the model itself, which a LoRA run freezes."""
        return Weight(
            name=name,
            shape=shape,
            split_dim=split_dim,
            trainable=self.base_trains,
            expert_dim=expert_dim,
            vocab_dim=vocab_dim,
            gemm_operand=gemm_operand,
        )

    def kept(  # noqa: PLR0913 - a saved tensor has this many facts
        self,
        name: str,
        features: int,
        *,
        region: Region,
        granule: int = 1,
        dropped_by: tuple[Module, ...] = (),
        visits: int = 1,
        element_bytes: int | None = None,
    ) -> Saved:
        """Return a saved tensor, in the format that activations are kept in unless `element_bytes` says otherwise."""
        return Saved(
            name=name,
            features=features,
            element_bytes=self.width if element_bytes is None else element_bytes,
            region=region,
            granule=granule,
            dropped_by=dropped_by,
            visits=visits,
        )

    def stream(self, name: str) -> Saved:
        """Return the residual stream as a saved tensor."""
        return self.kept(name, self.hidden, region=Region.RESIDUAL)

    def pointwise(  # noqa: PLR0913 - an operator has this many facts
        self,
        name: str,
        features: int,
        passes: Passes,
        *,
        region: Region,
        weights: tuple[Weight, ...] = (),
        saved: tuple[Saved, ...] = (),
        modules: tuple[Module, ...] = (),
        num_kernels: int = 1,
        visits: int = 1,
        element_bytes: int | None = None,
        is_norm: bool = False,
    ) -> Operator:
        """Return an element-wise kernel that passes over `features` a token."""
        num_bytes = features * (self.width if element_bytes is None else element_bytes)
        return Operator(
            name=name,
            work=Pointwise(
                kernel=name,
                forward_bytes_per_token=passes.forward * num_bytes,
                backward_bytes_per_token=passes.backward * num_bytes,
                region=region,
                num_kernels=num_kernels,
                visits=visits,
                is_norm=is_norm,
            ),
            weights=weights,
            saved=saved,
            modules=modules,
        )

    def norm(
        self,
        name: str,
        *,
        features: int | None = None,
        input_name: str = "",
        dropped_by: tuple[Module, ...] = (),
        modules: tuple[Module, ...] = (),
    ) -> Operator:
        """Return a norm in the residual region, as wide as the stream unless `features` says otherwise.

        Its saved input bears its own name unless `input_name` says otherwise.
        """
        features = self.hidden if features is None else features
        saved = self.kept(input_name or f"{name} input", features, region=Region.RESIDUAL, dropped_by=dropped_by)
        return self.pointwise(
            name,
            features,
            self.norm_passes,
            region=Region.RESIDUAL,
            weights=self.norm_weights(name, features),
            saved=self.norm_saved(name, saved),
            modules=modules,
            is_norm=True,
        )

    @property
    def _normalises_in_fp32(self) -> bool:
        """Return whether norms work on fp32 copies, as plain PyTorch's do whose scale is stored less one."""
        return self.eager and Trait.ZERO_CENTERED_NORM in self.model.traits and self.model.norm.num_vectors > 0

    @property
    def norm_passes(self) -> Passes:
        """Return the passes of a norm."""
        if self._normalises_in_fp32:
            return EAGER_FP32_NORM
        return EAGER_NORM if self.eager else PLAIN

    def norm_saved(self, name: str, entering: Saved, *, rows: int = 1, features: int = 0) -> tuple[Saved, ...]:
        """Return what a norm keeps: its input, of fused kernels; plain PyTorch's statistics are counted too.

        Fused kernels have them as well, an fp32 number or two a row: 4 of some 100,000 bytes a token in a real layer.

        Args:
            name: The norm's.
            entering: Its input.
            rows: Rows a token that are normalised, each with statistics of its own.
            features: Width of what is normalised, if the input is a part of something wider.
        """
        if not self.eager:
            return (entering,)
        wide = DType.FP32.num_bytes
        if self._normalises_in_fp32:
            entering = replace(
                entering,
                name=f"{name} input in fp32",
                features=features or entering.features,
                element_bytes=wide,
            )
        numbers = 1 if self.model.norm is Norm.RMS else 2
        statistics = replace(
            entering, name=f"{name} statistics", features=numbers * rows, granule=numbers, element_bytes=wide
        )
        return (entering, statistics)

    def norm_weights(self, name: str, size: int, *, split_dim: int | None = None) -> tuple[Weight, ...]:
        """Return a norm's scale and shift, as far as the model's norms have them."""
        parts = ("scale", "shift")[: self.model.norm.num_vectors]
        return tuple(self.weight(f"{name} {part}", size, split_dim=split_dim) for part in parts)

    def residual(self, name: str) -> Operator:
        """Return bias, dropout and residual addition in one kernel."""
        saved: tuple[Saved, ...] = ()
        if self.workload.hidden_dropout > 0:
            saved = (Saved(name=f"{name} dropout mask", features=self.hidden, element_bytes=1, region=Region.RESIDUAL),)
        apart = self.eager and bool(saved)
        passes = EAGER_DROPPED_RESIDUAL if apart else RESIDUAL
        return self.pointwise(
            name, self.hidden, passes, region=Region.RESIDUAL, saved=saved, num_kernels=2 if apart else 1
        )

    def linear(  # noqa: PLR0913 - a linear layer has this many facts
        self,
        name: str,
        *,
        in_features: int,
        out_features: int,
        parallel: Parallel,
        bias: bool,
        input_name: str,
        modules: tuple[Module, ...] = (),
        input_dropped_by: tuple[Module, ...] = (),
        whole_heads: int | None = None,
        normed_input: bool = True,
        keeps_original: bool = False,
        shares_input: bool = False,
        needs_input_gradient: bool = True,
    ) -> Operator:
        """Return a linear layer with its weight, bias, adapter and saved input.

        Args:
            name: Its name, which decides whether it carries an adapter.
            in_features: Width of its input.
            out_features: Width of its output.
            parallel: How the weight is split.
            bias: It adds a bias.
            input_name: Name of its saved input.
            modules: Recompute modules that it belongs to.
            input_dropped_by: Recompute modules that produce its input again.
            whole_heads: Key/value heads in its output.
            normed_input: A norm is fused into a column-parallel layer, which keeps its output even where frozen.
            keeps_original: Another operator keeps the input anyway, so recipes that scale from the current tensor
                quantise it again in backward (Megatron-LM's `set_save_original_input`).
            shares_input: Other linear layers read the same input, and each keeps a quantised copy of its own.
            needs_input_gradient: Backward computes the gradient of its input.
        """
        rank = self.lora.rank if self.lora is not None and name in self.lora.target_modules else 0
        column = parallel is Parallel.COLUMN
        split = {Parallel.COLUMN: 0, Parallel.ROW: 1, Parallel.REPLICATED: None}[parallel]
        region = Region.SHARDED if parallel is Parallel.ROW else Region.RESIDUAL
        weights = [self.weight(f"{name} weight", out_features, in_features, split_dim=split, gemm_operand=True)]
        if bias:
            weights.append(self.weight(f"{name} bias", out_features, split_dim=0 if column else None))
        saved: list[Saved] = []
        if self.base_trains or rank or (column and normed_input):
            # An adapter reads the input in full precision.
            whole = self.kept(input_name, in_features, region=region, dropped_by=input_dropped_by)
            in_full = not self.base_trains or (keeps_original and self.workload.precision is not Precision.FP8_DELAYED)
            copies = [whole] if in_full else self.gemm_copies(whole, reader=name if shares_input else "")
            multiplied = self.base_trains or (rank > 0 and not column)
            saved += [replace(copy, weight_input=multiplied) for copy in copies]
        if rank and column:
            # The norm is fused into the layer, so the adapter normalises its input again, into a tensor of its own.
            entering = self.kept(f"{name} adapter input", in_features, region=region, dropped_by=modules)
            saved.append(replace(entering, weight_input=True))
        if rank:
            weights += [
                Weight(
                    name=f"{name} adapter A",
                    shape=(rank, in_features),
                    split_dim=1 if parallel is Parallel.ROW else None,
                    trainable=True,
                ),
                Weight(
                    name=f"{name} adapter B",
                    shape=(out_features, rank),
                    split_dim=0 if column else None,
                    trainable=True,
                ),
            ]
            hidden = self.kept(f"{name} adapter hidden", rank, region=Region.RESIDUAL, dropped_by=modules)
            saved.append(replace(hidden, weight_input=True))
        return Operator(
            name=name,
            work=Linear(
                in_features=in_features,
                out_features=out_features,
                parallel=parallel,
                dtype=self.gemm_dtype,
                trains_weight=self.base_trains,
                needs_input_gradient=needs_input_gradient,
                adapter_rank=rank,
                whole_heads=whole_heads,
            ),
            weights=tuple(weights),
            saved=tuple(saved),
            modules=modules,
        )

    def gemm_copies(self, whole: Saved, *, reader: str = "") -> list[Saved]:
        """Return what a linear layer keeps of an input: the tensor itself, or a quantised copy with its scales.

        Transformer Engine keeps one copy for the weight gradient, quantised along tokens; recipes with one scale for
        a tensor keep no more than that, blocks keep a scale each.

        Args:
            whole: The input in 16 bit.
            reader: The linear layer, where several read this input.
        """
        if self.gemm_dtype is self.dtype:
            return [whole]
        name = f"{whole.name} in {self.gemm_dtype}" + (f" for {reader}" if reader else "")
        copy = replace(whole, name=name, element_bytes=self.gemm_dtype.num_bytes)
        match self.workload.precision:
            case Precision.FP8_BLOCKWISE:
                elements, num_bytes = BLOCK_SCALE_ELEMENTS, BLOCK_SCALE_BYTES
            case Precision.FP8_MXFP8:
                elements, num_bytes = MX_SCALE_ELEMENTS, MX_SCALE_BYTES
            case _:
                return [copy]
        scales = -(-whole.features // elements)
        return [copy, replace(copy, name=f"{copy.name} scales", features=scales, element_bytes=num_bytes, granule=1)]


def share_saved(operators: Iterable[Operator]) -> tuple[Operator, ...]:
    """Return the operators with each saved tensor kept once, by the first operator that names it.

    A tensor that one operator keeps for good and another would drop is kept: only a module that every one of them
    names drops it. It is a weight's input if it is one of any of them.
    """
    operators = tuple(operators)
    kept: dict[str, Saved] = {}
    owner: dict[str, int] = {}
    for index, operator in enumerate(operators):
        for saved in operator.saved:
            owner.setdefault(saved.name, index)
            first = kept.setdefault(saved.name, saved)
            shared = tuple(module for module in first.dropped_by if module in saved.dropped_by)
            multiplied = first.weight_input or saved.weight_input
        kept[saved.name] = replace(first, dropped_by=shared, weight_input=multiplied)
    return tuple(
        replace(operator, saved=tuple(kept[saved.name] for saved in operator.saved if owner[saved.name] == index))
        for index, operator in enumerate(operators)
    )
