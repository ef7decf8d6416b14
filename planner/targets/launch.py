"""The launch files of a plan: checked before they are written down, parsed back after.

A plan file may have been edited, so the layout is held against every rule again; and what was emitted is read by the
same reader that reads users' own files, and must say the same layout.
"""

from collections.abc import Mapping

from planner.errors import BrokenPromiseError, InputError, NotExpressibleError
from planner.evaluation.validate import violations
from planner.frameworks.capabilities import CAPABILITIES
from planner.memory.ledger import memory_ledger
from planner.models.layers import build_graph
from planner.plans.plan import Plan, PlannedLayout
from planner.plans.rank_memory import heaviest_rank, memory_by_rank
from planner.ranks.placement import place
from planner.requests.request import Target
from planner.requests.workload import TrainWorkload
from planner.targets.registry import FRAMEWORKS, Framework
from planner.units import GIB
from profiles.hardware import Cluster


def launch_file_names(
    workload: TrainWorkload, cluster: Cluster, *, target: Target = Target.MEGATRON
) -> tuple[str, ...]:
    """Return the name of every file that starts `workload` on a cluster, whatever its layout turns out to be."""
    return _framework(target).launch_file_names(workload, cluster)


def launch_files(plan: Plan, *, index: int = 0, target: Target | None = None) -> Mapping[str, str]:
    """Return the text of every file that starts one layout of `plan`, by name.

    Args:
        plan: A plan with at least `index + 1` layouts.
        index: 0 is the best layout, 1 the first runner-up.
        target: Framework to write for; None takes the plan's own, and Megatron-LM for a plan for any target.

    Raises:
        InputError: The plan breaks a rule, or no files can be written for the target.
        planner.errors.NotExpressibleError: The framework has no way to say it, or needs more memory for it.
        BrokenPromiseError: A file says another layout than the plan.
    """
    if target is None:
        target = Target.MEGATRON if plan.target is Target.ANY else plan.target
    framework = _framework(target)
    planned = plan.plans[index]
    broken = violations(planned, plan.model, plan.cluster, plan.request)
    if broken:
        raise InputError(
            f"layout {index} of this plan breaks its own rules: {'; '.join(entry.message for entry in broken)}.",
            hint="Plan again from the spec instead of editing the plan.",
        )
    files = framework.emit(plan, index)
    if target is not plan.target:
        _require_memory(plan, planned, target=target, title=framework.title)
    for name, said in framework.read_back(files).items():
        if said != planned.layout:
            raise BrokenPromiseError(f"{name} says {said}, the plan {planned.layout}")
    return files


def _require_memory(plan: Plan, planned: PlannedLayout, *, target: Target, title: str) -> None:
    """Raise `NotExpressibleError` for a layout that another framework than the plan's keeps too much in memory for."""
    capabilities = CAPABILITIES[target]
    workload = plan.request.workload
    graph = build_graph(plan.model, workload, eager=capabilities.eager)
    ledger = memory_ledger(place(plan.model, graph, planned.layout, workload, capabilities))
    tightest = heaviest_rank(memory_by_rank(ledger, limit_bytes=planned.rank_limits))
    if tightest.left_bytes < 0:
        raise NotExpressibleError(
            f"the layout was planned for another target and needs {tightest.peak_bytes / GIB:,.2f} GiB a GPU here,"
            f" of {tightest.limit_bytes / GIB:,.2f} GiB that may be used.",
            target=title,
            hint=f"Plan the spec again with `--set target={target}`.",
        )


def _framework(target: Target) -> Framework:
    framework = FRAMEWORKS.get(target)
    if framework is None:
        raise InputError(
            f"no files can be written for target {target}.", hint=f"Files are written for {', '.join(FRAMEWORKS)}."
        )
    return framework
