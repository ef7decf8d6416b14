"""Parameters by the operator graph against parameters of a torch module on the meta device."""

import pytest
from hypothesis import given, settings

from planner.bundled import load_bundled
from planner.graph import graph_parameters
from planner.layers import build_graph
from planner.specs import ModelSpec
from planner.workload import Precision, TrainWorkload
from tests.oracle.torch_models import built_model, num_parameters
from tests.small_spaces import models

WORKLOAD = TrainWorkload(seq_len=128, global_batch_size=8, precision=Precision.BF16)


def ours(spec: ModelSpec) -> int:
    return graph_parameters(spec, build_graph(spec, WORKLOAD))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("gpt2-xl", 1_557_611_200),
        ("qwen3-8b", 8_190_735_360),
        ("qwen2.5-7b", 7_615_616_512),
    ],
)
def test_parameters_of_real_models_equal_torchs_and_the_published_total(name: str, published: int) -> None:
    spec = load_bundled(name)
    assert num_parameters(built_model(spec)) == published
    assert ours(spec) == published


@settings(max_examples=60, deadline=None, derandomize=True)
@given(spec=models())
def test_parameters_of_any_decoder_equal_torchs(spec: ModelSpec) -> None:
    assert ours(spec) == num_parameters(built_model(spec))
