"""Blocks in whole units: fewer batches where units ask for it, and what a search says of itself."""

import pytest

from planner.inference_offload.blocks import best_block, settled
from solvers.errors import SolverError
from solvers.shares.problem import Chain, Room, Shares, SharesProblem


def line(batch_size: int, num_batches: int, *, units: int = 0, capacity: float = 10.0) -> SharesProblem:
    """Return a block that takes a second and a hundredth of its sequences, each of which needs one of a room."""
    sequences = batch_size * num_batches
    return SharesProblem(
        thing_O=(0, 0),
        units_T=(units,),
        weight_P=(1.0,),
        chains=(Chain(name="all", phase=0, fixed_seconds=1.0 + sequences / 100, seconds_O=(0.0, 1.0)),),
        rooms=(
            Room(name="room", capacity=capacity, fixed=0.0, use_O=(float(sequences), 0.0)),
            Room(name="beside", capacity=capacity, fixed=0.0, use_O=(0.0, float(sequences))),
        ),
    )


def test_the_best_block_fills_both_rooms_by_what_that_costs() -> None:
    found = best_block(line, batch_sizes=(1, 3))
    every = {
        (size, count): size * count / (1.0 + size * count / 100 + max(0.0, 1 - 10 / (size * count)))
        for size in (1, 3)
        for count in range(1, 21)
        if size * count <= 20
    }
    assert found.best is not None
    assert found.best.rate == pytest.approx(max(every.values()))
    assert [block.batch_size for block in found.of_sizes] == [1, 3]
    assert found.most_rate <= max(every.values()) * 1.001
    assert not found.stopped


def test_bounds_on_sequences_and_batches_are_kept() -> None:
    few = best_block(line, batch_sizes=(2,), most_sequences=7).best
    assert few is not None
    assert few.num_batches == 3
    lone = best_block(line, batch_sizes=(1, 2, 4), most_batches=1).best
    assert lone is not None
    assert (lone.batch_size, lone.num_batches) == (4, 1)
    assert best_block(lambda size, count: line(size, count, capacity=0.1)).of_sizes == ()


def test_a_search_that_is_stopped_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.inference_offload.blocks.MOST_PROGRAMMES", 6)
    found = best_block(line, batch_sizes=(1,))
    assert found.stopped
    assert found.best is not None
    assert found.most_rate > found.best.rate


def test_whole_units_take_fewer_batches_where_they_must() -> None:
    found = settled(lambda size, count: line(size, count, units=1), 1, 12)
    assert found is not None
    assert found.num_batches == 10, "7/8 of 12; a whole of 11 fits in neither room"
    assert found.shares.share_O == (1.0, 0.0)
    assert settled(lambda size, count: line(size, count, units=1, capacity=0.5), 1, 4) is None


def test_a_solver_that_finds_nothing_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: object, **__: object) -> Shares:
        raise SolverError(solver="mathopt", status="no_solution_found", limit="max_nodes = 1")

    monkeypatch.setattr("planner.inference_offload.blocks.divide", stops)
    with pytest.raises(SolverError, match="no_solution_found"):
        settled(line, 1, 4)
