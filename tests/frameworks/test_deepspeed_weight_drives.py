"""DeepSpeed's swapper of weights, over a stand-in for libaio, moves and keeps what plans with them on drives count."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from planner.emit.deepspeed import CONFIG_FILE, MODEL_FILE, emit_deepspeed
from planner.frameworks.capabilities import DEEPSPEED
from planner.layout import Layout, Offload
from planner.models.blocks import Block, SelfAttention
from planner.models.layers import build_graph
from planner.models.specs import BlockRun
from planner.offloading.drive_step import file_bytes
from planner.offloading.drive_weights import READ_AHEAD, DriveWeights, drive_weights
from planner.plans.plan import Plan
from planner.ranks.placement import place
from planner.requests.workload import AttentionKernel
from tests.emitted.deepspeed_plans import FULL_RECOMPUTE, LLAMA, deepspeed_plan, layout_with, swiglu
from tests.frameworks.deepspeed_environment import run_beside_deepspeed

pytestmark = pytest.mark.frameworks

ATTENTION = SelfAttention(num_attention_heads=8, num_key_value_heads=8, head_dim=128)
MODEL = replace(
    LLAMA,
    name="wide llama",
    hidden_size=1024,
    vocab_size=2048,
    runs=(BlockRun(block=Block(mixer=ATTENTION, feed_forward=swiglu(2048)), count=4),),
)
"""Products of 2 and 4 MiB in 16 bit, which go to drives; norms stay."""

WEIGHTS = Offload(optimizer_fraction=1.0, overlapped=False, parameters=True, parameter_drives=True)
LAYOUT = replace(layout_with((4,), zero_stage=3, num_microbatches=1), offload=WEIGHTS)
LAYOUTS: Mapping[str, Layout] = {
    "weights": LAYOUT,
    "weights, recomputed": replace(LAYOUT, recompute=FULL_RECOMPUTE),
    "weights and states, recomputed": replace(LAYOUT, offload=replace(WEIGHTS, drives=True), recompute=FULL_RECOMPUTE),
    "weights and pipelined states": replace(LAYOUT, offload=replace(WEIGHTS, drives=True, overlapped=True)),
    "states": replace(LAYOUT, offload=Offload(optimizer_fraction=1.0, overlapped=False)),
}
ON_DRIVES = [name for name, layout in LAYOUTS.items() if layout.uses_drives]
TOO_FEW = "weights, recomputed"


def plan_of(layout: Layout) -> Plan:
    return deepspeed_plan(MODEL, layout, attention_kernel=AttentionKernel.UNFUSED)


def counted(layout: Layout) -> DriveWeights:
    """Return what the plan counts."""
    workload = plan_of(layout).request.workload
    return drive_weights(place(MODEL, build_graph(MODEL, workload, eager=DEEPSPEED.eager), layout, workload, DEEPSPEED))


def case_of(layout: Layout, *, fewer: int = 0) -> dict[str, Any]:
    """Return the emitted configuration and the model's facts, with some buffers fewer."""
    files = emit_deepspeed(plan_of(layout))
    config = json.loads(files[CONFIG_FILE])
    if layout.uses_drives:
        config["zero_optimization"]["offload_param"]["buffer_count"] -= fewer
    recompute = layout.recompute == FULL_RECOMPUTE
    return {"config": config, "facts": json.loads(files[MODEL_FILE]), "recompute": recompute}


@pytest.fixture(scope="module")
def answers() -> Mapping[str, Any]:
    """Return what each run did."""
    cases = {name: case_of(layout) for name, layout in LAYOUTS.items()}
    # Without any to read ahead the passes still go; without one more they do not.
    cases["none ahead"] = case_of(LAYOUTS[TOO_FEW], fewer=READ_AHEAD)
    cases["too few"] = case_of(LAYOUTS[TOO_FEW], fewer=READ_AHEAD + 1)
    found = run_beside_deepspeed("tests.frameworks.deepspeed_weight_drives", list(cases.values()), jobs=len(cases))
    return dict(zip(cases, found, strict=True))


def parts_of(step: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    return {(part["part"], way): part[way] for part in step["parts"] for way in ("read", "written")}


@pytest.mark.parametrize("name", ON_DRIVES)
def test_passes_read_and_a_step_writes_no_more_than_is_counted(answers: Mapping[str, Any], name: str) -> None:
    found, weights = answers[name], counted(LAYOUTS[name])
    written = 2 * found["elements"]
    assert found["tensors"] == 4 * 7 + 2
    # States of all elements, and gradients of those whose tensors are large enough.
    states = 12 * (found["elements"] + found["kept"]) + 4 * found["elements"] if LAYOUTS[name].drive_offload else 0
    for step in found["steps"]:
        moved = parts_of(step)
        assert moved["forward", "written"] == 0
        assert moved["backward", "written"] + moved["step", "written"] == states + written
    # Embedding and head come once a step, all layers but the last once a pass: what stays is not read again, and what
    # is read ahead behind the last pass is.
    last = parts_of(found["steps"][-1])
    read = last["forward", "read"] + last["backward", "read"]
    layer = 2 * (4 * 1024**2 + 3 * 1024 * 2048)
    assert 6 * layer <= read <= 2 * written
    assert written <= 2 * (found["elements"] + found["kept"]) <= weights.file_bytes


@pytest.mark.parametrize("name", ON_DRIVES)
def test_buffers_and_files_are_those_of_the_ledgers(answers: Mapping[str, Any], name: str) -> None:
    found, layout = answers[name], LAYOUTS[name]
    weights = counted(layout)
    assert found["files"]["params"] == 2 * found["elements"] <= weights.file_bytes
    assert found["held"] <= weights.num_buffers
    buffers = 2 * weights.num_buffers * weights.buffer_elements
    if not layout.drive_offload:
        assert buffers + 2 * max(found["groups"]) <= found["locked"] <= weights.buffer_bytes
        assert found["files"]["optimizer"] == 0
    else:
        assert found["locked"] > buffers
        assert 0 < found["files"]["optimizer"] <= file_bytes(sum(found["groups"]))
    assert 2 * found["kept"] <= weights.kept_bytes


def test_the_steps_are_those_without_drives(answers: Mapping[str, Any]) -> None:
    losses = {name: [step["loss"] for step in answers[name]["steps"]] for name in (*LAYOUTS, "none ahead")}
    hosted = losses.pop("states")
    for found in losses.values():
        assert found == pytest.approx(hosted, rel=1e-3)
        assert found == losses["weights"]
    assert losses["weights"][0] > 1.2 * losses["weights"][-1]


def test_a_buffer_less_than_the_tensors_of_a_layer_and_the_head_is_too_few(answers: Mapping[str, Any]) -> None:
    assert answers["too few"] == {"error": "Not enough buffers 0 for swapping 1"}
