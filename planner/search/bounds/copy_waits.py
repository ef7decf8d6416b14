"""What a micro-batch waits for copies of activations, as the search adds it up (simulated: `offloading.timeline`).

Of L layers the first n are offloaded (`planner.offloading.activations`). With f_j and b_j the passes of layer j, c_j
its copy, F_j the sum of f up to j, and near = L - n, the waits that have come together before the forward pass of layer
j, and the end D_i of the copy of layer i, follow from one another:

    W_j = max(W_(j-1), D_(j-near) - F_(j-1))    D_i = max(D_(i-1), F_i + W_i) + c_i

In the backward pass layers are counted from the last, k = L - 1 - j. Layer k = near + i needs fetch i, which begins
where layer k = i + 1 does, and after the fetch before it.

All copies of a pass end within it. What is not waited for runs beside layers, which lose a part of it, as far as a
profile has measured that; the loss is not taken to hide more copies.
"""

from collections.abc import Sequence
from itertools import accumulate


def forward_wait_seconds(pass_seconds: Sequence[float], copy_seconds: Sequence[float], *, offloaded: int) -> float:
    """Return what the forward pass of a micro-batch waits for copies to the host.

    Args:
        pass_seconds: Forward pass of each layer, in order.
        copy_seconds: Copy of what each saves.
        offloaded: How many of the first layers are offloaded, fewer than all.
    """
    near = len(pass_seconds) - offloaded
    before = [0.0, *accumulate(pass_seconds)]
    waited, copied = 0.0, [0.0] * offloaded
    for layer in range(len(pass_seconds)):
        if layer >= near:
            waited = max(waited, copied[layer - near] - before[layer])
        if layer < offloaded:
            last = copied[layer - 1] if layer else 0.0
            copied[layer] = max(last, before[layer + 1] + waited) + copy_seconds[layer]
    return waited


def backward_wait_seconds(pass_seconds: Sequence[float], copy_seconds: Sequence[float], *, offloaded: int) -> float:
    """Return what the backward pass of a micro-batch waits for copies back; arguments as of `forward_wait_seconds`."""
    near = len(pass_seconds) - offloaded
    passes, copies = pass_seconds[::-1], copy_seconds[::-1]
    before = [0.0, *accumulate(passes)]
    waited, fetched = 0.0, 0.0
    begun: list[float] = []
    for layer in range(len(passes)):
        begun.append(before[layer] + waited)
        if layer >= near:
            fetched = max(fetched, begun[layer - near + 1]) + copies[layer]
            waited = max(waited, fetched - before[layer])
    return waited


def hidden_copy_seconds(
    pass_seconds: Sequence[float], copy_seconds: Sequence[float], *, offloaded: int, waited_seconds: float
) -> float:
    """Return for how long copies run beside the layers of one pass.

    Args:
        pass_seconds: The pass of each layer, in order.
        copy_seconds: Copy of what each saves.
        offloaded: How many of the first layers are offloaded.
        waited_seconds: What the pass waits for copies.
    """
    return min(max(0.0, sum(copy_seconds[:offloaded]) - waited_seconds), sum(pass_seconds))
