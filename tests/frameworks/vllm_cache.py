# ruff: noqa: PLC0415 - vLLM can be imported only after what it lacks here has been stood in for
"""What vLLM's own code says of an engine's cache and weights, without a GPU. Runs in vLLM's own environment only.

Reads one JSON list of jobs on standard input, writes one JSON list of answers on standard output. A job has the fields
of `tests.frameworks.vllm_oracle`'s, and stands beside a list of bytes, each of which may be what is left for the cache
on every GPU. For each pipeline stage vLLM builds the model's rank on torch's meta device, which holds no numbers, and
says what its layers cache; then `get_kv_cache_configs` deals blocks, or refuses. Stood in for: the process groups
(objects with a size and a rank), kernels (never called), CUDA streams.

What a GPU alone could tell is not here: the peak of the profiling run and the memory of captured graphs."""

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.frameworks import vllm_platform
from tests.frameworks.forks import answer_in_a_fork
from tests.frameworks.vllm_oracle import Job, _gpu, learn_models

KERNEL_NAMESPACES = ("_C", "_moe_C", "_C_cache_ops", "_vllm_fa2_C", "_vllm_fa3_C")
DIRECT_COPIES = ("VLLM_USE_DIRECT_DCP_A2A", "VLLM_USE_DIRECT_DCP_Q_GATHER", "VLLM_USE_DIRECT_DCP_KV_GATHER")
"""Faster copies between GPUs, which would be looked for through process groups; no cache depends on them."""

DEEP_GEMM = "vllm.third_party.deep_gemm"


class Kernel:
    """A compiled kernel that can be named and not called."""

    def __getattr__(self, name: str) -> "Kernel":
        if name.startswith("__"):
            raise AttributeError(name)
        return Kernel()


class Kernels:
    """A namespace of `torch.ops` in which every kernel can be named."""

    def __init__(self, there: Any) -> None:
        self._there = there

    def __getattr__(self, name: str) -> Any:
        return getattr(self._there, name, None) or Kernel()


class Absent:
    """A CUDA stream or event that nothing is put on."""

    def __init__(self, *_args: Any, **_keywords: Any) -> None:
        pass


class Group:
    """A process group, as layers ask for it while they are made."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self.world_size = size
        self.rank = self.rank_in_group = self.local_rank = rank
        self.ranks = list(range(size))
        self.first_rank, self.last_rank = 0, size - 1
        self.is_first_rank, self.is_last_rank = rank == 0, rank == size - 1
        self.device_group = self.cpu_group = self
        self.device_communicator = self.mq_broadcaster = None
        self.use_device_communicator = False
        self.unique_name = "stand-in"

    def size(self) -> int:
        """Return the number of ranks."""
        return self.world_size


def stand_in_for_devices() -> None:
    """Let layers be made without a GPU."""
    import importlib

    import torch
    import vllm.utils.import_utils

    # These register what they do not find as kernels; with kernels that can be named they would find them.
    for name in ("_custom_ops", "model_executor.layers.attention.attention"):
        importlib.import_module(f"vllm.{name}")
    for name in KERNEL_NAMESPACES:
        setattr(torch.ops, name, Kernels(getattr(torch.ops, name)))
    torch.cuda.Stream = torch.cuda.Event = Absent
    from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager

    ExpertMapManager.get_compressed_map_string = lambda _self: ""  # words of a log, made of numbers
    has_module = vllm.utils.import_utils._has_module
    vllm.utils.import_utils._has_module = lambda name: name == DEEP_GEMM or has_module(name)


def _claim_groups(parallel: Any, stage: int) -> None:
    from vllm.distributed import parallel_state

    tp, dp = parallel.tensor_parallel_size, parallel.data_parallel_size
    sizes = {
        "_WORLD": parallel.world_size,
        "_TP": tp,
        "_DP": dp,
        "_DCP": parallel.decode_context_parallel_size,
        "_PCP": parallel.prefill_context_parallel_size,
        "_EP": tp * dp,
        "_EPLB": tp * dp,
    }
    for name, size in sizes.items():
        setattr(parallel_state, name, Group(size))
    parallel_state._PP = Group(parallel.pipeline_parallel_size, stage)


def _config(job: Job, folder: Path) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    parser, _ = vllm_platform.serve_parser()
    args = parser.parse_args(["serve", *job.arguments])
    (folder / "config.json").write_text(json.dumps(job.model), encoding="utf-8")
    args.model = args.model_tag = str(folder)
    return AsyncEngineArgs.from_cli_args(args).create_engine_config(UsageContext.OPENAI_API_SERVER)


def _stage(config: Any, stage: int) -> tuple[dict[str, Any], list[str], int]:
    """Return what the layers of a stage cache, the layouts that their kernels take, and the bytes of its weights."""
    import torch
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.utils.torch_utils import set_default_torch_dtype
    from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts
    from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec

    class OnMeta(torch.overrides.TorchFunctionMode):  # type: ignore[misc] # torch is not installed beside mypy
        """Puts what would go to a GPU on the meta device."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            words = dict(kwargs or {})
            if str(words.get("device", "")).startswith("cuda"):
                words["device"] = "meta"
            return func(*args, **words)

    _claim_groups(config.parallel_config, stage)
    config.compilation_config.static_forward_context.clear()
    with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"), OnMeta():
        model = initialize_model(config)
    current_platform.update_block_size_for_backend(config)
    backends = {layer.get_attn_backend() for layer in get_layers_from_vllm_config(config, AttentionLayerBase).values()}
    weights = {id(weight): weight.numel() * weight.element_size() for weight in model.parameters()}
    layouts = [layout.name for layout in get_supported_kv_cache_layouts(backends)]
    return get_kv_cache_spec(config), layouts, sum(weights.values())


def answer(job: Job, sizes: list[int]) -> dict[str, Any]:
    """Return what vLLM says of one job."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.backends.utils import resolve_kv_cache_layout
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs

    chatter = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(chatter):
        config = _config(job, Path(folder))
        register_all_kvcache_specs(config)
        with set_current_vllm_config(config):
            stages = [_stage(config, stage) for stage in range(config.parallel_config.pipeline_parallel_size)]
            specs = [spec for spec, _, _ in stages]
            every = [spec for stage in specs for spec in stage.values()]
            layout = resolve_kv_cache_layout(config, [layouts for _, layouts, _ in stages], every)
            config.cache_config.kv_cache_layout = layout.name
            blocks: list[int] = []
            errors: list[str] = []
            for size in sizes:
                try:
                    blocks.append(get_kv_cache_configs(config, specs, [size] * len(specs))[0].num_blocks)
                    errors.append("")
                except ValueError as error:
                    blocks.append(0)
                    errors.append(" ".join(str(error).split()))
    weights = max(weights for _, _, weights in stages)
    return {"weight_bytes": weights, "block_tokens": config.cache_config.block_size, "blocks": blocks, "errors": errors}


def main() -> None:
    """Answer every job on standard input; all are for one kind of GPU."""
    vllm_platform.quiet()
    os.environ |= dict.fromkeys(DIRECT_COPIES, "0")
    asked = json.load(sys.stdin)
    jobs = [(Job(**{**job, "capability": tuple(job["capability"])}), sizes) for job, sizes in asked]
    missing = learn_models([job for job, _ in jobs])
    if missing:
        raise RuntimeError(f"classes that want what is not here: {missing}")
    vllm_platform.stand_in_for_kernels()
    vllm_platform.claim(_gpu(jobs[0][0]))
    vllm_platform.claim_triton()
    stand_in_for_devices()
    json.dump([answer_in_a_fork(lambda given: answer(*given), pair) for pair in jobs], sys.stdout)


if __name__ == "__main__":
    main()
