"""Every rule that a finished plan must obey; all violations are returned, not the first.

Written apart from the search: `planner.search.space.enumeration` rules points out by arrays of degrees, this module
looks at one layout and asks again, in whole numbers. It may not import the space, its costs, its formulation or the
solvers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.evaluation.node_costs import pipeline_rank_limits
from planner.experts.of_model import routed_experts
from planner.frameworks.capabilities import CAPABILITIES, Capabilities
from planner.layout import (
    DRIVE_WEIGHTS,
    GPU_WEIGHTS,
    HOST_WEIGHTS,
    ON_HOSTS,
    REPLICAS_OUTERMOST,
    STAGES_OUTERMOST,
    ContextKind,
    Granularity,
    Layout,
    Schedule,
)
from planner.memory.ledger import peaks_of_ranks
from planner.memory.state_bytes import uses_precision_aware_optimizer
from planner.models.graph import Axis, ExpertLinear, Linear, ModelGraph, Module, Parallel
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.offloading.modules import CORE, PROJECTION, clashes, present_modules
from planner.offloading.states import SHARDED_WEIGHTS, is_parted
from planner.plans.plan import PlannedLayout
from planner.requests.expert_orders import order_error
from planner.requests.request import Constraints, PlanRequest
from planner.requests.workload import DType, Optimizer, Packing, Precision, TrainWorkload
from profiles.hardware import Cluster

RECOMPUTABLE_MODULES = frozenset(module.value for module in Module)
"""What selective recompute can name: the modules whose inner tensors the ledger knows."""

LONGEST_SCHEDULE = 1_000_000
"""Forward and backward passes, over all pipeline ranks, that the simulator is let run."""

PRICE_TOLERANCE = 1e-9
"""Search and evaluator add the same numbers in another order; a larger relative gap means that one of them errs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken rule.

    Args:
        rule: Its short name.
        message: What is wrong, with the numbers.
    """

    rule: str
    message: str


def violations(
    planned: PlannedLayout, model: ModelSpec, cluster: Cluster, request: PlanRequest
) -> tuple[Violation, ...]:
    """Return every rule that `planned` breaks."""
    graph = build_graph(model, request.workload, eager=CAPABILITIES[request.target].eager)
    return (
        *layout_violations(planned.layout, model, graph, cluster, request),
        *_unequal_nodes(planned, cluster, request),
        *_expert_order(planned, model, request),
        *_price(planned),
    )


def layout_violations(
    layout: Layout, model: ModelSpec, graph: ModelGraph, cluster: Cluster, request: PlanRequest
) -> Iterator[Violation]:
    """Yield every rule that a layout breaks, whatever it takes, one after the other.

    Args:
        layout: The layout.
        model: The model.
        graph: Its operators.
        cluster: The cluster.
        request: What was asked for.
    """
    workload, target = request.workload, CAPABILITIES[request.target]
    yield from _mesh(layout, cluster, workload)
    yield from _rank_order(layout, cluster, graph, target)
    yield from _divisibility(layout, graph, target)
    yield from _sequence(layout, graph, workload)
    yield from _fp8(layout, graph, workload)
    yield from _stages(layout, model)
    yield from _schedule(layout)
    yield from _recompute(layout, model)
    yield from _overlap(layout)
    yield from _optimizer(layout, workload)
    yield from _offload(layout, workload)
    yield from _activation_offload(layout, graph)
    yield from _module_offload(layout, graph, workload)
    yield from _target(layout, graph, request)
    yield from _pins(layout, request.constraints)


def _mesh(layout: Layout, cluster: Cluster, workload: TrainWorkload) -> Iterator[Violation]:
    if layout.world_size != cluster.world_size:
        yield Violation(rule="world", message=f"tp cp pp dp = {layout.world_size} ranks on {cluster.world_size} GPUs")
    if layout.global_batch_size != workload.global_batch_size:
        yield Violation(
            rule="batch",
            message=(
                f"micro-batch {layout.micro_batch_size} x {layout.num_microbatches} x dp {layout.dp} = "
                f"{layout.global_batch_size} sequences, not {workload.global_batch_size}"
            ),
        )


def _rank_order(layout: Layout, cluster: Cluster, graph: ModelGraph, target: Capabilities) -> Iterator[Violation]:
    """Yield why the order of the ranks is not the target's, or not priced."""
    if layout.rank_order == STAGES_OUTERMOST:
        return
    if layout.rank_order != REPLICAS_OUTERMOST:
        yield Violation(
            rule="unpriced",
            message=f"rank order {layout.rank_order} is not priced; {STAGES_OUTERMOST} and {REPLICAS_OUTERMOST} are",
        )
        return
    if not target.replicas_outermost:
        yield Violation(rule="target", message=f"{target.title} has no rank order {layout.rank_order}")
    replica = layout.tp * layout.cp * layout.pp
    domain = cluster.fast_domain_size
    for broken, reason in (
        (layout.cp > 1, f"cp {layout.cp} is not priced in"),
        (
            graph.has_experts and layout.edp != layout.dp,
            f"experts of edp {layout.edp} beside dp {layout.dp} are not priced in",
        ),
        (layout.state_replicas * layout.secondary_shard > 1, "hybrid sharding is not priced in"),
        (bool(domain % replica and replica % domain), f"a model replica of {replica} GPUs is not priced in"),
    ):
        if broken:
            yield Violation(rule="unpriced", message=f"{reason} rank order {layout.rank_order}")


def _unequal_nodes(planned: PlannedLayout, cluster: Cluster, request: PlanRequest) -> Iterator[Violation]:
    """Yield an order of other nodes than the cluster's, and GPUs that hold more than their own memory."""
    layout = planned.layout
    count = 0 if cluster.unequal is None else cluster.num_nodes
    if layout.node_order and len(layout.node_order) != count:
        yield Violation(rule="node-order", message=f"node_order {layout.node_order} of {count} nodes that differ")
    elif count and layout.world_size == cluster.world_size:
        limits_R = pipeline_rank_limits(layout, cluster, headroom=request.memory_headroom)
        peaks_R = peaks_of_ranks(planned.memory)
        if len(peaks_R) != layout.pp:
            yield Violation(rule="memory", message=f"a ledger of {len(peaks_R)} of {layout.pp} pipeline ranks")
        for rank, (peak, limit) in enumerate(zip(peaks_R, limits_R, strict=False)):
            if peak > limit:
                yield Violation(
                    rule="memory", message=f"pipeline rank {rank}: {peak} bytes needed, {limit} allowed on its GPUs"
                )


def _divisibility(layout: Layout, graph: ModelGraph, target: Capabilities) -> Iterator[Violation]:
    """Yield every size of a layer that the layout's degrees do not divide."""
    degrees = {
        Axis.TP: ("tp", layout.tp),
        Axis.ETP: ("etp", layout.etp),
        Axis.EP: ("ep", layout.ep),
        Axis.ULYSSES: ("ulysses", layout.ulysses),
        Axis.STATE_HEADS: ("cp", 1 if layout.state_exchange else layout.cp),
    }
    for rule in graph.divisible:
        if rule.only_above_one is not None and degrees[rule.only_above_one][1] == 1:
            continue
        strict = rule.either_way and not target.shared_key_values
        asked = replace(rule, either_way=False) if strict else rule
        if not asked.admits(math.prod(degrees[axis][1] for axis in rule.axes)):
            over = " x ".join(f"{name} {degree}" for name, degree in (degrees[axis] for axis in rule.axes))
            yield Violation(rule="divisible", message=f"{rule.what} = {rule.size} does not split over {over}")
    if not graph.has_experts and layout.ep * layout.etp > 1:
        yield Violation(rule="experts", message=f"ep {layout.ep} and etp {layout.etp} without experts")


def _sequence(layout: Layout, graph: ModelGraph, workload: TrainWorkload) -> Iterator[Violation]:
    tp, cp = layout.tp, layout.cp
    if layout.sequence_parallel and tp == 1:
        yield Violation(rule="sequence-parallel", message="sequence parallelism needs tp above 1")
    if layout.sequence_parallel and workload.seq_len % (tp * cp):
        yield Violation(rule="sequence", message=f"{workload.seq_len} tokens do not split over tp {tp} x cp {cp}")
    if graph.has_experts and tp > 1 and not layout.sequence_parallel:
        yield Violation(rule="sequence-parallel", message=f"experts with tp {tp} need sequence parallelism")
    if cp > 1 and workload.seq_len % (2 * cp):
        yield Violation(rule="sequence", message=f"{workload.seq_len} tokens do not split into 2 x cp {cp} pieces")
    if layout.state_exchange and cp == 1:
        yield Violation(rule="context", message="there are no states to exchange with cp 1")


def _fp8(layout: Layout, graph: ModelGraph, workload: TrainWorkload) -> Iterator[Violation]:
    """Yield every dimension of a rank's fp8 products that is not a multiple of what the recipe needs.

    32 for MXFP8 and 16 for every other recipe (`megatron/core/fp8_utils.py: get_fp8_align_size` of megatron-core
    0.19.2); the 128-wide blocks of the blockwise recipe may be ragged at the end.
    """
    if not workload.precision.is_fp8:
        return
    multiple = 32 if workload.precision is Precision.FP8_MXFP8 else 16
    tokens = layout.micro_batch_size * workload.seq_len // layout.cp // (layout.tp if layout.sequence_parallel else 1)
    if tokens % multiple:
        yield Violation(rule="fp8", message=f"{tokens} tokens on a rank are no multiple of {multiple}")
    for name, width, ranks in dict.fromkeys(_fp8_products(layout, graph)):
        if width % (multiple * ranks):
            yield Violation(
                rule="fp8", message=f"width {width} of {name} over {ranks} ranks is no multiple of {multiple}"
            )


def _fp8_products(layout: Layout, graph: ModelGraph) -> Iterator[tuple[str, int, int]]:
    """Yield (operator, width, ranks that split it) of both widths of every fp8 product."""
    for layer in graph.layers:
        for operator in layer.operators:
            work = operator.work
            if not isinstance(work, Linear | ExpertLinear) or work.dtype is not DType.FP8:
                continue
            ranks = layout.etp if isinstance(work, ExpertLinear) else layout.tp
            yield operator.name, work.in_features, ranks if work.parallel is Parallel.ROW else 1
            yield operator.name, work.out_features, ranks if work.parallel is Parallel.COLUMN else 1


def _target(layout: Layout, graph: ModelGraph, request: PlanRequest) -> Iterator[Violation]:
    """Yield what the target cannot run."""
    target, workload = CAPABILITIES[request.target], request.workload
    kind = layout.cp_kind
    packed = workload.documents is not None and workload.documents.packing is Packing.PACKED
    zero, zero_limits = (
        layout.zero_stage,
        (
            ("pp", layout.pp, target.zero_with_pipeline),
            ("tp", layout.tp, target.zero_with_tensor),
            ("cp", layout.cp, target.zero_with_context),
            ("ep", layout.ep, target.zero_with_experts),
        ),
    )
    refused = {
        "interleaved stages": layout.vpp > 1 and not target.interleaving,
        "sequence parallelism": layout.sequence_parallel and not target.sequence_parallel,
        f"{kind} context parallelism": kind is not None and kind not in target.context_kinds,
        "a ring around windows": layout.ring > 1
        and any(work.local for work in graph.attentions)
        and not target.ring_around_windows,
        "context parallelism where keys are chosen": layout.cp > 1
        and any(work.chosen for work in graph.attentions)
        and not target.chosen_keys_with_context,
        "tensor-parallel degrees where keys are chosen": layout.tp > 1
        and any(work.chosen for work in graph.attentions)
        and not target.chosen_keys_with_tensor,
        "ulysses alone for heads of unequal widths": kind is ContextKind.ULYSSES
        and any(work.v_head_dim not in (0, work.qk_head_dim) for work in graph.attentions)
        and not target.ulysses_with_unequal_heads,
        "optimizer states below fp32": uses_precision_aware_optimizer(workload) and not target.low_precision_states,
        f"optimizer states on the host with zero_stage {zero}": layout.offload is not None
        and zero not in target.offload_zero_stages,
        "weights on the host": layout.parameter_offload == HOST_WEIGHTS and not target.parameter_offload,
        "weights on drives": layout.parameter_offload == DRIVE_WEIGHTS and not target.parameter_drives,
        "states on drives": layout.drive_offload != ON_HOSTS and not target.drive_offload,
        "activations on the host": layout.offloaded_layers > 0 and not target.activation_offload,
        "modules on the host": bool(layout.offloaded_modules) and not target.module_offload,
        "context parallelism over packed documents": layout.cp > 1 and packed and not target.packed_with_context,
        "an exchange of states": layout.state_exchange and not target.state_exchange,
        "expert parallelism": layout.ep * layout.etp > 1 and not target.experts,
        "tensor-parallel experts": layout.etp > 1 and not target.expert_tensor,
        "a pipeline of experts": graph.has_experts and layout.pp > 1 and not target.pipeline_with_experts,
        "tensor-parallel degrees for a model with experts": graph.has_experts
        and layout.tp > 1
        and not target.tensor_with_experts,
        f"zero_stage {zero}": zero < target.least_zero_stage,
        f"zero_stage {zero} with cp {layout.cp}, which is too low": layout.cp > 1
        and zero < target.least_zero_with_context,
        "pp with tp": min(layout.pp, layout.tp) > 1 and not target.pipeline_with_tensor,
        "pp with cp": min(layout.pp, layout.cp) > 1 and not target.pipeline_with_context,
        "tp with cp": min(layout.tp, layout.cp) > 1 and not target.tensor_with_context,
        "hybrid sharding": layout.state_replicas > 1 and not target.hybrid_sharding,
        "secondary shards": layout.secondary_shard > 1 and not target.secondary_shard,
        "selective recompute": bool(layout.recompute.modules) and not target.selective_recompute,
        "partial recompute": layout.recompute.num_layers is not None and not target.partial_recompute,
        "recompute that differs from layer to layer": layout.recompute.is_per_layer and not target.per_layer_recompute,
        "adapters with cp": workload.lora is not None and layout.cp > 1,
        f"zero_stage {zero} with adapters": workload.lora is not None and zero > target.zero_with_adapters,
        f"zero_stage {zero} with {workload.optimizer}": zero >= 1
        and workload.optimizer.value not in target.sharded_optimizers,
        **{
            f"zero_stage {zero} with {name} {degree}": degree > 1 and zero > largest
            for name, degree, largest in zero_limits
        },
    }
    for what, broken in refused.items():
        if broken:
            yield Violation(rule="target", message=f"{target.title} has no {what}")


def _stages(layout: Layout, model: ModelSpec) -> Iterator[Violation]:
    expected = 0
    for index, stage in enumerate(layout.stages):
        if stage.first_layer != expected or stage.num_layers < 0:
            yield Violation(
                rule="chain",
                message=f"stage {index} starts at layer {stage.first_layer}, the one before ends at {expected}",
            )
        if stage.num_layers == 0 and (not (stage.has_embedding or stage.has_head) or layout.vpp > 1):
            yield Violation(rule="empty-stage", message=f"stage {index} holds no layer")
        if stage.has_embedding != (index == 0) or stage.has_head != (index == len(layout.stages) - 1):
            yield Violation(rule="ends", message=f"stage {index} holds the embedding or the head of another stage")
        expected = stage.first_layer + stage.num_layers
    if expected != model.num_layers:
        yield Violation(rule="layers", message=f"the stages hold {expected} of {model.num_layers} layers")


def _schedule(layout: Layout) -> Iterator[Violation]:
    expected = Schedule.NO_PIPELINE
    if layout.pp > 1:
        expected = Schedule.INTERLEAVED if layout.vpp > 1 else Schedule.ONE_F_ONE_B
    if layout.vpp > 1 and layout.pp == 1:
        yield Violation(rule="schedule", message=f"vpp {layout.vpp} without a pipeline")
    if layout.schedule is not expected:
        yield Violation(rule="schedule", message=f"{layout.schedule} with pp {layout.pp} and vpp {layout.vpp}")
    if layout.schedule is Schedule.INTERLEAVED and layout.num_microbatches % layout.pp:
        yield Violation(
            rule="interleaving", message=f"{layout.num_microbatches} micro-batches in groups of pp {layout.pp}"
        )
    passes = 2 * layout.num_microbatches * layout.vpp * layout.pp
    if passes > LONGEST_SCHEDULE:
        yield Violation(rule="schedule", message=f"{passes} passes, of which {LONGEST_SCHEDULE} are simulated")


def _recompute(layout: Layout, model: ModelSpec) -> Iterator[Violation]:
    recompute = layout.recompute
    named = set(recompute.modules).union(*(layer.modules for layer in recompute.layers))
    unknown = sorted(named - RECOMPUTABLE_MODULES)
    if unknown:
        known = ", ".join(sorted(RECOMPUTABLE_MODULES))
        yield Violation(rule="recompute", message=f"recompute of {', '.join(unknown)}; only {known} are priced")
    if recompute.is_per_layer and len(recompute.layers) != model.num_layers:
        yield Violation(
            rule="recompute",
            message=f"per-layer recompute of {len(recompute.layers)} layers; the model has {model.num_layers}",
        )
    if recompute.is_per_layer and layout.vpp > 1:
        yield Violation(rule="recompute", message=f"per-layer recompute with vpp {layout.vpp}; only 1 is priced")
    if recompute.granularity is Granularity.FULL and recompute.num_layers is not None:
        fewest = min(stage.num_layers for stage in layout.stages)
        if recompute.num_layers == 0:
            yield Violation(rule="recompute", message="full recompute of no layers")
        elif recompute.num_layers > fewest > 0:
            yield Violation(
                rule="recompute",
                message=f"full recompute of {recompute.num_layers} layers where the smallest stage holds {fewest}",
            )


def _overlap(layout: Layout) -> Iterator[Violation]:
    overlap = layout.overlap
    if overlap.p2p and layout.vpp == 1:
        yield Violation(rule="overlap", message="transfers overlap only with interleaving")
    if overlap.param_gather and layout.zero_stage == 0:
        yield Violation(rule="overlap", message="parameters are gathered only with zero_stage 1 or more")
    if overlap.param_gather and not overlap.grad_reduce:
        yield Violation(rule="overlap", message="parameter gathering overlaps only where gradient reduction does")


def _optimizer(layout: Layout, workload: TrainWorkload) -> Iterator[Violation]:
    if uses_precision_aware_optimizer(workload) and layout.zero_stage == 0:
        yield Violation(rule="optimizer", message="optimizer states below fp32 need a sharded optimizer")
    replicas = layout.dp * layout.cp
    for what, groups in (("state_replicas", layout.state_replicas), ("secondary_shard", layout.secondary_shard)):
        if replicas % groups:
            yield Violation(rule="sharding", message=f"{what} {groups} does not divide dp x cp = {replicas}")
    if layout.edp % layout.state_replicas:
        yield Violation(
            rule="sharding", message=f"state_replicas {layout.state_replicas} does not divide edp = {layout.edp}"
        )
    if layout.state_replicas > 1 and layout.zero_stage == 0:
        yield Violation(rule="sharding", message="there is nothing to shard in groups with zero_stage 0")
    if layout.secondary_shard > 1 and layout.zero_stage != 3:
        yield Violation(rule="sharding", message=f"secondary shards with zero_stage {layout.zero_stage}; 3 has them")


def _offload(layout: Layout, workload: TrainWorkload) -> Iterator[Violation]:
    """Yield what stands against optimizer states on the host, whatever the target."""
    if layout.offload is None:
        return
    if is_parted(layout) and layout.pp > 1:
        yield Violation(
            rule="offload", message="a part of the optimizer states on the host with zero_stage 3 and a pipeline"
        )
    if layout.parameters_offloaded:
        yield from _parameter_offload(layout)
    if layout.uses_drives:
        yield from _drive_offload(layout)
    if layout.zero_stage == 0:
        yield Violation(rule="offload", message="optimizer states on the host with zero_stage 0, which shards none")
    if workload.optimizer is not Optimizer.ADAM:
        yield Violation(rule="offload", message=f"states of {workload.optimizer} on the host; only Adam's are priced")
    for what, dtype in (("master_dtype", workload.master_dtype), ("moment_dtype", workload.moment_dtype)):
        if dtype is not DType.FP32:
            yield Violation(rule="offload", message=f"{what} {dtype} on the host, where states are kept in fp32")
    if workload.lora is not None:
        yield Violation(rule="offload", message="states of adapters on the host; only those of all weights are priced")


def _activation_offload(layout: Layout, graph: ModelGraph) -> Iterator[Violation]:
    """Yield what stands against saved tensors of layers on the host, whatever the target."""
    broken = {
        "with a pipeline": layout.pp > 1,
        f"with recompute {layout.recompute.granularity}": layout.recompute.granularity is not Granularity.NONE,
        f"with zero_stage {layout.zero_stage}": layout.zero_stage > 1,
        "with optimizer states there": layout.offload is not None,
        "of layers with a state": graph.has_recurrences,
        "of the last layer": layout.offloaded_layers >= sum(stage.num_layers for stage in layout.stages),
    }
    if layout.offloaded_layers:
        for what, is_so in broken.items():
            if is_so:
                yield Violation(rule="offload", message=f"activations on the host {what}")


def _module_offload(layout: Layout, graph: ModelGraph, workload: TrainWorkload) -> Iterator[Violation]:
    """Yield what stands against saved tensors of modules on the host, whatever the target."""
    modules, recompute = layout.offloaded_modules, layout.recompute
    absent = [name for name in modules if name not in present_modules(graph, workload)]
    broken = {
        f"with recompute {recompute.granularity} of {', '.join(recompute.modules) or 'whole layers'}": clashes(
            recompute, modules
        ),
        f"with zero_stage {layout.zero_stage}": layout.zero_stage > 1,
        "with optimizer states there": layout.offload is not None,
        "with whole layers there": layout.offloaded_layers > 0,
        "of layers with a state": graph.has_recurrences,
        f"under {workload.precision}": workload.precision.is_fp8,
        "with adapters": workload.lora is not None,
        f"of which no layer has {' or '.join(absent)}": bool(absent),
        f"of {PROJECTION} without {CORE}": PROJECTION in modules and CORE not in modules,
    }
    if modules:
        for what, is_so in broken.items():
            if is_so:
                yield Violation(rule="offload", message=f"modules on the host {what}")


def _parameter_offload(layout: Layout) -> Iterator[Violation]:
    """Yield what stands against weights on the host or on drives, whatever the target."""
    weights = "weights on drives" if layout.parameter_offload == DRIVE_WEIGHTS else "weights on the host"
    if layout.zero_stage < SHARDED_WEIGHTS:
        yield Violation(rule="offload", message=f"{weights} with zero_stage {layout.zero_stage}")
    if layout.secondary_shard > 1:
        yield Violation(rule="offload", message=f"{weights} with a second copy of them")
    if layout.offloaded_fraction < 1.0:
        yield Violation(rule="offload", message=f"{weights} without all optimizer states")


def _drive_offload(layout: Layout) -> Iterator[Violation]:
    """Yield what stands against states or weights on drives, whatever the target."""
    states = layout.drive_offload != ON_HOSTS
    if states and layout.zero_stage < SHARDED_WEIGHTS:
        yield Violation(rule="offload", message=f"states on drives with zero_stage {layout.zero_stage}")
    if layout.pp > 1:
        yield Violation(rule="offload", message=f"{'states' if states else 'weights'} on drives with a pipeline")
    if states and layout.offloaded_fraction < 1.0:
        yield Violation(rule="offload", message="states on drives, and a part of them on the GPU")


def _pins(layout: Layout, constraints: Constraints) -> Iterator[Violation]:
    pinned = constraints.pinned_modules
    if pinned is not None and layout.offloaded_modules != pinned:
        yield Violation(
            rule="constraints",
            message=f"modules on the host are {', '.join(layout.offloaded_modules) or 'none'}, not what is asked for",
        )
    for dimension in constraints.degrees:
        value = getattr(layout, dimension)
        if not constraints.admits(dimension, value):
            yield Violation(rule="constraints", message=f"{dimension} {value} is not what the constraints allow")
    granularity = layout.recompute.granularity
    if constraints.recompute is not None and granularity.value not in constraints.recompute:
        yield Violation(rule="constraints", message=f"recompute {granularity} is not what the constraints allow")
    if constraints.cp_kind is not None and layout.cp > 1 and layout.cp_kind not in constraints.cp_kind:
        yield Violation(rule="constraints", message=f"cp_kind {layout.cp_kind} is not what the constraints allow")
    yield from _offload_pins(layout, constraints)
    wanted = constraints.sequence_parallel
    if wanted is not None and layout.tp > 1 and layout.sequence_parallel is not wanted:
        yield Violation(rule="constraints", message=f"sequence_parallel must be {wanted}")


def _offload_pins(layout: Layout, constraints: Constraints) -> Iterator[Violation]:
    """Yield what the constraints say against where states and weights lie."""
    allowed = constraints.optimizer_offload
    if allowed is not None and not any(math.isclose(layout.offloaded_fraction, part, abs_tol=1e-9) for part in allowed):
        yield Violation(
            rule="constraints",
            message=f"optimizer_offload {layout.offloaded_fraction:g} is not what the constraints allow",
        )
    hosted = constraints.parameter_offload
    if hosted is not None and layout.parameter_offload != (HOST_WEIGHTS if hosted else GPU_WEIGHTS):
        yield Violation(rule="constraints", message=f"parameter_offload must be {hosted}")
    for name, pinned, driven in (
        ("drive_offload", constraints.drive_offload, layout.drive_offload != ON_HOSTS),
        ("parameter_drives", constraints.parameter_drives, layout.parameter_offload == DRIVE_WEIGHTS),
    ):
        if pinned is not None and driven is not pinned:
            yield Violation(rule="constraints", message=f"{name} must be {pinned}")


def _expert_order(planned: PlannedLayout, model: ModelSpec, request: PlanRequest) -> Iterator[Violation]:
    routing, ep = request.workload.routing, planned.layout.ep
    order = None if routing is None else routing.order(ep)
    if routing is None or order is None:
        return
    for layer, order_E in zip(routing.layers, order.order_LE(routing.num_experts), strict=True):
        error = order_error(
            order_E, num_experts=routing.num_experts, num_groups=routed_experts(model).router.limiting_groups
        )
        if error:
            yield Violation(rule="expert-order", message=f"the order of the experts of layer {layer} {error}")
    loads, least = routing.loads(ep).factor_L, order.least_L
    for layer, load, bound in zip(routing.layers, loads, least, strict=True):
        if load < bound:
            yield Violation(rule="expert-order", message=f"layer {layer} has a load of {load}, below {bound} at least")


def _price(planned: PlannedLayout) -> Iterator[Violation]:
    if planned.peak_memory_bytes > planned.memory_limit_bytes:
        yield Violation(
            rule="memory", message=f"{planned.peak_memory_bytes} bytes needed, {planned.memory_limit_bytes} allowed"
        )
    host = planned.host_memory
    if host is not None and host.num_bytes > host.limit_bytes:
        yield Violation(
            rule="host-memory", message=f"{host.num_bytes} bytes needed on a node, {host.limit_bytes} are there"
        )
    drives = planned.drive_memory
    if drives is not None and drives.num_bytes > drives.limit_bytes:
        yield Violation(
            rule="drives", message=f"{drives.num_bytes} bytes needed on a node's drives, {drives.limit_bytes} are there"
        )
    if (drives is not None) != planned.layout.uses_drives:
        yield Violation(rule="drives", message="the ledger of the drives and the layout's offload do not agree")
    if (host is None) == planned.layout.uses_hosts:
        yield Violation(rule="host-memory", message="the ledger of the host and the layout's offload do not agree")
    gap = abs(planned.step_seconds - planned.reevaluated_step_seconds)
    if gap > PRICE_TOLERANCE * planned.reevaluated_step_seconds:
        yield Violation(
            rule="price",
            message=f"searched at {planned.step_seconds} s, evaluated at {planned.reevaluated_step_seconds} s",
        )
