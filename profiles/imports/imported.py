"""What an importer hands on: runs with their points, and the journal that holds them.

A run of an import has the provenance that its file states; what the file does not say is marked so. `imported` names
the file and its SHA-256, so that every figure can be traced to a line.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiles.errors import ProfileFileError
from profiles.measure.journal import COLLECTOR
from profiles.measure.points import Point

NOT_SAID = "not said"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedPoint:
    """One row of a file.

    Args:
        point: What was measured.
        result: Figures, as the journal has them; empty where the row is no figure.
        reason: Why it is none.
    """

    point: Point
    result: Mapping[str, object]
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRun:
    """What one file says, or one part of it.

    Args:
        file: The file.
        line: Where the part begins.
        sha256: Of the file.
        format: What wrote it.
        device: What its driver calls the GPU.
        world_size: Ranks.
        gpus_per_node: Ranks of one node.
        software: Versions by name.
        backend: What ran collectives.
        host: Where it ran.
        points: Its rows.
    """

    file: str
    line: int
    sha256: str
    format: str
    device: str
    world_size: int
    gpus_per_node: int
    software: Mapping[str, str]
    backend: str
    host: str
    points: tuple[ImportedPoint, ...]


def sha256_of(text: str) -> str:
    """Return the SHA-256 of a file's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def journal_text(runs: Sequence[ImportedRun], *, called: str) -> str:
    """Return the journal of several runs, those of most ranks last: the newest run says how many there are.

    Args:
        runs: The runs.
        called: What the user calls the GPU; empty for what its driver says.

    Raises:
        ProfileFileError: They are of several GPUs, or of nodes of unlike sizes.
    """
    first = runs[0]
    for run in runs:
        if run.device != first.device:
            raise ProfileFileError(
                file=run.file,
                line=run.line,
                message=f"this ran on {run.device}, {first.file} on {first.device}: a profile is of one GPU",
                remedy="Import the files of each GPU into a directory of its own.",
            )
        if run.gpus_per_node != first.gpus_per_node:
            raise ProfileFileError(
                file=run.file,
                line=run.line,
                message=f"this ran on {run.gpus_per_node} GPUs of each node, {first.file} on {first.gpus_per_node}",
                remedy="Say how many GPUs a node has, with --gpus-per-node.",
            )
    lines: list[dict[str, object]] = []
    for number, run in enumerate(sorted(runs, key=lambda run: run.world_size), start=1):
        lines.append(
            {
                "type": "run",
                "run": number,
                "collector": COLLECTOR,
                "device": run.device,
                "kind": "cuda",
                "called": called,
                "world_size": run.world_size,
                "gpus_per_node": run.gpus_per_node,
                "software": dict(run.software),
                "backend": run.backend or NOT_SAID,
                "host": run.host or NOT_SAID,
                "date": NOT_SAID,
                "imported": {"file": run.file, "line": run.line, "sha256": run.sha256, "format": run.format},
            }
        )
        for entry in run.points:
            found = {"type": "failed", "reason": entry.reason} if entry.reason else {"type": "point"}
            figures = {} if entry.reason else {"result": dict(entry.result)}
            lines.append({**found, "run": number, "point": entry.point.as_json(), **figures})
    return "".join(json.dumps(line, ensure_ascii=True, allow_nan=False) + "\n" for line in lines)
