"""`shardwright explain` says where time and memory go, and what every other layout would change."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from planner.schema.plan import plan_to_text
from tests.unit.cli.samples import GIB, infeasible_plan, sample_plan

RUNNER = CliRunner()

EXPLANATION = """\
What limits it
  - Time: most of the step is gemm (150.0 ms, 75.0 %) and pipeline bubble (50.0 ms, 25.0 %).
  - Memory: 6.00 GiB on rank 0 in forward-backward, 1.00 GiB below the limit of 7.00 GiB.
  - Balance: the lightest rank peaks at 4.00 GiB.

Where the time goes
  term                 time    share  source
  gemm             150.0 ms   75.0 %  roofline
  pipeline bubble   50.0 ms   25.0 %  simulated schedule
  step             200.0 ms  100.0 %

Memory by rank and phase
  from rank  initialisation  forward-backward  optimizer-step      left
  0                2.00 GiB          6.00 GiB        2.00 GiB  1.00 GiB
  2                2.00 GiB          4.00 GiB        2.00 GiB  3.00 GiB

Memory of rank 0 in forward-backward
  term           memory    share  source
  activations  4.00 GiB   66.7 %  saved tensors, 2 micro-batches in flight
  weights      2.00 GiB   33.3 %  2 bytes a parameter
  peak         6.00 GiB  100.0 %

Against layout 1, the rule-of-thumb baseline
  differs in   tp 4 [2]; pp 1 [2]; schedule none [1f1b]; layers per stage 4 [2 x 2]
  step time    +50.0 ms (+25.0 %)
  peak memory  -1.00 GiB
  term                             here     there    change
  tensor-parallel collectives    0.0 ms   90.0 ms  +90.0 ms
  pipeline bubble               50.0 ms    0.0 ms  -50.0 ms
  gemm                         150.0 ms  160.0 ms  +10.0 ms

Search
  over tp, pp, dp
  reason                        layouts
  tp does not divide the heads        8
  memory                              2
  simulated                           2
  considered                         12

Assumptions
  - GEMMs reach 80 % of the datasheet rate.
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(plan_to_text(sample_plan()))
    return path


def test_the_explanation_reads_like_this(plan_file: Path) -> None:
    result = RUNNER.invoke(app, ["explain", str(plan_file)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith(EXPLANATION)


def test_a_runner_up_is_explained_against_the_best(plan_file: Path) -> None:
    result = RUNNER.invoke(app, ["explain", str(plan_file), "--index", "1"])
    assert result.exit_code == 0
    assert "\nLayout 1\n" in result.stdout
    assert "\nAgainst the rule-of-thumb baseline\n  It is this layout.\n" in result.stdout
    assert "\nAgainst layout 0\n" in result.stdout


def test_the_explanation_as_json_holds_unrounded_figures(plan_file: Path) -> None:
    document = json.loads(RUNNER.invoke(app, ["explain", str(plan_file), "--format", "json"]).stdout)
    assert document["step_seconds"] == 0.2
    assert document["memory"]["peak"]["num_bytes"] == 6 * GIB
    assert sum(line["seconds"] for line in document["time"]) == pytest.approx(document["step_seconds"])
    assert [entry["index"] for entry in document["comparisons"]] == [1]
    assert document["search"]["pruned"] == {"memory": 2, "tp does not divide the heads": 8}


def test_a_plan_that_found_nothing_is_explained_too(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan_to_text(infeasible_plan()))
    result = RUNNER.invoke(app, ["explain", str(path)])
    assert result.exit_code == 0
    assert "  Memory: no layout keeps weights and activations below 5.00 GiB.\n" in result.stdout
    assert "  2 nodes instead of 1  --set cluster.nodes=2\n" in result.stdout
    document = json.loads(RUNNER.invoke(app, ["explain", str(path), "--format", "json"]).stdout)
    assert document["shortfall_bytes"] == GIB
