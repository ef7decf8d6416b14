"""DeepSpeed's swappers, over a stand-in for libaio, move and keep what plans with states on drives count."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from planner.emit.deepspeed import CONFIG_FILE, emit_deepspeed
from planner.layout import Offload
from planner.offloading.drive_step import aligned_bytes, buffer_bytes, file_bytes
from tests.emitted.deepspeed_plans import deepspeed_plan, layout_with
from tests.emitted.plans import LLAMA_8B
from tests.frameworks.deepspeed_environment import run_beside_deepspeed

pytestmark = pytest.mark.frameworks

LAYOUT = layout_with((32,), dp=8, zero_stage=3, num_microbatches=8)
BIAS_ELEMENTS = 1024
MOMENT_BYTES = 8


def emitted(*, pipelined: bool, fewer: int = 0) -> dict[str, Any]:
    """Return the sections of an emitted configuration that a run on drives reads, with some buffers fewer."""
    offload = Offload(optimizer_fraction=1.0, overlapped=pipelined, drives=True)
    config = json.loads(emit_deepspeed(deepspeed_plan(LLAMA_8B, replace(LAYOUT, offload=offload)))[CONFIG_FILE])
    section = config["zero_optimization"]["offload_optimizer"]
    section["buffer_count"] -= fewer
    return {"offload_optimizer": section, "aio": config["aio"]}


@pytest.fixture(scope="module")
def answers() -> Mapping[tuple[bool, int], Any]:
    """Return what each run did, by whether it is pipelined and how many buffers it lacks."""
    cases = [(pipelined, fewer) for fewer in (0, 1) for pipelined in (False, True)]
    requests = [emitted(pipelined=pipelined, fewer=fewer) for pipelined, fewer in cases]
    found = run_beside_deepspeed("tests.frameworks.deepspeed_drives", requests, jobs=len(cases))
    return dict(zip(cases, found, strict=True))


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_step_moves_and_keeps_what_is_counted(answers: Mapping[tuple[bool, int], Any], *, pipelined: bool) -> None:
    found = answers[pipelined, 0]
    groups = found["groups"]
    elements, written = sum(groups), sum(groups) - BIAS_ELEMENTS
    first, later = found["steps"]
    # Moments come into being in the first step; the bias' gradient is below a block, and never written.
    assert first["read"] == 4 * (elements + written)
    assert later["read"] == 12 * elements + 4 * written
    assert first["written"] == later["written"] == 12 * elements + 4 * written
    assert first["kept"] == later["kept"] == 4 * BIAS_ELEMENTS
    assert found["buffers"] == buffer_bytes(max(groups), pipelined=pipelined)
    assert found["files"] == 12 * elements + 4 * written <= file_bytes(elements)
    assert all(aligned_bytes(group) == 4 * group for group in groups)
    # The pipelined swapper lets go of the first step's moments only in the next one.
    assert (first["left"], later["left"]) == (MOMENT_BYTES * elements if pipelined else 0, 0)


def test_both_ways_take_the_same_steps(answers: Mapping[tuple[bool, int], Any]) -> None:
    in_turn, pipelined = ([step["loss"] for step in answers[way, 0]["steps"]] for way in (False, True))
    assert in_turn == pipelined
    assert in_turn[0] != in_turn[1]


def test_a_buffer_less_is_too_few(answers: Mapping[tuple[bool, int], Any]) -> None:
    """In turn the assertion that buffers were found has no words."""
    assert answers[False, 1] == {"error": ""}
    assert answers[True, 1]["error"].startswith("PipelinedOptimizerSwapper ran out of swap buffers")
