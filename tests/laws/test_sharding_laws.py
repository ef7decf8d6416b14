"""What is split over tensor-parallel ranks adds up to the whole, plus what is declared to be replicated or padded."""

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.models.blocks import SelfAttention
from planner.models.graph import LayerGraph, Linear, Parallel, Region
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.ranks.shard import RankLayer, shard_layer
from planner.ranks.sharding import Sharding, padded_vocab_size
from planner.requests.workload import AttentionKernel, TrainWorkload
from profiles.ops import Attention, Gemm
from tests.small_spaces import legal_tensor_degrees, models, workloads

LAWS = settings(max_examples=50, deadline=None, derandomize=True)
MICRO_BATCH_SIZE = 2


def sharding(workload: TrainWorkload, tp: int, *, sequence_parallel: bool) -> Sharding:
    return Sharding(
        tp=tp,
        sequence_parallel=sequence_parallel,
        micro_batch_size=MICRO_BATCH_SIZE,
        seq_len=workload.seq_len,
    )


def shares(
    model: ModelSpec, workload: TrainWorkload, tp: int, *, sequence_parallel: bool
) -> list[tuple[LayerGraph, RankLayer, RankLayer]]:
    """Return each kind of layer with its only rank's share, and one of `tp` ranks' share."""
    graph = build_graph(model, workload)
    one = sharding(workload, 1, sequence_parallel=False)
    many = sharding(workload, tp, sequence_parallel=sequence_parallel)
    layers = (graph.embedding, *graph.blocks.values(), graph.head)
    return [(layer, shard_layer(layer, one), shard_layer(layer, many)) for layer in layers]


@LAWS
@given(model=models(), workload=workloads(), data=st.data())
def test_sharded_weights_sum_to_the_whole_plus_declared_replicas_and_padding(
    model: ModelSpec, workload: TrainWorkload, data: st.DataObject
) -> None:
    tp = data.draw(st.sampled_from(legal_tensor_degrees(model)))
    padding = padded_vocab_size(model.vocab_size, tp) - model.vocab_size
    assert 0 <= padding < 128 * tp
    for layer, _, rank in shares(model, workload, tp, sequence_parallel=False):
        replicas = sum(weight.num_elements for weight in layer.weights if weight.split_dim is None)
        rows = sum(weight.num_elements // model.vocab_size for weight in layer.weights if weight.vocab_dim is not None)
        whole = sum(weight.num_elements for weight in layer.weights)
        assert tp * rank.elements().dense == whole + (tp - 1) * replicas + padding * rows


@LAWS
@given(model=models(), workload=workloads(), data=st.data())
def test_sharded_flops_sum_to_the_whole_plus_padding_and_replicated_adapter_halves(
    model: ModelSpec, workload: TrainWorkload, data: st.DataObject
) -> None:
    tp = data.draw(st.sampled_from(legal_tensor_degrees(model)))
    tokens = MICRO_BATCH_SIZE * workload.seq_len
    for layer, one, rank in shares(model, workload, tp, sequence_parallel=data.draw(st.booleans())):
        declared = 0
        for work in (operator.work for operator in layer.operators):
            if not isinstance(work, Linear):
                continue
            # A of a column-parallel layer and B of a row-parallel one are whole on every rank.
            whole = work.in_features if work.parallel is Parallel.COLUMN else work.out_features
            declared += (tp - 1) * 3 * 2 * tokens * work.adapter_rank * whole  # once forward, twice backward
            if work.vocab_output:
                grown = padded_vocab_size(model.vocab_size, tp) - padded_vocab_size(model.vocab_size, 1)
                declared += (2 + work.trains_weight) * 2 * tokens * work.in_features * grown
        assert tp * product_flops(rank) == product_flops(one) + declared


def product_flops(layer: RankLayer) -> int:
    """Return the flops of linear layers, forward and backward, and of attention forward."""
    forward = sum(step.compute.flops for step in layer.forward if isinstance(step.compute, Gemm | Attention))
    return forward + sum(step.compute.flops for step in layer.backward if isinstance(step.compute, Gemm))


@LAWS
@given(model=models(), workload=workloads(), data=st.data())
def test_saved_tensors_sum_to_the_whole_where_they_are_split(
    model: ModelSpec, workload: TrainWorkload, data: st.DataObject
) -> None:
    tp = data.draw(st.sampled_from(legal_tensor_degrees(model)))
    sequence_parallel = data.draw(st.booleans())
    whole_names = set()
    for (layer, one, rank), block in zip(
        shares(model, workload, tp, sequence_parallel=sequence_parallel),
        (None, *model.distinct_blocks, None),
        strict=True,
    ):
        groups = 1
        if block is not None:
            assert isinstance(block.mixer, SelfAttention)
            groups = block.mixer.num_key_value_heads
        for whole, part in zip(one.saved, rank.saved, strict=True):
            assert whole.saved == part.saved
            if part.saved.region is Region.RESIDUAL:
                copies = 1 if sequence_parallel else tp
            elif part.saved.name in ("key", "value") and workload.attention_kernel is not AttentionKernel.UNFUSED:
                copies = max(tp // groups, 1)  # each rank holds at least one key/value head
            elif part.saved.name == "key norm input":
                copies = max(tp // groups, 1)
            elif part.saved.vocab_features:
                rows = [padded_vocab_size(model.vocab_size, ranks) for ranks in (1, tp)]
                assert tp * part.num_bytes * rows[0] == whole.num_bytes * rows[1]
                continue
            else:
                copies = 1
                whole_names.add(part.saved.name)
            assert tp * part.num_bytes == copies * whole.num_bytes, (layer.name, part.saved.name)
    assert "query" in whole_names


@LAWS
@given(model=models(), workload=workloads(), data=st.data())
def test_sequence_parallelism_moves_bytes_but_adds_no_products(
    model: ModelSpec, workload: TrainWorkload, data: st.DataObject
) -> None:
    tp = data.draw(st.sampled_from(legal_tensor_degrees(model)))
    plain = shares(model, workload, tp, sequence_parallel=False)
    split = shares(model, workload, tp, sequence_parallel=True)
    for (_, _, without), (_, _, with_it) in zip(plain, split, strict=True):
        assert product_flops(without) == product_flops(with_it)
        assert without.elements() == with_it.elements()
        assert without.all_saved_bytes >= with_it.all_saved_bytes


@LAWS
@given(model=models(), workload=workloads())
def test_one_rank_sends_nothing(model: ModelSpec, workload: TrainWorkload) -> None:
    for _, alone, _ in shares(model, workload, 1, sequence_parallel=False):
        assert all(step.collective is None for step in (*alone.forward, *alone.backward))
