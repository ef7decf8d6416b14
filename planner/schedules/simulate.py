"""How long a pipeline schedule takes, by running every forward and backward pass of every rank in order.

An operation starts when its rank has ended the one before it and its input has arrived. That recurrence over a fixed
acyclic graph is exact; no closed form stands in for it. Arrays name their axes:

    R  pipeline ranks
    C  chunks of one rank
    K  positions in one rank's order
    V  virtual stages in model order; stage k runs on rank k mod pp as chunk k // pp
    E  boundaries between neighbouring virtual stages; boundary e joins stages e and e + 1
    N  all operations, each after those that it waits for
    P  passes and
    O  kinds of operations, as `planner.schedules.orders` counts them
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isfinite

import numpy as np

from planner.arrays import FloatArray, IntArray
from planner.schedules.orders import OperationOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """What one micro-batch costs on each virtual stage.

    Args:
        forward_seconds_V: Forward pass.
        backward_seconds_V: Backward pass, recomputation included.
        transfer_seconds_E: Activations over each boundary; their gradients take as long the other way. Empty: nothing.
        blocking_transfers: Sender and receiver compute nothing while a transfer lasts. Transfers in both directions
            run at the same time, and a sender does not wait for a receiver that is late.
        first_forward_extra_seconds_V: Added to the first forward pass of a stage (parameter all-gather that is not
            hidden). Empty: nothing.
        last_backward_extra_seconds_V: Keeps the rank busy after the last backward pass of a stage (gradient reduction
            that is not hidden); the gradient for the stage before leaves ahead of it. Empty: nothing.
    """

    forward_seconds_V: tuple[float, ...]
    backward_seconds_V: tuple[float, ...]
    transfer_seconds_E: tuple[float, ...] = ()
    blocking_transfers: bool = False
    first_forward_extra_seconds_V: tuple[float, ...] = ()
    last_backward_extra_seconds_V: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the lengths and signs."""
        num_stages = len(self.forward_seconds_V)
        for name, values, expected in (
            ("forward_seconds_V", self.forward_seconds_V, num_stages),
            ("backward_seconds_V", self.backward_seconds_V, num_stages),
            ("transfer_seconds_E", self.transfer_seconds_E or (0.0,) * (num_stages - 1), num_stages - 1),
            ("first_forward_extra_seconds_V", self.first_forward_extra_seconds_V or (0.0,) * num_stages, num_stages),
            ("last_backward_extra_seconds_V", self.last_backward_extra_seconds_V or (0.0,) * num_stages, num_stages),
        ):
            if len(values) != expected:
                raise ValueError(f"{name} has {len(values)} entries, not {expected}")
            if min(values, default=0.0) < 0.0 or not isfinite(sum(values)):
                raise ValueError(f"{name} holds a time that is negative or not finite")

    @property
    def num_stages(self) -> int:
        """Return the number of virtual stages."""
        return len(self.forward_seconds_V)


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """When every operation of a step ran.

    Args:
        order: What the ranks ran.
        times: What passes and transfers took.
        seconds: The same of every kind of operation.
        ends: End of each operation of the program, behind a 0 for the start of the step.
    """

    order: OperationOrder
    times: StageTimes
    seconds: "OperationSeconds"
    ends: list[float]

    @cached_property
    def end_seconds_RK(self) -> FloatArray:
        """Return the end of each operation."""
        end_seconds_RK: FloatArray = np.array(self.ends)[_program(self.order).place_RK]
        return end_seconds_RK

    @cached_property
    def start_seconds_RK(self) -> FloatArray:
        """Return the start of each operation; the first one of the step starts at 0."""
        start_seconds_RK: FloatArray = self.end_seconds_RK - self.seconds.duration_O[self.order.kinds.kind_RK]
        return start_seconds_RK

    @cached_property
    def rank_end_seconds_R(self) -> FloatArray:
        """Return the end of each rank's last operation and of the extra after it."""
        end_seconds_R = np.array([self.ends[place] for place in _program(self.order).place_RK[:, -1].tolist()])
        rank_end_seconds_R: FloatArray = end_seconds_R + self.seconds.extra_after_O[self.order.kinds.kind_RK[:, -1]]
        return rank_end_seconds_R

    @property
    def busy_seconds_R(self) -> FloatArray:
        """Return what forward and backward passes of each rank take, without extras and transfers."""
        order, times = self.order, self.times
        work_V = np.array(times.forward_seconds_V) + np.array(times.backward_seconds_V)
        busy_seconds_R: FloatArray = order.num_microbatches * work_V.reshape(order.vpp, order.pp).sum(axis=0)
        return busy_seconds_R

    def longest_chain(self) -> IntArray:
        """Return what the rank that ends last waited for, from its last operation back to the first of the step.

        Operations are rank times K plus position.
        """
        program, ends = _program(self.order), self.ends
        gap_O, transfer_O = self.seconds.gap_before_O.tolist(), self.seconds.transfer_in_O.tolist()
        place = int(program.place_RK[self.rank_end_seconds_R.argmax(), -1])
        places: list[int] = []
        while place:
            places.append(place)
            before, source, kind = program.before[place - 1], program.source[place - 1], program.kind[place - 1]
            place = before if ends[before] + gap_O[kind] > ends[source] + transfer_O[kind] else source
        chain: IntArray = program.flat_N[np.array(places) - 1]
        return chain

    @property
    def span_seconds_R(self) -> FloatArray:
        """Return the time between each rank's first start and its last end."""
        spans_R: FloatArray = self.rank_end_seconds_R - self.start_seconds_RK[:, 0]
        return spans_R

    @property
    def span_seconds(self) -> float:
        """Return the longest span of any rank: what the step takes when ranks do not wait for one another after it."""
        return float(self.span_seconds_R.max())

    @property
    def critical_rank(self) -> int:
        """Return the rank with the longest span, the lowest of equals."""
        return int(self.span_seconds_R.argmax())

    @property
    def busiest_rank(self) -> int:
        """Return the rank with the most work, the lowest of equals."""
        return int(self.busy_seconds_R.argmax())

    @property
    def bubble_fraction(self) -> float:
        """Return the share of the span in which the critical rank runs neither forward nor backward passes."""
        return 1.0 - float(self.busy_seconds_R[self.critical_rank]) / self.span_seconds

    @property
    def last_backward_end_seconds_RC(self) -> FloatArray:
        """Return when the last micro-batch's backward pass ends on each chunk: its gradients are complete."""
        order = self.order
        picked_RK = order.is_backward_RK & (order.microbatch_RK == order.num_microbatches - 1)
        rank_N, position_N = np.nonzero(picked_RK)
        end_seconds_RC = np.empty((order.pp, order.vpp), dtype=np.float64)
        end_seconds_RC[rank_N, order.chunk_RK[rank_N, position_N]] = self.end_seconds_RK[rank_N, position_N]
        return end_seconds_RC


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperationSeconds:
    """The times of every kind of operation of an order.

    Args:
        duration_O: The operation itself.
        gap_before_O: From the end of the operation before it on its rank to its earliest start.
        transfer_in_O: From the end of the operation whose result it needs to the arrival of that result.
        extra_after_O: What keeps the rank busy after it; part of the next gap.
    """

    duration_O: FloatArray
    gap_before_O: FloatArray
    transfer_in_O: FloatArray
    extra_after_O: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Program:
    """The operations of an order, each after those that it waits for.

    Their places count from 1; 0 stands for nothing to wait for. What is walked one by one, again for every times of the
    same order, is in lists.

    Args:
        place_RK: The place of each operation.
        flat_N: Rank times K plus position of each, by place.
        before: Place of the operation before each one on its rank.
        source: Place of the operation whose result it needs.
        kind: Its kind.
    """

    place_RK: IntArray
    flat_N: IntArray
    before: list[int]
    source: list[int]
    kind: list[int]


def simulate(order: OperationOrder, times: StageTimes) -> Timeline:
    """Return when every operation runs: as early as its rank and its input allow.

    Raises:
        ValueError: The times are not for as many stages as the order has.

    """
    seconds = operation_seconds(order, times)
    program = _program(order)
    # There are few kinds: their numbers stay near at hand, where one of each operation's own would not.
    gap_O, transfer_O, duration_O = (
        of_kind.tolist() for of_kind in (seconds.gap_before_O, seconds.transfer_in_O, seconds.duration_O)
    )
    ends = [0.0]
    for before, source, kind in zip(program.before, program.source, program.kind, strict=True):
        free = ends[before] + gap_O[kind]
        ready = ends[source] + transfer_O[kind]
        ends.append((free if free > ready else ready) + duration_O[kind])
    return Timeline(order=order, times=times, seconds=seconds, ends=ends)


def operation_seconds(order: OperationOrder, times: StageTimes) -> OperationSeconds:
    """Return the times of every kind of operation of an order.

    With blocking transfers the gap between two operations of a rank is the longer of sending the first one's result
    and receiving the second one's input.

    Raises:
        ValueError: The times are not for as many stages as the order has.

    """
    if times.num_stages != order.num_stages:
        raise ValueError(f"times for {times.num_stages} stages given, the order has {order.num_stages}")
    # Of each stage forward, the first forward, backward, the last backward: the passes that kinds are made of.
    duration_P, extra_after_P, transfer_in_P, transfer_out_P = of_passes = np.zeros((4, 4 * times.num_stages))
    duration_P[0::4] = duration_P[1::4] = times.forward_seconds_V
    duration_P[2::4] = duration_P[3::4] = times.backward_seconds_V
    if times.first_forward_extra_seconds_V:
        duration_P[1::4] += times.first_forward_extra_seconds_V
    if times.last_backward_extra_seconds_V:
        extra_after_P[3::4] = times.last_backward_extra_seconds_V
    # Stage k is joined to k - 1 by entry k and to k + 1 by entry k + 1; nothing lies beyond the ends.
    transfer = np.zeros(times.num_stages + 1)
    transfer[1:-1] = times.transfer_seconds_E or 0.0
    transfer_in_P[0::4] = transfer_in_P[1::4] = transfer_out_P[2::4] = transfer_out_P[3::4] = transfer[:-1]
    transfer_in_P[2::4] = transfer_in_P[3::4] = transfer_out_P[0::4] = transfer_out_P[1::4] = transfer[1:]

    duration_O, extra_after_O, transfer_in_O, _ = of_passes[:, order.kinds.pass_O]
    _, extra_before_O, _, transfer_out_O = of_passes[:, order.kinds.before_O]
    blocked_O = np.maximum(transfer_out_O, transfer_in_O) if times.blocking_transfers else 0.0
    return OperationSeconds(
        duration_O=duration_O,
        gap_before_O=np.where(order.kinds.before_O < 0, 0.0, blocked_O + extra_before_O),
        transfer_in_O=transfer_in_O,
        extra_after_O=extra_after_O,
    )


@lru_cache(maxsize=128)
def _program(order: OperationOrder) -> _Program:
    """Return the operations in an order in which each one comes after those that it waits for."""
    num_positions = order.is_backward_RK.shape[1]
    flat_N = np.argsort(order.slot_RK, axis=None, kind="stable")
    # Place of each operation in the sequence, from 1; the last entry answers for nothing to wait for.
    place_N = np.zeros(len(flat_N) + 1, dtype=np.int64)
    place_N[flat_N] = np.arange(1, len(flat_N) + 1)
    before_N = place_N[np.where(flat_N % num_positions == 0, -1, flat_N - 1)]
    source_N = place_N[sources_RK(order).ravel()[flat_N]]
    assert (np.maximum(before_N, source_N) < place_N[flat_N]).all(), "an operation waits for one in a later slot"
    return _Program(
        place_RK=place_N[:-1].reshape(order.slot_RK.shape),
        flat_N=flat_N,
        before=before_N.tolist(),
        source=source_N.tolist(),
        kind=order.kinds.kind_RK.ravel()[flat_N].tolist(),
    )


@lru_cache(maxsize=128)
def sources_RK(order: OperationOrder) -> IntArray:
    """Return the flat index of the operation whose result each operation needs; -1 for the first forward passes."""
    last = order.num_stages - 1
    stage_RK = order.stage_RK
    flat_of = np.empty((2, order.num_stages, order.num_microbatches), dtype=np.int64)
    backward_RK = order.is_backward_RK.astype(np.int64)
    flat_of[backward_RK, stage_RK, order.microbatch_RK] = np.arange(stage_RK.size).reshape(stage_RK.shape)
    before_RK = flat_of[0, np.maximum(stage_RK - 1, 0), order.microbatch_RK]
    after_RK = flat_of[1, np.minimum(stage_RK + 1, last), order.microbatch_RK]
    forward_source_RK = np.where(stage_RK == 0, -1, before_RK)
    backward_source_RK = np.where(stage_RK == last, flat_of[0, last, order.microbatch_RK], after_RK)
    source_RK: IntArray = np.where(order.is_backward_RK, backward_source_RK, forward_source_RK)
    source_RK.setflags(write=False)
    return source_RK
