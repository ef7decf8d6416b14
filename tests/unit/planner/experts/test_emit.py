"""What engines are told of a placement is read back, and means it."""

import json

import numpy as np
import pytest

from planner.errors import InputError, NotExpressibleError
from planner.experts.emit import (
    MEGATRON_FILE,
    SGLANG_FILE,
    VLLM_FILE,
    Target,
    emit_placement,
    order_text,
    placed_in_model,
    read_order,
)
from planner.experts.histogram import RoutingHistogram
from planner.experts.moving import present_map
from planner.experts.request import ExpertRequest
from planner.readers.vllm_run import read_vllm_config

COPIED = np.array([[[0, 1], [0, 2]], [[1, 0], [2, 1]]])
ONCE = np.array([[[3, 1], [0, 2]]])
HISTOGRAM = RoutingHistogram(source="", tokens_LE=np.ones((2, 3)))
REQUEST = ExpertRequest(num_gpus=2, gpus_per_node=2, redundant=1)


def test_the_map_of_sglang_reads_back_as_the_placement() -> None:
    files = emit_placement(Target.SGLANG, COPIED)
    found = json.loads(files[SGLANG_FILE])
    assert list(found) == ["physical_to_logical_map"], "SGLang passes every key on as an argument"
    read = present_map(found["physical_to_logical_map"], HISTOGRAM, REQUEST, file=SGLANG_FILE)
    assert np.array_equal(read, COPIED)
    assert files["sglang-arguments.txt"] == (
        "--ep-size 2 --ep-num-redundant-experts 1 --init-expert-location expert-location.json\n"
    )


@pytest.mark.parametrize("version", ["0.15.0", "0.32.0"])
def test_vllm_is_told_how_many_copies_there_are(version: str) -> None:
    text = emit_placement(Target.VLLM, COPIED)[VLLM_FILE]
    run = read_vllm_config(text, file=VLLM_FILE, version=version, num_gpus=2, gpus_per_node=2)
    assert run.section("eplb_config") == {"num_redundant_experts": 1, "window_size": 1000, "step_interval": 3000}
    assert run.arguments.is_on("enable_expert_parallel")
    assert run.arguments.is_on("enable_eplb")


def test_megatron_gets_an_order_and_no_copies() -> None:
    files = emit_placement(Target.MEGATRON, ONCE)
    assert json.loads(files["expert-order.json"]) == {"order": [[3, 1, 0, 2]]}
    assert files["megatron-arguments.txt"] == "--num-experts 4 --expert-model-parallel-size 2\n"
    with pytest.raises(NotExpressibleError, match=r"megatron: There are no copies of experts\."):
        emit_placement(Target.MEGATRON, COPIED)


def test_megatron_gets_no_order_in_which_groups_are_torn_apart() -> None:
    with pytest.raises(NotExpressibleError, match="The order of layer 0 mixes experts of groups 0 and 1 at positions"):
        emit_placement(Target.MEGATRON, ONCE, num_groups=2)
    kept = np.array([[[3, 2], [0, 1]]])
    assert emit_placement(Target.MEGATRON, kept, num_groups=2) == emit_placement(Target.MEGATRON, kept)


def test_an_order_reads_back() -> None:
    written = np.array([[0, 1, 2, 3], [3, 2, 0, 1]])
    read = read_order(order_text(written), file=MEGATRON_FILE, num_layers=2, num_experts=4, num_groups=2)
    assert np.array_equal(read, written)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"order": [[0, 1, 2, 3]', "expert-order.json: This is no JSON: "),
        ('{"orders": [[0, 1, 2, 3]]}', "expert-order.json: There is no order of 1 layers here."),
        ('{"order": [[0, 1, 2, 3], [0, 1, 2, 3]]}', "expert-order.json: There is no order of 1 layers here."),
        ("[[0, 1, 2, 3]]", "expert-order.json: There is no order of 1 layers here."),
        ('{"order": ["0123"]}', "expert-order.json: order[0]: Layer 0 is no list of whole numbers."),
        ('{"order": [[0, 1, true, 3]]}', "expert-order.json: order[0]: Layer 0 is no list of whole numbers."),
        (
            '{"order": [[0, 1, 2]]}',
            "expert-order.json: order[0]: Layer 0 does not hold each of the experts 0 to 3 once.",
        ),
        (
            '{"order": [[0, 2, 1, 3]]}',
            "expert-order.json: order[0]: Layer 0 mixes experts of groups 0 and 1 at positions 0 to 1.",
        ),
    ],
)
def test_what_is_no_order_is_refused_with_its_layer(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        read_order(text, file=MEGATRON_FILE, num_layers=1, num_experts=4, num_groups=2)
    assert str(raised.value).startswith(message)


def test_layers_without_experts_have_rows_too() -> None:
    whole = placed_in_model(COPIED, (1, 2), 4)
    assert whole.reshape(4, 4).tolist() == [[0, 1, 2, 0], [0, 1, 0, 2], [1, 0, 2, 1], [0, 1, 2, 0]]
    assert placed_in_model(COPIED, (0,), 2) is COPIED
    with pytest.raises(InputError, match="2 layers were counted; the model has 4, 3 of them with experts"):
        placed_in_model(COPIED, (1, 2, 3), 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, 1, 2]], "a.json: 1 layers of 3 slots are not 2 layers on 2 GPUs."),
        (
            [[0, 1, 2, 3], [0, 1, 2, 0]],
            "a.json: physical_to_logical_map[0][3]: 3 is no expert: they are numbered 0 to 2.",
        ),
        ([[0, 1], [2]], "a.json: physical_to_logical_map is no list of layers, each a list of experts."),
        (["a"], "a.json: physical_to_logical_map is no list of layers, each a list of experts."),
    ],
)
def test_what_is_no_map_is_refused(values: object, message: str) -> None:
    with pytest.raises(InputError) as raised:
        present_map(values, HISTOGRAM, REQUEST, file="a.json")
    assert str(raised.value) == message
