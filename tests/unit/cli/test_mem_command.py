"""`shardwright mem`: a memory table without any file."""

import json
from pathlib import Path

from typer.testing import CliRunner

from cli.main import app
from planner.requests.request import DEFAULT_MEMORY_HEADROOM

RUNNER = CliRunner()
LAID_OUT = ["mem", "llama-3.1-70b", "--tp", "8", "--pp", "4", "--dp", "2", "--seq-len", "8192"]


def test_a_layout_that_fits_is_shown_by_rank_and_by_term() -> None:
    result = RUNNER.invoke(app, LAID_OUT)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "llama-3.1-70b, 70,553,706,496 parameters, on h100-sxm-80gb"
    assert lines[1] == (
        "  tp 8 with sequence parallelism, pp 4, dp 2; zero_stage 1; 4 micro-batches of 1; 1f1b; recompute none"
    )
    assert any(line.startswith("Fits: ") for line in lines)
    ranks = lines[lines.index("Memory by rank and phase") + 2 :][:4]
    assert [line.split()[0] for line in ranks] == ["0", "16", "32", "48"]


def test_a_layout_that_does_not_fit_ends_with_3() -> None:
    result = RUNNER.invoke(app, ["mem", "llama-3.1-70b", "--gpu", "l40s"])
    assert result.exit_code == 3
    assert "\nDoes not fit: " in result.stdout


def test_json_holds_every_line_in_bytes() -> None:
    document = json.loads(RUNNER.invoke(app, [*LAID_OUT, "--format", "json"]).stdout)
    assert document["fits"] is True
    peak = document["memory"]["peak"]
    at_peak = [
        line["num_bytes"]
        for line in document["memory"]["lines"]
        if (line["rank"], line["phase"]) == (peak["rank"], peak["phase"])
    ]
    assert sum(at_peak) == peak["num_bytes"]


def test_the_headroom_is_the_one_of_specs() -> None:
    document = json.loads(RUNNER.invoke(app, [*LAID_OUT, "--format", "json"]).stdout)
    assert document["memory"]["limit_bytes"] == int(document["memory_bytes"] * (1 - DEFAULT_MEMORY_HEADROOM))


def test_a_config_file_will_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": 1024,
                "intermediate_size": 2816,
                "num_hidden_layers": 4,
                "num_attention_heads": 16,
                "num_key_value_heads": 4,
                "vocab_size": 32000,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "hidden_act": "silu",
                "tie_word_embeddings": False,
            }
        )
    )
    result = RUNNER.invoke(app, ["mem", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    assert "Fits: " in result.stdout


def test_an_unknown_model_is_a_message() -> None:
    result = RUNNER.invoke(app, ["mem", "nope"])
    assert result.exit_code == 2
    assert result.stderr.startswith('error: MODEL: There is no bundled model and no file "nope".\n')


def test_an_unknown_gpu_is_a_message() -> None:
    result = RUNNER.invoke(app, ["mem", "llama-3.1-8b", "--gpu", "h10"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: GPU 'h10' is not in the catalogue.")


def test_degrees_that_are_not_legal_are_a_message() -> None:
    result = RUNNER.invoke(app, ["mem", "llama-3.1-70b", "--tp", "7"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "num_attention_heads is not a multiple of tp" in result.stderr


def test_context_parallelism_splits_a_long_sequence() -> None:
    long = ["mem", "llama-3.1-70b", "--tp", "8", "--pp", "4", "--seq-len", "131072", "--format", "json"]
    whole, split = (json.loads(RUNNER.invoke(app, [*long, "--cp", cp]).stdout) for cp in ("1", "8"))
    assert split["settings"]["cp"] == "8 ring"
    assert split["memory"]["peak"]["num_bytes"] < whole["memory"]["peak"]["num_bytes"] / 4


EXPERT_CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def test_experts_are_spread_and_their_grid_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(EXPERT_CONFIG))
    spread = RUNNER.invoke(app, ["mem", str(tmp_path), "--dp", "8", "--ep", "4"])
    assert (spread.exit_code, spread.stderr) == (0, "")
    assert "  routed experts    etp 1 x ep 4 x edp 2; routing skew 1.2 (assumed): " in spread.stdout
    documents = [
        json.loads(RUNNER.invoke(app, ["mem", str(tmp_path), "--dp", "8", "--ep", ep, "--format", "json"]).stdout)
        for ep in ("1", "4")
    ]
    weights = [
        max(line["num_bytes"] for line in document["memory"]["lines"] if line["term"] == "weights")
        for document in documents
    ]
    experts = 4 * 8 * 3 * 1024 * 3584
    assert weights[0] - weights[1] == 2 * experts * 3 // 4


def test_expert_degrees_are_refused_without_experts_and_beyond_the_gpus(tmp_path: Path) -> None:
    dense = RUNNER.invoke(app, ["mem", "llama-3.1-8b", "--dp", "2", "--ep", "2"])
    assert (dense.exit_code, dense.stdout) == (2, "")
    assert "ep and etp lay out routed experts, and it has none" in dense.stderr
    (tmp_path / "config.json").write_text(json.dumps(EXPERT_CONFIG))
    wide = RUNNER.invoke(app, ["mem", str(tmp_path), "--dp", "2", "--ep", "2", "--etp", "2"])
    assert (wide.exit_code, wide.stdout) == (2, "")
    assert wide.stderr == (
        "error: etp * ep = 4 does not divide tp * cp * dp = 2.\n"
        "Change one of the degrees: both grids are over the same GPUs.\n"
    )


def test_numbers_beyond_any_run_are_a_message() -> None:
    result = RUNNER.invoke(app, ["mem", "llama-3.1-8b", "--tp", "99999999999999999999"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: tp * cp * pp * dp = 99999999999999999999 is out of range.\nGive at most 1,048,576.\n"
    )
