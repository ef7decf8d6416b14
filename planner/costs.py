"""Prices the space: one table of layer costs per sharding, and sound bounds for every point from it, vectorised.

Equal layers are collapsed: a layer's time and bytes depend on (tp, sequence_parallel, micro_batch_size) alone, so
each distinct block is priced once per such shape, and points differ only in counts. Axes: X points, D distinct blocks,
R recompute choices.

Two bounds are sound for every split of the layers into stages:

- memory: how many layers each pipeline rank can hold at most; a point whose ranks together cannot hold all layers is
  ruled out;
- time: `planner.schedule_bounds.any_split_bound_seconds` of the work of one micro-batch, plus the optimizer step of
  an average rank and the gradient norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.communication import gradient_norm_reduction, optimizer_traffic
from planner.graph import ModelGraph
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.memory import (
    CONTEXT_BYTES,
    FP8_COPY_BYTES,
    FRAGMENTATION_FRACTION,
    RankModel,
    communicator_bytes,
    head_elements,
    head_peak_bytes,
    shard_model,
    state_bytes,
)
from planner.pricing import price_steps
from planner.schedule_bounds import any_split_bound_seconds
from planner.shard import RankLayer, Sharding
from planner.space import BoolArray, IntArray, Points
from planner.specs import ModelSpec
from planner.workload import TrainWorkload
from profiles.estimate import CostModel

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides the cost of one layer.

    Args:
        tp: Tensor-parallel degree.
        sequence_parallel: The residual region is split over tp.
        micro_batch_size: Sequences of a micro-batch.
    """

    tp: int
    sequence_parallel: bool
    micro_batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeconds:
    """Time of one layer for one micro-batch.

    Args:
        forward_seconds: Forward pass.
        backward_seconds_R: Backward pass under each recompute choice, recomputation included.
    """

    forward_seconds: float
    backward_seconds_R: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """Sound lower bounds of points.

    Args:
        work_seconds_X: Forward and backward of one micro-batch through the whole model.
        pipeline_seconds_X: The pipeline, whatever the split.
        tail_seconds_X: Gradient norm and optimizer step, whatever the split.
    """

    work_seconds_X: FloatArray
    pipeline_seconds_X: FloatArray
    tail_seconds_X: FloatArray

    @property
    def step_seconds_X(self) -> FloatArray:
        """Return the bound of the whole step."""
        total_X: FloatArray = self.pipeline_seconds_X + self.tail_seconds_X
        return total_X


class ShapeCosts:
    """Bytes and seconds of every kind of layer in one shape; seconds are priced on first use."""

    def __init__(
        self,
        *,
        rank_model: RankModel,
        counts_D: tuple[int, ...],
        recomputes: tuple[Recompute, ...],
        cost_model: CostModel,
    ) -> None:
        self.rank_model = rank_model
        self.counts_D = counts_D
        self.recomputes = recomputes
        self.cost_model = cost_model

    def _seconds(self, layer: RankLayer, *, recomputed: bool) -> LayerSeconds:
        forward = price_steps(layer.forward, self.cost_model).total_seconds
        backward = price_steps(layer.backward, self.cost_model).total_seconds
        again_R = [
            price_steps(layer.recomputed_steps(choice), self.cost_model).total_seconds if recomputed else 0.0
            for choice in self.recomputes
        ]
        return LayerSeconds(forward_seconds=forward, backward_seconds_R=tuple(backward + again for again in again_R))

    @cached_property
    def blocks_D(self) -> tuple[LayerSeconds, ...]:
        """Return the seconds of each distinct block."""
        return tuple(self._seconds(layer, recomputed=True) for _, layer in self.rank_model.blocks)

    @cached_property
    def whole_layer_seconds(self) -> float:
        """Return what recomputing one layer whole adds to its backward pass, the least of all distinct blocks."""
        full = Recompute(granularity=Granularity.FULL)
        layers = [layer for _, layer in self.rank_model.blocks]
        return min(price_steps(layer.recomputed_steps(full), self.cost_model).total_seconds for layer in layers)

    @property
    def whole_layer_bytes(self) -> int:
        """Return what recomputing one layer whole frees of one micro-batch, the most of all distinct blocks."""
        return max(layer.all_saved_bytes - layer.layer_input_bytes for _, layer in self.rank_model.blocks)

    def choice_of(self, recompute: Recompute) -> int:
        """Return the recompute choice of the layers that are not recomputed whole."""
        if recompute.num_layers is not None:
            recompute = Recompute(granularity=Granularity.NONE)
        return self.recomputes.index(recompute)

    @cached_property
    def embedding(self) -> LayerSeconds:
        """Return the seconds of the embedding, which is never recomputed."""
        return self._seconds(self.rank_model.embedding, recomputed=False)

    @cached_property
    def head(self) -> LayerSeconds:
        """Return the seconds of the head, which is never recomputed."""
        return self._seconds(self.rank_model.head, recomputed=False)

    @cached_property
    def work_seconds_R(self) -> FloatArray:
        """Return the forward and backward seconds of one micro-batch through the whole model."""
        total_R = np.full(len(self.recomputes), self.embedding.forward_seconds + self.head.forward_seconds)
        total_R += np.array(self.embedding.backward_seconds_R) + np.array(self.head.backward_seconds_R)
        for count, block in zip(self.counts_D, self.blocks_D, strict=True):
            total_R += count * (block.forward_seconds + np.array(block.backward_seconds_R))
        return total_R

    def layer_bytes(self) -> Mapping[str, float]:
        """Return the facts that the memory bound reads, the least of all distinct blocks."""
        layers = [layer for _, layer in self.rank_model.blocks]
        facts: dict[str, float] = {
            "trainable": min(layer.num_elements(trainable=True) for layer in layers),
            "frozen": min(layer.num_elements(trainable=False) for layer in layers),
            "operands": min(layer.num_elements(gemm_operand=True) for layer in layers),
            "total_trainable": sum(
                count * layer.num_elements(trainable=True) for count, layer in zip(self.counts_D, layers, strict=True)
            ),
            "stream": self.rank_model.stream_bytes,
            "head_peak": head_peak_bytes(self.rank_model),
            "whole layer": self.whole_layer_bytes,
            "whole working": min(layer.transient_bytes for layer in layers),
        }
        for index, choice in enumerate(self.recomputes):
            facts[f"saved {index}"] = min(layer.saved_bytes(choice) for layer in layers)
            facts[f"working {index}"] = min(
                layer.all_saved_bytes - layer.saved_bytes(choice) + layer.transient_bytes for layer in layers
            )
        for trainable in (True, False):
            name = "trainable" if trainable else "frozen"
            facts[f"embedding {name}"] = self.rank_model.embedding.num_elements(trainable=trainable)
            facts[f"head {name}"] = head_elements(self.rank_model, pp=2, trainable=trainable)
            facts[f"lone head {name}"] = head_elements(self.rank_model, pp=1, trainable=trainable)
        return facts


class CostTable:
    """Costs of every shape of a space, and the bounds of its points.

    Args:
        model: The model.
        graph: Its operators.
        workload: The training run.
        cost_model: Prices operations.
        recomputes: The recompute choices of the space.
    """

    def __init__(
        self,
        *,
        model: ModelSpec,
        graph: ModelGraph,
        workload: TrainWorkload,
        cost_model: CostModel,
        recomputes: tuple[Recompute, ...],
    ) -> None:
        self.model = model
        self.graph = graph
        self.workload = workload
        self.cost_model = cost_model
        self.recomputes = recomputes
        self._shapes: dict[Shape, ShapeCosts] = {}

    def shape(self, shape: Shape) -> ShapeCosts:
        """Return the costs of one shape."""
        if shape not in self._shapes:
            sharding = Sharding(
                tp=shape.tp,
                sequence_parallel=shape.sequence_parallel,
                cp=1,
                micro_batch_size=shape.micro_batch_size,
                seq_len=self.workload.seq_len,
            )
            counts = dict.fromkeys(self.graph.blocks, 0)
            for run in self.model.runs:
                counts[run.block] += run.count
            self._shapes[shape] = ShapeCosts(
                rank_model=shard_model(self.graph, sharding),
                counts_D=tuple(counts.values()),
                recomputes=self.recomputes,
                cost_model=self.cost_model,
            )
        return self._shapes[shape]

    def shapes_of(self, points: Points) -> tuple[tuple[ShapeCosts, ...], IntArray]:
        """Return the distinct shapes of `points`, and which of them each point has."""
        columns = np.stack([points.tp_X, points.sequence_parallel_X, points.micro_batch_size_X])
        distinct, index_X = np.unique(columns, axis=1, return_inverse=True)
        shapes = tuple(
            self.shape(Shape(tp=int(tp), sequence_parallel=bool(sp), micro_batch_size=int(micro)))
            for tp, sp, micro in distinct.T
        )
        return shapes, index_X.astype(np.int64).ravel()

    def fits_X(self, points: Points, *, limit_bytes: int) -> BoolArray:
        """Return which points may fit: False is proven, True is not (exact bytes decide later).

        Pipeline rank i of a point can hold at most n_i layers beside what it must hold anyway; a point is ruled out
        when the n_i do not add up to the model, or some rank cannot hold one layer a chunk.
        """
        return self.capacity_layers_X(points, limit_bytes=limit_bytes) >= self.model.num_layers

    def capacity_layers_X(self, points: Points, *, limit_bytes: int) -> IntArray:
        """Return how many layers all pipeline ranks of a point can hold together, at most; -1 if one holds none."""
        if not len(points):
            return np.zeros(0, dtype=np.int64)
        need = _MemoryNeed(self, points)
        total_X = np.zeros(len(points), dtype=np.int64)
        hopeless_X = np.zeros(len(points), dtype=np.bool_)
        # Interleaved splits are as even as the layer count allows; others only leave no stage empty.
        even_X = self.model.num_layers // (points.pp_X * points.vpp_X)
        fewest_X = points.vpp_X * np.where(points.vpp_X > 1, even_X, np.maximum(points.recompute_layers_X, 1))
        for rank in range(int(points.pp_X.max())):
            here_X = points.pp_X > rank
            room_X = need.layers_X(rank, limit_bytes)
            hopeless_X |= here_X & (room_X < fewest_X)
            total_X += np.where(here_X, np.minimum(room_X, self.model.num_layers), 0)
        return np.where(hopeless_X, -1, total_X)

    def bounds(self, points: Points) -> Bounds:
        """Return times that no split of each point undercuts."""
        if not len(points):
            return Bounds(work_seconds_X=np.zeros(0), pipeline_seconds_X=np.zeros(0), tail_seconds_X=np.zeros(0))
        shapes, shape_X = self.shapes_of(points)
        work_SR = np.stack([shape.work_seconds_R for shape in shapes])
        again_S = np.array([shape.whole_layer_seconds for shape in shapes])
        recomputed_X = points.recompute_layers_X * points.pp_X * points.vpp_X
        work_X: FloatArray = work_SR[shape_X, points.recompute_X] + recomputed_X * again_S[shape_X]
        return Bounds(
            work_seconds_X=work_X,
            pipeline_seconds_X=any_split_bound_seconds(
                work_seconds_X=work_X,
                pp_X=points.pp_X,
                vpp_X=points.vpp_X,
                num_microbatches_X=points.num_microbatches_X,
            ),
            tail_seconds_X=self._tail_bound_X(points, shapes, shape_X),
        )

    def _tail_bound_X(self, points: Points, shapes: tuple[ShapeCosts, ...], shape_X: IntArray) -> FloatArray:
        """Return the gradient norm and the optimizer step of an average rank (the slowest takes no less)."""
        columns = np.stack([points.tp_X, points.pp_X, points.dp_X, points.zero_stage_X])
        distinct, first_X, index_X = np.unique(columns, axis=1, return_index=True, return_inverse=True)
        tails: list[float] = []
        for (tp, pp, dp, zero), first in zip(distinct.T, first_X, strict=True):
            layout = _mesh(tp=int(tp), pp=int(pp), dp=int(dp), zero_stage=int(zero))
            facts = shapes[shape_X[first]].layer_bytes()
            lone = "lone head" if pp == 1 else "head"
            total = facts["total_trainable"] + facts["embedding trainable"] + facts[f"{lone} trainable"]
            update = self.cost_model.compute(optimizer_traffic(int(total) // int(pp), layout, self.workload))
            tails.append(update.seconds + self.cost_model.collective(gradient_norm_reduction(layout)).seconds)
        return np.array(tails)[index_X.ravel()]


def _mesh(*, tp: int, pp: int, dp: int, zero_stage: int, interleaved: bool = False) -> Layout:
    """Return a layout of these degrees, for functions that read the mesh alone."""
    return Layout(
        tp=tp,
        sequence_parallel=False,
        pp=pp,
        vpp=1,
        dp=dp,
        zero_stage=zero_stage,
        micro_batch_size=1,
        num_microbatches=1,
        schedule=Schedule.NO_PIPELINE if pp == 1 else Schedule.ONE_F_ONE_B,
        recompute=Recompute(granularity=Granularity.NONE),
        overlap=Overlap(grad_reduce=False, param_gather=False, p2p=interleaved),
        stages=stages_from_counts((0,) * pp),
    )


class _MemoryNeed:
    """The parts of the memory bound that do not depend on the pipeline rank, as arrays over points."""

    def __init__(self, table: CostTable, points: Points) -> None:
        self.points = points
        self.num_layers = table.model.num_layers
        workload = table.workload
        shapes, shape_X = table.shapes_of(points)
        facts = [shape.layer_bytes() for shape in shapes]

        def column(name: str) -> FloatArray:
            return np.array([fact[name] for fact in facts], dtype=np.float64)[shape_X]

        def by_recompute(name: str) -> FloatArray:
            values_SR = np.array(
                [[fact[f"{name} {index}"] for index in range(len(table.recomputes))] for fact in facts]
            )
            chosen_X: FloatArray = values_SR[shape_X, points.recompute_X]
            return chosen_X

        per_element = state_bytes(workload)
        dp_X = points.dp_X.astype(np.float64)
        split = [np.where(points.zero_stage_X >= stage, dp_X, 1.0) for stage in (1, 2, 3)]
        frozen_X = per_element.weight / split[2]
        trainable_X = frozen_X + per_element.gradient / split[1] + (per_element.master + per_element.moments) / split[0]
        copies = FP8_COPY_BYTES if workload.precision.is_fp8 else 0

        def states(prefix: str) -> FloatArray:
            trainable, frozen = column(f"{prefix}trainable"), column(f"{prefix}frozen")
            total_X: FloatArray = trainable * trainable_X + frozen * frozen_X
            return total_X

        self.layer_states_X = states("") + column("operands") * copies
        self.embedding_states_X = states("embedding ")
        self.head_states_X = np.where(points.pp_X == 1, states("lone head "), states("head "))
        lost = 1.0 + FRAGMENTATION_FRACTION
        self.saved_X = by_recompute("saved") * lost
        self.partial_X = points.recompute_layers_X
        self.freed_X = self.partial_X * column("whole layer") * lost
        self.working_X = np.where(self.partial_X > 0, column("whole working"), by_recompute("working")) * lost
        self.head_peak_X = column("head_peak") * lost
        buffers_X = np.where(points.vpp_X > 1, 4.0, 2.0)  # `skeleton` overlaps transfers where it interleaves
        self.pipeline_X = np.where(points.pp_X > 1, buffers_X * column("stream") * lost, 0.0)
        self.always_X = CONTEXT_BYTES + _communicator_bytes_X(points, tied=table.model.tie_word_embeddings)

    def layers_X(self, rank: int, limit_bytes: int) -> IntArray:
        """Return how many layers pipeline rank `rank` can hold, at most; negative if not even what it must hold."""
        points = self.points
        last_X = points.pp_X == rank + 1
        fixed_X = self.always_X + self.pipeline_X
        fixed_X = fixed_X + (self.embedding_states_X if rank == 0 else 0.0)
        fixed_X = fixed_X + np.where(last_X, self.head_states_X, 0.0)
        fixed_X = fixed_X + np.where(last_X, np.maximum(self.head_peak_X, self.working_X), self.working_X)
        behind_X = np.maximum(points.pp_X - rank - 1, 0)
        plain_X = np.minimum(points.num_microbatches_X, behind_X + 1)
        pairs_X = np.minimum(
            points.num_microbatches_X * points.vpp_X, 2 * behind_X + (points.vpp_X - 1) * points.pp_X + 1
        )
        # The ledger rounds fragmentation to the nearest byte, and rounding must not rule out: one byte more.
        free_X = limit_bytes + 1 - fixed_X

        def room(free_X: FloatArray, kept_per_layer_X: FloatArray) -> FloatArray:
            rooms_X: FloatArray = np.floor(free_X / np.maximum(self.layer_states_X + kept_per_layer_X, 1.0) + 1e-9)
            return rooms_X

        plain_room_X = room(free_X + plain_X * self.freed_X, plain_X * self.saved_X)
        # An interleaved rank keeps `pairs` chunk activations, each of at least the smallest chunk's layers. Among them
        # are pp of every chunk but the last, so pp of every layer but the last chunk's.
        num_stages_X = points.pp_X * points.vpp_X
        smallest_X, largest_X = self.num_layers // num_stages_X, -(-self.num_layers // num_stages_X)
        kept_X = np.maximum(smallest_X * self.saved_X - self.freed_X, 0.0)
        groups_X = (points.vpp_X - 1) * points.pp_X
        spared_X = points.pp_X * largest_X * self.saved_X + groups_X * self.freed_X - (pairs_X - groups_X) * kept_X
        interleaved_room_X = np.minimum(
            room(free_X - pairs_X * kept_X, np.zeros_like(free_X)),
            room(free_X + spared_X, points.pp_X * self.saved_X),
        )
        interleaved_room_X = np.minimum(interleaved_room_X, points.vpp_X * largest_X)
        room_X = np.where(points.vpp_X > 1, interleaved_room_X, plain_room_X)
        return np.clip(room_X, -1, 1 << 30).astype(np.int64)


def _communicator_bytes_X(points: Points, *, tied: bool) -> FloatArray:
    """Return the bytes of communicators of each point."""
    columns = np.stack([points.tp_X, points.pp_X, points.dp_X, points.zero_stage_X, points.vpp_X > 1])
    distinct, index_X = np.unique(columns, axis=1, return_inverse=True)
    totals = [
        communicator_bytes(
            _mesh(tp=int(tp), pp=int(pp), dp=int(dp), zero_stage=int(zero), interleaved=bool(interleaved)),
            tied_embedding=tied,
        )
        for tp, pp, dp, zero, interleaved in distinct.T
    ]
    return np.array(totals, dtype=np.float64)[index_X.ravel()]
