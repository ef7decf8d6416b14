"""What follows the pipeline of a step, at least: the gradient norm, and the optimizer step of an average rank.

Axes: X points, S shapes, G everything but routed experts, and these. Arrays over points, whatever the split.
"""

import numpy as np

from planner.arrays import FloatArray, IntArray
from planner.layout import Granularity, Layout, Offload, Overlap, Recompute, Schedule, stages_from_counts
from planner.offloading.drive_step import DriveStep
from planner.offloading.states import (
    SHARDED_WEIGHTS,
    HostedStep,
    driven_step,
    hosted_seconds,
    hosted_step,
    updated_elements,
)
from planner.ranks.communication import gradient_norm_reduction, optimizer_bytes, optimizer_step
from planner.requests.workload import TrainWorkload
from planner.search.bounds.shape_costs import ShapeCosts
from planner.search.space.points import Points, distinct_columns
from profiles.estimate import CostModel


def mean_trainable_XG(points: Points, shapes: tuple[ShapeCosts, ...], shape_X: IntArray) -> IntArray:
    """Return the trainable elements of an average pipeline rank: of everything but routed experts, and of these."""
    ends = [(costs.trainable, costs.rank_model.embedding.trainable, costs.rank_model) for costs in shapes]
    totals_PSG = np.array(
        [
            [
                (layers.dense + first.dense + head.dense, layers.expert + first.expert + head.expert)
                for layers, first, model in ends
                for head in (model.head_elements(pp=pp, trainable=True),)
            ]
            for pp in (1, 2)
        ],
        dtype=np.int64,
    )
    mean_XG: IntArray = totals_PSG[np.minimum(points.pp_X, 2) - 1, shape_X] // points.pp_X[:, np.newaxis]
    return mean_XG


def tail_bound_X(
    points: Points, of_point_XG: IntArray, *, workload: TrainWorkload, cost_model: CostModel
) -> FloatArray:
    """Return seconds of the gradient norm and of the optimizer step of an average rank (the slowest takes no less).

    Args:
        points: The points; either all of them have a part of the states on the host, or none has.
        of_point_XG: What `mean_trainable_XG` returns of them.
        workload: The training run.
        cost_model: Prices operations.
    """
    norm = cost_model.collective(gradient_norm_reduction(_mesh_at(points, 0))).seconds
    if points.optimizer_offload_X.any():
        return _hosted_tail_X(points, of_point_XG, workload=workload, cost_model=cost_model) + norm
    dense_X, expert_X = of_point_XG.T
    bytes_X = optimizer_bytes(dense=dense_X, expert=expert_X, **state_ranks(points), workload=workload)
    distinct, index_X = np.unique(bytes_X, return_inverse=True)
    updates = [cost_model.compute(optimizer_step(num_bytes, workload)) for num_bytes in distinct.tolist()]
    tails_X: FloatArray = np.array([update.seconds for update in updates])[index_X.ravel()] + norm
    return tails_X


def _hosted_tail_X(
    points: Points, of_point_XG: IntArray, *, workload: TrainWorkload, cost_model: CostModel
) -> FloatArray:
    """Return the optimizer step of an average rank where a part of the states is on the host, at least."""
    dense_X, expert_X = of_point_XG.T
    updated_X = updated_elements(dense=dense_X, expert=expert_X, **state_ranks(points))
    sharded_X = points.zero_stage_X == SHARDED_WEIGHTS
    columns = np.stack(
        [
            points.optimizer_offload_X,
            points.least_offload_X,
            updated_X,
            dense_X + expert_X,
            sharded_X,
            points.parameter_offload_X,
            points.drive_offload_X,
        ]
    )
    first, index_X = distinct_columns(columns)
    seconds = []
    for most, least, updated, whole, sharded, parameters, drives in columns[:, first].T.tolist():
        step: HostedStep | DriveStep
        if sharded:
            step = driven_step(
                updated=updated,
                workload=workload,
                drive_offload=drives,
                parameters=parameters,
                fraction=most / 100,
                least_fraction=least / 100,
            )
        else:
            step = hosted_step(
                updated=updated,
                whole=whole,
                offload=Offload(optimizer_fraction=most / 100),
                least=Offload(optimizer_fraction=least / 100),
                workload=workload,
            )
        seconds.append(sum(hosted_seconds(step, cost_model.compute)))
    return np.array(seconds)[index_X]


def state_ranks(points: Points) -> dict[str, IntArray]:
    """Return over how many ranks optimizer states are split, of everything but routed experts and of these."""
    sharded_X = points.zero_stage_X >= 1
    return {
        "dense_ranks": np.where(sharded_X, points.dp_X * points.cp_X // points.state_replicas_X, 1),
        "expert_ranks": np.where(sharded_X, points.edp_X // points.state_replicas_X, 1),
    }


def _mesh_at(points: Points, index: int) -> Layout:
    """Return the mesh of one point as a layout without layers: the gradient norm is reduced over degrees alone."""
    pp, vpp = int(points.pp_X[index]), int(points.vpp_X[index])
    return Layout(
        tp=int(points.tp_X[index]),
        sequence_parallel=False,
        cp=int(points.cp_X[index]),
        ulysses=int(points.ulysses_X[index]),
        pp=pp,
        vpp=1,
        dp=int(points.dp_X[index]),
        ep=int(points.ep_X[index]),
        etp=int(points.etp_X[index]),
        zero_stage=int(points.zero_stage_X[index]),
        state_replicas=int(points.state_replicas_X[index]),
        micro_batch_size=1,
        num_microbatches=1,
        schedule=Schedule.NO_PIPELINE if pp == 1 else Schedule.ONE_F_ONE_B,
        recompute=Recompute(granularity=Granularity.NONE),
        overlap=Overlap(grad_reduce=False, param_gather=False, p2p=vpp > 1),
        stages=stages_from_counts((0,) * pp),
    )
