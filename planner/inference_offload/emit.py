"""A plan of offloaded inference in the words of vLLM and of DeepSpeed: file names to text.

vLLM 0.32.0 (`vllm/config/offload.py`, `vllm/model_executor/offloader/prefetch.py`): the layers are counted in groups of
`--offload-group-size`, and the last `--offload-num-in-group` of each group lie in page-locked host memory and are
brought `--offload-prefetch-step` layers ahead. A plan's number of layers is written as the finest such groups that hold
exactly as many, so that copies are spread over the pass. `--cpu-offload-gb` would read the same weights without
bringing them ahead, and `--kv-offloading-size` keeps caches of sequences that do not run: a plan has none of either.

DeepSpeed 0.19.8, ZeRO-Inference (`deepspeed/runtime/zero/offload_config.py`, `parameter_offload.py`): stage 3 without
an optimizer, with `offload_param` on the CPU or on NVMe. Sizes of buffers are in elements; each must hold the largest
tensor. The live parameters are two layers, one in use and one on its way.
"""

import json
from collections.abc import Mapping

from planner.emit.vllm import config_name, emit_vllm
from planner.errors import NotExpressibleError
from planner.inference_offload.plan import OffloadPlan, TargetPlan
from planner.inference_offload.request import SLICE_TOKENS, Place, Target, Thing
from planner.offloading.drive_step import DRIVE_PATH
from planner.serving_plans.layout import EngineSettings, EngineShape, Pool, Role, ServingLayout

DEEPSPEED_FILE = "ds_config.json"
POOL = "offload"
BUFFERS = 5
"""DeepSpeed's own default of `buffer_count`."""

"""Where the drives are mounted unless the user says otherwise."""

_ASYNCHRONOUS = {"block_size": 1 << 20, "queue_depth": 32, "intra_op_parallelism": 1, "overlap_events": True}
"""Reads of 1 MiB, 32 under way."""


def emit_offload(plan: OffloadPlan, target: Target, *, drive_path: str = DRIVE_PATH) -> Mapping[str, str]:
    """Return the files of a target's plan.

    Args:
        plan: The whole answer.
        target: Whose files.
        drive_path: Where the drives are mounted.

    Raises:
        NotExpressibleError: The target has no plan, or no words for it.
    """
    chosen = plan.of(target)
    if chosen is None:
        raise NotExpressibleError(
            "Nothing that it can be told fits.", target=target.value, hint="Add memory, or quantise the weights."
        )
    match target:
        case Target.VLLM:
            return _vllm(plan, chosen)
        case Target.DEEPSPEED:
            return {DEEPSPEED_FILE: _deepspeed(plan, chosen, drive_path)}
        case Target.ANY:
            raise NotExpressibleError(
                "No released runtime can be told all of it.", target="any", hint="Write --target vllm or deepspeed."
            )


def host_layers(plan: OffloadPlan, chosen: TargetPlan) -> int:
    """Return how many layers lie on the host."""
    share = sum(
        placed.share
        for placed in chosen.placed
        if placed.option.thing is Thing.WEIGHTS and placed.option.use.place is Place.HOST
    )
    return round(share * plan.model.num_layers)


def layer_groups(num_layers: int, on_host: int) -> tuple[int, int]:
    """Return the size of vLLM's groups, and how many of each lie on the host: the finest with just so many in all."""
    for size in range(1, num_layers):
        for last in range(1, size + 1):
            if sum(layer % size >= size - last for layer in range(num_layers)) == on_host:
                return size, last
    return num_layers, on_host


def _vllm(plan: OffloadPlan, chosen: TargetPlan) -> Mapping[str, str]:
    request = plan.request
    tokens = request.prompt_tokens + request.output_tokens
    cache_bytes = sum(placed.num_bytes for placed in chosen.placed if placed.option.thing is Thing.CACHE)
    layout = ServingLayout(
        model=request.served_model,
        pools=(
            Pool(
                name=POOL,
                role=Role.BOTH,
                replicas=1,
                shape=EngineShape(tp=1),
                settings=EngineSettings(
                    max_num_seqs=chosen.batch_size,
                    max_num_batched_tokens=max(tokens, min(SLICE_TOKENS, chosen.batch_size * request.prompt_tokens)),
                    max_model_len=tokens,
                    kv_cache_memory_bytes=_whole_blocks(cache_bytes, tokens),
                    kv_cache_dtype="fp8" if request.cache_name == "fp8" else "auto",
                    dtype="bfloat16" if "bf16" in plan.cluster.device.dense_flops_per_second else "float16",
                    prefix_caching=False,
                ),
                gpu=plan.cluster.device.name,
                gpus_per_node=plan.cluster.gpus_per_node,
            ),
        ),
    )
    files = dict(emit_vllm(layout))
    on_host = host_layers(plan, chosen)
    lines = ["enforce-eager: true"]
    if on_host:
        size, last = layer_groups(plan.model.num_layers, on_host)
        lines += [
            "offload-backend: prefetch",
            f"offload-group-size: {size}",
            f"offload-num-in-group: {last}",
            "offload-prefetch-step: 1",
        ]
    files[config_name(layout.pools[0])] += "\n".join(lines) + "\n"
    return files


def _whole_blocks(cache_bytes: float, tokens: int) -> int:
    """Return the cache with each sequence in whole blocks of 16 tokens, and one block that vLLM keeps for itself."""
    blocks = -(-tokens // 16)
    return int(cache_bytes * blocks * 16 / tokens * (1 + 1 / blocks)) + 1


def _deepspeed(plan: OffloadPlan, chosen: TargetPlan, drive_path: str) -> str:
    place = next(placed.option.use.place for placed in chosen.placed if placed.option.thing is Thing.WEIGHTS)
    if place is Place.GPU:
        raise NotExpressibleError(
            "All weights fit on the GPU, and its plan offloads nothing.",
            target="deepspeed",
            hint="Run the model without ZeRO-Inference.",
        )
    facts = plan.facts
    offload: dict[str, object] = {"device": "cpu", "pin_memory": True}
    if place is Place.DRIVE:
        offload = {
            "device": "nvme",
            "nvme_path": drive_path,
            "pin_memory": True,
            "buffer_count": BUFFERS,
            "buffer_size": facts.largest_tensor_elements,
        }
    sixteen = "bf16" if "bf16" in plan.cluster.device.dense_flops_per_second else "fp16"
    config: dict[str, object] = {
        "train_batch_size": chosen.batch_size,
        "train_micro_batch_size_per_gpu": chosen.batch_size,
        "gradient_accumulation_steps": 1,
        sixteen: {"enabled": True},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "stage3_prefetch_bucket_size": facts.layer_elements,
            "stage3_param_persistence_threshold": plan.model.hidden_size,
            "stage3_max_live_parameters": 2 * facts.layer_elements,
            "stage3_max_reuse_distance": 0,
            "offload_param": offload,
        },
    }
    if place is Place.DRIVE:
        config["aio"] = dict(_ASYNCHRONOUS)
    return json.dumps(config, indent=2) + "\n"
