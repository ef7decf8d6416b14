"""The paced problem as a mixed-integer programme, for any solver that takes one.

Variables, behind those of `solvers.shares.mip`
    tau     seconds of a period                                                      >= 0

Objective
    minimise  periods * tau + sum over p of weight[p] t[p]                           programme_of

Constraints, beside those of `solvers.shares.mip`
    (5)  sum over the phases p of rank r of weight[p] t[p] <= tau                    _rank_rows
    (6)  sum over o of seconds[k,o] x[o] <= tau                                      _link_rows
"""

from dataclasses import replace

from solvers.mip import Backend, Column, LinearModel, Row
from solvers.paced.problem import PacedProblem
from solvers.shares.mip import WORK, Programme, scaled_terms, solve_programme
from solvers.shares.mip import programme_of as unpaced_programme_of
from solvers.shares.problem import Shares, SharesLimits


def solve_with(backend: Backend, problem: PacedProblem, limits: SharesLimits, *, solver: str) -> Shares:
    """Return the best shares that a solver of linear models finds.

    Args:
        backend: The solver.
        problem: The problem.
        limits: How far it may go.
        solver: What the answer calls it.

    Raises:
        SolverError: It stopped with nothing.
    """
    return solve_programme(backend, programme_of(problem), problem.shares, limits, solver=solver)


def programme_of(problem: PacedProblem) -> Programme:
    """Return the programme of a problem: its options, its phases and its period in seconds."""
    unpaced = unpaced_programme_of(problem.shares)
    scale = 1.0 / (1.0 + problem.periods)
    columns = [replace(column, objective=column.objective * scale) for column in unpaced.model.columns]
    unit = unpaced.unit / scale
    columns.append(Column(name="tau", upper=float("inf"), is_integer=False, objective=problem.periods / unit))
    rows = (*unpaced.model.rows, *_rank_rows(problem), *_link_rows(problem))
    return Programme(model=LinearModel(columns=tuple(columns), rows=rows), unit=unit, objective=problem.objective)


def _tau(problem: PacedProblem) -> int:
    return problem.shares.num_options + len(problem.rank_P)


def _rank_rows(problem: PacedProblem) -> list[Row]:
    shares, rows = problem.shares, []
    longest_P = [
        max(
            (chain.fixed_seconds + max(chain.seconds_O) for chain in shares.chains if chain.phase == phase),
            default=0.0,
        )
        for phase in range(len(problem.rank_P))
    ]
    for rank in range(problem.num_ranks):
        own = [phase for phase, of in enumerate(problem.rank_P) if of == rank]
        unit = sum(shares.weight_P[phase] * longest_P[phase] for phase in own) / WORK or 1.0
        terms = tuple((shares.num_options + phase, shares.weight_P[phase] / unit) for phase in own)
        rows.append(Row(name=f"rank_{rank}", terms=(*terms, (_tau(problem), -1.0 / unit)), upper=0.0))
    return rows


def _link_rows(problem: PacedProblem) -> list[Row]:
    rows = []
    for index, link in enumerate(problem.links):
        unit = max(link.seconds_O) / WORK or 1.0
        terms = (*scaled_terms(problem.shares, link.seconds_O, unit), (_tau(problem), -1.0 / unit))
        rows.append(Row(name=f"link_{index}", terms=terms, upper=0.0))
    return rows
