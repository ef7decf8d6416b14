"""A calibration as it stands in a file: factors by class, the GPU, and the runs that they come from."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from planner.documents import load_document
from planner.errors import InputError
from planner.schema.strict import Strict
from planner.schema.translate import validated
from profiles.hardware import Calibration, Cluster, MemoryCalibration

KIND = "calibration"


class MemoryFile(Strict):
    """What a run held beside the ledger.

    Args:
        lost_fraction: Beside activations and temporaries, as a part of them.
        fixed_bytes: Beside what is there all the time.
    """

    lost_fraction: float
    fixed_bytes: int


class CalibrationFile(Strict):
    """A calibration.

    Args:
        schema_version: Version of this form.
        kind: That it is one.
        device: The GPU that the run was on.
        factors: By class of operations, measured over predicted time; none where the run shows no times.
        memory: What the run held; None where it does not show that.
        source: The run.
        account: How the factors were found, for people; not read.
    """

    schema_version: Literal[1]
    kind: Literal["calibration"]
    device: str
    factors: dict[str, float]
    memory: MemoryFile | None = None
    source: str
    account: dict[str, object]


def read_calibration(path: Path, cluster: Cluster) -> Calibration:
    """Return the calibration in a file.

    Raises:
        InputError: It is none, or of another GPU than the cluster's.
    """
    document = load_document(path)
    if isinstance(document.data, dict) and document.data.get("kind") != "calibration" and "workload" in document.data:
        raise InputError(
            "This is a spec, not a calibration.",
            location=document.locate(),
            hint="`shardwright calibrate PLAN RUN --out FILE` writes one.",
        )
    entry = validated(lambda: CalibrationFile.model_validate(document.data), model=CalibrationFile, document=document)
    devices = {device.name for device, _ in cluster.device_counts}
    if devices != {entry.device}:
        raise InputError(
            f"It was fitted on {entry.device}, the cluster has {', '.join(sorted(devices))}.",
            location=document.locate(("device",)),
            hint="Give a calibration by a run on this GPU.",
        )
    try:
        memory = None if entry.memory is None else MemoryCalibration(**entry.memory.model_dump())
        return Calibration(factors=tuple(sorted(entry.factors.items())), source=entry.source, memory=memory)
    except ValueError as error:
        place = "memory" if "lost_fraction" in str(error) or "fixed_bytes" in str(error) else "factors"
        raise InputError(
            f"{error}.", location=document.locate((place,)), hint="Calibrate again; the file is not edited by hand."
        ) from None


def calibration_text(calibration: Calibration, *, device: str, account: Mapping[str, object]) -> str:
    """Return the file of a calibration."""
    content = {
        "schema_version": 1,
        "kind": KIND,
        "device": device,
        "factors": dict(calibration.factors),
        **({} if calibration.memory is None else {"memory": asdict(calibration.memory)}),
        "source": calibration.source,
        "account": dict(account),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
