"""Flops and bytes of operations, by hand."""

from dataclasses import replace

import pytest

from profiles.ops import Attention, Gemm, StateScan

GEMM = Gemm(m=3, n=5, k=7, dtype="bf16", input_bytes_per_element=2, output_bytes_per_element=4)
ATTENTION = Attention(
    batch=2,
    query_len=4,
    kv_len=4,
    pairs=16,
    num_heads=8,
    num_kv_heads=2,
    qk_head_dim=16,
    v_head_dim=16,
    dtype="bf16",
    bytes_per_element=2,
    backward=False,
    fused=True,
)
SCAN = StateScan(
    tokens=100,
    num_heads=8,
    num_groups=2,
    key_dim=16,
    value_dim=32,
    chunk_size=64,
    corrects=False,
    io_bytes_per_token=1000,
    dtype="bf16",
    backward=False,
)


def test_a_product_has_two_flops_a_multiply_add_and_touches_each_operand_once() -> None:
    assert GEMM.flops == 2 * 3 * 5 * 7
    assert GEMM.num_bytes == 2 * (3 * 7 + 7 * 5) + 4 * 3 * 5


def test_an_accumulated_result_is_read_too() -> None:
    assert replace(GEMM, accumulate=True).num_bytes - GEMM.num_bytes == 4 * 3 * 5


def test_a_batch_of_products_is_that_many_times_one() -> None:
    many = replace(GEMM, batch=6)
    assert (many.flops, many.num_bytes) == (6 * GEMM.flops, 6 * GEMM.num_bytes)


@pytest.mark.parametrize(
    ("backward", "fused", "products"), [(False, True, 2), (False, False, 2), (True, True, 5), (True, False, 4)]
)
def test_attention_has_two_products_forward_and_four_or_five_backward(
    backward: bool, fused: bool, products: int
) -> None:
    operation = replace(ATTENTION, backward=backward, fused=fused)
    assert operation.flops == products * 2 * 2 * 8 * 4 * 4 * 16


def test_attention_counts_the_pairs_that_are_seen() -> None:
    causal = replace(ATTENTION, pairs=1 + 2 + 3 + 4)
    assert causal.flops == 2 * 2 * 2 * 8 * 10 * 16
    # Two queries at the end of four keys see three and four of them.
    assert replace(causal, query_len=2, pairs=3 + 4).flops == 2 * 2 * 2 * 8 * 7 * 16
    # An unfused kernel multiplies what the mask hides too.
    assert replace(causal, fused=False).flops == replace(ATTENTION, fused=False).flops


@pytest.mark.parametrize(
    ("backward", "fused", "over_keys", "over_values"),
    [(False, True, 1, 1), (False, False, 1, 1), (True, True, 3, 2), (True, False, 2, 2)],
)
def test_products_over_keys_and_over_values_have_their_own_widths(
    backward: bool, fused: bool, over_keys: int, over_values: int
) -> None:
    latent = replace(ATTENTION, qk_head_dim=24, v_head_dim=16, backward=backward, fused=fused)
    assert latent.flops == 2 * 2 * 8 * 16 * (over_keys * 24 + over_values * 16)
    scores_alone = replace(latent, v_head_dim=0)
    assert scores_alone.flops == 2 * 2 * 8 * 16 * over_keys * 24


def test_attention_traffic_is_q_k_v_and_output_and_the_scores_are_counted_apart() -> None:
    tensors = 2 * (2 * 4 * 8 * 16 + 2 * 4 * 2 * 16) * 2
    scores = 2 * 8 * 4 * 4 * 2
    assert ATTENTION.num_bytes == tensors
    assert replace(ATTENTION, backward=True).num_bytes == 2 * tensors
    assert replace(ATTENTION, fused=False).num_bytes == tensors
    assert ATTENTION.score_bytes == scores


def test_traffic_of_queries_and_keys_has_their_width_of_values_and_output_theirs() -> None:
    latent = replace(ATTENTION, qk_head_dim=24, v_head_dim=16, query_len=2)
    assert latent.num_bytes == 2 * (2 * 8 + 4 * 2) * (24 + 16) * 2


def test_a_recurrence_scores_inside_chunks_applies_the_scores_and_moves_states() -> None:
    scores = 2 * 64 * 2 * 16  # of each group, over the keys
    applied = 2 * 64 * 8 * 32  # of each head, over the values
    states = 4 * 8 * 16 * 32  # written and read
    assert SCAN.flops == 100 * (scores + applied + states)
    assert replace(SCAN, backward=True).flops == 3 * SCAN.flops


def test_a_delta_rule_scores_keys_against_keys_and_corrects_both_results() -> None:
    more = 2 * 64 * 8 * 16 + 2 * 64 * 8 * (16 + 32)
    assert replace(SCAN, corrects=True).flops - SCAN.flops == 100 * more


def test_a_recurrence_touches_its_inputs_and_one_state_a_chunk() -> None:
    assert SCAN.num_bytes == 100 * (1000 + 2 * 4 * 8 * 16 * 32 // 64)
    assert replace(SCAN, backward=True).num_bytes == 2 * SCAN.num_bytes
