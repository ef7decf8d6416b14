"""Items with copies on the slots of bins: what is placed holds every constraint, and how good it is at least."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.replicas.bounds import least_load_L
from solvers.replicas.check import broken_constraints, loads
from solvers.replicas.copies import least_heaviest_room_L, num_partitions, rooms_of_families, spread_copies
from solvers.replicas.greedy import place
from solvers.replicas.packing import pack
from solvers.replicas.problem import Floats, ReplicaProblem, imbalance_L, load_LB


@st.composite
def problems(draw: st.DrawFn) -> ReplicaProblem:
    """Return problems of a few bins, with and without families."""
    rooms, bins_per_room = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    families, size = rooms * draw(st.integers(1, 2)), draw(st.integers(1, 4))
    items, bins = families * size, rooms * bins_per_room
    in_families = draw(st.booleans())
    most = items // rooms if in_families else items
    fewest = -(-items // bins)
    slots = draw(st.integers(fewest, max(fewest, most)))
    weights = draw(
        st.lists(
            st.lists(st.integers(0, 1000), min_size=items, max_size=items),
            min_size=2,
            max_size=2,
        )
    )
    family_I = tuple(item // size for item in range(items)) if in_families and slots <= most else ()
    return ReplicaProblem(
        weight_LI=np.array(weights, dtype=float),
        num_bins=bins,
        slots_per_bin=slots,
        num_rooms=rooms,
        family_I=family_I,
    )


@given(problems())
def test_what_is_placed_holds_every_constraint_and_no_load_is_below_the_bound(problem: ReplicaProblem) -> None:
    item_LBS = place(problem)
    assert broken_constraints(problem, item_LBS) == ()
    carried = loads(problem, item_LBS)
    assert np.allclose(load_LB(problem.weight_LI, item_LBS), carried)
    assert all(max(row) >= bound * (1 - 1e-9) for row, bound in zip(carried, least_load_L(problem), strict=True))


def test_an_item_stands_beside_others_where_every_bin_is_full_of_single_ones() -> None:
    # The heaviest has the lightest beside it at best; of the three heaviest, two of 9 share a bin where 20 weighs less.
    weights = np.array([[20.0, 9.0, 3.0, 2.0], [10.0, 9.0, 9.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    problem = ReplicaProblem(weight_LI=weights, num_bins=2, slots_per_bin=2)
    assert least_load_L(problem).tolist() == [22.0, 18.0, 10.0]


def test_copies_that_are_left_over_from_full_bins_still_find_their_place() -> None:
    # The lightest bins first would fill two of three bins with items of 1 and leave one for both copies of the last.
    weights, copies = np.array([[10.0, *[1.0] * 7]]), np.array([[*[1] * 7, 2]])
    item_LBS = pack(weights, copies, num_bins=3, slots_per_bin=3)
    assert sorted(item_LBS.ravel().tolist()) == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    assert all(len(set(items)) == 3 for items in item_LBS[0].tolist())


def test_no_other_copies_make_the_heaviest_copy_lighter() -> None:
    weights = np.random.default_rng(7).integers(1, 50, (40, 4)).astype(float)
    heaviest = (weights / spread_copies(weights, num_slots=8, num_bins=4)).max(axis=1)
    every = [
        (a, b, c, 8 - a - b - c)
        for a in range(1, 5)
        for b in range(1, 5)
        for c in range(1, 5)
        if 1 <= 8 - a - b - c <= 4
    ]
    least = np.min([(weights / np.array(copies)).max(axis=1) for copies in every], axis=0)
    assert np.allclose(heaviest, least)


@pytest.mark.parametrize(("families", "rooms"), [(8, 2), (8, 4), (6, 3), (18, 3)])
def test_families_are_spread_over_rooms_evenly_and_not_below_the_bound(families: int, rooms: int) -> None:
    weights: Floats = np.random.default_rng(3).lognormal(0, 1, (20, families))
    room_LF = rooms_of_families(weights, rooms)
    counts = np.stack([(room_LF == room).sum(axis=1) for room in range(rooms)])
    assert (counts == families // rooms).all()
    heaviest = np.stack([np.where(room_LF == room, weights, 0).sum(axis=1) for room in range(rooms)]).max(axis=0)
    bound = least_heaviest_room_L(weights, rooms)
    assert (heaviest >= bound * (1 - 1e-12)).all()
    if num_partitions(families, rooms) < 1000:
        assert np.allclose(heaviest, bound)
    else:
        assert heaviest.mean() < 1.02 * bound.mean()


def test_few_copies_level_very_uneven_items() -> None:
    weights = (1.0 / np.arange(1, 257))[None, :]
    problem = ReplicaProblem(weight_LI=weights, num_bins=32, slots_per_bin=9)
    assert imbalance_L(weights, place(problem))[0] < 1.001


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_bins": 3, "num_rooms": 2}, "bins, slots and rooms are at least 1, and rooms divide the bins"),
        ({"slots_per_bin": 1}, "slots are at least as many as items"),
        ({"slots_per_bin": 5}, "a bin has no more of them than there are items"),
        ({"family_I": (0, 0, 0, 1), "num_rooms": 2}, "all of one size"),
        ({"family_I": (0, 0, 1, 1), "num_rooms": 1, "weight_LI": -np.ones((1, 4))}, "none of them negative"),
        ({"family_I": (0, 0, 1, 1), "num_rooms": 2, "slots_per_bin": 3}, "items in its room"),
        ({"family_I": (0, 0, 0, 0), "num_rooms": 2}, "rooms must divide the families"),
        ({"affinity_LII": np.zeros((1, 4, 3))}, "a row and a column for each item of each case"),
    ],
)
def test_a_problem_that_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"weight_LI": np.ones((1, 4)), "num_bins": 2, "slots_per_bin": 2}
    with pytest.raises(ValueError, match=message):
        ReplicaProblem(**{**fields, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("items", "broken"),
    [
        ([[0, 1], [2, 3]], ()),
        ([[0, 2], [1, 3]], ("family apart",)),
        ([[0, 1], [2, 2]], ("every item", "twice on a bin")),
        ([[0, 1, 2], [3, 2, 1]], ("shape",)),
    ],
)
def test_each_constraint_can_be_broken(items: list[list[int]], broken: tuple[str, ...]) -> None:
    problem = ReplicaProblem(weight_LI=np.ones((1, 4)), num_bins=2, slots_per_bin=2, num_rooms=2, family_I=(0, 0, 1, 1))
    assert broken_constraints(problem, np.array([items])) == broken
