"""Linear models through PuLP and the CBC it ships, as a subprocess."""

import pulp

from solvers.errors import SolverError
from solvers.mip import Answer, LinearModel, solve_with
from solvers.problem import Limits, Problem
from solvers.solution import Solution, Status

NAME = "pulp"


def solve(problem: Problem, limits: Limits) -> Solution:
    """Return the best choice that CBC finds."""
    return solve_with(minimise, problem, limits, solver=NAME)


def minimise(model: LinearModel, limits: Limits) -> Answer:
    """Return the answer of CBC to a linear model; raise `SolverError` when it stopped with nothing."""
    pulp_model = pulp.LpProblem("chain_partition", pulp.LpMinimize)
    variables = [
        pulp_model.add_variable(
            column.name,
            lowBound=0.0,
            upBound=None if column.upper == float("inf") else column.upper,
            cat=pulp.LpInteger if column.is_integer else pulp.LpContinuous,
        )
        for column in model.columns
    ]
    pulp_model += pulp.LpAffineExpression(
        [(variable, column.objective) for variable, column in zip(variables, model.columns, strict=True)]
    )
    for row in model.rows:
        terms = pulp.LpAffineExpression([(variables[column], coefficient) for column, coefficient in row.terms])
        if row.lower == row.upper:
            pulp_model += terms == row.lower, row.name
            continue
        if row.lower > -float("inf"):
            pulp_model += terms >= row.lower, f"{row.name}_lower"
        if row.upper < float("inf"):
            pulp_model += terms <= row.upper, f"{row.name}_upper"
    # The CBC that PuLP ships; `PULP_CBC_CMD` itself is deprecated.
    cbc = pulp.PULP_CBC_CMD.pulp_cbc_path
    solver = pulp.COIN_CMD(path=cbc, msg=False, threads=1, gapRel=0.0, gapAbs=0.0, maxNodes=limits.max_nodes)
    pulp_model.solve(solver)
    # PuLP's two statuses must be read together: `status` is Optimal for an incumbent at a limit too, and `sol_status`
    # is "no solution found" for a proof that there is no integer solution too.
    if pulp_model.status == pulp.LpStatusInfeasible:
        return Answer(status=Status.INFEASIBLE)
    status = pulp_model.sol_status
    if status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        raise SolverError(solver=NAME, status=pulp.LpSolution[status], limit=f"max_nodes = {limits.max_nodes}")
    values = tuple(float(variable.varValue or 0.0) for variable in variables)
    return Answer(status=Status.OPTIMAL if status == pulp.LpSolutionOptimal else Status.FEASIBLE, values=values)
