"""How many layers a pipeline rank can hold, as arrays over points: no exact ledger finds room for more.

Axes: X points, U points with what they recompute left out (`Points.uses`), S shapes, D distinct blocks, R recompute
choices, or pipeline ranks. Demand is rounded down and limits up, so that only what cannot be is ruled out.

Where each layer has a recompute choice of its own, it counts as recomputed whole. That needs least at every moment of
a stage with k >= 1 micro-batches in flight: a layer that keeps s of its t bytes adds k s to what is held, and
max(t - s - freed, 0) while it is run again, of which the sum never falls with s or with what was freed before.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from planner.arrays import BoolArray, FloatArray, IntArray
from planner.frameworks.capabilities import Capabilities
from planner.frameworks.overheads import Overheads
from planner.layout import Recompute
from planner.memory.saved import head_peak_bytes
from planner.memory.state_bytes import StateBytes, communicators_bytes, fp8_copy_bytes, state_bytes
from planner.memory.terms import WORKSPACE_BYTES, ZERO_WEIGHTS
from planner.models.specs import ModelSpec
from planner.offloading.states import FP32_BYTES, SHARDED_WEIGHTS
from planner.ranks.communication import Grid
from planner.ranks.placement import RankModel
from planner.requests.workload import TrainWorkload
from planner.search.space.points import Points
from planner.search.space.unsharded_bound import Unsharded


class Shape(Protocol):
    """One shape's share of the model."""

    counts_D: tuple[int, ...]
    recomputes: tuple[Recompute, ...]

    @property
    def memory_facts(self) -> FloatArray:
        """Return what `memory_facts` says of the shape."""
        ...

    @property
    def saved_bytes_DR(self) -> FloatArray:
        """Return what one micro-batch keeps of each distinct block under each recompute choice."""
        ...

    @property
    def leaving_bytes_DR(self) -> FloatArray:
        """Return what of it waits on the host, where modules do."""
        ...


_OF_LAYER, _OF_ENDS = 8, 15
"""Numbers in `memory_facts` of each distinct block, and of the two ends."""


def memory_facts(rank_model: RankModel, counts_D: Sequence[FloatArray]) -> FloatArray:
    """Return every number of one shape that the bound reads, in one row.

    The ends: elements of the embedding, of a head beside it and of a head elsewhere (four each: trainable and frozen,
    dense and expert), the loss's peak, the stream's bytes and the head's fp8 operands. Then of each distinct block: its
    four elements, operands of linear layers, bytes saved, bytes of its own backward, bytes of its input.

    Args:
        rank_model: One rank's share of the layers.
        counts_D: `RankLayer.counts` of each distinct block, whatever follows them.
    """
    numbers: list[int] = [
        *rank_model.embedding.counts[:4],
        *rank_model.head_counts(pp=1),
        *rank_model.head_counts(pp=2),
        head_peak_bytes(rank_model),
        rank_model.stream_bytes,
        rank_model.head.gemm_operands,
    ]
    ends = np.array(numbers, dtype=np.float64)
    of_layers = (
        (counts[: _OF_LAYER - 2], (layer.transient_bytes, layer.layer_input_bytes))
        for layer, counts in zip(rank_model.layers, counts_D, strict=True)
    )
    return np.concatenate([ends, *(part for parts in of_layers for part in parts)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownSplit:
    """Layers on stages whose split is not a choice: no pipeline, or interleaved stages.

    Args:
        counts_RCD: Layers of each distinct block in each chunk of each pipeline rank.
    """

    counts_RCD: IntArray

    @property
    def pp(self) -> int:
        """Return the pipeline ranks."""
        return len(self.counts_RCD)

    @property
    def heaviest_ranks(self) -> tuple[int, ...]:
        """Return ranks of which one needs most: the last, and each that holds what no earlier rank holds at least.

        An earlier rank runs further ahead, and the first holds the embedding too.
        """
        last = self.pp - 1
        return tuple(
            rank
            for rank, held_CD in enumerate(self.counts_RCD)
            if rank == last or not any((before_CD >= held_CD).all() for before_CD in self.counts_RCD[:rank])
        )

    def in_flight(self, rank: int, num_microbatches_M: IntArray) -> IntArray:
        """Return how many micro-batches of each chunk C a rank holds when it has run ahead as far as it may.

        Of an interleaved rank that is 2 (pp - rank - 1) + (vpp - 1) pp + 1 chunk passes (Narayanan et al., arXiv
        2104.04473, section 2.2): pp of each chunk but the last, then of the last, then of the first again.
        """
        vpp = self.counts_RCD.shape[1]
        flights_CM = np.full((vpp, len(num_microbatches_M)), self.pp, dtype=np.int64)
        if vpp == 1:
            return np.minimum(flights_CM - rank, num_microbatches_M)
        pp_M = np.full_like(num_microbatches_M, self.pp)
        again_RM, last_RM = _interleaved_flights_RX(np.array([rank]), pp_M, num_microbatches_M)
        flights_CM[-1] = last_RM[0]
        flights_CM[0] += again_RM[0]
        return flights_CM


def _interleaved_flights_RX(
    rank_R: IntArray, pp_X: IntArray, num_microbatches_X: IntArray
) -> tuple[IntArray, IntArray]:
    """Return what an interleaved rank that has run ahead holds of its first chunk beyond pp, and of its last chunk.

    A step of pp micro-batches has no second round.
    """
    ahead_RX = 2 * (pp_X - rank_R[:, np.newaxis] - 1) + 1
    again_RX: IntArray = np.where(num_microbatches_X > pp_X, np.maximum(ahead_RX - pp_X, 0), 0)
    return again_RX, np.minimum(ahead_RX, pp_X)


class MemoryNeed:
    """The parts of the memory bound that do not depend on the pipeline rank, as arrays over points.

    Args:
        points: The points.
        shapes: Their distinct shapes, and which of them each point has.
        model: The model.
        workload: The training run.
        capabilities: What the target can run.
    """

    def __init__(
        self,
        *,
        points: Points,
        shapes: tuple[tuple[Shape, ...], IntArray],
        model: ModelSpec,
        workload: TrainWorkload,
        capabilities: Capabilities,
    ) -> None:
        self.points = points
        self.num_layers = model.num_layers
        self._shapes, shape_X = shapes
        folded = points.uses()
        uses, use_X, shape_U = folded.points, folded.use_X, shape_X[folded.first]
        overheads = capabilities.overheads
        lost = 1.0 + overheads.lost_fraction
        per_element = state_bytes(workload)
        apart = workload.gradient_dtype is not workload.precision.parameter_dtype
        half_gradient = 2.0 if capabilities.half_gradients and apart else 0.0
        ranks = (uses.dp_X * uses.cp_X / uses.state_replicas_X, uses.edp_X / uses.state_replicas_X)
        bytes_KU = np.stack(
            [
                row_U
                for ranks_U in ranks
                for row_U in _bytes_of_element(uses, per_element, ranks_U, half_gradient=half_gradient)
            ]
        )
        facts_KU = np.stack([shape.memory_facts for shape in self._shapes]).T[:, shape_U]
        saved_SDR = np.stack([shape.saved_bytes_DR for shape in self._shapes])
        here_SDR = saved_SDR - np.stack([shape.leaving_bytes_DR for shape in self._shapes])
        per_layer_R = np.array([choice.is_per_layer for choice in self._shapes[0].recomputes])
        self._per_layer_X = per_layer_R[points.recompute_X]

        def states_U(four_KU: FloatArray) -> FloatArray:
            """Return the bytes of weights, gradients and states of four kinds of elements."""
            total_U: FloatArray = np.einsum("ku,ku->u", four_KU, bytes_KU)
            return total_U

        copies = fp8_copy_bytes(workload.precision)
        kept_copies_U = np.where(uses.zero_stage_X == ZERO_WEIGHTS, 0.0, copies)
        self.static_DX: list[FloatArray] = []
        self.saved_DX: list[FloatArray] = []
        self.working_DX: list[FloatArray] = []
        whole_DU: list[FloatArray] = []
        unsharded = Unsharded(
            zero_stage_X=uses.zero_stage_X, per_element=per_element, capabilities=capabilities, lost=lost
        )
        for block in range(len(self._shapes[0].counts_D)):
            of_block_KU = facts_KU[_OF_ENDS + _OF_LAYER * block :][:_OF_LAYER]
            operands_U, all_saved_U, transient_U, input_U = of_block_KU[4:]
            self.static_DX.append((states_U(of_block_KU[:4]) + operands_U * kept_copies_U)[use_X])
            unsharded.add_layer(of_block_KU[:4])
            saved_X = saved_SDR[shape_X, block, points.recompute_X]
            again_X = np.where(points.recompute_layers_X > 0, 0.0, all_saved_U[use_X] - saved_X)
            # Where layers keep theirs on the host, it is not known here how many do.
            self.saved_DX.append(
                np.where(points.offloaded_layers_X > 0, 0.0, here_SDR[shape_X, block, points.recompute_X]) * lost
            )
            self.working_DX.append((again_X + transient_U[use_X]) * lost + unsharded.one_layer_DX[-1][use_X])
            whole_DU.append(all_saved_U - input_U)
        self.freed_X = points.recompute_layers_X * np.maximum.reduce(whole_DU)[use_X] * lost
        embedding_states_U = states_U(facts_KU[:4]) + unsharded.end_X(facts_KU[:4])
        if model.vision is not None:
            embedding_states_U += model.vision.num_parameters * per_element.weight
        self.embedding_states_X = embedding_states_U[use_X]
        head_peak_U, stream_U, operands_U = facts_KU[12:15]
        head_KU = np.where(uses.pp_X == 1, facts_KU[4:8], facts_KU[8:12])
        self.head_states_X = (states_U(head_KU) + unsharded.end_X(head_KU) + operands_U * copies)[use_X]
        self.head_peak_X = (head_peak_U * lost)[use_X]
        buffers_U = np.where(uses.vpp_X > 1, 4.0, 2.0)  # `skeleton` overlaps transfers where it interleaves
        pipeline_U: FloatArray = np.where(uses.pp_X > 1, buffers_U * stream_U * lost, 0.0)
        always_U = _communicator_bytes_X(uses, model, overheads) + (
            overheads.context_bytes + overheads.fixed_bytes + WORKSPACE_BYTES
        )
        self.beside_X = (pipeline_U + always_U)[use_X]
        self.unsharded = unsharded.where(use_X)

    def where(self, mask_X: BoolArray) -> "MemoryNeed":
        """Return the needs of the points that `mask_X` selects; every array of this object is one over points."""
        chosen, index_X = copy(self), np.flatnonzero(mask_X)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(chosen, name, value[index_X])
            elif isinstance(value, list):
                setattr(chosen, name, [part_X[index_X] for part_X in value])
        chosen.points = self.points.where(index_X)
        chosen.unsharded = self.unsharded.where(index_X)
        return chosen

    @property
    def _weights_D(self) -> FloatArray:
        counts = self._shapes[0].counts_D
        return np.array(counts, dtype=np.float64) / sum(counts)

    @cached_property
    def mean_static_X(self) -> FloatArray:
        """Return the bytes of a mean layer whatever is in flight."""
        static_X: FloatArray = self._weights_D @ np.stack(self.static_DX)
        return static_X

    @cached_property
    def mean_saved_X(self) -> FloatArray:
        """Return the bytes of a mean layer for each micro-batch in flight."""
        saved_X: FloatArray = self._weights_D @ np.stack(self.saved_DX)
        return saved_X

    @cached_property
    def quotients_DX(self) -> list[FloatArray]:
        """Return what each layer takes of a mean layer, at least.

        A layer with k micro-batches in flight takes s + k a bytes of its rank, a mean layer S + k A. The quotient is
        monotonic in k, so a layer takes at least the smaller of its quotients at the fewest and the most in flight,
        whichever rank holds it; the sum over layers is what the ranks' room, in mean layers, must reach.
        """
        static_X, saved_X = self.mean_static_X, self.mean_saved_X
        most_X = np.minimum(self.points.pp_X, self.points.num_microbatches_X)
        quotients_DX: list[FloatArray] = []
        for layer_static_X, layer_saved_X in zip(self.static_DX, self.saved_DX, strict=True):
            fewest_X = (layer_static_X + layer_saved_X) / np.maximum(static_X + saved_X, 1.0)
            most_quotient_X = (layer_static_X + most_X * layer_saved_X) / np.maximum(static_X + most_X * saved_X, 1.0)
            quotients_DX.append(np.maximum(np.minimum(fewest_X, most_quotient_X), 1e-9))
        return quotients_DX

    @property
    def counts_D(self) -> tuple[int, ...]:
        """Return the layers of each kind in the model."""
        return self._shapes[0].counts_D

    @property
    def model_X(self) -> FloatArray:
        """Return the mean layers that the whole model takes, at least."""
        total_X: FloatArray = np.array(self._shapes[0].counts_D, dtype=np.float64) @ np.stack(self.quotients_DX)
        return total_X

    def ranks(self, rank_R: IntArray, limit_bytes: int) -> "RankRooms":
        """Return what pipeline ranks have for layers within `limit_bytes`."""
        return RankRooms(self, rank_R, limit_bytes)

    def known_split_X(self, split: KnownSplit, limit_bytes: int) -> FloatArray:
        """Return the least of what each pipeline rank has for its layers over what they need; 1 just fits.

        The need is the one at the moment when a rank has run ahead as far as its schedule lets it.

        Args:
            split: The one way in which these points, all of one pp and vpp, are cut.
            limit_bytes: What a GPU may use.
        """
        distinct_M, index_X = np.unique(self.points.num_microbatches_X, return_inverse=True)
        least_X = np.full(len(self.points), np.inf)
        for rank in split.heaviest_ranks:
            flights_CM = split.in_flight(rank, distinct_M)
            need_X = np.zeros(len(self.points))
            for block, (static_X, saved_X) in enumerate(zip(self.static_DX, self.saved_DX, strict=True)):
                held_C = split.counts_RCD[rank, :, block]
                need_X += held_C.sum() * static_X + (held_C @ flights_CM)[index_X] * saved_X
            need_X -= flights_CM.sum(axis=0)[index_X] * self.freed_X
            held_D = split.counts_RCD[rank].sum(axis=0)
            of_layers_DX = np.stack([self.working_DX[block] for block in np.nonzero(held_D)[0]])
            # Where layers differ, what a layer frees before it is counted; the last one of a stage has freed nothing.
            working_X: FloatArray = np.where(self._per_layer_X, of_layers_DX.min(axis=0), of_layers_DX.max(axis=0))
            free_X = self.ranks(np.array([rank]), limit_bytes).free_RX(working_X)[0] - self.unsharded.held_X(held_D)
            least_X = np.minimum(least_X, free_X / np.maximum(need_X, 1.0))
        return least_X


class RankRooms:
    """What pipeline ranks have for layers, at most.

    Args:
        need: What the points need.
        rank_R: The ranks.
        limit_bytes: What a GPU may use.
    """

    def __init__(self, need: MemoryNeed, rank_R: IntArray, limit_bytes: int) -> None:
        self._need, self._rank_R = need, rank_R
        self._is_last_RX = need.points.pp_X == rank_R[:, np.newaxis] + 1
        fixed_RX = need.beside_X + np.where(rank_R[:, np.newaxis] == 0, need.embedding_states_X, 0.0)
        self._fixed_RX: FloatArray = fixed_RX + np.where(self._is_last_RX, need.head_states_X, 0.0)
        self._limit_bytes = limit_bytes + 1  # one byte for rounding

    def free_RX(self, working_RX: FloatArray) -> FloatArray:
        """Return what the ranks have for layers beside temporaries of `working_RX`."""
        beside_RX = np.where(self._is_last_RX, np.maximum(self._need.head_peak_X, working_RX), working_RX)
        free_RX: FloatArray = self._limit_bytes - (self._fixed_RX + beside_RX)
        return free_RX

    @cached_property
    def _most_free_RX(self) -> FloatArray:
        """Return `free_RX` beside the least temporaries; a stage at either end may hold no layer, and has none."""
        points = self._need.points
        may_be_empty_X = (points.pp_X > 1) & (points.vpp_X == 1) & (points.recompute_layers_X == 0)
        is_end_RX = (self._rank_R[:, np.newaxis] == 0) | self._is_last_RX
        return self.free_RX(np.where(is_end_RX & may_be_empty_X, 0.0, np.minimum.reduce(self._need.working_DX)))

    @cached_property
    def _interleaved_RX(self) -> tuple[IntArray, IntArray]:
        points = self._need.points
        return _interleaved_flights_RX(self._rank_R, points.pp_X, points.num_microbatches_X)

    @cached_property
    def _in_flight_RX(self) -> IntArray:
        """Return how many micro-batches a rank holds of every layer when it has run ahead.

        Of interleaved stages those of the last chunk, of which there are fewest.
        """
        points, (_, last_RX) = self._need.points, self._interleaved_RX
        behind_RX = np.maximum(points.pp_X - self._rank_R[:, np.newaxis] - 1, 0)
        plain_RX = np.minimum(points.num_microbatches_X, behind_RX + 1)
        in_flight_RX: IntArray = np.where(points.vpp_X > 1, last_RX, plain_RX)
        return in_flight_RX

    @cached_property
    def _kept_before_RX(self) -> FloatArray:
        """Return what chunks before the last one keep, of which more are in flight than `_in_flight_RX` says.

        Each of them holds the fewest layers of a stage at least.
        """
        need, points, (again_RX, _) = self._need, self._need.points, self._interleaved_RX
        before_RX = (points.vpp_X - 1) * (points.pp_X - self._in_flight_RX) + again_RX
        more_RX = np.where(points.vpp_X > 1, before_RX, 0)
        fewest_X = np.maximum(points.recompute_layers_X, 1)
        kept_RX: FloatArray = more_RX * np.maximum(fewest_X * np.minimum.reduce(need.saved_DX) - need.freed_X, 0.0)
        return kept_RX

    @cached_property
    def _freed_RX(self) -> FloatArray:
        """Return what layers that are recomputed whole do not keep."""
        freed_RX: FloatArray = self._need.points.vpp_X * self._in_flight_RX * self._need.freed_X
        return freed_RX

    def _of_layers_RX(self, free_RX: FloatArray) -> FloatArray:
        """Return what of `free_RX` there is for layers that keep as many micro-batches as `_in_flight_RX` says."""
        left_RX: FloatArray = free_RX - self._kept_before_RX + self._freed_RX
        return left_RX

    def mean_RX(self) -> FloatArray:
        """Return the mean layers that the ranks can hold, at most, by bytes, whatever the split."""
        need, in_flight_RX = self._need, self._in_flight_RX
        free_RX = self._of_layers_RX(self._most_free_RX)
        mean_RX = np.maximum(need.mean_static_X + in_flight_RX * need.mean_saved_X, 1.0)
        if not need.unsharded.gradient_X.any():
            plain_RX: FloatArray = np.maximum(free_RX / mean_RX, 0.0)
            return plain_RX
        of_layer_DRX = [
            np.maximum(static_X + in_flight_RX * saved_X, 1.0)
            for static_X, saved_X in zip(need.static_DX, need.saved_DX, strict=True)
        ]
        rooms_RX: FloatArray = np.zeros_like(free_RX)
        for growing_DX, fixed_DX in need.unsharded.cases:
            # Whatever the mix of layers, each byte that it needs draws at least `share_RX` more.
            shares = [more_X / of_RX for more_X, of_RX in zip(growing_DX, of_layer_DRX, strict=True)]
            share_RX = np.minimum.reduce(shares)
            case_RX = (free_RX - np.minimum.reduce(fixed_DX)) / (mean_RX * (1.0 + share_RX))
            rooms_RX = np.maximum(rooms_RX, case_RX)
        return rooms_RX

    def whole_RDX(self) -> FloatArray:
        """Return how many layers of each kind alone the ranks can hold, at most, whatever the split."""
        need = self._need
        rooms_DRX: list[FloatArray] = []
        for kind, working_X in enumerate(need.working_DX):
            free_RX = self._of_layers_RX(self.free_RX(working_X))
            layer_RX = np.maximum(need.static_DX[kind] + self._in_flight_RX * need.saved_DX[kind], 1.0)
            of_cases = (
                (free_RX - fixed_DX[kind]) / (layer_RX + growing_DX[kind])
                for growing_DX, fixed_DX in need.unsharded.cases
            )
            rooms_DRX.append(np.floor(np.maximum.reduce(list(of_cases)) + 1e-9))
        # Without a layer there are no temporaries either: whether that fits, `must_fit_RX` says.
        return np.clip(np.stack(rooms_DRX, axis=1), 0.0, float(1 << 30))

    def must_fit_RX(self) -> BoolArray:
        """Return whether the ranks can hold what they must, their layers left out."""
        fits_RX: BoolArray = self._most_free_RX >= 0
        return fits_RX


def _bytes_of_element(
    points: Points, per_element: StateBytes, ranks_X: FloatArray, *, half_gradient: float
) -> tuple[FloatArray, FloatArray]:
    """Return the bytes of an element that is (trainable, frozen), split over `ranks_X`.

    Args:
        points: The points.
        per_element: Bytes of an element that is not split.
        ranks_X: Ranks that split it.
        half_gradient: Bytes of a gradient beside the accumulated one, where gradients are whole and states are not.
    """
    weights_X, gradients_X, states_X = (np.where(points.zero_stage_X >= stage, ranks_X, 1.0) for stage in (3, 2, 1))
    second_X = np.where(points.secondary_shard_X > 1, 1.0 / points.secondary_shard_X, 0.0)
    weights_hosted_X = (points.parameter_offload_X > 0) & (points.zero_stage_X == SHARDED_WEIGHTS)
    frozen_X: FloatArray = np.where(weights_hosted_X, 0.0, per_element.weight * (1.0 / weights_X + second_X))
    states = (per_element.master + per_element.moments) * (1.0 - points.optimizer_offload_X / 100)
    half_X = np.where(points.zero_stage_X == 1, half_gradient, 0.0)
    hosted_X = (points.optimizer_offload_X > 0) & (points.zero_stage_X == SHARDED_WEIGHTS)
    kept_gradient_X = FP32_BYTES * (1.0 - points.optimizer_offload_X / 100) / states_X
    gradient_X = np.where(hosted_X, kept_gradient_X, per_element.gradient / gradients_X)
    return frozen_X + gradient_X + states / states_X + half_X, frozen_X


def _communicator_bytes_X(points: Points, model: ModelSpec, overheads: Overheads) -> IntArray:
    """Return the bytes of communicators of each point."""
    grid = Grid(
        tp=points.tp_X,
        cp=points.cp_X,
        ulysses=points.ulysses_X,
        pp=points.pp_X,
        dp=points.dp_X,
        ep=points.ep_X,
        etp=points.etp_X,
        zero_stage=points.zero_stage_X,
        state_replicas=points.state_replicas_X,
        secondary_shard=points.secondary_shard_X,
        interleaved=(points.vpp_X > 1).astype(np.int64),  # `skeleton` overlaps transfers where it interleaves
    )
    return communicators_bytes(grid, model, overheads)
