"""Where DeepSpeed's own Python is, what it says about configurations, and the steps that emitted files take."""

import json
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from planner.emit.deepspeed import CONFIG_FILE, emit_deepspeed
from planner.plans.plan import Plan
from planner.readers.deepspeed import read_deepspeed

ROOT = Path(__file__).parents[2]
VARIABLE = "SHARDWRIGHT_DEEPSPEED_PYTHON"
INSTALLED = ROOT / ".frameworks" / "deepspeed" / "bin" / "python"
SECONDS_TO_START = 300
"""The first starts build two operators, about 90 s each."""

SECONDS_PER_JOB = 60
"""Far above the few seconds that a job takes; only a hang reaches it."""

GIVEN_PORTS: set[str] = set()
"""Ports that were given to jobs: what these leave in shared memory carries them in its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run of the training program printed.

    Args:
        parameters: What a process of each pipeline stage computes with.
        losses: Loss of each step.
        norms: Norm of the gradients of each step.
        kept: Elements of the first process whose optimizer states stayed on the accelerator, beside others on the host.
    """

    parameters: tuple[int, ...]
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    kept: int


def deepspeed_python() -> Path:
    """Return the interpreter that has deepspeed; skip without one, except in CI, where it must be there."""
    named = os.environ.get(VARIABLE)
    python = Path(named) if named else INSTALLED
    if not python.exists():
        reason = f"no deepspeed: run `bash .ci/frameworks.sh`, or set {VARIABLE}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return python


def environment() -> dict[str, str]:
    """Return the variables of a run on the CPU: one thread a process, the environment's own programs first.

    DeepSpeed builds an operator when it is first used, behind a lock that a killed run leaves for ever: it is built
    inside the environment, so that a new environment starts without one.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "NCCL_", "DS_"))}
    path = f"{deepspeed_python().parent}{os.pathsep}{os.environ['PATH']}"
    built = str(deepspeed_python().parents[1] / "extensions")
    return clean | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": path, "TORCH_EXTENSIONS_DIR": built}


def free_port() -> str:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    GIVEN_PORTS.add(port)
    return port


def run_beside_deepspeed(module: str, request: Mapping[str, object] | Sequence[object], *, jobs: int) -> Any:
    """Return what a module answers in DeepSpeed's environment.

    Processes of one address and port share buffers: without any of its own, two jobs at a time would take each other's.
    """
    result = subprocess.run(
        [str(deepspeed_python()), "-m", module],
        cwd=ROOT,
        env=environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()},
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS_TO_START + SECONDS_PER_JOB * jobs,
    )
    assert result.returncode == 0, result.stderr[-8000:]
    return json.loads(result.stdout.splitlines()[-1])


def write_files(plan: Plan, folder: Path, changes: Mapping[str, object]) -> None:
    """Write the emitted files, with sections of the configuration replaced; None removes one."""
    folder.mkdir(parents=True)
    files = dict(emit_deepspeed(plan))
    config: dict[str, object] = json.loads(files[CONFIG_FILE]) | changes
    files[CONFIG_FILE] = json.dumps({key: value for key, value in config.items() if value is not None})
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def program_arguments(plan: Plan) -> tuple[str, ...]:
    """Return what the emitted script tells the training program, but for the two files."""
    files = emit_deepspeed(plan)
    launch = read_deepspeed(files["launch.sh"], file="launch.sh", config=files[CONFIG_FILE]).launch
    words = [(flag.name, *flag.values) for flag in launch.flags]
    return tuple(word for row in words if row[0] not in {"--deepspeed-config", "--model-facts"} for word in row)


def trained(output: str) -> Trained:
    """Return what the program printed, as numbers."""
    lines = [line.split() for line in output.splitlines()]
    parameters = next(line[1:] for line in lines if line[:1] == ["parameters"])
    steps = [dict(zip(line[2::2], line[3::2], strict=True)) for line in lines if line[:1] == ["step"]]
    return Trained(
        parameters=tuple(int(count) for count in parameters),
        losses=tuple(float(step["loss"]) for step in steps),
        norms=tuple(float(step["grad_norm"]) for step in steps),
        kept=next((int(line[1]) for line in lines if line[:1] == ["kept"]), 0),
    )
