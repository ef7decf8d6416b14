"""Layers whose saved tensors wait in host memory between forward and backward pass: what moves, and what stays.

As Transformer Engine does it for Megatron-LM's `--cpu-offloading-num-layers` (`pytorch/cpu_offload.py` of 2.12 and
later, `DefaultOffloadSynchronizer`; `TransformerBlock.forward` of megatron-core 0.19.2 opens its context around each
layer and makes one for all of them, without a pipeline and without recomputation). Of L layers the first n are
offloaded. With layers numbered from 0, and one stream for all copies of a rank:

- what layer i saves is copied to page-locked memory from the end of its forward pass on, and given back before layer
  L - n + i begins, which waits for the copies;
- it is fetched from the beginning of the backward pass of layer L - 1 - n + i on, and layer i waits for it.

So at most L - n layers in a row are on the GPU at once, in the forward pass and in the backward pass alike. Tensors of
fewer than 256 Ki elements stay there. Values are saved as a view of the product that queries and keys come from, and
views move with the whole tensor that they look at (`start_offload` with `offload_base_tensor`): queries and keys are
counted a second time where they are copied. On the GPU the ledger counts what is saved, as of any other layer.
"""

from collections.abc import Sequence

from planner.ranks.shard import RankLayer
from profiles.ops import HostCopy

LEAST_ELEMENTS = 256 * 1024
"""Elements of the smallest tensor that is moved (`OffloadableLayerState._check_if_offload`)."""

LARGEST_ZERO_STAGE = 1
"""Megatron-FSDP gathers weights in hooks of its own around layers, which nobody tried beside these."""

VALUE = "value"
BESIDE_VALUE = ("query", "key")
"""Saved tensors that come from one product with the values."""


def copied_tensors(layer: RankLayer) -> tuple[int, ...]:
    """Return the bytes of each tensor of a layer that is copied, those of one micro-batch."""
    of_name = {part.saved.name: part.num_bytes for part in layer.saved}
    beside = sum(of_name.get(name, 0) for name in BESIDE_VALUE)
    return tuple(
        part.num_bytes + (beside if part.saved.name == VALUE else 0)
        for part in layer.saved
        if _moves(part.num_bytes, part.saved.element_bytes)
    )


def layer_copy(layer: RankLayer) -> HostCopy:
    """Return the copy of what a layer saves, to the host or back."""
    return HostCopy(num_bytes=sum(copied_tensors(layer)), pinned=True)


def held_bytes(layers: Sequence[RankLayer], offloaded: int) -> int:
    """Return the most that saved tensors of layers take of a GPU at once.

    Args:
        layers: All layers, in order.
        offloaded: How many of them are offloaded, fewer than all.
    """
    moved = [
        sum(part.num_bytes for part in layer.saved if _moves(part.num_bytes, part.saved.element_bytes))
        for layer in layers
    ]
    staying = sum(layer.all_saved_bytes for layer in layers) - sum(moved)
    near = len(layers) - offloaded
    return staying + max(sum(moved[first : first + near]) for first in range(offloaded + 1))


def _moves(num_bytes: int, element_bytes: int) -> bool:
    return num_bytes // element_bytes >= LEAST_ELEMENTS
