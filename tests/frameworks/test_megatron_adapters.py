"""The emitted adapter program trains the same model in every layout: real steps on CPU processes."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest

from planner.emit.megatron import LORA_PROGRAM, environment
from planner.emit.megatron_arguments import arguments
from planner.frameworks.capabilities import MEGATRON
from planner.models.blocks import DenseFeedForward, SelfAttention
from planner.models.layers import build_graph
from planner.models.specs import BlockRun
from planner.ranks.placement import place
from planner.requests.workload import Lora, Precision, TrainMethod, TrainWorkload
from tests.emitted.plans import LLAMA_8B, cluster_of, layout_of_degrees
from tests.frameworks.megatron_environment import run_beside_megatron

pytestmark = pytest.mark.frameworks

PROGRAM = str(files("planner").joinpath("data", "megatron", LORA_PROGRAM))

RELATIVE_TOLERANCE = 1e-5
"""Sums in another order, in fp32; the losses agree to about 1e-7."""

ALONE = {
    "tp": 1,
    "pp": 1,
    "vpp": 1,
    "dp": 1,
    "sequence_parallel": False,
    "gated": True,
    "fused_norm": False,
    "recompute": False,
}

CASES: Mapping[str, Mapping[str, object]] = {
    "alone": ALONE,
    "recomputed, norm inside the layer": {**ALONE, "recompute": True, "fused_norm": True},
    "tp 2": {**ALONE, "tp": 2},
    "tp 2 with sequence parallelism": {**ALONE, "tp": 2, "sequence_parallel": True, "fused_norm": True},
    "pp 2, recomputed": {**ALONE, "pp": 2, "recompute": True},
    "pp 2, interleaved": {**ALONE, "pp": 2, "vpp": 2},
    "dp 2": {**ALONE, "dp": 2},
    "tp 2, pp 2": {**ALONE, "tp": 2, "pp": 2, "sequence_parallel": True, "recompute": True},
}


@pytest.fixture(scope="module")
def outcomes() -> Mapping[str, dict[str, Any]]:
    """Return what each case's processes saw."""
    cases = [{**case, "program": PROGRAM} for case in CASES.values()]
    answers = run_beside_megatron("tests.frameworks.megatron_adapter_steps", cases)
    return dict(zip(CASES, answers, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_adapters_train_and_the_base_stays(name: str, outcomes: Mapping[str, dict[str, Any]]) -> None:
    outcome = outcomes[name]
    assert (outcome["frozen"], outcome["trained"], outcome["agreed"]) == (True, True, True)
    assert outcome["losses"][-1] < outcome["losses"][0]


@pytest.mark.parametrize("name", CASES)
def test_every_layout_trains_the_same_model(name: str, outcomes: Mapping[str, dict[str, Any]]) -> None:
    assert outcomes[name]["losses"] == pytest.approx(outcomes["alone"]["losses"], rel=RELATIVE_TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_each_rank_holds_the_adapter_parameters_that_we_count(
    name: str, outcomes: Mapping[str, dict[str, Any]]
) -> None:
    case = CASES[name]
    tp, pp, vpp, dp = (int(str(case[degree])) for degree in ("tp", "pp", "vpp", "dp"))
    block = LLAMA_8B.distinct_blocks[0]
    attention, feed_forward = block.mixer, block.feed_forward
    assert isinstance(attention, SelfAttention)
    assert isinstance(feed_forward, DenseFeedForward)
    tiny = replace(
        block,
        mixer=replace(attention, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        feed_forward=replace(feed_forward, intermediate_size=64),
    )
    model = replace(LLAMA_8B, hidden_size=32, vocab_size=128, runs=(BlockRun(block=tiny, count=4),))
    lora = Lora(rank=4, alpha=8.0, target_modules=("qkv", "proj", "fc1", "fc2"))
    workload = TrainWorkload(
        seq_len=16, global_batch_size=8, precision=Precision.BF16, method=TrainMethod.LORA, lora=lora
    )
    layout = layout_of_degrees(layers=(4 // (pp * vpp),) * (pp * vpp), tp=tp, pp=pp, dp=dp, num_microbatches=4)
    placed = place(model, build_graph(model, workload), layout, workload, MEGATRON)
    ours = [placed.elements(rank // (tp * dp), trainable=True).total for rank in range(layout.world_size)]
    assert outcomes[name]["adapter_parameters"] == ours


def test_a_distributed_checkpoint_names_every_matrix(outcomes: Mapping[str, dict[str, Any]]) -> None:
    keys = outcomes["alone"]["checkpoint_keys"]
    owners = {"self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"}
    assert set(keys) == {
        f"decoder.layers.{layer}.{owner}_adapter.{part}"
        for layer in range(4)
        for owner in owners
        for part in ("down", "up")
    }


def test_the_program_hands_megatron_the_model_with_its_adapters() -> None:
    lora = Lora(rank=16, alpha=32.0, target_modules=("qkv", "fc2"))
    workload = TrainWorkload(
        seq_len=8192, global_batch_size=128, precision=Precision.BF16, method=TrainMethod.LORA, lora=lora
    )
    layout = layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=32)
    case = {
        "program": PROGRAM,
        "arguments": arguments(LLAMA_8B, workload, layout),
        "environment": environment(workload, layout, cluster_of(1, 8)),
        "world_size": 8,
    }
    assert run_beside_megatron("tests.frameworks.megatron_adapter_start", [case]) == [
        {
            "adapters": {"rank": 16, "alpha": 32.0, "targets": ["qkv", "fc2"]},
            "num_layers": 32,
            "datasets": ["train_valid_test_datasets_provider", True],
            "forward_step": "forward_step",
            "embedding_ranks": "get_embedding_ranks",
        }
    ]
