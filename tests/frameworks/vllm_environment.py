"""Where vLLM's own Python is, and what it says about `vllm serve` commands."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
VARIABLE = "SHARDWRIGHT_VLLM_PYTHON"
INSTALLED = ROOT / ".frameworks" / "vllm" / "bin" / "python"
SECONDS_TO_START = 600
"""vLLM is imported, and may have to learn a model's class first: half a minute, or minutes on a busy machine."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A `vllm serve` command and the node it is meant for.

    Args:
        arguments: Those after `serve`.
        config_text: YAML behind `--config`.
        model: The model's config.json; without one the command is only parsed.
        gpus_per_node: GPUs that vLLM finds.
        gpu_name: What it finds.
        capability: CUDA compute capability.
        memory_bytes: Of one GPU.
        last_level: Where to stop: parse or heads.
        ray: Ray can be imported, as far as vLLM asks.
        draft: The config.json of the model that guesses ahead; None without.
    """

    arguments: tuple[str, ...]
    config_text: str | None = None
    model: Mapping[str, Any] | None = None
    gpus_per_node: int = 8
    gpu_name: str = "NVIDIA H100 80GB HBM3"
    capability: tuple[int, int] = (9, 0)
    memory_bytes: int = 80 << 30
    last_level: str = "heads"
    ray: bool = False
    draft: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What vLLM said; `failed_level` is empty when it accepted the command, or not_judged where it could not tell.

    Args:
        failed_level: parse, engine_config, heads, not_judged or crash.
        error: vLLM's words.
        resolved: What it made of the command.
    """

    failed_level: str
    error: str
    resolved: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What vLLM makes of a model's cache and weights, on the GPU that holds most.

    Args:
        weight_bytes: Bytes of the weights.
        block_tokens: Tokens of a block.
        blocks: For each size of the cache: its blocks; 0 where vLLM refuses to start.
        errors: For each size: vLLM's words; empty where it starts.
    """

    weight_bytes: int
    block_tokens: int
    blocks: list[int]
    errors: list[str]


def ask_vllm(jobs: Sequence[Job]) -> tuple[Verdict, ...]:
    """Return vLLM's verdict on each job."""
    answers = _said("tests.frameworks.vllm_oracle", [asdict(job) for job in jobs])
    return tuple(Verdict(**answer) for answer in answers)


def ask_for_caches(jobs: Sequence[tuple[Job, Sequence[int]]]) -> tuple[Cache, ...]:
    """Return what vLLM makes of each job's cache, for each of some bytes that a GPU may have left for it."""
    answers = _said("tests.frameworks.vllm_cache", [(asdict(job), list(sizes)) for job, sizes in jobs])
    return tuple(Cache(**answer) for answer in answers)


def _said(module: str, jobs: Sequence[object]) -> list[dict[str, Any]]:
    """Return what a module of ours that runs in vLLM's environment answers."""
    result = subprocess.run(
        [str(vllm_python()), "-m", module],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment(),
        timeout=SECONDS_TO_START + SECONDS_PER_JOB * len(jobs),
    )
    assert result.returncode == 0, result.stderr[-8000:]
    answers: list[dict[str, Any]] = json.loads(result.stdout)
    return answers
