"""vLLM's pool of blocks, by hand: groups, pages and what a sequence takes; vLLM's own answers are asked for elsewhere
(`tests/frameworks/test_vllm_cache.py`)."""

from dataclasses import replace

import pytest

from planner.serving.block_pool import BlockPool
from planner.serving_plans.layout import EngineShape
from tests.unit.planner.serving.engines_of import served


def pool(model: str = "llama-3.1-8b", *, tp: int = 1, pp: int = 1, dcp: int = 1) -> BlockPool:
    found = served(model, shape=EngineShape(tp=tp, pp=pp, dcp=dcp)).ledger().pool
    assert found is not None
    return found


def test_layers_that_keep_every_token_are_one_group() -> None:
    found = pool()
    assert found.block_bytes == 16 * 131_072
    assert [found.blocks(tokens) for tokens in (1, 16, 17, 8192)] == [1, 1, 2, 512]
    assert found.start_bytes(16) == 2 * found.block_bytes


def test_stages_hold_the_layers_of_the_fullest() -> None:
    # 32 layers over 3 stages: 11 on the fullest.
    assert pool(pp=3).block_bytes == 11 * 16 * 131_072 / 32


def test_ranks_of_decode_share_the_tokens_of_a_sequence() -> None:
    assert pool("qwen3-235b-a22b", tp=8, dcp=2).blocks(8193) == -(-4097 // 16)


def test_windows_hold_the_steps_in_flight_and_one_block_more() -> None:
    # Two groups of 18 layers. In flight are two steps of 8,192 tokens; the window sees 127 tokens before them.
    found = pool("gpt-oss-120b", tp=4)
    assert found.block_bytes == 18 * 16 * 2 * 2 * 64 * 2
    assert found.blocks(131_072) == 131_072 // 16 + -(-(127 + 16_384) // 16) + 1 == 9_225
    assert found.blocks(1_600) == 100 + 101


def test_states_are_kept_in_groups_as_wide_as_those_of_attention() -> None:
    # 54 states and 10 layers of attention: 6 groups of 9, each of which takes a block of 10 layers three times over.
    found = pool("nemotron-h-56b", tp=4)
    assert found.blocks(8_192) == 6 * 3 + -(-8_192 // 4_128) == 20
    assert found.block_bytes == 10 * 4_128 * 2 * 2 * 128 * 2


def test_a_state_is_kept_once_where_prefixes_are_not() -> None:
    engine = served("nemotron-h-56b", shape=EngineShape(tp=4))
    found = engine.ledger(replace(engine.settings(), prefix_caching=False)).pool
    assert found is not None
    assert found.blocks(8_192) == 6 + 2


def test_a_smaller_page_holds_more_tokens() -> None:
    """Layers with a window have twice the bytes of a token: those that see all take blocks of twice the tokens."""
    found = pool("gemma-4-26b-a4b")
    assert found.blocks(1) == 1 + 5 * 2
    assert {kind.block_tokens for kind in found.groups} == {16, 32}


@pytest.mark.parametrize("name", ["trtllm", "sglang"])
def test_other_engines_are_not_held_to_it(name: str) -> None:
    assert served(engine=name).ledger().pool is None
