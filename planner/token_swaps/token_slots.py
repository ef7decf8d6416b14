"""What each layer's computing hides of the copies of its neighbours: the slots of a rank, where tokens are swapped.

As MEMO schedules copies (arXiv 2407.12117, section 4.1 and figure 10), what a layer saves leaves the GPU while the next
layer runs forward, and comes back while that layer's gradients are computed; the copies each way have a stream of their
own. The layer after next writes to the same buffer, and so a slot lasts as long as the longest of what it computes and
of the copies beside it:

    forward slot of layer i     forward pass of i;                   layer i - 1 leaves
    backward slot of layer i    what i computes again, its gradient; layer i - 1 comes back

Where the backward pass of a micro-batch follows its forward pass at once, the last two layers stay where they are, in
the buffers, as in MEMO. Where other micro-batches are in flight, passes take turns, and the last layer leaves beside
the backward pass that follows, of another micro-batch; it comes back beside the forward pass in front of its own. That
is so for every micro-batch but the first and the last ones.

Equal slots are counted, not repeated.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

STAYING_LAYERS = 2
"""Last layers that need no swap where a micro-batch turns at once; also the buffers that layers take in turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A layer that computes beside copies.

    Args:
        kind: Its kind.
        is_backward: It computes gradients.
        is_divided: Its tokens have choices; else the layer stays.
        leaving: Kind of the layer that leaves meanwhile; None for none.
        coming: Kind of the layer that comes back meanwhile; None for none.
    """

    kind: int
    is_backward: bool
    is_divided: bool
    leaving: int | None
    coming: int | None


def num_divided(num_layers: int, *, turns: bool) -> int:
    """Return how many of the first layers of a stage have tokens to divide.

    Args:
        num_layers: Its layers.
        turns: The backward pass of a micro-batch follows its forward pass at once.
    """
    return max(0, num_layers - STAYING_LAYERS) if turns else num_layers


def slots(kinds: Sequence[int], *, turns: bool) -> Counter[Slot]:
    """Return the slots of one micro-batch through one stage, each with how often it occurs.

    Args:
        kinds: Kind of each layer.
        turns: The backward pass of a micro-batch follows its forward pass at once.
    """
    divided = num_divided(len(kinds), turns=turns)
    found: Counter[Slot] = Counter()
    for index, kind in enumerate(kinds):
        before = kinds[index - 1] if 0 < index <= divided else None
        around = kind if index == len(kinds) - 1 and not turns else None
        is_divided = index < divided
        found[Slot(kind=kind, is_backward=False, is_divided=is_divided, leaving=before, coming=around)] += 1
        found[Slot(kind=kind, is_backward=True, is_divided=is_divided, leaving=around, coming=before)] += 1
    return found
