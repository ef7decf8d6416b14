"""What builders make of each kind of layer, against closed forms in the layer's own sizes."""

import re
from dataclasses import replace

import pytest

from planner.models.blocks import (
    Activation,
    Block,
    LatentAttention,
    LinearAttention,
    LinearRule,
    MixtureOfExperts,
    QueryKeyNorm,
    Router,
    SelfAttention,
    SparseIndexer,
    StateSpace,
)
from planner.models.bundled import load_bundled, model_names
from planner.models.graph import (
    Axis,
    Combine,
    CoreAttention,
    Dispatch,
    ExpertLinear,
    LayerGraph,
    Linear,
    Mesh,
    Module,
    Parallel,
    Pointwise,
    Region,
    Saved,
    StateScan,
)
from planner.models.layers import build_graph
from planner.models.required_flops import layer_flops
from planner.models.specs import ModelSpec, MultiTokenPrediction
from planner.requests.workload import (
    DocumentLengths,
    Lora,
    Packing,
    Precision,
    TrainMethod,
    TrainWorkload,
    causal_pairs,
    chunk_pairs,
    window_pairs,
)
from tests.oracle.published_shapes import decoder, swiglu

HIDDEN, SEQ_LEN, BF16_BYTES, FP32_BYTES = 64, 128, 2, 4
RUN = TrainWorkload(seq_len=SEQ_LEN, global_batch_size=8, precision=Precision.BF16)
LORA = replace(RUN, method=TrainMethod.LORA, lora=Lora(rank=4, alpha=8.0, target_modules=("qkv", "proj", "fc1", "fc2")))
ATTENTION = SelfAttention(num_attention_heads=8, num_key_value_heads=2, head_dim=16)
LATENT = LatentAttention(
    num_attention_heads=8, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=6, v_head_dim=10
)
MAMBA = StateSpace(num_heads=8, head_dim=16, state_size=20, num_groups=2, conv_kernel=4, chunk_size=32)
DELTA = LinearAttention(
    rule=LinearRule.GATED_DELTA,
    num_key_heads=4,
    num_value_heads=8,
    key_head_dim=16,
    value_head_dim=12,
    conv_kernel=4,
)
EXPERTS = MixtureOfExperts(num_experts=6, experts_per_token=2, expert=swiglu(40), router=Router())


def model_of(block: Block, *, mtp: MultiTokenPrediction | None = None) -> ModelSpec:
    return decoder((block, 2), hidden_size=HIDDEN, vocab_size=512, mtp=mtp)


def layer_of(block: Block, workload: TrainWorkload = RUN) -> LayerGraph:
    return build_graph(model_of(block), workload).blocks[block]


def saved_of(layer: LayerGraph) -> dict[str, Saved]:
    return {saved.name: saved for operator in layer.operators for saved in operator.saved}


def bytes_per_token(saved: dict[str, Saved], region: Region) -> int:
    return sum(part.features * part.element_bytes for part in saved.values() if part.region is region)


def core_of(layer: LayerGraph, name: str = "core attention") -> CoreAttention:
    work = next(operator.work for operator in layer.operators if operator.name == name)
    assert isinstance(work, CoreAttention)
    return work


@pytest.mark.parametrize(
    ("mixer", "pairs", "local"),
    [
        (ATTENTION, causal_pairs(SEQ_LEN), False),
        (replace(ATTENTION, window=32), window_pairs(SEQ_LEN, 32), True),
        (replace(ATTENTION, chunk=48), chunk_pairs(SEQ_LEN, 48), True),
    ],
)
def test_a_mask_decides_the_pairs(mixer: SelfAttention, pairs: int, *, local: bool) -> None:
    core = core_of(layer_of(Block(mixer=mixer, feed_forward=swiglu(96))))
    assert (core.pairs, core.local) == (pairs, local)


def test_packed_documents_narrow_a_window_further() -> None:
    halves = DocumentLengths(lengths=(SEQ_LEN // 2,), weights=(1.0,), packing=Packing.PACKED)
    block = Block(mixer=replace(ATTENTION, window=32), feed_forward=swiglu(96))
    assert core_of(layer_of(block, replace(RUN, documents=halves))).pairs == 2 * window_pairs(SEQ_LEN // 2, 32)


def test_unrotated_attention_has_no_rotary_kernel() -> None:
    names = {operator.name for operator in layer_of(Block(mixer=ATTENTION, feed_forward=swiglu(96))).operators}
    bare = Block(mixer=replace(ATTENTION, rotary=False), feed_forward=swiglu(96))
    assert names - {operator.name for operator in layer_of(bare).operators} == {"rotary"}


def test_an_output_gate_keeps_itself_and_its_product() -> None:
    plain = saved_of(layer_of(Block(mixer=ATTENTION, feed_forward=swiglu(96))))
    gated = saved_of(layer_of(Block(mixer=replace(ATTENTION, output_gate=True), feed_forward=swiglu(96))))
    assert gated.keys() - plain.keys() == {"output gate", "gated attention output"}
    assert gated["output gate"].features == gated["gated attention output"].features == ATTENTION.query_size


def test_values_made_from_keys_share_the_norms_input() -> None:
    mixer = replace(ATTENTION, shared_key_value=True, value_norm=True, qk_norm=QueryKeyNorm.HEAD)
    layer = layer_of(Block(mixer=mixer, feed_forward=swiglu(96)))
    assert "value norm input" not in saved_of(layer)
    qkv = next(operator.work for operator in layer.operators if operator.name == "qkv")
    assert isinstance(qkv, Linear)
    assert qkv.out_features == ATTENTION.query_size + ATTENTION.key_value_size


@pytest.mark.parametrize("name", model_names())
def test_every_norm_says_that_it_is_one(name: str) -> None:
    for layer in build_graph(load_bundled(name), RUN).layers:
        for operator in layer.operators:
            if isinstance(operator.work, Pointwise):
                assert operator.work.is_norm == (re.search(r"\bnorm\b", operator.name) is not None), operator.name


def test_a_norm_behind_a_sub_block_keeps_what_it_reads() -> None:
    block = Block(mixer=ATTENTION, feed_forward=swiglu(96), num_norms=0, num_post_norms=2)
    saved = saved_of(layer_of(block))
    assert {"attention post norm input", "feed-forward post norm input"} <= saved.keys()
    # Without a norm in front the projections read the stream itself, which recomputing the MLP cannot produce.
    assert saved["feed-forward input"].dropped_by == ()


def test_an_indexer_scores_every_pair_and_leaves_few_to_attention() -> None:
    indexer = SparseIndexer(num_heads=4, head_dim=14, top_k=32)
    layer = layer_of(Block(mixer=replace(LATENT, indexer=indexer), feed_forward=swiglu(96)))
    scores, core = core_of(layer, "indexer scores"), core_of(layer)
    assert (scores.num_heads, scores.num_kv_heads, scores.v_head_dim) == (4, 1, 0)
    assert (scores.pairs, core.pairs) == (causal_pairs(SEQ_LEN), window_pairs(SEQ_LEN, 32))
    saved = saved_of(layer)
    assert saved["chosen keys"].features == 32
    # The latents' norms stand outside the up projections, which the indexer reads too.
    assert saved["query latent norm output"].dropped_by == ()
    assert saved["query"].dropped_by == (Module.MLA_UP_PROJECTION,)


def test_a_gradient_stops_at_the_indexer() -> None:
    layer = layer_of(
        Block(mixer=replace(LATENT, indexer=SparseIndexer(num_heads=4, head_dim=14, top_k=32)), feed_forward=None)
    )
    linears = {operator.name: operator.work for operator in layer.operators if isinstance(operator.work, Linear)}
    assert {name for name, work in linears.items() if not work.needs_input_gradient} == {
        name for name in linears if name.startswith("indexer")
    }


def test_flops_of_experts_are_those_of_a_dense_layer_as_wide_as_the_visited() -> None:
    sparse = Block(mixer=ATTENTION, feed_forward=replace(EXPERTS, shared=swiglu(48)))
    dense = Block(mixer=ATTENTION, feed_forward=swiglu(2 * 40 + 48))
    router = 6 * SEQ_LEN * HIDDEN * EXPERTS.num_experts
    assert layer_flops(layer_of(sparse), SEQ_LEN) == layer_flops(layer_of(dense), SEQ_LEN) + router


def test_latent_experts_travel_and_multiply_at_the_latent_width() -> None:
    layer = layer_of(Block(mixer=None, feed_forward=replace(EXPERTS, latent_size=24), num_norms=1))
    works = [operator.work for operator in layer.operators]
    assert {work.features for work in works if isinstance(work, Dispatch | Combine)} == {24}
    shapes = [(work.in_features, work.out_features) for work in works if isinstance(work, ExpertLinear)]
    assert shapes == [(24, 2 * 40), (40, 24)]


def test_expert_weights_stand_on_the_experts_grid_and_split_over_both_degrees() -> None:
    layer = layer_of(
        Block(mixer=ATTENTION, feed_forward=replace(EXPERTS, expert=replace(swiglu(40), bias=True), shared=swiglu(48)))
    )
    split = {weight.name: weight.split_dim for weight in layer.weights if weight.mesh is Mesh.EXPERT}
    assert split == {"expert fc1 weight": 1, "expert fc1 bias": 1, "expert fc2 weight": 2, "expert fc2 bias": None}
    assert all(weight.expert_dim == 0 for weight in layer.weights if weight.name in split)


def test_the_layers_input_outlives_every_recomputation_of_experts() -> None:
    block = Block(mixer=ATTENTION, feed_forward=replace(EXPERTS, shared=swiglu(48), shared_gate=True))
    layer = layer_of(block)
    saved = saved_of(layer)
    assert saved["feed-forward norm output"].dropped_by == (Module.LAYER_NORM,)
    inside = [operator for operator in layer.operators if Module.MOE in operator.modules]
    assert all(
        part.dropped_by
        for operator in inside
        for part in operator.saved
        if part.name not in {"feed-forward norm output"}
    )
    assert Module.MLP not in {module for operator in layer.operators for module in operator.modules}
    assert {name for name, part in saved.items() if Module.MOE_ACTIVATION in part.dropped_by} == {
        "expert activation output"
    }
    assert {name for name, part in saved.items() if Module.SHARED_EXPERTS in part.dropped_by} == {
        "shared activation input",
        "shared activation output",
        "shared output",
        "shared gate output",
    }


def test_an_activation_that_no_kernel_fuses_keeps_what_its_products_read() -> None:
    gelu = replace(EXPERTS, expert=replace(swiglu(40), activation=Activation.GELU_TANH))
    fused, unfused = (saved_of(layer_of(Block(mixer=ATTENTION, feed_forward=kind))) for kind in (EXPERTS, gelu))
    extra = {"expert gate output", "unweighted expert output"}
    assert unfused.keys() - fused.keys() == extra
    assert all(unfused[name].dropped_by == (Module.MOE, Module.MOE_ACTIVATION) for name in extra)


def test_adapters_stay_off_experts() -> None:
    block = Block(mixer=ATTENTION, feed_forward=replace(EXPERTS, shared=swiglu(48)))
    layer = layer_of(block, LORA)
    trained = {weight.name for weight in layer.weights if weight.trainable}
    assert trained == {f"{name} adapter {part}" for name in ("qkv", "proj") for part in ("A", "B")}
    # A frozen grouped product needs no input; its activation still does.
    saved = saved_of(layer)
    assert {"expert input", "expert activation output"}.isdisjoint(saved)
    assert "expert activation input" in saved


def test_a_mamba_layer_keeps_its_whole_input_and_three_tensors_of_its_inner_width() -> None:
    saved = saved_of(layer_of(Block(mixer=MAMBA, feed_forward=None, num_norms=1)))
    inner, states, heads = 128, 2 * 2 * 20, 8
    assert bytes_per_token(saved, Region.SHARDED) == BF16_BYTES * ((2 * inner + states + heads) + 3 * inner)
    assert bytes_per_token(saved, Region.RESIDUAL) == BF16_BYTES * 2 * HIDDEN


def test_a_mamba_layer_scans_states_of_its_heads() -> None:
    layer = layer_of(Block(mixer=MAMBA, feed_forward=None, num_norms=1))
    scan = next(operator.work for operator in layer.operators if isinstance(operator.work, StateScan))
    assert (scan.num_heads, scan.num_groups, scan.key_dim, scan.value_dim) == (8, 2, 20, 16)
    assert not scan.corrects


def test_gated_delta_keeps_its_convolutions_input_its_recurrences_inputs_and_its_chunks_inverses() -> None:
    saved = saved_of(layer_of(Block(mixer=DELTA, feed_forward=None, num_norms=1)))
    keys, values, heads, repeated = 4 * 16, 8 * 12, 8, 8 * 16
    convolution, unit = 2 * keys + values, 2 * keys
    recurrence = 2 * repeated + values + 2 * heads + heads * DELTA.chunk_size
    output = 4 * values  # the norm's input, the gate, the norm's output, the projection's input
    assert bytes_per_token(saved, Region.SHARDED) == (
        BF16_BYTES * (convolution + unit + recurrence + output) + FP32_BYTES * heads
    )


def test_lightning_attention_corrects_nothing_and_has_neither_decays_nor_convolution() -> None:
    mixer = replace(DELTA, rule=LinearRule.LIGHTNING, num_key_heads=8, key_head_dim=12, conv_kernel=0)
    layer = layer_of(Block(mixer=mixer, feed_forward=None, num_norms=1))
    names = saved_of(layer).keys()
    assert {"chunk matrices", "decays", "convolution input"}.isdisjoint(names)
    scan = next(operator.work for operator in layer.operators if isinstance(operator.work, StateScan))
    assert not scan.corrects


@pytest.mark.parametrize(
    ("precision", "scale_bytes"),
    [
        (Precision.FP8_DELAYED, 0),
        (Precision.FP8_TENSORWISE, 0),
        (Precision.FP8_BLOCKWISE, 4 * 1),  # 96 features are one ragged block of 128
        (Precision.FP8_MXFP8, 3),
    ],
)
def test_an_fp8_input_keeps_a_byte_an_element_and_its_recipes_scales(precision: Precision, scale_bytes: int) -> None:
    layer = layer_of(Block(mixer=ATTENTION, feed_forward=swiglu(96)), replace(RUN, precision=precision))
    saved = saved_of(layer)
    assert saved["activation output in fp8"].features * saved["activation output in fp8"].element_bytes == 96
    scales = saved.get("activation output in fp8 scales")
    assert (scales.features * scales.element_bytes if scales else 0) == scale_bytes


def test_only_delayed_scaling_keeps_the_attention_output_twice() -> None:
    block = Block(mixer=ATTENTION, feed_forward=swiglu(96))
    kept_twice = {
        precision
        for precision in Precision
        if "attention output in fp8" in saved_of(layer_of(block, replace(RUN, precision=precision)))
    }
    assert kept_twice == {Precision.FP8_DELAYED}


def test_layers_that_share_an_input_keep_a_quantised_copy_each() -> None:
    saved = saved_of(
        layer_of(Block(mixer=LATENT, feed_forward=swiglu(96)), replace(RUN, precision=Precision.FP8_TENSORWISE))
    )
    copies = {name for name in saved if name.startswith("attention norm output")}
    assert copies == {
        "attention norm output in fp8 for query down projection",
        "attention norm output in fp8 for key-value down projection",
    }


def rules(layer: LayerGraph) -> set[tuple[int, tuple[Axis, ...], bool, Axis | None]]:
    return {(rule.size, rule.axes, rule.either_way, rule.only_above_one) for rule in layer.divisible}


def test_what_degrees_must_divide() -> None:
    tp, heads = (Axis.TP,), (Axis.TP, Axis.ULYSSES)
    sparse = replace(EXPERTS, shared=swiglu(48))
    assert rules(layer_of(Block(mixer=ATTENTION, feed_forward=sparse))) == {
        (8, heads, False, None),
        (2, tp, True, None),
        (2, heads, False, Axis.ULYSSES),
        ((8 + 2 * 2) * 16, tp, False, None),
        (6, (Axis.EP,), False, None),
        (40, (Axis.ETP,), False, None),
        (48, tp, False, None),
    }
    assert rules(layer_of(Block(mixer=LATENT, feed_forward=None))) == {(8, heads, False, None)}
    states = (Axis.TP, Axis.STATE_HEADS)
    assert rules(layer_of(Block(mixer=MAMBA, feed_forward=None))) == {
        (8, states, False, None),
        (2, tp, False, None),
        (2, states, True, None),
    }
    assert rules(layer_of(Block(mixer=DELTA, feed_forward=None))) == {
        (4, states, False, None),
        (8, states, False, None),
    }


def test_prediction_modules_repeat_their_block_their_look_up_and_their_loss() -> None:
    block = Block(mixer=LATENT, feed_forward=EXPERTS)
    plain = build_graph(model_of(block), RUN)
    twice = build_graph(model_of(block, mtp=MultiTokenPrediction(num_modules=2, block=block)), RUN)
    projection = 6 * SEQ_LEN * 2 * HIDDEN * HIDDEN
    module = layer_flops(plain.blocks[block], SEQ_LEN) + layer_flops(plain.head, SEQ_LEN) + projection
    assert layer_flops(twice.head, SEQ_LEN) == layer_flops(plain.head, SEQ_LEN) + 2 * module
    names = [saved.name for operator in twice.head.operators for saved in operator.saved]
    assert len(names) == len(set(names))
    assert {"softmax of logits", "mtp 1 softmax of logits", "mtp 2 softmax of logits"} <= set(names)
    # What a module's norm reads is what the LM head in front of it keeps.
    assert "mtp 2 stream norm input" not in names


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_holds_one_copy_of_the_table(*, tied: bool) -> None:
    block = Block(mixer=ATTENTION, feed_forward=swiglu(96))
    spec = replace(model_of(block, mtp=MultiTokenPrediction(num_modules=2, block=block)), tie_word_embeddings=tied)
    head = build_graph(spec, RUN).head
    assert sum(weight.shared_with_embedding for weight in head.weights) == 1


def test_projections_of_latents_are_whole_on_every_rank() -> None:
    layer = layer_of(Block(mixer=LATENT, feed_forward=replace(EXPERTS, latent_size=24)))
    whole = {
        operator.name
        for operator in layer.operators
        if isinstance(operator.work, Linear) and operator.work.parallel is Parallel.REPLICATED
    }
    assert whole == {
        "query down projection",
        "key-value down projection",
        "router",
        "latent down projection",
        "latent up projection",
    }
