"""Small chain partition problems."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.problem import Problem
from solvers.solution import Solution, Status, objective_of

ROOMY = 10**6


def chain(
    seconds_LO: Sequence[Sequence[float]],
    *,
    num_stages: int,
    static_bytes_LO: Sequence[Sequence[int]] | None = None,
    activation_bytes_LO: Sequence[Sequence[int]] | None = None,
    **changes: object,
) -> Problem:
    """Return a problem with room for everything, one stage a rank and no fixed parts, with some changes."""
    layers_and_options = np.shape(seconds_LO)
    num_layers = layers_and_options[0]
    nothing = np.zeros(layers_and_options, dtype=np.int64)
    plain: dict[str, object] = {
        "bottleneck_weight": 3.0,
        "total_weight": 1.0,
        "seconds_LO": np.array(seconds_LO, dtype=np.float64),
        "static_bytes_LO": nothing if static_bytes_LO is None else np.array(static_bytes_LO),
        "activation_bytes_LO": nothing if activation_bytes_LO is None else np.array(activation_bytes_LO),
        "fixed_seconds_S": np.zeros(num_stages),
        "fixed_bytes_S": np.zeros(num_stages, dtype=np.int64),
        "in_flight_S": np.arange(num_stages, 0, -1),
        "min_layers_S": np.ones(num_stages, dtype=np.int64),
        "max_layers_S": np.full(num_stages, num_layers),
        "rank_of_stage_S": np.arange(num_stages),
        "capacity_bytes_R": np.full(num_stages, ROOMY),
    }
    return with_changes(plain, **changes)


def with_changes(problem: Problem | dict[str, object], **changes: object) -> Problem:
    """Return a problem with some fields replaced."""
    values: dict[str, Any] = (
        {field.name: getattr(problem, field.name) for field in fields(Problem)}
        if isinstance(problem, Problem)
        else dict(problem)
    )
    return Problem(**{**values, **changes})


def choice(problem: Problem, stages: Sequence[int], options: Sequence[int] | None = None) -> Solution:
    """Return a choice as a solution, feasible or not, with its true objective."""
    options = [0] * problem.num_layers if options is None else options
    return Solution(
        solver="by hand",
        status=Status.FEASIBLE,
        stage_of_layer_L=tuple(stages),
        option_of_layer_L=tuple(options),
        objective=objective_of(problem, stage_of_layer_L=stages, option_of_layer_L=options),
        bound=0.0,
        proof="none",
    )


def random_problem(seed: int, *, shares_ranks: bool) -> Problem:
    """Return a small problem in which seconds and bytes are small integers, so that ties and exact fits are common."""
    rng = np.random.default_rng(seed)
    num_layers, num_options = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    num_stages = 4 if shares_ranks else int(rng.integers(1, 4))
    num_ranks = 2 if shares_ranks else num_stages
    # Neighbouring layers of the same kind are equal.
    kind_L = np.sort(rng.integers(0, int(rng.integers(1, num_layers + 1)), num_layers))

    def per_option(low: int, high: int) -> NDArray[np.int64]:
        picked: NDArray[np.int64] = rng.integers(low, high, (num_layers, num_options))[kind_L]
        return picked

    return Problem(
        bottleneck_weight=float(rng.integers(0, 10)),
        total_weight=float(rng.integers(0, 3)) / 2.0,
        seconds_LO=np.asarray(per_option(1, 20) * 1e-3, dtype=np.float64),
        static_bytes_LO=per_option(0, 20),
        activation_bytes_LO=per_option(0, 20),
        fixed_seconds_S=np.asarray(rng.integers(0, 10, num_stages) * 1e-3, dtype=np.float64),
        fixed_bytes_S=rng.integers(0, 10, num_stages),
        in_flight_S=rng.integers(0, 5, num_stages),
        min_layers_S=rng.integers(0, 2, num_stages),
        max_layers_S=rng.integers(2, num_layers + 2, num_stages),
        rank_of_stage_S=np.arange(num_stages) % num_ranks,
        capacity_bytes_R=rng.integers(20, 250, num_ranks),
    )


def with_unequal_stages(problem: Problem, seed: int) -> Problem:
    """Return a problem whose stages differ: each takes a small whole number of times as long over each layer's kind."""
    rng = np.random.default_rng(seed)
    times_SO = rng.integers(1, 4, (problem.num_stages, problem.num_options))
    seconds_SLO = times_SO[:, np.newaxis, :] * problem.seconds_LO
    return with_changes(problem, seconds_SLO=seconds_SLO, seconds_LO=seconds_SLO.min(axis=0))
