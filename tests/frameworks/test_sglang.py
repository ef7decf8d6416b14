"""SGLang's own code takes the expert location that is written for it, under the arguments written beside it."""

import json
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.experts.assumed import assumed_histogram
from planner.experts.decide import balanced
from planner.experts.emit import SGLANG_FILE, Target, emit_placement, placed_in_model
from planner.experts.histogram import Ints
from planner.experts.request import ExpertRequest

ROOT = Path(__file__).parents[2]
VARIABLE = "SHARDWRIGHT_SGLANG_PYTHON"
INSTALLED = ROOT / ".frameworks" / "sglang" / "bin" / "python"
ARGUMENTS_FILE = "sglang-arguments.txt"
EXPERTS, RANKS, SLOTS = 32, 4, 9

pytestmark = pytest.mark.frameworks


def sglang_python() -> Path:
    """Return the interpreter that has SGLang; skip without one, except in CI, where it must be there."""
    named = os.environ.get(VARIABLE)
    python = Path(named) if named else INSTALLED
    if not python.exists():
        reason = f"no SGLang: run `bash .ci/frameworks.sh`, or set {VARIABLE}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return python


@cache
def placement() -> Ints:
    """Return two layers of experts in copies, the second and the last of a model of three."""
    histogram = assumed_histogram("zipf:1.0", num_layers=2, num_experts=EXPERTS, seed=1)
    request = ExpertRequest(num_gpus=RANKS, gpus_per_node=RANKS, redundant=RANKS * SLOTS - EXPERTS)
    return placed_in_model(balanced(histogram, request, SLOTS).expert_LGS, (1, 2), 3)


CHANGED = {
    "another key": (SGLANG_FILE, '"physical_to_logical_map"', '"order": [], "physical_to_logical_map"'),
    "no map": (SGLANG_FILE, '"physical_to_logical_map"', '"expert_order"'),
    "a copy less": (ARGUMENTS_FILE, "--ep-num-redundant-experts 4", "--ep-num-redundant-experts 3"),
}
"""Files that are changed: in which of them, what, and into what."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[str, Any]]:
    """Return what SGLang makes of the files as they are, with two ways to exchange tokens, and changed."""
    python, files = sglang_python(), emit_placement(Target.SGLANG, placement())
    cases = {}
    for name in ("none", "deepep", *CHANGED):
        folder = tmp_path_factory.mktemp("placed")
        written = dict(files)
        if name in CHANGED:
            file, old, new = CHANGED[name]
            assert old in written[file]
            written[file] = written[file].replace(old, new, 1)
        for file, text in written.items():
            (folder / file).write_text(text)
        cases[name] = {
            "folder": str(folder),
            "arguments": written[ARGUMENTS_FILE].split(),
            "a2a": "deepep" if name == "deepep" else "none",
            "num_layers": 3,
            "num_experts": EXPERTS,
        }
    result = subprocess.run(
        [str(python), "-m", "tests.frameworks.sglang_oracle"],
        input=json.dumps(list(cases.values())),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return dict(zip(cases, json.loads(result.stdout), strict=True))


@pytest.mark.parametrize("exchange", ["none", "deepep"])
def test_sglang_places_experts_as_the_file_says(answers: Mapping[str, dict[str, Any]], exchange: str) -> None:
    answer = answers[exchange]
    assert answer["error"] == ""
    assert len(answer["ranks"]) == RANKS
    for said in answer["ranks"]:
        assert said["num_local"] == SLOTS
        assert np.array_equal(said["physical_to_logical"], placement().reshape(3, -1))


def test_sglang_finds_every_copy_where_all_ranks_take_part_in_all_tokens(
    answers: Mapping[str, dict[str, Any]],
) -> None:
    flat = placement().reshape(3, -1)
    for said in answers["none"]["ranks"]:
        for layer in range(3):
            for expert in range(EXPERTS):
                assert said["copies"][layer][expert] == np.flatnonzero(flat[layer] == expert).tolist()


def test_sglang_sends_tokens_to_a_copy_of_their_expert_and_to_the_ranks_own_where_it_has_one(
    answers: Mapping[str, dict[str, Any]],
) -> None:
    expert_LGS = placement()
    for rank, said in enumerate(answers["deepep"]["ranks"]):
        slots = np.array(said["sent_to"])
        reached = np.take_along_axis(expert_LGS.reshape(3, -1), slots, axis=1)
        assert np.array_equal(reached, np.tile(np.arange(EXPERTS), (3, 1)))
        for layer in range(3):
            assert all(slots[layer, expert] // SLOTS == rank for expert in expert_LGS[layer, rank].tolist())


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("another key", "TypeError: "),
        ("no map", "NotImplementedError: Unknown init_expert_location format"),
        ("a copy less", "AssertionError"),
    ],
)
def test_sglang_takes_no_other_keys_and_no_copies_that_do_not_divide(
    answers: Mapping[str, dict[str, Any]], name: str, error: str
) -> None:
    assert answers[name]["error"].startswith(error)
