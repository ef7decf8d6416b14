"""`shardwright experts`: what it prints, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app

RUNNER = CliRunner()
DRAWN = ["experts", "zipf:1.0", "--layers", "3", "--experts", "32", "--gpus", "8", "--gpus-per-node", "4"]


def document(*words: str) -> Any:
    """Return the JSON that the command prints."""
    result = RUNNER.invoke(app, [*words, "--format", "json"])
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return json.loads(result.stdout)


def test_loads_before_and_after_and_the_bound_are_said() -> None:
    found = document(*DRAWN, "--redundant", "8")
    assert found["chosen"]["num_redundant_experts"] == 8
    chosen, before = found["chosen"]["mean_load_over_mean"], found["before"]["mean_load_over_mean"]
    assert found["chosen"]["mean_load_over_mean_bound"] <= chosen < before
    slots = found["chosen"]["physical_to_logical_map"]
    assert [len(layer) for layer in slots] == [40, 40, 40]
    for layer in slots:
        assert set(layer) == set(range(32))
        assert all(len(set(layer[gpu * 5 : gpu * 5 + 5])) == 5 for gpu in range(8))


def test_the_number_of_redundant_experts_is_chosen_under_memory() -> None:
    found = document(*DRAWN, "--expert-size", "10MiB", "--free", "100MiB")
    counts = [choice["num_redundant_experts"] for choice in found["choices"]]
    assert counts == [0, 8, 16, 24], "30 MiB a slot of three layers"
    means = [choice["mean_load_over_mean"] for choice in found["choices"]]
    first = next(index for index, mean in enumerate(means) if mean <= min(means) * 1.01)
    assert found["chosen"]["num_redundant_experts"] == counts[first]
    assert found["chosen"]["redundant_bytes_per_gpu"] == first * 30 * 2**20


def test_what_one_more_slot_gains_is_said_and_where_it_gains_nothing() -> None:
    words = [*DRAWN, "--redundant", "0", "--expert-size", "10MiB"]
    more = document(*words)["one_more_slot"]
    assert more["taken_bytes_per_gpu"] == 30 * 2**20
    assert more["num_redundant_experts"] == 8
    before = document(*words)["chosen"]["mean_load_over_mean"]
    gain = 1 - more["mean_load_over_mean"] / before
    text = RUNNER.invoke(app, words).stdout
    assert (
        f"one more slot  takes 0.03 GiB of every GPU and makes the mean load {more['mean_load_over_mean']:.3f}"
        f" (-{gain * 100:.1f} %): {gain * 100 * 1024 / 30:.1f} % for a GiB"
    ) in text
    even = ["experts", "uniform", "--layers", "1", "--experts", "8", "--gpus", "4", "--redundant", "0"]
    assert "one more slot  gains nothing" in RUNNER.invoke(app, even).stdout


def test_a_table_of_80_columns_is_printed() -> None:
    words = [*DRAWN, "--expert-size", "10MiB", "--free", "100MiB", "--experts-per-token", "4"]
    result = RUNNER.invoke(app, words)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "3 layers of 32 experts on 8 GPUs in 2 nodes"
    start = lines.index("Loads, heaviest GPU over the mean")
    assert lines[start + 1].split() == ["experts", "mean", "worst", "layer", "sends", "a", "token"]
    tables = lines[start : lines.index("Assumptions")]
    assert max(len(line) for line in tables) <= 80


def test_layers_without_any_token_are_left_out_and_still_placed(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    path.write_text(json.dumps([[0, 0, 0, 0], [9, 1, 1, 1]]))
    found = document("experts", str(path), "--gpus", "2", "--redundant", "2")
    assert [entry["layer"] for entry in found["chosen"]["layers"]] == [1]
    assert found["chosen"]["physical_to_logical_map"][0] == [0, 1, 2, 3, 0, 1]


def test_a_model_says_what_is_known_of_its_experts() -> None:
    found = document("experts", "lognormal:0.5", "--model", "deepseek-v3", "--gpus", "32", "--redundant", "32")
    assert (found["num_layers"], found["num_experts"]) == (58, 256)
    # 58 layers of one slot, three matrices of 7168 by 2048 in bf16.
    assert found["chosen"]["redundant_bytes_per_gpu"] == 58 * 3 * 7168 * 2048 * 2
    assert found["chosen"]["mean_sends_per_token"] > 2


def test_files_are_written_and_are_where_the_next_placement_starts(tmp_path: Path) -> None:
    out = tmp_path / "placed"
    words = [*DRAWN, "--redundant", "8", "--out", str(out)]
    result = RUNNER.invoke(app, words)
    assert result.exit_code == 0
    assert {path.name for path in out.iterdir()} == {"expert-location.json", "sglang-arguments.txt"}
    start = json.loads((out / "expert-location.json").read_text())["physical_to_logical_map"]
    later = [*DRAWN, "--seed", "1", "--present", str(out / "expert-location.json"), "--expert-size", "1MiB"]
    found = document(*later, "--most-moved", "10MiB")
    (chosen,) = (move for move in found["moves"] if move["chosen"])
    assert 0 < chosen["moved_bytes"] <= 10 * 2**20
    changed = sum(
        len(set(now[gpu * 5 : gpu * 5 + 5]) - set(then[gpu * 5 : gpu * 5 + 5]))
        for now, then in zip(found["chosen"]["physical_to_logical_map"], start, strict=True)
        for gpu in range(8)
    )
    assert changed * 2**20 == chosen["moved_bytes"]
    table = RUNNER.invoke(app, later).stdout.splitlines()
    begin = table.index("What moves gain")
    assert table[begin + 1].split() == ["way", "copies", "moved", "mean", "load", "worst", "layer"]
    assert RUNNER.invoke(app, words).exit_code == 2, "files are not overwritten"


def test_rows_of_a_model_without_experts_are_added_and_left_out_again(tmp_path: Path) -> None:
    words = ["experts", "lognormal:0.5", "--model", "deepseek-v3", "--gpus", "16", "--redundant", "0"]
    assert RUNNER.invoke(app, [*words, "--out", str(tmp_path)]).exit_code == 0
    path = tmp_path / "expert-location.json"
    assert len(json.loads(path.read_text())["physical_to_logical_map"]) == 61
    found = document(*words, "--present", str(path))
    assert [move["name"] for move in found["moves"] if move["chosen"]] == ["keep"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["zipf:1.0", "--gpus", "8"], "error: zipf:1.0: of how many layers and experts is not known."),
        (DRAWN[1:], "error: How many redundant experts fit is not known."),
        (
            [*DRAWN[1:], "--redundant", "5"],
            "error: 32 experts and 5 copies do not divide over 8 GPUs.\n--redundant 0 or 8 would do.",
        ),
        ([*DRAWN[1:], "--redundant", "800"], "error: 104 slots on each GPU are more than there are experts"),
        (
            [*DRAWN[1:-2], "--gpus-per-node", "3", "--redundant", "0"],
            "error: 8 GPUs are no whole number of nodes of 3.",
        ),
        ([*DRAWN[1:], "--free", "1GiB"], "error: What an expert takes is not known."),
        ([*DRAWN[1:], "--free", "1Gb", "--expert-size", "1MiB"], "error: --free: '1Gb' is not a size: Gb counts bits"),
        ([*DRAWN[1:], "--groups", "4", "--redundant", "0"], "error: How a token chooses is half said."),
        ([*DRAWN[1:], "--keep-groups", "--redundant", "0"], "error: There are no groups to keep."),
        (["zipf:1.0", "--model", "llama-3.1-8b", "--gpus", "8"], "error: llama-3.1-8b has no routed experts."),
        (["missing.json", "--gpus", "8"], "error: missing.json: The file cannot be read: No such file or directory."),
        ([*DRAWN[1:], "--present", "missing.json"], "error: missing.json: The file cannot be read: No such file"),
        (
            [*DRAWN[1:], "--redundant", "0", "--most-moved", "1GiB"],
            "error: Moves are bounded or weighed, and it is not said from where.",
        ),
        (
            [*DRAWN[1:], "--redundant", "0", "--move-weight", "1", "--expert-size", "1MiB"],
            "error: Moves are bounded or weighed, and it is not said from where.\nGive --present. Engines that start",
        ),
        ([*DRAWN[1:], "--redundant", "0", "--traffic-weight", "1"], "error: What is sent between nodes is not known."),
        ([*DRAWN[1:], "--redundant", "0", "--follow"], "error: Which experts follow one another is not known."),
        (["missing.json", "--layers", "2", "--gpus", "8"], "error: missing.json says its layers and experts"),
    ],
)
def test_bad_input_ends_with_2_and_says_why(words: list[str], message: str) -> None:
    result = RUNNER.invoke(app, ["experts", *words])
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
