"""The chain partition problem as a mixed-integer programme, for any solver that takes one.

Sets
    K   runs of equal neighbouring layers, in order; run k has len_k layers
    S   stages, in order
    O   options
    R   ranks

Variables
    n[k,s,o]  layers of run k that stage s holds with option o                    integer, 0 to len_k
    w[k,s]    run k may have layers on the stages up to s (k > 0)                 binary
    tau       seconds of the busiest rank                                         >= 0

Objective
    minimise  bottleneck_weight * tau + total_weight * (sum of the seconds of all stages)     _objective

Constraints, in the numbers of `solvers.check`
    (1)  sum over s, o of n[k,s,o] = len_k                                                    _choice_rows
    (2)  sum over s' <= s, o of n[k,s',o] <= len_k w[k,s]
         len_(k-1) w[k,s] <= sum over s' <= s, o of n[k-1,s',o]                               _order_rows
    (3)  min_layers[s] <= sum over k, o of n[k,s,o] <= max_layers[s]                          _count_rows
    (4)  seconds of the stages of rank r <= tau                                               _bottleneck_rows
    (5)  bytes of the stages of rank r <= capacity[r]                                         _memory_rows

Solvers keep rows to an absolute tolerance, and CBC calls solutions optimal that are not when coefficients are as large
as bytes. So rows are scaled, and a solution may exceed a capacity by a few bytes. `_memory_cut` then forbids exactly
the loads at least as large on that rank, and the solver runs again. The model is a relaxation at every turn, so that
its bound holds and an optimal solution that fits is optimal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import gcd, inf
from typing import Protocol

from solvers.errors import SolverError
from solvers.problem import Limits, Problem
from solvers.solution import OPTIMALITY_TOLERANCE, Solution, Status, infeasible, objective_of

# Size of a right-hand side after scaling: far above the solvers' tolerances (1e-9 to 1e-6), far below what upsets them.
_ROOM = 10_000.0
_WORK = 1_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One variable of a linear model."""

    name: str
    upper: float
    is_integer: bool
    objective: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One constraint: lower <= sum of coefficient times column <= upper."""

    name: str
    terms: tuple[tuple[int, float], ...]
    lower: float = -inf
    upper: float = inf


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearModel:
    """A model to minimise; every column is at least 0."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a solver says about a linear model.

    Args:
        status: Its status, never softened.
        values: Value of each column; empty when infeasible.
        bound: Its bound on the objective, None if it tells none.
    """

    status: Status
    values: tuple[float, ...] = ()
    bound: float | None = None


class Backend(Protocol):
    """A solver of linear models."""

    def __call__(self, model: LinearModel, limits: Limits) -> Answer:
        """Return the answer; raise `SolverError` when it stopped with nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Equal neighbouring layers."""

    first_layer: int
    num_layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Formulation:
    """The model of one problem, and where its variables stand.

    Args:
        problem: The problem.
        runs: Its runs of equal layers.
        seconds_unit: Seconds that stand for 1 in the model; the mean work of a rank becomes `_WORK`.
    """

    problem: Problem
    runs: tuple[Run, ...]
    seconds_unit: float

    def count_column(self, run: int, stage: int, option: int) -> int:
        """Return the column of n[k,s,o]."""
        return (run * self.problem.num_stages + stage) * self.problem.num_options + option

    def started_column(self, run: int, stage: int) -> int:
        """Return the column of w[k,s], k > 0."""
        return self.bottleneck_column + 1 + (run - 1) * self.problem.num_stages + stage

    @property
    def bottleneck_column(self) -> int:
        """Return the column of tau."""
        return len(self.runs) * self.problem.num_stages * self.problem.num_options

    def counts(self, run: int, stage: int) -> list[tuple[int, float]]:
        """Return the terms of the layers of one run on one stage."""
        return [(self.count_column(run, stage, option), 1.0) for option in range(self.problem.num_options)]

    def stages_of_rank(self, rank: int) -> list[int]:
        """Return the stages of one rank."""
        return [stage for stage, of in enumerate(self.problem.rank_of_stage_S.tolist()) if of == rank]


def solve_with(backend: Backend, problem: Problem, limits: Limits, *, solver: str) -> Solution:
    """Return the best choice that a solver of linear models finds, with what it proves.

    Raises:
        SolverError: The solver stopped with nothing, or rounding kept breaking a capacity.

    """
    form = formulate(problem)
    model = linear_model(form)
    for _ in range(limits.max_cuts + 1):
        answer = backend(model, limits)
        if answer.status is Status.INFEASIBLE:
            return infeasible(solver=solver, proof="the MIP solver proved that its relaxation has no solution")
        counts = tuple(round(value) for value in answer.values[: form.bottleneck_column])
        overloaded = [rank for rank in range(problem.num_ranks) if _excess_bytes(form, counts, rank) > 0]
        if not overloaded:
            return _read_back(form, counts, answer, solver)
        for rank in overloaded:
            model = _memory_cut(form, model, counts, rank)
    raise SolverError(solver=solver, status="capacity broken by rounding", limit=f"max_cuts = {limits.max_cuts}")


def formulate(problem: Problem) -> Formulation:
    """Return the runs and units of a problem."""
    runs = []
    first_layer = 0
    for _, layers in groupby(problem.kind_L):
        num_layers = len(list(layers))
        runs.append(Run(first_layer=first_layer, num_layers=num_layers))
        first_layer += num_layers
    work = float(problem.seconds_LO.min(axis=1).sum() + problem.fixed_seconds_S.sum())
    return Formulation(problem=problem, runs=tuple(runs), seconds_unit=work / problem.num_ranks / _WORK or 1.0)


def linear_model(form: Formulation) -> LinearModel:
    """Return the model; the seconds that every choice has are left out of the objective."""
    rows = (
        *_choice_rows(form),
        *_order_rows(form),
        *_count_rows(form),
        *_bottleneck_rows(form),
        *_memory_rows(form),
    )
    return LinearModel(columns=_objective(form), rows=rows)


def _objective(form: Formulation) -> tuple[Column, ...]:
    problem, columns = form.problem, []
    for index, run in enumerate(form.runs):
        for stage in range(problem.num_stages):
            for option in range(problem.num_options):
                seconds = float(problem.stage_seconds_LO(stage)[run.first_layer, option]) / form.seconds_unit
                columns.append(
                    Column(
                        name=f"n_{index}_{stage}_{option}",
                        upper=float(run.num_layers),
                        is_integer=True,
                        objective=problem.total_weight * seconds,
                    )
                )
    columns.append(Column(name="tau", upper=inf, is_integer=False, objective=problem.bottleneck_weight))
    columns += [
        Column(name=f"w_{run}_{stage}", upper=1.0, is_integer=True)
        for run in range(1, len(form.runs))
        for stage in range(problem.num_stages)
    ]
    return tuple(columns)


def _choice_rows(form: Formulation) -> list[Row]:
    """Return constraint (1)."""
    rows = []
    for index, run in enumerate(form.runs):
        terms = [term for stage in range(form.problem.num_stages) for term in form.counts(index, stage)]
        length = float(run.num_layers)
        rows.append(Row(name=f"choice_{index}", terms=tuple(terms), lower=length, upper=length))
    return rows


def _order_rows(form: Formulation) -> list[Row]:
    """Return constraint (2)."""
    rows = []
    for index in range(1, len(form.runs)):
        here: list[tuple[int, float]] = []
        before: list[tuple[int, float]] = []
        for stage in range(form.problem.num_stages):
            here += form.counts(index, stage)
            before += form.counts(index - 1, stage)
            started = form.started_column(index, stage)
            length, length_before = form.runs[index].num_layers, form.runs[index - 1].num_layers
            rows.append(Row(name=f"start_{index}_{stage}", terms=(*here, (started, -float(length))), upper=0.0))
            rows.append(
                Row(name=f"finish_{index}_{stage}", terms=(*before, (started, -float(length_before))), lower=0.0)
            )
    return rows


def _count_rows(form: Formulation) -> list[Row]:
    """Return constraint (3)."""
    problem = form.problem
    return [
        Row(
            name=f"layers_{stage}",
            terms=tuple(term for run in range(len(form.runs)) for term in form.counts(run, stage)),
            lower=float(problem.min_layers_S[stage]),
            upper=float(problem.max_layers_S[stage]),
        )
        for stage in range(problem.num_stages)
    ]


def _bottleneck_rows(form: Formulation) -> list[Row]:
    """Return constraint (4)."""
    problem, rows = form.problem, []
    for rank in range(problem.num_ranks):
        stages = form.stages_of_rank(rank)
        fixed = sum(float(problem.fixed_seconds_S[stage]) for stage in stages) / form.seconds_unit
        terms = [
            (form.count_column(index, stage, option), float(seconds) / form.seconds_unit)
            for stage in stages
            for index, run in enumerate(form.runs)
            for option, seconds in enumerate(problem.stage_seconds_LO(stage)[run.first_layer].tolist())
        ]
        rows.append(Row(name=f"bottleneck_{rank}", terms=(*terms, (form.bottleneck_column, -1.0)), upper=-fixed))
    return rows


def _memory_rows(form: Formulation) -> list[Row]:
    """Return constraint (5), with the rank's room as `_ROOM`.

    The room is first rounded down to what sums of the demands can reach. A layer that does not fit alone counts as
    twice the room: no layer of that kind fits either way, and coefficients stay small.
    """
    rows = []
    for rank in range(form.problem.num_ranks):
        terms, room_bytes = _demand(form, rank)
        step = gcd(*(demand for _, demand in terms)) or 1
        room_bytes = room_bytes // step * step
        too_much = 2 * max(room_bytes, 0) + 1
        unit = max(abs(room_bytes), 1) / _ROOM
        scaled = tuple((column, min(demand, too_much) / unit) for column, demand in terms)
        rows.append(Row(name=f"memory_{rank}", terms=scaled, upper=room_bytes / unit))
    return rows


def _demand(form: Formulation, rank: int) -> tuple[list[tuple[int, int]], int]:
    """Return the bytes of each column on a rank, and the bytes it has for layers."""
    problem = form.problem
    stages = form.stages_of_rank(rank)
    room_bytes = int(problem.capacity_bytes_R[rank]) - sum(int(problem.fixed_bytes_S[stage]) for stage in stages)
    terms = []
    for stage in stages:
        demand_LO = problem.bytes_LO(stage)
        terms += [
            (form.count_column(index, stage, option), demand)
            for index, run in enumerate(form.runs)
            for option, demand in enumerate(demand_LO[run.first_layer].tolist())
        ]
    return terms, room_bytes


def _excess_bytes(form: Formulation, counts: Sequence[int], rank: int) -> int:
    """Return by how many bytes a rank exceeds its capacity."""
    terms, room_bytes = _demand(form, rank)
    return sum(counts[column] * demand for column, demand in terms) - room_bytes


def _memory_cut(form: Formulation, model: LinearModel, counts: Sequence[int], rank: int) -> LinearModel:
    """Return the model without the loads of a rank that are at least `counts` in every column.

    Bytes are not negative, so that no such load fits either. Binary b_c says that column c is below its count:
    n_c <= upper_c - (upper_c - count_c + 1) b_c, and some b_c is 1.
    """
    columns, rows, below = list(model.columns), list(model.rows), []
    for column, _ in _demand(form, rank)[0]:
        if counts[column] == 0:
            continue
        below.append((len(columns), 1.0))
        upper = model.columns[column].upper
        terms = ((column, 1.0), (len(columns), upper - counts[column] + 1.0))
        rows.append(Row(name=f"cut_{len(rows)}", terms=terms, upper=upper))
        columns.append(Column(name=f"b_{len(columns)}", upper=1.0, is_integer=True))
    # Without any such column the fixed bytes alone exceed the capacity, and the empty row says so.
    rows.append(Row(name=f"cut_{len(rows)}", terms=tuple(below), lower=1.0))
    return LinearModel(columns=tuple(columns), rows=tuple(rows))


def _read_back(form: Formulation, counts: Sequence[int], answer: Answer, solver: str) -> Solution:
    """Return the solution that the counts stand for: in each run by stage, then by option."""
    problem = form.problem
    stage_of_layer_L: list[int] = []
    option_of_layer_L: list[int] = []
    for run in range(len(form.runs)):
        for stage in range(problem.num_stages):
            for option in range(problem.num_options):
                count = counts[form.count_column(run, stage, option)]
                stage_of_layer_L += [stage] * count
                option_of_layer_L += [option] * count
    objective = objective_of(problem, stage_of_layer_L=stage_of_layer_L, option_of_layer_L=option_of_layer_L)
    bound = problem.simple_bound()
    if answer.bound is not None:
        fixed_total = problem.total_weight * float(problem.fixed_seconds_S.sum())
        bound = max(bound, answer.bound * form.seconds_unit + fixed_total)
    if answer.status is Status.OPTIMAL and answer.bound is None:
        # The solver proved it within its own tolerances, which are tighter than ours.
        bound = objective
    bound = min(bound, objective)
    proved = objective - bound <= OPTIMALITY_TOLERANCE * objective
    return Solution(
        solver=solver,
        status=Status.OPTIMAL if proved else Status.FEASIBLE,
        stage_of_layer_L=tuple(stage_of_layer_L),
        option_of_layer_L=tuple(option_of_layer_L),
        objective=objective,
        bound=bound,
        proof="the bound of branch and bound" if proved else "stopped at its limit with an incumbent",
    )
