"""Parameters of every readable architecture, to the last one."""

import json
from pathlib import Path

import pytest

from planner.models.bundled import load_bundled, model_names
from planner.models.layers import build_graph
from planner.models.parameter_counts import graph_parameters, parameter_counts
from planner.models.specs import ModelSpec
from planner.requests.workload import Precision, TrainWorkload
from tests.published.model_totals import active_parameters, mtp_parameters, text_parameters
from tests.unit.planner.model_inputs import LLAMA_8B, QWEN3_8B, read

# Small configs of every architecture with several combinations of its flags, counted the same way.
SMALL = [
    json.loads(line)
    for line in Path(__file__).with_name("model_parameters_of_transformers.jsonl").read_text("utf-8").splitlines()
]


def graph_total(model: ModelSpec) -> int:
    workload = TrainWorkload(seq_len=128, global_batch_size=1, precision=Precision.BF16)
    return graph_parameters(model, build_graph(model, workload))


@pytest.mark.parametrize("name", model_names())
def test_the_graph_of_a_bundled_model_has_its_parameters(name: str) -> None:
    model = load_bundled(name)
    counts = parameter_counts(model)
    assert (counts.text, counts.prediction) == (text_parameters(model), mtp_parameters(model))
    assert counts.active == active_parameters(model)
    assert graph_total(model) == counts.text + counts.prediction


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case["config"]["architectures"][0])
def test_a_config_has_the_parameters_that_transformers_builds(case: dict[str, object]) -> None:
    model = read(case["config"])
    assert text_parameters(model) == case["parameters"]
    assert graph_total(model) == case["parameters"]


def test_published_configs_have_their_published_totals() -> None:
    assert graph_total(read(LLAMA_8B)) == 8_030_261_248
    assert graph_total(read(QWEN3_8B)) == 8_190_735_360
