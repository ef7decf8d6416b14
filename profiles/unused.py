"""Which measured points no plan is priced with, and why: so that nothing of a profile is left out silently."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from profiles.hardware import Cluster
from profiles.measure.journal import Entry
from profiles.measure.points import Point
from profiles.measured_memory import rounded_fraction, why_no_figure
from profiles.profiled import has_residuals, measured_launch_seconds, used_copies
from profiles.recorded import Recording
from profiles.served_kernels import kernel_of, unlikeness, unserved
from profiles.served_rows import graph_kernel_seconds
from profiles.uses import Use


def unused(
    recording: Recording,
    cluster: Cluster,
    *,
    launch_seconds: float,
    lost_fraction: float = 0.0,
    use: Use = Use.TRAINING,
) -> tuple[str, ...]:
    """Return what of a profile prices nothing on a cluster, each reason once with how many points it is about.

    Rows that the gates leave out are not among them (`profile check` lists those), nor is a profile of which nothing is
    used at all (`profiles.profiled.remarks` says so).

    Args:
        recording: The profile.
        cluster: What is planned for.
        launch_seconds: What plans are priced with in the profile's place: of training the host's time for a launch, of
            an engine what each small kernel takes in its graphs.
        lost_fraction: What published training runs lose to the allocator, as a part of activations and temporaries.
        use: What is planned.
    """
    if not any(has_residuals(recording, device) for device, _ in cluster.device_counts):
        return ()
    is_own = all(device.name == recording.device for device, _ in cluster.device_counts)
    said: Counter[tuple[str, str]] = Counter()
    for entry in recording.measured:
        suite = entry.point.suite
        if suite == "memory":
            why = _of_memory(entry, cluster, use, lost_fraction=lost_fraction, is_own=is_own)
        else:
            why = _of_time(entry.point, use, is_own=is_own)
        if why is not None:
            said[suite, why] += 1
    said.update(_of_copies(recording, cluster, use))
    said.update(_of_collectives(recording, use))
    if use is not Use.TRAINING:
        said.update(_less_like_engines(recording, use))
    said.update(_of_launches(recording, launch_seconds, use, is_own=is_own))
    return tuple(
        f"not used: {count} {'point' if count == 1 else 'points'} of {suite}: {why}"
        for (suite, why), count in said.items()
    )


_PRICELESS: Mapping[Use, tuple[tuple[str, Callable[[Point], bool], str], ...]] = MappingProxyType(
    {
        Use.TRAINING: (
            ("attention", lambda point: point.word("phase") == "decode", "training does not decode"),
            ("gemm", lambda point: point.word("dtype") == "int8", "training does not multiply in int8"),
            (
                "collectives",
                lambda point: point.word("mode") == "graph",
                "training starts its collectives one by one, not out of graphs",
            ),
        ),
        Use.SERVING: (
            ("copies", lambda _: True, "engines keep everything on GPUs; `offload` reads copies"),
            ("overlap", lambda _: True, "engines run nothing beside their kernels"),
        ),
        Use.OFFLOADING: (
            (
                "collectives",
                lambda point: point.word("kind") != "send_recv",
                "one GPU computes, and others are read by sends",
            ),
            (
                "collectives",
                lambda point: point.word("mode") == "graph",
                "what other GPUs hold is sent without graphs",
            ),
            ("copies", lambda point: point.word("memory") == "pageable" and _is_of_link(point), "buffers are pinned"),
            ("overlap", lambda _: True, "what runs beside kernels slows down training plans alone"),
        ),
    }
)
"""Points of a suite that price nothing, with the reason, by use."""


def _of_time(point: Point, use: Use, *, is_own: bool) -> str | None:
    """Return why one point prices nothing by itself; None where it does, or where others decide."""
    if point.suite == "layer":
        return "whole layers are a check of the sum of their parts: `profile check` makes it"
    for suite, prices_nothing, why in _PRICELESS[use]:
        if point.suite == suite and prices_nothing(point):
            return why
    if use is not Use.TRAINING and (why_not := unserved(point)) is not None:
        return why_not
    return "the slow-down is that of another GPU" if point.suite == "overlap" and not is_own else None


def _of_memory(entry: Entry, cluster: Cluster, use: Use, *, lost_fraction: float, is_own: bool) -> str | None:
    term = entry.point.word("term")
    if not is_own:
        return "context and communicators are those of another GPU"
    if term == "communicator" and use is Use.OFFLOADING:
        return "one GPU computes, without communicators"
    found = why_no_figure(entry, cluster.least_memory_bytes)
    if found is None and term == "allocator":
        if use is not Use.TRAINING:
            return "what an engine holds at once is counted without an allocator's losses"
        rounded = rounded_fraction(entry)
        if rounded <= lost_fraction:
            return (
                f"rounding takes {100 * rounded:.3g} % of fresh tensors, and published runs lose"
                f" {100 * lost_fraction:g} % of activations and temporaries"
            )
    return found


def _of_launches(recording: Recording, seconds: float, use: Use, *, is_own: bool) -> Counter[tuple[str, str]]:
    """Return the launches that bound nothing from below."""
    found: Counter[tuple[str, str]] = Counter()
    of_terms = Counter(entry.point.word("term") for entry in recording.measured if entry.point.suite == "launch")
    if use is Use.TRAINING:
        bare, what = (
            measured_launch_seconds(recording),
            "a framework's launches take {} us each, a bare loop of one kernel less",
        )
        launches, others = sum(of_terms.values()), 0
    else:
        bare, what = (
            graph_kernel_seconds(recording),
            "an engine's small kernels take {} us each, those of a bare graph less",
        )
        launches = of_terms["graph"]
        others = sum(of_terms.values()) - launches
    if others:
        found["launch", "engines start nothing but graphs"] = others
    if launches and (not is_own or bare is None or bare <= seconds):
        told = what.format(f"{seconds * 1e6:.3g}")
        if bare is None or not is_own:
            told = "launches of this GPU's host were not measured by it"
        found["launch", told] = launches
    return found


def _less_like_engines(recording: Recording, use: Use) -> Counter[tuple[str, str]]:
    """Return the points of which the same was measured as engines run it."""
    best: dict[tuple[object, ...], int] = {}
    served = [entry.point for entry in recording.measured if kernel_of(entry.point) is not None]
    if use is Use.OFFLOADING:
        served = [point for point in served if point.suite != "collectives"]
    for point in served:
        best[_same(point)] = min(unlikeness(point), best.get(_same(point), unlikeness(point)))
    return Counter(
        (point.suite, "measured as engines run it as well, which counts")
        for point in served
        if unlikeness(point) > best[_same(point)]
    )


def _same(point: Point) -> tuple[object, ...]:
    """Return what points share that are one kernel to an engine."""
    if point.suite == "collectives":
        return (point.suite, point.word("kind"), point.sizes)
    if point.suite in ("gemm", "experts"):
        return (point.suite, point.word("dtype"), point.sizes)
    return (point.key,)


def _of_copies(recording: Recording, cluster: Cluster, use: Use) -> Counter[tuple[str, str]]:
    """Return the copies that stand back behind others of the same work."""
    found: Counter[tuple[str, str]] = Counter()
    if use is Use.SERVING:
        return found
    copies = [entry for entry in recording.measured if entry.point.suite == "copies" and _is_of_link(entry.point)]
    copies = [entry for entry in copies if _of_time(entry.point, use, is_own=True) is None]
    used = used_copies(copies, cluster.gpus_per_node if use is Use.TRAINING else 1)
    left = Counter(entry.point.word("beside") for entry in copies if entry.point.word("beside") != used)
    for beside, count in left.items():
        those = "those made" if used == "alone" else "those with the node's GPUs"
        why = "GPUs of a node copy at once" if used is None else f"{those} {_HOW[used]} count"
        found["copies", f"made {_HOW[beside]}: {why}"] = count
    return found


def _of_collectives(recording: Recording, use: Use) -> Counter[tuple[str, str]]:
    """Return the collectives started one by one that stand back behind others of the same work."""
    found: Counter[tuple[str, str]] = Counter()
    if use is Use.SERVING:
        return found
    collectives = [entry for entry in recording.measured if entry.point.suite == "collectives"]
    alone = _behind_concurrent([entry for entry in collectives if _of_time(entry.point, use, is_own=True) is None])
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
