"""Rules of what was asked for: what the target can run, and what the user pinned."""

import math
from collections.abc import Iterator

from planner.evaluation.violation import Violation
from planner.frameworks.capabilities import CAPABILITIES
from planner.layout import DRIVE_WEIGHTS, GPU_WEIGHTS, HOST_WEIGHTS, ON_HOSTS, ContextKind, Layout
from planner.memory.state_bytes import uses_precision_aware_optimizer
from planner.models.graph import ModelGraph
from planner.requests.request import Constraints, PlanRequest
from planner.requests.workload import Packing


def target_violations(layout: Layout, graph: ModelGraph, request: PlanRequest) -> Iterator[Violation]:
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


def pin_violations(layout: Layout, constraints: Constraints) -> Iterator[Violation]:
    """Yield what the user's constraints do not allow."""
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
