"""The memory of engines: tokens of cache by hand, copies under tensor parallelism, verdicts."""

from dataclasses import replace

import pytest

from planner.serving_plans.layout import EngineShape
from tests.unit.planner.serving.engines_of import served


def test_a_token_of_llama_8b_takes_128_kib() -> None:
    # 2 x 8 heads x 128 x 2 bytes x 32 layers
    assert served().ledger().token_bytes == 2 * 8 * 128 * 2 * 32 == 131_072


def test_an_fp8_cache_takes_half() -> None:
    assert served(cache="fp8").ledger().token_bytes == 65_536


@pytest.mark.parametrize(("tp", "part"), [(1, 1.0), (2, 0.5), (8, 0.125)])
def test_tensor_parallelism_divides_the_cache_of_grouped_heads(tp: int, part: float) -> None:
    assert served(shape=EngineShape(tp=tp)).ledger().token_bytes == 131_072 * part


def test_fewer_heads_than_ranks_are_copied() -> None:
    # Qwen3-235B has 4 key/value heads: 8 ranks hold each twice.
    four, eight = (served("qwen3-235b-a22b", shape=EngineShape(tp=tp)).ledger().token_bytes for tp in (4, 8))
    assert four == eight == 2 * 1 * 128 * 2 * 94


def test_a_latent_is_whole_on_every_rank_and_data_parallelism_divides_it() -> None:
    # (512 + 64) numbers x 2 bytes x 61 layers on each rank.
    tensor = served("deepseek-v3", preset="dgx-h200", quantisation="fp8", shape=EngineShape(tp=8)).ledger()
    data = served(
        "deepseek-v3", preset="dgx-h200", quantisation="fp8", shape=EngineShape(tp=1, dp=8, expert_parallel=True)
    ).ledger()
    assert tensor.token_bytes == data.token_bytes == (512 + 64) * 2 * 61
    # Eight ranks that each hold other sequences: eight times the tokens for the same bytes. vLLM's users report 7.7
    # (vllm-project/vllm issue 51454), where attention's weights, whole on each rank, take some of it.
    copies = 8 * data.pool_tokens(8192) / tensor.pool_tokens(8192)
    same_bytes = copies * tensor.pool_bytes / data.pool_bytes
    assert same_bytes == pytest.approx(8.0, rel=1e-3)
    assert 5.0 < copies < 8.0


def test_context_parallel_decode_divides_the_latent() -> None:
    whole = served("deepseek-v3", preset="dgx-h200", quantisation="fp8", shape=EngineShape(tp=8)).ledger()
    parts = served("deepseek-v3", preset="dgx-h200", quantisation="fp8", shape=EngineShape(tp=8, dcp=8)).ledger()
    assert parts.token_bytes == whole.token_bytes / 8


def test_layers_with_a_window_keep_the_window() -> None:
    ledger = served("gpt-oss-120b", quantisation="mxfp4").ledger()
    # 18 layers see all, 18 see 128 tokens; 2 x 8 heads x 64 x 2 bytes a layer.
    assert ledger.token_bytes == 18 * 2 * 8 * 64 * 2
    grown = ledger.sequence_bytes(100_000) - ledger.sequence_bytes(50_000)
    assert grown == pytest.approx(50_000 * ledger.token_bytes, rel=1e-3)


def test_recurrent_states_do_not_grow_and_widen_blocks() -> None:
    ledger = served("qwen3.5-397b-a17b", preset="dgx-h200", quantisation="fp8", shape=EngineShape(tp=8)).ledger()
    attention = served("qwen3-235b-a22b", preset="dgx-h200", quantisation="fp8", shape=EngineShape(tp=8)).ledger()
    assert ledger.state_bytes > 0
    assert attention.state_bytes == 0
    assert ledger.block_tokens > attention.block_tokens == 16
    # A quarter of its 60 layers cache tokens: counting all of them would be four times too much.
    assert ledger.token_bytes == 15 * 2 * 1 * 256 * 2


def test_a_sequence_takes_whole_blocks() -> None:
    ledger = served().ledger()
    assert ledger.sequence_bytes(1) == ledger.sequence_bytes(16) == 16 * ledger.token_bytes
    assert ledger.sequence_bytes(17) == 32 * ledger.token_bytes


def test_lines_and_pool_sum_to_the_share_of_the_memory() -> None:
    engine = served()
    ledger = engine.ledger()
    memory = engine.prices.cluster.device.memory_bytes
    assert sum(line.num_bytes for line in ledger.lines) + ledger.pool_bytes == int(memory * 0.92)
    assert all(line.source for line in ledger.lines)


def test_weights_are_those_of_the_model() -> None:
    weights = next(line for line in served().ledger().lines if line.name == "weights")
    assert weights.num_bytes == pytest.approx(2 * 8_030_261_248, rel=1e-3)


def test_the_longest_sequence_that_just_fits_fits_and_one_block_more_does_not() -> None:
    engine = served()
    # One block is never given out.
    most = int(engine.ledger().pool_bytes // (16 * 131_072) - 1) * 16
    assert engine.ledger(max_model_len=most).fits
    too_long = engine.ledger(max_model_len=most + 1)
    assert not too_long.fits
    assert 0 < too_long.shortfall_bytes <= 16 * 131_072


def test_more_batched_tokens_leave_less_cache() -> None:
    engine = served()
    few, many = (
        engine.ledger(replace(engine.settings(), max_num_batched_tokens=tokens)).pool_bytes for tokens in (2048, 16_384)
    )
    # 14,336 tokens of four streams of 4,096 and one and a half of gate and up projection, in two bytes.
    assert few - many == 14_336 * 2 * (4 * 4096 + 1.5 * 2 * 14_336)


@pytest.mark.parametrize(
    ("model", "preset", "quantisation", "tp"),
    [
        ("llama-3.1-70b", "dgx-h100", "bf16", 1),
        ("llama-3.1-70b", "dgx-a100", "bf16", 1),
        ("llama-3.1-70b", "l40s-pcie-4", "bf16", 2),
        ("llama-3.1-70b", "l40s-pcie-4", "fp8", 1),
        ("llama-3.1-405b", "dgx-h100", "bf16", 8),
        ("llama-3.1-405b", "dgx-h100", "fp8", 4),
        ("llama-3.1-405b", "dgx-h200", "bf16", 4),
        ("llama-3.1-405b", "dgx-b200", "bf16", 4),
        ("deepseek-v3", "dgx-h100", "fp8", 8),
        ("deepseek-v3", "dgx-h200", "fp8", 4),
        ("deepseek-v3", "dgx-b200", "fp8", 2),
        ("deepseek-v3", "dgx-b200", "bf16", 4),
        ("qwen3-235b-a22b", "dgx-h100", "bf16", 4),
        ("qwen3-235b-a22b", "dgx-h100", "fp8", 2),
        ("qwen3-235b-a22b", "dgx-h200", "bf16", 2),
        ("mixtral-8x22b", "dgx-h100", "bf16", 2),
        ("mixtral-8x7b", "dgx-h100", "bf16", 1),
        ("minimax-m2.5", "dgx-h100", "fp8", 2),
        ("gpt-oss-120b", "l40s-pcie-4", "mxfp4", 1),
        ("qwen3.5-397b-a17b", "dgx-h100", "fp8", 4),
    ],
)
def test_weights_larger_than_the_memory_do_not_fit(model: str, preset: str, quantisation: str, tp: int) -> None:
    engine = served(model, preset=preset, quantisation=quantisation, shape=EngineShape(tp=tp))
    ledger = engine.ledger()
    assert not ledger.fits
    assert ledger.shortfall_bytes > 0


@pytest.mark.parametrize(
    ("model", "preset", "quantisation", "tp"),
    [
        ("llama-3.1-8b", "dgx-h100", "bf16", 1),
        ("qwen3-32b", "dgx-h100", "bf16", 1),
        ("gpt-oss-120b", "dgx-h100", "mxfp4", 1),
        ("deepseek-v3", "dgx-h200", "fp8", 8),
        ("llama-3.1-405b", "dgx-h100", "fp8", 8),
    ],
)
def test_what_people_run_fits(model: str, preset: str, quantisation: str, tp: int) -> None:
    assert served(model, preset=preset, quantisation=quantisation, shape=EngineShape(tp=tp)).ledger().fits


def test_pipeline_stages_divide_weights_and_cache() -> None:
    whole, half = (
        served("llama-3.1-70b", quantisation="fp8", shape=EngineShape(tp=4, pp=pp)).ledger() for pp in (1, 2)
    )
    assert half.token_bytes == whole.token_bytes / 2
    assert half.lines[0].num_bytes < 0.55 * whole.lines[0].num_bytes


def test_the_share_of_the_memory_decides_the_pool() -> None:
    engine = served()
    memory = engine.prices.cluster.device.memory_bytes
    pools = [engine.ledger(replace(engine.settings(), gpu_memory_utilization=share)).pool_bytes for share in (0.5, 0.9)]
    assert pools[1] - pools[0] == pytest.approx(0.4 * memory, abs=2)


def test_trtllm_gives_the_cache_nine_tenths_of_what_is_left() -> None:
    engine = served(engine="trtllm")
    ledger = engine.ledger()
    left = engine.prices.cluster.device.memory_bytes - ledger.held_bytes
    assert ledger.pool_bytes == pytest.approx(0.9 * left, abs=2)
