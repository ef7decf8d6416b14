"""What rules points of the space out: each rule with the points that break it, as arrays over points X.

Rules of the model come from its operators (`planner.models.graph.Divisible`, the widths of its products), rules of the
target from its capabilities; neither kinds of layers nor frameworks are known here. `planner.evaluation.validate` asks
all of it again of a finished layout.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from planner.arrays import BoolArray, IntArray
from planner.frameworks.capabilities import Capabilities
from planner.layout import DRIVE_WEIGHTS, GPU_WEIGHTS, HOST_WEIGHTS, ContextKind, Granularity, Recompute
from planner.memory.state_bytes import uses_precision_aware_optimizer
from planner.models.graph import Axis, ExpertLinear, Linear, ModelGraph, Parallel
from planner.offloading.activations import LARGEST_ZERO_STAGE
from planner.offloading.states import SHARDED_WEIGHTS
from planner.requests.request import OFFLOADED_LAYERS, Constraints
from planner.requests.workload import DType, Optimizer, Packing, Precision, TrainWorkload
from planner.search.space.points import Points, Scope, distinct

Rule = tuple[str, BoolArray]

MIN_CONTEXT_TOKENS = 1024
"""Tokens of a sequence that context parallelism leaves on a rank at least, unless cp is pinned: a choice, as each
further degree multiplies the meshes."""

MIN_CONTEXT_TOKENS_WITH_EXPERTS = 2048
"""The same where experts are routed, whose degrees multiply them again."""

MAX_TP = 16
"""Largest tp unless it is pinned: beyond it products are thin and collectives long, even inside a rack."""

WHOLE = 100
"""Percent of the optimizer's states."""

FP8_ALIGNMENT = 16
MXFP8_ALIGNMENT = 32
"""Multiples in which both dimensions of an fp8 product come: 32 for MXFP8, which scales runs of 32, and 16 for every
other recipe (`megatron/core/fp8_utils.py: get_fp8_align_size` of megatron-core 0.19.2). The blockwise recipe stays at
16 too: its blocks of 128 are rounded up, so the last may be ragged (Transformer Engine, `float8_blockwise_tensor.py`).
"""


def mesh_rules(points: Points, scope: Scope) -> Iterator[Rule]:
    """Yield (rule, meshes that break it), in the order in which they are charged."""
    constraints, workload = scope.constraints, scope.workload
    tp_X, cp_X, pp_X, etp_X = points.tp_X, points.cp_X, points.pp_X, points.etp_X
    ulysses_X, ring_X = points.ulysses_X, points.cp_X // points.ulysses_X
    yield from _degree_rules(points, constraints, ("tp", "cp", "pp", "dp", "ep", "etp"))
    if constraints.cp_kind is not None:
        yield "constraints: cp_kind", _is_kind_X(points, [k for k in ContextKind if k not in constraints.cp_kind])
    yield "global_batch_size is not a multiple of dp", workload.global_batch_size % points.dp_X != 0
    fast = scope.fast_domain_size
    if "tp" not in constraints.degrees:
        yield "tp leaves the fast domain (pin tp to allow it)", tp_X > fast
        yield f"tp above {MAX_TP} (pin tp to allow it)", tp_X > MAX_TP
    if "etp" not in constraints.degrees:
        yield "etp is neither 1 nor tp (pin etp to allow it)", (etp_X > 1) & (etp_X != tp_X)
    if "cp" not in constraints.degrees:
        fewest = MIN_CONTEXT_TOKENS_WITH_EXPERTS if scope.graph.has_experts else MIN_CONTEXT_TOKENS
        few_X = (cp_X > 1) & (workload.seq_len < fewest * cp_X)
        yield f"cp leaves fewer than {fewest} tokens of a sequence on a rank (pin cp to allow it)", few_X
    yield "seq_len is not a multiple of 2 cp", (cp_X > 1) & (workload.seq_len % (2 * cp_X) != 0)
    mixed_X = (ulysses_X > 1) & (ring_X > 1)
    if constraints.cp_kind is None:
        outside_X = mixed_X & (tp_X * ulysses_X > fast)
        yield "ulysses leaves the fast domain inside a ring (pin cp_kind to allow it)", outside_X
    yield "more pipeline stages than layers", pp_X > scope.model.num_layers
    replica_X = np.where(points.replicas_outermost_X == 1, tp_X * cp_X * pp_X, fast)
    yield "rank order: model replicas do not tile fast domains", (fast % replica_X != 0) & (replica_X % fast != 0)
    yield from _divisibility_rules(points, scope)
    yield from _target_mesh_rules(points, scope)
    if workload.lora is not None:
        yield "adapters train without context parallelism", cp_X > 1
    if workload.precision.is_fp8:
        yield from _fp8_width_rules(points, scope)


def _is_kind_X(points: Points, kinds: Iterable[ContextKind]) -> BoolArray:
    """Return which points have one of these kinds of context parallelism."""
    ring_X = points.cp_X // points.ulysses_X
    of_kind = {
        ContextKind.RING: (points.cp_X > 1) & (points.ulysses_X == 1),
        ContextKind.ULYSSES: (points.cp_X > 1) & (ring_X == 1),
        ContextKind.ULYSSES_RING: (points.ulysses_X > 1) & (ring_X > 1),
    }
    found_X = np.zeros(len(points), dtype=np.bool_)
    for kind in kinds:
        found_X |= of_kind[kind]
    return found_X


def _target_mesh_rules(points: Points, scope: Scope) -> Iterator[Rule]:
    """Yield the meshes that the target cannot run."""
    target = scope.capabilities
    tp_X, cp_X, pp_X = points.tp_X, points.cp_X, points.pp_X
    title = target.title
    missing = [kind for kind in ContextKind if kind not in target.context_kinds]
    if missing:
        yield f"{title}: no {' or '.join(missing)} context parallelism", _is_kind_X(points, missing)
    if any(work.chosen for work in scope.graph.attentions) and not target.chosen_keys_with_context:
        yield f"{title}: no context parallelism where keys are chosen", cp_X > 1
    if any(work.chosen for work in scope.graph.attentions) and not target.chosen_keys_with_tensor:
        yield f"{title}: no tp where keys are chosen", tp_X > 1
    unequal = any(work.v_head_dim and work.v_head_dim != work.qk_head_dim for work in scope.graph.attentions)
    if unequal and not target.ulysses_with_unequal_heads:
        yield f"{title}: no ulysses alone for heads of unequal widths", _is_kind_X(points, [ContextKind.ULYSSES])
    documents = scope.workload.documents
    if documents is not None and documents.packing is Packing.PACKED and not target.packed_with_context:
        yield f"{title}: no context parallelism over packed documents", cp_X > 1
    if any(work.local for work in scope.graph.attentions) and not target.ring_around_windows:
        rings = (ContextKind.RING, ContextKind.ULYSSES_RING)
        yield f"{title}: no ring where attention sees only near tokens", _is_kind_X(points, rings)
    yield from _target_expert_rules(points, scope)
    if not target.replicas_outermost:
        yield f"{title}: stages are outermost", points.replicas_outermost_X == 1
    pairs = (
        ("pp", pp_X, "tp", tp_X, target.pipeline_with_tensor),
        ("pp", pp_X, "cp", cp_X, target.pipeline_with_context),
        ("tp", tp_X, "cp", cp_X, target.tensor_with_context),
    )
    for first, first_X, second, second_X, together in pairs:
        if not together:
            yield f"{title}: {first} and {second} do not go together", (first_X > 1) & (second_X > 1)


def _target_expert_rules(points: Points, scope: Scope) -> Iterator[Rule]:
    """Yield the meshes of experts that the target cannot run."""
    target = scope.capabilities
    title, with_experts = target.title, scope.graph.has_experts
    if not target.experts:
        yield f"{title}: no expert parallelism", (points.ep_X > 1) | (points.etp_X > 1)
    if not target.expert_tensor:
        yield f"{title}: experts have no tensor-parallel degree of their own", points.etp_X > 1
    if with_experts and not target.pipeline_with_experts:
        yield f"{title}: no pipeline for a model with experts", points.pp_X > 1
    if with_experts and not target.tensor_with_experts:
        yield f"{title}: no tp for a model with experts", points.tp_X > 1


def _divisibility_rules(points: Points, scope: Scope) -> Iterator[Rule]:
    """Yield what degrees must divide, as the layers say it."""
    exchanged_X = np.ones_like(points.cp_X) if scope.capabilities.state_exchange else points.cp_X
    by_axis = {
        Axis.TP: points.tp_X,
        Axis.ETP: points.etp_X,
        Axis.EP: points.ep_X,
        Axis.ULYSSES: points.ulysses_X,
        Axis.STATE_HEADS: exchanged_X,
    }
    for rule in scope.graph.divisible:
        degree_X = np.prod([by_axis[axis] for axis in rule.axes], axis=0)
        broken_X = rule.size % degree_X != 0
        if rule.only_above_one is not None:
            broken_X &= by_axis[rule.only_above_one] > 1
        used = [axis for axis in rule.axes if (by_axis[axis] > 1).any()] or rule.axes
        name = " x ".join(AXIS_NAMES[axis] for axis in used)
        if rule.either_way and scope.capabilities.shared_key_values:
            yield f"{rule.what} is neither a multiple nor a divisor of {name}", broken_X & (degree_X % rule.size != 0)
        else:
            yield f"{rule.what} is not a multiple of {name}", broken_X


AXIS_NAMES = {Axis.TP: "tp", Axis.ETP: "etp", Axis.EP: "ep", Axis.ULYSSES: "ulysses", Axis.STATE_HEADS: "cp"}


def use_rules(points: Points, scope: Scope) -> Iterator[Rule]:
    """Yield (rule, uses of meshes that break it), in the order in which they are charged."""
    constraints, workload = scope.constraints, scope.workload
    tp_X, cp_X, pp_X, vpp_X = points.tp_X, points.cp_X, points.pp_X, points.vpp_X
    zero_X, sp_X = points.zero_stage_X, points.sequence_parallel_X
    yield from _degree_rules(points, constraints, ("vpp", "zero_stage", "micro_batch_size", "num_microbatches"))
    if constraints.sequence_parallel is not None:
        yield "constraints: sequence_parallel", (sp_X != int(constraints.sequence_parallel)) & (tp_X > 1)
    yield "more virtual stages than layers", pp_X * vpp_X > scope.model.num_layers
    yield (
        "interleaving needs a number of micro-batches that is a multiple of pp",
        (vpp_X > 1) & (points.num_microbatches_X % pp_X != 0),
    )
    yield "seq_len is not a multiple of tp cp", (sp_X == 1) & (workload.seq_len % (tp_X * cp_X) != 0)
    in_groups_X = points.state_replicas_X * points.secondary_shard_X > 1
    yield "rank order: hybrid sharding keeps stages outermost", (points.replicas_outermost_X == 1) & in_groups_X
    if scope.graph.has_experts:
        yield "experts with tp above 1 need sequence parallelism", (sp_X == 0) & (tp_X > 1)
    yield from _target_use_rules(points, scope)
    if workload.precision.is_fp8:
        multiple = _fp8_multiple(workload.precision)
        tokens_X = points.micro_batch_size_X * workload.seq_len // cp_X // np.where(sp_X == 1, tp_X, 1)
        yield (
            f"{workload.precision} needs the tokens of a rank to be a multiple of {multiple}",
            tokens_X % multiple != 0,
        )
    if uses_precision_aware_optimizer(workload):
        yield "optimizer states below fp32 need a sharded optimizer", zero_X == 0
    yield from _offload_rules(points, scope)
    yield from _activation_rules(points, scope)


def is_offloadable(workload: TrainWorkload) -> bool:
    """Return whether a run's optimizer states can lie on the host: Adam's, in fp32, of all weights."""
    fp32 = (workload.master_dtype, workload.moment_dtype) == (DType.FP32, DType.FP32)
    return fp32 and workload.optimizer is Optimizer.ADAM and workload.lora is None


def _offload_rules(points: Points, scope: Scope) -> Iterator[Rule]:
    """Yield the points whose optimizer states lie where they cannot, or where the user does not want them."""
    offload_X, target = points.optimizer_offload_X, scope.capabilities
    pinned = scope.constraints.optimizer_offload
    if pinned is not None:
        allowed = [round(100 * fraction) for fraction in pinned]
        yield "constraints: optimizer_offload", ~np.isin(offload_X, allowed)
    wanted = scope.constraints.parameter_offload
    if wanted is not None:
        yield "constraints: parameter_offload", points.parameter_offload_X != (HOST_WEIGHTS if wanted else GPU_WEIGHTS)
    driven = scope.constraints.parameter_drives
    if driven is not None:
        yield "constraints: parameter_drives", (points.parameter_offload_X == DRIVE_WEIGHTS) != driven
    placed = scope.constraints.drive_offload
    if placed is not None:
        yield "constraints: drive_offload", (points.drive_offload_X > 0) != placed
    if not offload_X.any():
        return
    if not is_offloadable(scope.workload):
        yield "optimizer states on the host are Adam's, in fp32, without adapters", offload_X > 0
    stages = sorted(target.offload_zero_stages)
    if not stages:
        yield f"{target.title}: plans put no optimizer states on the host", offload_X > 0
    else:
        named = " or ".join(str(stage) for stage in stages)
        outside_X = (offload_X > 0) & ~np.isin(points.zero_stage_X, stages)
        yield f"{target.title}: optimizer states go to the host with zero_stage {named}", outside_X
    parted_X = (offload_X > 0) & (offload_X < WHOLE)
    beside = f"weights away from the GPU, states on drives, or zero_stage {SHARDED_WEIGHTS} and a pipeline"
    yield f"with {beside}, all optimizer states leave the GPU, or none", parted_X & points.goes_whole_X
    yield from _parameter_rules(points, target)
    yield from _drive_rules(points, scope)


def _activation_rules(points: Points, scope: Scope) -> Iterator[Rule]:
    """Yield the points whose layers keep saved tensors on the host where they cannot, or where nobody wants them."""
    hosted_X, target = points.offloaded_layers_X > 0, scope.capabilities
    if scope.constraints.asks_activations:
        admitted = [scope.constraints.admits(OFFLOADED_LAYERS, count) for count in range(scope.model.num_layers)]
        yield f"constraints: {OFFLOADED_LAYERS}", np.where(hosted_X, not any(admitted[1:]), not admitted[0])
    if not hosted_X.any():
        return
    if not target.activation_offload:
        yield f"{target.title}: plans put no activations on the host", hosted_X
    yield "activations go to the host without a pipeline", hosted_X & (points.pp_X > 1)
    yield (
        f"activations go to the host with zero_stage {LARGEST_ZERO_STAGE} at most",
        hosted_X & (points.zero_stage_X > LARGEST_ZERO_STAGE),
    )
    yield "activations and optimizer states do not go to the host together", hosted_X & (points.optimizer_offload_X > 0)
    if scope.graph.has_recurrences:
        yield "activations of layers with a state stay on the GPU", hosted_X
    if scope.model.num_layers == 1:
        yield "activations of the last layer stay on the GPU", hosted_X


def _parameter_rules(points: Points, target: Capabilities) -> Iterator[Rule]:
    """Yield the points whose weights lie on the host where they cannot."""
    away_X = points.parameter_offload_X != GPU_WEIGHTS
    if not away_X.any():
        return
    if not target.parameter_offload:
        yield f"{target.title}: plans put no weights on the host", points.parameter_offload_X == HOST_WEIGHTS
    yield (
        f"weights go to the host with zero_stage {SHARDED_WEIGHTS}",
        away_X & (points.zero_stage_X < SHARDED_WEIGHTS),
    )
    yield "weights on the host have no second copy", away_X & (points.secondary_shard_X > 1)


def _drive_rules(points: Points, scope: Scope) -> Iterator[Rule]:
    """Yield the points whose optimizer states or weights lie on drives where they cannot."""
    states_X, weights_X = points.drive_offload_X > 0, points.parameter_offload_X == DRIVE_WEIGHTS
    driven_X = states_X | weights_X
    if not driven_X.any():
        return
    target = scope.capabilities
    if not target.drive_offload:
        yield f"{target.title}: plans put no optimizer states on drives", states_X
    if not target.parameter_drives:
        yield f"{target.title}: plans put no weights on drives", weights_X
    if not scope.has_drives:
        yield "nothing says what the drives of a node hold, or how fast they are", driven_X
    yield (
        f"states go to drives with zero_stage {SHARDED_WEIGHTS}",
        driven_X & (points.zero_stage_X < SHARDED_WEIGHTS),
    )
    yield "states and weights go to drives without a pipeline", driven_X & (points.pp_X > 1)


def _target_use_rules(points: Points, scope: Scope) -> Iterator[Rule]:
    """Yield the uses of meshes that the target cannot run."""
    target, workload = scope.capabilities, scope.workload
    tp_X, cp_X, pp_X, zero_X = points.tp_X, points.cp_X, points.pp_X, points.zero_stage_X
    title = target.title
    if uses_precision_aware_optimizer(workload) and not target.low_precision_states:
        yield f"{title}: no optimizer states below fp32", np.ones(len(points), dtype=np.bool_)
    if not target.interleaving:
        yield f"{title}: no interleaved stages", points.vpp_X > 1
    if not target.sequence_parallel:
        yield f"{title}: no sequence parallelism", points.sequence_parallel_X == 1
    least = target.least_zero_stage
    if least:
        yield f"{title}: zero_stage is at least {least}", zero_X < least
    of_context = target.least_zero_with_context
    if of_context > least:
        yield f"{title}: zero_stage is at least {of_context} with cp above 1", (zero_X < of_context) & (cp_X > 1)
    combined = (
        ("pp", pp_X, target.zero_with_pipeline),
        ("tp", tp_X, target.zero_with_tensor),
        ("cp", cp_X, target.zero_with_context),
        ("ep", points.ep_X, target.zero_with_experts),
    )
    for name, degree_X, largest in combined:
        yield f"{title}: zero_stage above {largest} needs {name} 1", (zero_X > largest) & (degree_X > 1)
    if workload.lora is not None:
        largest = target.zero_with_adapters
        yield f"{title}: zero_stage above {largest} does not go with adapters", zero_X > largest
    if workload.optimizer.value not in target.sharded_optimizers:
        yield f"{title}: states of {workload.optimizer} are not sharded", zero_X >= 1


def _fp8_multiple(precision: Precision) -> int:
    return MXFP8_ALIGNMENT if precision is Precision.FP8_MXFP8 else FP8_ALIGNMENT


def _fp8_width_rules(points: Points, scope: Scope) -> Iterator[Rule]:
    """Yield the widths of a rank's products that fp8 cannot multiply."""
    multiple = _fp8_multiple(scope.workload.precision)
    reason = f"{scope.workload.precision} needs the features of a rank to be a multiple of {multiple}"
    for width, axis in sorted(_fp8_widths(scope.graph)):
        ranks_X = {Axis.TP: points.tp_X, Axis.ETP: points.etp_X}.get(axis, np.ones_like(points.tp_X))
        yield reason, width % (multiple * ranks_X) != 0


def _fp8_widths(graph: ModelGraph) -> set[tuple[int, Axis]]:
    """Return the widths of all fp8 products with the axis that splits each; EP stands for none."""
    found: set[tuple[int, Axis]] = set()
    for layer in graph.layers:
        for operator in layer.operators:
            work = operator.work
            if not isinstance(work, Linear | ExpertLinear) or work.dtype is not DType.FP8:
                continue
            axis = Axis.TP if isinstance(work, Linear) else Axis.ETP
            entering = axis if work.parallel is Parallel.ROW else Axis.EP
            leaving = axis if work.parallel is Parallel.COLUMN else Axis.EP
            found |= {(work.in_features, entering), (work.out_features, leaving)}
    return found


def recompute_rules(points: Points, constraints: Constraints, recomputes: tuple[Recompute, ...]) -> Iterator[Rule]:
    """Yield the recompute choices that the user ruled out, and those that do not go with activations on the host."""
    recomputes_X = np.array([choice.granularity is not Granularity.NONE for choice in recomputes])[points.recompute_X]
    hosted_X = points.offloaded_layers_X > 0
    if hosted_X.any():
        again_X = recomputes_X | (points.recompute_layers_X > 0)
        yield "activations go to the host without recomputation", hosted_X & again_X
    if constraints.recompute is None:
        return
    refused = np.array([choice.granularity.value not in constraints.recompute for choice in recomputes])
    partial_refused = Granularity.FULL.value not in constraints.recompute
    yield (
        "constraints: recompute",
        np.where(points.recompute_layers_X > 0, partial_refused, refused[points.recompute_X]),
    )


def _degree_rules(points: Points, constraints: Constraints, dimensions: tuple[str, ...]) -> Iterator[Rule]:
    """Yield the degrees that the user ruled out."""
    for dimension in dimensions:
        if dimension in constraints.degrees:
            values_X: IntArray = getattr(points, f"{dimension}_X")
            refused = [value for value in distinct(values_X) if not constraints.admits(dimension, value)]
            yield f"constraints: {dimension}", np.isin(values_X, refused)
