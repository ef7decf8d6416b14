"""Parameters of every readable architecture, to the last one."""

import json
from pathlib import Path

import pytest

from planner.bundled import load_bundled, model_names
from planner.graph import graph_parameters
from planner.layers import build_graph
from planner.specs import ModelSpec
from planner.workload import Precision, TrainWorkload
from tests.unit.planner.model_inputs import LLAMA_8B, QWEN3_8B, counted_parameters, read

# Totals that are published with the models (the index of their weights), a tied table counted once. GPT-3: 96 layers
# of 12 h^2 + 13 h, the embeddings of 50,257 tokens and 2,048 positions, and the final norm (arXiv 2104.04473,
# equation 2, with its vocabulary unpadded).
PUBLISHED = {
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neox-20b": 20_554_567_680,
    "gpt2-xl": 1_557_611_200,
    "gpt3-175b": 96 * (12 * 12288**2 + 13 * 12288) + (50257 + 2048 + 2) * 12288,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-2-7b": 6_738_415_616,
    "llama-3-70b": 70_553_706_496,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "mistral-7b": 7_248_023_552,
    "phi-2": 2_779_683_840,
    "phi-4": 14_659_507_200,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
}

# What transformers 4.57.1 builds on the meta device from the same sizes, tied as its class ties.
BUILT = {
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "falcon-180b": 178_557_088_768,
    "nemotron-4-15b": 15_628_775_424,
    "nemotron-4-340b": 341_029_195_776,
    "opt-30b": 29_974_540_288,
}

# Small configs of every architecture with several combinations of its flags, counted the same way.
SMALL = [
    json.loads(line)
    for line in Path(__file__).with_name("model_parameters_of_transformers.jsonl").read_text("utf-8").splitlines()
]


def graph_total(model: ModelSpec) -> int:
    workload = TrainWorkload(seq_len=128, global_batch_size=1, precision=Precision.BF16)
    return graph_parameters(model, build_graph(model, workload))


def test_every_bundled_model_has_an_expected_total() -> None:
    assert set(model_names()) == PUBLISHED.keys() | BUILT.keys()


@pytest.mark.parametrize("name", [*PUBLISHED, *BUILT])
def test_a_bundled_model_has_its_total_by_formula_and_by_graph(name: str) -> None:
    expected = (PUBLISHED | BUILT)[name]
    model = load_bundled(name)
    assert counted_parameters(model) == expected
    assert graph_total(model) == expected


def test_nemotron_4_has_the_embedding_and_other_parameters_of_its_paper() -> None:
    # arXiv 2406.11704, section 2.1: 9.4 billion embedding and 331.6 billion other parameters, to one decimal.
    model = load_bundled("nemotron-4-340b")
    embeddings = 2 * model.vocab_size * model.hidden_size
    assert round(embeddings / 1e9, 1) == 9.4
    assert round((counted_parameters(model) - embeddings) / 1e9, 1) == 331.6


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case["config"]["architectures"][0])
def test_a_config_has_the_parameters_that_transformers_builds(case: dict[str, object]) -> None:
    model = read(case["config"])
    assert counted_parameters(model) == case["parameters"]
    assert graph_total(model) == case["parameters"]


def test_published_configs_have_their_published_totals() -> None:
    assert graph_total(read(LLAMA_8B)) == 8_030_261_248
    assert graph_total(read(QWEN3_8B)) == 8_190_735_360
