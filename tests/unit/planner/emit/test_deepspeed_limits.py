"""What DeepSpeed cannot express is refused with the nearest it can."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from planner.emit.deepspeed import emit_deepspeed
from planner.emit.deepspeed_limits import require_layout, require_model, require_workload
from planner.errors import NotExpressibleError
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.models.blocks import (
    Block,
    LinearAttention,
    LinearRule,
    QueryKeyNorm,
    Router,
    SparseIndexer,
)
from planner.models.specs import BlockRun, ModelSpec, MultiTokenPrediction, Trait
from planner.requests.workload import (
    DocumentLengths,
    DType,
    Lora,
    Optimizer,
    Packing,
    Precision,
    TrainMethod,
    TrainWorkload,
)
from tests.emitted.deepspeed_plans import (
    ATTENTION,
    EXPERTS,
    GPT,
    LATENT,
    LATENT_EXPERTS,
    LLAMA,
    TIED,
    deepspeed_plan,
    layout_with,
    swiglu,
)
from tests.emitted.plans import cluster_of

RUN = TrainWorkload(seq_len=32, global_batch_size=4, precision=Precision.BF16)
PLAIN = layout_with((4,))
DELTA = LinearAttention(
    rule=LinearRule.GATED_DELTA,
    num_key_heads=4,
    num_value_heads=4,
    key_head_dim=8,
    value_head_dim=8,
    conv_kernel=4,
)


def of_blocks(block: Block) -> ModelSpec:
    return replace(LLAMA, name="m", runs=(BlockRun(block=block, count=4),))


def with_attention(**fields: object) -> ModelSpec:
    return of_blocks(Block(mixer=replace(ATTENTION, **fields), feed_forward=swiglu(160)))  # type: ignore[arg-type]


def with_experts(**fields: object) -> ModelSpec:
    return of_blocks(Block(mixer=ATTENTION, feed_forward=replace(EXPERTS, **fields)))  # type: ignore[arg-type]


BLOCK = LLAMA.distinct_blocks[0]
MODELS: Mapping[str, tuple[ModelSpec, str]] = {
    "multi-token prediction": (
        replace(LLAMA, name="m", mtp=MultiTokenPrediction(num_modules=2, block=BLOCK)),
        "m predicts 2 further tokens; the training program has no such modules.",
    ),
    "a trait": (
        replace(LLAMA, name="m", traits=(Trait.INTERLEAVED_ROTARY, Trait.CAPPED_LOGITS)),
        "m has the traits capped-logits, which the training program does not have.",
    ),
    "rope of a kind": (replace(LLAMA, name="m", rope_scaling={"rope_type": "longrope"}), "of kind 'longrope' in m."),
    "rope with a parameter": (
        replace(LLAMA, name="m", rope_scaling={"rope_type": "linear", "factor": 2.0, "truncate": 1.0}),
        "linear rope scaling of m with truncate.",
    ),
    "rope without one": (
        replace(LLAMA, name="m", rope_scaling={"rope_type": "yarn", "factor": 2.0}),
        "yarn rope scaling of m without original_max_position_embeddings.",
    ),
    "norms": (
        of_blocks(replace(BLOCK, num_norms=1)),
        "a layer of m has 1 norms in front of 2 sub-blocks and 0 behind.",
    ),
    "a mixer": (
        of_blocks(replace(BLOCK, mixer=DELTA)),
        "m has linear-attention layers, which the training program does not build.",
    ),
    "an indexer": (
        of_blocks(replace(BLOCK, mixer=replace(LATENT, indexer=SparseIndexer(num_heads=2, head_dim=8, top_k=4)))),
        "m picks keys with an indexer",
    ),
    "attention": (
        with_attention(sinks=True, output_gate=True),
        "m has attention sinks and a gate on attention's output",
    ),
    "unit queries": (with_attention(qk_norm=QueryKeyNorm.UNIT), "m has queries and keys of unit length"),
    "values": (
        with_attention(shared_key_value=True, value_norm=True),
        "values that are the keys and normalised values",
    ),
    "latent experts": (with_experts(latent_size=16, num_norms=1), "experts behind a projection of their own and norms"),
    "experts": (
        with_experts(router=Router(scales=True), expert=replace(swiglu(32), bias=True)),
        "m has a router that scales its input and experts with biases",
    ),
}

WORKLOADS: Mapping[str, tuple[Mapping[str, object], str]] = {
    "fp8": ({"precision": Precision.FP8_BLOCKWISE}, "precision fp8-blockwise: DeepSpeed has no fp8 recipe."),
    "sgd": ({"optimizer": Optimizer.SGD}, "optimizer sgd: of the planned optimizers ZeRO is tested with Adam only"),
    "adapters": (
        {"method": TrainMethod.LORA, "lora": Lora(rank=4, alpha=8.0, target_modules=("qkv",))},
        "low-rank adapters: the training program has none.",
    ),
    "moments": ({"moment_dtype": DType.BF16}, "master_dtype fp32 and moment_dtype bf16: DeepSpeed lowers them only"),
    "gradients": ({"gradient_dtype": DType.FP16}, "gradient_dtype fp16 with precision bf16."),
    "packed documents": (
        {"documents": DocumentLengths(lengths=(16,), weights=(1.0,), packing=Packing.PACKED)},
        "packed documents: the training program lets every token see all tokens before it",
    ),
}

INTERLEAVED = replace(
    layout_with((1, 3)), vpp=2, schedule=Schedule.INTERLEAVED, stages=stages_from_counts((1, 1, 1, 1))
)
LAYOUTS: Mapping[str, tuple[ModelSpec, Layout, str, str]] = {
    "experts spread": (LATENT_EXPERTS, replace(layout_with((4,), dp=2), ep=2), "ep = 2, etp = 1", "Use ep = 1"),
    "sequence parallel": (
        LLAMA,
        replace(layout_with((4,), tp=2), sequence_parallel=True),
        "sequence_parallel: AutoTP keeps norms and residuals whole",
        "Use sequence_parallel false, or Ulysses",
    ),
    "a ring": (
        LLAMA,
        replace(layout_with((4,), cp=2, zero_stage=2), ulysses=1),
        "context parallelism of kind ring",
        "Use cp_kind ulysses.",
    ),
    "two grids": (LLAMA, layout_with((2, 2), tp=2), "tp = 2 with pp = 2", "Use one of tp, cp and pp above 1"),
    "a rank order": (
        LLAMA,
        replace(PLAIN, rank_order="tp-cp-ep-pp-dp"),
        "rank order tp-cp-ep-pp-dp.",
        "DeepSpeed lays ranks out as tp-cp-ep-dp-pp.",
    ),
    "tokens": (LLAMA, layout_with((4,), cp=5, zero_stage=2), "32 tokens over cp = 5.", "cp must divide seq_len."),
    "key/value heads": (
        LLAMA,
        layout_with((4,), tp=8),
        "tp = 8 with 8 heads and 4 key/value heads",
        "tp must divide both",
    ),
    "latent heads": (
        LATENT_EXPERTS,
        layout_with((4,), cp=16, zero_stage=3),
        "cp = 16 with 8 heads.",
        "cp must divide them.",
    ),
    "experts with tp": (LATENT_EXPERTS, layout_with((4,), tp=2), "would leave the stacked experts whole", "Use tp = 1"),
    "one norm over heads": (
        with_attention(qk_norm=QueryKeyNorm.WIDTH),
        layout_with((4,), tp=2),
        "tp = 2 with one query norm over all heads",
        "Use tp = 1.",
    ),
    "intermediate size": (
        of_blocks(replace(BLOCK, feed_forward=swiglu(161))),
        layout_with((4,), tp=2),
        "tp = 2 with intermediate_size 161.",
        "tp must divide intermediate_size.",
    ),
    "virtual stages": (LLAMA, INTERLEAVED, "vpp = 2: PipelineModule gives each rank one run of layers.", "Use vpp = 1"),
    "a schedule": (
        LLAMA,
        replace(PLAIN, schedule=Schedule.ONE_F_ONE_B),
        "schedule 1f1b with pp = 1.",
        "DeepSpeed runs none there.",
    ),
    "a tied head with a bias": (
        replace(TIED, lm_head_bias=True),
        layout_with((2, 2)),
        "a tied LM head on another stage is the embedding table and has no bias.",
        "Use pp = 1.",
    ),
    "an empty stage": (LLAMA, layout_with((2, 0, 2)), "stage 1 holds nothing.", "Give each stage a layer"),
    "gradients sharded over stages": (
        LLAMA,
        layout_with((2, 2), zero_stage=2),
        "ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism.",
        "Use zero_stage 1, or pp = 1.",
    ),
    "weights sharded with tp": (
        LLAMA,
        layout_with((4,), tp=2, zero_stage=3),
        "zero_stage 3 with tp = 2",
        "Use zero_stage 2 or less, or tp = 1.",
    ),
    "nothing sharded": (LLAMA, layout_with((4,), zero_stage=0), "zero_stage 0: without sharding", "Use zero_stage 1"),
    "heads exchanged, optimizer sharded": (
        LLAMA,
        layout_with((4,), cp=2, zero_stage=1),
        "zero_stage 1 with cp = 2: BF16_Optimizer sums the norm",
        "Use zero_stage 2 or 3.",
    ),
    "replicas": (
        LLAMA,
        replace(layout_with((4,), dp=4, zero_stage=3), state_replicas=2),
        "states in 2 replicas: this version removed MiCS",
        "with zero_stage 3, secondary_shard keeps a second copy",
    ),
    "a second copy without stage 3": (
        LLAMA,
        layout_with((4,), dp=4, zero_stage=2, secondary_shard=2),
        "a second copy of the weights over 2 ranks with zero_stage 2 on 4 GPUs.",
        "zero_hpz_partition_size needs zero_stage 3 and divides the number of GPUs.",
    ),
    "modules recomputed": (
        LLAMA,
        layout_with((4,), recompute=Recompute(granularity=Granularity.SELECTIVE, modules=("core_attn",))),
        "recompute of core_attn: DeepSpeed's activation checkpointing takes whole layers.",
        "Use recompute none or full.",
    ),
    "some layers recomputed": (
        LLAMA,
        layout_with((4,), recompute=Recompute(granularity=Granularity.FULL, num_layers=2)),
        "full recompute of 2 layers of each stage.",
        "Recompute every layer or none of them.",
    ),
    "each layer recomputed in its own way": (
        LLAMA,
        layout_with(
            (4,),
            recompute=Recompute(
                granularity=Granularity.PER_LAYER,
                layers=(Recompute(granularity=Granularity.FULL), *(Recompute(granularity=Granularity.NONE),) * 3),
            ),
        ),
        "recompute that differs from layer to layer.",
        "Recompute every layer or none of them.",
    ),
    "more overlap than there is": (
        LLAMA,
        replace(layout_with((4,), dp=2), overlap=Overlap(grad_reduce=True, param_gather=True, p2p=False)),
        "overlap gradient reduction and parameter gathering with zero_stage 1 and pp = 1.",
        "DeepSpeed overlaps nothing there.",
    ),
    "less overlap than there is": (
        LLAMA,
        replace(
            layout_with((4,), dp=2, zero_stage=3), overlap=Overlap(grad_reduce=False, param_gather=False, p2p=False)
        ),
        "overlap nothing with zero_stage 3",
        "DeepSpeed overlaps gradient reduction and parameter gathering there.",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_the_program_does_not_build_are_refused(name: str) -> None:
    model, message = MODELS[name]
    with pytest.raises(NotExpressibleError) as caught:
        require_model(model)
    assert message in str(caught.value)
    assert caught.value.target == "DeepSpeed 0.19.8"
    assert caught.value.hint


@pytest.mark.parametrize("model", [LLAMA, TIED, GPT, LATENT_EXPERTS, with_attention(qk_norm=QueryKeyNorm.WIDTH)])
def test_models_that_it_builds_pass(model: ModelSpec) -> None:
    require_model(model)


@pytest.mark.parametrize("name", WORKLOADS)
def test_runs_that_cannot_be_described_are_refused(name: str) -> None:
    changes, message = WORKLOADS[name]
    with pytest.raises(NotExpressibleError) as caught:
        require_workload(replace(RUN, **changes))  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_padded_documents_and_both_gradient_formats_pass() -> None:
    padded = DocumentLengths(lengths=(16,), weights=(1.0,), packing=Packing.PADDED)
    require_workload(replace(RUN, documents=padded, gradient_dtype=DType.BF16))
    require_workload(replace(RUN, precision=Precision.FP16, gradient_dtype=DType.FP16))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_that_cannot_be_described_are_refused(name: str) -> None:
    model, layout, message, hint = LAYOUTS[name]
    with pytest.raises(NotExpressibleError) as caught:
        require_layout(layout, model, RUN, cluster_of(1, layout.world_size))
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_a_layout_fills_the_cluster() -> None:
    with pytest.raises(NotExpressibleError, match="a layout of 1 GPUs on a cluster of 8"):
        require_layout(PLAIN, LLAMA, RUN, cluster_of(1, 8))


def test_the_emitter_asks_all_three() -> None:
    for plan in (
        deepspeed_plan(with_attention(sinks=True), PLAIN),
        deepspeed_plan(LLAMA, PLAIN, precision=Precision.FP8_DELAYED),
        deepspeed_plan(LLAMA, layout_with((4,), zero_stage=0)),
    ):
        with pytest.raises(NotExpressibleError):
            emit_deepspeed(plan)
