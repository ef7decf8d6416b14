"""Makes the lock of a plan: `planner.locks.plan_lock` and `planner.locks.serve_lock` say what they hold."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from planner.documents import Data
from planner.locks.lock_changes import SHOWN_DIGITS
from planner.locks.plan_lock import PlanLock, RankBytes
from planner.locks.serve_lock import LockedPool, ServeLock
from planner.plans.comparison import seconds_by_term
from planner.plans.layout_words import layout_in_words, layout_settings
from planner.plans.plan import Plan, PlannedLayout
from planner.plans.rank_memory import memory_by_rank
from planner.schema.plan import plan_to_json
from planner.schema.serve_plan_file import serve_plan_to_json
from planner.serving_plans.plan import PlannedPool, ServePlan
from planner.serving_search.traffic import mean_of
from profiles.hardware import Cluster


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


def serve_lock_of(plan: ServePlan, *, files: Mapping[str, str]) -> ServeLock:
    """Return the lock of a serving plan.

    Args:
        plan: A plan with at least one deployment.
        files: Text of each file that is written, by name.
    """
    assert plan.value is not None, "a plan that starts something has a value"
    gpus = sum(cluster.world_size for cluster in plan.clusters)
    tokens = plan.requests_per_second * mean_of(plan.request.workload).output
    return ServeLock(
        planner=planner_version(),
        objective=plan.objective.value,
        status=plan.status.value,
        inputs=_serve_inputs(plan),
        value=plan.value,
        bound=plan.bound,
        num_gpus=plan.num_gpus,
        requests_per_second=plan.requests_per_second,
        tokens_per_second_per_gpu=tokens / gpus,
        price_per_hour=plan.price_per_hour,
        times={
            f"{way} {metric}": spread.stated
            for deployment in plan.deployments
            for way, served in zip(deployment.ways, deployment.served, strict=True)
            for metric, spread in (("ttft", served.ttft), ("tpot", served.tpot), ("e2e", served.e2e))
        },
        pools=tuple(_locked_pool(entry) for entry in plan.pools),
        files={name: text_hash(text) for name, text in sorted(files.items())},
    )


def _locked_pool(entry: PlannedPool) -> LockedPool:
    pool = entry.pool
    told = {**asdict(pool.shape), **asdict(pool.settings)}
    draft = told.pop("draft") or {}
    told |= {f"draft {name}": value for name, value in draft.items()}
    return LockedPool(
        name=pool.name,
        words=f"{pool.replicas} x {pool.shape.num_gpus} {pool.gpu}",
        settings={"replicas": str(pool.replicas), "gpu": pool.gpu, **{name: str(told[name]) for name in told}},
        requests_per_second=entry.requests_per_second,
        capacity_requests_per_second=entry.capacity_requests_per_second,
        seconds_by_term=dict(entry.step_seconds),
        held_bytes=sum(item.num_bytes for item in entry.memory),
        cache_bytes=entry.cache_bytes,
    )


def _serve_inputs(plan: ServePlan) -> Mapping[str, tuple[str, str]]:
    document = serve_plan_to_json(plan)["inputs"]
    if not isinstance(document, dict):
        raise TypeError("a plan file holds its inputs")
    request = document["request"]
    if not isinstance(request, dict):
        raise TypeError("a plan file holds its request")
    wanted = {name: value for name, value in request.items() if name != "workload"}
    clusters = ", ".join(_in_words(cluster) for cluster in plan.clusters)
    workload = plan.request.workload
    traffic = f"{workload.arrivals}, {workload.quantization}, cache {workload.kv_cache_dtype}"
    pinned = sorted(plan.request.constraints.degrees)
    return {
        "model": (plan.model.name, _data_hash(document["model"])),
        "clusters": (clusters, _data_hash(document["clusters"])),
        "workload": (traffic, _data_hash(request["workload"])),
        "wanted": (f"{plan.objective}, pinned: {', '.join(pinned) or 'nothing'}", _data_hash(wanted)),
    }


def _in_words(cluster: Cluster) -> str:
    """Return a cluster in few words, with the beginning of the SHA-256 of the profile that prices it."""
    measured = "" if cluster.profile is None else f", profile {cluster.profile.sha256[:SHOWN_DIGITS]}"
    return f"{cluster.name}, {cluster.world_size} GPUs{measured}"


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
        "cluster": (_in_words(plan.cluster), _data_hash(document["cluster"])),
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
