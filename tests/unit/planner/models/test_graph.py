"""Which tensors and weights the operators of a layer have; how many bytes is the oracle's subject."""

from dataclasses import replace

import pytest

from planner.models.blocks import Block
from planner.models.graph import LayerGraph, Linear, Module
from planner.models.layers import build_graph
from planner.models.specs import BlockRun, ModelSpec
from planner.requests.workload import AttentionKernel, DType, Lora, Precision, TrainMethod, TrainWorkload
from tests.builders import tiny_dense_model, tiny_workload

LORA = Lora(rank=4, alpha=8.0, target_modules=("qkv", "fc2"))
LORA_RUN = replace(tiny_workload(), method=TrainMethod.LORA, lora=LORA)


def block_graph(model: ModelSpec, workload: TrainWorkload) -> LayerGraph:
    return build_graph(model, workload).blocks[model.runs[0].block]


def saved(layer: LayerGraph) -> dict[str, int]:
    """Return the bytes a token of each saved tensor."""
    return {part.name: part.features * part.element_bytes for operator in layer.operators for part in operator.saved}


def with_block(**changes: object) -> ModelSpec:
    model = tiny_dense_model()
    block: Block = replace(model.runs[0].block, **changes)  # type: ignore[arg-type]
    return replace(model, runs=(BlockRun(block=block, count=4),))


def test_names_are_unique_within_a_layer() -> None:
    graph = build_graph(tiny_dense_model(), tiny_workload())
    for layer in (graph.embedding, *graph.blocks.values(), graph.head):
        operators = [operator.name for operator in layer.operators]
        tensors = [part.name for operator in layer.operators for part in operator.saved]
        weights = [weight.name for weight in layer.weights]
        for names in (operators, tensors, weights):
            assert len(names) == len(set(names))


def test_a_parallel_block_keeps_its_one_input_once() -> None:
    two_norms = saved(block_graph(with_block(parallel=True), tiny_workload()))
    one_norm = saved(block_graph(with_block(parallel=True, num_norms=1), tiny_workload()))
    in_sequence = saved(block_graph(tiny_dense_model(), tiny_workload()))
    assert in_sequence.keys() - two_norms.keys() == {"feed-forward norm input"}
    assert two_norms.keys() - one_norm.keys() == {"feed-forward norm output"}


def test_an_fp8_layer_keeps_its_quantised_inputs_and_attention_still_keeps_its_output() -> None:
    fp8 = saved(block_graph(tiny_dense_model(), replace(tiny_workload(), precision=Precision.FP8_DELAYED)))
    bf16 = saved(block_graph(tiny_dense_model(), tiny_workload()))
    for name in ("attention norm output", "feed-forward norm output", "activation output"):
        assert fp8[f"{name} in fp8"] * 2 == bf16[name]
        assert name not in fp8
    assert fp8["attention output in fp8"] * 2 == bf16["attention output"] == fp8["attention output"]


def test_a_frozen_layer_keeps_what_its_fused_norm_and_its_adapter_need() -> None:
    tensors = saved(block_graph(tiny_dense_model(), LORA_RUN))
    # The fused norm's output stays although nothing needs it; an adapter normalises once more for itself.
    assert tensors["attention norm output"] == tensors["qkv adapter input"] == 64 * 2
    assert "feed-forward norm output" in tensors
    assert "fc1 adapter input" not in tensors
    assert "attention output" in tensors  # kept by attention; proj has no adapter and keeps no copy of its own
    assert tensors["qkv adapter hidden"] == tensors["fc2 adapter hidden"] == 4 * 2


def test_adapters_alone_are_trained() -> None:
    graph = build_graph(tiny_dense_model(), LORA_RUN)
    layers = (graph.embedding, *graph.blocks.values(), graph.head)
    trained = {weight.name: weight.shape for layer in layers for weight in layer.weights if weight.trainable}
    assert trained == {
        "qkv adapter A": (4, 64),
        "qkv adapter B": (128, 4),
        "fc2 adapter A": (4, 160),
        "fc2 adapter B": (64, 4),
    }


@pytest.mark.parametrize("kernel", AttentionKernel)
def test_only_an_unfused_kernel_keeps_scores_and_copies_of_key_value_heads(kernel: AttentionKernel) -> None:
    tensors = saved(block_graph(tiny_dense_model(), replace(tiny_workload(), attention_kernel=kernel)))
    unfused = kernel is AttentionKernel.UNFUSED
    assert ("softmax output" in tensors) == unfused
    assert ("log-sum-exp" in tensors) != unfused
    assert tensors["key"] == tensors["value"] == 2 * (64 if unfused else 32)


def test_recomputing_the_mlp_drops_the_output_of_the_norm_that_is_fused_into_it() -> None:
    layer = block_graph(tiny_dense_model(), tiny_workload())
    dropped = {part.name for operator in layer.operators for part in operator.saved if Module.MLP in part.dropped_by}
    assert dropped == {"feed-forward norm output", "activation input", "activation output"}
    again = [operator.name for operator in layer.operators if Module.MLP in operator.modules]
    assert again == ["feed-forward norm", "fc1", "gated silu", "fc2"]


def test_dropout_keeps_a_byte_an_element_behind_each_sub_block_and_the_embedding() -> None:
    workload = replace(tiny_workload(), hidden_dropout=0.1)
    graph = build_graph(tiny_dense_model(), workload)
    tensors = saved(graph.blocks[tiny_dense_model().runs[0].block])
    assert tensors["attention residual dropout mask"] == tensors["feed-forward residual dropout mask"] == 64
    assert saved(graph.embedding) == {"embedding dropout mask": 64}
    assert saved(build_graph(tiny_dense_model(), tiny_workload()).embedding) == {}


def test_the_head_multiplies_in_16_bit_even_in_an_fp8_run() -> None:
    graph = build_graph(tiny_dense_model(), replace(tiny_workload(), precision=Precision.FP8_DELAYED))
    head = next(operator.work for operator in graph.head.operators if operator.name == "lm head")
    assert isinstance(head, Linear)
    assert head.dtype is DType.BF16
