"""Ranks stand where both grids say."""

from planner.plans.rank_places import rank_places, telling_ranks
from tests.unit.cli.samples import spread_layout


def test_every_rank_stands_in_both_grids() -> None:
    layout = spread_layout()
    places = rank_places(layout, range(layout.world_size))
    assert len({place.dense for place in places}) == len({place.expert for place in places}) == layout.world_size
    assert [max(place.dense[axis] + 1 for place in places) for axis in range(4)] == [2, 4, 4, 2]
    assert [max(place.expert[axis] + 1 for place in places) for axis in range(4)] == [1, 8, 4, 2]
    for place in places:
        tp, cp, dp, pp = place.dense
        assert place.rank == tp + 2 * cp + 8 * dp + 32 * pp
        etp, ep, edp, expert_pp = place.expert
        assert place.rank == etp + ep + 8 * edp + 32 * expert_pp
        assert place.rank // layout.stage_ranks == pp == expert_pp


def test_of_many_ranks_those_are_told_that_step_along_an_axis() -> None:
    layout = spread_layout()
    assert telling_ranks(layout, at_most=64) == tuple(range(64))
    assert telling_ranks(layout, at_most=63) == (0, 1, 2, 8, 32, 63)
