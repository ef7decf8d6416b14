"""The outer space of layouts, as arrays, with a reason for every point that is ruled out.

Axis X: points. The space is the full product of

    tp in divisors of the GPUs; pp in divisors of GPUs / tp; dp what is left;
    vpp 1, or such that interleaved stages come out even; micro_batch_size in divisors of global_batch_size / dp;
    sequence_parallel in {no, yes}; zero_stage in {0, 1, 2, 3}; every recompute choice.

Combinations that say the same thing twice (sequence parallelism with tp 1, sharding over one rank) are not points;
optimizer states below fp32 come with the sharded optimizer even where it shards over one rank.
Rules are applied in order and each ruled-out point is counted under the first rule that it breaks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from planner.blocks import SelfAttention
from planner.graph import Module
from planner.layout import Granularity, Recompute
from planner.memory import uses_precision_aware_optimizer
from planner.request import Constraints
from planner.specs import ModelSpec
from planner.workload import AttentionKernel, Optimizer, Precision, TrainWorkload
from profiles.hardware import Cluster

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

MAX_SCHEDULED_OPERATIONS = 1_000_000
"""Longest schedule that is simulated, in passes over all ranks."""

UNSIMULATED = "schedule longer than the simulator runs"
"""The one rule that rules out layouts which might be fine."""

FP8_ALIGNMENT = 16
MXFP8_ALIGNMENT = 32
"""Multiples in which both dimensions of an fp8 product come: 32 for MXFP8, which scales runs of 32, and 16 for every
other recipe (`megatron/core/fp8_utils.py: get_fp8_align_size` of megatron-core 0.19.2). The blockwise recipe stays at
16 too: its blocks of 128 are rounded up, so the last may be ragged (Transformer Engine, `float8_blockwise_tensor.py`).
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """Points of the space; every array has one entry a point.

    Args:
        tp_X: Tensor-parallel degree.
        pp_X: Pipeline-parallel degree.
        vpp_X: Virtual stages per pipeline rank.
        dp_X: Data-parallel degree.
        micro_batch_size_X: Sequences of a micro-batch.
        num_microbatches_X: Micro-batches of a step on one replica.
        sequence_parallel_X: 0 or 1.
        zero_stage_X: 0 to 3.
        recompute_X: Index into `Space.recomputes`.
        recompute_layers_X: Layers of each virtual stage that are recomputed whole while the others keep everything;
            0 treats all layers alike, as `recompute_X` says. Above 0 `recompute_X` is 0.
    """

    tp_X: IntArray
    pp_X: IntArray
    vpp_X: IntArray
    dp_X: IntArray
    micro_batch_size_X: IntArray
    num_microbatches_X: IntArray
    sequence_parallel_X: IntArray
    zero_stage_X: IntArray
    recompute_X: IntArray
    recompute_layers_X: IntArray

    def __len__(self) -> int:
        return len(self.tp_X)

    def where(self, mask_X: BoolArray) -> "Points":
        """Return the points that `mask_X` selects."""
        return Points(**{entry.name: getattr(self, entry.name)[mask_X] for entry in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """The legal points and the account of the others.

    Args:
        points: Legal points.
        recomputes: The recompute choices that `Points.recompute_X` indexes.
        considered: Points before any rule.
        pruned: Rule to number of points that broke it first.
        unsimulated: Points that broke no rule but are too long to simulate; counted in `pruned`.
    """

    points: Points
    unsimulated: Points
    recomputes: tuple[Recompute, ...]
    considered: int
    pruned: Mapping[str, int]


DIMENSIONS = (
    "tp",
    "sequence_parallel",
    "pp",
    "vpp",
    "dp",
    "zero_stage",
    "micro_batch_size",
    "recompute",
    "stages",
)


def divisors(number: int) -> tuple[int, ...]:
    """Return the divisors of `number`, ascending."""
    small = [candidate for candidate in range(1, int(number**0.5) + 1) if number % candidate == 0]
    return tuple(sorted({*small, *(number // candidate for candidate in small)}))


def interleaved_counts(num_layers: int, num_stages: int) -> tuple[int, ...] | None:
    """Return the layers of each virtual stage when stages are interleaved; None when they do not come out even.

    All alike, or one fewer beside the head, or one fewer beside the embedding and the head: the splits that count
    embedding and head as a layer each, as Megatron-LM's `--account-for-embedding-in-pipeline-split` and
    `--account-for-loss-in-pipeline-split` do.
    """
    for ends in ((), (-1,), (0, -1)):
        whole, remainder = divmod(num_layers + len(ends), num_stages)
        if not remainder and (whole > 1 or not ends):
            counts = [whole] * num_stages
            for end in ends:
                counts[end] -= 1
            return tuple(counts)
    return None


def virtual_degrees(num_layers: int, pp: int) -> tuple[int, ...]:
    """Return the vpp at which interleaved stages come out even; 1 always."""
    if pp == 1:
        return (1,)
    most = max(num_layers // pp, 1)
    return tuple(vpp for vpp in range(1, most + 1) if vpp == 1 or interleaved_counts(num_layers, pp * vpp))


def recompute_choices(workload: TrainWorkload) -> tuple[Recompute, ...]:
    """Return the recompute choices worth searching, cheapest in time first.

    Recomputing the attention core frees memory only when its scores are kept (an unfused kernel).
    """
    choices = [Recompute(granularity=Granularity.NONE)]
    modules: tuple[tuple[Module, ...], ...] = ((Module.MLP,),)
    if workload.attention_kernel is AttentionKernel.UNFUSED:
        modules = ((Module.CORE_ATTENTION,), (Module.MLP,), (Module.CORE_ATTENTION, Module.MLP))
    choices += [
        Recompute(granularity=Granularity.SELECTIVE, modules=tuple(module.value for module in chosen))
        for chosen in modules
    ]
    choices.append(Recompute(granularity=Granularity.FULL))
    return tuple(choices)


def partial_recompute_layers(model: ModelSpec, *, num_stages: int) -> tuple[int, ...]:
    """Return how many layers of each virtual stage may be recomputed while the others keep everything.

    At most as many as the smallest even stage holds, fewer than all; every count up to 8, then in steps of a half.
    Only for models whose layers are all alike.
    """
    most = model.num_layers // num_stages
    if len(model.distinct_blocks) > 1:
        return ()
    counts = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    return tuple(count for count in counts if count <= most and count * num_stages < model.num_layers)


def enumerate_layouts(model: ModelSpec, cluster: Cluster, workload: TrainWorkload, constraints: Constraints) -> Space:
    """Return every legal point, and how many others broke which rule."""
    recomputes = recompute_choices(workload)
    points = _product(model, cluster, workload, num_recomputes=len(recomputes))
    assert recomputes[0].granularity is Granularity.NONE, "partial recomputation builds on keeping everything"
    considered = len(points)
    alive_X = np.ones(considered, dtype=np.bool_)
    pruned: dict[str, int] = {}
    unsimulated_X = np.zeros(considered, dtype=np.bool_)
    rules = _rules(points, model, workload, constraints, recomputes, fast_domain_size=cluster.fast_domain_size)
    for reason, broken_X in rules:
        count = int((alive_X & broken_X).sum())
        if count:
            pruned[reason] = pruned.get(reason, 0) + count
            if reason == UNSIMULATED:
                unsimulated_X = alive_X & broken_X
            alive_X &= ~broken_X
    return Space(
        points=points.where(alive_X),
        unsimulated=points.where(unsimulated_X),
        recomputes=recomputes,
        considered=considered,
        pruned=pruned,
    )


def _product(model: ModelSpec, cluster: Cluster, workload: TrainWorkload, *, num_recomputes: int) -> Points:
    """Return the product of all dimensions."""
    world = cluster.world_size
    parts: list[IntArray] = []
    for tp in divisors(world):
        for pp in divisors(world // tp):
            dp = world // (tp * pp)
            batch, remainder = divmod(workload.global_batch_size, dp)
            micro = divisors(batch) if not remainder else (0,)
            stages = (0, 1, 2, 3) if dp > 1 else ((1,) if uses_precision_aware_optimizer(workload) else (0,))
            for vpp in virtual_degrees(model.num_layers, pp):
                partial = partial_recompute_layers(model, num_stages=pp * vpp)
                recompute = np.arange(num_recomputes + len(partial), dtype=np.int64)
                grid = np.meshgrid(
                    np.array(micro, dtype=np.int64),
                    np.array((0, 1) if tp > 1 else (0,), dtype=np.int64),
                    np.array(stages, dtype=np.int64),
                    recompute,
                    indexing="ij",
                )
                columns = [axis.ravel() for axis in grid]
                layers = np.array([0] * num_recomputes + list(partial), dtype=np.int64)[columns[-1]]
                columns[-1] = np.where(layers > 0, 0, columns[-1])
                fixed = [np.full(len(layers), value, dtype=np.int64) for value in (tp, pp, dp, batch, vpp)]
                parts.append(np.stack([*fixed, *columns, layers]))
    tp_X, pp_X, dp_X, batch_X, vpp_X, micro_X, sp_X, zero_X, recompute_X, layers_X = np.concatenate(parts, axis=1)
    return Points(
        tp_X=tp_X,
        pp_X=pp_X,
        vpp_X=vpp_X,
        dp_X=dp_X,
        micro_batch_size_X=micro_X,
        num_microbatches_X=batch_X // np.maximum(micro_X, 1),
        sequence_parallel_X=sp_X,
        zero_stage_X=zero_X,
        recompute_X=recompute_X,
        recompute_layers_X=layers_X,
    )


def _rules(  # noqa: PLR0913 - the space and everything that may rule out a point of it
    points: Points,
    model: ModelSpec,
    workload: TrainWorkload,
    constraints: Constraints,
    recomputes: tuple[Recompute, ...],
    *,
    fast_domain_size: int,
) -> Iterator[tuple[str, BoolArray]]:
    """Yield (rule, points that break it), in the order in which they are charged."""
    yield from _constraint_rules(points, constraints, recomputes)
    yield from _model_rules(points, model)
    tp_X, pp_X, vpp_X, micro_X = points.tp_X, points.pp_X, points.vpp_X, points.micro_batch_size_X
    yield "global_batch_size is not a multiple of dp", micro_X == 0
    if "tp" not in constraints.degrees:
        yield "tp leaves the fast domain (pin tp to allow it)", tp_X > fast_domain_size
    yield "more virtual stages than layers", pp_X * vpp_X > model.num_layers
    yield (
        "interleaving needs a number of micro-batches that is a multiple of pp",
        (vpp_X > 1) & (points.num_microbatches_X % pp_X != 0),
    )
    yield "seq_len is not a multiple of tp", (points.sequence_parallel_X == 1) & (workload.seq_len % tp_X != 0)
    # Megatron-FSDP wants CUDA_DEVICE_MAX_CONNECTIONS unset, tensor parallelism before Blackwell wants it to be 1.
    yield (
        "gradients or weights are sharded over dp only where tp and pp are 1",
        (points.zero_stage_X >= 2) & ((pp_X > 1) | (tp_X > 1)),
    )
    if workload.optimizer is not Optimizer.ADAM:
        yield "only Adam's states are sharded over dp", points.zero_stage_X >= 1
    if workload.lora is not None:
        yield "adapters train without sharding gradients or weights over dp", points.zero_stage_X >= 2
    if workload.precision.is_fp8:
        yield from _fp8_rules(points, model, workload)
    if uses_precision_aware_optimizer(workload):
        yield "optimizer states below fp32 need a sharded optimizer", points.zero_stage_X == 0
    operations_X = 2 * points.num_microbatches_X * vpp_X * pp_X
    yield UNSIMULATED, operations_X > MAX_SCHEDULED_OPERATIONS


def _fp8_rules(points: Points, model: ModelSpec, workload: TrainWorkload) -> Iterator[tuple[str, BoolArray]]:
    """Yield the dimensions of a rank's products that fp8 cannot multiply."""
    multiple = MXFP8_ALIGNMENT if workload.precision is Precision.FP8_MXFP8 else FP8_ALIGNMENT
    split_X = np.where(points.sequence_parallel_X == 1, points.tp_X, 1)
    tokens_X = points.micro_batch_size_X * workload.seq_len // split_X
    yield f"{workload.precision} needs the tokens of a rank to be a multiple of {multiple}", tokens_X % multiple != 0
    misfit_X = np.full(len(points), model.hidden_size % multiple != 0)
    yield f"{workload.precision} needs hidden_size to be a multiple of {multiple}", misfit_X
    reason = f"{workload.precision} needs the features of a rank to be a multiple of {multiple}"
    for features in _split_features(model):
        yield reason, features % (multiple * points.tp_X) != 0


def _split_features(model: ModelSpec) -> Iterator[int]:
    """Yield the widths of the linear layers that tp splits."""
    for block in model.distinct_blocks:
        mixer, feed_forward = block.mixer, block.feed_forward
        if isinstance(mixer, SelfAttention):
            yield from (mixer.query_size, mixer.query_size + 2 * mixer.key_value_size)
        if feed_forward is not None:
            yield feed_forward.intermediate_size


def _model_rules(points: Points, model: ModelSpec) -> Iterator[tuple[str, BoolArray]]:
    """Yield what tp must divide."""
    tp_X = points.tp_X
    for block in model.distinct_blocks:
        mixer, feed_forward = block.mixer, block.feed_forward
        if isinstance(mixer, SelfAttention):
            yield "num_attention_heads is not a multiple of tp", mixer.num_attention_heads % tp_X != 0
            groups = mixer.num_key_value_heads
            yield (
                "num_key_value_heads is neither a multiple nor a divisor of tp",
                (groups % tp_X != 0) & (tp_X % groups != 0),
            )
            width = mixer.query_size + 2 * mixer.key_value_size
            yield "the width of q, k and v together is not a multiple of tp", width % tp_X != 0
        if feed_forward is not None:
            yield "intermediate_size is not a multiple of tp", feed_forward.intermediate_size % tp_X != 0


def _constraint_rules(
    points: Points, constraints: Constraints, recomputes: tuple[Recompute, ...]
) -> Iterator[tuple[str, BoolArray]]:
    """Yield what the user ruled out."""
    by_dimension = {
        "tp": points.tp_X,
        "pp": points.pp_X,
        "vpp": points.vpp_X,
        "dp": points.dp_X,
        "zero_stage": points.zero_stage_X,
        "micro_batch_size": points.micro_batch_size_X,
        "num_microbatches": points.num_microbatches_X,
    }
    for dimension in sorted(constraints.degrees):
        values_X = by_dimension[dimension]
        values = np.unique(values_X)
        refused = np.array([not constraints.admits(dimension, int(value)) for value in values])
        yield f"constraints: {dimension}", refused[np.searchsorted(values, values_X)]
    if constraints.recompute is not None:
        refused = np.array([choice.granularity.value not in constraints.recompute for choice in recomputes])
        partial_refused = Granularity.FULL.value not in constraints.recompute
        yield (
            "constraints: recompute",
            np.where(points.recompute_layers_X > 0, partial_refused, refused[points.recompute_X]),
        )
    if constraints.sequence_parallel is not None:
        wanted = int(constraints.sequence_parallel)
        yield "constraints: sequence_parallel", (points.sequence_parallel_X != wanted) & (points.tp_X > 1)


def broken_rules(points: Points, model: ModelSpec, workload: TrainWorkload) -> tuple[str, ...]:
    """Return every rule that some of `points` break, whoever chose them."""
    rules = _rules(
        points, model, workload, Constraints(), recompute_choices(workload), fast_domain_size=int(points.tp_X.max())
    )
    return tuple(reason for reason, broken_X in rules if broken_X.any())
