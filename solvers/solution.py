"""What a solver found, and what it proved."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from solvers.problem import Problem

# Solvers add the same seconds in different orders and stop at tolerances of their own; within this share of the
# objective two values count as equal.
OPTIMALITY_TOLERANCE = 1e-6


class Status(StrEnum):
    """What is known about the answer."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The answer to a problem. It holds no wall time: the same problem gives the same solution.

    Args:
        solver: Name of the solver.
        status: Optimal: `gap` is at most `OPTIMALITY_TOLERANCE`. Infeasible: proved that no choice exists.
        stage_of_layer_L: Stage of each layer; empty when infeasible.
        option_of_layer_L: Option of each layer; empty when infeasible.
        objective: Its objective; None when infeasible.
        bound: No choice has a lower objective; None when infeasible.
        proof: How the status was established, in one sentence.
    """

    solver: str
    status: Status
    stage_of_layer_L: tuple[int, ...]
    option_of_layer_L: tuple[int, ...]
    objective: float | None
    bound: float | None
    proof: str

    def __post_init__(self) -> None:
        """Check that status, choice, objective and bound belong together."""
        if self.status is Status.INFEASIBLE:
            if self.stage_of_layer_L or self.option_of_layer_L or self.objective is not None or self.bound is not None:
                raise ValueError("an infeasible problem has no choice, objective or bound")
            return
        if self.objective is None or self.bound is None:
            raise ValueError(f"a solution that is {self.status} has an objective and a bound")
        if self.bound > self.objective:
            raise ValueError(f"bound {self.bound} exceeds objective {self.objective}")
        if self.status is Status.OPTIMAL and self.gap > OPTIMALITY_TOLERANCE:
            raise ValueError(f"a gap of {self.gap} is not optimal")

    @property
    def gap(self) -> float:
        """Return (objective - bound) / objective; 0 when the objective is 0 or nothing is feasible."""
        if not self.objective or self.bound is None:
            return 0.0
        return (self.objective - self.bound) / self.objective

    def layers_S(self, num_stages: int) -> tuple[int, ...]:
        """Return the number of layers on each stage."""
        return tuple(np.bincount(self.stage_of_layer_L, minlength=num_stages).tolist())


def infeasible(*, solver: str, proof: str) -> Solution:
    """Return the answer that no choice exists."""
    return Solution(
        solver=solver,
        status=Status.INFEASIBLE,
        stage_of_layer_L=(),
        option_of_layer_L=(),
        objective=None,
        bound=None,
        proof=proof,
    )


def objective_of(problem: Problem, *, stage_of_layer_L: Sequence[int], option_of_layer_L: Sequence[int]) -> float:
    """Return the objective of a choice."""
    stage_L, option_L = np.array(stage_of_layer_L), np.array(option_of_layer_L)
    rank_of_layer_L = problem.rank_of_stage_S[stage_L]
    layers = np.arange(problem.num_layers)
    if problem.seconds_SLO is None:
        seconds_L = problem.seconds_LO[layers, option_L]
    else:
        seconds_L = problem.seconds_SLO[stage_L, layers, option_L]
    seconds_R = np.bincount(problem.rank_of_stage_S, weights=problem.fixed_seconds_S, minlength=problem.num_ranks)
    seconds_R += np.bincount(rank_of_layer_L, weights=seconds_L, minlength=problem.num_ranks)
    return problem.weighted(bottleneck_seconds=float(seconds_R.max()), total_seconds=float(seconds_R.sum()))
