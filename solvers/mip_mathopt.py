"""Linear models through OR-Tools MathOpt and the HiGHS it bundles.

Never import `highspy` beside this module: both bring a HiGHS library, and one process cannot hold two.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ortools.math_opt.python import mathopt
from ortools.math_opt.solvers import highs_pb2

from solvers.errors import SolverError
from solvers.mip import Answer, LinearModel, solve_with
from solvers.problem import Limits, Problem
from solvers.solution import Solution, Status

NAME = "mathopt"


def solve(problem: Problem, limits: Limits) -> Solution:
    """Return the best choice that HiGHS finds."""
    return solve_with(minimise, problem, limits, solver=NAME)


def minimise(model: LinearModel, limits: Limits) -> Answer:
    """Return the answer of HiGHS to a linear model; raise `SolverError` when it stopped with nothing."""
    math_model = mathopt.Model(name="chain partition")
    variables = [
        math_model.add_variable(lb=0.0, ub=column.upper, is_integer=column.is_integer, name=column.name)
        for column in model.columns
    ]
    for row in model.rows:
        constraint = math_model.add_linear_constraint(lb=row.lower, ub=row.upper, name=row.name)
        for index, coefficient in row.terms:
            constraint.set_coefficient(variables[index], coefficient)
    for variable, column in zip(variables, model.columns, strict=True):
        math_model.objective.set_linear_coefficient(variable, column.objective)
    parameters = mathopt.SolveParameters(
        node_limit=limits.max_nodes,
        random_seed=1,
        relative_gap_tolerance=1e-9,
        absolute_gap_tolerance=0.0,
        highs=highs_pb2.HighsOptionsProto(string_options={"parallel": "off"}),
    )
    with quiet_standard_output():
        result = mathopt.solve(math_model, mathopt.SolverType.HIGHS, params=parameters)
    reason = result.termination.reason
    # The objective is at least 0, so that a model that is not feasible is not unbounded either.
    if reason in (mathopt.TerminationReason.INFEASIBLE, mathopt.TerminationReason.INFEASIBLE_OR_UNBOUNDED):
        return Answer(status=Status.INFEASIBLE)
    if not result.has_primal_feasible_solution():
        raise SolverError(solver=NAME, status=str(reason.name).lower(), limit=f"max_nodes = {limits.max_nodes}")
    values = tuple(float(value) for value in result.variable_values(variables))
    optimal = reason is mathopt.TerminationReason.OPTIMAL
    return Answer(
        status=Status.OPTIMAL if optimal else Status.FEASIBLE,
        values=values,
        bound=float(result.termination.objective_bounds.dual_bound),
    )


@contextmanager
def quiet_standard_output() -> Iterator[None]:
    """Keep what native code prints off standard output.

    HiGHS prints "HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();" there whatever its options
    say (OR-Tools 9.15), and standard output may be one JSON document. C's own buffer must be flushed before the
    descriptor is put back, or the text comes out later.
    """
    sys.stdout.flush()
    standard_output = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(standard_output, 1)
        os.close(standard_output)
        os.close(nowhere)
