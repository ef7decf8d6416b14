"""Rows of measured runs, made up for tests."""

from planner.accuracy.measurements import Row

RUN = {
    "id": "T-1",
    "source": "made up",
    "source_group": "tests",
    "model": "LLAMA3_8B",
    "seq_len": "8192.0",
    "hardware": "DGX-H100",
    "num_gpus": "8.0",
    "precision": "bf16",
    "tp": "2.0",
    "pp": "1.0",
    "micro_batch": "1.0",
    "global_batch": "128.0",
    "framework": "Megatron-LM",
    "step_time_s": "16.0",
    "status": "ok",
    "mode": "pretrain",
}

SERVING_CELLS = {
    "id": "T-1",
    "source": "made up",
    "model": "meta-llama/Llama-3.1-8B",
    "quant": "fp8",
    "hardware": "h100_sxm",
    "num_gpus": "1.0",
    "tp": "1.0",
    "pp": "1.0",
    "dp": "1.0",
    "ep": "1.0",
    "engine": "vllm",
    "engine_version": "0.12.0",
    "isl": "1024.0",
    "osl": "128.0",
    "concurrency_or_batch": "8.0",
    "total_tokens_per_s_per_gpu": "",
    "output_tokens_per_s_per_gpu": "",
    "ttft_ms": "80",
    "tpot_ms": "8",
    "mode": "agg",
}


def run_row(**changes: str) -> Row:
    """Return the row of a run, some of its cells changed; an empty text says nothing."""
    return Row(id=changes.get("id", RUN["id"]), line=2, cells={**RUN, **changes})
