"""What vLLM and DeepSpeed are told of a plan is read back, and means it."""

import json
from dataclasses import replace

import pytest

from planner.errors import NotExpressibleError
from planner.inference_offload.emit import DEEPSPEED_FILE, emit_offload, host_layers, layer_groups
from planner.inference_offload.plan import OffloadPlan, TargetPlan
from planner.inference_offload.request import DRIVE, GPU, Target, Thing, Use
from planner.readers.vllm_engine import settings_of
from planner.readers.vllm_run import read_vllm_config
from tests.offloaded import offloaded


def of(case: str, target: Target) -> tuple[OffloadPlan, TargetPlan]:
    plan = offloaded(case)
    chosen = plan.of(target)
    assert chosen is not None
    return plan, chosen


def lying(plan: OffloadPlan, target: Target, use: Use) -> OffloadPlan:
    """Return the plan with a target's weights in one place."""
    changed = tuple(
        replace(
            found,
            placed=tuple(
                replace(placed, option=replace(placed.option, use=use), share=1.0)
                if placed.option.thing is Thing.WEIGHTS
                else placed
                for placed in found.placed
            ),
        )
        if found.target is target
        else found
        for found in plan.plans
    )
    return replace(plan, plans=changed)


@pytest.mark.parametrize("case", ["dense", "mixture"])
def test_vllm_is_told_the_batch_the_cache_and_the_layers_on_the_host(case: str) -> None:
    plan, chosen = of(case, Target.VLLM)
    text = emit_offload(plan, Target.VLLM)["offload.yaml"]
    run = read_vllm_config(text, file="offload.yaml", version="0.32.0", num_gpus=1, gpus_per_node=1)
    settings = settings_of(run)
    assert settings.max_num_seqs == chosen.batch_size
    assert settings.max_model_len == 544
    assert settings.kv_cache_memory_bytes is not None
    cache = sum(placed.num_bytes for placed in chosen.placed if placed.option.thing is Thing.CACHE)
    assert cache <= settings.kv_cache_memory_bytes <= cache * 1.05
    assert run.arguments.is_on("enforce_eager")
    on_host = host_layers(plan, chosen)
    assert on_host > 0
    size, last = (int(str(run.arguments.value(name))) for name in ("offload_group_size", "offload_num_in_group"))
    layers = range(plan.model.num_layers)
    assert sum(layer % size >= size - last for layer in layers) == on_host
    assert run.arguments.value("offload_backend") == "prefetch"


@pytest.mark.parametrize("num_layers", [1, 7, 32, 61, 80])
def test_groups_of_layers_hold_exactly_as_many_as_are_planned(num_layers: int) -> None:
    for on_host in range(1, num_layers + 1):
        size, last = layer_groups(num_layers, on_host)
        assert 1 <= last <= size <= num_layers
        assert sum(layer % size >= size - last for layer in range(num_layers)) == on_host
    assert layer_groups(32, 8) == (4, 1)
    assert layer_groups(32, 32) == (1, 1)


def test_deepspeed_is_told_where_all_weights_lie() -> None:
    plan, chosen = of("dense", Target.DEEPSPEED)
    config = json.loads(emit_offload(plan, Target.DEEPSPEED)[DEEPSPEED_FILE])
    assert config["train_micro_batch_size_per_gpu"] == config["train_batch_size"] == chosen.batch_size
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert config["zero_optimization"]["stage3_max_live_parameters"] >= 2 * 12 * 7168**2
    assert "aio" not in config
    assert config["bf16"] == {"enabled": True}


def test_on_a_drive_buffers_hold_the_largest_tensor() -> None:
    plan = lying(offloaded("dense"), Target.DEEPSPEED, DRIVE)
    config = json.loads(emit_offload(plan, Target.DEEPSPEED, drive_path="/scratch")[DEEPSPEED_FILE])
    assert config["zero_optimization"]["offload_param"] == {
        "device": "nvme",
        "nvme_path": "/scratch",
        "pin_memory": True,
        "buffer_count": 5,
        "buffer_size": 50304 * 7168,
    }
    assert config["aio"]["queue_depth"] == 32


def test_gpus_without_bf16_are_told_of_fp16() -> None:
    plan = offloaded("mixture")
    text = emit_offload(plan, Target.VLLM)["offload.yaml"]
    assert 'dtype: "float16"' in text
    assert json.loads(emit_offload(plan, Target.DEEPSPEED)[DEEPSPEED_FILE])["fp16"] == {"enabled": True}


def test_what_cannot_be_said_is_refused() -> None:
    plan = offloaded("dense")
    with pytest.raises(NotExpressibleError, match=r"any: No released runtime can be told all of it\."):
        emit_offload(plan, Target.ANY)
    with pytest.raises(NotExpressibleError, match=r"deepspeed: All weights fit on the GPU"):
        emit_offload(lying(plan, Target.DEEPSPEED, GPU), Target.DEEPSPEED)
    with pytest.raises(NotExpressibleError, match=r"vllm: Nothing that it can be told fits\."):
        emit_offload(offloaded("large"), Target.VLLM)  # most of its weights lie on the drive
