"""The cost model of a cluster that was measured: its own figures first, interpolated between, analytic elsewhere.

    seconds(op) = analytic(op) * exp(residual(op)),  residual = log(measured / analytic in a burst)

with residuals interpolated between the measured shapes of a family (`profiles.residuals`), so that a shape that was
measured has its measured time, times what hours of training add to a burst (1 where nothing is known to). Operations
of a family without rows are analytic. Rows that do not pass the gates (`profiles.gates`) are left out.

A profile belongs to one GPU. One with the same chip takes its residuals, marked as assumed; on any other GPU nothing
of it is used, for between generations residuals carry over worse than none. Collectives are those of nodes with as many
GPUs; that their network is the same is taken for granted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from statistics import median

from profiles.analytic import AnalyticCostModel
from profiles.chips import is_same_chip
from profiles.collectives import CollectivePrices
from profiles.estimate import CostModel, Estimate, Source
from profiles.hardware import Cluster, Device
from profiles.judging import Judged, judge, judged_on, measured_device, measured_nodes, price_of, seconds_of
from profiles.measure.journal import Entry
from profiles.measure.points import Point
from profiles.measured_operations import FAMILIES, Family, operation_of, place_of
from profiles.ops import Attention, Collective, ComputeOp
from profiles.recorded import Recording
from profiles.residuals import Query, ResidualTable
from profiles.software import TensorParallelOverlap
from profiles.tables import Implementation, Shape, TableRow

MOST_LEFT_OUT = 200
"""Shapes of a family that are left out one by one; chosen, so that it takes seconds."""


class ProfiledCostModel:
    """Prices operations by a profile; see the module's docstring.

    Args:
        analytic: Prices everything as hours of training run it.
        fallback: Prices what was not measured.
        recording: The profile.
        between_nodes: Its collectives between nodes ran on this network.
    """

    def __init__(
        self, analytic: AnalyticCostModel, fallback: CostModel, recording: Recording, *, between_nodes: bool = True
    ) -> None:
        self.analytic = analytic
        self.fallback = fallback
        self.cluster = analytic.cluster
        self.recording = recording
        self._between_nodes = between_nodes
        self._burst = AnalyticCostModel(analytic.cluster, analytic.software, sustained=False)
        self._links = CollectivePrices(analytic.cluster, analytic.software, sustained=False)
        self.is_own = recording.device == self.cluster.device.name
        self.compute = lru_cache(maxsize=None)(self._compute)
        self.collective = lru_cache(maxsize=None)(self._collective)

    @cached_property
    def _measured_cluster(self) -> Cluster:
        return measured_nodes(self.recording, self.cluster)

    @cached_property
    def judged(self) -> Judged:
        """Return which points are used."""
        return judge(self.recording, self._measured_cluster)

    @cached_property
    def _measured(self) -> tuple[Mapping[Family, Mapping[Shape, float]], Mapping[tuple[Family, Shape], float]]:
        """Return the seconds of every measured shape by family, and its analytic price in a burst."""
        burst = AnalyticCostModel(self._measured_cluster, self.analytic.software, sustained=False)
        found: dict[tuple[Family, Shape], list[float]] = {}
        prices: dict[tuple[Family, Shape], float] = {}
        for entry in self.judged.kept:
            place, operation = self._measured_place(entry), operation_of(entry.point)
            price = None if operation is None else price_of(burst, operation)
            if place is None or price is None:
                continue
            taken = seconds_of(entry)
            assert taken is not None, "only points with a time are kept"
            found.setdefault(place, []).append(taken)
            prices[place] = price
        seconds: dict[Family, dict[Shape, float]] = {}
        for (family, shape), of_shape in found.items():
            # Several kernels of one shape (forward and input gradient): their geometric mean.
            mean = math.exp(sum(map(math.log, of_shape)) / len(of_shape))
            seconds.setdefault(family, {})[shape] = mean
        return seconds, prices

    def _table(self, family: Family, seconds: Mapping[Shape, float]) -> ResidualTable:
        """Return the table of some of a family's shapes."""
        _, prices = self._measured
        implementation = Implementation(framework=self._name)
        rows = [
            TableRow(shape=shape, latency_us=1e6 * taken, samples=None, implementation=implementation)
            for shape, taken in seconds.items()
        ]
        return ResidualTable(
            FAMILIES[family],
            rows,
            lambda shape: prices[family, shape],
            name=str(self.recording.directory),
            residuals_only=not self.is_own,
        )

    @cached_property
    def _tables(self) -> Mapping[Family, ResidualTable]:
        """Return the measured rows by family."""
        seconds, _ = self._measured
        return {family: self._table(family, of_family) for family, of_family in seconds.items()}

    def left_out_errors(self) -> Mapping[Family, tuple[float, ...]]:
        """Return by how much each measured shape is missed where it alone is left out, as a factor less one.

        Of many shapes as many as `MOST_LEFT_OUT`, evenly spread in the order of the store. A shape whose words were
        measured nowhere else says nothing of interpolation.
        """
        seconds, prices = self._measured
        errors: dict[Family, tuple[float, ...]] = {}
        for family, of_family in seconds.items():
            shapes = list(of_family)
            missed = []
            for left_out in shapes[:: -(-len(shapes) // MOST_LEFT_OUT)]:
                others = {shape: taken for shape, taken in of_family.items() if shape != left_out}
                if not any(shape.words == left_out.words for shape in others):
                    continue
                query = Query(
                    shape=left_out, implementation=Implementation(), analytic_seconds=prices[family, left_out]
                )
                (found,) = self._table(family, others).estimates((query,))
                assert found is not None, "rows with these words are left"
                missed.append(math.exp(abs(math.log(found.seconds / of_family[left_out]))) - 1.0)
            if missed:
                errors[family] = tuple(missed)
        return errors

    @property
    def _name(self) -> str:
        software = self.recording.newest.get("software")
        torch = software.get("torch", "") if isinstance(software, Mapping) else ""
        return f"torch {torch} on {self.recording.device}"

    def _measured_place(self, entry: Entry) -> tuple[Family, Shape] | None:
        """Return where a point lies; None for one that says nothing of training.

        Of collectives that were measured alone and beside others of their shape, the latter count; graphs and captured
        launches are not what training does.
        """
        point, operation = entry.point, operation_of(entry.point)
        if operation is None or (point.suite == "attention" and point.word("phase") == "decode"):
            return None
        if point.suite == "collectives" and (point.word("mode") != "eager" or self._has_concurrent(point)):
            return None
        if point.suite == "copies" and point.word("beside") != self._used_copies:
            return None
        crosses = isinstance(operation, Collective) and self._links.leaves_node(operation)
        return place_of(operation, crosses=crosses)

    @cached_property
    def _used_copies(self) -> str | None:
        copies = [entry for entry in self.judged.kept if entry.point.suite == "copies"]
        return used_copies(copies, self.cluster.gpus_per_node)

    @cached_property
    def _concurrent(self) -> frozenset[tuple[object, ...]]:
        return frozenset(
            (entry.point.word("kind"), *entry.point.sizes)
            for entry in self.judged.kept
            if entry.point.suite == "collectives" and entry.point.word("beside") == "concurrent"
        )

    def _has_concurrent(self, point: Point) -> bool:
        return point.word("beside") == "alone" and (point.word("kind"), *point.sizes) in self._concurrent

    def _compute(self, operation: ComputeOp) -> Estimate:
        """Return the time of one operation on one GPU.

        Raises:
            CoverageError: It was not measured, and the GPU has no rate for the format.
        """
        fallback = self.fallback.compute(operation)
        place = place_of(operation)
        if place is None:
            return fallback
        calls = operation.calls if isinstance(operation, Attention) else 1
        found = self._priced(place, self.analytic.compute(operation), self._burst.compute(operation), calls=calls)
        return found or fallback

    def _collective(self, operation: Collective) -> Estimate:
        """Return the time of one collective, all its ranks taking part."""
        fallback = self.fallback.collective(operation)
        crosses = self._links.leaves_node(operation)
        place = place_of(operation, crosses=crosses)
        same_nodes = self.recording.gpus_per_node == self.cluster.gpus_per_node
        if place is None or operation.copies != 1 or not same_nodes or (crosses and not self._between_nodes):
            return fallback
        found = self._priced(place, self.analytic.collective(operation), self._burst.collective(operation))
        return found or fallback

    def _priced(
        self, place: tuple[Family, Shape], analytic: Estimate, burst: Estimate, *, calls: int = 1
    ) -> Estimate | None:
        """Return the price by the table of a family; None without rows of such a kernel."""
        family, shape = place
        table = self._tables.get(family)
        if table is None or burst.seconds <= 0:
            return None
        query = Query(shape=shape, implementation=Implementation(), analytic_seconds=burst.seconds / calls)
        (found,) = table.estimates((query,))
        if found is None:
            return None
        kept = analytic.seconds / burst.seconds
        note = found.note if abs(kept - 1) < 1e-9 else f"{found.note}; x {kept:.3g} over hours of training"
        source = found.source if self.is_own else Source.ASSUMED
        return replace(found, seconds=found.seconds * calls * kept, source=source, note=note)

    def _entries(self, suite: str, **words: str) -> list[Entry]:
        return [
            entry
            for entry in self.recording.measured
            if entry.point.suite == suite and all(entry.point.word(name) == word for name, word in words.items())
        ]

    @cached_property
    def launch_seconds(self) -> float:
        """Return the host's time for one launch: a framework's, which a bare loop of one kernel bounds from below."""
        bare = measured_launch_seconds(self.recording) if self.is_own else None
        return max(self.fallback.launch_seconds, bare or 0.0)

    @property
    def tensor_parallel_overlap(self) -> TensorParallelOverlap:
        """Return what tensor-parallel collectives run beside."""
        return self.fallback.tensor_parallel_overlap

    @cached_property
    def overlap_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a collective runs beside it."""
        return self._slowdown("all_reduce", self.fallback.overlap_slowdown)

    @cached_property
    def transfer_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a pipeline send or receive runs beside it."""
        return self._slowdown("send_recv", self.fallback.transfer_slowdown)

    @cached_property
    def copy_slowdown(self) -> float | None:
        """Return the seconds that a kernel loses for each second of a copy to or from the host beside it, if known."""
        return self._measured_slowdown("to_host", "to_device")

    def _slowdown(self, beside: str, fallback: float) -> float:
        found = self._measured_slowdown(beside)
        return fallback if found is None else found

    def _measured_slowdown(self, *beside: str) -> float | None:
        """Return what products lost in the middle beside one of these; None where this GPU was not measured."""
        found = [lost_fraction(entry) for name in beside for entry in self._entries("overlap", beside=name)]
        return median(found) if found and self.is_own else None


def measured_launch_seconds(recording: Recording) -> float | None:
    """Return the host's time for one of many launches on a GPU; None where none was measured.

    On a CPU an operation's launch and the operation are one, so those say nothing of launches.
    """
    found = [
        (entry.point.size("kernels"), _figure(entry, "seconds"))
        for entry in recording.measured
        if entry.point.suite == "launch"
        and entry.point.word("term") == "launch"
        and recording.content.runs[entry.run].get("kind") == "cuda"
    ]
    return max(found, key=lambda of_count: of_count[0])[1] if found else None


def used_copies(copies: Sequence[Entry], gpus_per_node: int) -> str | None:
    """Return which of the measured copies between GPU and host price a plan; None where none do.

    A node's GPUs copy at once. Where that was not measured, the GPUs of one socket at once stand in: each socket has
    its own memory and its own slots. A copy alone is that of a node with one GPU.
    """
    measured = {entry.point.word("beside") for entry in copies}
    kinds = ("concurrent", "socket") if gpus_per_node > 1 else ("alone", "concurrent", "socket")
    return next((kind for kind in kinds if kind in measured), None)


def lost_fraction(entry: Entry) -> float:
    """Return what a product lost for each second that something ran beside it."""
    alone, beside, other = (_figure(entry, name) for name in ("alone", "beside", "other_beside"))
    return max(0.0, beside - alone) / min(other, beside)


def _figure(entry: Entry, name: str) -> float:
    return float(str(entry.result[name]))


def with_profile(
    analytic: AnalyticCostModel, fallback: CostModel, recording: Recording, *, between_nodes: bool
) -> CostModel:
    """Return a cost model that uses a profile where the GPU has its chip, else the fallback."""
    if has_residuals(recording, analytic.cluster.device):
        return ProfiledCostModel(analytic, fallback, recording, between_nodes=between_nodes)
    return fallback


def has_residuals(recording: Recording, device: Device) -> bool:
    """Return whether a profile prices operations of a GPU: it is that GPU's, or of one with the same chip."""
    measured = measured_device(recording)
    return recording.device == device.name or (measured is not None and is_same_chip(measured, device))


def left_out_errors(recording: Recording, cluster: Cluster | None = None) -> Mapping[Family, tuple[float, ...]]:
    """Return how well a profile's own interpolation predicts its points; nothing where they have no analytic price.

    Args:
        recording: The profile.
        cluster: Where it was measured; None for one node of the GPU, where the catalogue holds it.
    """
    measured = judged_on(recording, cluster)
    if measured is None:
        return {}
    analytic = AnalyticCostModel(measured)
    return ProfiledCostModel(analytic, analytic, recording).left_out_errors()


def remarks(recording: Recording, cluster: Cluster) -> tuple[str, ...]:
    """Return what to beware of when a profile prices a cluster: what is foreign, stale, or left out."""
    found = []
    for device, _ in cluster.device_counts:
        measured = measured_device(recording)
        if recording.device == device.name:
            continue
        if measured is not None and is_same_chip(measured, device):
            told = "its residuals are carried over, as an assumption"
        else:
            told = "nothing of it is used there"
        found.append(f"foreign: the profile is of {recording.device}, the cluster has {device.name}: {told}")
    per_node = recording.gpus_per_node
    if any(entry.point.suite == "collectives" for entry in recording.measured) and per_node != cluster.gpus_per_node:
        found.append(
            f"foreign: its collectives ran on nodes of {per_node}, the cluster's have {cluster.gpus_per_node} GPUs:"
            " they are not used"
        )
    return (*found, *recording.stale)
