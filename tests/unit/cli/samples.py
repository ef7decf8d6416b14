"""Small plans whose every figure is known, to print."""

from dataclasses import replace

from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.models.blocks import Activation, Block, DenseFeedForward, Norm, PositionEmbedding, SelfAttention
from planner.models.specs import BlockRun, ModelSpec
from planner.plans.plan import (
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
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Precision, TrainWorkload
from profiles.hardware import Cluster, Device, LinkKind, LinkLevel, PeerTopology

GIB = 2**30


def sample_model() -> ModelSpec:
    """Return a model of four layers."""
    block = Block(
        mixer=SelfAttention(num_attention_heads=8, num_key_value_heads=2, head_dim=64),
        feed_forward=DenseFeedForward(intermediate_size=1024, gated=True, activation=Activation.SILU),
    )
    return ModelSpec(
        name="sample-4l",
        architecture="inline",
        hidden_size=512,
        vocab_size=1000,
        tie_word_embeddings=False,
        max_position_embeddings=2048,
        norm=Norm.RMS,
        position_embedding=PositionEmbedding.ROPE,
        runs=(BlockRun(block=block, count=4),),
        norm_epsilon=1e-5,
        rope_theta=10000.0,
    )


def sample_cluster() -> Cluster:
    """Return one node of four GPUs."""
    device = Device(
        name="gpu-8gb",
        vendor="nvidia",
        architecture="hopper",
        compute_capability="9.0",
        num_compute_units=10,
        memory_bytes=8 * GIB,
        memory_bytes_per_second=1e12,
        dense_flops_per_second={"bf16": 100e12},
        peer_bytes_per_second=100e9,
        peer_topology=PeerTopology.SWITCHED,
        host_bytes_per_second=32e9,
        host_link="pcie4",
        tdp_watts=300.0,
        sources={"memory_bytes": "data sheet, page 1", "dense_flops_per_second": "data sheet, page 2"},
    )
    link = LinkLevel(
        name="nvlink",
        kind=LinkKind.PEER,
        num_gpus=4,
        bytes_per_second=100e9,
        latency_seconds=2e-6,
        source="data sheet, page 3",
    )
    return Cluster(
        name="quad",
        device=device,
        gpus_per_node=4,
        num_nodes=1,
        levels=(link,),
        host_memory_bytes=64 * GIB,
        nvme_bytes_per_second=None,
        nvme_bytes=None,
        price_per_gpu_hour=2.5,
        watts_per_gpu=None,
    )


def sample_layout() -> Layout:
    """Return tp 2, pp 2, dp 1 with 16 micro-batches."""
    return Layout(
        tp=2,
        sequence_parallel=True,
        pp=2,
        vpp=1,
        dp=1,
        zero_stage=1,
        micro_batch_size=1,
        num_microbatches=16,
        schedule=Schedule.ONE_F_ONE_B,
        recompute=Recompute(granularity=Granularity.NONE),
        overlap=Overlap(grad_reduce=True, param_gather=True, p2p=False),
        stages=stages_from_counts((2, 2)),
    )


def spread_layout() -> Layout:
    """Return tp 2, cp 4, dp 4, pp 2 beside etp 1, ep 8, edp 4."""
    return replace(sample_layout(), cp=4, dp=4, ep=8)


def sample_planned() -> PlannedLayout:
    """Return a step of 200 ms that peaks at 6 GiB on rank 0."""
    weights = "2 bytes a parameter"
    memory = tuple(
        MemoryLine(rank=rank, phase=phase, term=term, num_bytes=num_bytes, source=source)
        for rank, phase, term, num_bytes, source in (
            (0, Phase.INITIALISATION, "weights", 2 * GIB, weights),
            (0, Phase.FORWARD_BACKWARD, "weights", 2 * GIB, weights),
            (0, Phase.FORWARD_BACKWARD, "activations", 4 * GIB, "saved tensors, 2 micro-batches in flight"),
            (0, Phase.OPTIMIZER_STEP, "weights", 2 * GIB, weights),
            (2, Phase.INITIALISATION, "weights", 2 * GIB, weights),
            (2, Phase.FORWARD_BACKWARD, "weights", 2 * GIB, weights),
            (2, Phase.FORWARD_BACKWARD, "activations", 2 * GIB, "saved tensors, 1 micro-batch in flight"),
            (2, Phase.OPTIMIZER_STEP, "weights", 2 * GIB, weights),
        )
    )
    return PlannedLayout(
        layout=sample_layout(),
        step_seconds=0.2,
        reevaluated_step_seconds=0.2,
        tokens_per_second_per_gpu=20480.0,
        mfu=0.45,
        peak_memory_bytes=6 * GIB,
        memory_limit_bytes=7 * GIB,
        memory=memory,
        time=(
            TimeLine(term="gemm", seconds=0.15, source="roofline"),
            TimeLine(term="pipeline bubble", seconds=0.05, source="simulated schedule"),
        ),
        assumptions=("GEMMs reach 80 % of the datasheet rate.",),
        lower_bound_seconds=0.19,
    )


def sample_plan() -> Plan:
    """Return a plan with one runner-up and a baseline."""
    best = sample_planned()
    runner_up = replace(
        best,
        layout=replace(best.layout, tp=4, pp=1, schedule=Schedule.NO_PIPELINE, stages=stages_from_counts((4,))),
        step_seconds=0.25,
        reevaluated_step_seconds=0.25,
        mfu=0.36,
        peak_memory_bytes=5 * GIB,
        memory=best.memory[:2],
        time=(
            TimeLine(term="gemm", seconds=0.16, source="roofline"),
            TimeLine(term="tensor-parallel collectives", seconds=0.09, source="ring over nvlink"),
        ),
    )
    return Plan(
        model=sample_model(),
        cluster=sample_cluster(),
        request=PlanRequest(
            workload=TrainWorkload(
                seq_len=1024, global_batch_size=16, precision=Precision.BF16, tokens_to_train=16384 * 432_000
            ),
            constraints=Constraints(),
            memory_headroom=0.125,
            target=Target.MEGATRON,
            objective=Objective.STEP_TIME,
        ),
        target=Target.MEGATRON,
        status=Status.OPTIMAL,
        objective=Objective.STEP_TIME,
        bound=0.2,
        gap=0.0,
        search=SearchSummary(
            considered=12,
            legal=4,
            pruned={"memory": 2, "tp does not divide the heads": 8},
            simulated=2,
            dimensions=("tp", "pp", "dp"),
        ),
        plans=(best, runner_up),
        baseline=runner_up,
        infeasible=None,
    )


def infeasible_plan() -> Plan:
    """Return a search that found nothing, with the closest attempt and one change that fits."""
    plan = sample_plan()
    nearest = replace(plan.best, memory_limit_bytes=5 * GIB)
    return replace(
        plan,
        status=Status.INFEASIBLE,
        bound=None,
        gap=None,
        plans=(),
        baseline=None,
        infeasible=Infeasible(
            binding="Memory: no layout keeps weights and activations below 5.00 GiB.",
            shortfall_bytes=1 * GIB,
            nearest=nearest,
            relaxations=(Relaxation(change="2 nodes instead of 1", path="cluster.nodes", value="2"),),
        ),
    )
