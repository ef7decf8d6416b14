"""What grouped products of routed experts reach, beside the same product alone, by their number format.

A kernel that multiplies many experts at once reaches less of the tensor cores than one dense product: its tiles end
within experts, and scales are applied per block. Read off published timings of the fused experts of vLLM and
TensorRT-LLM on H100 with balanced loads: `compute` from 2,048 tokens on, `memory` at 16 to 256, `start` at one or two.
A100's timings in bf16 give the same fraction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from profiles.constants import Constant, Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """One kind of grouped kernel.

    Args:
        compute: Part of the rate of a dense product of the same tiles.
        memory: Part of its memory bandwidth.
        start: Launch, sorting of tokens and summing of their results.
    """

    compute: Constant
    memory: Constant
    start: Constant


_TIMINGS = "published timings of fused experts on H100, balanced, {rows} rows of two engines"


def _grouped(compute: float, memory: float, start: float, source: str, *, origin: Origin = Origin.MEASURED) -> Grouped:
    def constant(value: float, high: float) -> Constant:
        return Constant(value=value, low=0.0, high=high, source=source, origin=origin)

    return Grouped(compute=constant(compute, 1.2), memory=constant(memory, 1.2), start=constant(start, 1e-3))


GROUPED: Mapping[str, Grouped] = MappingProxyType(
    {
        "bf16": _grouped(0.65, 1.0, 20e-6, _TIMINGS.format(rows="1,470")),
        "fp8": _grouped(0.55, 1.0, 16e-6, "published timings of TensorRT-LLM's fused experts on H100, 1,020 rows"),
        "fp8_block": _grouped(0.45, 1.0, 16e-6, _TIMINGS.format(rows="1,380")),
        "int8": _grouped(0.55, 1.0, 16e-6, "assumption: as fp8", origin=Origin.ASSUMED),
        "int8_wo": _grouped(
            0.65, 0.8, 20e-6, "assumption: as bf16, weights unpacked on the way", origin=Origin.ASSUMED
        ),
        "int4": _grouped(0.8, 0.6, 50e-6, "assumption: as mxfp4", origin=Origin.ASSUMED),
        "nvfp4": _grouped(0.5, 1.0, 16e-6, "assumption: as fp8 by blocks", origin=Origin.ASSUMED),
        "mxfp4": _grouped(0.8, 0.6, 50e-6, "published timings of vLLM's fused experts on H100, balanced, 225 rows"),
    }
)
"""Kinds by the name of the quantisation."""

_UNPACKED_BY = {
    ("mxfp4", "trtllm"): _grouped(
        0.3, 1.0, 40e-6, "published timings of TensorRT-LLM's fused experts on H100, balanced, 135 rows"
    ),
}
"""Kinds that an engine has kernels of its own for, by the names of both, on GPUs without a rate for fp4."""


def grouped_kernels(name: str, *, engine: str, has_fp4: bool) -> Grouped:
    """Return what an engine's grouped products reach.

    Args:
        name: The quantisation.
        engine: The engine.
        has_fp4: The GPU multiplies fp4.
    """
    own = None if has_fp4 else _UNPACKED_BY.get((name, engine))
    return GROUPED[name] if own is None else own
