"""`shardwright init` writes a spec that can be planned as it is."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.commands.init import yaml_scalar
from cli.main import app
from planner.documents import parse_document
from planner.inputs.load import load_inputs
from planner.requests.request import Bounds
from planner.requests.workload import DEFAULT_ROUTING_SKEW, Packing
from profiles.catalogue import preset_names

RUNNER = CliRunner()


@pytest.mark.parametrize("preset", preset_names())
def test_the_spec_loads_for_every_preset(tmp_path: Path, preset: str) -> None:
    path = tmp_path / "spec.yaml"
    assert RUNNER.invoke(app, ["init", str(path), "--cluster", preset]).exit_code == 0
    inputs = load_inputs(path)
    assert (inputs.model.name, inputs.cluster.name) == ("llama-3.1-8b", preset)


def test_a_file_that_is_not_named_as_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    result = RUNNER.invoke(app, ["init", str(path)])
    assert (result.exit_code, path.exists()) == (2, False)
    assert result.stderr.startswith(f"error: {path} is not named as YAML, which `init` writes.")


def test_model_and_nodes_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    result = RUNNER.invoke(app, ["init", str(path), "--model", "meta-llama/Llama-3.1-70B", "--nodes", "8"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{path} written. Edit it, then run: shardwright plan {path}\n"
    inputs = load_inputs(path)
    assert (inputs.model.name, inputs.cluster.world_size) == ("llama-3.1-70b", 64)


def test_what_is_commented_out_can_be_switched_on(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    RUNNER.invoke(app, ["init", str(path)])
    text = path.read_text()
    for field in ("tokens_to_train", "documents", "routing_skew", "constraints", "memory_headroom", "target"):
        assert f"# {field}: " in text
        text = text.replace(f"# {field}: ", f"{field}: ")
    path.write_text(text)
    request = load_inputs(path).request
    assert request.workload.tokens_to_train == 10**12
    assert request.workload.documents is not None
    assert request.workload.documents.packing is Packing.PACKED
    assert request.workload.routing_skew == DEFAULT_ROUTING_SKEW
    assert request.constraints.degrees["cp"] == Bounds(maximum=4)
    assert request.constraints.recompute == ("none", "selective")
    assert request.memory_headroom == 0.05
    assert request.target.value == "megatron"


def test_a_path_is_written_as_the_spec_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    (tmp_path / "my model").mkdir()
    (tmp_path / "my model" / "config.json").write_text(
        '{"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 1024}'
    )
    assert RUNNER.invoke(app, ["init", "specs/a.yaml", "--model", "my model"]).exit_code == 0
    text = (tmp_path / "specs" / "a.yaml").read_text()
    assert 'model: "../my model"\n' in text
    assert "  seq_len: 1024\n" in text


@pytest.mark.parametrize(("model", "seq_len"), [("llama-2-7b", 4096), ("llama-3.1-8b", 8192)])
def test_sequences_are_no_longer_than_the_model_takes(tmp_path: Path, model: str, seq_len: int) -> None:
    path = tmp_path / "spec.yaml"
    assert RUNNER.invoke(app, ["init", str(path), "--model", model]).exit_code == 0
    assert load_inputs(path).request.workload.seq_len == seq_len


def test_an_unknown_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["init", str(tmp_path / "spec.yaml"), "--model", "llama-9"])
    assert result.exit_code == 2
    message, hint = result.stderr.splitlines()
    assert message == 'error: --model llama-9: There is no bundled model and no file "llama-9".'
    assert hint.startswith("Did you mean `llama-")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_preset_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["init", str(tmp_path / "spec.yaml"), "--cluster", "dgx-x9"])
    assert result.exit_code == 2
    assert "dgx-x9" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_spec_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("mine\n")
    result = RUNNER.invoke(app, ["init", str(path)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {path}: There is already such a file.\nName another file, or overwrite it with --force.\n"
    )
    assert path.read_text() == "mine\n"
    assert RUNNER.invoke(app, ["init", str(path), "--force"]).exit_code == 0
    assert path.read_text().startswith("# What to plan.")


@pytest.mark.parametrize("text", ["llama-3.1-8b", "a b", "x: y", "[1]", 'q"q', "true\n", "../x", "1e3"])
def test_any_text_is_one_yaml_scalar(text: str) -> None:
    assert parse_document(f"model: {yaml_scalar(text)}\n", file="spec.yaml").data == {"model": text}
