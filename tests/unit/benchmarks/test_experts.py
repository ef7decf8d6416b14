"""The placement of experts is nowhere worse than the two-level greedy, in small samples of the benchmark's cases."""

import json

import pytest

from benchmarks.experts import DISTRIBUTIONS, SHAPES, Shape, main, measure
from benchmarks.two_level_greedy import copied, packed, two_level_greedy

LAYERS = 4


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_no_case_is_worse_than_the_greedy(shape: Shape, distribution: str) -> None:
    for keep_groups in (True, False):
        row = measure(shape, distribution, keep_groups=keep_groups, layers=LAYERS)
        assert row.bound * (1 - 1e-9) <= row.load <= row.greedy_load * (1 + 1e-9)
        assert row.twice == 0


@pytest.mark.parametrize(("gpus", "most"), [(32, 1.05), (64, 1.55)])
def test_free_groups_level_zipf(gpus: int, most: float) -> None:
    shape = next(shape for shape in SHAPES if (shape.experts, shape.gpus) == (256, gpus))
    assert measure(shape, "zipf:1.0", keep_groups=False, layers=LAYERS).load <= most


def test_the_greedy_is_what_its_description_says() -> None:
    assert packed([5, 4, 3, 2, 1, 1], 2) == [[0, 3, 4], [1, 2, 5]]
    assert copied([9, 4, 1], 5) == [0, 1, 2, 0, 0]
    placed = two_level_greedy([9, 1, 4, 4], num_slots=6, num_groups=2, num_nodes=2, num_gpus=2)
    assert [sorted(experts) for experts in placed] == [[0, 0, 1], [2, 2, 3]]


def test_the_table_can_be_read_by_programs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = Shape(layers=2, experts=16, gpus=8, slots=24)
    monkeypatch.setattr("benchmarks.experts.SHAPES", (small,))
    assert main(["--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2 * len(DISTRIBUTIONS)
    assert main(["--front", "zipf:1.0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["weight", "load", "sends"]
    assert lines[-1].startswith("2x16-8 zipf:1.0, ")
    assert main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 * len(DISTRIBUTIONS)
