import json

import pytest

from profiles.measure.grid import ON_CPU, default_points, group_shapes
from profiles.measure.points import COLUMNS, Wanted, point, point_from_json, read_request, request_text

PRODUCT = point("gemm", dtype="bf16", part="forward", batch=1, m=2, n=3, k=4)


def test_a_point_has_a_key_and_comes_back_from_json() -> None:
    assert PRODUCT.key == "gemm dtype=bf16 part=forward batch=1 m=2 n=3 k=4"
    assert point_from_json(json.loads(json.dumps(PRODUCT.as_json()))) == PRODUCT


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"m": 0}, "m = '0' is no whole number from 1 to 35184372088832"),
        ({"m": True}, "m = 'True' is no whole number from 1 to 35184372088832"),
        ({"dtype": "bf17"}, "dtype 'bf17' is not one of bf16, fp16, fp8, int8, fp32"),
        ({"q": 1}, "the columns of gemm are dtype, part, batch, m, n, k, not batch, dtype, k, m, n, part, q"),
    ],
)
def test_what_is_no_point_is_refused(changed: dict[str, int | str], message: str) -> None:
    values: dict[str, int | str] = {"dtype": "bf16", "part": "forward", "batch": 1, "m": 2, "n": 3, "k": 4}
    with pytest.raises(ValueError, match="^" + message.replace("[", r"\[") + "$"):
        point("gemm", **{**values, **changed})


def test_a_window_may_be_none_and_a_suite_must_be_known() -> None:
    values = {"batch": 1, "query_len": 8, "kv_len": 8, "heads": 2, "kv_heads": 1, "qk_dim": 8, "v_dim": 8}
    assert point("attention", dtype="bf16", phase="forward", mask="causal", window=0, **values).size("window") == 0
    with pytest.raises(ValueError, match=r"^suite 'gem' is not one of gemm, experts, "):
        point("gem")


def test_a_request_comes_back_each_point_once() -> None:
    wanted = (Wanted(point=PRODUCT, weight=2.5), Wanted(point=point("launch", term="launch", kernels=1)))
    assert read_request(request_text((*wanted, Wanted(point=PRODUCT, weight=9.0)))) == wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "line 2: a point is a mapping with a suite"),
        (
            '{"suite": "memory", "term": "context", "count": 1, "weight": -1}',
            "line 2: weight = -1.0 is no number from 0",
        ),
    ],
)
def test_a_request_says_which_line_is_wrong(line: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        read_request(f"\n{line}\n")
    assert str(caught.value) == message


@pytest.mark.parametrize("shrink", [1, ON_CPU])
def test_the_grid_has_every_suite_each_point_once(shrink: int) -> None:
    points = default_points(COLUMNS, dtypes=["bf16", "fp8", "int8"], world_size=16, per_node=8, shrink=shrink)
    assert {entry.suite for entry in points} == set(COLUMNS)
    assert len(set(points)) == len(points)
    assert points == default_points(COLUMNS, dtypes=["bf16", "fp8", "int8"], world_size=16, per_node=8, shrink=shrink)
    kinds = {entry.words for entry in points if entry.suite == "collectives"}
    assert ("all_reduce", "graph", "alone") in kinds
    assert ("all_to_all", "eager", "concurrent") in kinds
    sizes = [entry.size("bytes") for entry in points if entry.suite == "collectives"]
    assert (min(sizes), max(sizes)) == (1 << 10, (1 << 30) // shrink)


def test_one_process_has_no_collectives() -> None:
    assert default_points(["collectives"], dtypes=["bf16"], world_size=1, per_node=1) == ()


def test_groups_lie_inside_a_node_or_reach_over_whole_nodes() -> None:
    assert group_shapes(4, 2) == ((2, 1), (2, 2), (4, 1))
    assert (2, 8) in group_shapes(16, 8)
    assert all(16 % (size * stride) == 0 for size, stride in group_shapes(16, 8))
