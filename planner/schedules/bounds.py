"""Lower bounds on the span of a pipeline schedule: of one split of the model into stages, and of whatever split.

Axes: X layouts, R pipeline ranks, C chunks of one rank, V virtual stages in model order.
"""

import numpy as np
from numpy.typing import NDArray

from planner.arrays import FloatArray
from planner.schedules.simulate import StageTimes

# A bound and the simulated span add the same times in different orders. A sum of n terms is off by at most n units in
# the last place (2.2e-16, relative), and no path has more than about 10,000 operations.
ROUNDING = 1e-11


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


def split_bound_seconds(times: StageTimes, *, pp: int, vpp: int, num_microbatches: int) -> float:
    """Return a time that the span of `times` does not undercut, from the work of each rank alone.

    Rank r begins once micro-batch 0 has come forward through the r stages before it, then runs all of its own passes
    and what follows the last backward pass of each chunk but the first. Its last pass is the backward pass of the last
    micro-batch through its first chunk, whose gradients go back through those r stages. Waits for sends and receives
    are left out.

    Args:
        times: What one micro-batch costs on each virtual stage.
        pp: Pipeline ranks.
        vpp: Chunks of each rank; above 1 the schedule is interleaved.
        num_microbatches: Micro-batches of a step.
    """
    nothing = (0.0,) * times.num_stages
    both_V = np.add(times.forward_seconds_V, times.backward_seconds_V)
    first_V = np.array(times.first_forward_extra_seconds_V or nothing)
    last_V = np.array(times.last_backward_extra_seconds_V or nothing)
    own_CR = (num_microbatches * both_V + first_V).reshape(vpp, pp)
    own_R = own_CR.sum(axis=0) + last_V[pp:].reshape(vpp - 1, pp).sum(axis=0)
    transfers = np.array((times.transfer_seconds_E or nothing)[: pp - 1])
    ways_R = np.append(0.0, np.cumsum((both_V + first_V)[: pp - 1] + 2 * transfers))
    return (float((own_R + ways_R).max()) + float(last_V[0])) * (1.0 - ROUNDING)
