"""The shares problem as a linear or mixed-integer programme, for any solver that takes one.

Sets
    T, O, P, C, R    as in `solvers.shares.problem`

Variables
    n[o]     units of a thing with units that take option o                          integer, 0 to units
             share of a thing without units that takes option o                      0 to 1
    t[p]     seconds of phase p                                                      >= 0

Objective
    minimise  sum over p of weight[p] t[p]                                           programme_of

Constraints, in the numbers of `solvers.shares.check`
    (1, 2)  sum over the options of a thing of n[o] = units, or 1                    _whole_rows
    (3)     fixed[r] + sum over o of use[r,o] x[o] <= capacity[r]                    _room_rows
    (4)     fixed[c] + sum over o of seconds[c,o] x[o] <= t[phase of c]              _chain_rows
            where x[o] is n[o] / units, or n[o]

Rows and objective are scaled, so that solvers' absolute tolerances are small beside them. Whole numbers are rounded
behind the solver; where that breaks a room, the other shares are solved for again beside them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from solvers.errors import SolverError
from solvers.mip import Answer, Backend, Column, LinearModel, Row
from solvers.problem import Limits
from solvers.shares.check import broken_constraints
from solvers.shares.problem import Shares, SharesLimits, SharesProblem
from solvers.solution import OPTIMALITY_TOLERANCE, Status

_ROOM = 10_000.0
WORK = 1_000.0
"""Size of rooms and of the objective after scaling: far above the solvers' tolerances (1e-9 to 1e-6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programme:
    """A programme whose first columns are the options of a problem.

    Args:
        model: Its rows and columns.
        unit: Seconds that 1 of its objective stands for.
        objective: What shares are worth in seconds, from the problem itself.
    """

    model: LinearModel
    unit: float
    objective: Callable[[tuple[float, ...]], float]


def solve_with(backend: Backend, problem: SharesProblem, limits: SharesLimits, *, solver: str) -> Shares:
    """Return the best shares that a solver of linear models finds.

    Args:
        backend: The solver.
        problem: The problem.
        limits: How far it may go.
        solver: What the answer calls it.

    Raises:
        SolverError: It stopped with nothing.
    """
    return solve_programme(backend, programme_of(problem), problem, limits, solver=solver)


def solve_programme(
    backend: Backend, programme: Programme, problem: SharesProblem, limits: SharesLimits, *, solver: str
) -> Shares:
    """Return the best shares of a problem under an objective of a programme's own.

    Args:
        backend: The solver.
        programme: The problem's rows and columns, and what it minimises.
        problem: The problem, whose shares and rooms must hold.
        limits: How far it may go.
        solver: What the answer calls it.

    Raises:
        SolverError: It stopped with nothing.
    """
    if any(room.fixed > room.capacity for room in problem.rooms):
        return Shares(solver=solver, status=Status.INFEASIBLE)
    model, unit = programme.model, programme.unit
    answer = backend(model, Limits(max_nodes=limits.max_nodes))
    if answer.status is Status.INFEASIBLE:
        return Shares(solver=solver, status=Status.INFEASIBLE)
    share_O = _shares(problem, answer)
    if broken_constraints(problem, share_O):
        beside = LinearModel(columns=model.columns, rows=(*model.rows, *_kept_rows(problem, share_O)))
        again = backend(beside, Limits(max_nodes=limits.max_nodes))
        share_O = _shares(problem, again) if again.values else share_O
    broken = broken_constraints(problem, share_O)
    if broken:
        raise SolverError(
            solver=solver, status=f"shares that break {broken[0]}", limit=f"max_nodes = {limits.max_nodes}"
        )
    objective = programme.objective(share_O)
    bound = objective if answer.bound is None else min(max(answer.bound, 0.0) * unit, objective)
    close = objective - bound <= OPTIMALITY_TOLERANCE * objective
    return Shares(
        solver=solver,
        status=Status.OPTIMAL if answer.status is Status.OPTIMAL and close else Status.FEASIBLE,
        share_O=share_O,
        objective=objective,
        bound=bound if answer.bound is not None or answer.status is Status.OPTIMAL else 0.0,
    )


def _shares(problem: SharesProblem, answer: Answer) -> tuple[float, ...]:
    """Return shares that sum to 1: whole numbers of units, and others without what tolerances leave of them."""
    found = list(answer.values[: problem.num_options])
    for thing, units in enumerate(problem.units_T):
        options = [option for option, owner in enumerate(problem.thing_O) if owner == thing]
        if units:
            for option in options:
                found[option] = round(found[option]) / units
            continue
        clipped = [min(max(found[option], 0.0), 1.0) for option in options]
        total = sum(clipped) or 1.0
        for option, share in zip(options, clipped, strict=True):
            found[option] = share / total
    return tuple(found)


def programme_of(problem: SharesProblem) -> Programme:
    """Return the programme of a problem: its options, then its phases in seconds."""
    unit = sum(
        weight
        * max(
            (chain.fixed_seconds + max(chain.seconds_O) for chain in problem.chains if chain.phase == phase),
            default=0.0,
        )
        for phase, weight in enumerate(problem.weight_P)
    )
    unit = unit / WORK or 1.0
    columns = [
        Column(name=f"n_{option}", upper=float(problem.units_T[thing] or 1), is_integer=problem.units_T[thing] > 0)
        for option, thing in enumerate(problem.thing_O)
    ]
    columns += [
        Column(name=f"t_{phase}", upper=float("inf"), is_integer=False, objective=weight / unit)
        for phase, weight in enumerate(problem.weight_P)
    ]
    rows = (*_whole_rows(problem), *_room_rows(problem), *_chain_rows(problem))
    return Programme(model=LinearModel(columns=tuple(columns), rows=rows), unit=unit, objective=problem.objective)


def _whole_rows(problem: SharesProblem) -> list[Row]:
    rows = []
    for thing, units in enumerate(problem.units_T):
        terms = tuple((option, 1.0) for option, owner in enumerate(problem.thing_O) if owner == thing)
        rows.append(Row(name=f"whole_{thing}", terms=terms, lower=float(units or 1), upper=float(units or 1)))
    return rows


def scaled_terms(problem: SharesProblem, number_O: tuple[float, ...], unit: float) -> tuple[tuple[int, float], ...]:
    """Return what the columns of options add up to, in units, where whole things would add these numbers."""
    return tuple(
        (option, number / (problem.units_T[problem.thing_O[option]] or 1) / unit)
        for option, number in enumerate(number_O)
        if number
    )


def _room_rows(problem: SharesProblem) -> list[Row]:
    rows = []
    for index, room in enumerate(problem.rooms):
        unit = room.capacity / _ROOM or 1.0
        terms = scaled_terms(problem, room.use_O, unit)
        if terms:
            rows.append(Row(name=f"room_{index}", terms=terms, upper=(room.capacity - room.fixed) / unit))
    return rows


def _chain_rows(problem: SharesProblem) -> list[Row]:
    rows = []
    for index, chain in enumerate(problem.chains):
        unit = (chain.fixed_seconds + max(chain.seconds_O)) / WORK or 1.0
        phase = problem.num_options + chain.phase
        rows.append(
            Row(
                name=f"chain_{index}",
                terms=(*scaled_terms(problem, chain.seconds_O, unit), (phase, -1.0 / unit)),
                upper=-chain.fixed_seconds / unit,
            )
        )
    return rows


def _kept_rows(problem: SharesProblem, share_O: tuple[float, ...]) -> list[Row]:
    """Return rows that keep the whole numbers as they are."""
    rows = []
    for option, share in enumerate(share_O):
        units = problem.units_T[problem.thing_O[option]]
        if units:
            kept = float(round(share * units))
            rows.append(Row(name=f"kept_{option}", terms=((option, 1.0),), lower=kept, upper=kept))
    return rows
