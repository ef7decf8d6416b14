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


def run_row(**changes: str) -> Row:
    """Return the row of a run, some of its cells changed; an empty text says nothing."""
    return Row(id=changes.get("id", RUN["id"]), line=2, cells={**RUN, **changes})
