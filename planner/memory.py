"""The memory ledger: every term of one rank's memory, in exact bytes, phase by phase.

Phases: initialisation (weights, gradient buffer, master weights; moments are made at the first update), the worst
moment of forward and backward (everything, with as many micro-batches in flight as the schedule keeps), and the
optimizer step. The heaviest phase of the heaviest rank decides whether a plan fits.

Weights, gradients and states follow Megatron-LM's distributed optimizer (Rajbhandari et al., arXiv 1910.02054, for
the stages); activations are the saved tensors of `planner.graph`, which Korthikanti et al. (arXiv 2205.05198)
published as formulas.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from planner.blocks import Block
from planner.communication import communicator_sizes, num_moments
from planner.graph import ModelGraph
from planner.layout import Granularity, Layout, Schedule, Stage
from planner.plan import MemoryLine, Phase
from planner.schedule_orders import operation_order, peak_activation_bytes
from planner.shard import RankLayer, Sharding, shard_layer, sharding_of
from planner.specs import ModelSpec
from planner.workload import DType, Optimizer, TrainWorkload

MIB = 1 << 20
CONTEXT_BYTES = 700 * MIB
CONTEXT_SOURCE = "CUDA context, cuBLAS and Transformer Engine workspaces; no published figure"
PAIR_COMMUNICATOR_BYTES = 544 * MIB
GROUP_COMMUNICATOR_BYTES = 688 * MIB
COMMUNICATOR_SOURCE = "544 MiB for a pair, 688 MiB for a larger group (measured on A100, NVIDIA/nccl issue 964)"
FRAGMENTATION_FRACTION = 0.03
FRAGMENTATION_SOURCE = "3 % of activations and temporaries lost to the caching allocator"
ASSUMED_SOURCES = frozenset({CONTEXT_SOURCE, FRAGMENTATION_SOURCE, COMMUNICATOR_SOURCE})
"""Sources of figures that nobody measured for this hardware."""

FSDP_QUEUED_GRADIENTS = 1_000_000_000
FSDP_PREFETCHED_WEIGHTS = 500_000_000
"""Elements that Megatron-FSDP lets wait, unsharded: gradients on their way to be reduced, weights gathered ahead
(`megatron_fsdp.py`, megatron-core 0.19.2); at least two layers either way."""

FP8_COPY_BYTES = 2
FP8_COPY_SOURCE = "Transformer Engine keeps a row-wise and a column-wise fp8 copy of each weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes per element of what belongs to a trainable weight, before any sharding.

    Args:
        weight: The parameter itself.
        gradient: Its gradient accumulator.
        master: The optimizer's copy.
        moments: The optimizer's moments.
    """

    weight: int
    gradient: int
    master: int
    moments: int


def state_bytes(workload: TrainWorkload) -> StateBytes:
    """Return the bytes per trainable element.

    With states in less than fp32, Transformer Engine's fused Adam keeps of an fp32 master of bf16 weights only the 16
    bits that the weight lacks.
    """
    precision_aware = uses_precision_aware_optimizer(workload)
    master = workload.master_dtype.num_bytes
    if (
        precision_aware
        and workload.master_dtype is DType.FP32
        and workload.precision.parameter_dtype is DType.BF16
        and workload.optimizer is Optimizer.ADAM
    ):
        master = 2
    return StateBytes(
        weight=workload.precision.parameter_dtype.num_bytes,
        gradient=workload.gradient_dtype.num_bytes,
        master=master,
        moments=num_moments(workload) * workload.moment_dtype.num_bytes,
    )


def uses_precision_aware_optimizer(workload: TrainWorkload) -> bool:
    """Return whether master weights or moments are kept in less than fp32."""
    return workload.master_dtype is not DType.FP32 or workload.moment_dtype is not DType.FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class RankModel:
    """One rank's share of every kind of layer of a model.

    Args:
        embedding: The embedding's share.
        blocks: Each distinct block with its share.
        head: The head's share.
        stream_bytes: The residual stream of one micro-batch on this rank.
    """

    embedding: RankLayer
    blocks: tuple[tuple[Block, RankLayer], ...]
    head: RankLayer
    stream_bytes: int

    def block(self, block: Block) -> RankLayer:
        """Return the share of one block."""
        return next(layer for candidate, layer in self.blocks if candidate is block or candidate == block)


def shard_model(graph: ModelGraph, sharding: Sharding) -> RankModel:
    """Return one rank's share of every kind of layer."""
    return RankModel(
        embedding=shard_layer(graph.embedding, sharding),
        blocks=tuple((block, shard_layer(layer, sharding)) for block, layer in graph.blocks.items()),
        head=shard_layer(graph.head, sharding),
        stream_bytes=sharding.residual_tokens * graph.hidden_size * graph.stream_bytes,
    )


def head_elements(rank_model: RankModel, *, pp: int, trainable: bool | None = None) -> int:
    """Return the head's weight elements on its rank; a tied table counts only where the embedding is elsewhere."""
    return sum(
        part.num_elements
        for part in rank_model.head.weights
        if (trainable is None or part.weight.trainable is trainable)
        and not (part.weight.shared_with_embedding and pp == 1)
    )


def stage_layers(model: ModelSpec, stage: Stage) -> tuple[Block, ...]:
    """Return the decoder blocks of one virtual stage."""
    return model.blocks_between(stage.first_layer, stage.num_layers)


def stage_elements(
    model: ModelSpec, rank_model: RankModel, stage: Stage, *, pp: int, trainable: bool | None = None
) -> int:
    """Return the weight elements that one virtual stage puts on a rank."""
    total = sum(rank_model.block(block).num_elements(trainable=trainable) for block in stage_layers(model, stage))
    if stage.has_embedding:
        total += rank_model.embedding.num_elements(trainable=trainable)
    if stage.has_head:
        total += head_elements(rank_model, pp=pp, trainable=trainable)
    return total


def rank_parameters(model: ModelSpec, graph: ModelGraph, layout: Layout, pipeline_rank: int, *, seq_len: int) -> int:
    """Return the parameters that each GPU of one pipeline rank holds, vocabulary padding included."""
    rank_model = shard_model(graph, sharding_of(layout, seq_len))
    return sum(stage_elements(model, rank_model, stage, pp=layout.pp) for stage in layout.chunks(pipeline_rank))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedModel:
    """A model under one layout: what the ledger is written from.

    Args:
        model: The model.
        rank_model: One rank's share of its layers under the layout's sharding.
        layout: The layout.
        workload: The training run.
    """

    model: ModelSpec
    rank_model: RankModel
    layout: Layout
    workload: TrainWorkload

    def elements(self, pipeline_rank: int, *, trainable: bool | None = None) -> int:
        """Return the weight elements on each GPU of one pipeline rank."""
        return sum(
            stage_elements(self.model, self.rank_model, stage, pp=self.layout.pp, trainable=trainable)
            for stage in self.layout.chunks(pipeline_rank)
        )

    def layers(self, pipeline_rank: int) -> tuple[RankLayer, ...]:
        """Return each kind of decoder layer on one pipeline rank, as often as it occurs."""
        return tuple(
            self.rank_model.block(block)
            for stage in self.layout.chunks(pipeline_rank)
            for block in stage_layers(self.model, stage)
        )


def place(model: ModelSpec, graph: ModelGraph, layout: Layout, workload: TrainWorkload) -> PlacedModel:
    """Return `model` under `layout`."""
    rank_model = shard_model(graph, sharding_of(layout, workload.seq_len))
    return PlacedModel(model=model, rank_model=rank_model, layout=layout, workload=workload)


def chunk_activation_bytes(placed: PlacedModel, stage: Stage) -> int:
    """Return what one virtual stage keeps of one micro-batch, the head's tensors (never two at once) left out."""
    recompute = placed.layout.recompute
    total = placed.rank_model.embedding.all_saved_bytes if stage.has_embedding else 0
    for index, block in enumerate(stage_layers(placed.model, stage)):
        layer = placed.rank_model.block(block)
        if recompute.granularity is Granularity.FULL and recompute.num_layers is not None:
            recomputed = index < recompute.num_layers
            total += layer.layer_input_bytes if recomputed else layer.all_saved_bytes
        else:
            total += layer.saved_bytes(recompute)
    return total


def _working_set_bytes(placed: PlacedModel, pipeline_rank: int) -> int:
    """Return the most that one layer's backward needs beside what is kept: recomputed tensors and gradients.

    Where only the first layers of a stage are recomputed, the others have freed at least as much by then.
    """
    recompute = placed.layout.recompute
    largest = 0
    for stage in placed.layout.chunks(pipeline_rank):
        freed_before = recompute.num_layers is not None and stage.num_layers > recompute.num_layers
        for block in stage_layers(placed.model, stage):
            layer = placed.rank_model.block(block)
            again = 0 if freed_before else layer.all_saved_bytes - layer.saved_bytes(recompute)
            largest = max(largest, again + layer.transient_bytes)
    return largest


def communicator_bytes(layout: Layout, *, tied_embedding: bool) -> int:
    """Return the memory of every communicator that one rank opens."""
    sizes = communicator_sizes(layout, tied_embedding=tied_embedding)
    return sum(PAIR_COMMUNICATOR_BYTES if size == 2 else GROUP_COMMUNICATOR_BYTES for size in sizes)


def head_peak_bytes(rank_model: RankModel) -> int:
    """Return the loss's peak: fp32 softmax kept, logits or their gradient in 16 bit beside it, the norm's tensors."""
    softmax = next(part.num_bytes for part in rank_model.head.saved if part.saved.name == "softmax of logits")
    kept = sum(part.num_bytes for part in rank_model.head.saved)
    return kept + softmax // 2


@lru_cache(maxsize=256)
def _activation_peaks(
    schedule: Schedule, pp: int, vpp: int, num_microbatches: int, bytes_per_stage: tuple[int, ...]
) -> tuple[int, ...]:
    order = operation_order(schedule, pp=pp, vpp=vpp, num_microbatches=num_microbatches)
    bytes_RC = np.array(bytes_per_stage, dtype=np.int64).reshape(vpp, pp).T
    return peak_activation_bytes(order, bytes_RC)


def memory_ledger(placed: PlacedModel) -> tuple[MemoryLine, ...]:
    """Return every line of every pipeline rank's memory."""
    layout = placed.layout
    peaks = _activation_peaks(
        layout.schedule,
        layout.pp,
        layout.vpp,
        layout.num_microbatches,
        tuple(chunk_activation_bytes(placed, stage) for stage in layout.stages),
    )
    lines: list[MemoryLine] = []
    for pipeline_rank in range(layout.pp):
        always = _permanent_terms(placed, pipeline_rank)
        moments = _moment_terms(placed, pipeline_rank)
        dynamic = _dynamic_terms(placed, pipeline_rank, peaks[pipeline_rank])
        for phase, terms in (
            (Phase.INITIALISATION, always),
            (Phase.FORWARD_BACKWARD, [*always, *moments, *dynamic]),
            (Phase.OPTIMIZER_STEP, [*always, *moments, *_update_terms(placed, pipeline_rank)]),
        ):
            lines += [
                MemoryLine(
                    rank=layout.first_global_rank(pipeline_rank),
                    phase=phase,
                    term=term.name,
                    num_bytes=term.num_bytes,
                    source=term.source,
                )
                for term in terms
            ]
    return tuple(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    name: str
    num_bytes: int
    source: str


def _share(num_bytes: int, group: int) -> int:
    return -(-num_bytes // group)


def _over(group: int) -> str:
    return f", split over {group} ranks" if group > 1 else ""


def _groups(layout: Layout) -> tuple[int, int, int]:
    """Return the ranks that optimizer states, gradients and weights are split over."""
    group = layout.dp * layout.cp
    states, gradients, weights = (group if layout.zero_stage >= stage else 1 for stage in (1, 2, 3))
    return states, gradients, weights


def _permanent_terms(placed: PlacedModel, pipeline_rank: int) -> list[_Term]:
    """Return what a rank holds from initialisation on."""
    layout, workload = placed.layout, placed.workload
    per_element = state_bytes(workload)
    trainable = placed.elements(pipeline_rank, trainable=True)
    frozen = placed.elements(pipeline_rank, trainable=False)
    states, gradients, weights = _groups(layout)
    terms = [
        _Term(
            name="weights",
            num_bytes=_share((trainable + frozen) * per_element.weight, weights),
            source=f"{workload.precision.parameter_dtype} parameters of this rank{_over(weights)}",
        ),
        _Term(
            name="gradients",
            num_bytes=_share(trainable * per_element.gradient, gradients),
            source=f"{workload.gradient_dtype} gradients{_over(gradients)}",
        ),
        _Term(
            name="master weights",
            num_bytes=_share(trainable * per_element.master, states),
            source=f"{per_element.master} bytes an element{_over(states)}",
        ),
        _Term(name="context and libraries", num_bytes=CONTEXT_BYTES, source=CONTEXT_SOURCE),
    ]
    communicators = communicator_bytes(layout, tied_embedding=placed.model.tie_word_embeddings)
    if communicators:
        terms.append(_Term(name="communicators", num_bytes=communicators, source=COMMUNICATOR_SOURCE))
    return terms


def _moment_terms(placed: PlacedModel, pipeline_rank: int) -> list[_Term]:
    """Return what is made at the first step and stays: moments, fp8 copies, gathered parameters."""
    layout, workload = placed.layout, placed.workload
    states, _, _ = _groups(layout)
    trainable = placed.elements(pipeline_rank, trainable=True)
    terms = [
        _Term(
            name="optimizer moments",
            num_bytes=_share(trainable * state_bytes(workload).moments, states),
            source=f"{num_moments(workload)} in {workload.moment_dtype}{_over(states)}",
        )
    ]
    layers = placed.layers(pipeline_rank)
    if workload.precision.is_fp8:
        operands = sum(layer.num_elements(gemm_operand=True) for layer in layers)
        terms.append(_Term(name="fp8 weight copies", num_bytes=operands * FP8_COPY_BYTES, source=FP8_COPY_SOURCE))
    if layout.zero_stage == 3:
        terms.append(
            _Term(
                name="gathered parameters",
                num_bytes=_gathered_elements(placed, pipeline_rank) * state_bytes(workload).weight,
                source="embedding and head whole, and the layers that Megatron-FSDP gathers ahead",
            )
        )
    return terms


def _gathered_elements(placed: PlacedModel, pipeline_rank: int) -> int:
    """Return the weights that are whole at once with sharded weights.

    Embedding and head are no units of Megatron-FSDP and stay whole for the step.
    """
    layers = [layer.num_elements() for layer in placed.layers(pipeline_rank)]
    ends = placed.elements(pipeline_rank) - sum(layers)
    return ends + min(sum(layers), max(FSDP_PREFETCHED_WEIGHTS, 2 * max(layers, default=0)))


def _queued_gradient_terms(placed: PlacedModel, pipeline_rank: int) -> list[_Term]:
    """Return what sharded gradients take before they are reduced."""
    if placed.layout.zero_stage < 2:
        return []
    workload = placed.workload
    layers = [layer.num_elements(trainable=True) for layer in placed.layers(pipeline_rank)]
    largest = max(layers, default=0)
    queued = min(placed.elements(pipeline_rank, trainable=True), max(FSDP_QUEUED_GRADIENTS, 2 * largest))
    per_element = state_bytes(workload)
    return [
        _Term(
            name="gradients to reduce",
            num_bytes=queued * per_element.gradient + largest * per_element.weight,
            source="whole buckets that Megatron-FSDP lets wait, and one layer's gradients before they are added",
        )
    ]


def _update_terms(placed: PlacedModel, pipeline_rank: int) -> list[_Term]:
    """Return what only the optimizer step needs: 16-bit gradients are copied to fp32 for fp32 master weights."""
    workload = placed.workload
    if workload.gradient_dtype is DType.FP32 or uses_precision_aware_optimizer(workload):
        return []
    states, _, _ = _groups(placed.layout)
    trainable = placed.elements(pipeline_rank, trainable=True)
    return [
        _Term(
            name="fp32 gradients",
            num_bytes=_share(trainable * DType.FP32.num_bytes, states),
            source=f"copy of the {workload.gradient_dtype} gradients for the update{_over(states)}",
        )
    ]


def _dynamic_terms(placed: PlacedModel, pipeline_rank: int, activation_bytes: int) -> list[_Term]:
    """Return what lives between a forward pass and its backward pass at the worst moment."""
    layout = placed.layout
    terms = [
        _Term(
            name="activations",
            num_bytes=activation_bytes,
            source="saved tensors of the micro-batches in flight"
            + ("" if layout.pp == 1 else f", {layout.schedule} schedule"),
        )
    ]
    working = _working_set_bytes(placed, pipeline_rank)
    has_head = any(stage.has_head for stage in layout.chunks(pipeline_rank))
    head = head_peak_bytes(placed.rank_model) if has_head else 0
    if head > working:
        terms.append(
            _Term(
                name="logits and loss",
                num_bytes=head,
                source="fp32 softmax and 16-bit logits, vocabulary split over tp; outweigh any layer's temporaries",
            )
        )
    else:
        terms.append(
            _Term(
                name="backward temporaries",
                num_bytes=working,
                source="recomputed tensors and gradients of the largest layer",
            )
        )
    terms += _queued_gradient_terms(placed, pipeline_rank)
    if layout.pp > 1:
        buffers = 2 * placed.rank_model.stream_bytes * (2 if layout.overlap.p2p else 1)
        terms.append(
            _Term(name="pipeline buffers", num_bytes=buffers, source="received activations and their gradients")
        )
    lost = round(sum(term.num_bytes for term in terms) * FRAGMENTATION_FRACTION)
    terms.append(_Term(name="fragmentation", num_bytes=lost, source=FRAGMENTATION_SOURCE))
    return terms


def peak_memory_bytes(lines: tuple[MemoryLine, ...]) -> int:
    """Return the largest phase of the heaviest rank."""
    totals: dict[tuple[int, Phase], int] = {}
    for line in lines:
        key = (line.rank, line.phase)
        totals[key] = totals.get(key, 0) + line.num_bytes
    return max(totals.values())


def memory_limit_bytes(device_bytes: int, headroom: float) -> int:
    """Return what a plan may use of a GPU's memory."""
    return int(device_bytes * (1.0 - headroom))
