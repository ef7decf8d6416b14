"""The passes of a micro-batch through layers with modules on the host: a clock for the GPU, and one for each stream.

The clocks go on as `on_group_commit_forward`, `_drain_offload_pending`, `on_group_start_backward` and
`on_group_commit_backward` of Megatron-LM's `fine_grained_activation_offload.py` are called. The checker's account of
`planner.offloading.modules`; the search has its own (`planner.search.bounds.module_waits`).

Of a layer the groups are taken in the order of `OFFLOADABLE`; what belongs to none of them lies behind attention and in
front of the experts. Streams are idle as a forward pass begins: what they still copy, they copy beside it. In a
pipeline a backward pass follows another one at once, as at the end of a step, and waits as much each time; without one
it follows its own forward pass, whose last groups are still there.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSeconds:
    """What one group takes: its own operators in both passes, and a copy."""

    module: str
    forward: float
    backward: float
    copy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroups:
    """What one layer takes of a micro-batch.

    Args:
        first: Groups in front of everything else.
        forward: Forward pass of everything else.
        backward: Its backward pass.
        last: Groups behind it.
    """

    first: tuple[GroupSeconds, ...]
    forward: float
    backward: float
    last: tuple[GroupSeconds, ...]

    @property
    def groups(self) -> tuple[GroupSeconds, ...]:
        """Return all groups in the order of the forward pass."""
        return (*self.first, *self.last)

    @property
    def forward_seconds(self) -> float:
        """Return the forward pass alone."""
        return self.forward + sum(group.forward for group in self.groups)

    @property
    def backward_seconds(self) -> float:
        """Return the backward pass alone."""
        return self.backward + sum(group.backward for group in self.groups)


def forward_seconds(layers: Sequence[LayerGroups]) -> float:
    """Return when the forward pass through layers ends."""
    gpu = stream = 0.0
    under_way: dict[str, deque[float]] = {}
    for layer in layers:
        for group in (*layer.first, None, *layer.last):
            if group is None:
                gpu += layer.forward
                continue
            gpu += group.forward
            stream = max(stream, gpu) + group.copy
            pending = under_way.setdefault(group.module, deque())
            pending.append(stream)
            while len(pending) > 1:
                gpu = max(gpu, pending.popleft())
    return gpu


def backward_seconds(layers: Sequence[LayerGroups], *, in_pipeline: bool) -> float:
    """Return what the backward pass through layers takes.

    Args:
        layers: The layers.
        in_pipeline: It follows the backward pass of another micro-batch through the same layers.
    """
    first = _end([layers])
    return _end([layers, layers]) - first if in_pipeline else first


def _end(passes: Sequence[Sequence[LayerGroups]]) -> float:
    """Return when backward passes one after the other end."""
    gpu = stream = 0.0
    in_order = [layer for layers in passes for layer in reversed(layers)]
    to_fetch = deque(group for layer in in_order for group in reversed(layer.groups))
    here_at: deque[float] = deque(0.0 for _ in range(len({group.module for group in to_fetch})))
    for _ in here_at:
        to_fetch.popleft()
    for layer in in_order:
        for group in (*reversed(layer.last), None, *reversed(layer.first)):
            if group is None:
                gpu += layer.backward
                continue
            gpu = max(gpu, here_at.popleft()) + group.backward
            if to_fetch:
                stream = max(stream, gpu) + to_fetch.popleft().copy
                here_at.append(stream)
    return gpu
