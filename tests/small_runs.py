"""Hypothesis strategies: runs so small that every layout can be looked at, for any target that takes them."""

from dataclasses import replace

from hypothesis import assume
from hypothesis import strategies as st

from benchmarks.brute_force import can_say_model, count_layouts
from benchmarks.meshes import Run
from planner.models.blocks import (
    Activation,
    Block,
    DenseFeedForward,
    FeedForward,
    MixtureOfExperts,
    Router,
    SelfAttention,
)
from planner.models.specs import BlockRun, ModelSpec
from planner.requests.request import Constraints, Objective, PlanRequest
from planner.requests.workload import Optimizer, Precision
from profiles.hardware import Cluster
from tests.builders import tiny_dense_model, two_node_cluster
from tests.small_spaces import mixed_models, models, targets, workloads

MANY_LAYOUTS = 20_000
"""More than are priced one by one, few enough to be listed."""


def four_gpus(*, gpus_per_node: int) -> Cluster:
    """Return 4 GPUs in one node, or in two with a slow link between them."""
    cluster = two_node_cluster(num_nodes=4 // gpus_per_node)
    sizes = (gpus_per_node, 4)
    levels = tuple(replace(level, num_gpus=size) for level, size in zip(cluster.levels, sizes, strict=False))
    return replace(cluster, gpus_per_node=gpus_per_node, levels=levels)


@st.composite
def usual_models(draw: st.DrawFn) -> ModelSpec:
    """Return a few equal layers that every framework has words for, dense or of experts."""
    width = draw(st.sampled_from((128, 512, 4096)))
    dense = DenseFeedForward(intermediate_size=width, gated=True, activation=Activation.SILU)
    experts = MixtureOfExperts(num_experts=4, experts_per_token=2, expert=dense, router=Router())
    kinds: tuple[FeedForward, ...] = (dense, experts)
    mixer = SelfAttention(num_attention_heads=8, num_key_value_heads=draw(st.sampled_from((1, 2, 8))), head_dim=64)
    return replace(
        tiny_dense_model(),
        hidden_size=512,
        vocab_size=draw(st.sampled_from((512, 4096))),
        tie_word_embeddings=draw(st.booleans()),
        runs=(
            BlockRun(
                block=Block(mixer=mixer, feed_forward=draw(st.sampled_from(kinds))), count=draw(st.integers(2, 6))
            ),
        ),
    )


@st.composite
def small_runs(draw: st.DrawFn, *, most_layouts: int) -> Run:
    """Return a run on 4 GPUs that has at most so many legal layouts, and one at least."""
    longest = draw(st.sampled_from((1024, 4096, 8192)))
    model = draw(st.one_of(models(most_layers=6, kinds=1), mixed_models(most_layers=6), usual_models()))
    workload = replace(
        draw(workloads(precisions=(Precision.BF16, Precision.FP16))),
        seq_len=longest,
        global_batch_size=draw(st.sampled_from((1, 2, 3, 4, 6))),
        optimizer=draw(st.sampled_from((Optimizer.ADAM, Optimizer.ADAM, Optimizer.ADAM, Optimizer.SGD))),
    )
    run = Run(
        model=replace(model, max_position_embeddings=longest),
        cluster=four_gpus(gpus_per_node=draw(st.sampled_from((2, 4)))),
        request=PlanRequest(
            workload=workload,
            constraints=Constraints(),
            memory_headroom=0.0,
            target=draw(targets()),
            objective=Objective.STEP_TIME,
        ),
    )
    assume(can_say_model(run))
    assume(count_layouts(run, at_most=most_layouts, uneven=True))
    return run


def with_drives(cluster: Cluster, *, capacity_bytes: int = 1 << 43) -> Cluster:
    """Return a cluster whose nodes have drives, slow enough to be noticed and slower to write."""
    return replace(cluster, nvme_bytes=capacity_bytes, nvme_bytes_per_second=6e9, nvme_write_bytes_per_second=2e9)


def with_memory(run: Run, memory_bytes: int) -> Run:
    """Return a run on GPUs with so much memory."""
    device = replace(run.cluster.device, memory_bytes=memory_bytes)
    return replace(run, cluster=replace(run.cluster, device=device))
