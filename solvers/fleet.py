"""The fleet problem: how many servers of which kind, under limits, to serve most or to serve a demand at least cost.

Sets
    O   options: kinds of servers, each with a role: it does everything, or the first or the second half of the work
    R   resources

Decisions
    n[o]     servers of option o                                                    integer, 0 to most[o]

What is served
    whole    sum of rate[o] n[o] over options that do everything
    halves   the smaller of the same sums over first halves and over second halves
    served   whole + halves

Objective
    MOST_SERVED   maximise served; of equals the least cost
    LEAST_COST    minimise the sum of cost[o] n[o], with served at least the demand

Constraints, each with the function of `solvers.fleet_check` that recomputes it
    (1)  sum over o of use[r,o] n[o] <= capacity[r]                                   resources
    (2)  0 <= n[o] <= most[o]                                                         counts
    (3)  served >= demand, with LEAST_COST                                            demand
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from solvers.solution import OPTIMALITY_TOLERANCE, Status


class Part(StrEnum):
    """What a server does of each piece of work."""

    WHOLE = "whole"
    FIRST = "first"
    SECOND = "second"


class Goal(StrEnum):
    """What is wanted."""

    MOST_SERVED = "most-served"
    LEAST_COST = "least-cost"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetProblem:
    """Options, resources and the goal.

    Args:
        part_O: What a server of each option does.
        rate_O: What it serves.
        cost_O: What it costs.
        use_RO: What it takes of each resource.
        capacity_R: What there is of each.
        goal: What is wanted.
        demand: What must be served; 0 with `MOST_SERVED`.
    """

    part_O: tuple[Part, ...]
    rate_O: tuple[float, ...]
    cost_O: tuple[float, ...]
    use_RO: tuple[tuple[float, ...], ...]
    capacity_R: tuple[float, ...]
    goal: Goal
    demand: float = 0.0

    def __post_init__(self) -> None:
        """Check lengths and signs, and that every count is bounded."""
        count = len(self.part_O)
        if not len(self.rate_O) == len(self.cost_O) == count or any(len(row) != count for row in self.use_RO):
            raise ValueError("parts, rates, costs and uses are not of as many options")
        if len(self.use_RO) != len(self.capacity_R):
            raise ValueError("every resource has a row of uses and a capacity")
        numbers = (
            *self.rate_O,
            *self.cost_O,
            *self.capacity_R,
            self.demand,
            *(use for row in self.use_RO for use in row),
        )
        if not all(0.0 <= number < math.inf for number in numbers):
            raise ValueError("a number is negative or not finite")
        if any(not any(row[option] > 0 for row in self.use_RO) for option in range(count)):
            raise ValueError("an option takes nothing of any resource")
        if (self.goal is Goal.LEAST_COST) != (self.demand > 0):
            raise ValueError("a demand and the goal of least cost go together")

    @property
    def num_options(self) -> int:
        """Return the number of options."""
        return len(self.part_O)

    @property
    def most_O(self) -> tuple[int, ...]:
        """Return how many servers of each option the resources admit alone."""
        return tuple(
            min(
                int(capacity / row[option] + 1e-9)
                for row, capacity in zip(self.use_RO, self.capacity_R, strict=True)
                if row[option] > 0
            )
            for option in range(self.num_options)
        )

    def served(self, count_O: tuple[int, ...]) -> float:
        """Return what servers of these counts serve."""
        sums = dict.fromkeys(Part, 0.0)
        for part, rate, count in zip(self.part_O, self.rate_O, count_O, strict=True):
            sums[part] += rate * count
        return sums[Part.WHOLE] + min(sums[Part.FIRST], sums[Part.SECOND])

    def cost(self, count_O: tuple[int, ...]) -> float:
        """Return what servers of these counts cost."""
        return sum(cost * count for cost, count in zip(self.cost_O, count_O, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLimits:
    """How far a solver may go; counts, so that equal problems have equal answers.

    Args:
        max_nodes: Nodes of branch and bound.
        max_points: Compositions that an exhaustive search looks at.
    """

    max_nodes: int = 100_000
    max_points: int = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The answer to a fleet problem.

    Args:
        solver: Name of the solver.
        status: Optimal: objective and bound agree within `OPTIMALITY_TOLERANCE`. Infeasible: proved.
        count_O: Servers of each option; empty when infeasible.
        objective: What is served, or the cost; None when infeasible.
        bound: No composition does better; None when infeasible.
    """

    solver: str
    status: Status
    count_O: tuple[int, ...]
    objective: float | None
    bound: float | None

    def __post_init__(self) -> None:
        """Check that status, counts, objective and bound belong together."""
        if self.status is Status.INFEASIBLE:
            if self.count_O or self.objective is not None or self.bound is not None:
                raise ValueError("an infeasible problem has no counts, objective or bound")
            return
        if self.objective is None or self.bound is None:
            raise ValueError(f"an answer that is {self.status} has an objective and a bound")
        gap = abs(self.bound - self.objective)
        if self.status is Status.OPTIMAL and gap > OPTIMALITY_TOLERANCE * max(abs(self.objective), 1e-12):
            raise ValueError(f"{self.objective} with a bound of {self.bound} is not optimal")


def no_fleet(solver: str) -> Fleet:
    """Return the answer that no composition serves the demand."""
    return Fleet(solver=solver, status=Status.INFEASIBLE, count_O=(), objective=None, bound=None)
