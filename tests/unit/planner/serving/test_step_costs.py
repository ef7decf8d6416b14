"""Steps of engines: laws, sums, and figures by hand."""

from dataclasses import replace
from itertools import pairwise

import pytest

from planner.errors import InputError
from planner.serving.formats import formats_of, quantisations
from planner.serving_plans.layout import EngineShape
from tests.unit.planner.serving.engines_of import Served, prices_of, served

MODELS = [
    ("llama-3.1-8b", "bf16", 1),
    ("llama-3.1-70b", "fp8", 4),
    ("qwen3-235b-a22b", "fp8", 8),
    ("deepseek-v3", "fp8", 8),
    ("qwen3.5-397b-a17b", "fp8", 8),
    ("gpt-oss-120b", "mxfp4", 1),
]


def _engine(model: str, quantisation: str, tp: int, engine: str = "vllm") -> Served:
    return served(model, preset="dgx-h200", quantisation=quantisation, shape=EngineShape(tp=tp), engine=engine)


@pytest.mark.parametrize(("model", "quantisation", "tp"), MODELS)
def test_more_answers_take_longer_and_less_each(model: str, quantisation: str, tp: int) -> None:
    costs = _engine(model, quantisation, tp).costs
    batches = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    seconds = [costs.seconds(decodes=batch, context=1000) for batch in batches]
    # A product of more rows may find a better tile: a hundredth is allowed.
    assert all(later >= 0.99 * earlier for earlier, later in pairwise(seconds))
    each = [second / batch for second, batch in zip(seconds, batches, strict=True)]
    assert each == sorted(each, reverse=True)


@pytest.mark.parametrize(("model", "quantisation", "tp"), MODELS)
def test_longer_contexts_never_take_less(model: str, quantisation: str, tp: int) -> None:
    costs = _engine(model, quantisation, tp).costs
    seconds = [costs.seconds(decodes=32, context=context) for context in (16, 100, 1000, 5000, 20_000, 100_000)]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(("model", "quantisation", "tp"), MODELS)
def test_longer_prompts_and_longer_pasts_take_longer(model: str, quantisation: str, tp: int) -> None:
    costs = _engine(model, quantisation, tp).costs
    lengths = [costs.seconds(chunks=[(tokens, 0)]) for tokens in (256, 1024, 4096, 8192)]
    assert lengths == sorted(lengths)
    pasts = [costs.seconds(chunks=[(2048, past)]) for past in (0, 2048, 8192, 32_768)]
    assert pasts == sorted(pasts)


@pytest.mark.parametrize(("model", "quantisation", "tp"), MODELS)
def test_terms_sum_to_the_step(model: str, quantisation: str, tp: int) -> None:
    costs = _engine(model, quantisation, tp).costs
    step = {"chunks": [(2000.0, 0.0), (500.0, 1500.0)], "decodes": 17, "context": 900.0, "finished": 1}
    assert sum(costs.breakdown(**step).values()) == pytest.approx(costs.seconds(**step), rel=1e-9)  # type: ignore[arg-type]


def test_more_ranks_take_less_of_a_large_step() -> None:
    seconds = [_engine("llama-3.1-70b", "fp8", tp).costs.seconds(chunks=[(8192, 0)], finished=1) for tp in (1, 2, 4, 8)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] < 8 * seconds[-1], "collectives and streams are not divided"


def test_one_answer_reads_every_weight_once() -> None:
    engine = _engine("llama-3.1-8b", "bf16", 1)
    seconds = engine.costs.seconds(decodes=1, context=16)
    # 8.03e9 parameters less the embedding table, in two bytes, at 4.8 TB/s: nothing is faster.
    least = 2 * (8_030_261_248 - 128_256 * 4096) / 4.8e12
    assert least < seconds < 2.5 * least


def test_a_prompt_computes_no_faster_than_the_chip() -> None:
    engine = _engine("llama-3.1-8b", "bf16", 1)
    least = 2 * 6.98e9 * 8192 / 989.5e12  # weights of the layers, twice, over the dense rate
    assert least < engine.costs.seconds(chunks=[(8192, 0)]) < 2.2 * least


def test_fp8_weights_are_faster_than_bf16_and_fp4_faster_than_fp8() -> None:
    seconds = [
        served("llama-3.1-70b", preset="dgx-b200", quantisation=word, shape=EngineShape(tp=2)).costs.seconds(
            decodes=8, context=1000
        )
        for word in ("bf16", "fp8", "nvfp4")
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_a_gpu_without_a_rate_unpacks_weights() -> None:
    # A100 has no fp8: weights are read in one byte and multiplied in 16 bit.
    whole, narrow = (
        served(preset="dgx-a100", quantisation=word).costs.seconds(decodes=1, context=100) for word in ("bf16", "fp8")
    )
    assert narrow < whole


def test_experts_that_no_token_visits_are_not_read() -> None:
    costs = _engine("deepseek-v3", "fp8", 8).costs
    one, many = (costs.breakdown(decodes=batch, context=500)["experts"] for batch in (1, 256))
    # 8 of 256 experts against nearly all of them; the kernels' starts keep the ratio below 32.
    assert 6 < many / one < 32


def test_an_expert_parallel_rank_holds_whole_experts() -> None:
    formats = formats_of("fp8", prices_of("deepseek-v3", "dgx-h200").model)
    prices = prices_of("deepseek-v3", "dgx-h200")
    split = prices.rank(EngineShape(tp=8), formats)
    dealt = prices.rank(EngineShape(tp=8, expert_parallel=True), formats)
    assert split.weight_bytes == pytest.approx(dealt.weight_bytes)
    (one,), (other,) = (
        {layer.experts for layer in rank.layers if layer.experts is not None} for rank in (split, dealt)
    )
    assert (one.on_rank, one.inter) == (256, 2048 // 8)
    assert (other.on_rank, other.inter) == (256 // 8, 2048)


def test_a_faster_engine_constant_is_a_faster_step() -> None:
    engine = _engine("llama-3.1-8b", "bf16", 1)
    slow = replace(engine, engine=replace(engine.engine, step_seconds=engine.engine.step_seconds + 1e-3))
    difference = slow.costs.seconds(decodes=4, context=100) - engine.costs.seconds(decodes=4, context=100)
    assert difference == pytest.approx(1e-3)


def test_pipeline_stages_pass_micro_batches() -> None:
    whole, staged = (served("llama-3.1-70b", quantisation="fp8", shape=EngineShape(tp=4, pp=pp)).costs for pp in (1, 2))
    # Few tokens read all weights however they are cut; many are cut in two that pass one after the other.
    assert staged.seconds(decodes=2, context=100) == pytest.approx(whole.seconds(decodes=2, context=100), rel=0.1)
    assert staged.seconds(chunks=[(8192, 0)]) < 0.62 * whole.seconds(chunks=[(8192, 0)])


def test_every_word_is_a_quantisation() -> None:
    model = prices_of("llama-3.1-8b", "dgx-h100").model
    assert all(formats_of(word, model).attention.weight_bytes <= 2 for word in quantisations())


def test_an_unknown_word_is_refused() -> None:
    model = prices_of("llama-3.1-8b", "dgx-h100").model
    with pytest.raises(InputError, match="quantisation 'fp7' is not known"):
        formats_of("fp7", model)


def test_nvfp4_leaves_latent_attention_alone_and_mxfp4_all_but_experts() -> None:
    latent = formats_of("nvfp4", prices_of("deepseek-v3", "dgx-h200").model)
    assert (latent.attention.weight_bytes, latent.experts.weight_bytes) == (2, 0.5625)
    dense = formats_of("nvfp4", prices_of("llama-3.1-70b", "dgx-b200").model)
    assert dense.attention.weight_bytes == dense.feed_forward.weight_bytes == 0.5625
    micro = formats_of("mxfp4", prices_of("gpt-oss-120b", "dgx-h100").model)
    assert (micro.attention.weight_bytes, micro.experts.weight_bytes) == (2, 0.53125)


def test_no_word_is_what_the_weights_are_published_in() -> None:
    assert formats_of("", prices_of("llama-3.1-8b", "dgx-h100").model).name == "bf16"
    assert formats_of("", prices_of("deepseek-v3", "dgx-h200").model).name == "fp8_block"
    assert formats_of("fp4", prices_of("gpt-oss-120b", "dgx-h100").model).name == "mxfp4"
