"""The oracle: looks at every partition and every combination of options. For small problems."""

from collections.abc import Iterator
from itertools import combinations
from math import comb

import numpy as np

from solvers.errors import SolverError
from solvers.problem import IntArray, Limits, Problem
from solvers.solution import Solution, Status, infeasible

NAME = "exhaustive"


def solve(problem: Problem, limits: Limits) -> Solution:
    """Return the best of all choices; of equal ones the first partition, then the first options.

    Raises:
        SolverError: There are more choices than the limit allows.

    """
    num_combinations = problem.num_options**problem.num_layers
    num_points = comb(problem.num_layers + problem.num_stages - 1, problem.num_stages - 1) * num_combinations
    if num_points > limits.max_points:
        raise SolverError(solver=NAME, status=f"{num_points} choices", limit=f"max_points = {limits.max_points}")
    # Combination c has digit l of c, in base O, as the option of layer l.
    layers = np.arange(problem.num_layers)
    option_CL = np.arange(num_combinations)[:, np.newaxis] // problem.num_options**layers % problem.num_options
    seconds_CL = problem.seconds_LO[layers, option_CL]
    seconds_SLO = problem.seconds_SLO

    best: tuple[float, tuple[int, ...], tuple[int, ...]] | None = None
    for stage_of_layer_L in _partitions(problem):
        in_flight_L = problem.in_flight_S[stage_of_layer_L]
        demand_LO = problem.static_bytes_LO + in_flight_L[:, np.newaxis] * problem.activation_bytes_LO
        demand_CL = demand_LO[layers, option_CL]
        if seconds_SLO is not None:
            seconds_CL = seconds_SLO[stage_of_layer_L, layers, option_CL]
        objective_C = _objectives(problem, stage_of_layer_L, seconds_CL, demand_CL)
        chosen = int(objective_C.argmin())
        objective = float(objective_C[chosen])
        if np.isfinite(objective) and (best is None or objective < best[0]):
            best = objective, tuple(stage_of_layer_L.tolist()), tuple(option_CL[chosen].tolist())
    if best is None:
        return infeasible(solver=NAME, proof="all choices were looked at and none fits")
    return Solution(
        solver=NAME,
        status=Status.OPTIMAL,
        stage_of_layer_L=best[1],
        option_of_layer_L=best[2],
        objective=best[0],
        bound=best[0],
        proof="all choices were looked at",
    )


def _partitions(problem: Problem) -> Iterator[IntArray]:
    """Yield the stage of each layer for every partition that keeps constraint (3)."""
    num_cuts = problem.num_stages - 1
    for cuts in combinations(range(problem.num_layers + num_cuts), num_cuts):
        edges = (-1, *cuts, problem.num_layers + num_cuts)
        counts_S = np.diff(edges) - 1
        if (problem.min_layers_S <= counts_S).all() and (counts_S <= problem.max_layers_S).all():
            yield np.repeat(np.arange(problem.num_stages), counts_S)


def _objectives(
    problem: Problem, stage_of_layer_L: IntArray, seconds_CL: np.ndarray, demand_CL: IntArray
) -> np.ndarray:
    """Return the objective of each combination of options, infinite where a rank's capacity is exceeded."""
    bottleneck_C = np.zeros(len(seconds_CL))
    total_C = np.zeros(len(seconds_CL))
    fits_C = np.ones(len(seconds_CL), dtype=np.bool_)
    rank_of_layer_L = problem.rank_of_stage_S[stage_of_layer_L]
    for rank in range(problem.num_ranks):
        on_rank_L, on_rank_S = rank_of_layer_L == rank, problem.rank_of_stage_S == rank
        rank_seconds_C = problem.fixed_seconds_S[on_rank_S].sum() + seconds_CL[:, on_rank_L].sum(axis=1)
        rank_bytes_C = problem.fixed_bytes_S[on_rank_S].sum() + demand_CL[:, on_rank_L].sum(axis=1)
        bottleneck_C = np.maximum(bottleneck_C, rank_seconds_C)
        total_C += rank_seconds_C
        fits_C &= rank_bytes_C <= problem.capacity_bytes_R[rank]
    objective_C = problem.bottleneck_weight * bottleneck_C + problem.total_weight * total_C
    return np.where(fits_C, objective_C, np.inf)
