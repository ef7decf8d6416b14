"""Rules of points whose layers keep the saved tensors of some modules on the hosts (`planner.offloading.modules`)."""

from collections.abc import Iterator

import numpy as np

from planner.layout import Recompute
from planner.offloading.activations import LARGEST_ZERO_STAGE
from planner.offloading.modules import clashes, module_choices, present_modules
from planner.requests.request import OFFLOADED_MODULES
from planner.search.space.points import Points, Scope
from planner.search.space.space_rules import Rule

Modules = tuple[str, ...]


def searched_modules(scope: Scope) -> tuple[Modules, ...]:
    """Return the sets of modules that may be searched in host memory.

    What the user pins is searched even where rules forbid it, so that they are named.
    """
    pinned = scope.constraints.pinned_modules
    if pinned is not None:
        return (pinned,) if pinned else ()
    if not is_module_offloadable(scope):
        return ()
    return module_choices(scope.graph, scope.workload)


def is_module_offloadable(scope: Scope) -> bool:
    """Return whether some modules of a run can be offloaded."""
    return not any(broken for _, broken in _run_rules(scope))


def module_rules(points: Points, scope: Scope, modules: Modules) -> Iterator[Rule]:
    """Yield the points that cannot keep modules on the hosts, or where nobody wants them there."""
    every_X = np.ones(len(points), dtype=np.bool_)
    pinned = scope.constraints.pinned_modules
    if pinned is not None:
        yield f"constraints: {OFFLOADED_MODULES}", every_X & (modules != pinned)
    if not modules:
        return
    for reason, broken in _run_rules(scope):
        yield reason, every_X & broken
    absent = [module for module in modules if module not in present_modules(scope.graph, scope.workload)]
    if absent:
        yield f"no layer of the model has {absent[0]} with tensors that can be offloaded", every_X
    yield (
        f"modules go to the host with zero_stage {LARGEST_ZERO_STAGE} at most",
        points.zero_stage_X > LARGEST_ZERO_STAGE,
    )
    elsewhere_X = (points.optimizer_offload_X > 0) | (points.offloaded_layers_X > 0)
    yield "modules do not go to the host together with optimizer states or whole layers", elsewhere_X


def module_recompute_rules(points: Points, recomputes: tuple[Recompute, ...], modules: Modules) -> Iterator[Rule]:
    """Yield the recompute choices that leave modules nothing to put on the host."""
    if not modules:
        return
    refused = np.array([clashes(choice, modules) for choice in recomputes], dtype=np.bool_)
    yield (
        "modules that go to the host are not recomputed, nor are layers whole",
        refused[points.recompute_X] | (points.recompute_layers_X > 0),
    )


def _run_rules(scope: Scope) -> Iterator[tuple[str, bool]]:
    """Yield what keeps a run's modules on the GPUs, whatever the layout, and whether it does."""
    target, workload = scope.capabilities, scope.workload
    yield f"{target.title}: plans put no modules on the host", not target.module_offload
    yield "modules of layers with a state stay on the GPU", scope.graph.has_recurrences
    yield (
        f"modules under {workload.precision} stay on the GPU: what they keep in fp8 is not planned",
        (workload.precision.is_fp8),
    )
    yield "modules with adapters stay on the GPU", workload.lora is not None
