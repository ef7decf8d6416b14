"""Plans to emit: a handful built by hand, and Hypothesis strategies over everything that Megatron-LM can express."""

import math

from hypothesis import strategies as st

from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.models.blocks import (
    Activation,
    Block,
    DenseFeedForward,
    Norm,
    PositionEmbedding,
    QueryKeyNorm,
    SelfAttention,
)
from planner.models.specs import BlockRun, ModelSpec, Trait
from planner.plans.plan import Plan, PlannedLayout, SearchSummary, Status
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.requests.workload import AttentionKernel, DType, Lora, Optimizer, Precision, TrainMethod, TrainWorkload
from profiles.hardware import Cluster, Device, LinkKind, LinkLevel, PeerTopology
from tests.emitted.models import LLAMA3_SCALING

NO_RECOMPUTE = Recompute(granularity=Granularity.NONE)


def cluster_of(num_nodes: int, gpus_per_node: int, *, name: str = "nodes", capability: str | None = "9.0") -> Cluster:
    """Return equal nodes whose GPU has this compute capability; no other figure matters to an emitter."""
    device = Device(
        name="some-gpu",
        vendor="nvidia" if capability else "amd",
        architecture="hopper",
        compute_capability=capability,
        num_compute_units=1,
        memory_bytes=1,
        memory_bytes_per_second=1.0,
        dense_flops_per_second={"bf16": 1.0},
        peer_bytes_per_second=1.0,
        peer_topology=PeerTopology.SWITCHED,
        host_bytes_per_second=1.0,
        host_link="pcie5",
        tdp_watts=1.0,
        sources={},
    )
    link = LinkLevel(
        name="all",
        kind=LinkKind.PEER,
        num_gpus=num_nodes * gpus_per_node,
        bytes_per_second=1.0,
        latency_seconds=0.0,
        source="made up",
    )
    return Cluster(
        name=name,
        device=device,
        gpus_per_node=gpus_per_node,
        num_nodes=num_nodes,
        levels=(link,),
        host_memory_bytes=1,
        nvme_bytes_per_second=None,
        nvme_bytes=None,
        price_per_gpu_hour=None,
        watts_per_gpu=None,
    )


def llama(
    *,
    num_layers: int,
    hidden_size: int,
    intermediate_size: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    vocab_size: int = 128256,
    name: str = "llama",
) -> ModelSpec:
    """Return a Llama-3.1-shaped model with heads of 128."""
    block = Block(
        mixer=SelfAttention(
            num_attention_heads=num_attention_heads, num_key_value_heads=num_key_value_heads, head_dim=128
        ),
        feed_forward=DenseFeedForward(intermediate_size=intermediate_size, gated=True, activation=Activation.SILU),
    )
    return ModelSpec(
        name=name,
        architecture="LlamaForCausalLM",
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        tie_word_embeddings=False,
        max_position_embeddings=131072,
        norm=Norm.RMS,
        position_embedding=PositionEmbedding.ROPE,
        runs=(BlockRun(block=block, count=num_layers),),
        norm_epsilon=1e-5,
        rope_theta=500000.0,
        rope_scaling=LLAMA3_SCALING,
    )


LLAMA_8B = llama(
    num_layers=32, hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8
)
LLAMA_70B = llama(
    num_layers=80, hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8
)
LLAMA_405B = llama(
    num_layers=126, hidden_size=16384, intermediate_size=53248, num_attention_heads=128, num_key_value_heads=8
)


def layout_of_degrees(
    *,
    layers: tuple[int, ...],
    num_microbatches: int,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    micro_batch_size: int = 1,
    zero_stage: int = 1,
    recompute: Recompute = NO_RECOMPUTE,
    rank_order: str = "tp-cp-ep-dp-pp",
    p2p: bool | None = None,
    overlap_dp: bool = True,
    sequence_parallel: bool | None = None,
    cp: int = 1,
    ulysses: int = 1,
    ep: int = 1,
    etp: int = 1,
    state_replicas: int = 1,
) -> Layout:
    """Return the layout with the schedule and overlaps that Megatron runs at these degrees."""
    vpp = len(layers) // pp
    schedule = Schedule.NO_PIPELINE
    if pp > 1:
        schedule = Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
    return Layout(
        tp=tp,
        sequence_parallel=tp > 1 if sequence_parallel is None else sequence_parallel,
        pp=pp,
        vpp=vpp,
        dp=dp,
        zero_stage=zero_stage,
        micro_batch_size=micro_batch_size,
        num_microbatches=num_microbatches,
        schedule=schedule,
        recompute=recompute,
        overlap=Overlap(
            grad_reduce=overlap_dp,
            param_gather=overlap_dp and zero_stage > 0,
            p2p=vpp > 1 if p2p is None else p2p,
        ),
        stages=stages_from_counts(layers),
        cp=cp,
        ulysses=ulysses,
        ep=ep,
        etp=etp,
        state_replicas=state_replicas,
        rank_order=rank_order,
    )


def plan_of(model: ModelSpec, workload: TrainWorkload, layout: Layout, cluster: Cluster) -> Plan:
    """Return a plan with this one layout; its prices are made up, an emitter reads none."""
    planned = PlannedLayout(
        layout=layout,
        step_seconds=1.0,
        reevaluated_step_seconds=1.0,
        tokens_per_second_per_gpu=1.0,
        mfu=0.4,
        peak_memory_bytes=1,
        memory_limit_bytes=1,
        memory=(),
        time=(),
        assumptions=(),
        lower_bound_seconds=1.0,
    )
    return Plan(
        model=model,
        cluster=cluster,
        request=PlanRequest(
            workload=workload,
            constraints=Constraints(),
            memory_headroom=0.05,
            target=Target.MEGATRON,
            objective=Objective.STEP_TIME,
        ),
        target=Target.MEGATRON,
        status=Status.OPTIMAL,
        objective=Objective.STEP_TIME,
        bound=1.0,
        gap=0.0,
        search=SearchSummary(considered=1, legal=1, pruned={}, simulated=1, dimensions=()),
        plans=(planned,),
        baseline=None,
        infeasible=None,
    )


PLAIN_NAMES = st.just("model")

HOSTILE_TEXT = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
    st.sampled_from(
        (
            "$(touch broken)",
            "`touch broken`",
            "'; touch broken; '",
            '"; touch broken; "',
            "a\ntouch broken\n",
            "a\r\ntouch broken",
            "\\\n#SBATCH --wrap=x",
            "--config-file",
            "-",
            "*",
            "~",
            "a b\tc",
            "[0]=x",
            "!!",
            "{a,b}",
            ") touch broken (",
            "\u2028touch broken",
        )
    ),
)


@st.composite
def expressible_plans(draw: st.DrawFn, *, names: st.SearchStrategy[str] = PLAIN_NAMES) -> Plan:
    """Draw a plan that Megatron-LM can express: any legal degrees, uneven stages, every recompute and precision."""
    tp, dp = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from((1, 2, 4)))
    pp = draw(st.sampled_from((1, 2, 3, 4)))
    vpp = draw(st.sampled_from((1, 2, 3))) if pp > 1 else 1
    layers = draw(_layers(pp * vpp))
    model = draw(_models(num_layers=sum(layers), tp=tp, names=names))
    zero_stage = draw(st.sampled_from((0, 1) if max(pp, tp) > 1 else (0, 1, 2, 3)))
    micro_batch_size = draw(st.integers(1, 4))
    num_microbatches = draw(st.integers(1, 6)) * (pp if vpp > 1 else 1)
    overlap_dp = draw(st.booleans())
    layout = layout_of_degrees(
        layers=layers,
        num_microbatches=num_microbatches,
        tp=tp,
        pp=pp,
        dp=dp,
        micro_batch_size=micro_batch_size,
        zero_stage=zero_stage,
        recompute=draw(_recompute(max(layers))),
        rank_order=draw(st.sampled_from(("tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"))),
        p2p=vpp > 1 and (pp == 2 or draw(st.booleans())),
        overlap_dp=overlap_dp,
        sequence_parallel=tp > 1 and draw(st.booleans()),
    )
    workload = draw(_workloads(layout))
    gpus_per_node = math.gcd(layout.world_size, 8)
    cluster = cluster_of(layout.world_size // gpus_per_node, gpus_per_node, name=draw(names))
    return plan_of(model, workload, layout, cluster)


@st.composite
def _layers(draw: st.DrawFn, stages: int) -> tuple[int, ...]:
    """Draw even or uneven stages; only the ends may hold no layer."""
    if draw(st.booleans()):
        return (draw(st.integers(1, 3)),) * stages
    inner = draw(st.lists(st.integers(1, 4), min_size=stages, max_size=stages))
    if stages > 2 and draw(st.booleans()):
        inner[0] = inner[-1] = 0
    return tuple(inner)


@st.composite
def _recompute(draw: st.DrawFn, most_layers: int) -> Recompute:
    kind = draw(st.sampled_from(Granularity))
    if kind is Granularity.SELECTIVE:
        modules = draw(st.sampled_from((("core_attn",), ("mlp",), ("core_attn", "mlp"))))
        return Recompute(granularity=kind, modules=modules)
    if kind is Granularity.FULL:
        return Recompute(granularity=kind, num_layers=draw(st.none() | st.integers(1, max(1, most_layers))))
    return NO_RECOMPUTE


@st.composite
def _models(draw: st.DrawFn, *, num_layers: int, tp: int, names: st.SearchStrategy[str]) -> ModelSpec:
    groups = draw(st.sampled_from((tp, 2 * tp, 1)))
    qkv_bias, all_biases = draw(st.sampled_from(((False, False), (True, False), (True, True))))
    gated = draw(st.booleans())
    plain = [Activation.GELU, Activation.RELU2, *([Activation.GELU_TANH] if all_biases else [])]
    activation = Activation.SILU if gated else draw(st.sampled_from(plain))
    block = Block(
        mixer=SelfAttention(
            num_attention_heads=math.lcm(groups, tp) * draw(st.sampled_from((1, 2))),
            num_key_value_heads=groups,
            head_dim=draw(st.sampled_from((64, 128))),
            qkv_bias=qkv_bias,
            output_bias=all_biases,
            qk_norm=draw(st.sampled_from((QueryKeyNorm.NONE, QueryKeyNorm.HEAD, QueryKeyNorm.UNIT))),
        ),
        feed_forward=DenseFeedForward(
            intermediate_size=64 * tp * draw(st.integers(1, 3)), gated=gated, activation=activation, bias=all_biases
        ),
    )
    position = draw(st.sampled_from(PositionEmbedding))
    rotary = position is PositionEmbedding.ROPE
    return ModelSpec(
        name=draw(names),
        architecture="inline",
        hidden_size=draw(st.sampled_from((256, 512))),
        vocab_size=draw(st.integers(1, 200_000)),
        tie_word_embeddings=draw(st.booleans()),
        max_position_embeddings=8192,
        norm=draw(st.sampled_from((Norm.RMS, Norm.LAYER))),
        position_embedding=position,
        runs=(BlockRun(block=block, count=num_layers),),
        norm_epsilon=draw(st.sampled_from((1e-5, 1e-6))),
        rope_theta=draw(st.sampled_from((10000.0, 500000.0))) if rotary else None,
        rotary_fraction=draw(st.sampled_from((0.5, 1.0))) if rotary else 1.0,
        rope_scaling=draw(_rope_scaling()) if rotary else {},
        traits=draw(st.sampled_from(((), (Trait.ZERO_CENTERED_NORM,), (Trait.INTERLEAVED_ROTARY,)))),
    )


def _rope_scaling() -> st.SearchStrategy[dict[str, float | str]]:
    return st.sampled_from(
        (
            {},
            LLAMA3_SCALING,
            {"rope_type": "linear", "factor": 4.0},
            {
                "rope_type": "yarn",
                "factor": 2.5,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        )
    )


@st.composite
def _workloads(draw: st.DrawFn, layout: Layout) -> TrainWorkload:
    precision = draw(st.sampled_from([kind for kind in Precision if kind is not Precision.FP8_MXFP8]))
    optimizer = draw(st.sampled_from(Optimizer)) if layout.zero_stage == 0 else Optimizer.ADAM
    aware = optimizer is Optimizer.ADAM and layout.zero_stage > 0
    seq_len = draw(st.sampled_from((1024, 4096)))
    steps = draw(st.integers(1, 10_000))
    adapters = layout.zero_stage < 2 and all(stage.num_layers for stage in layout.stages)
    method = draw(st.sampled_from([kind for kind in TrainMethod if adapters or kind is not TrainMethod.LORA]))
    targets = draw(st.sampled_from((("qkv",), ("qkv", "proj", "fc1", "fc2"))))
    lora = Lora(rank=draw(st.sampled_from((8, 64))), alpha=16.0, target_modules=targets)
    return TrainWorkload(
        seq_len=seq_len,
        global_batch_size=layout.global_batch_size,
        precision=precision,
        master_dtype=draw(st.sampled_from((DType.FP32, DType.FP16))) if aware else DType.FP32,
        gradient_dtype=draw(st.sampled_from((DType.FP32, precision.parameter_dtype))),
        moment_dtype=draw(st.sampled_from((DType.FP32, DType.BF16))) if aware else DType.FP32,
        optimizer=optimizer,
        attention_kernel=draw(st.sampled_from(AttentionKernel)),
        method=method,
        lora=lora if method is TrainMethod.LORA else None,
        tokens_to_train=steps * seq_len * layout.global_batch_size,
        hidden_dropout=draw(st.sampled_from((0.0, 0.1))),
        attention_dropout=draw(st.sampled_from((0.0, 0.1))),
    )
