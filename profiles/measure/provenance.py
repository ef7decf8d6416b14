"""What a measurement ran on: GPU, driver, libraries, clocks, host, date.

Clocks, temperature and power come from `nvidia-smi`, which only reads them; where it is missing they are left out.
Of the environment only the variables of NCCL and of gloo are kept, which change what a collective takes.
"""

import datetime
import os
import platform
import shutil
import socket
import subprocess
from pathlib import Path

import torch

from profiles.measure.ranks import Ranks

_QUERIED = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "most_sm_clock_mhz": "clocks.max.sm",
    "temperature_celsius": "temperature.gpu",
    "power_watts": "power.draw",
    "power_limit_watts": "power.limit",
    "slowed_by": "clocks_throttle_reasons.active",
}
"""What is asked of nvidia-smi, by the names that the journal uses (`nvidia-smi --help-query-gpu`)."""

SECONDS_TO_ANSWER = 20


def conditions(index: int) -> dict[str, object]:
    """Return clocks, temperature and power of a GPU now, and the moment; only the moment without nvidia-smi."""
    found: dict[str, object] = {"at": _now()}
    program = shutil.which("nvidia-smi")
    if program is None:
        return found
    command = [program, f"--query-gpu={','.join(_QUERIED.values())}", "--format=csv,noheader,nounits", f"-i={index}"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=True)
    except (OSError, subprocess.SubprocessError):
        return found
    cells = [cell.strip() for cell in told.stdout.strip().split(",")]
    if len(cells) != len(_QUERIED):
        return found
    for name, cell in zip(_QUERIED, cells, strict=True):
        found[name] = _number(cell)
    return found


def _number(cell: str) -> object:
    try:
        return float(cell)
    except ValueError:
        return cell


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader", "-i=0"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _visible_index(ranks: Ranks) -> int:
    """Return the number that nvidia-smi gives this process's GPU."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    numbers = [int(part) for part in listed.split(",") if part.strip().isdigit()]
    index = ranks.machine.device.index or 0
    return numbers[index] if index < len(numbers) else index


def conditions_of(ranks: Ranks) -> dict[str, object]:
    """Return clocks, temperature and power of this process's GPU now."""
    return conditions(_visible_index(ranks)) if ranks.machine.is_cuda else {"at": _now()}


def provenance(ranks: Ranks, *, called: str) -> dict[str, object]:
    """Return what a run says of itself.

    Args:
        ranks: The job.
        called: What the user calls the GPU: a name of the catalogue or of a cluster file; empty for its own name.
    """
    found: dict[str, object] = {
        "date": _now(),
        "device": _cpu_name(),
        "kind": "cuda" if ranks.machine.is_cuda else "cpu",
        "called": called,
        "world_size": ranks.world_size,
        "gpus_per_node": ranks.per_node,
        "backend": ranks.backend,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cache_bytes": ranks.machine.cache_bytes,
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(("NCCL_", "GLOO_"))},
    }
    software = {"torch": str(torch.__version__)}
    if ranks.machine.is_cuda:
        properties = torch.cuda.get_device_properties(ranks.machine.device)
        found |= {
            "device": properties.name,
            "memory_bytes": int(properties.total_memory),
            "num_compute_units": int(properties.multi_processor_count),
            "compute_capability": f"{properties.major}.{properties.minor}",
        }
        found["sockets"] = list(ranks.sockets)
        software |= {
            "driver": _driver(),
            "cuda": str(torch.version.cuda or torch.version.hip or ""),
            "cudnn": str(torch.backends.cudnn.version() or ""),
            "nccl": ".".join(str(part) for part in torch.cuda.nccl.version()),
        }
    else:
        found["threads"] = torch.get_num_threads()
    found["software"] = {name: version for name, version in software.items() if version}
    found["conditions"] = conditions_of(ranks)
    return found
