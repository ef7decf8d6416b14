"""Every rule that a finished plan must obey; all violations are returned, not the first.

Written apart from the search: `planner.space` rules points out by arrays of degrees, this module looks at one layout
and asks again, in whole numbers. It may not import the space, its costs, its formulation or the solvers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from planner.blocks import SelfAttention
from planner.layout import Granularity, Layout, Schedule
from planner.memory import uses_precision_aware_optimizer
from planner.plan import PlannedLayout
from planner.request import Constraints, PlanRequest
from planner.specs import ModelSpec
from planner.workload import Optimizer, Precision, TrainWorkload
from profiles.hardware import Cluster

RANK_ORDER = "tp-cp-ep-dp-pp"
"""The one order of the mesh axes whose links are priced."""

RECOMPUTABLE_MODULES = frozenset({"core_attn", "mlp"})
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
    layout, workload = planned.layout, request.workload
    return (
        *_mesh(layout, cluster, workload),
        *_unpriced(layout),
        *_widths(layout, model, workload),
        *_fp8(layout, model, workload),
        *_stages(layout, model),
        *_schedule(layout),
        *_recompute(layout),
        *_overlap(layout),
        *_optimizer(layout, workload),
        *_pins(layout, request.constraints),
        *_price(planned),
    )


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


def _unpriced(layout: Layout) -> Iterator[Violation]:
    """Yield what a layout can say and no cost is known for."""
    for axis in ("cp", "ep", "etp"):
        degree = getattr(layout, axis)
        if degree > 1:
            yield Violation(rule="unpriced", message=f"{axis} {degree} is not priced yet; only {axis} 1 is")
    if layout.rank_order != RANK_ORDER:
        yield Violation(rule="unpriced", message=f"rank order {layout.rank_order} is not priced yet; {RANK_ORDER} is")


def _widths(layout: Layout, model: ModelSpec, workload: TrainWorkload) -> Iterator[Violation]:
    tp = layout.tp
    for block in model.distinct_blocks:
        if isinstance(block.mixer, SelfAttention):
            heads, groups = block.mixer.num_attention_heads, block.mixer.num_key_value_heads
            if heads % tp:
                yield Violation(rule="heads", message=f"{heads} attention heads do not split over tp {tp}")
            if groups % tp and tp % groups:
                yield Violation(rule="kv-heads", message=f"{groups} key/value heads and tp {tp} do not divide")
            width = (heads + 2 * groups) * block.mixer.head_dim
            if width % tp:
                yield Violation(rule="qkv", message=f"q, k and v together, {width} wide, do not split over tp {tp}")
        if block.feed_forward is not None and block.feed_forward.intermediate_size % tp:
            yield Violation(
                rule="feed-forward", message=f"width {block.feed_forward.intermediate_size} does not split over tp {tp}"
            )
    if layout.sequence_parallel and tp == 1:
        yield Violation(rule="sequence-parallel", message="sequence parallelism needs tp above 1")
    if layout.sequence_parallel and workload.seq_len % tp:
        yield Violation(rule="sequence", message=f"{workload.seq_len} tokens do not split over tp {tp}")


def _fp8(layout: Layout, model: ModelSpec, workload: TrainWorkload) -> Iterator[Violation]:
    """Yield every dimension of a rank's fp8 products that is not a multiple of what the recipe needs.

    32 for MXFP8 and 16 for every other recipe (`megatron/core/fp8_utils.py: get_fp8_align_size` of megatron-core
    0.19.2); the 128-wide blocks of the blockwise recipe may be ragged at the end.
    """
    if not workload.precision.is_fp8:
        return
    multiple = 32 if workload.precision is Precision.FP8_MXFP8 else 16
    tokens = layout.micro_batch_size * workload.seq_len // (layout.tp if layout.sequence_parallel else 1)
    if tokens % multiple:
        yield Violation(rule="fp8", message=f"{tokens} tokens on a rank are no multiple of {multiple}")
    if model.hidden_size % multiple:
        yield Violation(rule="fp8", message=f"hidden_size {model.hidden_size} is no multiple of {multiple}")
    for block in model.distinct_blocks:
        widths: dict[str, int] = {}
        if isinstance(block.mixer, SelfAttention):
            heads, groups = block.mixer.num_attention_heads, block.mixer.num_key_value_heads
            widths["of all heads"] = heads * block.mixer.head_dim
            widths["of q, k and v together"] = (heads + 2 * groups) * block.mixer.head_dim
        if block.feed_forward is not None:
            widths["of the feed-forward"] = block.feed_forward.intermediate_size
        for name, width in widths.items():
            if width % (multiple * layout.tp):
                yield Violation(
                    rule="fp8", message=f"width {width} {name} over tp {layout.tp} is no multiple of {multiple}"
                )


def _stages(layout: Layout, model: ModelSpec) -> Iterator[Violation]:
    expected = 0
    for index, stage in enumerate(layout.stages):
        if stage.first_layer != expected or stage.num_layers < 0:
            yield Violation(
                rule="chain",
                message=f"stage {index} starts at layer {stage.first_layer}, the one before ends at {expected}",
            )
        if stage.num_layers == 0:
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
    if layout.schedule is not expected:
        yield Violation(rule="schedule", message=f"{layout.schedule} with pp {layout.pp} and vpp {layout.vpp}")
    if layout.schedule is Schedule.INTERLEAVED and layout.num_microbatches % layout.pp:
        yield Violation(
            rule="interleaving", message=f"{layout.num_microbatches} micro-batches in groups of pp {layout.pp}"
        )
    passes = 2 * layout.num_microbatches * layout.vpp * layout.pp
    if passes > LONGEST_SCHEDULE:
        yield Violation(rule="schedule", message=f"{passes} passes, of which {LONGEST_SCHEDULE} are simulated")


def _recompute(layout: Layout) -> Iterator[Violation]:
    recompute = layout.recompute
    unknown = sorted(set(recompute.modules) - RECOMPUTABLE_MODULES)
    if unknown:
        known = ", ".join(sorted(RECOMPUTABLE_MODULES))
        yield Violation(rule="recompute", message=f"recompute of {', '.join(unknown)}; only {known} are priced")
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
    if layout.zero_stage >= 2 and layout.pp * layout.tp > 1:
        yield Violation(
            rule="sharding", message=f"zero_stage {layout.zero_stage} with tp {layout.tp} and pp {layout.pp}"
        )
    if layout.zero_stage >= 1 and workload.optimizer is not Optimizer.ADAM:
        yield Violation(rule="sharded-optimizer", message=f"zero_stage {layout.zero_stage} with {workload.optimizer}")
    if layout.zero_stage >= 2 and workload.lora is not None:
        yield Violation(rule="adapters", message=f"zero_stage {layout.zero_stage} with low-rank adapters")


def _pins(layout: Layout, constraints: Constraints) -> Iterator[Violation]:
    for dimension in constraints.degrees:
        value = getattr(layout, dimension)
        if not constraints.admits(dimension, value):
            yield Violation(rule="constraints", message=f"{dimension} {value} is not what the constraints allow")
    granularity = layout.recompute.granularity
    if constraints.recompute is not None and granularity.value not in constraints.recompute:
        yield Violation(rule="constraints", message=f"recompute {granularity} is not what the constraints allow")
    wanted = constraints.sequence_parallel
    if wanted is not None and layout.tp > 1 and layout.sequence_parallel is not wanted:
        yield Violation(rule="constraints", message=f"sequence_parallel must be {wanted}")


def _price(planned: PlannedLayout) -> Iterator[Violation]:
    if planned.peak_memory_bytes > planned.memory_limit_bytes:
        yield Violation(
            rule="memory", message=f"{planned.peak_memory_bytes} bytes needed, {planned.memory_limit_bytes} allowed"
        )
    gap = abs(planned.step_seconds - planned.reevaluated_step_seconds)
    if gap > PRICE_TOLERANCE * planned.reevaluated_step_seconds:
        yield Violation(
            rule="price",
            message=f"searched at {planned.step_seconds} s, evaluated at {planned.reevaluated_step_seconds} s",
        )
