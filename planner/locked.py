"""Makes the lock of a plan: `planner.plan_lock` says what it holds."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from planner.documents import Data
from planner.plan import Plan, PlannedLayout
from planner.plan_lock import PlanLock, RankBytes
from planner.report import layout_in_words, layout_settings, memory_by_rank, seconds_by_term
from planner.schema.plan import plan_to_json


def lock_of(plan: Plan, *, files: Mapping[str, str], asked_of: Plan | None = None) -> PlanLock:
    """Return the lock of a plan's best layout.

    Args:
        plan: A plan with at least one layout.
        files: Text of each file that is written, by name.
        asked_of: The plan whose inputs it answers, where these are not its own.
    """
    best = plan.best
    certainty = plan.certainty
    return PlanLock(
        planner=planner_version(),
        target=plan.target.value,
        objective=plan.objective.value,
        status=plan.status.value,
        inputs=_inputs(plan if asked_of is None else asked_of),
        layout=layout_in_words(best.layout),
        settings=layout_settings(best.layout),
        step_seconds=best.step_seconds,
        tokens_per_second_per_gpu=best.tokens_per_second_per_gpu,
        bound=plan.bound,
        gap=plan.gap,
        band_fraction=None if certainty is None else certainty.half_width,
        ratio_fraction=None if certainty is None else certainty.ratio_half_width,
        seconds_by_term=seconds_by_term(best.time),
        ranks=_ranks(best),
        files={name: text_hash(text) for name, text in sorted(files.items())},
    )


def planner_version() -> str:
    """Return the planner with its version, as far as it is installed."""
    try:
        return f"shardwright {version('shardwright')}"
    except PackageNotFoundError:
        return "shardwright"


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _inputs(plan: Plan) -> Mapping[str, tuple[str, str]]:
    document = plan_to_json(plan)["inputs"]
    if not isinstance(document, dict):
        raise TypeError("a plan file holds its inputs")
    request = document["request"]
    if not isinstance(request, dict):
        raise TypeError("a plan file holds its request")
    workload = plan.request.workload
    wanted = {name: value for name, value in request.items() if name != "workload"}
    sizes = f"{workload.seq_len} tokens x {workload.global_batch_size} sequences, {workload.precision.value}"
    pinned = sorted(plan.request.constraints.degrees)
    return {
        "model": (plan.model.name, _data_hash(document["model"])),
        "cluster": (f"{plan.cluster.name}, {plan.cluster.world_size} GPUs", _data_hash(document["cluster"])),
        "workload": (sizes, _data_hash(request["workload"])),
        "wanted": (f"{plan.objective}, pinned: {', '.join(pinned) or 'nothing'}", _data_hash(wanted)),
    }


def _data_hash(data: Data) -> str:
    return text_hash(json.dumps(_canonical(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def _canonical(data: Data) -> Data:
    """Return data with whole numbers written as such: a file read back holds 8192.0 where it was written from 8192."""
    if isinstance(data, dict):
        return {name: _canonical(value) for name, value in data.items()}
    if isinstance(data, list):
        return [_canonical(value) for value in data]
    return int(data) if isinstance(data, float) and data.is_integer() else data


def _ranks(planned: PlannedLayout) -> tuple[RankBytes, ...]:
    return tuple(
        RankBytes(
            rank=memory.rank,
            phase_bytes={phase.value: size for phase, size in memory.phase_bytes.items()},
            limit_bytes=memory.limit_bytes,
        )
        for memory in memory_by_rank(planned.memory, limit_bytes=planned.rank_limits)
    )
