"""What a plan is asked for, apart from model and cluster: a workload, constraints, a target, an objective."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from planner.requests.workload import TrainWorkload

DEFAULT_MEMORY_HEADROOM = 0.05
"""Fraction of each GPU's memory left free unless the user says otherwise.

A choice, not a measurement. The closest published per-rank estimates missed the measured peak by 1 % and by 7 %
(58.6 for 58.0 and 66.6 for 62.3 GiB on H100, issue 18 of mlc-ai/pith-train), so a plan that fills the memory to the
last byte is a plan that may not run.
"""

MAX_DEGREE = 1 << 20
"""Largest degree; the largest clusters have about 2**17 GPUs."""


class Target(StrEnum):
    """Frameworks that a plan can be written for."""

    MEGATRON = "megatron"
    DEEPSPEED = "deepspeed"
    VLLM = "vllm"
    ANY = "any"


OFFLOADED_LAYERS = "offloaded_layers"
"""The dimension of layouts that says how many layers keep their saved tensors in host memory."""

OFFLOADED_MODULES = "offloaded_modules"
"""The dimension of layouts that says which modules of all layers do."""

ANY_MODULES = ("any",)
"""Asked for in their place: any of the sets that are searched, or none."""


class Objective(StrEnum):
    """What the search minimises or maximises; days, cost and energy are those of the whole token budget.

    Robust is the most that a layout loses against the best one, whichever class of operations is slower than predicted.
    """

    STEP_TIME = "step-time"
    TOKENS_PER_GPU = "tokens-per-gpu"
    DAYS = "days"
    COST = "cost"
    ENERGY = "energy"
    FEWEST_NODES = "fewest-nodes"
    ROBUST = "robust"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Values that one dimension may take: an explicit set, or a range with either end open."""

    allowed: tuple[int, ...] | None = None
    minimum: int | None = None
    maximum: int | None = None

    def admits(self, value: int) -> bool:
        """Return whether `value` is allowed."""
        if self.allowed is not None and value not in self.allowed:
            return False
        if self.minimum is not None and value < self.minimum:
            return False
        return self.maximum is None or value <= self.maximum


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What the user pins or bounds.

    Args:
        degrees: Bounds by dimension: tp, cp, pp, vpp, dp, ep, etp, zero_stage, micro_batch_size, num_microbatches,
            offloaded_layers.
        recompute: Allowed recompute granularities; None allows all.
        sequence_parallel: Pinned value; None leaves it to the search.
        cp_kind: Allowed kinds of context parallelism (ring, ulysses, ulysses-ring); None allows all.
        optimizer_offload: Allowed parts of the optimizer's states in host memory, 0 for none; None leaves it open.
        parameter_offload: Whether the weights lie in host memory, with all optimizer states, and not on the GPUs; None
            leaves it open.
        drive_offload: Whether the optimizer's states lie on the drives of their node; None leaves it open.
        parameter_drives: Whether the weights lie on the drives of their node; None leaves it open.
        offloaded_modules: Modules of all layers whose saved tensors wait in host memory, all of these and no others,
            `ANY_MODULES` beside none; None leaves it open.
    """

    degrees: Mapping[str, Bounds] = field(default_factory=dict)
    recompute: tuple[str, ...] | None = None
    sequence_parallel: bool | None = None
    cp_kind: tuple[str, ...] | None = None
    optimizer_offload: tuple[float, ...] | None = None
    parameter_offload: bool | None = None
    drive_offload: bool | None = None
    parameter_drives: bool | None = None
    offloaded_modules: tuple[str, ...] | None = None

    @property
    def asks_hosts(self) -> bool:
        """Return whether layouts with something in host memory are asked for by name, some of them or nothing else."""
        asks_states = self.optimizer_offload is not None or self.asks_all_states
        return asks_states or self.asks_activations or self.asks_modules

    @property
    def asks_all_states(self) -> bool:
        """Return whether weights in host memory, or anything on drives, are asked for, with which all states leave."""
        return any((self.parameter_offload, self.drive_offload, self.parameter_drives))

    @property
    def asks_modules(self) -> bool:
        """Return whether modules are asked for whose saved tensors wait in host memory."""
        return bool(self.offloaded_modules)

    @property
    def pinned_modules(self) -> tuple[str, ...] | None:
        """Return the modules whose saved tensors wait in host memory, and no others; None where that is open."""
        return None if self.offloaded_modules == ANY_MODULES else self.offloaded_modules

    @property
    def asks_activations(self) -> bool:
        """Return whether numbers of layers are asked for whose saved tensors lie in host memory."""
        return OFFLOADED_LAYERS in self.degrees

    def admits(self, dimension: str, value: int) -> bool:
        """Return whether `dimension` may take `value`."""
        bounds = self.degrees.get(dimension)
        return bounds is None or bounds.admits(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a plan is asked for, apart from model and cluster.

    Args:
        workload: The training run.
        constraints: What the user pins.
        memory_headroom: Fraction of each GPU's memory that the plan leaves free.
        target: Framework that must be able to express the plan.
        objective: What is optimised.
        deadline_days: Longest that the token budget may take; None without a deadline.
        node_counts: Numbers of nodes of the cluster that the plan may choose among; None takes the whole cluster, with
            objective fewest-nodes any number of them.
    """

    workload: TrainWorkload
    constraints: Constraints
    memory_headroom: float
    target: Target
    objective: Objective
    deadline_days: float | None = None
    node_counts: Bounds | None = None

    @property
    def chooses_nodes(self) -> bool:
        """Return whether the number of nodes is left to the search."""
        return self.node_counts is not None or self.objective is Objective.FEWEST_NODES

    def counts_of(self, num_nodes: int) -> tuple[int, ...]:
        """Return the numbers of nodes that may be planned on, of a cluster of so many, ascending."""
        if not self.chooses_nodes:
            return (num_nodes,)
        bounds = self.node_counts or Bounds()
        return tuple(count for count in range(1, num_nodes + 1) if bounds.admits(count))
