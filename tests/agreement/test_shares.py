"""Exhaustive search and both back ends agree on small divisions; any share bounds units; tidying is free."""

from dataclasses import replace

import numpy as np
import pytest

from solvers.shares.check import broken_answer
from solvers.shares.problem import Chain, Room, SharesLimits, SharesProblem
from solvers.shares.registry import divide
from solvers.shares.tidy import tidied
from solvers.solution import OPTIMALITY_TOLERANCE, Status


def drawn(seed: int) -> SharesProblem:
    """Return two or three things over three places, two phases, and rooms that hold most of them."""
    draw = np.random.default_rng(seed)
    things = int(draw.integers(2, 4))
    thing_O = tuple(thing for thing in range(things) for _ in range(3))
    chains = tuple(
        Chain(
            name=f"{phase}.{index}",
            phase=phase,
            fixed_seconds=float(draw.integers(0, 5)),
            seconds_O=tuple(float(seconds) for seconds in draw.integers(0, 40, len(thing_O))),
        )
        for phase in range(2)
        for index in range(3)
    )
    sizes = draw.integers(10, 60, things)
    rooms = tuple(
        Room(
            name=f"place {place}",
            capacity=float(draw.integers(20, 90)),
            fixed=float(draw.integers(0, 12)),
            use_O=tuple(float(sizes[thing]) if option % 3 == place else 0.0 for option, thing in enumerate(thing_O)),
        )
        for place in range(3)
    )
    units = tuple(int(count) for count in draw.integers(1, 5, things))
    return SharesProblem(thing_O=thing_O, units_T=units, weight_P=(1.0, 5.0), chains=chains, rooms=rooms)


@pytest.mark.parametrize("seed", range(40))
def test_back_ends_are_as_good_as_looking_at_every_division(seed: int) -> None:
    problem = drawn(seed)
    every = divide(problem, solver="exhaustive")
    for solver in ("mathopt", "pulp"):
        found = divide(problem, solver=solver)
        assert found.status is every.status
        if every.objective is not None:
            assert found.objective == pytest.approx(every.objective, rel=OPTIMALITY_TOLERANCE)
            loose = divide(problem.relaxed, solver=solver)
            assert loose.objective is not None
            assert loose.objective <= every.objective * (1 + OPTIMALITY_TOLERANCE)


def test_some_of_the_drawn_problems_are_infeasible_and_most_are_not() -> None:
    found = [divide(drawn(seed), solver="exhaustive").status for seed in range(40)]
    assert 2 <= found.count(Status.INFEASIBLE) <= 20


@pytest.mark.parametrize("seed", range(12))
def test_any_shares_are_the_limit_of_finer_and_finer_units(seed: int) -> None:
    problem = drawn(seed)
    loose = divide(problem.relaxed)
    fine = divide(replace(problem, units_T=tuple(5000 for _ in problem.units_T)))
    assert fine.status is loose.status
    if loose.objective is not None:
        assert fine.objective == pytest.approx(loose.objective, rel=2e-3)


@pytest.mark.parametrize("solver", ["mathopt", "pulp"])
@pytest.mark.parametrize("seed", range(12))
def test_tidying_takes_no_longer_and_does_no_more(solver: str, seed: int) -> None:
    def done(share_O: tuple[float, ...]) -> float:
        return sum(problem.weight_P[chain.phase] * chain.seconds(share_O) for chain in problem.chains)

    problem = drawn(seed)
    found = divide(problem, solver=solver)
    neat = tidied(problem, found, solver=solver, limits=SharesLimits())
    assert broken_answer(problem, neat) == ()
    assert neat.status is found.status
    if found.objective is not None:
        assert neat.objective is not None
        assert neat.objective <= found.objective * (1 + OPTIMALITY_TOLERANCE)
        assert done(neat.share_O) <= done(found.share_O) * (1 + OPTIMALITY_TOLERANCE)
