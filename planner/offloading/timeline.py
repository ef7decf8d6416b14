"""The passes of a micro-batch through layers whose saved tensors go to the host: two clocks, step by step.

The clock of the GPU and that of the one stream for copies go on as `DefaultOffloadSynchronizer.fwd_step` and `bwd_step`
of Transformer Engine's `pytorch/cpu_offload.py` are called, one after the other, before each layer. The checker's
account of `planner.offloading.activations`; the search has its own (`planner.search.bounds.copy_waits`).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeconds:
    """What one layer takes of a micro-batch: its passes, and a copy of what it saves."""

    forward: float
    backward: float
    copy: float


def forward_seconds(layers: Sequence[LayerSeconds], *, offloaded: int) -> float:
    """Return when the forward pass through layers ends, of which the first ones are offloaded."""
    gpu = stream = 0.0
    done_at: dict[int, float] = {}
    for current, layer in enumerate(layers):
        previous = current - 1
        if 0 <= previous < offloaded:  # start_offload
            stream = max(stream, gpu) + layers[previous].copy
            done_at[previous] = stream
        released = current - (len(layers) - offloaded)
        if released >= 0:  # release_activation_forward_gpu_memory
            gpu = max(gpu, done_at[released])
        gpu += layer.forward
    return gpu


def backward_seconds(layers: Sequence[LayerSeconds], *, offloaded: int) -> float:
    """Return when the backward pass through layers ends, of which the first ones are offloaded."""
    gpu = stream = 0.0
    here_at: dict[int, float] = {}
    for current in reversed(range(len(layers))):
        wanted = current - (len(layers) - 1 - offloaded)
        if 0 <= wanted < offloaded:  # start_reload
            stream = max(stream, gpu) + layers[wanted].copy
            here_at[wanted] = stream
        if current < offloaded:  # pop_tensor
            gpu = max(gpu, here_at[current])
        gpu += layers[current].backward
    return gpu
