"""Advice is what the search finds with one part free, and what validate says of memory and speed follows the price."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from planner.evaluation.described import given_layout
from planner.inputs.load import Inputs
from planner.layout import Granularity, Recompute
from planner.models.specs import ModelSpec
from planner.plans.comparison import WORTH_SAYING
from planner.plans.plan import Plan
from planner.requests.request import PlanRequest
from planner.search.search import search
from planner.validation.advice import PARTS, SingleChanges, best_of_all, single_changes
from profiles.hardware import Cluster
from solvers.errors import SolverError
from tests.builders import tiny_dense_model, tiny_request, two_node_cluster

RUNNER = CliRunner()
EXAMPLES = Path(__file__).parents[4] / "examples"
SCRIPT = EXAMPLES / "llama-3.1-8b-1xdgx-h100" / "expected" / "launch.sh"
DEEPSPEED = EXAMPLES / "llama-3.1-8b-deepspeed-1xdgx-h100"
JSON = ("--format", "json")
FULL = "--bf16 --recompute-granularity full --recompute-method uniform --recompute-num-layers 1"


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs(model=tiny_dense_model(), cluster=two_node_cluster(), request=tiny_request())


def test_the_best_layout_needs_no_advice(inputs: Inputs) -> None:
    assert single_changes(best_of_all(inputs).best, inputs) == SingleChanges(helping=(), open={})


def test_each_change_differs_in_its_part_and_saves_what_it_says(inputs: Inputs) -> None:
    best = best_of_all(inputs).best.layout
    slow = replace(best, recompute=Recompute(granularity=Granularity.FULL))
    planned = given_layout(slow, inputs.model, inputs.cluster, inputs.request)
    found = single_changes(planned, inputs).helping
    assert found
    assert len({advice.planned.layout for advice in found}) == len(found)
    for advice in found:
        assert advice.saved_fraction >= WORTH_SAYING
        assert advice.saved_fraction == pytest.approx(1 - advice.planned.step_seconds / planned.step_seconds)
        kept = {"tp", "pp", "cp", "vpp", "zero_stage", "micro_batch_size"} - set(PARTS[advice.part])
        assert all(getattr(advice.planned.layout, name) == getattr(slow, name) for name in kept)
    assert any(advice.part == "recompute" for advice in found)


def test_no_change_beats_the_whole_search(inputs: Inputs) -> None:
    best = search(inputs.model, inputs.cluster, inputs.request, top=1).best
    slow = replace(best.layout, recompute=Recompute(granularity=Granularity.FULL))
    planned = given_layout(slow, inputs.model, inputs.cluster, inputs.request)
    assert all(
        advice.planned.step_seconds >= best.step_seconds * (1 - 1e-9)
        for advice in single_changes(planned, inputs).helping
    )


@pytest.fixture
def no_search_of_recompute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every search stop with nothing that leaves the recompute granularity free and pins tp."""

    def stopped(model: ModelSpec, cluster: Cluster, request: PlanRequest, *, top: int) -> Plan:
        if "tp" in request.constraints.degrees and request.constraints.recompute is None:
            raise SolverError(solver="layout search", status="nothing proved", limit="3 layouts")
        return search(model, cluster, request, top=top)

    monkeypatch.setattr("planner.validation.advice.search", stopped)


STOPPED = "layout search stopped with status nothing proved under 3 layouts and found no solution"


@pytest.mark.usefixtures("no_search_of_recompute")
def test_a_part_that_the_search_left_open_is_said(inputs: Inputs) -> None:
    slow = replace(best_of_all(inputs).best.layout, recompute=Recompute(granularity=Granularity.FULL))
    found = single_changes(given_layout(slow, inputs.model, inputs.cluster, inputs.request), inputs)
    assert found.open == {"recompute": STOPPED}
    assert all(advice.part != "recompute" for advice in found.helping)


@pytest.mark.usefixtures("no_search_of_recompute")
def test_validate_says_which_advice_is_open(tmp_path: Path) -> None:
    script = changed(tmp_path, "--bf16", FULL)
    result = RUNNER.invoke(app, ["validate", str(script), "--cluster", "dgx-h100", "--advice", "--format", "json"])
    judged = json.loads(result.stdout)
    why = f"another choice of recompute: {STOPPED}"
    assert judged["undecided"] == [{"file": str(script), "rule": "ADV002", "missing": why}]
    assert any(found["rule"] == "ADV001" for found in judged["findings"])
    text = RUNNER.invoke(app, ["validate", str(script), "--cluster", "dgx-h100", "--advice"]).stdout
    said = f"Not decided: ADV002. A{why[1:]}."
    assert said in " ".join(text.split())


def findings(script: Path, *options: str) -> list[dict[str, object]]:
    result = RUNNER.invoke(app, ["validate", str(script), "--format", "json", *options])
    assert result.exit_code in {0, 1}, result.stderr
    found: list[dict[str, object]] = json.loads(result.stdout)["findings"]
    return found


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = SCRIPT.read_text()
    assert old in text
    script = tmp_path / "launch.sh"
    script.write_text(text.replace(old, new))
    return script


def test_validate_on_a_cluster_judges_memory(tmp_path: Path) -> None:
    assert findings(SCRIPT, "--cluster", "dgx-h100") == []
    large = findings(changed(tmp_path, "--micro-batch-size 1", "--micro-batch-size 2"), "--cluster", "dgx-h100")
    assert [finding["rule"] for finding in large] == ["MEM001"] * len(large)
    assert large
    assert "GiB more than its GPU has." in str(large[0]["message"])


def test_little_memory_left_is_a_warning(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "schema: 1\nmodel: llama-3.1-8b\ncluster: {preset: dgx-h100, nodes: 1}\nmemory_headroom: 0.25\n"
        "workload: {kind: train, seq_len: 8192, global_batch_size: 128, precision: bf16}\n"
    )
    found = findings(SCRIPT, "--spec", str(spec))
    assert {finding["rule"] for finding in found} == {"MEM002"}


def test_validate_with_advice_says_what_the_best_would_save(tmp_path: Path) -> None:
    rules = [
        finding["rule"] for finding in findings(changed(tmp_path, "--bf16", FULL), "--cluster", "dgx-h100", "--advice")
    ]
    assert rules[0] == "ADV001"
    assert set(rules) == {"ADV001", "ADV002"}
    assert findings(SCRIPT, "--cluster", "dgx-h100", "--advice") == []


def test_a_command_line_is_priced_like_a_script() -> None:
    command = SCRIPT.read_text().replace("--bf16", FULL)
    result = RUNNER.invoke(app, ["validate", "--command", command, "--cluster", "dgx-h100", "--advice", *JSON])
    found = json.loads(result.stdout)["findings"]
    assert {finding["rule"] for finding in found} == {"ADV001", "ADV002"}
    assert {finding["file"] for finding in found} == {"<command>"}


NO_MODEL = "the model (name its facts by --model-facts, or give --spec with a spec)"


def deepspeed_document(tmp_path: Path, *options: str, change: tuple[str, str] = ("", "")) -> dict[str, list[Any]]:
    """Return what is said of a DeepSpeed configuration beside its script, which a change may stand in."""
    for name in ("ds_config.json", "launch.sh", "model.json"):
        text = (DEEPSPEED / "expected" / name).read_text()
        (tmp_path / name).write_text(text.replace(*change) if change[0] else text)
    # Any name of a configuration will do that the script names.
    (tmp_path / "ds_config.json").rename(tmp_path / "zero.json")
    script = tmp_path / "launch.sh"
    script.write_text(script.read_text().replace("/ds_config.json", "/zero.json"))
    result = RUNNER.invoke(app, ["validate", str(tmp_path / "zero.json"), *options, *JSON])
    assert result.exit_code in {0, 1}, result.stderr
    found: dict[str, list[Any]] = json.loads(result.stdout)
    return found


def test_a_configuration_of_deepspeed_is_priced_with_a_spec(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text((DEEPSPEED / "spec.yaml").read_text() + "memory_headroom: 0.4\n")
    document = deepspeed_document(tmp_path, "--spec", str(spec))
    assert document["undecided"] == []
    assert {finding["rule"] for finding in document["findings"]} == {"MEM002"}


def test_a_configuration_of_deepspeed_is_priced_by_the_facts_of_its_model(tmp_path: Path) -> None:
    document = deepspeed_document(tmp_path, "--cluster", "dgx-a100-40", "--advice")
    assert document["undecided"] == []
    (finding,) = document["findings"]
    assert finding["rule"] == "MEM001"


@pytest.mark.parametrize(
    ("old", "new", "option", "missing"),
    [
        ("--model-facts", "--model", "--cluster", NO_MODEL),
        ("--steps 100", "--model meta-llama/Llama-3.1-8B --steps 100", "--cluster", NO_MODEL),
        (
            "train_deepspeed.py",
            "train.py",
            "--spec",
            "how the program splits the model (of DeepSpeed only what `plan` writes has a price)",
        ),
    ],
)
def test_what_has_no_price_says_what_is_missing(tmp_path: Path, old: str, new: str, option: str, missing: str) -> None:
    where = "dgx-h100" if option == "--cluster" else str(DEEPSPEED / "spec.yaml")
    undecided = deepspeed_document(tmp_path, option, where, change=(old, new))["undecided"]
    assert {(one["rule"], one["missing"]) for one in undecided} >= {("MEM001", missing), ("ADV001", missing)}


def test_facts_that_are_not_there_or_damaged_leave_the_price_open(tmp_path: Path) -> None:
    options = ("--cluster", "dgx-h100")
    undecided = deepspeed_document(tmp_path, *options, change=("/model.json", "/other.json"))["undecided"]
    (missing,) = {one["missing"] for one in undecided}
    assert missing == f"{tmp_path / 'launch.sh'}: The model's facts, `other.json`, do not lie beside the script."
    undecided = deepspeed_document(tmp_path, *options, change=('"hidden_size": 4096', '"hidden_size": "wide"'))[
        "undecided"
    ]
    (missing,) = {one["missing"] for one in undecided}
    assert missing.startswith(f"{tmp_path / 'model.json'}:2:18: hidden_size: `hidden_size` = ")


HOSTED = "--use-distributed-optimizer --optimizer-cpu-offload --optimizer-offload-fraction 1.0"


@pytest.mark.parametrize(("host_ram", "rules"), [("96GiB", ["MEM003"]), ("256GiB", [])])
def test_states_that_the_hosts_cannot_hold_break_one_rule(tmp_path: Path, host_ram: str, rules: list[str]) -> None:
    script, spec = tmp_path / "launch.sh", tmp_path / "spec.yaml"
    text = SCRIPT.read_text().replace("--use-distributed-optimizer", f"{HOSTED} --use-precision-aware-optimizer")
    script.write_text(text)
    spec.write_text(
        (SCRIPT.parents[1] / "spec.yaml").read_text().replace("nodes: 1", f"nodes: 1, host_ram: {host_ram}")
    )
    result = RUNNER.invoke(app, ["validate", str(script), "--spec", str(spec), *JSON])
    found = json.loads(result.stdout)
    assert found["undecided"] == []
    assert [finding["rule"] for finding in found["findings"]] == rules
    # Eight processes of 8 GiB; 8.03 billion parameters with a master weight, two moments and a gradient, each in fp32.
    assert [finding["message"] for finding in found["findings"]] == [
        "A node needs 223 GiB of host memory, and has 96 GiB." for _ in rules
    ]


@pytest.mark.parametrize(("capacity", "rules"), [("16GB", ["MEM004"]), ("17GB", [])])
def test_states_that_the_drives_cannot_hold_break_one_rule(tmp_path: Path, capacity: str, rules: list[str]) -> None:
    spec = on_drives(tmp_path, f", nvme: {{count: 8, capacity: {capacity}, bandwidth: 6GB/s}}")
    result = RUNNER.invoke(app, ["validate", str(tmp_path / "launch.sh"), "--spec", str(spec), *JSON])
    found = json.loads(result.stdout)
    assert found["undecided"] == []
    memory = [finding for finding in found["findings"] if finding["rule"].startswith("MEM")]
    assert [finding["rule"] for finding in memory] == rules
    # 8.03 billion parameters with a master weight, two moments and a gradient in fp32 are 128.5 GB.
    assert [finding["message"] for finding in memory] == [
        "A node needs 120 GiB of its drives, which hold 119 GiB." for _ in rules
    ]


def test_drives_of_which_nothing_is_known_leave_the_price_open(tmp_path: Path) -> None:
    spec = on_drives(tmp_path, "")
    result = RUNNER.invoke(app, ["validate", str(tmp_path / "launch.sh"), "--spec", str(spec), *JSON])
    missing = {one["missing"] for one in json.loads(result.stdout)["undecided"] if one["rule"] == "MEM004"}
    assert len(missing) == 1
    assert "how fast its drives are" in missing.pop()


def on_drives(folder: Path, nvme: str) -> Path:
    """Write DeepSpeed's files with the states on drives, and a spec whose nodes have these; return the spec's path."""
    for name in ("launch.sh", "ds_config.json", "model.json"):
        (folder / name).write_text((DEEPSPEED / "expected" / name).read_text())
    config = json.loads((folder / "ds_config.json").read_text())
    zero = config["zero_optimization"]
    zero.update(stage=3, sub_group_size=100_000_000, stage3_max_live_parameters=1_000_000_000)
    zero["offload_optimizer"] = {"device": "nvme", "nvme_path": "/local", "buffer_count": 4}
    (folder / "ds_config.json").write_text(json.dumps(config, indent=2))
    spec = folder / "spec.yaml"
    spec.write_text(
        f"""\
schema: 1
model: llama-3.1-8b
target: deepspeed
cluster: {{gpu: h100-sxm-80gb, gpus_per_node: 8, nodes: 1, host_ram: 2TiB{nvme}}}
workload: {{kind: train, seq_len: 4096, global_batch_size: {config["train_batch_size"]}, precision: bf16}}
"""
    )
    return spec


def test_a_preset_that_is_none_is_refused() -> None:
    """A slip of the option would leave every rule of memory undecided, and end with 0."""
    result = RUNNER.invoke(app, ["validate", str(SCRIPT), "--cluster", "dgx-h1000"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --cluster dgx-h1000: cluster preset 'dgx-h1000' is not in the catalogue.")


def test_a_configuration_alone_has_no_price(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text((DEEPSPEED / "expected" / "ds_config.json").read_text())
    result = RUNNER.invoke(app, ["validate", str(tmp_path / "ds.json"), "--cluster", "dgx-h100", *JSON])
    missing = {one["missing"] for one in json.loads(result.stdout)["undecided"] if one["rule"] == "MEM001"}
    assert missing == {"the command that starts the program (name its script beside the configuration)"}


def test_advice_needs_to_know_the_gpus() -> None:
    result = RUNNER.invoke(app, ["validate", str(SCRIPT), "--advice"])
    assert result.exit_code == 2
    assert "--advice does not say on which GPUs." in result.stderr


def test_a_broken_spec_is_the_users_mistake_not_an_undecided_rule(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("schema: 1\nmodel: llama-3.1-8b\n")
    result = RUNNER.invoke(app, ["validate", str(SCRIPT), "--spec", str(spec)])
    assert result.exit_code == 2
    assert f"{spec}:1:1" in result.stderr
