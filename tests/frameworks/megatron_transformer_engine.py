"""Stands in for Transformer Engine and for the kernels of other mixers, by layers with the same parameters and no math.

Megatron's own wrappers then build what they build on a GPU: which weights are split and which every rank holds is
their decision. Shapes are Transformer Engine's (`transformer_engine/pytorch/module`): a column-parallel layer holds
`out_features / tp_size` rows, a row-parallel one `in_features / tp_size` columns and a whole bias. What is asked of the
package beyond that is an empty class.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

VERSION = "2.20.0"
"""What the target image is said to have."""

PACKAGES = ("transformer_engine", "fla")

ROOTS = ("transformer_engine.pytorch", "transformer_engine.common", "transformer_engine.common.recipe")


class _AnyAttribute(type):
    """Gives a class every attribute it is asked for: another empty class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyAttribute(name, (_Anything,), {})


class _Anything(metaclass=_AnyAttribute):
    """An empty class that can be subclassed, called and asked for anything."""

    def __init__(self, *_args: object, **_keywords: object) -> None:
        pass

    def __init_subclass__(cls, **_keywords: object) -> None:
        pass


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _AnyAttribute(name, (_Anything,), {})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of the packages that are stood in for."""

    def find_spec(self, name: str, _path: object, _target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".", maxsplit=1)[0] not in PACKAGES:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, device="meta"))


class Linear(nn.Module):  # type: ignore[misc]
    """A linear layer, one share of it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        parallel_mode: str | None = None,
        tp_size: int = 1,
        bias: bool = True,
        **_others: object,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.use_bias, self.tp_size = in_features, out_features, bias, tp_size
        self.save_original_input = False
        rows = out_features // tp_size if parallel_mode == "column" else out_features
        columns = in_features // tp_size if parallel_mode == "row" else in_features
        self.weight = _empty(rows, columns)
        if bias:
            self.bias = _empty(rows)


class LayerNormLinear(Linear):
    """A norm and a column-parallel linear layer."""

    def __init__(self, in_features: int, out_features: int, *, normalization: str = "LayerNorm", **others: Any) -> None:
        super().__init__(in_features, out_features, **others)
        self.layer_norm_weight = _empty(in_features)
        if normalization == "LayerNorm":
            self.layer_norm_bias = _empty(in_features)


class RMSNorm(nn.Module):  # type: ignore[misc]
    """A norm with a scale."""

    def __init__(self, normalized_shape: int, **_others: object) -> None:
        super().__init__()
        self.weight = _empty(normalized_shape)


class LayerNorm(RMSNorm):
    """A norm with a scale and a shift."""

    def __init__(self, normalized_shape: int, **_others: object) -> None:
        super().__init__(normalized_shape)
        self.bias = _empty(normalized_shape)


class GroupedLinear(nn.Module):  # type: ignore[misc]
    """Linear layers of several experts."""

    def __init__(
        self,
        num_gemms: int,
        in_features: int,
        out_features: int,
        *,
        parallel_mode: str | None = None,
        tp_size: int = 1,
        bias: bool = True,
        **_others: object,
    ) -> None:
        super().__init__()
        self.num_gemms, self.use_bias, self.save_original_input = num_gemms, bias, False
        rows = out_features // tp_size if parallel_mode == "column" else out_features
        columns = in_features // tp_size if parallel_mode == "row" else in_features
        for index in range(num_gemms):
            setattr(self, f"weight{index}", _empty(rows, columns))
            if bias:
                setattr(self, f"bias{index}", _empty(rows))


class DotProductAttention(nn.Module):  # type: ignore[misc]
    """Attention, whose only parameters are its sinks."""

    def __init__(
        self,
        num_attention_heads: int,
        *_sizes: object,
        tp_size: int = 1,
        softmax_type: str = "vanilla",
        **_others: object,
    ) -> None:
        super().__init__()
        if softmax_type == "learnable":
            self.softmax_offset = _empty(num_attention_heads // tp_size)


class FusedAdam:
    """The optimizer, whose keywords are looked at for formats of states."""

    def __init__(
        self,
        master_weight_dtype: object = None,
        exp_avg_dtype: object = None,
        exp_avg_sq_dtype: object = None,
        use_decoupled_grad: object = None,
    ) -> None:
        pass


class RMSNormGated(RMSNorm):
    """The gated norm of a Mamba-2 mixer."""


def install() -> None:
    """Make the packages importable; call before anything of Megatron is imported."""
    sys.meta_path.insert(0, _Finder())
    import_all(ROOTS)
    engine, pytorch = sys.modules["transformer_engine"], sys.modules["transformer_engine.pytorch"]
    engine.__version__ = VERSION  # type: ignore[attr-defined]
    for layer in (Linear, LayerNormLinear, RMSNorm, LayerNorm, GroupedLinear, DotProductAttention):
        setattr(pytorch, layer.__name__, layer)
    pytorch.ops = importlib.import_module("transformer_engine.pytorch.ops")  # type: ignore[attr-defined]
    pytorch.distributed = importlib.import_module("transformer_engine.pytorch.distributed")  # type: ignore[attr-defined]
    offload = importlib.import_module("transformer_engine.pytorch.cpu_offload")
    offload.get_cpu_offload_context = lambda *_args, **_keywords: (None, None)  # type: ignore[attr-defined]
    optimizers = importlib.import_module("transformer_engine.pytorch.optimizers")
    optimizers.FusedAdam = FusedAdam  # type: ignore[attr-defined]


def import_all(names: Sequence[str]) -> None:
    """Import these modules, each a child of the one that its name begins with."""
    for name in names:
        module = importlib.import_module(name)
        parent, _, child = name.rpartition(".")
        setattr(sys.modules[parent], child, module)
