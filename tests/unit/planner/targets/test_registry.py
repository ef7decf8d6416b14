"""Every target that files can be written for answers the same questions."""

from dataclasses import replace

import pytest

from planner.errors import BrokenPromiseError, InputError, NotExpressibleError
from planner.plans.plan import Plan
from planner.requests.request import Target
from planner.requests.workload import Precision, TrainWorkload
from planner.targets.launch import launch_file_names, launch_files
from planner.targets.registry import FRAMEWORKS, framework_of
from tests.emitted.deepspeed_plans import LLAMA, deepspeed_plan, layout_with
from tests.emitted.plans import LLAMA_8B, cluster_of, layout_of_degrees, plan_of

FP8 = TrainWorkload(seq_len=4096, global_batch_size=32, precision=Precision.FP8_DELAYED)


def plan_for(target: Target) -> Plan:
    """Return a plan that its target can express."""
    if target is Target.DEEPSPEED:
        return deepspeed_plan(LLAMA, layout_with((1, 3), dp=4))
    layout = layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=8)
    workload = TrainWorkload(seq_len=4096, global_batch_size=32, precision=Precision.BF16)
    return plan_of(LLAMA_8B, workload, layout, cluster_of(1, 8))


@pytest.mark.parametrize("target", FRAMEWORKS)
def test_files_have_the_announced_names_and_read_back_as_the_plan(target: Target) -> None:
    plan, framework = plan_for(target), FRAMEWORKS[target]
    framework.require_expressible(plan.model, plan.request.workload, plan.best.layout, plan.cluster)
    files = framework.emit(plan, 0)
    assert set(files) == set(framework.launch_file_names(plan.request.workload, plan.cluster))
    read = framework.read_back(files)
    assert set(read) == {"launch.sh", "job.sbatch"}
    assert set(read.values()) == {plan.best.layout}


@pytest.mark.parametrize("target", FRAMEWORKS)
def test_a_layout_that_does_not_fill_the_cluster_is_refused(target: Target) -> None:
    plan = plan_for(target)
    with pytest.raises(NotExpressibleError, match="a layout of 8 GPUs on a cluster of 16") as caught:
        FRAMEWORKS[target].require_expressible(plan.model, plan.request.workload, plan.best.layout, cluster_of(2, 8))
    assert caught.value.target == FRAMEWORKS[target].title


def test_without_a_layout_only_model_and_workload_are_asked_about() -> None:
    cluster = cluster_of(1, 8)
    FRAMEWORKS[Target.MEGATRON].require_expressible(LLAMA_8B, FP8, None, cluster)
    with pytest.raises(NotExpressibleError, match="DeepSpeed has no fp8 recipe"):
        FRAMEWORKS[Target.DEEPSPEED].require_expressible(LLAMA_8B, FP8, None, cluster)


def test_any_target_has_no_framework() -> None:
    assert framework_of(Target.ANY) is None
    assert framework_of(Target.DEEPSPEED) is FRAMEWORKS[Target.DEEPSPEED]
    with pytest.raises(InputError, match="no files can be written for target any"):
        launch_file_names(FP8, cluster_of(1, 8), target=Target.ANY)


def test_the_launch_files_are_the_plans_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a plan obeys every rule is another test's business; these have no prices."""
    monkeypatch.setattr("planner.targets.launch.violations", lambda *_: ())
    plan = plan_for(Target.DEEPSPEED)
    assert "ds_config.json" in launch_files(plan)
    megatron = plan_for(Target.MEGATRON)
    roomy = replace(megatron.best, memory_limit_bytes=1 << 40)
    for_any = replace(megatron, target=Target.ANY, plans=(roomy,))
    assert "ds_config.json" not in launch_files(for_any)
    with pytest.raises(NotExpressibleError, match=r"^DeepSpeed 0\.19\.8: "):
        launch_files(for_any, target=Target.DEEPSPEED)


def test_a_layout_is_not_written_for_a_framework_that_needs_more_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.targets.launch.violations", lambda *_: ())
    plan = plan_for(Target.DEEPSPEED)
    of_any = replace(plan, target=Target.ANY)
    with pytest.raises(NotExpressibleError, match=r"planned for another target and needs .* GiB a GPU here, of 0\.00"):
        launch_files(of_any, target=Target.DEEPSPEED)
    roomy = replace(of_any, plans=(replace(plan.best, memory_limit_bytes=1 << 40),))
    assert "ds_config.json" in launch_files(roomy, target=Target.DEEPSPEED)


@pytest.mark.parametrize("target", FRAMEWORKS)
def test_a_file_that_says_another_layout_is_our_bug(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.targets.launch.violations", lambda *_: ())
    plan = plan_for(target)
    other = replace(plan.best, layout=replace(plan.best.layout, micro_batch_size=2, num_microbatches=1))
    framework = FRAMEWORKS[target]
    files = framework.emit(plan, 0)
    monkeypatch.setattr(type(framework), "emit", lambda *_: files)
    with pytest.raises(BrokenPromiseError, match=r"launch\.sh says"):
        launch_files(replace(plan, plans=(other,)))
