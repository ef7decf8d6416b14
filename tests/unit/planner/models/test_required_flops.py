"""Required flops by hand."""

from dataclasses import replace

from planner.models.layers import build_graph
from planner.models.required_flops import required_flops_per_sequence
from planner.requests.workload import Lora, TrainMethod
from tests.builders import tiny_dense_model, tiny_workload


def test_required_flops_are_six_a_weight_and_token_and_the_causal_half_of_attention() -> None:
    model = tiny_dense_model()
    multiplied = 4 * (64 * 128 + 64 * 64 + 3 * 64 * 160) + 512 * 64
    pairs = 128 * 129 // 2
    expected = 6 * 128 * multiplied + 4 * 12 * pairs * 64
    assert required_flops_per_sequence(model, build_graph(model, tiny_workload()), seq_len=128) == expected


def test_frozen_weights_need_four_flops_and_adapters_six() -> None:
    model = tiny_dense_model()
    multiplied = 4 * (64 * 128 + 64 * 64 + 3 * 64 * 160) + 512 * 64
    lora = Lora(rank=4, alpha=8.0, target_modules=("qkv", "fc2"))
    run = replace(tiny_workload(), method=TrainMethod.LORA, lora=lora)
    adapters = 4 * 4 * ((64 + 128) + (160 + 64))
    pairs = 128 * 129 // 2
    expected = 4 * 128 * multiplied + 6 * 128 * adapters + 4 * 12 * pairs * 64
    assert required_flops_per_sequence(model, build_graph(model, run), seq_len=128) == expected
