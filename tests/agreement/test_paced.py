"""Exhaustive search and both back ends agree on small paced divisions; tidying is free; more room is never worse."""

from dataclasses import replace

import numpy as np
import pytest

from solvers.paced.check import broken_answer
from solvers.paced.problem import Link, PacedProblem
from solvers.paced.registry import PACED_SOLVERS, divide_paced
from solvers.paced.tidy import tidied_paced
from solvers.shares.problem import Chain, Room, SharesLimits, SharesProblem
from solvers.solution import OPTIMALITY_TOLERANCE, Status

BACK_ENDS = ("mathopt", "pulp")


def drawn(seed: int) -> PacedProblem:
    """Return tokens on two or three ranks: kept, swapped or computed again, over memory, a host and links they share.

    Each rank computes in two phases, beside which it copies; the second is longer by what it computes again.
    """
    draw = np.random.default_rng(seed)
    ranks = int(draw.integers(2, 4))
    thing_O = tuple(rank for rank in range(ranks) for _ in range(3))
    size_R = draw.integers(4, 20, ranks)
    again_R, copy_R = draw.integers(1, 9, ranks), draw.integers(1, 9, ranks)

    def own(rank: int, kept: float, swapped: float, again: float) -> tuple[float, ...]:
        return tuple(number * (of == rank) for of in range(ranks) for number in (kept, swapped, again))

    chains: list[Chain] = []
    for rank in range(ranks):
        copied = own(rank, 0.0, float(copy_R[rank]), copy_R[rank] / 4)
        for phase, more in ((2 * rank, 0.0), (2 * rank + 1, float(again_R[rank]))):
            fixed = float(draw.integers(1, 6))
            chains.append(Chain(name="compute", phase=phase, fixed_seconds=fixed, seconds_O=own(rank, 0.0, 0.0, more)))
            chains.append(Chain(name="copies", phase=phase, fixed_seconds=0.0, seconds_O=copied))
    rooms = [
        Room(
            name=f"GPU {rank}",
            capacity=float(draw.integers(2, 24)),
            fixed=2.0,
            use_O=own(rank, float(size_R[rank]), 0.0, 0.0),
        )
        for rank in range(ranks)
    ]
    on_host = tuple(float(number) for rank in range(ranks) for number in (0.0, size_R[rank], size_R[rank] / 2))
    rooms.append(Room(name="host", capacity=float(draw.integers(1, 25)), fixed=0.0, use_O=on_host))
    slow = float(draw.uniform(0.1, 4.0))
    return PacedProblem(
        shares=SharesProblem(
            thing_O=thing_O,
            units_T=tuple(int(units) for units in draw.integers(1, 5, ranks)),
            weight_P=tuple(float(count) for count in draw.integers(1, 4, 2 * ranks)),
            chains=tuple(chains),
            rooms=tuple(rooms),
        ),
        rank_P=tuple(rank for rank in range(ranks) for _ in range(2)),
        links=(Link(name="socket", seconds_O=tuple(slow * number for number in on_host)),),
        periods=float(draw.integers(0, 20)),
    )


@pytest.mark.parametrize("seed", range(40))
def test_back_ends_are_as_good_as_looking_at_every_division(seed: int) -> None:
    problem = drawn(seed)
    every = divide_paced(problem, solver="exhaustive")
    for solver in BACK_ENDS:
        found = divide_paced(problem, solver=solver)
        assert found.status is every.status
        if every.objective is not None:
            assert found.objective == pytest.approx(every.objective, rel=OPTIMALITY_TOLERANCE)


def test_the_drawn_problems_are_of_every_kind() -> None:
    found = [divide_paced(drawn(seed), solver="exhaustive") for seed in range(40)]
    assert 3 <= sum(answer.status is Status.INFEASIBLE for answer in found) <= 20
    by_links = [
        answer
        for seed, answer in enumerate(found)
        if answer.share_O and drawn(seed).pace(answer.share_O) > max(drawn(seed).busy_R(answer.share_O))
    ]
    assert len(by_links) >= 2
    mixed = [answer for answer in found if any(0 < share < 1 for share in answer.share_O)]
    assert len(mixed) >= 10


@pytest.mark.parametrize("solver", BACK_ENDS)
@pytest.mark.parametrize("seed", range(12))
def test_tidying_takes_no_longer_and_does_no_more(solver: str, seed: int) -> None:
    def done(share_O: tuple[float, ...]) -> float:
        shares = problem.shares
        return sum(shares.weight_P[chain.phase] * chain.seconds(share_O) for chain in shares.chains)

    problem = drawn(seed)
    found = divide_paced(problem, solver=solver)
    neat = tidied_paced(problem, found, solver=solver, limits=SharesLimits())
    assert neat.status is found.status
    assert broken_answer(problem, neat) == ()
    if found.objective is not None:
        assert neat.objective is not None
        assert neat.objective <= found.objective * (1 + OPTIMALITY_TOLERANCE)
        assert done(neat.share_O) <= done(found.share_O) * (1 + OPTIMALITY_TOLERANCE)


@pytest.mark.parametrize("solver", PACED_SOLVERS)
@pytest.mark.parametrize("seed", range(12))
def test_more_room_and_faster_links_are_never_worse(solver: str, seed: int) -> None:
    problem = drawn(seed)
    before = divide_paced(problem, solver=solver).objective
    roomier = tuple(replace(room, capacity=1.5 * room.capacity) for room in problem.shares.rooms)
    faster = tuple(replace(link, seconds_O=tuple(each / 2 for each in link.seconds_O)) for link in problem.links)
    copies = tuple(
        replace(chain, seconds_O=tuple(each / 2 for each in chain.seconds_O)) if chain.name == "copies" else chain
        for chain in problem.shares.chains
    )
    for better in (
        replace(problem, shares=replace(problem.shares, rooms=roomier)),
        replace(problem, links=faster),
        replace(problem, shares=replace(problem.shares, chains=copies)),
    ):
        after = divide_paced(better, solver=solver).objective
        if before is not None:
            assert after is not None
            assert after <= before * (1 + OPTIMALITY_TOLERANCE)
