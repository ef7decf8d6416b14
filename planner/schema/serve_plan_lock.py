"""The JSON form of a serving plan's lock, both ways."""

import json
from typing import Literal

from pydantic import Field

from planner.documents import Document
from planner.locks.plan_lock import SCHEMA_VERSION
from planner.locks.serve_lock import LockedPool, ServeLock
from planner.schema.plan_lock import InputFile, Seconds
from planner.schema.strict import Strict
from planner.schema.translate import validated
from planner.serving_plans.plan import SERVE_KIND


class PoolFile(Strict):
    """One pool."""

    name: str
    words: str
    settings: dict[str, str]
    requests_per_second: float = Field(ge=0, allow_inf_nan=False)
    capacity_requests_per_second: float = Field(ge=0, allow_inf_nan=False)
    seconds_by_term: dict[str, float]
    held_bytes: int = Field(ge=0)
    cache_bytes: int


class ServeLockFile(Strict):
    """A lock as it stands in its file."""

    schema_version: int = Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    kind: Literal["serve"]
    planner: str
    objective: str
    status: Literal["optimal", "feasible"]
    inputs: dict[str, InputFile]
    value: float = Field(allow_inf_nan=False)
    bound: float | None = Field(allow_inf_nan=False)
    num_gpus: int = Field(gt=0)
    requests_per_second: float = Seconds
    tokens_per_second_per_gpu: float = Seconds
    price_per_hour: float | None = Field(ge=0, allow_inf_nan=False)
    times: dict[str, float]
    pools: list[PoolFile] = Field(min_length=1)
    files: dict[str, str]

    def to_lock(self) -> ServeLock:
        """Return the lock."""
        return ServeLock(
            planner=self.planner,
            objective=self.objective,
            status=self.status,
            inputs={part: (entry.name, entry.sha256) for part, entry in self.inputs.items()},
            value=self.value,
            bound=self.bound,
            num_gpus=self.num_gpus,
            requests_per_second=self.requests_per_second,
            tokens_per_second_per_gpu=self.tokens_per_second_per_gpu,
            price_per_hour=self.price_per_hour,
            times=self.times,
            pools=tuple(LockedPool(**pool.model_dump()) for pool in self.pools),
            files=self.files,
        )


def is_serve_lock(document: Document) -> bool:
    """Return whether a document is the lock of a serving plan, sound or not."""
    data = document.data
    return isinstance(data, dict) and data.get("kind") == SERVE_KIND and "deployments" not in data and "pools" in data


def serve_lock_from_document(document: Document) -> ServeLock:
    """Return the lock that a file holds.

    Raises:
        InputError: It is damaged, or of another version.
    """
    text = json.dumps(document.data)
    return validated(lambda: ServeLockFile.model_validate_json(text), model=ServeLockFile, document=document).to_lock()


def serve_lock_to_text(lock: ServeLock) -> str:
    """Return the bytes of a lock file, equal for equal plans."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": SERVE_KIND,
        "planner": lock.planner,
        "objective": lock.objective,
        "status": lock.status,
        "inputs": {part: {"name": name, "sha256": digest} for part, (name, digest) in lock.inputs.items()},
        "value": lock.value,
        "bound": lock.bound,
        "num_gpus": lock.num_gpus,
        "requests_per_second": lock.requests_per_second,
        "tokens_per_second_per_gpu": lock.tokens_per_second_per_gpu,
        "price_per_hour": lock.price_per_hour,
        "times": dict(lock.times),
        "pools": [
            {
                "name": pool.name,
                "words": pool.words,
                "settings": dict(pool.settings),
                "requests_per_second": pool.requests_per_second,
                "capacity_requests_per_second": pool.capacity_requests_per_second,
                "seconds_by_term": dict(pool.seconds_by_term),
                "held_bytes": pool.held_bytes,
                "cache_bytes": pool.cache_bytes,
            }
            for pool in lock.pools
        ],
        "files": dict(lock.files),
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
