"""Where vLLM's own Python is, and what it says about `vllm serve` commands."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VARIABLE = "SHARDWRIGHT_VLLM_PYTHON"
INSTALLED = ROOT / ".frameworks" / "vllm" / "bin" / "python"
SECONDS_TO_START = 120
SECONDS_PER_JOB = 60
"""Far above the second or two that a job takes; only a hang reaches it."""


def vllm_python() -> Path:
    """Return the interpreter that has vLLM; skip without one, except in CI, where it must be there."""
    named = os.environ.get(VARIABLE)
    python = Path(named) if named else INSTALLED
    if not python.exists():
        reason = f"no vLLM: run `bash .ci/frameworks.sh`, or set {VARIABLE}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return python


def environment() -> dict[str, str]:
    """Return the variables of a run: none that would tell vLLM of GPUs, ports or a registry."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "NCCL_", "VLLM_", "HF_"))
    }
