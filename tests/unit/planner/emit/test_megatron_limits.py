"""What Megatron-LM cannot express is refused in words; each case breaks one rule of a plan that is otherwise fine."""

import dataclasses
from dataclasses import replace

import pytest

from planner.emit.megatron import emit_megatron
from planner.errors import NotExpressibleError
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, Stage
from planner.models.blocks import Activation, Block, DenseFeedForward, SelfAttention
from planner.models.specs import BlockRun, ModelSpec, Trait
from planner.requests.workload import DType, Lora, Optimizer, Precision, TrainMethod, TrainWorkload
from tests.emitted.models import LLAMA3_SCALING
from tests.emitted.plans import LLAMA_8B, cluster_of, layout_of_degrees, plan_of

WORKLOAD = TrainWorkload(
    seq_len=8192, global_batch_size=128, precision=Precision.BF16, method=TrainMethod.FULL_FINETUNE
)
LAYOUT = layout_of_degrees(layers=(4,) * 8, tp=2, pp=4, num_microbatches=128)
FLAT = layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=32)


def refusal(
    *, model: ModelSpec = LLAMA_8B, workload: TrainWorkload = WORKLOAD, layout: Layout = LAYOUT, gpus: int = 8
) -> str:
    """Return the message with which a plan is refused."""
    with pytest.raises(NotExpressibleError) as caught:
        emit_megatron(plan_of(model, workload, layout, cluster_of(1, gpus)))
    assert caught.value.target == "Megatron-LM (megatron-core 0.19.2)"
    assert caught.value.hint
    return caught.value.message


def with_block(
    *, attention: dict[str, object] | None = None, feed_forward: dict[str, object] | None = None, **changes: object
) -> ModelSpec:
    block = LLAMA_8B.distinct_blocks[0]
    assert isinstance(block.mixer, SelfAttention)
    assert isinstance(block.feed_forward, DenseFeedForward)
    changed = replace(
        block,
        mixer=replace(block.mixer, **(attention or {})),  # type: ignore[arg-type]
        feed_forward=replace(block.feed_forward, **(feed_forward or {})),  # type: ignore[arg-type]
        **changes,  # type: ignore[arg-type]
    )
    return replace(LLAMA_8B, runs=(BlockRun(block=changed, count=32),))


def test_the_plan_that_the_cases_start_from_is_expressible() -> None:
    assert emit_megatron(plan_of(LLAMA_8B, WORKLOAD, LAYOUT, cluster_of(1, 8)))
    assert emit_megatron(plan_of(LLAMA_8B, WORKLOAD, FLAT, cluster_of(1, 8)))


def test_parallel_blocks_are_refused() -> None:
    assert refusal(model=with_block(parallel=True)) == (
        "llama runs attention and feed-forward in parallel; a Megatron layer runs them in sequence."
    )


def test_widths_that_differ_need_llama3_positions_and_no_virtual_stages() -> None:
    block = LLAMA_8B.distinct_blocks[0]
    other: Block = with_block(feed_forward={"intermediate_size": 4096}).distinct_blocks[0]
    model = replace(LLAMA_8B, runs=(BlockRun(block=block, count=31), BlockRun(block=other, count=1)))
    assert refusal(model=model) == (
        "vpp = 2 for layers that differ; `GPTModelBuilder` builds them without virtual stages."
    )
    assert refusal(model=replace(model, rope_scaling={}), layout=FLAT) == (
        "the layers of llama differ (some lack a sub-block, or feed-forwards have several sizes), and it has no llama3 "
        "rope scaling."
    )
    assert emit_megatron(plan_of(model, WORKLOAD, FLAT, cluster_of(1, 8)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lm_head_bias": True}, "llama has a bias on its LM head; Megatron's has none."),
        ({"embedding_norm": True}, "llama normalises its embedding; Megatron has no such norm."),
        ({"position_offset": 2}, "llama keeps 2 rows in front of position 0; Megatron's table starts at 0."),
        (
            {"traits": (Trait.SCALED_EMBEDDING,)},
            "llama has the traits scaled-embedding, for which there is no flag.",
        ),
        ({"rope_theta": 10000.5}, "rope_theta = 10000.5 of llama; --rotary-base takes an integer."),
        (
            {"rope_scaling": {**LLAMA3_SCALING, "factor": 32.0}},
            (
                "the llama3 rope scaling of llama (factor 32.0, low_freq_factor 1.0, high_freq_factor 4.0, "
                "original_max_position_embeddings 8192) does not reach the model: this version parses "
                "--rope-scaling-factor and then builds with factor 8, low 1, high 4, original length 8192."
            ),
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
            "linear rope scaling by 2.5; --rotary-seq-len-interpolation-factor takes an integer.",
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope scaling of kind 'dynamic' in llama.",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.2}},
            "yarn rope scaling of llama with attention_factor.",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn rope scaling of llama without a factor."),
    ],
)
def test_model_features_without_a_flag_are_refused(changes: dict[str, object], message: str) -> None:
    assert refusal(model=dataclasses.replace(LLAMA_8B, **changes)) == message  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attention", "feed_forward", "message"),
    [
        ({"output_bias": True}, {}, "llama has biases on attention output only."),
        (
            {"qkv_bias": True, "output_bias": True},
            {},
            "llama has biases on qkv and attention output only.",
        ),
        (
            {},
            {"activation": Activation.GELU_TANH},
            "llama gates with gelu_tanh; of the gated activations only SwiGLU (silu) has the same formula there.",
        ),
        ({}, {"activation": Activation.RELU, "gated": False}, "llama uses relu without a gate."),
        (
            {},
            {"activation": Activation.GELU_TANH, "gated": False},
            "llama uses the tanh form of gelu without biases; it exists only fused with a bias.",
        ),
    ],
)
def test_linear_layers_without_a_flag_are_refused(
    attention: dict[str, object], feed_forward: dict[str, object], message: str
) -> None:
    assert refusal(model=with_block(attention=attention, feed_forward=feed_forward)) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"master_dtype": DType.BF16}, "master_dtype bf16; --main-params-dtype takes fp32 and fp16."),
        ({"gradient_dtype": DType.FP16}, "gradient_dtype fp16 with precision bf16."),
        (
            {"moment_dtype": DType.BF16, "optimizer": Optimizer.SGD},
            "master_dtype fp32 and moment_dtype bf16 with sgd.",
        ),
        ({"precision": Precision.FP8_MXFP8}, "precision fp8-mxfp8 on some-gpu."),
    ],
)
def test_formats_without_a_flag_are_refused(changes: dict[str, object], message: str) -> None:
    assert refusal(workload=replace(WORKLOAD, **changes)) == message  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (replace(LAYOUT, ep=2), "ep = 2, etp = 1 without experts."),
        (replace(LAYOUT, rank_order="tp-pp-dp"), "rank order tp-pp-dp."),
        (replace(LAYOUT, schedule=Schedule.ONE_F_ONE_B), "schedule 1f1b with pp = 4 and vpp = 2."),
        (replace(LAYOUT, num_microbatches=126), "126 micro-batches, interleaved over pp = 4."),
        (
            replace(LAYOUT, zero_stage=2),
            (
                "zero_stage 2 with pp = 4: no configuration that Megatron-LM tests combines "
                "Megatron-FSDP with pipeline stages."
            ),
        ),
        (
            replace(LAYOUT, zero_stage=0),
            "overlapped parameter gathering without a sharded optimizer or without overlapped gradient reduction.",
        ),
        (
            replace(FLAT, overlap=Overlap(grad_reduce=True, param_gather=True, p2p=True)),
            "overlapped p2p communication without virtual stages.",
        ),
        (
            replace(FLAT, recompute=Recompute(granularity=Granularity.SELECTIVE, modules=("layernorm",))),
            "recompute of layernorm, which the layers do not have.",
        ),
        (
            replace(FLAT, recompute=Recompute(granularity=Granularity.FULL, num_layers=0)),
            "full recompute of 0 layers.",
        ),
        (
            replace(
                FLAT,
                recompute=Recompute(
                    granularity=Granularity.PER_LAYER,
                    layers=(Recompute(granularity=Granularity.FULL), *(Recompute(granularity=Granularity.NONE),) * 31),
                ),
            ),
            "recompute that differs from layer to layer.",
        ),
        (
            layout_of_degrees(layers=(32,), tp=1, dp=8, num_microbatches=16, sequence_parallel=True),
            "sequence_parallel with tp = 1 is switched off by Megatron.",
        ),
        (
            layout_of_degrees(layers=(8,) * 4, tp=2, pp=2, dp=2, num_microbatches=64, p2p=False),
            "interleaving over pp = 2 without overlapped p2p communication.",
        ),
        (
            replace(
                layout_of_degrees(layers=(16, 16), tp=2, pp=2, dp=2, num_microbatches=64),
                stages=(
                    Stage(first_layer=0, num_layers=0, has_embedding=False, has_head=False),
                    Stage(first_layer=0, num_layers=32, has_embedding=True, has_head=True),
                ),
            ),
            "virtual stage 0 holds nothing.",
        ),
        (
            layout_of_degrees(layers=(32,), tp=3, num_microbatches=128),
            "tp = 3 with 32 attention heads.",
        ),
    ],
)
def test_layouts_without_a_flag_are_refused(layout: Layout, message: str) -> None:
    assert refusal(layout=layout, gpus=layout.world_size) == message


def test_only_adam_is_sharded() -> None:
    layout = layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=32, zero_stage=1)
    assert refusal(workload=replace(WORKLOAD, optimizer=Optimizer.SGD), layout=layout) == (
        "zero_stage 1 with sgd: Megatron's DistributedOptimizer asserts Adam."
    )


def test_moments_below_fp32_need_a_sharded_optimizer() -> None:
    layout = layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=32, zero_stage=0)
    assert refusal(workload=replace(WORKLOAD, moment_dtype=DType.BF16), layout=layout) == (
        "master_dtype fp32 and moment_dtype bf16 with zero_stage 0."
    )


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (layout_of_degrees(layers=(32,), dp=8, num_microbatches=16, zero_stage=3), "adapters with zero_stage 3."),
        (replace(FLAT, cp=2, dp=2, num_microbatches=64), "adapters with cp = 2."),
        (
            layout_of_degrees(layers=(16, 16, 0), tp=2, pp=3, num_microbatches=128),
            "adapters with a pipeline stage that holds no layer, so nothing to train.",
        ),
    ],
)
def test_adapters_are_refused_where_they_were_not_shown_to_train(layout: Layout, message: str) -> None:
    workload = replace(WORKLOAD, method=TrainMethod.LORA, lora=Lora(rank=16, alpha=32.0, target_modules=("qkv",)))
    assert refusal(workload=workload, layout=layout, gpus=layout.world_size) == message


def test_a_layout_must_fill_the_cluster() -> None:
    assert refusal(gpus=16) == "a layout of 8 GPUs on a cluster of 16."


def test_pretraining_short_sequences_starts_without_a_scaling_that_has_no_flag() -> None:
    model = replace(LLAMA_8B, rope_scaling={**LLAMA3_SCALING, "factor": 32.0})
    pretraining = replace(WORKLOAD, method=TrainMethod.PRETRAIN)
    files = emit_megatron(plan_of(model, pretraining, LAYOUT, cluster_of(1, 8)))
    for script in files.values():
        assert "# Positions: without the model's rope scaling" in script
        assert "--use-rope-scaling" not in script
    longer = replace(pretraining, seq_len=16384)
    assert "does not reach the model" in refusal(model=model, workload=longer)
    scaled = emit_megatron(plan_of(LLAMA_8B, pretraining, LAYOUT, cluster_of(1, 8)))
    assert all("--use-rope-scaling" in script and "# Positions" not in script for script in scaled.values())
