"""Updates by turns: clocks against a list of tasks, every stride tried, room that is there, and what is shown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.render_explain import explanation_document
from cli.render_turns import verdict_in_words
from planner.evaluation.interleaved_updates import STEP_PERCENT, interleaved_updates
from planner.layout import Offload
from planner.models.bundled import load_bundled
from planner.offloading.interleaved import (
    SUB_GROUP_ELEMENTS,
    TurnSeconds,
    best_stride,
    buffer_bytes,
    gpu_elements,
    interleaved_seconds,
    is_on_gpu,
    sub_groups,
    turn_seconds,
)
from planner.plans.plan import Plan
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.requests.workload import DType, Precision, TrainMethod, TrainWorkload
from planner.search.search import search
from profiles.catalogue import load_preset
from profiles.estimate import Estimate, Source
from profiles.ops import ComputeOp, HostCopy, HostPass, MemoryBound
from tests.examples import examples

GIB = 1 << 30
WORKLOAD = TrainWorkload(seq_len=4096, global_batch_size=64, precision=Precision.BF16, method=TrainMethod.FULL_FINETUNE)
ALIKE = TurnSeconds(update=6.0, on_gpu=1.0, down=1.0, up=1.0, weights=0.5, states_beside=0.0, weights_beside=0.0)


@dataclass
class Tasks:
    """Tasks in the order in which they are given to resources, each of which does one after the other."""

    free: dict[str, float]

    def add(self, resource: str, seconds: float, *after: float) -> float:
        """Return when a task ends that begins once its resource is free and others have ended."""
        end = max((self.free.get(resource, 0.0), *after)) + seconds
        self.free[resource] = end
        return end


def as_tasks(groups: Sequence[TurnSeconds], stride: int) -> float:  # noqa: C901 - the loop as it is written there
    """Return what updates by turns take, sub-group by sub-group as the fork's loop goes over them."""
    tasks = Tasks(free={})
    waiting: list[TurnSeconds] = []
    busy: list[TurnSeconds] = []
    before: TurnSeconds | None = None
    here = weights = updated = 0.0
    for index, group in enumerate(groups):
        if index % stride == 0:
            place = index + stride - 1
            following = groups[place] if place < len(groups) else None
            now = tasks.free.get("cpu", 0.0)
            for _ in ("first moment", "second moment", "parameter"):
                back = now if before is None else tasks.add("down", before.down, now, updated)
                if following is not None:
                    here = tasks.add("up", following.up, back)
            tasks.add("cpu", 0.0, weights)
            for moved in (before, following):
                tasks.add("cpu", 0.0 if moved is None else moved.states_beside / 2)
            for sent in busy:
                tasks.add("cpu", sent.weights_beside)
            busy, before = [], following
        if (index + 1) % stride == 0:
            start = tasks.add("cpu", 0.0, here)
            updated = tasks.add("gpu", group.on_gpu, start)
        else:
            waiting.append(group)
            end = tasks.add("cpu", group.update)
            if (index + 2) % stride == 0 or index + 1 == len(groups):
                for sent in waiting:
                    weights = tasks.add("up", sent.weights, end)
                busy, waiting = waiting, []
    for _ in range(0 if before is None else 3):
        assert before is not None
        tasks.add("down", before.down, updated)
    return max(tasks.free.values())


SECONDS = st.floats(0.0, 8.0, allow_subnormal=False)
GROUP = st.builds(
    TurnSeconds,
    update=SECONDS,
    on_gpu=SECONDS,
    down=SECONDS,
    up=SECONDS,
    weights=SECONDS,
    states_beside=SECONDS,
    weights_beside=SECONDS,
)


@settings(max_examples=examples(few=100, many=300), deadline=None, derandomize=True)
@given(groups=st.lists(GROUP, min_size=1, max_size=12), stride=st.integers(2, 14))
def test_the_clocks_are_those_of_a_list_of_tasks(groups: list[TurnSeconds], stride: int) -> None:
    found = interleaved_seconds(groups, stride=stride)
    assert found == pytest.approx(as_tasks(groups, stride), rel=1e-9, abs=1e-9)
    by_cpus = sum(group.update for index, group in enumerate(groups) if not is_on_gpu(index, stride))
    on_gpu = [group for index, group in enumerate(groups) if is_on_gpu(index, stride)]
    assert found >= by_cpus * (1.0 - 1e-12)
    assert found >= 3 * sum(group.down for group in on_gpu) * (1.0 - 1e-12)
    assert found >= 3 * sum(group.up for group in on_gpu) * (1.0 - 1e-12)


def test_two_rounds_by_hand() -> None:
    """Up 3 s beside 6 s on the CPUs; half a second for their weights; 6 s more, 1 s on the GPU, 3 s back."""
    assert interleaved_seconds([ALIKE] * 4, stride=2) == 6.0 + 0.5 + 6.0 + 1.0 + 3.0
    # Without copies that wait, the CPUs' own work alone, and the last round's weights.
    assert interleaved_seconds([ALIKE] * 4, stride=5) == 4 * 6.0 + 4 * 0.5
    slow = replace(ALIKE, up=4.0)
    # 12 s up; the GPU from 12 to 13; back from 13 to 16, up again from 14 to 26; there to 27, and back to 30.
    assert interleaved_seconds([slow] * 4, stride=2) == 30.0
    beside = replace(ALIKE, states_beside=4.0, weights_beside=1.0)
    # The rounds take 2 s and 4 s longer by states, the second 1 s by the weights of the first.
    assert interleaved_seconds([beside] * 4, stride=2) == 16.5 + 2.0 + 4.0 + 1.0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(groups=st.lists(GROUP, min_size=2, max_size=10))
def test_no_stride_is_faster_than_the_best(groups: list[TurnSeconds]) -> None:
    strides = range(2, len(groups) + 1)
    found = best_stride(strides, lambda stride: interleaved_seconds(groups, stride=stride))
    assert found is not None
    every = {stride: as_tasks(groups, stride) for stride in strides}
    assert found[1] == pytest.approx(min(every.values()), rel=1e-9, abs=1e-9)
    assert every[found[0]] == pytest.approx(found[1], rel=1e-9, abs=1e-9)


def test_of_equal_strides_the_largest_is_taken_and_of_none_nothing() -> None:
    assert best_stride((2, 3, 4, 5), {2: 3.0, 3: 1.0, 4: 1.0, 5: 2.0}.__getitem__) == (4, 1.0)
    assert best_stride((), float) is None


def test_elements_and_bytes_of_turns() -> None:
    elements = 4 * SUB_GROUP_ELEMENTS + 7
    assert list(sub_groups(elements)) == [SUB_GROUP_ELEMENTS] * 4 + [7]
    assert gpu_elements(elements, stride=2) == 2 * SUB_GROUP_ELEMENTS
    assert gpu_elements(elements, stride=5) == 7
    assert buffer_bytes(elements) == 20 * SUB_GROUP_ELEMENTS
    assert buffer_bytes(7) == 20 * 7

    def price(operation: ComputeOp) -> Estimate:
        assert isinstance(operation, HostCopy | HostPass | MemoryBound)
        assert not isinstance(operation, HostCopy) or operation.pinned
        return Estimate(seconds=float(operation.num_bytes), source=Source.ANALYTIC, note="")

    assert turn_seconds(10, replace(WORKLOAD, gradient_dtype=DType.BF16), price) == TurnSeconds(
        update=420.0,
        on_gpu=940.0,
        down=40.0,
        up=40.0,
        weights=20.0,
        states_beside=240.0,
        weights_beside=20.0,
    )


def hosted_plan(gib: int) -> Plan:
    """Return a plan for DeepSpeed of 7 billion parameters on four GPUs of so much memory."""
    cluster = load_preset("l40s-pcie-4").to_cluster().with_nodes(1)
    cluster = replace(cluster, device=replace(cluster.device, memory_bytes=gib * GIB), host_memory_bytes=1024 * GIB)
    request = PlanRequest(
        workload=WORKLOAD,
        constraints=Constraints(parameter_offload=False),
        memory_headroom=0.05,
        target=Target.DEEPSPEED,
        objective=Objective.STEP_TIME,
    )
    return search(load_bundled("llama-2-7b"), cluster, request, top=1)


@pytest.fixture(scope="module")
def hosted() -> Plan:
    return hosted_plan(28)


def test_a_plan_says_what_updates_by_turns_would_make_of_it(hosted: Plan) -> None:
    found = interleaved_updates(hosted, index=0)
    assert found is not None
    assert 2 <= found.stride <= found.num_groups
    assert found.fraction >= hosted.best.layout.offloaded_fraction
    assert found.step_seconds < hosted.best.step_seconds
    document = explanation_document(hosted, index=0)
    assert document["interleaved_updates"] == {
        "cost_fraction": hosted.best.step_seconds / found.step_seconds - 1.0,
        "step_seconds": found.step_seconds,
        "offloaded_fraction": found.fraction,
        "stride": found.stride,
        "num_sub_groups": found.num_groups,
        "gpu_fraction": found.gpu_fraction,
    }
    assert verdict_in_words(hosted.best, found).startswith("Without updates by turns a step takes ")
    slower = replace(found, step_seconds=2 * hosted.best.step_seconds)
    assert verdict_in_words(hosted.best, slower) == "Updates by turns would gain nothing."


def test_more_room_never_makes_it_slower_and_none_leaves_nothing(hosted: Plan) -> None:
    seconds = []
    for more in (0, GIB, 4 * GIB, 32 * GIB):
        best = replace(hosted.best, memory_limit_bytes=hosted.best.memory_limit_bytes + more)
        found = interleaved_updates(replace(hosted, plans=(best,)), index=0)
        assert found is not None
        seconds.append(found.step_seconds)
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] < seconds[0]
    full = replace(hosted.best, memory_limit_bytes=hosted.best.memory_limit_bytes - 64 * GIB)
    assert interleaved_updates(replace(hosted, plans=(full,)), index=0) is None
    small = replace(hosted.cluster, host_memory_bytes=200 * GIB)
    assert interleaved_updates(replace(hosted, cluster=small), index=0) is None


@pytest.mark.parametrize(
    "offload",
    [
        None,
        Offload(optimizer_fraction=1.0, overlapped=False, parameters=True),
        Offload(optimizer_fraction=1.0, overlapped=False, drives=True),
    ],
)
def test_other_layouts_have_no_updates_by_turns(hosted: Plan, offload: Offload | None) -> None:
    other = replace(hosted.best, layout=replace(hosted.best.layout, offload=offload))
    assert interleaved_updates(replace(hosted, plans=(other,)), index=0) is None
    sharded = replace(hosted.best, layout=replace(hosted.best.layout, zero_stage=1))
    assert interleaved_updates(replace(hosted, plans=(sharded,)), index=0) is None


def test_larger_parts_are_tried_in_steps(hosted: Plan) -> None:
    found = interleaved_updates(hosted, index=0)
    assert found is not None
    steps = [percent / 100 for percent in range(STEP_PERCENT, 101, STEP_PERCENT)]
    assert found.fraction in {hosted.best.layout.offloaded_fraction, *steps}
