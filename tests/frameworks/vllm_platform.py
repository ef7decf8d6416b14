# ruff: noqa: PLC0415 - vLLM can be imported only after what it lacks here has been stood in for
"""vLLM on a machine without a GPU, as if it had some. Runs in vLLM's own environment, which its CPU wheel makes.

vLLM asks a platform object about the GPU; here one of its own CUDA platforms answers with the job's. Its compiled
kernels are not loaded: the checks of arguments and configurations call none.
"""

import importlib.machinery
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KERNELS = (
    "vllm._C",
    "vllm._C_stable_libtorch",
    "vllm._moe_C",
    "vllm._moe_C_stable_libtorch",
    "vllm.vllm_flash_attn._vllm_fa2_C",
    "vllm.vllm_flash_attn._vllm_fa3_C",
)

RAY: dict[str, tuple[str, ...]] = {
    "ray": ("ObjectRef",),
    "ray.actor": ("ActorHandle",),
    "ray.types": ("ObjectRef",),
    "ray.util": (),
    "ray.util.placement_group": ("PlacementGroup",),
    "ray.util.scheduling_strategies": ("PlacementGroupSchedulingStrategy",),
}
"""What vLLM imports of Ray until its workers start."""

LOWEST_CAPABILITY = {
    "cutlass_group_gemm_supported": 90,
    "cutlass_scaled_mm_supports_block_fp8": 90,
    "cutlass_scaled_mm_supports_fp4": 100,
    "cutlass_scaled_mm_supports_fp8": 89,
}
"""From which compute capability on the kernels say that they can: `csrc/.../scaled_mm_entry.cu` of vLLM, CUDA 13."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The GPUs that vLLM finds on a node."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    count: int
    multiprocessors: int


H100 = Gpu(name="NVIDIA H100 80GB HBM3", capability=(9, 0), memory_bytes=80 << 30, count=8, multiprocessors=132)


def quiet() -> None:
    """Keep vLLM to itself: no network, no words, no files outside its environment. To be called before its import."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(Path(sys.prefix) / "cache"),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }


def stand_in_for_kernels() -> None:
    """Replace the compiled extensions by empty modules; one of them needs instructions not every machine has."""
    for name in KERNELS:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module


def claim_triton() -> None:
    """Let vLLM find triton's CUDA driver; kernels would be compiled only when they are called."""
    import vllm.platforms
    from triton.backends import backends

    backends["nvidia"].driver.is_active = staticmethod(lambda: True)
    vllm.platforms.vllm_version_matches_substr = lambda _: False  # this is no build for the CPU


def claim_ray() -> None:
    """Let vLLM find Ray: before it joins a cluster it imports Ray's modules and calls nothing of them."""
    modules = {name: types.ModuleType(name) for name in RAY}
    for name, words in RAY.items():
        for word in words:
            setattr(modules[name], word, type(word, (), {}))
    sys.modules |= modules
    from vllm.v1.executor import ray_utils

    ray_utils.ray = modules["ray"]


def claim(gpu: Gpu) -> None:
    """Let vLLM and torch find these GPUs."""
    import torch
    import vllm.platforms
    from vllm.platforms.interface import DeviceCapability

    torch.cuda.is_available = lambda: False
    from vllm.platforms.cuda import NonNvmlCudaPlatform

    capability = DeviceCapability(*gpu.capability)
    answers: dict[str, Any] = {
        "get_device_capability": capability,
        "get_device_name": gpu.name,
        "get_device_total_memory": gpu.memory_bytes,
        "device_count": gpu.count,
        "is_fully_connected": True,
        "is_pin_memory_available": True,
        "num_compute_units": gpu.multiprocessors,
        "is_integrated_gpu": False,
        "get_cuda_runtime_major": 13,
    }
    methods: dict[str, Any] = {name: classmethod(_says(answer)) for name, answer in answers.items()}
    vllm.platforms._current_platform = type("StandIn", (NonNvmlCudaPlatform,), methods)()
    properties = types.SimpleNamespace(
        multi_processor_count=gpu.multiprocessors,
        total_memory=gpu.memory_bytes,
        name=gpu.name,
        major=gpu.capability[0],
        minor=gpu.capability[1],
    )
    for name, lowest in LOWEST_CAPABILITY.items():
        setattr(torch.ops._C, name, lambda asked, lowest=lowest: asked >= lowest)
    torch.cuda.device_count = lambda: gpu.count
    torch.cuda.get_device_capability = lambda *_args: gpu.capability
    torch.cuda.get_device_properties = lambda *_args: properties


def _says(answer: Any) -> Any:
    return lambda *_args, **_keywords: answer


def serve_parser() -> tuple[Any, Any]:
    """Return the parser of `vllm`, and that of its `serve`; both moved since 0.11."""
    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:
        from vllm.utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    root = FlexibleArgumentParser(prog="vllm")
    serve = make_arg_parser(root.add_subparsers(dest="subparser").add_parser("serve"))
    return root, serve


def validate(args: Any) -> None:
    """Check what the parser leaves open, as `vllm serve` does."""
    try:
        from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    except ImportError:
        from vllm.entrypoints.openai.cli_args import validate_parsed_serve_args
    validate_parsed_serve_args(args)
