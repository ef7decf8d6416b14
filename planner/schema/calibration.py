"""A calibration as it stands in a file: factors by class, the GPU, and the runs that they come from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from planner.documents import load_document
from planner.errors import InputError
from planner.schema.translate import validated
from profiles.hardware import Calibration, Cluster

KIND = "calibration"


class CalibrationFile(BaseModel):
    """A calibration.

    Args:
        schema_version: Version of this form.
        kind: That it is one.
        device: The GPU that the run was on.
        factors: By class of operations, measured over predicted time.
        source: The run.
        account: How the factors were found, for people; not read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_version: Literal[1]
    kind: Literal["calibration"]
    device: str
    factors: dict[str, float]
    source: str
    account: dict[str, object]


def read_calibration(path: Path, cluster: Cluster) -> Calibration:
    """Return the calibration in a file.

    Raises:
        InputError: It is none, or of another GPU than the cluster's.
    """
    document = load_document(path)
    entry = validated(lambda: CalibrationFile.model_validate(document.data), model=CalibrationFile, document=document)
    devices = {device.name for device, _ in cluster.device_counts}
    if devices != {entry.device}:
        raise InputError(
            f"It was fitted on {entry.device}, the cluster has {', '.join(sorted(devices))}.",
            location=document.locate(("device",)),
            hint="Give a calibration by a run on this GPU.",
        )
    try:
        return Calibration(factors=tuple(sorted(entry.factors.items())), source=entry.source)
    except ValueError as error:
        raise InputError(
            f"{error}.", location=document.locate(("factors",)), hint="Calibrate again; the file is not edited by hand."
        ) from None


def calibration_text(calibration: Calibration, *, device: str, account: Mapping[str, object]) -> str:
    """Return the file of a calibration."""
    content = {
        "schema_version": 1,
        "kind": KIND,
        "device": device,
        "factors": dict(calibration.factors),
        "source": calibration.source,
        "account": dict(account),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
