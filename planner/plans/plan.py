"""The answer: plans in order of merit, what the search saw, or why nothing fits.

A plan holds its inputs, so that a plan file alone is enough to emit, explain and check it. It holds no time of day
and no wall time: the same inputs give the same bytes. The JSON form is in `planner.schema.plan`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from planner.layout import Layout
from planner.models.specs import ModelSpec
from planner.plans.choices import Front, NodeChoice, Robustness, Spare, TokenSwapping
from planner.requests.objectives import WholeRun, whole_run
from planner.requests.request import Objective, PlanRequest, Target
from profiles.hardware import Cluster

SCHEMA_VERSION = 1


class Status(StrEnum):
    """What is known about the best plan."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"


class Phase(StrEnum):
    """Moments of a training step at which memory peaks differently."""

    INITIALISATION = "initialisation"
    FORWARD_BACKWARD = "forward-backward"
    OPTIMIZER_STEP = "optimizer-step"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLine:
    """One term of one rank's memory in one phase.

    Args:
        rank: Lowest global rank of the pipeline rank it stands for.
        phase: Moment of the step.
        term: "weights", "gradients", "optimizer moments", "activations" and so on.
        num_bytes: Its size.
        source: Formula or assumption behind it.
    """

    rank: int
    phase: Phase
    term: str
    num_bytes: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLine:
    """One term of a node's memory.

    Args:
        term: "offloaded moments" and so on.
        num_bytes: Its size.
        source: Formula or assumption behind it.
    """

    term: str
    num_bytes: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """What is kept in the memory of the node that keeps most there, or on its drives.

    Args:
        lines: Its terms, what every process takes anyway among them.
        limit_bytes: The node's memory, or what its drives hold.
    """

    lines: tuple[HostLine, ...]
    limit_bytes: int

    @property
    def num_bytes(self) -> int:
        """Return the sum of the terms."""
        return sum(line.num_bytes for line in self.lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLine:
    """One term of the step time; the terms add up to the step.

    Args:
        term: "linear layers", "attention", "tensor-parallel collectives", "recomputation" and so on.
        seconds: Its share of the step on the busiest pipeline rank.
        source: Where its figures come from.
    """

    term: str
    seconds: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OnNodes:
    """How a layout stands on nodes that differ.

    Args:
        order: The node at each place of the mesh.
        listed_step_seconds: Time of one optimizer step with the nodes in the order in which the cluster lists them, by
            the independent evaluator.
        memory_limit_bytes_R: What each GPU of each pipeline rank may use, headroom taken off.
    """

    order: tuple[int, ...]
    listed_step_seconds: float
    memory_limit_bytes_R: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsInOrder:
    """What a layout would be with routed experts in the checkpoint's order, by the independent evaluator.

    Args:
        step_seconds: Time of one optimizer step.
        peak_memory_bytes: Largest phase of the heaviest rank.
    """

    step_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLayout:
    """One layout with its price.

    Args:
        layout: The layout.
        step_seconds: Time of one optimizer step, by the search.
        reevaluated_step_seconds: The same by the independent evaluator.
        tokens_per_second_per_gpu: Trained tokens.
        mfu: Model flops (no recompute, causal attention counted half) over the datasheet rate of the GEMM format.
        peak_memory_bytes: Largest phase of the heaviest rank; where GPUs differ, of the rank that has least left.
        memory_limit_bytes: What the rank may use, headroom taken off.
        memory: The ledger, a line a term.
        time: The step, a line a term.
        assumptions: What was assumed where no figure was known.
        lower_bound_seconds: No split of the layers at these degrees takes less; of a layout whose split was given, its
            own time.
        on_nodes: How it stands on nodes that differ; None where they do not.
        host_memory: What lies in host memory; None where nothing is put there.
        drive_memory: What lies on the drives of a node, of the node with most; None likewise.
        source_fractions: What part of the busiest rank's own time is measured, interpolated and so on, best source
            first; None where the cluster was not measured.
        experts_in_order: What it would be without experts reordered; None where none are.
    """

    layout: Layout
    step_seconds: float
    reevaluated_step_seconds: float
    tokens_per_second_per_gpu: float
    mfu: float
    peak_memory_bytes: int
    memory_limit_bytes: int
    memory: tuple[MemoryLine, ...]
    time: tuple[TimeLine, ...]
    assumptions: tuple[str, ...]
    lower_bound_seconds: float
    host_memory: HostMemory | None = None
    drive_memory: HostMemory | None = None
    on_nodes: OnNodes | None = None
    source_fractions: Mapping[str, float] | None = None
    experts_in_order: ExpertsInOrder | None = None

    @property
    def rank_limits(self) -> "int | tuple[int, ...]":
        """Return what each GPU may use: one number, or one for each pipeline rank."""
        return self.memory_limit_bytes if self.on_nodes is None else self.on_nodes.memory_limit_bytes_R


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSummary:
    """What the search saw.

    Args:
        considered: Points of the outer space that were enumerated.
        legal: Points that broke no rule.
        pruned: Reason to number of points; with `simulated` they add up to `considered`.
        simulated: Points that were priced exactly.
        dimensions: The dimensions that were searched.
        uneven_bound_seconds: No split of interleaved stages that fits takes less, even or not; None where none can beat
            the best plan. Of some that might, layers were moved as long as that helped, which proves nothing.
    """

    considered: int
    legal: int
    pruned: Mapping[str, int]
    simulated: int
    dimensions: tuple[str, ...]
    uneven_bound_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """One smallest change that would make a plan fit.

    Args:
        change: In words, "12 nodes instead of 8" or "micro_batch_size 1".
        path: Field of the spec to change, as `--set` takes it.
        value: What to set it to.
    """

    change: str
    path: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """Why nothing fits.

    Args:
        binding: The binding constraint, in one sentence.
        shortfall_bytes: How much memory the best attempt lacks on its heaviest rank; 0 when memory is not the cause.
        nearest: The attempt that comes closest, if any layout was legal.
        relaxations: Changes that would fit, each checked by itself.
    """

    binding: str
    shortfall_bytes: int
    nearest: PlannedLayout | None
    relaxations: tuple[Relaxation, ...]

    @property
    def misses_deadline(self) -> bool:
        """Return whether layouts fit into memory, and all of them take longer than is allowed."""
        nearest = self.nearest
        return nearest is not None and nearest.peak_memory_bytes <= nearest.memory_limit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """How far predicted step times may be off.

    Args:
        half_width: Of the band around a step time, as a factor less one.
        source: What it comes from.
        ratio_half_width: Of the band around the ratio of two layouts' step times, as a factor less one; narrower,
            because most errors are common to both.
        ratio_source: What it comes from.
    """

    half_width: float
    source: str
    ratio_half_width: float
    ratio_source: str

    def band_seconds(self, planned: PlannedLayout) -> tuple[float, float]:
        """Return the ends of the band around a layout's step time."""
        factor = 1.0 + self.half_width
        return planned.step_seconds / factor, planned.step_seconds * factor

    def could_swap(self, plans: Sequence[PlannedLayout]) -> tuple[int, ...]:
        """Return the indices of the runners-up that may be as fast as the first: their ratio's band reaches 1."""
        return tuple(
            index
            for index, planned in enumerate(plans[1:], start=1)
            if planned.step_seconds <= plans[0].step_seconds * (1.0 + self.ratio_half_width)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadedSchedule:
    """A layout under a pipeline schedule, with activations that wait in host memory.

    Args:
        step_seconds: Time of one optimizer step.
        peak_memory_bytes: Largest phase of the heaviest rank.
        host_memory_bytes: Activations on the host of the node that holds most of them.
        moved_fraction: Part of all activations of the step that moves.
        fits: Both are within their limits.
    """

    step_seconds: float
    peak_memory_bytes: int
    host_memory_bytes: int
    moved_fraction: float
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedSchedule:
    """A layout of the plan under a pipeline schedule that the search does not choose from.

    Args:
        schedule: Its name.
        index: The layout, by its place among the plans.
        layers_per_stage: How it cuts the layers, in model order.
        step_seconds: Time of one optimizer step.
        peak_memory_bytes: Largest phase of the heaviest rank.
        fits: That is within the limit.
        needs: What a framework must have for it, in words.
        offloaded: The same with activations on the host; None where that needs no less memory.
    """

    schedule: str
    index: int
    layers_per_stage: tuple[int, ...]
    step_seconds: float
    peak_memory_bytes: int
    fits: bool
    needs: tuple[str, ...]
    offloaded: OffloadedSchedule | None = None

    @property
    def fitting_seconds(self) -> float | None:
        """Return the time of a step that fits, with activations on the host where it does not fit without."""
        if self.fits:
            return self.step_seconds
        return self.offloaded.step_seconds if self.offloaded is not None and self.offloaded.fits else None


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherSchedules:
    """What other pipeline schedules would make of the plan's pipelines.

    Args:
        priced: Fastest first.
        left_out: Names of those that were not priced, each with the reason.
    """

    priced: tuple[PricedSchedule, ...]
    left_out: Mapping[str, str]

    @property
    def best(self) -> PricedSchedule | None:
        """Return the fastest that fits, if need be with activations on the host."""
        fitting = [(seconds, entry) for entry in self.priced if (seconds := entry.fitting_seconds) is not None]
        return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that `plan` found out.

    Args:
        model: What was planned.
        cluster: Where.
        request: For which run, under which constraints.
        target: Framework that the plans can be written for.
        status: What is known about the first plan.
        objective: What was optimised.
        bound: No plan of the searched space has a better objective than this.
        gap: The share of the best step time that could still be saved, (best - bound) / best in seconds whatever the
            objective, or of the objective where the number of nodes is a choice; of losses, of one more than
            they are; 0 when optimal.
        search: What the search saw.
        plans: Best first; empty when infeasible.
        baseline: The rule-of-thumb layout, if it fits.
        infeasible: The reasons, when nothing fits.
        certainty: How far the step times may be off; None in files written before plans said so.
        node_choice: How the number of nodes was chosen, where it was a choice; `cluster` has so many.
        front: Memory against time, where it was asked for.
        spare: What is left when nodes are lost, where it was asked for.
        schedules: What other pipeline schedules would make of the plans; None where nobody asked.
        token_swapping: What dividing the tokens of activations would make of them; None where nobody asked.
        robustness: How the layouts do where some operations are slower than predicted; None unless that was optimised.
    """

    model: ModelSpec
    cluster: Cluster
    request: PlanRequest
    target: Target
    status: Status
    objective: Objective
    bound: float | None
    gap: float | None
    search: SearchSummary
    plans: tuple[PlannedLayout, ...]
    baseline: PlannedLayout | None
    infeasible: Infeasible | None
    certainty: Certainty | None = None
    node_choice: NodeChoice | None = None
    front: Front | None = None
    spare: Spare | None = None
    schedules: OtherSchedules | None = None
    token_swapping: TokenSwapping | None = None
    robustness: Robustness | None = None

    @property
    def best(self) -> PlannedLayout:
        """Return the winning plan; only feasible plans have one."""
        return self.plans[0]

    @property
    def schedule_cost_fraction(self) -> float | None:
        """Return the share of the best plan's step that the fastest other schedule would save, 0 if it saves none."""
        fastest = self.schedules.best if self.schedules is not None else None
        seconds = fastest.fitting_seconds if fastest is not None else None
        return None if seconds is None else max(0.0, 1.0 - seconds / self.best.step_seconds)

    @property
    def token_cost_fraction(self) -> float | None:
        """Return the share of the best plan's step that divided tokens would save, 0 if they save none."""
        fastest = self.token_swapping.best if self.token_swapping is not None else None
        return None if fastest is None else max(0.0, 1.0 - fastest.step_seconds / self.best.step_seconds)

    @property
    def days_to_train(self) -> float | None:
        """Return the days that the token budget takes with the best plan, if there is a budget and a plan."""
        run = self.whole_run
        return None if run is None else run.days

    @property
    def cost_to_train(self) -> float | None:
        """Return the price of the token budget with the best plan, if both are known."""
        run = self.whole_run
        return None if run is None else run.cost

    @property
    def whole_run(self) -> WholeRun | None:
        """Return what the token budget takes with the best plan, if there is a budget and a plan."""
        return self.run_with(self.best.step_seconds, num_nodes=self.cluster.num_nodes) if self.plans else None

    def run_with(self, step_seconds: float, *, num_nodes: int) -> WholeRun | None:
        """Return what the token budget takes with steps of so many seconds on so many of such nodes."""
        return whole_run(step_seconds, self.cluster, self.request.workload, num_nodes=num_nodes)
