"""The serving benchmark: every case has its spec and another planner's figure, and prints both."""

import json
from dataclasses import replace
from math import prod

import pytest

from benchmarks.serving import OTHERS, SPECS, main, names, plan_case, table
from benchmarks.serving_trace import WANTED_SECONDS, trace_row, trace_words

FAST = "llama-3.1-70b-infeasible"


def test_every_case_has_a_spec_and_every_spec_a_case() -> None:
    assert sorted(path.stem for path in SPECS.glob("*.yaml")) == sorted(names())
    assert all(other.source and other.plan for other in OTHERS.values())


def test_a_case_that_is_infeasible_has_a_nearest_plan() -> None:
    row = plan_case(FAST)
    assert (row.status, row.tokens_per_second_per_gpu, row.over_targets) == ("infeasible", None, None)
    assert row.plan.startswith("nearest: tp8 on h100-sxm-80gb")


def test_both_sides_are_printed() -> None:
    lines = table([plan_case("llama-3.1-70b-8xa100")]).splitlines()
    assert lines[0] == "llama-3.1-70b-8xa100"
    assert any(line.split()[:3] == ["other", "96", "tok/s/GPU"] for line in lines)
    assert any(line.startswith("  here ") and "tok/s/GPU" in line for line in lines)
    assert lines[-1].startswith("  aiconfigurator 0.12")


def test_the_difference_is_taken_apart() -> None:
    row = plan_case("llama-3.1-70b-8xa100")
    assert row.tokens_per_second_per_gpu is not None
    assert row.other.tokens_per_second_per_gpu is not None
    whole = row.tokens_per_second_per_gpu / row.other.tokens_per_second_per_gpu
    assert prod(row.factors.values()) == pytest.approx(whole)
    lines = table([row]).splitlines()
    assert f"  why    {whole - 1:+.0%}:" in lines
    assert any("its engines at batch 48 priced here: " in line for line in lines)
    assert row.over_targets is not None
    assert 0.5 < row.over_targets <= 1
    assert f"         {row.over_targets:.1%} of the target that is nearest, by simulation" in lines
    without = replace(row, tokens_per_second_per_gpu=None, one_shape=None, priced=None)
    assert without.factors == {}
    assert "  why    its engine does not fit here" in table([without]).splitlines()


def test_every_engine_that_the_other_planner_names_can_be_priced() -> None:
    for name, other in OTHERS.items():
        assert (other.shape is None) == (other.tokens_per_second_per_gpu is None), name


def test_json_is_one_document(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.in_a_fresh_process", plan_case)
    assert main(["--only", FAST, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == FAST


def test_a_trace_is_read_and_simulated_to_its_end() -> None:
    row = trace_row(300)
    # An answer of 200 tokens in the mean, at most as many at once as there are seats: more steps than requests.
    assert row.steps > row.num_requests == 300
    lines = trace_words(replace(row, simulated_seconds=2.0, loop_seconds=0.1))
    assert lines[0] == "trace of 300 requests, on one engine"
    assert lines[-1] == "  20 times a bare loop over as many steps"
    late = trace_words(replace(row, simulated_seconds=WANTED_SECONDS + 1))
    assert late[1].endswith(" 21.00 s (wanted: 20 s) to simulate")


def test_the_trace_can_be_asked_for_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.trace_row", lambda: trace_row(50))
    assert main(["--only", "trace"]) == 0
    assert capsys.readouterr().out.startswith("trace of 50 requests, on one engine\n")
    assert main(["--only", "trace", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["num_requests"]) == ("trace", 50)
