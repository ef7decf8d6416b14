"""What measured stacks keep for backward, byte by byte."""

from dataclasses import replace
from typing import Any

import pytest

from planner.accuracy.kept import EVERY_MODULE, with_composed_norms, with_copies, with_products_kept
from planner.frameworks.capabilities import ANY
from planner.layout import Layout
from planner.models.blocks import DenseFeedForward, MixtureOfExperts, Router
from planner.models.bundled import load_bundled
from planner.models.graph import ModelGraph
from planner.models.layers import build_graph
from planner.models.specs import BlockRun
from planner.ranks.placement import place
from planner.ranks.shard import RankLayer
from planner.requests.workload import AttentionKernel, Precision, TrainWorkload
from tests.builders import tiny_dense_model, tiny_layout

LLAMA_8B = load_bundled("llama-3.1-8b")
RUN = TrainWorkload(seq_len=2048, global_batch_size=16, precision=Precision.BF16)
TOKENS = 2048 * 2


def layer_of(graph: ModelGraph, workload: TrainWorkload = RUN, **changes: Any) -> RankLayer:
    layout: Layout = replace(tiny_layout(), tp=1, sequence_parallel=False, dp=4, micro_batch_size=2, **changes)
    return place(LLAMA_8B, graph, layout, workload, ANY).rank_model.layers[0]


def test_selective_checkpointing_keeps_every_second_product_and_attention() -> None:
    graph = build_graph(LLAMA_8B, RUN)
    products = {"query": 4096, "value": 1024, "gate": 14_336, "down": 4096}
    attention = 4096 * 2 + 32 * 4  # output in 16 bit, log-sum-exp of 32 heads in fp32
    for compiled in (False, True):
        kept = with_products_kept(graph, LLAMA_8B, RUN, compiled=compiled)
        assert kept is not None
        layer = layer_of(kept)
        features = sum(products.values()) - (products["down"] if compiled else 0)
        assert layer.saved_bytes(EVERY_MODULE) == TOKENS * (2 * (features + 4096) + attention)
        # Everything else is there again while the layer runs backward.
        again = layer.all_saved_bytes - layer.saved_bytes(EVERY_MODULE)
        assert again == layer_of(graph).all_saved_bytes - TOKENS * attention


def test_selective_checkpointing_of_other_blocks_is_not_known() -> None:
    dense = tiny_dense_model().runs[0].block
    assert isinstance(dense.feed_forward, DenseFeedForward)
    mixture = MixtureOfExperts(num_experts=4, experts_per_token=2, expert=dense.feed_forward, router=Router())
    model = replace(tiny_dense_model(), runs=(BlockRun(block=replace(dense, feed_forward=mixture), count=4),))
    assert with_products_kept(build_graph(model, RUN), model, RUN, compiled=True) is None


def test_a_norm_that_is_written_out_keeps_six_bytes_more_an_element() -> None:
    graph = build_graph(LLAMA_8B, RUN, eager=True)
    more = layer_of(with_composed_norms(graph)).all_saved_bytes - layer_of(graph).all_saved_bytes
    assert more == 2 * TOKENS * 4096 * (4 + 2)


def test_sequences_beside_one_another_cost_a_copy_of_the_attention_output() -> None:
    graph = build_graph(LLAMA_8B, RUN, eager=True)
    one, two = (layer_of(with_copies(graph, sequences=count, gathered=False)).all_saved_bytes for count in (1, 2))
    assert one == layer_of(graph).all_saved_bytes
    assert two - one == TOKENS * 4096 * 2


def test_unfused_attention_keeps_five_bytes_a_score() -> None:
    workload = replace(RUN, attention_kernel=AttentionKernel.UNFUSED)
    graph = with_copies(build_graph(LLAMA_8B, workload, eager=True), sequences=2, gathered=False)
    saved = {part.saved.name: part.num_bytes for part in layer_of(graph, workload).saved}
    scores = sum(saved[name] for name in ("softmax output", "attention dropout mask", "attention dropout output"))
    assert scores == 5 * 32 * 2 * 2048**2
    assert saved["query"] == TOKENS * 4096 * 2


@pytest.mark.parametrize("tp", [2, 4])
def test_gathered_norm_outputs_are_kept_whole(tp: int) -> None:
    graph = build_graph(LLAMA_8B, RUN, eager=True)
    layout = replace(tiny_layout(), tp=tp, sequence_parallel=True, dp=4 // tp * 2, micro_batch_size=2)
    kept = [
        place(LLAMA_8B, with_copies(graph, sequences=1, gathered=gathered), layout, RUN, ANY).rank_model.layers[0]
        for gathered in (False, True)
    ]
    assert kept[1].all_saved_bytes - kept[0].all_saved_bytes == 2 * TOKENS * 4096 * 2 * (tp - 1) // tp
