import pytest

from profiles.measure.budget import Chooser
from profiles.measure.points import Point, Wanted, point


def product(k: int, *, dtype: str = "bf16") -> Point:
    return point("gemm", dtype=dtype, part="forward", batch=1, m=64, n=64, k=k)


def order(wanted: list[Wanted], seconds_of_k: dict[int, float]) -> list[int]:
    """Return the order in which a request is measured, by k."""
    chooser = Chooser(wanted)
    found = []
    while (index := chooser.next()) is not None:
        chosen = wanted[index].point
        found.append(chosen.size("k"))
        chooser.learn(chosen, seconds_of_k[chosen.size("k")])
        chooser.close(chosen)
    return found


EVEN = {1 << power: 1e-6 * (1 << power) for power in range(10, 19)}


def test_all_points_are_measured_once_the_farthest_from_what_is_known_first() -> None:
    found = order([Wanted(point=product(k)) for k in EVEN], EVEN)
    assert sorted(found) == sorted(EVEN)
    # The first in the request, then the other end, then the middle.
    assert found[:3] == [1 << 10, 1 << 18, 1 << 14]


def test_what_weighs_more_comes_first() -> None:
    wanted = [Wanted(point=product(k), weight=10.0 if k == 1 << 12 else 1.0) for k in EVEN]
    assert order(wanted, EVEN)[0] == 1 << 12


def test_a_group_that_bends_is_looked_at_more_closely() -> None:
    smooth = [Wanted(point=product(k)) for k in EVEN]
    rough = [Wanted(point=product(k, dtype="fp16")) for k in EVEN]
    wanted = [*smooth, *rough]
    chooser = Chooser(wanted)
    for entry in wanted:
        k = entry.point.size("k")
        if k.bit_length() % 2:  # every other one is known
            bent = 3.0 if entry.point.word("dtype") == "fp16" and k.bit_length() % 4 == 1 else 1.0
            chooser.learn(entry.point, EVEN[k] * bent)
            chooser.close(entry.point)
    index = chooser.next()
    assert index is not None
    assert wanted[index].point.word("dtype") == "fp16"


def test_nothing_is_left_when_everything_is_closed() -> None:
    wanted = [Wanted(point=product(k)) for k in EVEN]
    chooser = Chooser(wanted)
    for entry in wanted:
        chooser.close(entry.point)
    assert chooser.next() is None


@pytest.mark.parametrize("seconds", [1e-6, 1.0])
def test_points_of_no_request_teach_without_being_asked(seconds: float) -> None:
    chooser = Chooser([Wanted(point=product(1 << 10)), Wanted(point=product(1 << 20))])
    chooser.learn(product(1 << 11), seconds)
    assert chooser.next() == 1
