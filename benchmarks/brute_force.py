"""Every legal point and every split of its layers, priced one by one by the independent evaluator.

The points are those of `benchmarks.points`, bytes are the ledger's, times the evaluator's: nothing of the search.
Points where each layer is recomputed in a way of its own are left out: they have too many layouts to look at
(`tests/agreement/test_layer_choices.py` does, of smaller ones).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from math import comb

from benchmarks.meshes import Run
from benchmarks.points import interleaved_split, legal_points
from planner.errors import NotExpressibleError
from planner.evaluation.evaluate import simulated_step_seconds
from planner.frameworks.capabilities import CAPABILITIES
from planner.layout import DRIVE_WEIGHTS, GPU_WEIGHTS, Layout, Offload, stages_from_counts
from planner.memory.host import host_memory
from planner.memory.ledger import memory_ledger, memory_limit_bytes, peak_memory_bytes
from planner.models.layers import build_graph
from planner.plans.plan import HostMemory
from planner.ranks.placement import PlacedModel, place
from planner.targets.registry import framework_of
from profiles.planned import cost_model_on

HostedLayout = tuple[Layout, int, HostMemory, Callable[[], float]]
"""A layout with its peak bytes, what its nodes hold, and what simulates its step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhausted:
    """What came of looking at every layout.

    Args:
        best: The fastest layout that fits and that the target can say; None where there is none.
        step_seconds: Its step; None likewise.
        num_layouts: Layouts looked at.
        num_fitting: Those of them that fit into memory.
        seconds: What it took.
    """

    best: Layout | None
    step_seconds: float | None
    num_layouts: int
    num_fitting: int
    seconds: float


def num_splits(layout: Layout, run: Run, *, uneven: bool = False) -> int:
    """Return how many splits of a point there are to look at."""
    if layout.recompute.is_per_layer:
        return 0
    num_layers, num_stages = run.model.num_layers, layout.pp * layout.vpp
    if num_stages == 1 or (layout.vpp > 1 and not uneven):
        return 1
    fewest = _fewest_layers(layout, run)
    if fewest:
        return comb(num_layers - num_stages * fewest + num_stages - 1, num_stages - 1)
    return comb(num_layers + 1, num_stages - 1)


def splits(layout: Layout, run: Run, *, uneven: bool = False) -> Iterator[Layout]:
    """Yield a point with its layers placed in every way for which the search proves its answer.

    Args:
        layout: The point.
        run: What is planned.
        uneven: Yield every split of interleaved stages too, not only the one that is as even as they come.
    """
    if layout.recompute.is_per_layer:
        return
    num_layers, num_stages = run.model.num_layers, layout.pp * layout.vpp
    if num_stages == 1 or (layout.vpp > 1 and not uneven):
        yield replace(layout, stages=stages_from_counts(interleaved_split(num_layers, num_stages)))
        return
    for cuts in combinations(range(num_layers + 1), num_stages - 1):
        ends = (0, *cuts, num_layers)
        counts = tuple(ends[stage + 1] - ends[stage] for stage in range(num_stages))
        if min(counts) >= _fewest_layers(layout, run):
            yield replace(layout, stages=stages_from_counts(counts))


def _fewest_layers(layout: Layout, run: Run) -> int:
    """Return the layers of every stage at least; with 0 a stage at either end of a plain pipeline may hold none.

    A stage holds what is recomputed of it, and with adapters something to train; an interleaved one is never empty.
    """
    return max(layout.recompute.num_layers or 0, int(run.workload.lora is not None or layout.vpp > 1))


def priced_layouts(run: Run, *, uneven: bool = False) -> Iterator[tuple[Layout, int, Callable[[], float]]]:
    """Yield every layout with its peak bytes and what returns the seconds of its step."""
    cost_model = cost_model_on(run.cluster, CAPABILITIES[run.request.target].software)
    for placed in placed_layouts(run, uneven=uneven):
        peak_bytes = peak_memory_bytes(memory_ledger(placed))
        yield placed.layout, peak_bytes, partial(simulated_step_seconds, placed, cost_model)


def placed_layouts(run: Run, *, uneven: bool = False) -> Iterator[PlacedModel]:
    """Yield the model under every layout."""
    capabilities, workload = CAPABILITIES[run.request.target], run.workload
    graph = build_graph(run.model, workload, eager=capabilities.eager)
    for layout in legal_points(run):
        unplaced = place(run.model, graph, layout, workload, capabilities)
        for split in splits(layout, run, uneven=uneven):
            yield replace(unplaced, layout=split)


def hosted_layouts(
    run: Run, parts: Sequence[float], *, parameters: int = GPU_WEIGHTS, drives: bool = False, uneven: bool = False
) -> Iterator[HostedLayout]:
    """Yield every layout with each part of the optimizer's states on the hosts: its peak bytes, its nodes, its step.

    All have the weights where `parameters` says; with `drives` each has the states on drives, in either way.
    """
    cost_model = cost_model_on(run.cluster, CAPABILITIES[run.request.target].software)
    run = replace(run, offloaded=True, parameters=parameters, drives=drives)
    for kept in placed_layouts(run, uneven=uneven):
        sharded = kept.layout.zero_stage == 3
        for part, overlapped in product(parts, (False, True) if drives else (not sharded,)):
            if (parameters or drives or (sharded and kept.layout.pp > 1)) and part < 1.0:
                continue
            offload = Offload(
                optimizer_fraction=part,
                overlapped=overlapped,
                parameters=parameters != GPU_WEIGHTS,
                drives=drives,
                parameter_drives=parameters == DRIVE_WEIGHTS,
            )
            placed = replace(kept, layout=replace(kept.layout, offload=offload))
            hosted = host_memory(placed, run.cluster)
            assert hosted is not None, "what is offloaded has a ledger"
            peak_bytes = peak_memory_bytes(memory_ledger(placed))
            yield placed.layout, peak_bytes, hosted, partial(simulated_step_seconds, placed, cost_model)


def layouts_with_activations_on_hosts(run: Run) -> Iterator[HostedLayout]:
    """Yield every layout with every number of layers that keep what they save on the hosts, like `hosted_layouts`."""
    cost_model = cost_model_on(run.cluster, CAPABILITIES[run.request.target].software)
    for kept in placed_layouts(replace(run, activations=True)):
        for layers in range(1, run.model.num_layers):
            placed = replace(kept, layout=replace(kept.layout, offloaded_layers=layers))
            hosted = host_memory(placed, run.cluster)
            assert hosted is not None, "what is offloaded has a ledger"
            peak_bytes = peak_memory_bytes(memory_ledger(placed))
            yield placed.layout, peak_bytes, hosted, partial(simulated_step_seconds, placed, cost_model)


def layouts_with_modules_on_hosts(run: Run) -> Iterator[HostedLayout]:
    """Yield every layout with a run's modules on the hosts, like `hosted_layouts`."""
    cost_model = cost_model_on(run.cluster, CAPABILITIES[run.request.target].software)
    for kept in placed_layouts(run, uneven=True):
        placed = replace(kept, layout=replace(kept.layout, offloaded_modules=run.modules))
        hosted = host_memory(placed, run.cluster)
        assert hosted is not None, "what is offloaded has a ledger"
        peak_bytes = peak_memory_bytes(memory_ledger(placed))
        yield placed.layout, peak_bytes, hosted, partial(simulated_step_seconds, placed, cost_model)


def count_layouts(run: Run, *, at_most: int, uneven: bool = False) -> int | None:
    """Return how many layouts there are to look at; None for more than `at_most`."""
    total = 0
    for layout in legal_points(run):
        total += num_splits(layout, run, uneven=uneven)
        if total > at_most:
            return None
    return total


def brute_force(run: Run) -> Exhausted:
    """Return the best of all layouts of a run."""
    began = time.perf_counter()
    limit = memory_limit_bytes(run.cluster.device.memory_bytes, run.request.memory_headroom)
    num_layouts = num_fitting = 0
    best: Layout | None = None
    best_seconds: float | None = None
    for layout, peak_bytes, step_seconds in priced_layouts(run):
        num_layouts += 1
        if peak_bytes > limit:
            continue
        num_fitting += 1
        seconds = step_seconds()
        if (best_seconds is None or seconds < best_seconds) and can_say(layout, run):
            best, best_seconds = layout, seconds
    return Exhausted(
        best=best,
        step_seconds=best_seconds,
        num_layouts=num_layouts,
        num_fitting=num_fitting,
        seconds=time.perf_counter() - began,
    )


def can_say(layout: Layout, run: Run) -> bool:
    """Return whether the target has words for a layout."""
    return _is_expressible(layout, run)


def can_say_model(run: Run) -> bool:
    """Return whether the target has words for the model and the run, whatever the layout."""
    return _is_expressible(None, run)


def _is_expressible(layout: Layout | None, run: Run) -> bool:
    framework = framework_of(run.request.target)
    if framework is None:
        return True
    try:
        framework.require_expressible(run.model, run.workload, layout, run.cluster)
    except NotExpressibleError:
        return False
    return True
