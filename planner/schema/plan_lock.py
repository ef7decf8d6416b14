"""The JSON form of a plan's lock, both ways; `lock_from_document(parse(lock_to_text(lock))) == lock`."""

import json

from pydantic import Field

from planner.documents import Document
from planner.locks.plan_lock import SCHEMA_VERSION, PlanLock, RankBytes
from planner.plans.plan import Status
from planner.schema.strict import Strict
from planner.schema.translate import validated

Seconds = Field(gt=0, allow_inf_nan=False)
Hash = Field(pattern=r"^[0-9a-f]{64}$")


class InputFile(Strict):
    """One input: what it is called, and the hash of its canonical JSON."""

    name: str
    sha256: str = Hash


class RankFile(Strict):
    """Memory of one pipeline rank."""

    rank: int = Field(ge=0)
    phase_bytes: dict[str, int] = Field(min_length=1)
    limit_bytes: int = Field(gt=0)


class LockFile(Strict):
    """A lock as it stands in its file."""

    schema_version: int = Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    planner: str
    target: str
    objective: str
    status: Status = Field(strict=False)
    inputs: dict[str, InputFile]
    layout: str
    settings: dict[str, str]
    step_seconds: float = Seconds
    tokens_per_second_per_gpu: float = Seconds
    bound: float | None = Field(allow_inf_nan=False)
    gap: float | None = Field(allow_inf_nan=False)
    band_fraction: float | None = Field(ge=0, allow_inf_nan=False)
    ratio_fraction: float | None = Field(ge=0, allow_inf_nan=False)
    seconds_by_term: dict[str, float]
    ranks: list[RankFile] = Field(min_length=1)
    files: dict[str, str]

    def to_lock(self) -> PlanLock:
        """Return the lock."""
        return PlanLock(
            planner=self.planner,
            target=self.target,
            objective=self.objective,
            status=self.status.value,
            inputs={part: (entry.name, entry.sha256) for part, entry in self.inputs.items()},
            layout=self.layout,
            settings=self.settings,
            step_seconds=self.step_seconds,
            tokens_per_second_per_gpu=self.tokens_per_second_per_gpu,
            bound=self.bound,
            gap=self.gap,
            band_fraction=self.band_fraction,
            ratio_fraction=self.ratio_fraction,
            seconds_by_term=self.seconds_by_term,
            ranks=tuple(
                RankBytes(rank=entry.rank, phase_bytes=entry.phase_bytes, limit_bytes=entry.limit_bytes)
                for entry in self.ranks
            ),
            files=self.files,
        )


def lock_from_document(document: Document) -> PlanLock:
    """Return the lock that a file holds.

    Raises:
        InputError: It is damaged, or of another version.
    """
    text = json.dumps(document.data)
    return validated(lambda: LockFile.model_validate_json(text), model=LockFile, document=document).to_lock()


def lock_to_text(lock: PlanLock) -> str:
    """Return the bytes of a lock file, equal for equal plans."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "planner": lock.planner,
        "target": lock.target,
        "objective": lock.objective,
        "status": lock.status,
        "inputs": {part: {"name": name, "sha256": digest} for part, (name, digest) in lock.inputs.items()},
        "layout": lock.layout,
        "settings": dict(lock.settings),
        "step_seconds": lock.step_seconds,
        "tokens_per_second_per_gpu": lock.tokens_per_second_per_gpu,
        "bound": lock.bound,
        "gap": lock.gap,
        "band_fraction": lock.band_fraction,
        "ratio_fraction": lock.ratio_fraction,
        "seconds_by_term": dict(lock.seconds_by_term),
        "ranks": [
            {"rank": rank.rank, "phase_bytes": dict(rank.phase_bytes), "limit_bytes": rank.limit_bytes}
            for rank in lock.ranks
        ],
        "files": dict(lock.files),
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
