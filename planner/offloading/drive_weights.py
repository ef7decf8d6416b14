"""Weights on the drives of a node: which of them, the buffers that passes need, and what stays in host memory.

As DeepSpeed's ZeRO-Infinity does it (Rajbhandari et al., arXiv 2104.07857; of deepspeed 0.19.8
`runtime/swap_tensor/partitioned_param_swapper.py`, `runtime/zero/partition_parameters.py`,
`runtime/zero/partitioned_param_coordinator.py`, `runtime/zero/stage3.py`), with zero_stage 3 and all optimizer states
on the hosts or on drives. A rank's share of each tensor is a file of its own, written as the model is built; a share
below 1 MiB stays in page-locked memory (`swappable_tensor`). `max_in_cpu` is written as 0: no other share stays there.

A tensor that a pass needs is read into one of `buffer_count` buffers, all as large as the largest share, copied from
there and gathered. The buffer is free again when the tensor is given back. Before a layer is computed the tensors
behind it are read ahead into buffers that are free (`__prefetch_nvme_param_partitions`). The process waits for a read,
copies, and asks for the next one, ahead of the GPU: reads and copies come one after another, and all of them run beside
what the GPU computes and gathers. With `mlock` alone CUDA is not told of the buffers, so that copies are those of
pageable memory. What a profile says that passes lose to copies they are taken to lose to reads too.

Tensors that are used again within `stage3_max_reuse_distance` elements are not given back. It is written as twice the
largest layer: a layer that is run again in backward keeps its tensors until its own backward pass, so that each pass
reads every tensor once. From the forward to the backward pass only the layers at the end stay, those behind which fewer
elements lie than the largest layer has, and the head. That these are not read again is not counted, nor that shares
below 1 MiB are not read: passes take less than is said here.

Behind the update of a sub-group its new weights are cast into a buffer of their own and written while the process waits
(`swap_out_partitioned_params`); this buffer is as large as the largest sub-group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from planner.layout import Layout
from planner.models.blocks import Block, DenseFeedForward, MixtureOfExperts, SelfAttention
from planner.models.graph import Mesh
from planner.models.specs import ModelSpec
from planner.offloading.drive_step import ALIGNED_BYTES, BLOCK_BYTES, below_block_elements, largest_sub_group
from planner.offloading.states import SHARDED_WEIGHTS
from planner.ranks.communication import shard_ranks
from planner.ranks.placement import PlacedModel
from planner.ranks.shard import RankLayer, RankWeight

READ_AHEAD = 2
"""Buffers for what is read while the tensors of a layer are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveWeights:
    """Weights on drives, of one rank.

    Args:
        num_buffers: `buffer_count`.
        buffer_elements: `buffer_size`, of each of them.
        reuse_elements: `stage3_max_reuse_distance`.
        buffer_bytes: What buffers take in page-locked memory, that of new weights among them.
        file_bytes: What files take at most.
        kept_bytes: Shares that stay in host memory, at most, before their own buffers are rounded up.
    """

    num_buffers: int
    buffer_elements: int
    reuse_elements: int
    buffer_bytes: int
    file_bytes: int
    kept_bytes: int


def drive_weights(placed: PlacedModel, pipeline_rank: int = 0) -> DriveWeights:
    """Return what of a rank's weights lies on drives, and what that needs."""
    element_bytes = placed.workload.precision.parameter_dtype.num_bytes
    rank_model, layout = placed.rank_model, placed.layout
    held = [layer for stage in layout.chunks(pipeline_rank) for layer in rank_model.stage_layers(stage)]
    ends = [part for end in (rank_model.embedding, rank_model.head) for part in end.weights]
    ends = [part for part in ends if not part.weight.shared_with_embedding]
    more_of = dict(zip(rank_model.layers, map(_more_tensors, placed.model.distinct_blocks), strict=True))
    shares = [_share(part, layout) for part in chain(ends, *(layer.weights for layer in held))]
    num_tensors = len(shares) + sum(more_of[layer] for layer in held)
    aligned_elements, largest = ALIGNED_BYTES // element_bytes, max(shares, default=0)
    buffer_elements = -(-largest // aligned_elements) * aligned_elements
    at_once = {layer: _num_swapped(layer.weights, placed) + more_of[layer] for layer in set(held)}
    at_ends = _num_swapped(rank_model.head.weights, placed), _num_swapped(rank_model.embedding.weights, placed)
    num_buffers = max(_tensors_at_once(held, at_once) + at_ends[0], at_ends[1]) + READ_AHEAD
    written = largest_sub_group(sum(shares), tensor=largest)
    part = least_fused_part(placed.model)
    kept = sum(share for share in shares[: len(ends)] if share * element_bytes < BLOCK_BYTES) + sum(
        below_block_elements(share, element_bytes=element_bytes, least_part=part) for share in shares[len(ends) :]
    )
    return DriveWeights(
        num_buffers=num_buffers,
        buffer_elements=buffer_elements,
        reuse_elements=2 * _largest_layer(held),
        buffer_bytes=(num_buffers * buffer_elements + written) * element_bytes + num_tensors * ALIGNED_BYTES,
        file_bytes=sum(shares) * element_bytes + num_tensors * ALIGNED_BYTES,
        kept_bytes=kept * element_bytes,
    )


def least_fused_part(model: ModelSpec) -> float:
    """Return the least part that a tensor of the program has of a planned one: keys of a product with queries, or half.

    A planned tensor may be three or two of the program's: queries, keys and values, or gate and up.
    """
    attentions = [entry.mixer for entry in model.distinct_blocks if isinstance(entry.mixer, SelfAttention)]
    return min(
        (
            mixer.num_key_value_heads / (mixer.num_attention_heads + 2 * mixer.num_key_value_heads)
            for mixer in attentions
        ),
        default=0.5,
    )


def _more_tensors(block: Block) -> int:
    """Return how many tensors more than planned ones the program has of a block at most."""
    feed_forward = block.feed_forward
    gated = isinstance(feed_forward, DenseFeedForward) and feed_forward.gated
    if isinstance(feed_forward, MixtureOfExperts):
        gated = feed_forward.shared is not None and feed_forward.shared.gated
    return 2 * isinstance(block.mixer, SelfAttention) + gated


def _share(part: RankWeight, layout: Layout) -> int:
    """Return the elements of a rank's share of a tensor."""
    dense, expert = shard_ranks(layout, zero_stage=SHARDED_WEIGHTS)
    return -(-part.num_elements // (expert if part.weight.mesh is Mesh.EXPERT else dense))


def _num_swapped(parts: Sequence[RankWeight], placed: PlacedModel) -> int:
    """Return how many of some planned tensors have shares that are large enough for drives."""
    element_bytes = placed.workload.precision.parameter_dtype.num_bytes
    return sum(_share(part, placed.layout) * element_bytes >= BLOCK_BYTES for part in parts)


def _largest_layer(held: Sequence[RankLayer]) -> int:
    """Return the elements of the largest layer, before they are split."""
    return max((layer.elements().total for layer in held), default=0)


def _tensors_at_once(held: Sequence[RankLayer], at_once: Mapping[RankLayer, int]) -> int:
    """Return the most tensors of layers that are there at once: of one, or of those that stay between the passes."""
    largest = _largest_layer(held)
    staying = behind = 0
    for layer in reversed(held):
        if behind >= largest:
            break
        staying += at_once[layer]
        behind += layer.elements().total
    return max((staying, *at_once.values()))
