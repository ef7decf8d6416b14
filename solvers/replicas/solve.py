"""The loads of all cases: greedy copies and packing, swaps and exchanges, and CP-SAT where cases are small."""

from dataclasses import dataclass

from solvers.replicas.bounds import least_load_L
from solvers.replicas.greedy import place
from solvers.replicas.problem import Floats, Ints, ReplicaProblem

MOST_PAIRS = 64
"""Items times bins up to which CP-SAT finds more than exchanges and swaps do, in little time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Placements of all cases.

    Args:
        item_LBS: The item on each slot of each bin.
        least_load_L: What the heaviest bin of each case carries at least, whatever the placement.
    """

    item_LBS: Ints
    least_load_L: Floats


def solve(problem: ReplicaProblem, *, enough_L: Floats | None = None) -> Placed:
    """Return placements whose heaviest bins are as light as was found; what keeps items apart costs is not weighed.

    Args:
        problem: The problem.
        enough_L: What the heaviest bin of each case may carry without more being looked for; None looks on until the
            bound is met.
    """
    item_LBS, bound_L = place(problem), least_load_L(problem)
    if problem.num_items * problem.num_bins <= MOST_PAIRS:
        from solvers.replicas.cpsat import improve_small  # noqa: PLC0415 - OR-Tools only where it is used

        item_LBS, bound_L = improve_small(problem, item_LBS, bound_L, enough_L=enough_L)
    return Placed(item_LBS=item_LBS, least_load_L=bound_L)
