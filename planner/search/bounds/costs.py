"""Prices the space: one table of layer costs per sharding, and sound bounds for every point from it, vectorised.

Equal layers are collapsed: a layer's time and bytes depend on its `Sharding` alone, so each distinct block is priced
once per such shape, and points differ only in counts. Axes: X points, S shapes, D distinct blocks, R recompute choices.

Two bounds are sound for every split of the layers into stages:

- memory: how many layers each pipeline rank can hold at most; a point whose ranks together cannot hold all layers is
  ruled out;
- time: `planner.schedules.bounds.any_split_bound_seconds` of the work of one micro-batch, plus what follows the
  pipeline (`planner.search.bounds.tails`).
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, fields

import numpy as np

from planner.arrays import BoolArray, FloatArray, IntArray
from planner.frameworks.capabilities import Capabilities
from planner.layout import Recompute
from planner.models.graph import ModelGraph
from planner.models.specs import ModelSpec
from planner.ranks.placement import shard_model
from planner.ranks.shard import Sharder
from planner.ranks.sharding import Sharding
from planner.requests.workload import TrainWorkload
from planner.schedules.bounds import any_split_bound_seconds
from planner.search.bounds.memory_bound import KnownSplit, MemoryNeed
from planner.search.bounds.shape_costs import PartTable, ShapeCosts
from planner.search.bounds.tails import mean_trainable_XG, state_ranks, tail_bound_X
from planner.search.space.dimensions import interleaved_counts
from planner.search.space.points import Points, distinct, distinct_columns
from profiles.estimate import CostModel

SHARE_ROUNDING = 1e-9
"""Shares of a model are sums of quotients; rounding must not rule a point out."""

BLOCK_ELEMENTS = 1 << 16
"""Ranks times points looked at together: calls are few, and their arrays stay within a processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """Sound lower bounds of points.

    Args:
        work_seconds_X: Forward and backward of one micro-batch through the whole model.
        any_split_seconds_X: The pipeline of all splits that fit.
        pipeline_seconds_X: The pipeline of the splits that are searched.
        tail_seconds_X: Gradient norm and optimizer step, whatever the split.
    """

    work_seconds_X: FloatArray
    any_split_seconds_X: FloatArray
    pipeline_seconds_X: FloatArray
    tail_seconds_X: FloatArray

    @property
    def step_seconds_X(self) -> FloatArray:
        """Return the bound of the whole step."""
        total_X: FloatArray = self.pipeline_seconds_X + self.tail_seconds_X
        return total_X

    def where(self, mask_X: BoolArray) -> "Bounds":
        """Return the bounds of the points that `mask_X` selects."""
        return Bounds(**{entry.name: getattr(self, entry.name)[mask_X] for entry in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rooms:
    """What the layers of a pipeline rank can be at most.

    Args:
        seconds_RX: Their time for one micro-batch.
        layers_RDX: How many of each kind alone.
    """

    seconds_RX: FloatArray
    layers_RDX: FloatArray

    def at(self, index: int) -> "Rooms":
        """Return the rooms of one point."""
        chosen = slice(index, index + 1)
        return Rooms(seconds_RX=self.seconds_RX[:, chosen], layers_RDX=self.layers_RDX[:, :, chosen])


def _most_seconds_RX(
    rooms_RX: FloatArray, seconds_DX: FloatArray, quotients_DX: FloatArray, counts_D: IntArray
) -> FloatArray:
    """Return the longest that layers which fit can keep each rank busy: the kinds with most time for their bytes first.

    Args:
        rooms_RX: Room of each rank, in mean layers.
        seconds_DX: Time of a layer of each kind.
        quotients_DX: Mean layers that a layer of each kind takes, at least.
        counts_D: Layers of each kind in the model.
    """
    order_DX = np.argsort(-seconds_DX / quotients_DX, axis=0, kind="stable")
    left_RX = rooms_RX
    total_RX = np.zeros_like(rooms_RX)
    for kind_X in order_DX:
        quotient_X = np.take_along_axis(quotients_DX, kind_X[np.newaxis], axis=0)[0]
        taken_RX = np.minimum(counts_D[kind_X], left_RX / quotient_X)
        total_RX = total_RX + taken_RX * np.take_along_axis(seconds_DX, kind_X[np.newaxis], axis=0)[0]
        left_RX = left_RX - taken_RX * quotient_X
    return total_RX


def _fullest_X(caps_RX: FloatArray, total_X: FloatArray) -> FloatArray:
    """Return the least that the fullest rank holds when ranks hold at most `caps_RX` and `total_X` together.

    T must let min(c_r, T) add up to the total. With the k smallest caps that means T >= (total - their sum) / (p - k),
    and the largest of these over k is enough.
    """
    caps_RX = np.sort(caps_RX, axis=0)
    below_RX = np.cumsum(caps_RX, axis=0) - caps_RX
    left_R = len(caps_RX) - np.arange(len(caps_RX), dtype=np.float64)
    found_X: FloatArray = ((total_X - below_RX) / left_R[:, np.newaxis]).max(axis=0)
    return found_X


def _rank_blocks(pp: int, num_points: int) -> Iterator[IntArray]:
    """Yield the ranks of a pipeline, as many at a time as make arrays of `BLOCK_ELEMENTS` with the points."""
    step = max(BLOCK_ELEMENTS // max(num_points, 1), 1)
    for first in range(0, pp, step):
        yield np.arange(first, min(first + step, pp))


def _fewest_on_fullest(rooms_RDX: FloatArray, counts_D: IntArray) -> FloatArray:
    """Return how many layers of each kind the rank with most of them holds, at least."""
    rows = [_fullest_X(rooms_RDX[:, kind], np.asarray(float(count))) for kind, count in enumerate(counts_D)]
    fewest_DX: FloatArray = np.ceil(np.stack(rows) - SHARE_ROUNDING)
    return fewest_DX


class CostTable:
    """Costs of every shape of a space, and the bounds of its points.

    Args:
        model: The model.
        graph: Its operators.
        workload: The training run.
        cost_model: Prices operations.
        recomputes: The recompute choices of the space.
        capabilities: What the target can run.
    """

    modules: tuple[str, ...] = ()
    """Modules of all layers of all points whose saved tensors wait in host memory."""

    def __init__(  # noqa: PLR0913 - what a table is made from
        self,
        *,
        model: ModelSpec,
        graph: ModelGraph,
        workload: TrainWorkload,
        cost_model: CostModel,
        recomputes: tuple[Recompute, ...],
        capabilities: Capabilities,
    ) -> None:
        self.model = model
        self.graph = graph
        self.workload = workload
        self.cost_model = cost_model
        self.recomputes = recomputes
        self.capabilities = capabilities
        self.exchanges_states = capabilities.state_exchange and graph.has_recurrences
        self._shapes: dict[Sharding, ShapeCosts] = {}
        self._by_column: dict[tuple[int, ...], ShapeCosts] = {}
        self._sharder = Sharder()
        self._parts = PartTable(cost_model, recomputes)
        counts = dict.fromkeys(graph.blocks, 0)
        for run in model.runs:
            counts[run.block] += run.count
        self._counts_D = tuple(counts.values())

    def with_modules(self, modules: tuple[str, ...]) -> "CostTable":
        """Return the costs of the points with these modules on the hosts; what layers take is worked out once."""
        table = copy(self)
        table.modules = modules
        table._shapes, table._by_column = {}, {}  # noqa: SLF001 - of its own kind
        return table

    def shape(self, sharding: Sharding) -> ShapeCosts:
        """Return the costs of one shape."""
        if sharding not in self._shapes:
            self._shapes[sharding] = ShapeCosts(
                rank_model=shard_model(self.graph, sharding, cut=self._sharder.layer),
                counts_D=self._counts_D,
                parts=self._parts,
                modules=self.modules,
            )
        return self._shapes[sharding]

    def shapes_of(self, points: Points) -> tuple[tuple[ShapeCosts, ...], IntArray]:
        """Return the distinct shapes of `points`, and which of them each point has."""
        columns = points.sharding_columns
        first, index_X = distinct_columns(columns)
        return tuple(self._at(tuple(column)) for column in columns[:, first].T.tolist()), index_X

    def _at(self, column: tuple[int, ...]) -> ShapeCosts:
        """Return the costs of the shape of one column of `Points.sharding_columns`."""
        found = self._by_column.get(column)
        if found is None:
            found = self._by_column[column] = self.shape(self._sharding(*column))
        return found

    def _sharding(self, *column: int) -> Sharding:
        """Return the sharding of one column of `Points.sharding_columns`."""
        tp, sequence_parallel, micro_batch_size, cp, ulysses, ep, etp = column
        busiest = self.workload.busiest_rank(ep)
        return Sharding(
            tp=tp,
            sequence_parallel=bool(sequence_parallel),
            micro_batch_size=micro_batch_size,
            seq_len=self.workload.seq_len,
            cp=cp,
            ulysses=ulysses,
            state_exchange=cp > 1 and self.exchanges_states,
            ep=ep,
            etp=etp,
            routing_skew=busiest.on_average,
            peak_skew=busiest.at_worst,
            moved_experts=busiest.moved,
            peak_moved_experts=busiest.moved_at_worst,
            vocab_divisor=self.capabilities.vocab_divisor,
        )

    def fits_X(self, points: Points, *, limit_bytes: int, any_split: bool = False) -> BoolArray:
        """Return which points may fit: False is proven, True is not (exact bytes decide later).

        Pipeline rank i of a point can hold at most n_i layers beside what it must hold anyway; a point is ruled out
        when the n_i do not add up to the model, or some rank cannot hold one layer a chunk.

        Args:
            points: The points.
            limit_bytes: What each GPU may use.
            any_split: Rule interleaved points out only where no split fits, not the one that they stand for alone.
        """
        capacity_X = self.capacity_layers_X(points, limit_bytes=limit_bytes, any_split=any_split)
        return capacity_X >= self.model.num_layers

    def capacity_layers_X(self, points: Points, *, limit_bytes: int, any_split: bool = False) -> FloatArray:
        """Return how many layers all pipeline ranks of a point can hold together, at most; -1 if one holds too few.

        Where layers differ, a rank's room is counted twice: in whole layers of the smallest kind, and in bytes; the
        worse of both counts, the latter as a share of the model. Interleaved ranks hold theirs in the one split that
        their point stands for, or with `any_split` in any.
        """
        capacity_X = np.zeros(len(points))
        for pp in distinct(points.pp_X):
            with_pp = np.nonzero(points.pp_X == pp)[0]
            part = points.where(with_pp)
            need = self._need(part)
            known_X = (part.pp_X == 1) | ((part.vpp_X > 1) & (not any_split))
            for vpp in distinct(part.vpp_X[known_X]):
                with_both_X = known_X & (part.vpp_X == vpp)
                split = self._known_split(pp=pp, vpp=vpp)
                share_X = need.where(with_both_X).known_split_X(split, limit_bytes)
                capacity_X[with_pp[with_both_X]] = self.model.num_layers * share_X
            if not known_X.all():
                found_X = self._any_split_capacity_X(need.where(~known_X), pp=pp, limit_bytes=limit_bytes)
                capacity_X[with_pp[~known_X]] = found_X
        return capacity_X

    def _known_split(self, *, pp: int, vpp: int) -> KnownSplit:
        """Return the one split of the model without a pipeline, or with interleaved stages."""
        counts = interleaved_counts(self.model.num_layers, pp * vpp)
        assert counts is not None, "the space holds only interleaved stages that come out even"
        kinds = list(self.graph.blocks)
        of_layer_LD = np.eye(len(kinds), dtype=np.int64)[[kinds.index(block) for block in self.model.blocks]]
        counts_SD = np.add.reduceat(of_layer_LD, np.cumsum((0, *counts[:-1])), axis=0)
        return KnownSplit(counts_RCD=counts_SD.reshape(vpp, pp, len(kinds)).transpose(1, 0, 2))

    def _need(self, points: Points) -> MemoryNeed:
        return MemoryNeed(
            points=points,
            shapes=self.shapes_of(points),
            model=self.model,
            workload=self.workload,
            capabilities=self.capabilities,
        )

    def _any_split_capacity_X(self, need: MemoryNeed, *, pp: int, limit_bytes: int) -> FloatArray:
        """Return `capacity_layers_X` of pipelines of `pp` ranks, whatever the split.

        Splits leave no stage empty but at the ends of a plain pipeline, and none with fewer layers than are recomputed.
        """
        vpp_X, recomputed_X = need.points.vpp_X, need.points.recompute_layers_X
        num_layers, counts_D = self.model.num_layers, np.array(need.counts_D, dtype=np.float64)
        whole_DX = np.zeros((len(counts_D), len(recomputed_X)))
        rooms_X = np.zeros(len(recomputed_X))
        hopeless_X = np.zeros(len(recomputed_X), dtype=np.bool_)
        for rank_R in _rank_blocks(pp, len(need.points)):
            rooms = need.ranks(rank_R, limit_bytes)
            room_RDX = rooms.whole_RDX()
            between_R = (rank_R > 0) & (rank_R < pp - 1)
            fewest_RX = vpp_X * np.maximum(recomputed_X, (vpp_X > 1) | between_R[:, np.newaxis])
            too_small_RX = (room_RDX.max(axis=1) < fewest_RX) | ~rooms.must_fit_RX()
            hopeless_X |= too_small_RX.any(axis=0)
            whole_DX += np.minimum(room_RDX, num_layers).sum(axis=0)
            rooms_X += rooms.mean_RX().sum(axis=0)
        # All layers of each kind must find room, and all layers together.
        by_kind_X = (whole_DX / counts_D[:, np.newaxis]).min(axis=0)
        share_X = np.minimum(by_kind_X, rooms_X / need.model_X) * (1.0 + SHARE_ROUNDING)
        return np.where(hopeless_X, -1.0, share_X * num_layers)

    def bounds(self, points: Points, *, limit_bytes: int) -> Bounds:
        """Return times that no split of each point undercuts that fits into `limit_bytes`."""
        if not len(points):
            nothing_X = np.zeros(0)
            return Bounds(
                work_seconds_X=nothing_X,
                any_split_seconds_X=nothing_X,
                pipeline_seconds_X=nothing_X,
                tail_seconds_X=nothing_X,
            )
        shapes, shape_X = self.shapes_of(points)
        work_X = self._work_X(points, shapes, shape_X)
        pipeline_X = self._any_split_X(points, work_X)
        known_X, filled_X = self._busiest_rank_X(points, self._layer_seconds_DX(points), limit_bytes=limit_bytes)
        micro_X, interleaved_X = points.num_microbatches_X, points.vpp_X > 1
        # A known rank works for every micro-batch, and so does an interleaved one; a plain pipeline with a stage of t
        # takes W + (m - p) t where there are more micro-batches than stages (inequality (1) of
        # `any_split_bound_seconds`).
        plain_X = np.where(micro_X > points.pp_X, work_X + (micro_X - points.pp_X) * filled_X, 0.0)
        split_X = np.where(interleaved_X, micro_X * filled_X, plain_X) * (1.0 - SHARE_ROUNDING)
        any_split_X = np.maximum(pipeline_X, split_X)
        return Bounds(
            work_seconds_X=work_X,
            any_split_seconds_X=any_split_X,
            pipeline_seconds_X=np.maximum(any_split_X, micro_X * known_X * (1.0 - SHARE_ROUNDING)),
            tail_seconds_X=self._tail_bound_X(points, shapes, shape_X),
        )

    def _busiest_rank_X(
        self, points: Points, layers_DX: FloatArray, *, limit_bytes: int
    ) -> tuple[FloatArray, FloatArray]:
        """Return what the layers of the busiest pipeline rank take for one micro-batch, at least.

        First in the split that is known, then in any; 0 where there is none, or one alone. Each rank has room for so
        many layers only, in whole layers of each kind and in bytes of all kinds together; the fullest has what the
        others cannot hold.
        """
        counts_D = np.array(next(iter(self._shapes.values())).counts_D, dtype=np.int64)
        known_X, any_split_X = np.zeros(len(points)), np.zeros(len(points))
        keys = np.stack([points.pp_X, points.vpp_X])
        first, kind_X = distinct_columns(keys)
        for kind, (pp, vpp) in enumerate(keys[:, first].T.tolist()):
            if pp == 1 or vpp > 1:
                of_kind = np.nonzero(kind_X == kind)[0]
                counts_RD = self._known_split(pp=pp, vpp=vpp).counts_RCD.sum(axis=1)
                known_X[of_kind] = (counts_RD @ layers_DX[:, of_kind]).max(axis=0)
        for pp in distinct(points.pp_X[points.pp_X > 1]):
            with_pp = np.nonzero(points.pp_X == pp)[0]
            seconds_DX = layers_DX[:, with_pp]
            rooms = self.layer_rooms(points.where(with_pp), limit_bytes=limit_bytes)
            filled_X = _fullest_X(rooms.seconds_RX, counts_D @ seconds_DX)
            fewest_DX = _fewest_on_fullest(rooms.layers_RDX, counts_D)
            any_split_X[with_pp] = np.maximum(filled_X, (fewest_DX * seconds_DX).max(axis=0))
        return known_X, any_split_X

    def _layer_seconds_DX(self, points: Points) -> FloatArray:
        """Return the time of a layer of each kind, forward and backward, for one micro-batch."""
        shapes, shape_X = self.shapes_of(points)
        layers_SDR = np.stack([shape.layer_seconds_DR for shape in shapes])
        seconds_DX: FloatArray = layers_SDR[shape_X, :, points.recompute_X].T
        return seconds_DX

    def layer_rooms(self, points: Points, *, limit_bytes: int) -> Rooms:
        """Return what the layers of each pipeline rank can be at most, by memory alone, whatever the split.

        Args:
            points: Points of one pp.
            limit_bytes: What each GPU may use.
        """
        need, pp = self._need(points), int(points.pp_X[0])
        seconds_DX = self._layer_seconds_DX(points)
        counts_D = np.array(need.counts_D, dtype=np.int64)
        blocks = [need.ranks(rank_R, limit_bytes) for rank_R in _rank_blocks(pp, len(points))]
        rooms_RX = np.concatenate([rooms.mean_RX() for rooms in blocks])
        return Rooms(
            seconds_RX=_most_seconds_RX(rooms_RX, seconds_DX, np.stack(need.quotients_DX), counts_D),
            layers_RDX=np.concatenate([rooms.whole_RDX() for rooms in blocks]),
        )

    def _tail_bound_X(self, points: Points, shapes: tuple[ShapeCosts, ...], shape_X: IntArray) -> FloatArray:
        of_point_XG = mean_trainable_XG(points, shapes, shape_X)
        return tail_bound_X(points, of_point_XG, workload=self.workload, cost_model=self.cost_model)

    def mean_updated_X(self, points: Points) -> IntArray:
        """Return the elements whose states a rank keeps on average, on the GPU or on its host, rounded down."""
        dense_X, expert_X = mean_trainable_XG(points, *self.shapes_of(points)).T
        ranks = state_ranks(points)
        mean_X: IntArray = dense_X // ranks["dense_ranks"] + expert_X // ranks["expert_ranks"]
        return mean_X

    def least_tail_seconds_X(self, points: Points) -> FloatArray:
        """Return what follows the pipeline of each point, at least, whatever the split."""
        shapes, shape_X = self.shapes_of(points)
        return self._tail_bound_X(points, shapes, shape_X)

    def least_seconds_X(self, points: Points) -> FloatArray:
        """Return times that no split of each point undercuts, whatever memory there is."""
        shapes, shape_X = self.shapes_of(points)
        pipeline_X = self._any_split_X(points, self._work_X(points, shapes, shape_X))
        least_X: FloatArray = pipeline_X + self._tail_bound_X(points, shapes, shape_X)
        return least_X

    def _work_X(self, points: Points, shapes: tuple[ShapeCosts, ...], shape_X: IntArray) -> FloatArray:
        """Return what one micro-batch takes through the whole model, forward and backward."""
        work_SR = np.stack([shape.work_seconds_R for shape in shapes])
        again_S = np.array([shape.whole_layer_seconds for shape in shapes])
        recomputed_X = points.recompute_layers_X * points.pp_X * points.vpp_X
        work_X: FloatArray = work_SR[shape_X, points.recompute_X] + recomputed_X * again_S[shape_X]
        return work_X

    def _any_split_X(self, points: Points, work_X: FloatArray) -> FloatArray:
        return any_split_bound_seconds(
            work_seconds_X=work_X,
            pp_X=points.pp_X,
            vpp_X=points.vpp_X,
            num_microbatches_X=points.num_microbatches_X,
        )
