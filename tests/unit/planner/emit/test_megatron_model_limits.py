"""Models of every kind that Megatron-LM cannot describe; each case breaks one rule of one that is otherwise fine."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from planner.models.blocks import (
    Block,
    LatentAttention,
    LinearAttention,
    LinearRule,
    MixtureOfExperts,
    Norm,
    PositionEmbedding,
    QueryKeyNorm,
    Router,
    RouterScore,
    SelfAttention,
    StateSpace,
)
from planner.models.specs import ModelSpec, MultiTokenPrediction, Trait, VisionTower
from tests.emitted import models
from tests.emitted.models import chain, swiglu
from tests.emitted.plans import LLAMA_8B, layout_of_degrees
from tests.unit.planner.emit.megatron_refusals import accepts, refusal

ALL = (
    models.mixtral(),
    models.qwen3_experts(),
    models.deepseek(),
    models.kimi(),
    models.sparse_latent(),
    models.gpt_oss(),
    models.nemotron_h(),
    models.mamba(),
    models.nemotron_3(),
    models.linear_hybrid(),
    models.nemotron_super(),
)


def every_block(model: ModelSpec, change: Callable[[Block], Block]) -> ModelSpec:
    """Return the model with each of its blocks changed, prediction modules included."""
    runs = tuple(replace(run, block=change(run.block)) for run in model.runs)
    mtp = replace(model.mtp, block=change(model.mtp.block)) if model.mtp else None
    return replace(model, runs=runs, mtp=mtp)


def with_mixer(
    model: ModelSpec, kind: type[SelfAttention | LatentAttention | LinearAttention | StateSpace], **changes: object
) -> ModelSpec:
    return every_block(
        model,
        lambda block: (
            replace(block, mixer=replace(block.mixer, **changes))  # type: ignore[arg-type]
            if isinstance(block.mixer, kind)
            else block
        ),
    )


def with_experts(model: ModelSpec, **changes: object) -> ModelSpec:
    return every_block(
        model,
        lambda block: (
            replace(block, feed_forward=replace(block.feed_forward, **changes))  # type: ignore[arg-type]
            if isinstance(block.feed_forward, MixtureOfExperts)
            else block
        ),
    )


def with_router(model: ModelSpec, **changes: object) -> ModelSpec:
    experts = next(b.feed_forward for b in model.blocks if isinstance(b.feed_forward, MixtureOfExperts))
    return with_experts(model, router=replace(experts.router, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.name)
def test_the_models_that_the_cases_start_from_are_expressible(model: ModelSpec) -> None:
    assert accepts(model, layout_of_degrees(layers=(model.num_layers,), dp=8, num_microbatches=16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vision": VisionTower(num_parameters=1, source="made up")},
            "mixtral has a vision tower (`vision`), and pretrain_gpt.py trains text only.",
        ),
        (
            {"norm": Norm.LAYER_UNSHIFTED},
            ("mixtral normalises by layernorm-unshifted; --normalization takes RMSNorm and LayerNorm with its shift."),
        ),
        (
            {"traits": (Trait.CAPPED_LOGITS, Trait.TEMPERED_ATTENTION)},
            "mixtral has the traits capped-logits, tempered-attention, for which there is no flag.",
        ),
    ],
)
def test_facts_without_a_flag_are_refused(changes: dict[str, object], message: str) -> None:
    assert refusal(replace(models.mixtral(), **changes)) == message  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 8192}, "llama has attention inside chunks (`chunk`), for which there is no flag."),
        (
            {"shared_key_value": True},
            "llama has keys that are values too (`shared_key_value`), for which there is no flag.",
        ),
        ({"value_norm": True}, "llama has a norm of the values (`value_norm`), for which there is no flag."),
        (
            {"qk_norm": QueryKeyNorm.WIDTH},
            "llama has one norm over all heads' queries (`qk_norm`), for which there is no flag.",
        ),
    ],
)
def test_attention_without_a_flag_is_refused(changes: dict[str, object], message: str) -> None:
    assert refusal(with_mixer(LLAMA_8B, SelfAttention, **changes)) == message


def test_norms_behind_sub_blocks_are_refused() -> None:
    assert refusal(every_block(LLAMA_8B, lambda block: replace(block, num_post_norms=2))) == (
        "a layer of llama has 2 norms in front of its sub-blocks and 2 behind them; a Megatron layer has 2, one in "
        "front of each."
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            with_mixer(models.kimi(), LatentAttention, bias=True),
            "kimi has biases on its latent projections (`bias`); Megatron's have none.",
        ),
        (
            with_mixer(models.kimi(), LatentAttention, q_lora_rank=None),
            (
                "kimi projects queries directly (`q_lora_rank`); Megatron then normalises their input once more than "
                "other frameworks do."
            ),
        ),
        (
            replace(models.kimi(), norm=Norm.LAYER),
            "kimi has multi-head latent attention with layernorm.",
        ),
        (
            replace(models.kimi(), position_embedding=PositionEmbedding.NONE, rope_theta=None, rope_scaling={}),
            ("kimi has multi-head latent attention with positions of kind none; Megatron's is always rotary."),
        ),
        (
            replace(models.kimi(), rope_scaling={**models.DEEPSEEK_SCALING, "beta_fast": 1.0}),
            (
                "the yarn rope scaling of kimi (beta_fast 1.0, beta_slow 1.0, original_max_position_embeddings 4096); "
                "with multi-head latent attention this version has beta_fast 32.0, beta_slow 1.0, "
                "original_max_position_embeddings 4096 built in."
            ),
        ),
        (
            replace(models.kimi(), rope_scaling=models.LLAMA3_SCALING),
            "rope scaling of kind 'llama3' with multi-head latent attention in kimi.",
        ),
        (
            replace(
                models.sparse_latent(),
                mtp=MultiTokenPrediction(num_modules=1, block=models.sparse_latent().blocks[-1]),
            ),
            (
                "sparse-latent has sparse attention (`indexer`) and multi-token prediction; Megatron builds a "
                "prediction module only from its standard attention."
            ),
        ),
        (
            replace(
                models.kimi(),
                runs=(
                    *models.kimi().runs,
                    *chain((Block(mixer=LLAMA_8B.blocks[0].mixer, feed_forward=swiglu(18432)), 1)),
                ),
            ),
            "kimi has multi-head latent attention and other attention.",
        ),
    ],
)
def test_latent_attention_without_a_flag_is_refused(model: ModelSpec, message: str) -> None:
    assert refusal(model) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": LinearRule.KIMI_DELTA}, "linear-hybrid has linear attention of the rule kimi-delta."),
        ({"conv_kernel": 0}, "linear-hybrid has linear attention without a convolution (conv_kernel 0)."),
        (
            {"chunk_size": 128},
            "linear-hybrid multiplies out 128 tokens at once (`chunk_size`); the kernel takes 64.",
        ),
    ],
)
def test_linear_attention_without_a_flag_is_refused(changes: dict[str, object], message: str) -> None:
    assert refusal(with_mixer(models.linear_hybrid(), LinearAttention, **changes)) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_kernel": 3}, "nemotron-h has Mamba-2 mixers with conv_kernel 3; Megatron has 4 built in."),
        ({"chunk_size": 256}, "nemotron-h has Mamba-2 mixers with chunk_size 256; Megatron has 128 built in."),
        ({"conv_bias": False}, "nemotron-h has Mamba-2 mixers with conv_bias false; Megatron has true built in."),
        (
            {"projection_bias": True},
            "nemotron-h has Mamba-2 mixers with projection_bias true; Megatron has false built in.",
        ),
        ({"num_groups": 3}, "nemotron-h has 128 Mamba-2 heads in 3 groups."),
    ],
)
def test_mamba_mixers_that_megatron_has_not_are_refused(changes: dict[str, object], message: str) -> None:
    assert refusal(with_mixer(models.nemotron_h(), StateSpace, **changes)) == message


MIXTRAL_LAYER = models.mixtral().blocks[0]


def mixed_layers() -> ModelSpec:
    """Return a chain like Jamba's: a mixer and a feed-forward in one layer, Mamba-2 in most."""
    mixer = models.MAMBA.mixer
    return replace(
        models.nemotron_h(), runs=chain((Block(mixer=mixer, feed_forward=swiglu(1024)), 3), (LLAMA_8B.blocks[0], 1))
    )


def rotated_in_part() -> ModelSpec:
    model = replace(models.nemotron_h(), position_embedding=PositionEmbedding.ROPE, rope_theta=10000.0)
    return with_mixer(model, SelfAttention, rotary=False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mixed_layers(), "nemotron-h has layers with a state-space mixer and a feed-forward."),
        (
            replace(
                models.mixtral(),
                runs=chain(
                    (models.mixtral().blocks[0], 3), (Block(mixer=None, feed_forward=swiglu(64), num_norms=1), 1)
                ),
            ),
            ("some layers of mixtral lack a sub-block, and others have more than attention and a dense feed-forward."),
        ),
        (
            rotated_in_part(),
            "some attention layers of nemotron-h are not rotated; in a hybrid model all are, or none.",
        ),
        (
            replace(
                models.nemotron_h(),
                position_embedding=PositionEmbedding.ROPE,
                rope_theta=1e4,
                rope_scaling=models.LLAMA3_SCALING,
            ),
            "llama3 rope scaling of nemotron-h; Megatron's hybrid models have none.",
        ),
        (
            replace(
                models.nemotron_h(),
                runs=chain(
                    *((run.block, run.count) for run in models.nemotron_h().runs),
                    (Block(mixer=models.DEEPSEEK_ATTENTION, feed_forward=None, num_norms=1), 1),
                ),
            ),
            "a hybrid layer of nemotron-h has latent-attention.",
        ),
        (
            replace(
                models.nemotron_h(),
                runs=chain(
                    *((run.block, run.count) for run in models.nemotron_h().runs),
                    (Block(mixer=None, feed_forward=models.squared_relu(64), num_norms=1), 1),
                ),
            ),
            "nemotron-h has 2 different kinds of dense feed-forward; the flags describe one.",
        ),
    ],
)
def test_chains_that_no_model_class_builds_are_refused(model: ModelSpec, message: str) -> None:
    assert refusal(model) == message


def with_expert(model: ModelSpec, **changes: object) -> ModelSpec:
    experts = next(b.feed_forward for b in model.blocks if isinstance(b.feed_forward, MixtureOfExperts))
    return with_experts(model, expert=replace(experts.expert, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_experts(models.mixtral(), num_norms=2), "mixtral has 2 norms inside its experts (`num_norms`)."),
        (
            with_experts(models.mixtral(), shared=replace(swiglu(64), bias=True)),
            "the shared experts of mixtral have biases; Megatron's have none.",
        ),
        (
            with_experts(models.gpt_oss(), shared=swiglu(64)),
            "gpt-oss has shared experts and biases; Megatron's shared experts have none.",
        ),
        (
            with_experts(models.mixtral(), shared_gate=True),
            "mixtral gates shared experts that it does not have.",
        ),
        (with_router(models.mixtral(), bias=True), "mixtral has biases on router only."),
        (
            with_router(models.mixtral(), scales=True),
            "the router of mixtral has scales (`scales`), for which there is no flag.",
        ),
        (
            with_router(models.mixtral(), correction_bias=True),
            "the router of mixtral has a correction bias with softmax.",
        ),
        (
            with_router(models.mixtral(), score=RouterScore.SIGMOID, normalized=False),
            "the router of mixtral has sigmoid scores not normalised over 2 experts.",
        ),
        (
            with_experts(models.mixtral(), experts_per_token=1),
            "the router of mixtral normalises the weight of one expert, which is then always 1.",
        ),
        (
            with_experts(models.mixtral(), experts_per_token=1, router=Router(score=RouterScore.SIGMOID)),
            "the router of mixtral has sigmoid scores normalised over 1 experts.",
        ),
        (
            with_router(models.mixtral(), num_groups=3, groups_per_token=1),
            "mixtral chooses 2 of 8 experts from 1 of 3 groups.",
        ),
        (
            with_router(models.qwen3_experts(), num_groups=4, groups_per_token=3),
            "qwen3-experts chooses 8 of 128 experts from 3 of 4 groups.",
        ),
        (
            with_expert(models.deepseek(), gated=False),
            "deepseek has feed-forwards with different activations; the flags describe one.",
        ),
    ],
)
def test_experts_without_a_flag_are_refused(model: ModelSpec, message: str) -> None:
    assert refusal(model) == message


def test_only_one_kind_of_each_part_is_said() -> None:
    first = models.mixtral().blocks[0]
    assert isinstance(first.feed_forward, MixtureOfExperts)
    assert isinstance(first.mixer, SelfAttention)
    fewer = replace(first, feed_forward=replace(first.feed_forward, experts_per_token=4))
    assert refusal(replace(models.mixtral(), runs=chain((first, 2), (fewer, 2)))) == (
        "mixtral has 2 different kinds of mixture of experts; the flags describe one."
    )
    windows = [replace(first, mixer=replace(first.mixer, window=size)) for size in (64, 128)]
    assert refusal(replace(models.mixtral(), runs=chain((windows[0], 2), (windows[1], 2)))) == (
        "mixtral has 2 different kinds of window; the flags describe one."
    )


def test_layers_that_differ_keep_to_what_their_flag_wants() -> None:
    model = models.nemotron_super()
    assert refusal(replace(model, rotary_fraction=0.5, norm=Norm.LAYER)) == (
        "the layers of nemotron-super differ (some lack a sub-block, or feed-forwards have several sizes), and it has "
        "the norm layernorm and rotary_fraction 0.5."
    )


def predicting(model: ModelSpec, block: Block | None = None) -> ModelSpec:
    return replace(model, mtp=MultiTokenPrediction(num_modules=1, block=block or model.blocks[-1]))


def learned(model: ModelSpec) -> ModelSpec:
    return replace(model, position_embedding=PositionEmbedding.LEARNED, rope_theta=None, rope_scaling={})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            predicting(learned(LLAMA_8B)),
            "llama has multi-token prediction with positions of kind learned.",
        ),
        (predicting(models.gpt_oss()), "gpt-oss has multi-token prediction with positions of kind yarn."),
        (
            predicting(models.linear_hybrid()),
            (
                "linear-hybrid has linear attention and multi-token prediction; Megatron builds a prediction module "
                "only from its standard attention."
            ),
        ),
        (
            predicting(models.deepseek(), models.deepseek().blocks[0]),
            "the prediction modules of deepseek are other layers than its last.",
        ),
        (
            predicting(replace(models.gpt_oss(), rope_scaling={})),
            (
                "gpt-oss has multi-token prediction and layers that differ in window or rotation; the lists that say "
                "which layer is which end at the last layer."
            ),
        ),
    ],
)
def test_prediction_modules_that_megatron_does_not_build_are_refused(model: ModelSpec, message: str) -> None:
    assert refusal(model) == message
