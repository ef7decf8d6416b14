"""Parameters of bundled models against totals that are published with them."""

import pytest

from planner.models.bundled import load_bundled
from tests.published.model_totals import active_parameters, text_parameters
from tests.unit.planner.model_inputs import read

# Totals that are published with the models (the index of their weights), a tied table counted once. DeepSeek-V3 is
# 671B without its prediction module (arXiv 2412.19437, section 4.2), the bias that balances its experts' load counted.
# GPT-3: 96 layers of 12 h^2 + 13 h, the embeddings of 50,257 tokens and 2,048 positions, and the final norm
# (arXiv 2104.04473, equation 2, with its vocabulary unpadded).
PUBLISHED = {
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "deepseek-r1": 671_026_419_200,
    "deepseek-v3": 671_026_419_200,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neox-20b": 20_554_567_680,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
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
    "llama-3.3-nemotron-super-49b": 49_867_145_216,
    "mistral-7b": 7_248_023_552,
    "mistral-7b-v0.1": 7_241_732_096,
    "mixtral-8x22b": 140_620_634_112,
    "mixtral-8x7b": 46_702_792_704,
    "phi-2": 2_779_683_840,
    "phi-4": 14_659_507_200,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-14b": 14_768_307_200,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
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

# What papers and model cards say of the text part in billions, in all and active, to as many digits as they say.
ROUNDED = {
    "gemma-4-26b-a4b": ("25.2", "3.8"),
    "glm-5": ("744", None),
    "gpt-oss-120b": ("116.83", None),
    "gpt-oss-20b": ("20.91", None),
    "kimi-k2": ("1026", None),
    "moonlight-16b-a3b": ("16", "3"),
    "nemotron-3-nano-30b-a3b": ("31.6", "3.6"),
    "nemotron-h-56b": ("56", None),
    "qwen3-235b-a22b": ("235", "22"),
    "qwen3-30b-a3b": ("30.5", None),
    "qwen3-coder-480b-a35b": ("480", "35"),
}


@pytest.mark.parametrize("name", [*PUBLISHED, *BUILT])
def test_a_bundled_model_has_its_published_total(name: str) -> None:
    assert text_parameters(load_bundled(name)) == (PUBLISHED | BUILT)[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_a_bundled_model_has_its_rounded_total(name: str) -> None:
    model = load_bundled(name)
    total, active = ROUNDED[name]
    assert in_billions(text_parameters(model), like=total) == total
    assert active is None or in_billions(active_parameters(model), like=active) == active


def in_billions(count: int, *, like: str) -> str:
    """Return a count in billions with as many decimals as `like` has."""
    return f"{count / 1e9:.{len(like.partition('.')[2])}f}"


def test_llama_4_scout_has_its_published_total_with_its_tower() -> None:
    # The tower's published sizes; the index of the published weights counts 108,641,793,536 in all.
    text = {
        "attention_chunk_size": 8192,
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 10485760,
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "vocab_size": 202048,
    }
    vision = {
        "hidden_size": 1408,
        "image_size": 336,
        "intermediate_size": 5632,
        "model_type": "llama4_vision_model",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 34,
        "patch_size": 14,
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
        "vision_output_dim": 4096,
    }
    model = read({"architectures": ["Llama4ForConditionalGeneration"], "text_config": text, "vision_config": vision})
    assert model.vision is not None
    assert text_parameters(model) + model.vision.num_parameters == 108_641_793_536


def test_qwen3_vl_has_its_rounded_total_with_its_tower() -> None:
    model = load_bundled("qwen3-vl-30b-a3b")
    assert model.vision is not None
    assert in_billions(text_parameters(model) + model.vision.num_parameters, like="31") == "31"


def test_nemotron_4_has_the_embedding_and_other_parameters_of_its_paper() -> None:
    # arXiv 2406.11704, section 2.1: 9.4 billion embedding and 331.6 billion other parameters, to one decimal.
    model = load_bundled("nemotron-4-340b")
    embeddings = 2 * model.vocab_size * model.hidden_size
    assert round(embeddings / 1e9, 1) == 9.4
    assert round((text_parameters(model) - embeddings) / 1e9, 1) == 331.6
