"""Constants of the kernel models in `profiles.kernels`, with range and source: fitted, read off or assumed."""

from profiles.constants import Constant, Origin, of_kernels


def _given(value: float, low: float, high: float, origin: Origin, source: str) -> Constant:
    return Constant(value=value, low=low, high=high, source=source, origin=origin)


_PREFILL = "19,028 published prefill timings of vLLM and TensorRT-LLM on H100 and A100 SXM: 14 % median"

ATTENTION_BURST_FRACTION: dict[str, Constant] = {
    "hopper": _given(1.0, 0.3, 1.1, Origin.ASSUMED, "assumption: products beside exponentials at the datasheet rate"),
    "ampere": of_kernels(0.70, 0.3, 1.1, f"products of attention in a burst; {_PREFILL}"),
}
"""Part of the datasheet rate at which the products of attention run beside its exponentials, by architecture."""

ATTENTION_START = _given(
    9e-6,
    0.0,
    1e-4,
    Origin.MEASURED,
    "between the first percentiles of published decode (6 us) and prefill (12 us), H100",
)

ATTENTION_BLOCK_SECONDS = of_kernels(
    2.7e-6, 0.0, 1e-4, f"what a block of queries takes beside its products, to begin and end; {_PREFILL}"
)

PREFILL_PASSES = _given(
    2.0,
    0.0,
    6.0,
    Origin.ASSUMED,
    "assumption: queries, keys, values and output are read and written once around attention (rotation, order, cache)",
)

DECODE_MEMORY_FRACTION = _given(
    0.86, 0.0, 1.0, Origin.MEASURED, "median of published decode that reads over 500 MB of 16-bit keys and values, H100"
)

EXPERTS_START = _given(20e-6, 0.0, 1e-3, Origin.MEASURED, "shortest of published timings of fused experts, H100 SXM")

FLOPS_PER_EXPONENTIAL: dict[str, float] = {"volta": 8.0, "ampere": 8.0}
"""fp32 flops of a compute unit in the time of one exponential, by architecture: 64 lanes of two flops over 16."""

FLOPS_PER_EXPONENTIAL_SINCE = 16.0
"""The same of later architectures, which have 128 lanes.

16 exponentials a clock and unit: CUDA C++ Programming Guide, throughput of native arithmetic instructions; Shah et al.,
FlashAttention-3, arXiv 2407.08608, section 3.1. Assumed of AMD.
"""


def named_kernel_constants() -> dict[str, Constant]:
    """Return every fitted constant of this module by name; those of a table have their key behind it."""
    found: dict[str, Constant] = {}
    for name, value in globals().items():
        if isinstance(value, Constant):
            found[name] = value
        elif isinstance(value, dict) and name.isupper():
            found |= {f"{name}[{key}]": part for key, part in value.items() if isinstance(part, Constant)}
    return found
