"""Rules of a layout's own shape: degrees against ranks, sizes and tokens, stages against layers, what a step may do."""

import math
from collections.abc import Iterator
from dataclasses import replace

from planner.evaluation.violation import Violation
from planner.frameworks.capabilities import CAPABILITIES, Capabilities
from planner.layout import REPLICAS_OUTERMOST, STAGES_OUTERMOST, Granularity, Layout, Schedule
from planner.memory.state_bytes import uses_precision_aware_optimizer
from planner.models.graph import Axis, ExpertLinear, Linear, ModelGraph, Module, Parallel
from planner.models.specs import ModelSpec
from planner.requests.request import PlanRequest
from planner.requests.workload import DType, Precision, TrainWorkload
from profiles.hardware import Cluster

RECOMPUTABLE_MODULES = frozenset(module.value for module in Module)
"""What selective recompute can name: the modules whose inner tensors the ledger knows."""

LONGEST_SCHEDULE = 1_000_000
"""Forward and backward passes, over all pipeline ranks, that the simulator is let run."""


def shape_violations(
    layout: Layout, model: ModelSpec, graph: ModelGraph, cluster: Cluster, request: PlanRequest
) -> Iterator[Violation]:
    """Yield what is wrong with the degrees, the stages and the step of a layout, one after the other."""
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
