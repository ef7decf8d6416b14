"""Where Megatron-LM's own Python is, and what it says about jobs."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from planner.emit.megatron import environment
from planner.emit.megatron_arguments import arguments
from planner.plans.plan import Plan

ROOT = Path(__file__).parents[2]
VARIABLE = "SHARDWRIGHT_MEGATRON_PYTHON"
INSTALLED = ROOT / ".frameworks" / "megatron" / "bin" / "python"
SECONDS_PER_JOB = 120
"""Far above the few seconds that a job takes; only a hang reaches it."""

LARGEST_QUICK_WORLD = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What Megatron built for one pipeline rank."""

    pipeline_rank: int
    layers: tuple[int, ...]
    parameters: int
    expert_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What Megatron said about one job; `failed_level` is empty when it accepted it."""

    failed_level: str
    error: str
    data_parallel_size: int
    num_microbatches: int
    padded_vocab_size: int
    config: Mapping[str, str]
    built: tuple[Built, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An argument list and the machine it is meant for.

    Args:
        arguments: What the training program is given.
        environment: What the launch script exports.
        world_size: Processes.
        gpus_per_node: Processes of one node.
        capability: CUDA compute capability of the GPU.
        pipeline_ranks: Ranks to build.
        last_level: Where to stop: parse, microbatches or build.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    world_size: int
    gpus_per_node: int
    capability: tuple[int, int]
    pipeline_ranks: tuple[int, ...]
    last_level: str = "build"


def job_of(plan: Plan, index: int = 0) -> Job:
    """Return the job that the scripts of one of the plan's layouts start.

    Of a long pipeline the ends and their neighbours are built; in a world whose groups take long to make, the ends.
    """
    layout = plan.plans[index].layout
    major, _, minor = (plan.cluster.device.compute_capability or "9.0").partition(".")
    ranks = {0, layout.pp - 1}
    if layout.world_size <= LARGEST_QUICK_WORLD:
        ranks |= {1, layout.pp - 2}
    return Job(
        arguments=arguments(plan.model, plan.request.workload, layout),
        environment={
            name: value
            for name, value in environment(plan.request.workload, layout, plan.cluster).items()
            if value is not None
        },
        world_size=layout.world_size,
        gpus_per_node=plan.cluster.gpus_per_node,
        capability=(int(major), int(minor)),
        pipeline_ranks=tuple(sorted(rank for rank in ranks if 0 <= rank < layout.pp)),
    )


def megatron_python() -> Path:
    """Return the interpreter that has megatron-core; skip without one, except in CI, where it must be there."""
    named = os.environ.get(VARIABLE)
    python = Path(named) if named else INSTALLED
    if not python.exists():
        reason = f"no megatron-core: run `bash .ci/frameworks.sh`, or set {VARIABLE}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return python


def run_beside_megatron(module: str, cases: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
    """Return what a module of the framework environment answers to each case."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "NVTE_", "NCCL_"))}
    result = subprocess.run(
        [str(megatron_python()), "-m", module],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=clean,
        timeout=60 + SECONDS_PER_JOB * len(cases),
    )
    assert result.returncode == 0, result.stderr
    answers: list[dict[str, Any]] = json.loads(result.stdout)
    return answers


def ask_megatron(jobs: Sequence[Job]) -> tuple[Verdict, ...]:
    """Return Megatron's verdict on each job."""
    request = [
        {
            "arguments": job.arguments,
            "environment": dict(job.environment),
            "world_size": job.world_size,
            "gpus_per_node": job.gpus_per_node,
            "capability": job.capability,
            "pipeline_ranks": job.pipeline_ranks,
            "last_level": job.last_level,
        }
        for job in jobs
    ]
    answers = run_beside_megatron("tests.frameworks.megatron_oracle", request)
    return tuple(
        Verdict(
            failed_level=answer["failed_level"],
            error=answer["error"],
            data_parallel_size=answer["data_parallel_size"],
            num_microbatches=answer["num_microbatches"],
            padded_vocab_size=answer["padded_vocab_size"],
            config=answer["config"],
            built=tuple(
                Built(
                    pipeline_rank=stage["pipeline_rank"],
                    layers=tuple(stage["layers"]),
                    parameters=stage["parameters"],
                    expert_parameters=stage["expert_parameters"],
                )
                for stage in answer["stages"]
            ),
        )
        for answer in answers
    )
