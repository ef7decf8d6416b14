"""Flops and bytes of operations, by hand."""

from dataclasses import replace

import pytest

from profiles.ops import Attention, Gemm

GEMM = Gemm(m=3, n=5, k=7, dtype="bf16", input_bytes_per_element=2, output_bytes_per_element=4)
ATTENTION = Attention(
    batch=2,
    query_len=4,
    kv_len=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=16,
    dtype="bf16",
    bytes_per_element=2,
    causal=False,
    backward=False,
    fused=True,
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


def test_causal_attention_counts_the_pairs_that_are_seen() -> None:
    pairs = 1 + 2 + 3 + 4
    causal = replace(ATTENTION, causal=True)
    assert causal.flops == 2 * 2 * 2 * 8 * pairs * 16
    # Two queries at the end of four keys see three and four of them.
    assert replace(causal, query_len=2).flops == 2 * 2 * 2 * 8 * (3 + 4) * 16
    # An unfused kernel multiplies the masked half too.
    assert replace(causal, fused=False).flops == replace(ATTENTION, fused=False).flops


def test_attention_traffic_is_q_k_v_and_output_and_unfused_eight_or_four_passes_over_the_scores() -> None:
    tensors = 2 * (2 * 4 * 8 * 16 + 2 * 4 * 2 * 16) * 2
    scores = 2 * 8 * 4 * 4 * 2
    assert ATTENTION.num_bytes == tensors
    assert replace(ATTENTION, backward=True).num_bytes == 2 * tensors
    assert replace(ATTENTION, fused=False).num_bytes == tensors + 4 * scores
    assert replace(ATTENTION, fused=False, backward=True).num_bytes == 2 * tensors + 8 * scores
