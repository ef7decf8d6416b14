"""Plans to emit for DeepSpeed: small models of every kind that the training program builds, layouts, a strategy."""

import math
from dataclasses import replace

from hypothesis import strategies as st

from planner.emit.deepspeed_limits import overlap_of
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.models.blocks import (
    Activation,
    Block,
    DenseFeedForward,
    LatentAttention,
    MixtureOfExperts,
    Norm,
    PositionEmbedding,
    QueryKeyNorm,
    Router,
    RouterScore,
    SelfAttention,
)
from planner.models.specs import BlockRun, ModelSpec, Trait
from planner.plans.plan import Plan
from planner.requests.request import Target
from planner.requests.workload import AttentionKernel, DType, Precision, TrainMethod, TrainWorkload
from tests.emitted.plans import PLAIN_NAMES, cluster_of, plan_of

NO_RECOMPUTE = Recompute(granularity=Granularity.NONE)
FULL_RECOMPUTE = Recompute(granularity=Granularity.FULL)

SCALED: dict[str, float | str] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def swiglu(intermediate_size: int) -> DenseFeedForward:
    return DenseFeedForward(intermediate_size=intermediate_size, gated=True, activation=Activation.SILU)


ATTENTION = SelfAttention(num_attention_heads=8, num_key_value_heads=4, head_dim=8)
LATENT = LatentAttention(
    num_attention_heads=8, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6
)
EXPERTS = MixtureOfExperts(
    num_experts=8,
    experts_per_token=2,
    expert=swiglu(32),
    router=Router(score=RouterScore.SIGMOID, num_groups=4, groups_per_token=2, weight_factor=2.5),
    shared=swiglu(32),
    shared_gate=True,
)

LLAMA = ModelSpec(
    name="tiny llama",
    architecture="LlamaForCausalLM",
    hidden_size=64,
    vocab_size=512,
    tie_word_embeddings=False,
    max_position_embeddings=4096,
    norm=Norm.RMS,
    position_embedding=PositionEmbedding.ROPE,
    runs=(BlockRun(block=Block(mixer=ATTENTION, feed_forward=swiglu(160)), count=4),),
    norm_epsilon=1e-5,
    rope_theta=10000.0,
    rope_scaling=SCALED,
)

TIED = replace(LLAMA, name="tiny tied", tie_word_embeddings=True, rope_scaling={"rope_type": "linear", "factor": 2.0})

GPT = replace(
    LLAMA,
    name="tiny gpt",
    norm=Norm.LAYER,
    position_embedding=PositionEmbedding.LEARNED,
    position_offset=2,
    max_position_embeddings=64,
    rope_theta=None,
    rope_scaling={},
    embedding_norm=True,
    lm_head_bias=True,
    runs=(
        BlockRun(
            block=Block(
                mixer=replace(
                    ATTENTION,
                    qkv_bias=True,
                    output_bias=True,
                    qk_norm=QueryKeyNorm.HEAD,
                    window=8,
                    num_key_value_heads=8,
                ),
                feed_forward=DenseFeedForward(
                    intermediate_size=96, gated=False, activation=Activation.GELU_TANH, bias=True
                ),
                parallel=True,
                num_norms=1,
                num_post_norms=2,
            ),
            count=2,
        ),
        BlockRun(
            block=Block(
                mixer=replace(ATTENTION, chunk=12),
                feed_forward=DenseFeedForward(intermediate_size=96, gated=False, activation=Activation.RELU2),
            ),
            count=2,
        ),
    ),
)

LATENT_EXPERTS = replace(
    LLAMA,
    name="tiny latent experts",
    rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    runs=(
        BlockRun(block=Block(mixer=LATENT, feed_forward=swiglu(160)), count=1),
        BlockRun(block=Block(mixer=LATENT, feed_forward=EXPERTS), count=3),
    ),
)

LATENT_DENSE = replace(
    LLAMA,
    name="tiny latent",
    runs=(BlockRun(block=Block(mixer=replace(LATENT, q_lora_rank=None), feed_forward=swiglu(160)), count=4),),
)


def layout_with(
    layers: tuple[int, ...],
    *,
    tp: int = 1,
    dp: int = 1,
    cp: int = 1,
    zero_stage: int = 1,
    micro_batch_size: int = 1,
    num_microbatches: int = 4,
    recompute: Recompute = NO_RECOMPUTE,
    secondary_shard: int = 1,
) -> Layout:
    """Return a layout of these stages with the overlap that DeepSpeed has."""
    pp = len(layers)
    layout = Layout(
        tp=tp,
        sequence_parallel=False,
        pp=pp,
        vpp=1,
        cp=cp,
        ulysses=cp,
        dp=dp,
        zero_stage=zero_stage,
        micro_batch_size=micro_batch_size,
        num_microbatches=num_microbatches,
        schedule=Schedule.ONE_F_ONE_B if pp > 1 else Schedule.NO_PIPELINE,
        recompute=recompute,
        overlap=Overlap(grad_reduce=False, param_gather=False, p2p=False),
        stages=stages_from_counts(layers),
        secondary_shard=secondary_shard,
    )
    return replace(layout, overlap=overlap_of(layout))


def deepspeed_plan(model: ModelSpec, layout: Layout, *, gpus_per_node: int = 8, **workload: object) -> Plan:
    """Return a plan for DeepSpeed with this one layout."""
    facts = {"seq_len": 32, "global_batch_size": layout.global_batch_size, "precision": Precision.BF16} | workload
    per_node = math.gcd(gpus_per_node, layout.world_size)
    cluster = cluster_of(layout.world_size // per_node, per_node)
    plan = plan_of(model, TrainWorkload(**facts), layout, cluster)  # type: ignore[arg-type]
    return replace(plan, target=Target.DEEPSPEED, request=replace(plan.request, target=Target.DEEPSPEED))


@st.composite
def deepspeed_plans(draw: st.DrawFn, *, names: st.SearchStrategy[str] = PLAIN_NAMES) -> Plan:
    """Draw a plan that DeepSpeed can express: each kind of layout, uneven stages, both precisions."""
    kind = draw(st.sampled_from(("data", "tensor", "context", "pipeline")))
    split = 1 if kind == "data" else draw(st.sampled_from((2, 4)))
    zero_stage = draw(st.sampled_from({"data": (1, 2, 3), "tensor": (1, 2), "context": (2, 3), "pipeline": (1,)}[kind]))
    layers = tuple(draw(st.lists(st.integers(1, 4), min_size=split, max_size=split))) if kind == "pipeline" else (4,)
    if len(layers) > 2 and draw(st.booleans()):
        layers = (0, *layers[1:-1], 0)
    layout = layout_with(
        layers,
        tp=split if kind == "tensor" else 1,
        cp=split if kind == "context" else 1,
        dp=draw(st.sampled_from((1, 2, 6))),
        zero_stage=zero_stage,
        micro_batch_size=draw(st.integers(1, 4)),
        num_microbatches=draw(st.integers(1, 6)),
        recompute=draw(st.sampled_from((NO_RECOMPUTE, FULL_RECOMPUTE))),
    )
    if zero_stage == 3 and draw(st.booleans()):
        layout = replace(layout, secondary_shard=layout.world_size)
    model = draw(st.sampled_from((LLAMA, TIED, GPT) if kind == "tensor" else (LLAMA, TIED, GPT, LATENT_EXPERTS)))
    model = replace(
        model,
        name=draw(names),
        vocab_size=draw(st.integers(1, 200_000)),
        traits=draw(st.sampled_from(((), (Trait.ZERO_CENTERED_NORM, Trait.INTERLEAVED_ROTARY)))),
        runs=(BlockRun(block=model.distinct_blocks[0], count=sum(layers)),),
    )
    precision = draw(st.sampled_from((Precision.BF16, Precision.FP16)))
    return deepspeed_plan(
        model,
        layout,
        seq_len=draw(st.sampled_from((32, 4096))),
        precision=precision,
        gradient_dtype=draw(st.sampled_from((DType.FP32, precision.parameter_dtype))),
        attention_kernel=draw(st.sampled_from(AttentionKernel)),
        method=draw(st.sampled_from((TrainMethod.PRETRAIN, TrainMethod.FULL_FINETUNE))),
        hidden_dropout=draw(st.sampled_from((0.0, 0.1))),
        attention_dropout=draw(st.sampled_from((0.0, 0.1))),
        data_path=tuple(draw(st.lists(names, max_size=2))),
    )
