"""`shardwright explain` says where time and memory go, and what every other layout would change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

Where the time goes on the pipeline rank with most work
  term                 time    share  source
  gemm             150.0 ms   75.0 %  [1]
  pipeline bubble   50.0 ms   25.0 %  [2]
  step             200.0 ms  100.0 %
  [1] roofline
  [2] simulated schedule

Memory by rank and phase
  from rank  initialisation  forward-backward  optimizer-step      left
  0                2.00 GiB          6.00 GiB        2.00 GiB  1.00 GiB
  2                2.00 GiB          4.00 GiB        2.00 GiB  3.00 GiB

Memory of rank 0 in forward-backward
  term           memory    share  source
  activations  4.00 GiB   66.7 %  [1]
  weights      2.00 GiB   33.3 %  [2]
  peak         6.00 GiB  100.0 %
  [1] saved tensors, 2 micro-batches in flight
  [2] 2 bytes a parameter

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
  - energy: every GPU draws its board power, 300 W, all the time; hosts, network and cooling come on top
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


def test_the_grids_of_every_layout_are_in_the_json(plan_file: Path) -> None:
    document = json.loads(RUNNER.invoke(app, ["explain", str(plan_file), "--format", "json"]).stdout)
    assert [(axis["axis"], axis["size"], axis["stride"]) for axis in document["grids"]["dense"]] == [
        ("tp", 2, 1),
        ("cp", 1, 2),
        ("dp", 1, 2),
        ("pp", 2, 2),
    ]
    assert [axis["axis"] for axis in document["grids"]["experts"]] == ["etp", "ep", "edp", "pp"]


AGAIN = "Plan again from the spec; a plan file is not edited by hand."


def edit_batch(document: dict[str, Any]) -> None:
    document["plans"][0]["layout"]["num_microbatches"] = 8


def edit_layers(document: dict[str, Any]) -> None:
    document["plans"][1]["layout"]["stages"][0]["num_layers"] = 5


def edit_step(document: dict[str, Any]) -> None:
    document["plans"][1]["step_seconds"] = 0.1


def edit_baseline(document: dict[str, Any]) -> None:
    document["baseline"]["layout"]["sequence_parallel"] = True
    document["baseline"]["layout"]["tp"] = 3
    document["baseline"]["layout"]["edp"] = 3


def edit_edp(document: dict[str, Any]) -> None:
    document["plans"][0]["layout"]["edp"] = 1


def empty_memory(document: dict[str, Any]) -> None:
    document["plans"][0]["memory"] = {}


def remove_plans(document: dict[str, Any]) -> None:
    del document["plans"]


@pytest.mark.parametrize(
    ("edit", "messages"),
    [
        (
            edit_batch,
            [f"plans[0]: This layout cannot be: micro-batch 1 x 8 x dp 1 = 8 sequences, not 16.\n{AGAIN}"],
        ),
        (edit_layers, [f"plans[1]: This layout cannot be: the stages hold 5 of 4 layers.\n{AGAIN}"]),
        (edit_step, [f"plans[1]: This layout cannot be: searched at 0.1 s, evaluated at 0.25 s.\n{AGAIN}"]),
        (
            edit_baseline,
            [
                "baseline: This layout cannot be: tp cp pp dp = 3 ranks on 4 GPUs.",
                "baseline: This layout cannot be: num_attention_heads = 8 does not split over tp 3 x ulysses 1.",
            ],
        ),
        (
            edit_edp,
            ["plans[0].layout.edp: `edp` = 1 does not follow from tp 2, cp 1, dp 1, ep 1, etp 1, which give 2.\n"],
        ),
        (empty_memory, ["plans[0].memory: `memory` is too short.\nGive at least 1."]),
        (remove_plans, [f"The file is damaged or no plan: `plans` is missing.\n{AGAIN}"]),
    ],
)
def test_an_edited_plan_is_refused(
    plan_file: Path, edit: Callable[[dict[str, Any]], None], messages: list[str]
) -> None:
    document = json.loads(plan_file.read_text())
    edit(document)
    plan_file.write_text(json.dumps(document))
    result = RUNNER.invoke(app, ["explain", str(plan_file)])
    assert (result.exit_code, result.stdout) == (2, "")
    for message in messages:
        assert message in result.stderr
