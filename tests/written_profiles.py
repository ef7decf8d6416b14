"""Profiles as the collector would have written them, their figures the analytic model's with some noise."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from planner.inputs.load import Inputs
from planner.profiling.wanted_points import wanted_points
from profiles.analytic import AnalyticCostModel
from profiles.hardware import Cluster
from profiles.measure.journal import Journal
from profiles.measure.points import Point, point
from profiles.measured_operations import operation_of
from profiles.ops import Collective
from profiles.recorded import read_recording

NOISE = 0.03
"""Part by which figures differ from the analytic model's at most."""

SOFTWARE = {"torch": "2.13.0", "driver": "570.1", "cuda": "12.8", "nccl": "2.27.3"}


def run_line(cluster: Cluster, **changed: object) -> dict[str, object]:
    """Return the provenance of a run on a whole cluster."""
    return {
        "date": "2026-11-01T12:00:00Z",
        "device": "somebody's GPU",
        "called": cluster.device.name,
        "kind": "cuda",
        "world_size": cluster.world_size,
        "gpus_per_node": cluster.gpus_per_node,
        "backend": "nccl",
        "host": "node-0",
        "software": SOFTWARE,
        **changed,
    }


def result_of(seconds: float) -> dict[str, object]:
    """Return what the journal says of a point that took so long."""
    return {"seconds": seconds, "p10": seconds, "p90": seconds, "best": seconds, "samples": 9, "dropped": 0}


def seconds_of(point: Point, cluster: Cluster) -> float:
    """Return what a point takes by the analytic model, in a burst."""
    model, operation = AnalyticCostModel(cluster, sustained=False), operation_of(point)
    assert operation is not None, point.key
    found = model.collective(operation) if isinstance(operation, Collective) else model.compute(operation)
    return found.seconds


def noise(seed: int = 0) -> Callable[[], float]:
    """Return what yields factors near 1, the same ones for the same seed."""
    drawn = random.Random(seed)
    return lambda: math.exp(drawn.uniform(-NOISE, NOISE))


def points_for(inputs: Inputs) -> tuple[Point, ...]:
    """Return the points that price a spec."""
    return tuple(entry.point for entry in wanted_points(inputs.model, inputs.cluster, inputs.request))


def write_profile(
    directory: Path,
    points: Sequence[Point],
    cluster: Cluster,
    *,
    factor: Callable[[Point], float] = lambda _: 1.0,
    **changed: object,
) -> Path:
    """Write a profile of points and return its directory.

    Args:
        directory: Where.
        points: What was measured.
        cluster: On what.
        factor: By what a point's time is multiplied, beside the noise.
        changed: What of the provenance differs.
    """
    drawn = noise()
    with Journal(directory, resume=True) as journal:
        journal.begin(run_line(cluster, **changed))
        for point in points:
            journal.measured(point, result_of(seconds_of(point, cluster) * drawn() * factor(point)))
    return directory


def with_copies_beside(cluster: Cluster, folder: Path, beside: float | None) -> Cluster:
    """Return a cluster with a profile of one product, and of products that copies slow down by this factor.

    Args:
        cluster: The cluster.
        folder: Where the profile is written.
        beside: Seconds of a product beside a copy over those alone; None for a profile that does not say.
    """
    with Journal(folder, resume=False) as journal:
        journal.begin(run_line(cluster))
        journal.measured(point("gemm", dtype="bf16", part="forward", batch=1, m=64, n=64, k=64), {"seconds": 1e-5})
        for direction in () if beside is None else ("to_host", "to_device"):
            figures = {"alone": 1.0, "beside": beside, "other_alone": 1.0, "other_beside": 1.0, "seconds": beside}
            entry = point("overlap", dtype="bf16", beside=direction, product=4096, bytes=1 << 24)
            journal.measured(entry, figures)
    return replace(cluster, profile=read_recording(folder).reference)
