"""Lower bounds on the span of a pipeline schedule, cheaper than running it.

`lower_bound_seconds` is for known stage times; `any_split_bound_seconds` needs only the work of the whole model and
holds however that work is cut into stages. Arrays name their axes as in `planner.schedules.simulate`, and

    M  milestones of one rank: its first or last forward or backward pass of each chunk
    X  layouts
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.schedules.orders import IntArray, OperationOrder
from planner.schedules.simulate import FloatArray, StageTimes, operation_seconds

# A bound and the simulated span add the same times in different orders. A sum of n terms is off by at most n units in
# the last place (2.2e-16, relative), and no path has more than about 10,000 operations.
ROUNDING = 1e-11


def lower_bound_seconds(order: OperationOrder, times: StageTimes) -> float:
    """Return a time that `simulate` never undercuts.

    Every path of operations that wait for one another is a lower bound. The paths tried, for every rank, are these:
    from the start of the step straight to the rank with micro-batch 0 (down through the forward passes, or to the end
    of the model and back through the backward passes); then all operations of that rank up to one of micro-batch
    m - 1; then straight to the end of the step with that micro-batch. The step starts with the first forward and ends
    with the last backward of stage 0, both on rank 0, so that its span is at least as long as any such path.

    With uniform stages and no transfers the longest of these paths is the span, `(m + pp - 1) (F + B)` with 1F1B.

    Raises:
        ValueError: The times are not for as many stages as the order has.

    """
    seconds = operation_seconds(order, times)
    first_RM, last_RM = _milestones_RM(order)
    head_RM, tail_RM = _heads_and_tails_RM(order, times)
    # Time of the rank from its first start to the end of each operation, if it never waited.
    through_RK = np.cumsum(seconds.gap_before_RK + seconds.duration_RK, axis=1)
    before_RM = np.take_along_axis(through_RK - seconds.duration_RK, first_RM, axis=1)
    after_RM = np.take_along_axis(through_RK, last_RM, axis=1)
    path_RMM = (head_RM - before_RM)[:, :, np.newaxis] + (after_RM + tail_RM)[:, np.newaxis, :]
    runs_RMM = first_RM[:, :, np.newaxis] <= last_RM[:, np.newaxis, :]
    return float(path_RMM[runs_RMM].max()) * (1.0 - ROUNDING)


@lru_cache(maxsize=128)
def _milestones_RM(order: OperationOrder) -> tuple[IntArray, IntArray]:
    """Return the positions of micro-batch 0 and of micro-batch m - 1: forward of each chunk, then backward of each."""
    kind_RK = order.chunk_RK + order.vpp * order.is_backward_RK
    positions: list[IntArray] = []
    for microbatch in (0, order.num_microbatches - 1):
        rank_N, position_N = np.nonzero(order.microbatch_RK == microbatch)
        position_RM = np.empty((order.pp, 2 * order.vpp), dtype=np.int64)
        position_RM[rank_N, kind_RK[rank_N, position_N]] = position_N
        positions.append(position_RM)
    return positions[0], positions[1]


def _heads_and_tails_RM(order: OperationOrder, times: StageTimes) -> tuple[FloatArray, FloatArray]:
    """Return the shortest time before each first milestone starts, and after each last milestone ends."""
    zeros = (0.0,) * order.num_stages
    forward_V = np.array(times.forward_seconds_V)
    backward_V = np.array(times.backward_seconds_V)
    first_forward_V = forward_V + np.array(times.first_forward_extra_seconds_V or zeros)
    # Transfer into each stage from the one before it.
    into_V = np.array([0.0, *(times.transfer_seconds_E or zeros[1:])])
    transfers_before_V = np.cumsum(into_V)
    all_transfers = transfers_before_V[-1]
    transfers_after_V = all_transfers - transfers_before_V

    before_forward_V = np.cumsum(first_forward_V) - first_forward_V + transfers_before_V
    after_backward_V = np.cumsum(backward_V) - backward_V + transfers_before_V
    forward_behind_V = forward_V.sum() - np.cumsum(forward_V) + transfers_after_V
    backward_behind_V = backward_V.sum() - np.cumsum(backward_V) + transfers_after_V

    def by_rank(forward_V: FloatArray, backward_V: FloatArray) -> FloatArray:
        forward_RC = forward_V.reshape(order.vpp, order.pp).T
        backward_RC = backward_V.reshape(order.vpp, order.pp).T
        return np.concatenate([forward_RC, backward_RC], axis=1)

    head_RM = by_rank(before_forward_V, first_forward_V.sum() + all_transfers + backward_behind_V)
    tail_RM = by_rank(forward_behind_V + backward_V.sum() + all_transfers, after_backward_V)
    if times.last_backward_extra_seconds_V:
        tail_RM = tail_RM + times.last_backward_extra_seconds_V[0]
    return head_RM, tail_RM


def any_split_bound_seconds(
    *,
    work_seconds_X: FloatArray,
    pp_X: NDArray[np.integer],
    vpp_X: NDArray[np.integer],
    num_microbatches_X: NDArray[np.integer],
) -> FloatArray:
    r"""Return times that no split of the work into stages undercuts; 1F1B where vpp is 1, interleaved elsewhere.

    Let t_k be forward plus backward of stage k, W their sum, p = pp, v = vpp, m micro-batches, X the span.

    1F1B. Rank r runs p - 1 - r forwards ahead. Take the path of micro-batch 0 to the end of the model and back to
    rank r, then rank r up to its last forward, then micro-batch m - 1 to the end of the model and back. It has

        X - W >= S_r + (m - p + r) t_r        with S_r the sum of t_k over k > r, if m - p + r >= 1.        (1)

    With Y = X - W, (1) gives Y - S_{r-1} >= (Y - S_r) (m - p + r - 1) / (m - p + r), as S_{r-1} = S_r + t_r.
    * m > p: the product over r = p - 1 ... 0 telescopes to Y - W >= Y (m - p - 1) / (m - 1), hence
      X >= (m + p - 1) W / p: no split beats the uniform one.
    * m <= p: (1) for r > p - m leaves S_{p-m} <= Y. A rank r <= p - m runs all its forwards first, so that
      Y >= (m - 1) max(F_r, B_r) >= (m - 1) t_r / 2. Together W <= Y + 2 (p - m + 1) Y / (m - 1).

    Interleaved, m a multiple of p. Before chunk c of rank r first runs forward, micro-batch 0 has passed the c p + r
    stages before it, while the rank ran only p micro-batches of each chunk before c; likewise after the chunk's last
    backward. So, T_r being the work of rank r and k = c p + r,

        X >= sum of t_j over j < k + m T_r - p (work of the chunks before c on rank r).                     (2)

    The mean of (2) over all c and r is X >= m W / p + sum over r of T_r (p - 1 - r) / (v p), and T_r <= X / m turns
    the last sum into at least (p - 1) (W - X p / (2 m)) / (v p). Solved for X:

        X >= (W / p) (m + (p - 1) / v) / (1 + (p - 1) / (2 v m)).

    Args:
        work_seconds_X: W, forward and backward of one micro-batch over all stages.
        pp_X: Pipeline ranks.
        vpp_X: Chunks of each rank.
        num_microbatches_X: Micro-batches; a multiple of pp where vpp is above 1.

    """
    work_X, p_X, v_X, m_X = (
        np.asarray(array, dtype=np.float64) for array in (work_seconds_X, pp_X, vpp_X, num_microbatches_X)
    )
    long_X = (m_X + p_X - 1.0) / p_X
    short_X = 1.0 + (m_X - 1.0) / (2.0 * p_X - m_X + 1.0).clip(min=1.0)
    one_f_one_b_X = np.where(m_X > p_X, long_X, short_X)
    interleaved_X = (m_X + (p_X - 1.0) / v_X) / p_X / (1.0 + (p_X - 1.0) / (2.0 * v_X * m_X))
    bound_X: FloatArray = work_X * np.where(v_X > 1.0, interleaved_X, one_f_one_b_X) * (1.0 - ROUNDING)
    return bound_X
