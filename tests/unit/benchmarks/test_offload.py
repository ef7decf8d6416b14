"""The offload benchmark: every case has its spec, reaches what is wanted, and prints both prices."""

import json

import pytest

from benchmarks.offload import CASES, SPECS, Case, line_of, main, measure


def test_every_case_has_a_spec() -> None:
    assert sorted(path.stem for path in SPECS.glob("*.yaml")) == sorted(case.model for case in CASES)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.model, marks=() if case.model == "opt-30b" else pytest.mark.slow) for case in CASES],
)
def test_every_case_reaches_what_is_wanted(case: Case) -> None:
    row = measure(case)
    assert not row.is_worse
    assert row.flexgen <= row.most <= row.flexgen * 1.01
    assert 0 < row.own <= row.bound
    assert line_of(row).split()[:2] == [case.model, f"{case.wanted:.2f}"]


def test_the_table_can_be_read_by_programs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--only", "opt-30b", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["flexgen"] >= row["wanted"] == 7.09
    monkeypatch.setattr("benchmarks.offload.CASES", (Case(model="opt-30b", gpu=16, host=200, wanted=8.0),))
    assert main([]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
