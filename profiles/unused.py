"""Which measured points no plan is priced with, and why: so that nothing of a profile is left out silently."""

from collections import Counter
from collections.abc import Callable, Sequence

from profiles.hardware import Cluster
from profiles.measure.journal import Entry
from profiles.measure.points import Point
from profiles.measured_memory import why_no_figure
from profiles.profiled import has_residuals, measured_launch_seconds, used_copies
from profiles.recorded import Recording


def unused(recording: Recording, cluster: Cluster, *, launch_seconds: float) -> tuple[str, ...]:
    """Return what of a profile prices nothing on a cluster, each reason once with how many points it is about.

    Rows that the gates leave out are not among them (`profile check` lists those), nor is a profile of which nothing is
    used at all (`profiles.profiled.remarks` says so).

    Args:
        recording: The profile.
        cluster: What is planned for.
        launch_seconds: The host's time for a launch by which plans are priced without the profile.
    """
    if not any(has_residuals(recording, device) for device, _ in cluster.device_counts):
        return ()
    is_own = all(device.name == recording.device for device, _ in cluster.device_counts)
    said: Counter[tuple[str, str]] = Counter()
    for entry in recording.measured:
        suite = entry.point.suite
        why = _of_memory(entry, cluster, is_own=is_own) if suite == "memory" else _of_time(entry, is_own=is_own)
        if why is not None:
            said[suite, why] += 1
    said.update(_of_sets(recording, cluster))
    bare = measured_launch_seconds(recording)
    launches = sum(entry.point.suite == "launch" for entry in recording.measured)
    if launches and (not is_own or bare is None or bare <= launch_seconds):
        told = f"a framework's launches take {launch_seconds * 1e6:.3g} us each, a bare loop of one kernel less"
        if bare is None or not is_own:
            told = "launches of this GPU's host were not measured by it"
        said["launch", told] = launches
    return tuple(
        f"not used: {count} {'point' if count == 1 else 'points'} of {suite}: {why}"
        for (suite, why), count in said.items()
    )


_PRICELESS: tuple[tuple[str, Callable[[Point], bool], str], ...] = (
    ("layer", lambda _: True, "whole layers are a check of the sum of their parts: `profile check` makes it"),
    ("attention", lambda point: point.word("phase") == "decode", "training does not decode"),
    ("gemm", lambda point: point.word("dtype") == "int8", "training does not multiply in int8"),
    (
        "collectives",
        lambda point: point.word("mode") == "graph",
        "training starts its collectives one by one, not out of graphs",
    ),
    ("copies", lambda point: not _is_of_link(point), "no plan puts anything on drives"),
    (
        "overlap",
        lambda point: point.word("beside") in ("to_device", "to_host"),
        "copies to the host are not taken to slow down what runs beside them",
    ),
)
"""Points of a suite that price nothing, with the reason."""


def _of_time(entry: Entry, *, is_own: bool) -> str | None:
    """Return why one point prices nothing by itself; None where it does, or where others decide."""
    point = entry.point
    for suite, prices_nothing, why in _PRICELESS:
        if point.suite == suite and prices_nothing(point):
            return why
    return "the slow-down is that of another GPU" if point.suite == "overlap" and not is_own else None


def _of_memory(entry: Entry, cluster: Cluster, *, is_own: bool) -> str | None:
    if entry.point.word("term") == "allocator":
        return "it says how fresh tensors are rounded; what training loses, a snapshot of a run shows (`calibrate`)"
    if not is_own:
        return "context and communicators are those of another GPU"
    return why_no_figure(entry, cluster.least_memory_bytes)


def _of_sets(recording: Recording, cluster: Cluster) -> Counter[tuple[str, str]]:
    """Return the points that stand back behind others of the same work."""
    found: Counter[tuple[str, str]] = Counter()
    copies = [entry for entry in recording.measured if entry.point.suite == "copies" and _is_of_link(entry.point)]
    used = used_copies(copies, cluster.gpus_per_node)
    left = Counter(entry.point.word("beside") for entry in copies if entry.point.word("beside") != used)
    for beside, count in left.items():
        why = "GPUs of a node copy at once" if used is None else f"those with the node's GPUs {_HOW[used]} count"
        found["copies", f"made {_HOW[beside]}: {why}"] = count
    alone = _behind_concurrent(recording.measured)
    if alone:
        found["collectives", "measured beside others of their shape as well, which count"] = alone
    return found


_HOW = {"alone": "by one GPU alone", "socket": "of one socket at once", "concurrent": "all at once"}


def _is_of_link(point: Point) -> bool:
    return point.word("direction") in ("to_device", "to_host")


def _behind_concurrent(entries: Sequence[Entry]) -> int:
    """Return how many collectives that ran alone were also measured with all groups of their shape."""
    points = [entry.point for entry in entries if entry.point.suite == "collectives"]
    eager = [point for point in points if point.word("mode") == "eager"]
    beside = {(point.word("kind"), point.sizes) for point in eager if point.word("beside") == "concurrent"}
    return sum(point.word("beside") == "alone" and (point.word("kind"), point.sizes) in beside for point in eager)
