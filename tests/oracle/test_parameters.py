"""Parameters by the operator graph against parameters of a torch module on the meta device."""

from dataclasses import replace

import pytest
from hypothesis import given, settings

from planner.models.blocks import (
    Activation,
    Block,
    DenseFeedForward,
    LatentAttention,
    LinearAttention,
    LinearRule,
    MixtureOfExperts,
    Norm,
    QueryKeyNorm,
    Router,
    SelfAttention,
    SparseIndexer,
    StateSpace,
)
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.models.parameter_counts import graph_parameters
from planner.models.specs import ModelSpec, MultiTokenPrediction
from planner.requests.workload import Precision, TrainWorkload
from tests.examples import examples
from tests.oracle.published_shapes import decoder, deepseek_v3, mixtral_8x7b, qwen3_235b, swiglu
from tests.oracle.torch_models import built_model, num_parameters
from tests.small_spaces import models

WORKLOAD = TrainWorkload(seq_len=128, global_batch_size=8, precision=Precision.BF16)
ATTENTION = SelfAttention(num_attention_heads=8, num_key_value_heads=4, head_dim=16)
LATENT = LatentAttention(
    num_attention_heads=8, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=6, v_head_dim=10
)
INDEXER = SparseIndexer(num_heads=4, head_dim=14, top_k=32)
MAMBA = StateSpace(num_heads=8, head_dim=16, state_size=20, num_groups=2, conv_kernel=4, chunk_size=32)
DELTA = LinearAttention(
    rule=LinearRule.GATED_DELTA,
    num_key_heads=4,
    num_value_heads=8,
    key_head_dim=16,
    value_head_dim=12,
    conv_kernel=4,
)
EVEN = replace(DELTA, num_key_heads=8, key_head_dim=12)
EXPERTS = MixtureOfExperts(num_experts=6, experts_per_token=2, expert=swiglu(40), router=Router())
PLAIN = DenseFeedForward(intermediate_size=40, gated=False, activation=Activation.RELU2)

KINDS = {
    "gated attention with sinks": Block(
        mixer=replace(ATTENTION, output_gate=True, sinks=True, qkv_bias=True), feed_forward=swiglu(96)
    ),
    "width norms": Block(mixer=replace(ATTENTION, qk_norm=QueryKeyNorm.WIDTH), feed_forward=swiglu(96)),
    "unit norms": Block(mixer=replace(ATTENTION, qk_norm=QueryKeyNorm.UNIT), feed_forward=swiglu(96)),
    "values from keys": Block(
        mixer=replace(ATTENTION, shared_key_value=True, value_norm=True, qk_norm=QueryKeyNorm.HEAD),
        feed_forward=swiglu(96),
        num_post_norms=2,
    ),
    "post norms alone": Block(mixer=ATTENTION, feed_forward=swiglu(96), num_norms=0, num_post_norms=2),
    "latent attention": Block(mixer=LATENT, feed_forward=EXPERTS),
    "latent attention, direct queries": Block(mixer=replace(LATENT, q_lora_rank=None, bias=True), feed_forward=EXPERTS),
    "indexed latent attention": Block(mixer=replace(LATENT, indexer=INDEXER), feed_forward=EXPERTS),
    "indexed latent attention, direct queries": Block(
        mixer=replace(LATENT, q_lora_rank=None, indexer=INDEXER), feed_forward=EXPERTS
    ),
    "mamba": Block(mixer=MAMBA, feed_forward=None, num_norms=1),
    "mamba with biases": Block(
        mixer=replace(MAMBA, conv_bias=False, projection_bias=True), feed_forward=None, num_norms=1
    ),
    "gated delta": Block(mixer=DELTA, feed_forward=EXPERTS),
    "kimi delta": Block(mixer=replace(EVEN, rule=LinearRule.KIMI_DELTA), feed_forward=EXPERTS),
    "lightning": Block(mixer=replace(EVEN, rule=LinearRule.LIGHTNING, conv_kernel=0), feed_forward=EXPERTS),
    "experts alone": Block(mixer=None, feed_forward=EXPERTS, num_norms=1),
    "experts with biases": Block(
        mixer=ATTENTION,
        feed_forward=replace(EXPERTS, expert=replace(swiglu(40), bias=True), router=Router(bias=True)),
    ),
    "shared experts with a gate": Block(
        mixer=ATTENTION, feed_forward=replace(EXPERTS, shared=swiglu(48), shared_gate=True)
    ),
    "latent experts": Block(mixer=ATTENTION, feed_forward=replace(EXPERTS, expert=PLAIN, shared=PLAIN, latent_size=24)),
    "scaled router and inner norms": Block(
        mixer=ATTENTION,
        feed_forward=replace(EXPERTS, shared=swiglu(48), router=Router(scales=True), num_norms=3),
        num_post_norms=2,
    ),
}


def ours(spec: ModelSpec) -> int:
    return graph_parameters(spec, build_graph(spec, WORKLOAD))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("gpt2-xl", 1_557_611_200),
        ("qwen3-8b", 8_190_735_360),
        ("qwen2.5-7b", 7_615_616_512),
    ],
)
def test_parameters_of_real_models_equal_torchs_and_the_published_total(name: str, published: int) -> None:
    spec = load_bundled(name)
    assert num_parameters(built_model(spec)) == published
    assert ours(spec) == published


@pytest.mark.parametrize(
    ("spec", "published"),
    [(mixtral_8x7b(), 46_702_792_704), (qwen3_235b(), 235_093_634_560), (deepseek_v3(), 671_026_419_200)],
    ids=["mixtral-8x7b", "qwen3-235b", "deepseek-v3"],
)
def test_parameters_of_real_mixtures_equal_the_published_total(spec: ModelSpec, published: int) -> None:
    assert ours(spec) == published


def test_a_prediction_module_of_deepseek_v3_adds_a_layer_a_projection_and_three_norms() -> None:
    without, with_module = deepseek_v3(), deepseek_v3(num_prediction_modules=1)
    hidden, layer = 7168, without.runs[1].block
    twice = replace(without, runs=(without.runs[0], replace(without.runs[1], count=59)))
    assert layer == twice.runs[1].block
    assert ours(with_module) - ours(without) == ours(twice) - ours(without) + 2 * hidden**2 + 3 * hidden


@settings(max_examples=examples(few=25, many=60), deadline=None, derandomize=True)
@given(spec=models())
def test_parameters_of_any_decoder_equal_torchs(spec: ModelSpec) -> None:
    assert ours(spec) == num_parameters(built_model(spec))


@pytest.mark.parametrize("norm", [Norm.RMS, Norm.LAYER, Norm.LAYER_UNSHIFTED, Norm.LAYER_PLAIN])
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_every_kind_of_layer_equal_torchs(kind: str, norm: Norm) -> None:
    spec = replace(decoder((KINDS[kind], 2), hidden_size=64, vocab_size=512), norm=norm)
    assert ours(spec) == num_parameters(built_model(spec))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("num_modules", [1, 3])
def test_prediction_modules_share_the_embedding_and_the_lm_head(num_modules: int, *, tied: bool) -> None:
    block = KINDS["latent attention"]
    mtp = MultiTokenPrediction(num_modules=num_modules, block=block)
    spec = replace(decoder((block, 2), hidden_size=64, vocab_size=512, mtp=mtp), tie_word_embeddings=tied)
    assert ours(spec) == num_parameters(built_model(spec))
