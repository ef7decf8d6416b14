"""The order in which each pipeline rank runs its forward and backward passes, and what it keeps alive meanwhile.

The orders are those of Megatron-LM: 1F1B and interleaved 1F1B (Narayanan et al., arXiv 2104.04473, sections 2.2.1
and 2.2.2), with the micro-batch group of the interleaved schedule left at its default, the pipeline degree.

Virtual stage k of the model runs on rank k mod pp as its chunk k // pp. Arrays name their axes:

    R  pipeline ranks
    K  positions in one rank's order, `2 * num_microbatches * vpp` of them
    C  chunks of one rank
    P  passes: stage by stage forward and the first forward, backward and the last backward
    O  kinds of operations: pairs of passes, one behind the other on a rank
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from planner.arrays import BoolArray, IntArray
from planner.layout import Schedule


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperationKinds:
    """Operations that take the same times, whatever passes and transfers take: few beside all that are run.

    Args:
        kind_RK: Kind of each operation.
        pass_O: What is run, an index along axis P.
        before_O: What the rank ran before it; -1 for nothing.
    """

    kind_RK: IntArray
    pass_O: IntArray
    before_O: IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class OperationOrder:
    """What every rank runs, one operation after the other.

    Args:
        pp: Pipeline ranks.
        vpp: Chunks of each rank.
        num_microbatches: Micro-batches of one step.
        is_backward_RK: The operation is a backward pass.
        chunk_RK: Chunk it belongs to.
        microbatch_RK: Micro-batch it belongs to.
        slot_RK: Each operation has a higher one than those that it waits for.
    """

    pp: int
    vpp: int
    num_microbatches: int
    is_backward_RK: BoolArray
    chunk_RK: IntArray
    microbatch_RK: IntArray
    slot_RK: IntArray

    @property
    def num_stages(self) -> int:
        """Return the number of virtual stages."""
        return self.pp * self.vpp

    @property
    def stage_RK(self) -> IntArray:
        """Return the virtual stage of each operation, in model order."""
        rank_R = np.arange(self.pp, dtype=np.int64)
        return self.chunk_RK * self.pp + rank_R[:, np.newaxis]

    @cached_property
    def change_RK(self) -> IntArray:
        """Return the chunk that each operation keeps or frees a micro-batch of: those that free count behind all."""
        rank_R = np.arange(self.pp, dtype=np.int64)
        of_chunk_RK = self.chunk_RK + self.vpp * rank_R[:, np.newaxis]
        change_RK: IntArray = of_chunk_RK + self.pp * self.vpp * self.is_backward_RK
        return change_RK

    @cached_property
    def kinds(self) -> OperationKinds:
        """Return what its operations have in common."""
        is_end_RK = self.microbatch_RK == np.where(self.is_backward_RK, self.num_microbatches - 1, 0)
        low_RK = 2 * self.is_backward_RK + is_end_RK
        pass_RK = 4 * self.stage_RK + low_RK
        # Pairs of passes of one rank as one number each, 0 of the first standing for none; those in use are counted.
        num_passes = 4 * self.num_stages
        pair_RK = pass_RK.copy()
        pair_RK[:, 1:] += num_passes * (4 * self.chunk_RK + low_RK + 1)[:, :-1]
        in_use = np.zeros(num_passes * (4 * self.vpp + 1), dtype=np.bool_)
        in_use[pair_RK] = True
        behind_O, pass_O = np.divmod(np.flatnonzero(in_use), num_passes)
        chunk_O, low_O = np.divmod(behind_O - 1, 4)
        before_O = 4 * (self.pp * chunk_O + pass_O // 4 % self.pp) + low_O
        return OperationKinds(
            kind_RK=(np.cumsum(in_use) - 1)[pair_RK],
            pass_O=pass_O,
            before_O=np.where(behind_O == 0, -1, before_O),
        )


def check_schedule(schedule: Schedule, *, pp: int, vpp: int, num_microbatches: int) -> None:
    """Raise `ValueError` unless Megatron-LM runs this schedule at these degrees."""
    if min(pp, vpp, num_microbatches) < 1:
        raise ValueError(f"pp = {pp}, vpp = {vpp} and num_microbatches = {num_microbatches} must be at least 1")
    if schedule is Schedule.NO_PIPELINE and pp != 1:
        raise ValueError(f"a run without a pipeline has one pipeline rank, not pp = {pp}")
    if schedule is not Schedule.INTERLEAVED and vpp != 1:
        raise ValueError(f"vpp = {vpp} needs the interleaved schedule")
    if schedule is Schedule.INTERLEAVED:
        if pp < 2 or vpp < 2:
            raise ValueError(f"the interleaved schedule needs pp and vpp of at least 2, not pp = {pp}, vpp = {vpp}")
        if num_microbatches % pp:
            raise ValueError(
                f"the interleaved schedule needs a multiple of pp = {pp} micro-batches, not {num_microbatches}"
            )


def num_warmup(schedule: Schedule, *, pp: int, vpp: int, num_microbatches: int, rank: int) -> int:
    """Return the forward passes that a rank runs before it alternates forward and backward.

    1F1B: `pp - rank - 1`. Interleaved: two for each rank behind it, and a group of pp micro-batches for each chunk but
    the last. Never more than the rank has.
    """
    if schedule is Schedule.INTERLEAVED:
        return min(num_microbatches * vpp, 2 * (pp - rank - 1) + (vpp - 1) * pp)
    return min(num_microbatches, pp - rank - 1)


def in_flight(schedule: Schedule, *, pp: int, vpp: int, num_microbatches: int, rank: int) -> int:
    """Return the most (chunk, micro-batch) pairs whose activations a rank holds at once.

    The warm-up passes and the first forward of the steady phase: `min(m, pp - rank)` with 1F1B (arXiv 2205.05198,
    section 4.3), `min(m * vpp, warm-up + 1)` when interleaved. The pair in backward still counts.
    """
    warmup = num_warmup(schedule, pp=pp, vpp=vpp, num_microbatches=num_microbatches, rank=rank)
    return min(num_microbatches * vpp, warmup + 1)


def repeating_microbatches(schedule: Schedule, *, pp: int, vpp: int) -> int:
    """Return the fewest micro-batches with which every rank warms up and runs a whole period of the steady phase.

    A period is a group of micro-batches through each chunk: pp of them when interleaved, otherwise one.
    """
    group = pp if schedule is Schedule.INTERLEAVED else 1
    # Rank 0 leads by the most groups; so many micro-batches are enough not to cut that short.
    lead = num_warmup(schedule, pp=pp, vpp=vpp, num_microbatches=pp * vpp, rank=0)
    return group * (-(-lead // (group * vpp)) + 1)


@lru_cache(maxsize=128)
def operation_order(schedule: Schedule, *, pp: int, vpp: int, num_microbatches: int) -> OperationOrder:
    """Return what every rank runs, in order.

    Each rank runs its warm-up forwards, then one forward and one backward in turn, then the backwards that remain.
    Forwards go by groups of pp micro-batches, each group through the chunks from the first to the last; backwards do
    the same from the last chunk to the first.

    Slots are those of a run in lock-step, two for a forward and a backward pass. With w the warm-up of the first rank
    in a long step, which gets s (1, interleaved 2) shorter with each rank, forward n of rank r has slot 2n + s r and
    backward n slot 2n + 2w + 1 - s r: one behind the forward before it on its rank, and behind its source, which lies
    s slots before it on a neighbouring rank, or with the next chunk at least 2 pp - s (pp - 1).

    Raises:
        ValueError: Megatron-LM does not run the schedule at these degrees.

    """
    check_schedule(schedule, pp=pp, vpp=vpp, num_microbatches=num_microbatches)
    group = pp if schedule is Schedule.INTERLEAVED else num_microbatches
    # Position n of the forward order: group, then chunk, then micro-batch within the group.
    table = np.arange(num_microbatches * vpp, dtype=np.int64)
    forward_chunk = table // group % vpp
    forward_microbatch = table // (group * vpp) * group + table % group

    total = num_microbatches * vpp
    is_backward_RK = np.empty((pp, 2 * total), dtype=np.bool_)
    for rank in range(pp):
        warmup = num_warmup(schedule, pp=pp, vpp=vpp, num_microbatches=num_microbatches, rank=rank)
        is_backward_RK[rank, :warmup] = False
        is_backward_RK[rank, warmup : 2 * total - warmup : 2] = False
        is_backward_RK[rank, warmup + 1 : 2 * total - warmup : 2] = True
        is_backward_RK[rank, 2 * total - warmup :] = True
    # The n-th backward has the mirrored chunk of the n-th forward and the same micro-batch.
    num_forwards_RK = np.cumsum(~is_backward_RK, axis=1)
    num_backwards_RK = np.cumsum(is_backward_RK, axis=1)
    index_RK = np.where(is_backward_RK, num_backwards_RK, num_forwards_RK) - 1
    chunk_RK = np.where(is_backward_RK, vpp - 1 - forward_chunk[index_RK], forward_chunk[index_RK])
    microbatch_RK = forward_microbatch[index_RK]
    lead, slope = (2 * (pp - 1) + (vpp - 1) * pp, 2) if schedule is Schedule.INTERLEAVED else (pp - 1, 1)
    late_R = slope * np.arange(pp, dtype=np.int64)[:, np.newaxis]
    slot_RK = 2 * index_RK + np.where(is_backward_RK, 2 * lead + 1 - late_R, late_R)
    for array in (is_backward_RK, chunk_RK, microbatch_RK, slot_RK):
        array.setflags(write=False)
    return OperationOrder(
        pp=pp,
        vpp=vpp,
        num_microbatches=num_microbatches,
        is_backward_RK=is_backward_RK,
        chunk_RK=chunk_RK,
        microbatch_RK=microbatch_RK,
        slot_RK=slot_RK,
    )


def peak_activation_bytes(
    order: OperationOrder, bytes_per_chunk_RC: IntArray, *, rank: int | None = None
) -> tuple[int, ...]:
    """Return for each rank the most bytes that its saved activations take at once.

    A forward pass adds the bytes of its chunk, and they stay until the backward pass of the same pair has ended: the
    most is held behind some pass, before another frees.

    Args:
        order: What the ranks run.
        bytes_per_chunk_RC: Activations of one micro-batch, `(pp, vpp)`.
        rank: The only rank that is asked for; None for all.

    """
    if bytes_per_chunk_RC.shape != (order.pp, order.vpp):
        raise ValueError(f"weights have shape {bytes_per_chunk_RC.shape}, not (pp, vpp) = {(order.pp, order.vpp)}")
    asked = slice(None) if rank is None else slice(rank, rank + 1)
    # All chunks of all ranks in one row, first as they are added, then as they are freed.
    signed = np.concatenate((bytes_per_chunk_RC.ravel(), -bytes_per_chunk_RC.ravel()), dtype=np.int64)
    held_RK = np.cumsum(signed[order.change_RK[asked]], axis=1)
    return tuple(held_RK.max(axis=1).tolist())


def fullest_counts(order: OperationOrder, rank: int) -> tuple[tuple[int, ...], ...]:
    """Return how many micro-batches of each chunk a rank holds at once, of every moment that no other one exceeds.

    `peak_activation_bytes` is the most that any of them adds up to, whatever the chunks keep.
    """
    changes = np.zeros((2 * order.pp * order.vpp, order.vpp), dtype=np.int64)
    own = np.arange(order.vpp)
    changes[own + order.vpp * rank, own] = 1
    changes[own + order.vpp * rank + order.pp * order.vpp, own] = -1
    held_KC = np.unique(np.cumsum(changes[order.change_RK[rank]], axis=0), axis=0)
    return tuple(
        tuple(held.tolist())
        for held in held_KC
        if not ((held_KC >= held).all(axis=1) & (held_KC > held).any(axis=1)).any()
    )


def turns_at_once(order: OperationOrder, rank: int) -> bool:
    """Return whether the backward pass of every micro-batch follows its forward pass on a rank."""
    pairs = order.microbatch_RK[rank].reshape(-1, 2)
    return bool(order.vpp == 1 and (pairs[:, 0] == pairs[:, 1]).all())
