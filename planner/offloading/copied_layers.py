"""What the passes of a stage take more where its layers keep saved tensors on the hosts: the checker's account.

Passes wait for the copies of whole layers as `planner.offloading.timeline` simulates it, for those of modules as
`planner.offloading.module_timeline` does. What they do not wait for runs beside them, and they lose to it what a
profile says (`CostModel.copy_slowdown`); without one, nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.layout import Layout, Recompute
from planner.offloading import module_timeline
from planner.offloading import timeline as offload_timeline
from planner.offloading.activations import layer_copy
from planner.offloading.module_timeline import GroupSeconds, LayerGroups
from planner.offloading.modules import copy_of, groups
from planner.offloading.timeline import LayerSeconds
from planner.ranks.pricing import price_steps
from planner.ranks.shard import RankLayer
from profiles.estimate import CostModel, Estimate

Tell = Callable[[Estimate], None]
"""Takes the price of a copy, for where figures come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedLayer:
    """A layer of a stage, with the seconds of its passes for one micro-batch."""

    layer: RankLayer
    recompute: Recompute
    forward_seconds: float
    backward_seconds: float


def added_seconds(
    held: Sequence[PricedLayer], layout: Layout, cost_model: CostModel, tell: Tell
) -> tuple[float, float]:
    """Return what copies add to the passes of a micro-batch through the layers of a stage, forward and backward."""
    if layout.offloaded_modules:
        divided = [_divided(layer, layout, cost_model, tell) for layer in held]
        forward = sum(layer.forward_seconds for layer in divided)
        backward = sum(layer.backward_seconds for layer in divided)
        there = module_timeline.forward_seconds(divided)
        back = module_timeline.backward_seconds(divided, in_pipeline=layout.pp > 1)
        moved = sum(group.copy for layer in divided for group in layer.groups)
    else:
        whole = [_whole(layer, cost_model, tell) for layer in held]
        forward = sum(layer.forward for layer in whole)
        backward = sum(layer.backward for layer in whole)
        there = offload_timeline.forward_seconds(whole, offloaded=layout.offloaded_layers)
        back = offload_timeline.backward_seconds(whole, offloaded=layout.offloaded_layers)
        moved = sum(layer.copy for layer in whole[: layout.offloaded_layers])
    added = []
    for copied, alone in ((there, forward), (back, backward)):
        waited = max(0.0, copied - alone)  # below 0 by rounding alone
        beside = min(max(0.0, moved - waited), alone)
        added.append(waited + (cost_model.copy_slowdown or 0.0) * beside)
    return added[0], added[1]


def _whole(held: PricedLayer, cost_model: CostModel, tell: Tell) -> LayerSeconds:
    """Return what a layer takes, with the copy of all that it saves."""
    copied = cost_model.compute(layer_copy(held.layer))
    tell(copied)
    return LayerSeconds(forward=held.forward_seconds, backward=held.backward_seconds, copy=copied.seconds)


def _divided(held: PricedLayer, layout: Layout, cost_model: CostModel, tell: Tell) -> LayerGroups:
    """Return what a layer takes in its offloaded modules, and beside them."""
    found: list[tuple[GroupSeconds, bool]] = []
    for group in groups(held.layer, held.recompute, layout.offloaded_modules):
        copied = max((cost_model.compute(part) for part in copy_of(group.num_bytes)), key=_seconds_of)
        tell(copied)
        forward, backward = (
            sum(price_steps(steps, cost_model).total_seconds for steps in passes)
            for passes in (
                [operator.forward for operator in group.operators],
                [operator.backward for operator in group.operators],
            )
        )
        seconds = GroupSeconds(module=group.module, forward=forward, backward=backward, copy=copied.seconds)
        found.append((seconds, group.in_parts))
    return LayerGroups(
        first=tuple(group for group, in_parts in found if not in_parts),
        forward=max(0.0, held.forward_seconds - sum(group.forward for group, _ in found)),
        backward=max(0.0, held.backward_seconds - sum(group.backward for group, _ in found)),
        last=tuple(group for group, in_parts in found if in_parts),
    )


def _seconds_of(estimate: Estimate) -> float:
    return estimate.seconds
