"""What a measurement ran on: GPU, driver, libraries, clocks, host, date.

Clocks, temperature and power come from `nvidia-smi`, which only reads them; where it is missing, or does not answer,
`unread` says why there are none.
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

from profiles.measure.gpus import named_gpu
from profiles.measure.ranks import Ranks
from profiles.measure.timing import LONGEST_LINE

_QUERIED = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "most_sm_clock_mhz": "clocks.max.sm",
    "temperature_celsius": "temperature.gpu",
    "power_watts": "power.draw",
    "power_limit_watts": "power.limit",
    "slowed_by": "clocks_event_reasons.active",
}
"""What is asked of nvidia-smi, by the names that the journal uses (`nvidia-smi --help-query-gpu`)."""

_OLDER = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}
"""Names of older drivers, which refuse a whole question for one that they do not know."""

SECONDS_TO_ANSWER = 20


def conditions(which: str) -> dict[str, object]:
    """Return clocks, temperature and power of a GPU now, and the moment; without nvidia-smi why there are none.

    Args:
        which: The GPU as nvidia-smi takes it: its PCI address, its UUID, or its number there.
    """
    found: dict[str, object] = {"at": _now()}
    why_not = ""
    for names in (tuple(_QUERIED.values()), tuple(_OLDER.get(name, name) for name in _QUERIED.values())):
        lines, why_not = _asked(",".join(names), f"--id={which}")
        cells = [cell.strip() for cell in lines[0].split(",")] if lines else []
        if len(cells) == len(_QUERIED):
            return found | {name: _number(cell) for name, cell in zip(_QUERIED, cells, strict=True)}
    return found | {"unread": why_not or "nvidia-smi answers something else"}


def _asked(names: str, *more: str) -> tuple[list[str], str]:
    """Return what nvidia-smi answers, a line a GPU, or nothing and why."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "nvidia-smi is missing"
    command = [program, f"--query-gpu={names}", "--format=csv,noheader,nounits", *more]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=True)
    except subprocess.CalledProcessError as error:
        said = (error.stdout or "").strip() or (error.stderr or "").strip() or f"it ends with {error.returncode}"
        return [], f"nvidia-smi: {said.splitlines()[0][:LONGEST_LINE]}"
    except (OSError, subprocess.SubprocessError) as error:
        return [], f"nvidia-smi: {type(error).__name__}"
    return told.stdout.strip().splitlines(), ""


def _number(cell: str) -> object:
    try:
        return float(cell)
    except ValueError:
        return cell


def _driver() -> str:
    lines, _ = _asked("driver_version")  # why not, the conditions say
    return lines[0].strip() if lines else ""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def conditions_of(ranks: Ranks) -> dict[str, object]:
    """Return clocks, temperature and power of this process's GPU now."""
    machine = ranks.machine
    if not machine.is_cuda:
        return {"at": _now()}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    which = named_gpu(machine.device.index or 0, address=machine.address, visible=visible)
    if which is None:
        return {"at": _now(), "unread": f"nvidia-smi has no name for GPU {machine.device.index or 0} of {visible}"}
    return conditions(which)


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
