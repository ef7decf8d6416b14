"""One point of the space as a chain partition problem, and the solution as a layout.

Every block keeps the point's recompute choice, so a layer has one option. With one chunk a rank the problem carries
each rank's exact capacity (demand rounded up), so its optimum is exact under memory for the surrogate
`(m - 1) max + sum`. With several chunks a rank the split is as even as the layer count allows, balanced in time, and
memory is checked afterwards.
"""

import math

import numpy as np

from planner.communication import communicator_sizes
from planner.costs import ShapeCosts
from planner.layout import Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.memory import (
    CONTEXT_BYTES,
    FP8_COPY_BYTES,
    FRAGMENTATION_FRACTION,
    GROUP_COMMUNICATOR_BYTES,
    PAIR_COMMUNICATOR_BYTES,
    head_elements,
    head_peak_bytes,
    state_bytes,
)
from planner.shard import RankLayer
from planner.specs import ModelSpec, TrainWorkload
from solvers.problem import Problem

NO_LIMIT_BYTES = 1 << 60


def skeleton(  # noqa: PLR0913 - the dimensions of a point
    *,
    tp: int,
    sequence_parallel: bool,
    pp: int,
    vpp: int,
    dp: int,
    zero_stage: int,
    micro_batch_size: int,
    num_microbatches: int,
    recompute: Recompute,
) -> Layout:
    """Return a point of the space as a layout whose layers are not placed yet.

    Communication is overlapped wherever the schedule can: gradients and parameters over dp, transfers only with
    interleaving (Megatron-LM has no overlapped transfers in plain 1F1B).
    """
    schedule = Schedule.NO_PIPELINE
    if pp > 1:
        schedule = Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
    return Layout(
        tp=tp,
        sequence_parallel=sequence_parallel,
        pp=pp,
        vpp=vpp,
        dp=dp,
        zero_stage=zero_stage,
        micro_batch_size=micro_batch_size,
        num_microbatches=num_microbatches,
        schedule=schedule,
        recompute=recompute,
        overlap=Overlap(grad_reduce=dp > 1, param_gather=dp > 1 and zero_stage >= 1, p2p=vpp > 1),
        stages=stages_from_counts((0,) * (pp * vpp)),
    )


def formulate(
    *, model: ModelSpec, workload: TrainWorkload, costs: ShapeCosts, layout: Layout, limit_bytes: int
) -> Problem:
    """Return the chain partition problem of one point.

    Args:
        model: The model.
        workload: The training run.
        costs: Costs of the point's shape.
        layout: The point; its stages are ignored.
        limit_bytes: What each GPU may use.
    """
    choice = costs.recomputes.index(layout.recompute)
    blocks = [block for block, _ in costs.rank_model.blocks]
    kind_L = [blocks.index(block) for block in model.blocks]
    num_stages = layout.pp * layout.vpp
    seconds_D = [block.forward_seconds + block.backward_seconds_R[choice] for block in costs.blocks_D]
    ends_S = np.zeros(num_stages)
    ends_S[0] += costs.embedding.forward_seconds + costs.embedding.backward_seconds_R[choice]
    ends_S[-1] += costs.head.forward_seconds + costs.head.backward_seconds_R[choice]
    interleaved = layout.vpp > 1
    fewest, most = model.num_layers // num_stages, -(-model.num_layers // num_stages)
    micro = layout.num_microbatches
    in_flight_S = (
        [min(micro, layout.pp - stage) for stage in range(num_stages)] if not interleaved else [0] * num_stages
    )
    static_D, activation_D = _layer_bytes(workload, costs, layout, choice)
    fixed_S = [0] * num_stages if interleaved else _fixed_bytes_S(model, workload, costs, layout, choice)
    return Problem(
        bottleneck_weight=micro - 1 / layout.vpp,
        total_weight=1 / layout.vpp,
        seconds_LO=np.array([[seconds_D[kind]] for kind in kind_L]),
        static_bytes_LO=np.array([[0 if interleaved else static_D[kind]] for kind in kind_L], dtype=np.int64),
        activation_bytes_LO=np.array([[0 if interleaved else activation_D[kind]] for kind in kind_L], dtype=np.int64),
        fixed_seconds_S=ends_S,
        fixed_bytes_S=np.array(fixed_S, dtype=np.int64),
        in_flight_S=np.array(in_flight_S, dtype=np.int64),
        min_layers_S=np.full(num_stages, fewest if interleaved else 1, dtype=np.int64),
        max_layers_S=np.full(num_stages, most if interleaved else model.num_layers, dtype=np.int64),
        rank_of_stage_S=np.arange(num_stages, dtype=np.int64),
        capacity_bytes_R=np.full(num_stages, NO_LIMIT_BYTES if interleaved else limit_bytes, dtype=np.int64),
    )


def _padded(num_bytes: int) -> int:
    """Return dynamic bytes with their fragmentation, rounded up."""
    return math.ceil(num_bytes * (1.0 + FRAGMENTATION_FRACTION))


def _states(workload: TrainWorkload, layout: Layout, *, trainable: int, frozen: int) -> int:
    """Return weights, gradients and optimizer states of these elements, each rounded up."""
    per_element = state_bytes(workload)
    states, gradients, weights = (layout.dp if layout.zero_stage >= stage else 1 for stage in (1, 2, 3))
    return (
        -(-(trainable + frozen) * per_element.weight // weights)
        + -(-trainable * per_element.gradient // gradients)
        + -(-trainable * per_element.master // states)
        + -(-trainable * per_element.moments // states)
    )


def _layer_states(workload: TrainWorkload, layout: Layout, layer: RankLayer) -> int:
    copies = FP8_COPY_BYTES if workload.precision.is_fp8 else 0
    return copies * layer.num_elements(gemm_operand=True) + _states(
        workload,
        layout,
        trainable=layer.num_elements(trainable=True),
        frozen=layer.num_elements(trainable=False),
    )


def _layer_bytes(
    workload: TrainWorkload, costs: ShapeCosts, layout: Layout, choice: int
) -> tuple[list[int], list[int]]:
    """Return (static, activation) bytes of each distinct block."""
    recompute = costs.recomputes[choice]
    layers = [layer for _, layer in costs.rank_model.blocks]
    return (
        [_layer_states(workload, layout, layer) for layer in layers],
        [_padded(layer.saved_bytes(recompute)) for layer in layers],
    )


def _fixed_bytes_S(
    model: ModelSpec, workload: TrainWorkload, costs: ShapeCosts, layout: Layout, choice: int
) -> list[int]:
    """Return what each stage holds whatever its layers; the working set is the largest block's on every stage."""
    rank_model, recompute = costs.rank_model, costs.recomputes[choice]
    layers = [layer for _, layer in rank_model.blocks]
    working = max(layer.all_saved_bytes - layer.saved_bytes(recompute) + layer.transient_bytes for layer in layers)
    sizes = communicator_sizes(layout, tied_embedding=model.tie_word_embeddings)
    always = CONTEXT_BYTES + sum(PAIR_COMMUNICATOR_BYTES if size == 2 else GROUP_COMMUNICATOR_BYTES for size in sizes)
    if layout.pp > 1:
        always += _padded(2 * rank_model.stream_bytes)
    if layout.zero_stage == 3:
        always += 2 * max(layer.num_elements() for layer in layers) * state_bytes(workload).weight
    fixed = [always + _padded(working)] * layout.pp
    fixed[-1] = always + _padded(max(working, head_peak_bytes(rank_model)))
    embedding = rank_model.embedding
    fixed[0] += _states(
        workload,
        layout,
        trainable=embedding.num_elements(trainable=True),
        frozen=embedding.num_elements(trainable=False),
    )
    fixed[-1] += _states(
        workload,
        layout,
        trainable=head_elements(rank_model, pp=layout.pp, trainable=True),
        frozen=head_elements(rank_model, pp=layout.pp, trainable=False),
    )
    return fixed
