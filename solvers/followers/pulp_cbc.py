"""The follower placement problem as an integer programme, for CBC through PuLP; the programme of `followers.cpsat`.

y[l, i, j] need not be whole numbers: where x are, the least y that constraint (3) allows is 0 or 1.
"""

import numpy as np
import pulp

from solvers.errors import SolverError
from solvers.followers.problem import FollowerProblem, Followers

MOST_NODES = 100_000


def solve(problem: FollowerProblem) -> Followers:
    """Return the best placement.

    Raises:
        SolverError: CBC stopped before it was proved.
    """
    layers, items, bins = range(problem.num_layers), range(problem.num_items), range(problem.num_bins)
    programme = pulp.LpProblem("followers", pulp.LpMinimize)
    x = {
        (la, i, b): programme.add_variable(f"x_{la}_{i}_{b}", 0, int(problem.may_stand(la, i, b)), cat="Integer")
        for la in layers
        for i in items
        for b in bins
    }
    pairs = np.argwhere(problem.flow_KII > 0).tolist()
    y = {(la, i, j): programme.add_variable(f"y_{la}_{i}_{j}", 0, 1) for la, i, j in pairs}
    programme += pulp.lpSum(float(problem.flow_KII[pair]) * leaves for pair, leaves in y.items())
    for layer in layers:
        for i in items:
            programme += pulp.lpSum(x[layer, i, b] for b in bins) == 1
        for b in bins:
            programme += pulp.lpSum(x[layer, i, b] for i in items) == problem.num_items // problem.num_bins
    for (layer, i, j), leaves in y.items():
        for b in bins:
            programme += leaves >= x[layer, i, b] - x[layer + 1, j, b]
    if problem.allowed_LIB is None:
        programme += x[0, 0, 0] == 1
    # PuLP ships CBC; the class named after that is deprecated.
    cbc = pulp.PULP_CBC_CMD.pulp_cbc_path
    solver = pulp.COIN_CMD(path=cbc, msg=False, threads=1, gapRel=0.0, gapAbs=0.0, maxNodes=MOST_NODES)
    programme.solve(solver)
    if programme.sol_status != pulp.LpSolutionOptimal:
        raise SolverError(
            solver="cbc", status=pulp.LpSolution[programme.sol_status].lower(), limit=f"maxNodes = {MOST_NODES}"
        )
    placed = np.array([[max(bins, key=lambda b: x[la, i, b].value()) for i in items] for la in layers])
    leaving = float(pulp.value(programme.objective)) if y else 0.0
    return Followers(bin_LI=placed, leaving=leaving, bound=leaving)
