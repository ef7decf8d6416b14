"""Points of the space of layouts, as arrays, and what a space is enumerated for.

Axis X: points.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from planner.arrays import BoolArray, IntArray
from planner.frameworks.capabilities import Capabilities
from planner.layout import GPU_WEIGHTS, ON_HOSTS, REPLICAS_OUTERMOST, Layout
from planner.models.graph import ModelGraph
from planner.models.specs import ModelSpec
from planner.offloading.states import SHARDED_WEIGHTS
from planner.requests.request import Constraints
from planner.requests.workload import TrainWorkload


def distinct_columns(columns: IntArray) -> tuple[IntArray, IntArray]:
    """Return the position of the first of each distinct column, and for every column which of those it equals.

    Columns of whole numbers are compared as one number each, in mixed radix, which sorts far faster than columns; of
    equal neighbours only the first is.

    Raises:
        OverflowError: The numbers span more than 63 bits together.
    """
    head, run_X = runs(columns)
    if len(head) == 1:
        return head, run_X
    key_X = np.zeros(len(head), dtype=np.int64)
    span = 1
    for row in columns[:, head]:
        values, digit_X = np.unique(row, return_inverse=True)
        span *= len(values)
        if span >= 1 << 63:
            raise OverflowError("too many distinct columns")
        key_X = key_X * len(values) + digit_X.ravel()
    _, first, index_X = np.unique(key_X, return_index=True, return_inverse=True)
    return head[first], index_X.ravel().astype(np.int64)[run_X]


def distinct(values_X: IntArray) -> list[int]:
    """Return the distinct ones of degrees and the like, small whole numbers, ascending."""
    found: list[int] = np.flatnonzero(np.bincount(values_X)).tolist()
    return found


def runs(columns: IntArray | Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Return where each run of equal neighbouring columns begins, and the run of every column."""
    begins_X = np.ones(len(columns[0]), dtype=np.bool_)
    begins_X[1:] = np.logical_or.reduce([row[1:] != row[:-1] for row in columns])
    return np.flatnonzero(begins_X), np.cumsum(begins_X) - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """Points of the space; every array has one entry a point.

    Args:
        tp_X: Tensor-parallel degree.
        cp_X: Context-parallel degree.
        ulysses_X: Part of cp that exchanges heads.
        pp_X: Pipeline-parallel degree.
        dp_X: Data-parallel degree.
        ep_X: Expert-parallel degree.
        etp_X: Tensor-parallel degree of the experts.
        replicas_outermost_X: 1 where the stages of a model replica are neighbours, else 0.
        vpp_X: Virtual stages per pipeline rank.
        micro_batch_size_X: Sequences of a micro-batch; 0 where the batch does not split over dp.
        num_microbatches_X: Micro-batches of a step on one replica.
        sequence_parallel_X: 0 or 1.
        zero_stage_X: 0 to 3.
        state_replicas_X: Groups that each hold everything that is sharded.
        secondary_shard_X: Ranks that split a second copy of the weights; 1 without.
        recompute_X: Index into `Space.recomputes`.
        recompute_layers_X: Layers of each virtual stage that are recomputed whole while the others keep everything;
            0 treats all layers alike, as `recompute_X` says. Above 0 `recompute_X` is 0.
        optimizer_offload_X: Percent of the optimizer's states that may lie in host memory.
        least_offload_X: Percent of them that do, at least.
        parameter_offload_X: Where the weights lie: 0 on the GPUs, else as `planner.layout` numbers it.
        drive_offload_X: How drives take part in the optimizer step: 0 not at all, else as `planner.layout` numbers it.
        offloaded_layers_X: Layers whose saved tensors lie in host memory between passes, at least; 0 for none.
    """

    tp_X: IntArray
    cp_X: IntArray
    ulysses_X: IntArray
    pp_X: IntArray
    dp_X: IntArray
    ep_X: IntArray
    etp_X: IntArray
    replicas_outermost_X: IntArray
    vpp_X: IntArray
    micro_batch_size_X: IntArray
    num_microbatches_X: IntArray
    sequence_parallel_X: IntArray
    zero_stage_X: IntArray
    state_replicas_X: IntArray
    secondary_shard_X: IntArray
    recompute_X: IntArray
    recompute_layers_X: IntArray
    optimizer_offload_X: IntArray
    least_offload_X: IntArray
    parameter_offload_X: IntArray
    drive_offload_X: IntArray
    offloaded_layers_X: IntArray

    def __len__(self) -> int:
        return len(self.tp_X)

    @property
    def goes_whole_X(self) -> BoolArray:
        """Return whether all optimizer states of a point leave the GPU, or none (`planner.offloading.states`)."""
        piped_X = (self.zero_stage_X == SHARDED_WEIGHTS) & (self.pp_X > 1)
        whole_X: BoolArray = (self.parameter_offload_X != GPU_WEIGHTS) | (self.drive_offload_X != ON_HOSTS) | piped_X
        return whole_X

    def where(self, mask_X: BoolArray | IntArray) -> "Points":
        """Return the points that `mask_X` selects."""
        # A mask is walked through once, not for every column.
        index_X = np.flatnonzero(mask_X) if mask_X.dtype == np.bool_ else mask_X
        if mask_X.dtype == np.bool_ and len(index_X) == len(self):
            return self
        return Points(**{entry.name: getattr(self, entry.name)[index_X] for entry in fields(self)})

    def uses(self) -> "Uses":
        """Return the points with what they recompute left out, equal neighbours as one.

        Points are unrolled into what they recompute last, so that these are few.
        """
        rows = [getattr(self, entry.name) for entry in fields(self) if entry.name not in _RECOMPUTATION]
        first, use_X = runs(rows)
        return Uses(points=self.where(first), first=first, use_X=use_X)

    @property
    def stage_ranks_X(self) -> IntArray:
        """Return the GPUs of one pipeline rank."""
        return self.tp_X * self.cp_X * self.dp_X

    @property
    def edp_X(self) -> IntArray:
        """Return the ranks that hold the same routed experts."""
        return self.stage_ranks_X // (self.ep_X * self.etp_X)

    @property
    def sharding_columns(self) -> IntArray:
        """Return what decides one layer's operations, a row each."""
        return np.stack(
            [
                self.tp_X,
                self.sequence_parallel_X,
                self.micro_batch_size_X,
                self.cp_X,
                self.ulysses_X,
                self.ep_X,
                self.etp_X,
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Uses:
    """Points that differ in more than what they recompute, and those that they stand for.

    Args:
        points: The first of each.
        first: Where it is among all points.
        use_X: Which of them each point is like.
    """

    points: Points
    first: IntArray
    use_X: IntArray


def point_of(**degrees: int) -> Points:
    """Return one point with these degrees, by field name without its axis; the others 1, what is chosen by index 0."""
    columns = {entry.name.removesuffix("_X"): int(entry.name not in _FROM_ZERO) for entry in fields(Points)} | degrees
    return Points(**{f"{name}_X": np.array([value], dtype=np.int64) for name, value in columns.items()})


def point_of_layout(layout: Layout) -> Points:
    """Return a layout as a point, what it recomputes left out."""
    names = {entry.name.removesuffix("_X") for entry in fields(Points)}
    named = {name: int(getattr(layout, name)) for name in names if hasattr(layout, name) and name != "recompute"}
    percent = round(100 * layout.offloaded_fraction)
    return point_of(
        **named,
        replicas_outermost=int(layout.rank_order == REPLICAS_OUTERMOST),
        optimizer_offload=percent,
        least_offload=percent,
    )


_RECOMPUTATION = frozenset({"recompute_X", "recompute_layers_X"})

_FROM_ZERO = frozenset(
    {
        "replicas_outermost_X",
        "sequence_parallel_X",
        "zero_stage_X",
        "recompute_X",
        "recompute_layers_X",
        "optimizer_offload_X",
        "least_offload_X",
        "parameter_offload_X",
        "drive_offload_X",
        "offloaded_layers_X",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a space is enumerated for.

    Args:
        model: The model.
        graph: Its operators.
        num_gpus: GPUs of the cluster.
        fast_domain_size: GPUs that reach one another without the network.
        workload: The training run.
        constraints: What the user pins.
        capabilities: What the target can run.
        has_drives: It is known what the drives of a node hold, and how fast they are.
    """

    model: ModelSpec
    graph: ModelGraph
    num_gpus: int
    fast_domain_size: int
    workload: TrainWorkload
    constraints: Constraints
    capabilities: Capabilities
    has_drives: bool = False
