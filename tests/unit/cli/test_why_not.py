"""`plan --why-not`: each kind of answer, on a real search."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from planner.documents import parse_document
from planner.schema.plan import WHY_NOT, plan_from_document

RUNNER = CliRunner()

SPEC = """\
schema: 1
model: llama-3.1-8b
cluster: {preset: dgx-h100, nodes: 1}
workload: {kind: train, seq_len: 4096, global_batch_size: 16, precision: bf16}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def test_every_question_is_answered_by_rule_memory_or_time(spec: Path) -> None:
    questions = ("tp=8,pp=1", "tp=3", "ep=2", "dp=8,tp=1,cp=1,pp=1,recompute=none,zero_stage=0")
    arguments = [part for question in questions for part in ("--why-not", question)]
    result = RUNNER.invoke(app, ["plan", str(spec), *arguments])
    assert result.exit_code == 0
    slower, refused, foreign, large = (
        result.stdout.partition(f"Why not {question}\n")[2].partition("\n\n")[0] for question in questions
    )
    assert "against the best." in slower
    assert "tensor-parallel collectives" in slower
    assert slower.splitlines()[0].startswith("  tp 8")
    assert refused == "  - tp 3 does not divide the number of GPUs = 8."
    assert "`ep` lays out routed experts, and llama-3.1-8b has none." in foreign
    assert "are missing on the heaviest rank." in large
    assert "Closest: tp 1, pp 1, dp 8; zero_stage 0" in large


def test_json_has_the_answers_and_is_still_read_as_a_plan(spec: Path) -> None:
    result = RUNNER.invoke(app, ["plan", str(spec), "--why-not", "tp=8,pp=1", "--why-not", "tp=3", "--format", "json"])
    document = json.loads(result.stdout)
    slower, refused = document[WHY_NOT]
    best = document["plans"][0]
    assert slower["step_seconds"] - best["step_seconds"] == slower["change_seconds"] > 0
    gained = sum(term["seconds"] - term["best_seconds"] for term in slower["terms"])
    assert gained == pytest.approx(slower["change_seconds"], rel=1e-6)
    assert {"setting": "tp", "value": "8", "best": str(best["layout"]["tp"])} in slower["differences"]
    assert refused == {"question": "tp=3", "refusals": ["tp 3 does not divide the number of GPUs = 8."]}
    plan = plan_from_document(parse_document(result.stdout, file="plan.json"))
    assert plan.best.step_seconds == best["step_seconds"]


def test_what_the_best_layout_has_is_said_so(spec: Path) -> None:
    plain = json.loads(RUNNER.invoke(app, ["plan", str(spec), "--format", "json"]).stdout)
    tp = plain["plans"][0]["layout"]["tp"]
    result = RUNNER.invoke(app, ["plan", str(spec), "--why-not", f"tp={tp}"])
    assert f"Why not tp={tp}\n  The best layout has these settings." in result.stdout


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("tp", "--why-not tp: this is no list of settings."),
        ("=8", "--why-not =8: this is no list of settings."),
        ("foo=3", "--why-not foo=3: constraints.foo: `foo` is not a known key."),
        ("tp=8,pp=many", '--why-not pp=many: constraints.pp: "many" is not a whole number'),
    ],
)
def test_a_question_that_names_no_setting_is_refused(spec: Path, question: str, message: str) -> None:
    result = RUNNER.invoke(app, ["plan", str(spec), "--why-not", question])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())
