"""`shardwright models` and `shardwright clusters`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.named_model import read_named_model
from planner.models.bundled import BundledModel, bundled_models, model_names
from profiles.catalogue import device_names, preset_names

RUNNER = CliRunner()


def test_every_model_is_listed_with_its_exact_total() -> None:
    result = RUNNER.invoke(app, ["models"])
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()[1:]}
    assert set(rows) == set(model_names())
    assert rows["llama-3.1-8b"] == "8,030,261,248"
    assert rows["llama-3.1-70b"] == "70,553,706,496"
    assert rows["llama-3.1-405b"] == "405,853,388,800"


def test_one_model_is_shown_by_any_of_its_names() -> None:
    result = RUNNER.invoke(app, ["models", "META-LLAMA/llama-3.1-70b"])
    assert result.exit_code == 0
    assert result.stdout.startswith("llama-3.1-70b\n")
    assert "  - attention: 64 heads of 128, 8 key/value heads\n" in result.stdout


def test_models_as_json_are_one_document() -> None:
    document = json.loads(RUNNER.invoke(app, ["models", "--format", "json"]).stdout)
    assert [model["name"] for model in document["models"]] == list(model_names())
    one = json.loads(RUNNER.invoke(app, ["models", "llama-3.1-8b", "--format", "json"]).stdout)
    assert one["parameters"] == 8_030_261_248
    assert one["source"]


def test_an_unknown_model_is_answered_with_its_neighbours() -> None:
    result = RUNNER.invoke(app, ["models", "lama-3.1-8b"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert 'There is no bundled model and no file "lama-3.1-8b"' in result.stderr
    assert "Did you mean `llama-3.1-8b`" in result.stderr


@pytest.mark.parametrize("model", bundled_models(), ids=lambda model: model.name)
def test_the_yaml_of_a_bundled_model_is_a_file_that_describes_it(model: BundledModel, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["models", model.name, "--format", "yaml"])
    assert result.exit_code == 0
    file = tmp_path / "mine.yaml"
    file.write_text(result.stdout)
    spec = model.decoder.spec()
    assert replace(read_named_model(str(file), where="MODEL"), architecture=spec.architecture) == spec


def test_yaml_is_of_a_bundled_model_alone() -> None:
    result = RUNNER.invoke(app, ["models", "--format", "yaml"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --format yaml prints a bundled model.")


def test_a_config_of_ones_own_is_shown_as_it_was_read(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "vocab_size": 500,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    result = RUNNER.invoke(app, ["models", str(file)])
    assert result.exit_code == 0
    assert "  - attention: 4 heads of 16, 4 key/value heads\n" in result.stdout
    assert json.loads(RUNNER.invoke(app, ["models", str(file), "--format", "json"]).stdout)["num_layers"] == 3


def test_a_listed_target_takes_the_model_and_another_does_not() -> None:
    document = json.loads(RUNNER.invoke(app, ["models", "deepseek-v3.2", "--format", "json"]).stdout)
    assert document["targets"] == []
    document = json.loads(RUNNER.invoke(app, ["models", "llama-3.1-8b", "--format", "json"]).stdout)
    assert document["targets"] == ["megatron", "deepspeed"]


def test_presets_and_gpus_are_listed() -> None:
    result = RUNNER.invoke(app, ["clusters"])
    assert result.exit_code == 0
    names = {line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")}
    assert set(preset_names()) <= names
    assert set(device_names()) <= names


@pytest.mark.parametrize("name", ["dgx-h100", "h100-sxm-80gb"])
def test_every_figure_is_shown_with_its_source(name: str) -> None:
    result = RUNNER.invoke(app, ["clusters", name])
    assert result.exit_code == 0
    rows = [line for line in result.stdout.splitlines() if line.startswith("  dense_flops.bf16")]
    assert rows == [
        "  dense_flops.bf16    989.4TFLOPS  NVIDIA H100 Tensor Core GPU Architecture white paper, V1.04 (2023): dense"
    ]


@pytest.mark.parametrize("name", [*preset_names(), *device_names()])
def test_every_preset_and_gpu_is_shown_in_both_forms(name: str) -> None:
    assert RUNNER.invoke(app, ["clusters", name]).exit_code == 0
    document = json.loads(RUNNER.invoke(app, ["clusters", name, "--format", "json"]).stdout)
    assert document["name"] == name


def test_the_catalogue_as_json_is_one_document() -> None:
    document = json.loads(RUNNER.invoke(app, ["clusters", "--format", "json"]).stdout)
    assert [preset["name"] for preset in document["presets"]] == list(preset_names())
    assert [device["name"] for device in document["devices"]] == list(device_names())


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    result = RUNNER.invoke(app, ["clusters", "tpu"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "error: There is neither a cluster preset nor a GPU named tpu.\nPresets: dgx-a100, "
    )


def test_a_name_that_is_nearly_one_is_answered_with_it() -> None:
    part = RUNNER.invoke(app, ["clusters", "H100-PCIE"]).stderr.splitlines()
    assert part[1] == "Did you mean h100-pcie-80gb?"
    misspelt = RUNNER.invoke(app, ["clusters", "dgxh200"]).stderr.splitlines()
    assert misspelt[1].startswith("Did you mean dgx-h200")


def test_the_list_says_what_kind_a_model_is_and_what_a_token_visits() -> None:
    rows = {line.split()[0]: line for line in RUNNER.invoke(app, ["models"]).stdout.splitlines()[1:]}
    assert "  37.55 B  MLA, MoE  " in rows["deepseek-v3"]
    assert "  3.58 B  hybrid, MoE  " in rows["nemotron-3-nano-30b-a3b"]
    assert "  8.03 B  dense  " in rows["llama-3.1-8b"]
    assert "  7.24 B  windows  " in rows["mistral-7b-v0.1"]


def test_a_model_of_several_kinds_of_layers_says_where_each_stands() -> None:
    lines = RUNNER.invoke(app, ["models", "llama-4-maverick"]).stdout.splitlines()
    assert "  24 layers (every 2nd from 1 to 47):" in lines
    assert "  12 layers (every 4th from 4 to 48):" in lines
    assert "  - experts: 1 of 128, 8,192 wide, silu, gated; shared 8,192 wide; sigmoid router" in lines
    assert "  58 layers (4-61):" in RUNNER.invoke(app, ["models", "deepseek-v3"]).stdout.splitlines()


@pytest.mark.parametrize("name", model_names())
def test_every_model_is_shown_in_both_forms(name: str) -> None:
    text = RUNNER.invoke(app, ["models", name])
    assert (text.exit_code, text.stdout.splitlines()[0]) == (0, name)
    document = json.loads(RUNNER.invoke(app, ["models", name, "--format", "json"]).stdout)
    assert document["active_parameters"] <= document["parameters"]
    assert sum(run["count"] for run in document["runs"]) == document["num_layers"]
