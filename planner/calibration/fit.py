"""Fits one factor a class of operations from what a run shows beside its prediction.

A log shows the step time alone. All classes get one common factor, measured over predicted: a step time is proportional
to all prices together, so that the calibrated prediction of this very run is what was measured. Which class is off, a
log does not say.

A memory snapshot shows what one rank held at its peak (`planner.calibration.held`), and no times.

A trace shows the kernels of one rank, so each class that runs there gets a factor of its own: its kernels' time over
what the prediction says they take alone. What a trace does not show is said, and keeps its prediction: the host's
launches, transfers between stages, and collectives that do not say what they move. Collectives inside and between
nodes share one factor. A log beside a trace then tells how far the calibrated step is off still.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from planner.calibration.held import MemoryFit, memory_fit
from planner.calibration.predicted import class_seconds
from planner.calibration.traces import TraceReading, read_trace
from planner.errors import InputError, Location
from planner.evaluation.described import given_layout, placed_alone
from planner.layout import Layout
from planner.plans.plan import Plan
from planner.reconcile.snapshots import Snapshot, read_snapshot
from planner.verification.collect import LEAST_STEPS, WARM_UP_STEPS
from planner.verification.logs import read_log, samples_per_step
from profiles.hardware import MOST_OFF, Calibration
from profiles.slowed import OperationClass, classes_on

COLLECTIVES = (OperationClass.INSIDE, OperationClass.BETWEEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One class of operations.

    Args:
        kind: The class.
        predicted_seconds: Of one step.
        measured_seconds: Likewise; None where the run does not show it.
        factor: What its prices are multiplied by.
    """

    kind: OperationClass
    predicted_seconds: float | None
    measured_seconds: float | None
    factor: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A calibration with what it comes from.

    Args:
        calibration: The factors.
        factors: Every class of the cluster, also those that the run does not show.
        is_common: All classes share one factor, because only the step time is known.
        predicted_step_seconds: Before.
        calibrated_step_seconds: After.
        measured_step_seconds: By a log; None without one.
        device: The GPU.
        remarks: What the run does not show, one sentence each.
        unknown: Kernels that were taken to be memory-bound, the longest first.
        memory: By a snapshot; None without one.
    """

    calibration: Calibration
    factors: tuple[Factor, ...]
    is_common: bool
    predicted_step_seconds: float
    calibrated_step_seconds: float
    measured_step_seconds: float | None
    device: str
    remarks: tuple[str, ...]
    unknown: tuple[str, ...]
    memory: MemoryFit | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """What files show: at least one of them, and at most one of each kind."""

    step_seconds: float | None = None
    trace: TraceReading | None = None
    snapshot: Snapshot | None = None

    @property
    def has_times(self) -> bool:
        """Return whether something took time."""
        return self.step_seconds is not None or self.trace is not None


def fitted(plan: Plan, index: int, runs: Sequence[Path], *, rank: int | None, sources: Sequence[str]) -> Fit:
    """Return the calibration of a plan's layout by a run of it.

    Args:
        plan: The plan.
        index: Which of its layouts ran.
        runs: A log, a trace, a memory snapshot: at most one of each.
        rank: The rank that was recorded, where the trace does not say it.
        sources: What names the files, for the calibration's source.

    Raises:
        InputError: A file is none of these, or it does not fit the plan.
    """
    base = replace(plan, cluster=replace(plan.cluster, calibration=None))
    layout = plan.plans[index].layout
    shown = _shown(runs, global_batch_size=plan.request.workload.global_batch_size)
    before = given_layout(layout, base.model, base.cluster, base.request)
    predicted, trace = before.step_seconds, shown.trace
    factors: tuple[Factor, ...] = ()
    remarks: list[str] = []
    if trace is not None:
        factors, remarks = _of_trace(base, layout, trace, rank)
    elif shown.step_seconds is not None:
        common = shown.step_seconds / predicted
        _check_factor(common, "the step", runs[0])
        factors = tuple(
            Factor(kind=kind, predicted_seconds=None, measured_seconds=None, factor=common) for kind in OperationClass
        )
        remarks = ["a log shows the step time alone: one factor for all classes, which of them is off it does not say"]
    memory = None
    if shown.snapshot is not None:
        recorded = trace.rank if rank is None and trace is not None else rank
        first = layout.first_global_rank(_pipeline_rank(layout, recorded, what="snapshot", file=shown.snapshot.file))
        memory = memory_fit(shown.snapshot, before.memory, rank=first)
        remarks += [*memory.remarks, *([] if shown.has_times else ["a snapshot shows no times"])]
    calibration = Calibration(
        factors=tuple((entry.kind.value, entry.factor) for entry in factors if entry.factor is not None),
        source=f"{', '.join(sources)} on {plan.cluster.device.name}",
        memory=None if memory is None else memory.calibration,
    )
    after = _step_seconds(replace(base, cluster=replace(base.cluster, calibration=calibration)), layout)
    return Fit(
        calibration=calibration,
        factors=factors,
        is_common=trace is None and shown.step_seconds is not None,
        predicted_step_seconds=predicted,
        calibrated_step_seconds=after,
        measured_step_seconds=shown.step_seconds,
        device=plan.cluster.device.name,
        remarks=tuple(remarks),
        unknown=() if trace is None else trace.unknown,
        memory=memory,
    )


def _shown(runs: Sequence[Path], *, global_batch_size: int) -> _Shown:
    """Return what files show.

    Raises:
        InputError: One cannot be read or is of another batch, or two are of one kind.
    """
    shown = _Shown()
    for path in runs:
        if _is_pickle(path):
            found = replace(shown, snapshot=read_snapshot(path)) if shown.snapshot is None else None
        else:
            steps = _log_seconds(path, global_batch_size=global_batch_size)
            if steps is not None:
                found = replace(shown, step_seconds=steps) if shown.step_seconds is None else None
            else:
                found = replace(shown, trace=read_trace(path)) if shown.trace is None else None
        if found is None:
            raise InputError(
                "This is a second log, a second trace or a second snapshot.",
                location=Location(file=str(path)),
                hint="Give one log, one trace and one memory snapshot of one run at most.",
            )
        shown = found
    return shown


def _is_pickle(path: Path) -> bool:
    """Return whether a file begins as pickles of protocol 2 and later do."""
    try:
        with path.open("rb") as stream:
            return stream.read(1) == b"\x80"
    except OSError:
        return False  # what reads it next says why


def _pipeline_rank(layout: Layout, rank: int | None, *, what: str, file: str) -> int:
    """Return the pipeline stage of the rank that was recorded.

    Raises:
        InputError: It is not said, or there is none.
    """
    if rank is None and layout.pp > 1:
        raise InputError(
            f"The {what} does not say which rank it is of, and stages of a pipeline differ.",
            location=Location(file=file),
            hint="Say it with --rank.",
        )
    if rank is not None and not 0 <= rank < layout.world_size:
        raise InputError(
            f"The {what} is of rank {rank}, and the layout has {layout.world_size}.",
            location=Location(file=file),
            hint=f"Give a {what} of the layout that --index names.",
        )
    return (rank or 0) // layout.stage_distance % layout.pp


def _step_seconds(plan: Plan, layout: Layout) -> float:
    return given_layout(layout, plan.model, plan.cluster, plan.request).step_seconds


def _log_seconds(path: Path, *, global_batch_size: int) -> float | None:
    """Return the median step of a log; None for a file without steps.

    Raises:
        InputError: It cannot be read, holds too few steps, or steps of another batch.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(_LARGEST_LOG)
    except OSError as error:
        raise InputError(
            f"The file cannot be read: {error.strerror}.", location=Location(file=str(path)), hint="Check the path."
        ) from None
    text = raw.decode("utf-8", "replace")
    steps, samples = read_log(text).step_seconds, samples_per_step(text)
    if not steps:
        return None
    if samples is not None and samples != global_batch_size:
        raise InputError(
            f"A step of this log consumes {samples:,} sequences, one of the plan {global_batch_size:,}.",
            location=Location(file=str(path)),
            hint="Give a log of a run of this plan.",
        )
    counted = [seconds for number, seconds in steps.items() if number > WARM_UP_STEPS]
    if len(counted) < LEAST_STEPS:
        raise InputError(
            f"The log holds {len(counted)} steps behind the first {WARM_UP_STEPS}, which warm up.",
            location=Location(file=str(path)),
            hint=f"Run {WARM_UP_STEPS + LEAST_STEPS} steps at least.",
        )
    return median(counted)


_LARGEST_LOG = 256 << 20


def _check_factor(factor: float, what: str, path: Path | str) -> None:
    if not 1 / MOST_OFF < factor < MOST_OFF:
        raise InputError(
            f"By this {what} takes {factor:.3g} times what the plan says: it is a run of something else.",
            location=Location(file=str(path)),
            hint="Give a run of the layout that --index names.",
        )


def _of_trace(
    plan: Plan, layout: Layout, trace: TraceReading, rank: int | None
) -> tuple[tuple[Factor, ...], list[str]]:
    """Return the factor of each class that a trace shows, and what it does not show."""
    recorded = trace.rank if rank is None else rank
    pipeline_rank = _pipeline_rank(layout, recorded, what="trace", file=trace.file)
    placed, cost_model = placed_alone(layout, plan.model, plan.cluster, plan.request)
    predicted = class_seconds(placed, cost_model, pipeline_rank=pipeline_rank)
    kinds = classes_on(plan.cluster)
    factors = tuple(_factor(kind, predicted, trace.kernel_seconds, trace.file) for kind in kinds)
    hidden = [entry.kind.value for entry in factors if entry.factor is None]
    remarks = [f"the trace does not show {', '.join(hidden)}: predicted as before"] if hidden else []
    if predicted.get(OperationClass.INSIDE) and not trace.has_messages:
        remarks.append(
            "its collectives do not say what they move (torch 2.4 and later do): waiting cannot be told apart"
        )
    if trace.has_messages and len(set(kinds) & set(COLLECTIVES)) > 1:
        remarks.append("collectives inside and between nodes share one factor")
    return factors, remarks


def _factor(
    kind: OperationClass,
    predicted: Mapping[OperationClass, float],
    measured: Mapping[OperationClass, float],
    file: str,
) -> Factor:
    shown = OperationClass.INSIDE if kind in COLLECTIVES else kind
    before, found = predicted.get(shown, 0.0), measured.get(shown, 0.0)
    if kind is OperationClass.HOST or not before or not found:
        return Factor(kind=kind, predicted_seconds=before or None, measured_seconds=found or None, factor=None)
    _check_factor(found / before, kind.value, file)
    return Factor(kind=kind, predicted_seconds=before, measured_seconds=found, factor=found / before)
