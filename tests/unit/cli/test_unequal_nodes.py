"""`shardwright plan` on nodes that differ: what it prints of them, and where bad input is pointed at."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.exits import ExitCode
from cli.main import app

RUNNER = CliRunner()

SPEC = """\
schema: 1
model: llama-3.1-8b
cluster:
  preset: dgx-h100
  nodes: 4
  node_names: [a, b, c, d]
  slow_links: [{nodes: [a, b], bandwidth: 1GB/s}]
workload: {kind: train, seq_len: 8192, global_batch_size: 128, precision: bf16}
constraints: {tp: 8, pp: 2, cp: 1, micro_batch_size: 1, zero_stage: 1, recompute: [none]}
"""

MIXED = """\
schema: 1
model: llama-3.1-8b
cluster:
  groups:
    - {preset: dgx-h100, nodes: 3}
    - {preset: dgx-a100, nodes: 1}
workload: {kind: train, seq_len: 8192, global_batch_size: 96, precision: PRECISION}
constraints: {tp: 2, pp: 4, cp: 1, micro_batch_size: 1, zero_stage: 1, recompute: [none]}
"""


def spec_of(folder: Path, text: str) -> str:
    path = folder / "spec.yaml"
    path.write_text(text)
    return str(path)


def test_the_order_of_the_nodes_and_what_it_gains_are_printed(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["plan", spec_of(tmp_path, SPEC), "--out", str(tmp_path / "run")])
    assert result.exit_code == ExitCode.OK, result.output
    lines = result.stdout.splitlines()
    order = next(line for line in lines if line.startswith("  node order"))
    gain = next(line for line in lines if line.startswith("  against listed"))
    nodes = order.split()[2:]
    assert sorted(nodes) == ["a", "b", "c", "d"]
    # A stage stands on two nodes: these are neither of one stage nor partners of two.
    assert {nodes.index("a"), nodes.index("b")} in ({0, 3}, {1, 2})
    assert gain.split()[2].startswith("-")
    assert "NODE_ORDER=(" in (tmp_path / "run" / "launch.sh").read_text()
    explained = RUNNER.invoke(app, ["explain", str(tmp_path / "run")])
    assert order in explained.stdout
    assert gain in explained.stdout


def test_nodes_of_several_kinds_are_named_and_may_stay_as_listed(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["plan", spec_of(tmp_path, MIXED.replace("PRECISION", "bf16"))])
    assert result.exit_code == ExitCode.OK, result.output
    head = result.stdout.splitlines()[0]
    assert "3 nodes of 8 x h100-sxm-80gb, 1 node of 8 x a100-sxm-80gb, 32 GPUs" in head
    assert "nodes that differ: rings and trees go from place to place" in result.stdout
    assert "node order" in result.stdout


def test_a_format_that_the_older_gpu_has_not_is_refused(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["plan", spec_of(tmp_path, MIXED.replace("PRECISION", "fp8-delayed"))])
    assert result.exit_code == ExitCode.BAD_INPUT
    assert "`precision` = fp8-delayed does not run on a100-sxm-80gb" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("nodes: [a, b]", "nodes: [a, z]", ":7:", "there is no node z in node_names"),
        ("nodes: [a, b]", "nodes: [a, 4]", ":7:", "there is no node 4: nodes are numbered 0 to 3"),
        ("1GB/s", "1", ":7:", "has no unit"),
        ("[a, b, c, d]", "[a, b, c]", ":6:", "3 names for 4 nodes"),
        ("slow_links", "slow_link", ":7:", "`slow_link` is not a known key"),
    ],
)
def test_bad_input_is_pointed_at(tmp_path: Path, old: str, new: str, place: str, message: str) -> None:
    result = RUNNER.invoke(app, ["plan", spec_of(tmp_path, SPEC.replace(old, new))])
    assert result.exit_code == ExitCode.BAD_INPUT
    assert message in result.stderr
    assert place in result.stderr


def test_groups_are_pointed_at_too(tmp_path: Path) -> None:
    text = MIXED.replace("PRECISION", "bf16").replace("dgx-a100, nodes: 1", "dgx-a100, nodes: 1, gpus_per_node: 4")
    result = RUNNER.invoke(app, ["plan", spec_of(tmp_path, text)])
    assert result.exit_code == ExitCode.BAD_INPUT
    assert ":6:" in result.stderr


def test_what_is_not_searched_on_nodes_that_differ_is_said(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, MIXED.replace("PRECISION", "bf16"))
    chosen = RUNNER.invoke(app, ["plan", spec, "--set", "node_counts=[1, 2]"])
    assert chosen.exit_code == ExitCode.BAD_INPUT
    assert (
        "the number of nodes cannot be chosen where nodes differ: a number does not say which of them are taken, and"
        " which are the best few depends on the layout.\n"
        "Plan each choice that you have by itself: change `nodes` of the cluster's groups."
    ) in chosen.stderr
    hosted = RUNNER.invoke(app, ["plan", spec, "--set", "constraints.optimizer_offload=[0, 1]"])
    assert hosted.exit_code == ExitCode.BAD_INPUT
    assert "`optimizer_offload` asks for states on the hosts, which is not searched where nodes differ." in (
        hosted.stderr
    )
    hosted = RUNNER.invoke(app, ["plan", spec, "--set", "constraints.parameter_offload=true"])
    assert hosted.exit_code == ExitCode.BAD_INPUT
    assert "`parameter_offload` asks for weights on the hosts, which is not searched where nodes differ." in (
        hosted.stderr
    )
    scheduled = RUNNER.invoke(app, ["plan", spec, "--schedules"])
    assert scheduled.exit_code == ExitCode.OK
    assert "Not priced: stages on nodes that differ are not priced under it." in scheduled.stdout
