"""Rules of what lies in host memory or on drives: optimizer states, weights and saved tensors."""

from collections.abc import Iterator

from planner.evaluation.violation import Violation
from planner.layout import DRIVE_WEIGHTS, ON_HOSTS, Granularity, Layout
from planner.models.graph import ModelGraph
from planner.offloading.modules import CORE, PROJECTION, clashes, present_modules
from planner.offloading.states import SHARDED_WEIGHTS, is_parted
from planner.requests.workload import DType, Optimizer, TrainWorkload


def offload_violations(layout: Layout, graph: ModelGraph, workload: TrainWorkload) -> Iterator[Violation]:
    """Yield what stands against anything of a run in host memory or on drives, whatever the target."""
    yield from _offload(layout, workload)
    yield from _activation_offload(layout, graph)
    yield from _module_offload(layout, graph, workload)


def _offload(layout: Layout, workload: TrainWorkload) -> Iterator[Violation]:
    """Yield what stands against optimizer states on the host, whatever the target."""
    if layout.offload is None:
        return
    if is_parted(layout) and layout.pp > 1:
        yield Violation(
            rule="offload", message="a part of the optimizer states on the host with zero_stage 3 and a pipeline"
        )
    if layout.parameters_offloaded:
        yield from _parameter_offload(layout)
    if layout.uses_drives:
        yield from _drive_offload(layout)
    if layout.zero_stage == 0:
        yield Violation(rule="offload", message="optimizer states on the host with zero_stage 0, which shards none")
    if workload.optimizer is not Optimizer.ADAM:
        yield Violation(rule="offload", message=f"states of {workload.optimizer} on the host; only Adam's are priced")
    for what, dtype in (("master_dtype", workload.master_dtype), ("moment_dtype", workload.moment_dtype)):
        if dtype is not DType.FP32:
            yield Violation(rule="offload", message=f"{what} {dtype} on the host, where states are kept in fp32")
    if workload.lora is not None:
        yield Violation(rule="offload", message="states of adapters on the host; only those of all weights are priced")


def _activation_offload(layout: Layout, graph: ModelGraph) -> Iterator[Violation]:
    """Yield what stands against saved tensors of layers on the host, whatever the target."""
    broken = {
        "with a pipeline": layout.pp > 1,
        f"with recompute {layout.recompute.granularity}": layout.recompute.granularity is not Granularity.NONE,
        f"with zero_stage {layout.zero_stage}": layout.zero_stage > 1,
        "with optimizer states there": layout.offload is not None,
        "of layers with a state": graph.has_recurrences,
        "of the last layer": layout.offloaded_layers >= sum(stage.num_layers for stage in layout.stages),
    }
    if layout.offloaded_layers:
        for what, is_so in broken.items():
            if is_so:
                yield Violation(rule="offload", message=f"activations on the host {what}")


def _module_offload(layout: Layout, graph: ModelGraph, workload: TrainWorkload) -> Iterator[Violation]:
    """Yield what stands against saved tensors of modules on the host, whatever the target."""
    modules, recompute = layout.offloaded_modules, layout.recompute
    absent = [name for name in modules if name not in present_modules(graph, workload)]
    broken = {
        f"with recompute {recompute.granularity} of {', '.join(recompute.modules) or 'whole layers'}": clashes(
            recompute, modules
        ),
        f"with zero_stage {layout.zero_stage}": layout.zero_stage > 1,
        "with optimizer states there": layout.offload is not None,
        "with whole layers there": layout.offloaded_layers > 0,
        "of layers with a state": graph.has_recurrences,
        f"under {workload.precision}": workload.precision.is_fp8,
        "with adapters": workload.lora is not None,
        f"of which no layer has {' or '.join(absent)}": bool(absent),
        f"of {PROJECTION} without {CORE}": PROJECTION in modules and CORE not in modules,
    }
    if modules:
        for what, is_so in broken.items():
            if is_so:
                yield Violation(rule="offload", message=f"modules on the host {what}")


def _parameter_offload(layout: Layout) -> Iterator[Violation]:
    """Yield what stands against weights on the host or on drives, whatever the target."""
    weights = "weights on drives" if layout.parameter_offload == DRIVE_WEIGHTS else "weights on the host"
    if layout.zero_stage < SHARDED_WEIGHTS:
        yield Violation(rule="offload", message=f"{weights} with zero_stage {layout.zero_stage}")
    if layout.secondary_shard > 1:
        yield Violation(rule="offload", message=f"{weights} with a second copy of them")
    if layout.offloaded_fraction < 1.0:
        yield Violation(rule="offload", message=f"{weights} without all optimizer states")


def _drive_offload(layout: Layout) -> Iterator[Violation]:
    """Yield what stands against states or weights on drives, whatever the target."""
    states = layout.drive_offload != ON_HOSTS
    if states and layout.zero_stage < SHARDED_WEIGHTS:
        yield Violation(rule="offload", message=f"states on drives with zero_stage {layout.zero_stage}")
    if layout.pp > 1:
        yield Violation(rule="offload", message=f"{'states' if states else 'weights'} on drives with a pipeline")
    if states and layout.offloaded_fraction < 1.0:
        yield Violation(rule="offload", message="states on drives, and a part of them on the GPU")
