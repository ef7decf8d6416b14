"""Fitted constants of the kernel models in `profiles.kernels`, with range and source."""

from profiles.constants import Constant, of_kernels

_PREFILL = "19,028 published prefill timings of vLLM and TensorRT-LLM on H100 and A100 SXM: 15 % median"
_DECODE = "19,671 published decode timings of vLLM and TensorRT-LLM on H100 and A100 SXM: 23 % median"
_EXPERTS = "10,386 published timings of fused experts, vLLM and TensorRT-LLM, on H100 and A100 SXM: 23 % median"

ATTENTION_BURST_FRACTION: dict[str, Constant] = {
    "hopper": of_kernels(1.0, 0.3, 1.1, f"products of attention in a burst; {_PREFILL}"),
    "ampere": of_kernels(0.70, 0.3, 1.1, f"products of attention in a burst; {_PREFILL}"),
}
"""Part of the datasheet rate at which the products of attention run beside its exponentials, by architecture."""

ATTENTION_START = of_kernels(9e-6, 0.0, 1e-4, f"launches around one attention; {_PREFILL}")

PREFILL_BLOCK_SECONDS = of_kernels(2.2e-6, 0.0, 1e-4, f"what a block of queries takes to begin and end; {_PREFILL}")

PREFILL_PASSES = of_kernels(1.5, 0.0, 6.0, f"passes over queries, keys, values and output beside attention; {_PREFILL}")

COPIED_MEMORY_FRACTION = of_kernels(
    0.733, 0.0, 1.0, f"part of memory bandwidth at which what stands beside attention and experts is copied; {_PREFILL}"
)

DECODE_BLOCK_SECONDS = of_kernels(
    3.3e-6, 0.0, 1e-4, f"what a block of one sequence and key head takes at least; {_DECODE}"
)

DECODE_MEMORY_FRACTION = of_kernels(
    0.85, 0.0, 1.0, f"part of memory bandwidth at which keys and values are read; {_DECODE}"
)

DECODE_SPLIT_TOKENS = of_kernels(
    256.0, 16.0, 8192.0, f"keys of one sequence below which blocks are not split; {_DECODE}"
)

EXPERTS_START = of_kernels(20e-6, 0.0, 1e-3, f"sorting tokens, and launches of several kernels; {_EXPERTS}")

_NODES = (
    "all_reduce of 2 to 32 nodes of 4 GPUs over Slingshot, 972 NCCL timings: 12 % median with the node count left out;"
    " all_gather and all_to_all, of one machine alone, are 18 to 42 % off"
)

NETWORK_HOP_SECONDS = of_kernels(5.1e-6, 1e-6, 1e-4, f"a short message from node to node; {_NODES}")

RENDEZVOUS_HOPS = of_kernels(6.9, 0.0, 100.0, f"hops more that a message takes whose ends must agree first; {_NODES}")
RENDEZVOUS_BYTES = of_kernels(16e3, 1e2, 1e6, f"bytes at which half of them are paid; {_NODES}")

CHUNK_HOPS = of_kernels(21.0, 0.0, 1000.0, f"hops more that filling a pipeline of chunks takes; {_NODES}")
CHUNK_BYTES = of_kernels(8.6e6, 1e4, 1e9, f"bytes at which half of them are paid; {_NODES}")

EXCHANGE_FRACTION = of_kernels(
    0.5,
    0.1,
    1.0,
    "part of a ring's network bandwidth that all_to_all reaches; 2 and 8 nodes of 4 A100 over Slingshot, NCCL"
    " above 32 MB",
)

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
