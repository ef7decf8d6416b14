"""The options of one vLLM engine: a pool's shape and settings in vLLM's words.

Names and values are those of `vllm serve` at 0.32.0 (`vllm/engine/arg_utils.py`, `vllm/config`). Every number is the
plan's own: the planned batch is `--max-num-seqs`.
"""

from collections.abc import Mapping

from planner.serving_plans.layout import Pool, Role, ServingLayout

Value = str | int | float | bool | dict[str, str | int | bool]

TRANSFER_ROLES = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer"}


def options(layout: ServingLayout, pool: Pool) -> Mapping[str, Value]:
    """Return what the engines of a pool are told, whatever node they stand on: option to value, in reading order."""
    return {
        **_shape(pool),
        **_memory(pool),
        **_scheduler(pool),
        **_experts(pool),
        **_draft(pool),
        **_transfer(layout, pool),
    }


def _shape(pool: Pool) -> dict[str, Value]:
    shape = pool.shape
    found: dict[str, Value] = {
        "tensor-parallel-size": shape.tp,
        "pipeline-parallel-size": shape.pp,
        "data-parallel-size": shape.dp,
        "prefill-context-parallel-size": shape.pcp,
        "decode-context-parallel-size": shape.dcp,
    }
    kept = {name: value for name, value in found.items() if value != 1 or name == "tensor-parallel-size"}
    return {**kept, **({"enable-expert-parallel": True} if shape.expert_parallel else {})}


def _memory(pool: Pool) -> dict[str, Value]:
    settings = pool.settings
    found: dict[str, Value | None] = {
        "gpu-memory-utilization": settings.gpu_memory_utilization,
        "kv-cache-memory-bytes": settings.kv_cache_memory_bytes,
        "kv-cache-dtype": settings.kv_cache_dtype,
        "block-size": settings.block_size,
        "dtype": settings.dtype,
        "quantization": settings.quantization,
    }
    return {name: value for name, value in found.items() if value not in {None, "auto"}}


def _scheduler(pool: Pool) -> dict[str, Value]:
    settings = pool.settings
    return {
        "max-model-len": settings.max_model_len,
        "max-num-seqs": settings.max_num_seqs,
        "max-num-batched-tokens": settings.max_num_batched_tokens,
        "enable-chunked-prefill": settings.chunked_prefill,
        "enable-prefix-caching": settings.prefix_caching,
    }


def _experts(pool: Pool) -> dict[str, Value]:
    if pool.settings.redundant_experts is None:
        return {}
    return {"enable-eplb": True, "eplb-config": {"num_redundant_experts": pool.settings.redundant_experts}}


def _draft(pool: Pool) -> dict[str, Value]:
    draft = pool.settings.draft
    if draft is None:
        return {}
    config: dict[str, str | int | bool] = {
        "method": "draft_model",
        "model": draft.model,
        "num_speculative_tokens": draft.num_tokens,
        "draft_tensor_parallel_size": draft.tp,
    }
    return {"speculative-config": config}


def _transfer(layout: ServingLayout, pool: Pool) -> dict[str, Value]:
    if layout.connector is None:
        return {}
    return {"kv-transfer-config": {"kv_connector": layout.connector, "kv_role": TRANSFER_ROLES[pool.role]}}
