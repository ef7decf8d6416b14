"""The steps of one rank: which kernels and collectives it runs, in which order, with which bytes."""

from dataclasses import replace

import pytest

from planner.layout import Granularity, Recompute
from planner.models.bundled import load_bundled
from planner.models.graph import Region, Saved, Weight
from planner.models.layers import build_graph
from planner.ranks.shard import RankLayer, Sharder, rank_saved, rank_weight, shard_layer
from planner.ranks.sharding import Sharding, padded_vocab_size
from planner.ranks.step import Step
from planner.requests.workload import Lora, Precision, TrainMethod, TrainWorkload
from profiles.ops import Collective, CollectiveKind, Gemm
from tests.builders import tiny_dense_model, tiny_workload

GATHER, SCATTER, REDUCE = CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER, CollectiveKind.ALL_REDUCE
MODEL = tiny_dense_model()
TOKENS = 2 * 128
STREAM = TOKENS * 64 * 2


def sharding(tp: int, *, sequence_parallel: bool = False) -> Sharding:
    return Sharding(tp=tp, sequence_parallel=sequence_parallel, micro_batch_size=2, seq_len=128)


def block(tp: int, *, sequence_parallel: bool = False, workload: TrainWorkload | None = None) -> RankLayer:
    graph = build_graph(MODEL, workload or tiny_workload())
    return shard_layer(graph.blocks[MODEL.runs[0].block], sharding(tp, sequence_parallel=sequence_parallel))


def sent(steps: tuple[Step, ...]) -> list[tuple[CollectiveKind, int]]:
    return [(step.collective.kind, step.collective.buffer_bytes) for step in steps if step.collective is not None]


def products(steps: tuple[Step, ...]) -> list[tuple[int, int, int]]:
    return [(step.compute.m, step.compute.n, step.compute.k) for step in steps if isinstance(step.compute, Gemm)]


def test_products_of_a_lone_rank() -> None:
    layer = block(1)
    assert products(layer.forward) == [
        (TOKENS, 128, 64),
        (TOKENS, 64, 64),
        (TOKENS, 320, 64),
        (TOKENS, 64, 160),
    ]
    # In reverse; of each layer the gradient of the input, then of the weight.
    assert products(layer.backward) == [
        (TOKENS, 160, 64),
        (64, 160, TOKENS),
        (TOKENS, 64, 320),
        (320, 64, TOKENS),
        (TOKENS, 64, 64),
        (64, 64, TOKENS),
        (TOKENS, 64, 128),
        (128, 64, TOKENS),
    ]


def test_tensor_parallelism_splits_columns_then_rows() -> None:
    assert products(block(4).forward) == [(TOKENS, 32, 64), (TOKENS, 64, 16), (TOKENS, 80, 64), (TOKENS, 64, 40)]


def test_tensor_parallelism_reduces_twice_each_way() -> None:
    layer = block(2)
    assert sent(layer.forward) == [(REDUCE, STREAM)] * 2
    assert sent(layer.backward) == [(REDUCE, STREAM)] * 2


def test_sequence_parallelism_gathers_and_scatters_and_gathers_again_for_the_weights_gradient() -> None:
    layer = block(2, sequence_parallel=True)
    assert sent(layer.forward) == [(GATHER, STREAM), (SCATTER, STREAM)] * 2
    # Gradient of the output; input again, beside the input's gradient; input's gradient, beside the weight's.
    assert sent(layer.backward) == [(GATHER, STREAM), (GATHER, STREAM), (SCATTER, STREAM)] * 2
    beside = [step for step in layer.backward if step.collective is not None and step.compute is not None]
    assert [step.collective.kind for step in beside if step.collective] == [GATHER, SCATTER] * 2


def test_with_more_ranks_than_key_value_heads_q_k_and_v_are_gathered() -> None:
    # 8 query and 4 key/value heads of 8 over 8 ranks: q, k and v are 128 wide together.
    layer = block(8)
    assert sent(layer.forward) == [(GATHER, TOKENS * 128 * 2), (REDUCE, STREAM), (REDUCE, STREAM)]
    assert sent(layer.backward) == [(REDUCE, STREAM), (SCATTER, TOKENS * 128 * 2), (REDUCE, STREAM)]
    kept = {part.saved.name: part.num_bytes for part in layer.saved}
    assert kept["query"] == kept["key"] == kept["value"] == TOKENS * 8 * 2  # one head each
    assert sent(block(4).forward) == [(REDUCE, STREAM)] * 2


def test_frozen_weights_have_no_gradient_and_their_input_is_not_gathered_again() -> None:
    lora = Lora(rank=4, alpha=8.0, target_modules=("fc2",))
    workload = replace(tiny_workload(), method=TrainMethod.LORA, lora=lora)
    layer = block(2, sequence_parallel=True, workload=workload)
    # The adapter joins its 4 inner features over tp where its product leaves the region.
    thin_stream = TOKENS * 4 * 2
    assert sent(layer.backward) == [
        (GATHER, STREAM),
        (SCATTER, thin_stream),
        (SCATTER, STREAM),
        (GATHER, STREAM),
        (SCATTER, STREAM),
    ]
    frozen = [step.compute for step in layer.backward if isinstance(step.compute, Gemm)]
    assert not any(product.accumulate for product in frozen)
    # fc2's adapter forward, and twice backward.
    thin = [product for product in products((*layer.forward, *layer.backward)) if 4 in product]
    assert thin == [(TOKENS, 4, 80), (TOKENS, 64, 4)] * 3


def test_fp8_quantises_before_each_product_but_where_a_norm_has() -> None:
    plain = block(1)
    fp8 = block(1, workload=replace(tiny_workload(), precision=Precision.FP8_DELAYED))
    assert len(fp8.forward) == len(plain.forward) + 2  # the inputs of both column-parallel layers leave a norm
    assert len(fp8.backward) == len(plain.backward) + 4
    assert {step.compute.dtype for step in fp8.forward if isinstance(step.compute, Gemm)} == {"fp8"}


def test_the_head_reduces_numbers_a_token_over_its_vocabulary_shards() -> None:
    graph = build_graph(MODEL, tiny_workload())
    assert sent(shard_layer(graph.head, sharding(2)).forward) == [(REDUCE, TOKENS * 4)] * 2  # the fused loss
    unfused = build_graph(MODEL, replace(tiny_workload(), precision=Precision.FP16))
    assert sent(shard_layer(unfused.head, sharding(2)).forward) == [(REDUCE, TOKENS * 4)] * 3
    assert sent(shard_layer(graph.head, sharding(1)).forward) == []


def test_the_embedding_sums_the_partial_rows() -> None:
    graph = build_graph(MODEL, tiny_workload())
    whole = shard_layer(graph.embedding, sharding(2))
    assert (sent(whole.forward), sent(whole.backward)) == ([(REDUCE, STREAM)], [])
    split = shard_layer(graph.embedding, sharding(2, sequence_parallel=True))
    assert (sent(split.forward), sent(split.backward)) == ([(SCATTER, STREAM)], [(GATHER, STREAM)])


@pytest.mark.parametrize(
    ("vocab", "tp", "padded"), [(512, 1, 512), (513, 1, 640), (128256, 8, 129024), (50257, 1, 50304), (128, 8, 1024)]
)
def test_the_vocabulary_is_padded_to_128_rows_a_rank(vocab: int, tp: int, padded: int) -> None:
    assert padded_vocab_size(vocab, tp) == padded


def test_collectives_join_neighbouring_ranks() -> None:
    collectives = [step.collective for step in block(4).forward if step.collective is not None]
    assert {(collective.size, collective.stride) for collective in collectives} == {(4, 1)}
    assert all(isinstance(collective, Collective) for collective in collectives)


def test_a_dimension_that_does_not_split_is_an_error_that_names_the_weight() -> None:
    weight = Weight(name="proj weight", shape=(64, 60), split_dim=1, trainable=True)
    with pytest.raises(ValueError, match=r"^proj weight: dimension of 60 cannot be split over 8 ranks$"):
        rank_weight(weight, sharding(8))


def test_a_head_tensor_is_split_by_whole_heads() -> None:
    key = Saved(name="key", features=4 * 8, element_bytes=2, region=Region.SHARDED, granule=8)
    assert [rank_saved(key, sharding(tp)).num_bytes // (TOKENS * 2) for tp in (1, 2, 4, 8)] == [32, 16, 8, 8]


def test_a_backward_pass_stops_once_for_each_module_norm_or_layer_that_it_runs_again() -> None:
    def regions(name: str, *modules: str) -> int:
        model = load_bundled(name)
        layers = build_graph(model, tiny_workload()).blocks[model.runs[-1].block]
        return shard_layer(layers, sharding(1)).num_regions(
            Recompute(granularity=Granularity.SELECTIVE, modules=modules)
        )

    assert regions("mixtral-8x7b", "moe") == 1
    assert regions("mixtral-8x7b", "moe_act", "layernorm") == 2
    assert regions("mixtral-8x7b", "core_attn", "mlp") == 1  # there is no dense feed-forward
    assert regions("deepseek-v3", "layernorm") == 2  # in front of latent attention, and of the experts
    assert block(1).num_regions(Recompute(granularity=Granularity.FULL)) == 1
    assert block(1).num_regions(Recompute(granularity=Granularity.NONE)) == 0


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3.5-35b-a3b", "llama-3.2-1b"])
def test_parts_that_shardings_and_layers_share_add_up_to_the_layer_cut_whole(name: str) -> None:
    graph = build_graph(load_bundled(name), tiny_workload())
    sharder = Sharder()
    choices = [Recompute(granularity=granularity) for granularity in (Granularity.NONE, Granularity.FULL)]
    choices += [Recompute(granularity=Granularity.SELECTIVE, modules=(module,)) for module in sorted(graph.modules)]
    plain = Sharding(tp=1, sequence_parallel=False, micro_batch_size=2, seq_len=1024)
    shared = 0
    for cut in (
        plain,
        replace(plain, tp=2, sequence_parallel=True),
        replace(plain, cp=2, ulysses=2),
        replace(plain, micro_batch_size=1, cp=2),
        replace(plain, ep=4, routing_skew=1.25, peak_skew=1.5),
        replace(plain, tp=2, ep=2, etp=2),
    ):
        for layer in graph.layers:
            in_parts, whole = sharder.layer(layer, cut), shard_layer(layer, cut)
            shared += sum(part.alike is not None for part in in_parts.parts)
            assert in_parts.counts == whole.counts
            assert in_parts.transient_bytes == whole.transient_bytes
            for choice in choices:
                assert in_parts.saved_bytes(choice) == whole.saved_bytes(choice)
                assert in_parts.num_regions(choice) == whole.num_regions(choice)
            of_logits = [sorted(part.num_bytes for part in of.saved_as("logits")) for of in (in_parts, whole)]
            assert of_logits[0] == of_logits[1]
    assert (shared > 0) == (len(graph.blocks) > 1), "layers of one kind have nothing to share with another"
