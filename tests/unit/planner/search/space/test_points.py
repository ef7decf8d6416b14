"""Points as arrays: what is distinct among them, and what they share."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.search.space.points import Points, distinct, distinct_columns, point_of, runs

COLUMNS = st.integers(1, 30).flatmap(lambda size: arrays(np.int64, (3, size), elements=st.integers(0, 2)))


@given(COLUMNS)
def test_distinct_columns_are_those_that_a_dictionary_finds(columns: np.ndarray) -> None:
    first, index_X = distinct_columns(columns)
    listed = list(map(tuple, columns.T.tolist()))
    assert {listed[position]: position for position in first.tolist()} == {
        column: listed.index(column) for column in listed
    }
    assert [listed[first[index]] for index in index_X] == listed


@given(COLUMNS)
def test_a_run_ends_where_a_column_differs_from_the_one_before(columns: np.ndarray) -> None:
    first, run_X = runs(columns)
    listed = list(map(tuple, columns.T.tolist()))
    begins = [index for index, column in enumerate(listed) if index == 0 or column != listed[index - 1]]
    assert first.tolist() == begins
    assert [sum(begin <= index for begin in begins) - 1 for index in range(len(listed))] == run_X.tolist()


@given(st.lists(st.integers(0, 200)))
def test_distinct_values_come_in_order(values: list[int]) -> None:
    assert distinct(np.array(values, dtype=np.int64)) == sorted(set(values))


def joined(*parts: Points) -> Points:
    names = list(Points.__dataclass_fields__)
    return Points(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def test_points_that_recompute_otherwise_are_uses_of_the_same_kind() -> None:
    points = joined(
        point_of(tp=2, recompute=0),
        point_of(tp=2, recompute=3),
        point_of(tp=2, recompute_layers=5),
        point_of(tp=4, recompute=3),
        point_of(tp=4, vpp=2, recompute=3),
    )
    uses = points.uses()
    assert uses.use_X.tolist() == [0, 0, 0, 1, 2]
    assert uses.first.tolist() == [0, 3, 4]
    assert (uses.points.tp_X.tolist(), uses.points.vpp_X.tolist()) == ([2, 4, 4], [1, 1, 2])


def test_all_points_are_the_points_themselves() -> None:
    points = joined(point_of(tp=2), point_of(tp=4))
    assert points.where(np.array([True, True])) is points
    assert points.where(np.array([False, True])).tp_X.tolist() == [4]
