"""Small named specs that many tests share; their figures are made up and stand for no hardware."""

from dataclasses import replace

from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.models.blocks import Activation, Block, DenseFeedForward, Norm, PositionEmbedding, SelfAttention
from planner.models.specs import BlockRun, ModelSpec
from planner.plans.choices import (
    Degraded,
    Front,
    FrontPoint,
    KeptLayout,
    NodeChoice,
    NodeCount,
    NodeVerdict,
    Robustness,
    SlowCase,
    Spare,
)
from planner.plans.plan import (
    Certainty,
    Infeasible,
    MemoryLine,
    Phase,
    Plan,
    PlannedLayout,
    Relaxation,
    SearchSummary,
    Status,
    TimeLine,
)
from planner.requests.request import Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Precision, TrainWorkload
from profiles.hardware import Cluster, Device, LinkKind, LinkLevel, PeerTopology

GIB = 1 << 30


def tiny_dense_model(*, num_layers: int = 4) -> ModelSpec:
    """Return a Llama-like model of 64 hidden, 8 query heads, 4 key/value heads."""
    block = Block(
        mixer=SelfAttention(num_attention_heads=8, num_key_value_heads=4, head_dim=8),
        feed_forward=DenseFeedForward(intermediate_size=160, gated=True, activation=Activation.SILU),
    )
    return ModelSpec(
        name="tiny",
        architecture="LlamaForCausalLM",
        hidden_size=64,
        vocab_size=512,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
        norm=Norm.RMS,
        position_embedding=PositionEmbedding.ROPE,
        runs=(BlockRun(block=block, count=num_layers),),
        norm_epsilon=1e-5,
        rope_theta=10000.0,
        rope_scaling={"factor": 8.0, "rope_type": "llama3"},
    )


def wide_dense_model(*, num_layers: int = 6) -> ModelSpec:
    """Return layers of 4,096 hidden, whose memory is more than a context's and whose work is more than a message's."""
    block = Block(
        mixer=SelfAttention(num_attention_heads=32, num_key_value_heads=8, head_dim=128),
        feed_forward=DenseFeedForward(intermediate_size=14336, gated=True, activation=Activation.SILU),
    )
    run = BlockRun(block=block, count=num_layers)
    return replace(tiny_dense_model(), name="wide", hidden_size=4096, vocab_size=32000, runs=(run,))


def tiny_device() -> Device:
    """Return a GPU with 16 GiB that multiplies in bf16, fp16 and fp8."""
    return Device(
        name="tiny-gpu",
        vendor="nvidia",
        architecture="hopper",
        compute_capability="9.0",
        num_compute_units=100,
        memory_bytes=16 * GIB,
        memory_bytes_per_second=1e12,
        dense_flops_per_second={"bf16": 4e14, "fp16": 4e14, "fp32": 2e13, "fp8": 8e14},
        peer_bytes_per_second=2e11,
        peer_topology=PeerTopology.SWITCHED,
        host_bytes_per_second=2.5e10,
        host_link="pcie4",
        tdp_watts=500.0,
        sources={"memory_bytes": "made up for tests"},
    )


def two_node_cluster(*, num_nodes: int = 2) -> Cluster:
    """Return nodes of 4 GPUs with a fast link inside and a slow one outside."""
    nvlink = LinkLevel(
        name="nvlink",
        kind=LinkKind.PEER,
        num_gpus=4,
        bytes_per_second=2e11,
        latency_seconds=2e-6,
        source="made up",
    )
    rail = LinkLevel(
        name="rail",
        kind=LinkKind.NETWORK,
        num_gpus=4 * num_nodes,
        bytes_per_second=2.5e10,
        latency_seconds=5e-6,
        source="made up",
    )
    return Cluster(
        name="two-nodes",
        device=tiny_device(),
        gpus_per_node=4,
        num_nodes=num_nodes,
        levels=(nvlink, rail) if num_nodes > 1 else (nvlink,),
        host_memory_bytes=256 * GIB,
        nvme_bytes_per_second=None,
        nvme_bytes=None,
        price_per_gpu_hour=2.0,
        watts_per_gpu=600.0,
    )


def tiny_workload() -> TrainWorkload:
    """Return 16 sequences of 128 tokens in bf16, for a million tokens."""
    return TrainWorkload(seq_len=128, global_batch_size=16, precision=Precision.BF16, tokens_to_train=1_000_000)


def tiny_request() -> PlanRequest:
    """Return the workload with tp bounded."""
    return PlanRequest(
        workload=tiny_workload(),
        constraints=Constraints(
            degrees={"tp": Bounds(allowed=(1, 2)), "pp": Bounds(maximum=4)}, recompute=("none", "selective")
        ),
        memory_headroom=0.05,
        target=Target.MEGATRON,
        objective=Objective.STEP_TIME,
    )


def tiny_layout() -> Layout:
    """Return tp 2, pp 2, dp 2 with 1F1B on the 8 GPUs of `two_node_cluster`."""
    return Layout(
        tp=2,
        sequence_parallel=True,
        pp=2,
        vpp=1,
        dp=2,
        zero_stage=1,
        micro_batch_size=1,
        num_microbatches=8,
        schedule=Schedule.ONE_F_ONE_B,
        recompute=Recompute(granularity=Granularity.SELECTIVE, modules=("core_attn",)),
        overlap=Overlap(grad_reduce=True, param_gather=True, p2p=False),
        stages=stages_from_counts((2, 2)),
    )


def tiny_planned_layout(*, step_seconds: float = 0.25) -> PlannedLayout:
    """Return `tiny_layout` with a made-up price whose terms add up."""
    memory = tuple(
        MemoryLine(rank=rank, phase=phase, term=term, num_bytes=num_bytes, source=source)
        for rank in (0, 4)
        for phase in (Phase.INITIALISATION, Phase.FORWARD_BACKWARD)
        for term, num_bytes, source in (
            ("weights", 2 * GIB + rank, "2 bytes a parameter"),
            ("activations", GIB if phase is Phase.FORWARD_BACKWARD else 0, f"in flight on rank {rank}"),
        )
    )
    return PlannedLayout(
        layout=tiny_layout(),
        step_seconds=step_seconds,
        reevaluated_step_seconds=step_seconds,
        tokens_per_second_per_gpu=16 * 128 / step_seconds / 8,
        mfu=0.25,
        peak_memory_bytes=3 * GIB + 4,
        memory_limit_bytes=15 * GIB,
        memory=memory,
        time=(
            TimeLine(term="gemm", seconds=step_seconds * 0.75, source="analytic: roofline"),
            TimeLine(term="pipeline bubble", seconds=step_seconds * 0.25, source="simulated"),
        ),
        assumptions=("the fabric is idle otherwise",),
        lower_bound_seconds=step_seconds * 0.5,
    )


def tiny_certainty() -> Certainty:
    """Return bands that are made up."""
    return Certainty(half_width=0.25, source="published runs", ratio_half_width=0.1, ratio_source="sets of choices")


def tiny_plan() -> Plan:
    """Return a plan with a winner, a runner-up and a baseline."""
    return Plan(
        model=tiny_dense_model(),
        cluster=two_node_cluster(),
        request=tiny_request(),
        target=Target.MEGATRON,
        status=Status.FEASIBLE,
        objective=Objective.STEP_TIME,
        bound=0.2,
        gap=0.2,
        search=SearchSummary(
            considered=10,
            legal=6,
            pruned={"over memory": 3, "tp does not divide heads": 4},
            simulated=3,
            dimensions=("tp",),
        ),
        plans=(tiny_planned_layout(), tiny_planned_layout(step_seconds=0.5)),
        baseline=tiny_planned_layout(step_seconds=1.0),
        infeasible=None,
        certainty=tiny_certainty(),
    )


def tiny_robust_plan() -> Plan:
    """Return the plan as one that was chosen for its worst case, with cases that are made up."""
    plan = tiny_plan()
    predicted = SlowCase(
        slow="",
        factor=1.0,
        source="",
        best_seconds=0.25,
        bound_seconds=0.25,
        fastest_seconds=0.25,
        seconds_P=(0.25, 0.25),
    )
    slower = replace(
        predicted,
        slow="collectives between nodes",
        factor=1.5,
        source="made up",
        best_seconds=0.5,
        bound_seconds=0.375,
        fastest_seconds=0.75,
        seconds_P=(0.5625, 0.6875),
    )
    return replace(
        plan,
        request=replace(plan.request, objective=Objective.ROBUST),
        objective=Objective.ROBUST,
        bound=0.0625,
        gap=1.0 / 18.0,
        robustness=Robustness(
            fastest=replace(tiny_layout(), stages=stages_from_counts((1, 3))),
            cases=(predicted, slower),
            least_loss=0.0625,
            uneven_least_loss=0.0,
        ),
    )


def tiny_plan_with_choices() -> Plan:
    """Return the plan with all that can be asked beside it: nodes, a deadline, a front, a lost node."""
    plan = tiny_plan()
    best = plan.best
    point = FrontPoint(
        layout=best.layout,
        step_seconds=best.step_seconds,
        peak_memory_bytes=best.peak_memory_bytes,
        limit_bytes=best.memory_limit_bytes,
        bound_seconds=best.step_seconds * 0.5,
    )
    lower = replace(point, step_seconds=1.0, peak_memory_bytes=GIB, limit_bytes=2 * GIB, bound_seconds=1.0)
    fewer = replace(tiny_layout(), dp=1, num_microbatches=16)
    degraded = Degraded(num_nodes=1, layout=fewer, step_seconds=0.5, lost_fraction=0.5)
    return replace(
        plan,
        request=replace(plan.request, deadline_days=30.0, node_counts=Bounds(minimum=1)),
        node_choice=NodeChoice(
            num_offered=4,
            counts=(
                NodeCount(num_nodes=1, verdict=NodeVerdict.BOUND_TOO_SLOW, bound_seconds=0.75),
                NodeCount(num_nodes=2, verdict=NodeVerdict.BEST, step_seconds=0.25, bound_seconds=0.2),
                NodeCount(num_nodes=3, verdict=NodeVerdict.NO_LAYOUT),
                NodeCount(num_nodes=4, verdict=NodeVerdict.NO_LAYOUT),
            ),
            proven=True,
        ),
        front=Front(points=(point, lower), step_bytes=GIB, open_below_bytes=None),
        spare=Spare(
            num_lost=1,
            replanned=degraded,
            reason="",
            proven=True,
            kept=(
                KeptLayout(index=0, degraded=None, reason="dp 1 needs 16.00 GiB a GPU, of 15.00 GiB usable"),
                KeptLayout(index=1, degraded=degraded),
            ),
        ),
    )


def tiny_infeasible_plan() -> Plan:
    """Return the result when nothing fits."""
    return Plan(
        model=tiny_dense_model(),
        cluster=two_node_cluster(),
        request=tiny_request(),
        target=Target.MEGATRON,
        status=Status.INFEASIBLE,
        objective=Objective.STEP_TIME,
        bound=None,
        gap=None,
        search=SearchSummary(considered=2, legal=1, pruned={"over memory": 1}, simulated=1, dimensions=("tp",)),
        plans=(),
        baseline=None,
        infeasible=Infeasible(
            binding="The weights alone fill the memory.",
            shortfall_bytes=5 * GIB,
            nearest=tiny_planned_layout(),
            relaxations=(Relaxation(change="4 nodes instead of 2", path="cluster.nodes", value="4"),),
        ),
        certainty=tiny_certainty(),
    )
