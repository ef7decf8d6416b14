from dataclasses import replace

import pytest

from solvers.solution import Solution, Status, infeasible
from tests.unit.solvers.chains import chain, choice

RIGHT = choice(chain([[1.0]] * 4, num_stages=3), [0, 0, 2, 2])


def test_layers_are_counted_stage_by_stage() -> None:
    assert RIGHT.layers_S(3) == (2, 0, 2)


def test_the_gap_is_relative_to_the_objective() -> None:
    assert replace(RIGHT, objective=10.0, bound=8.0).gap == pytest.approx(0.2)
    assert replace(RIGHT, objective=0.0, bound=0.0).gap == 0.0
    assert infeasible(solver="by hand", proof="none").gap == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": Status.INFEASIBLE}, "an infeasible problem has no choice, objective or bound"),
        ({"bound": None}, "a solution that is feasible has an objective and a bound"),
        ({"objective": 1.0, "bound": 2.0}, "bound 2.0 exceeds objective 1.0"),
        ({"status": Status.OPTIMAL, "objective": 4.0, "bound": 3.0}, "a gap of 0.25 is not optimal"),
    ],
)
def test_a_status_that_does_not_match_its_proof_is_refused(changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {name: getattr(RIGHT, name) for name in Solution.__slots__}
    with pytest.raises(ValueError, match=r".") as caught:
        Solution(**{**values, **changes})  # type: ignore[arg-type]  # one dictionary for fields of several types
    assert str(caught.value) == message
