"""Pipeline schedules with activations on the host: what copies cost, what a host holds, and what that brings."""

from dataclasses import replace
from functools import cache

import pytest

from planner.errors import InputError
from planner.frameworks.capabilities import MEGATRON
from planner.layout import REPLICAS_OUTERMOST, Layout, Offload, Schedule, stages_from_counts
from planner.memory.host import PROCESS_BYTES, SYSTEM_FRACTION, host_memory
from planner.models.layers import build_graph
from planner.plans.plan import OffloadedSchedule, OtherSchedules, PricedSchedule
from planner.ranks.placement import place
from planner.schedule_views.offloaded_schedules import (
    Offloaded,
    copy_seconds,
    node_bytes,
    offloaded,
    room_on_host_bytes,
)
from planner.schedule_views.other_schedules import scheduled, with_other_schedules
from planner.schedules.offload_choice import Sizes
from planner.schedules.passes import PassTimes, run
from planner.schedules.published import one_f_one_b
from profiles.constants import PCIE_FRACTION
from profiles.host import HOST_BYTES_PER_SECOND, HOST_MEMORY_FRACTION
from profiles.planned import cost_model_on
from profiles.schema.cluster import ClusterEntry
from tests.builders import tiny_plan
from tests.unit.planner.schedule_views.test_other_schedules import CLUSTER, LAYOUT, MODEL, RUN, plan_of

GB = 1_000_000_000


@cache
def schedules(headroom: float) -> OtherSchedules:
    found = with_other_schedules(plan_of(LAYOUT, headroom=headroom)).schedules
    assert found is not None
    return found


def by_name(headroom: float) -> dict[str, PricedSchedule]:
    return {entry.schedule: entry for entry in schedules(headroom).priced}


def test_a_copy_takes_what_the_slower_of_link_and_host_memory_takes() -> None:
    # Eight GPUs copy both ways at once: the memory of the host passes each byte twice.
    memory = HOST_BYTES_PER_SECOND["pcie5"].value * HOST_MEMORY_FRACTION.value / 8 / 2
    link = 64e9 * PCIE_FRACTION.value
    assert memory < link
    assert copy_seconds(GB, cost_model_on(CLUSTER, MEGATRON.software)) == pytest.approx(GB / memory)
    slower = replace(CLUSTER, device=replace(CLUSTER.device, host_bytes_per_second=16e9))
    assert copy_seconds(GB, cost_model_on(slower, MEGATRON.software)) == pytest.approx(
        GB / (16e9 * PCIE_FRACTION.value)
    )


def test_a_host_holds_what_the_gpus_of_its_node_send() -> None:
    two_nodes = ClusterEntry.model_validate({"preset": "dgx-h100", "nodes": 2}).to_cluster()
    held_R = (7, 5, 3, 1)
    inside = replace(LAYOUT, dp=4, num_microbatches=8, rank_order=REPLICAS_OUTERMOST)
    assert node_bytes(held_R, inside, two_nodes) == 2 * (7 + 5 + 3 + 1)
    # Ranks of a pipeline rank are neighbours: four of the first and four of the second are on the first node.
    across = replace(LAYOUT, dp=4, num_microbatches=8)
    assert across.stage_distance == 4
    assert node_bytes(held_R, across, two_nodes) == 4 * (7 + 5)


def test_a_host_has_what_processes_the_system_and_optimizer_states_leave() -> None:
    def room(layout: Layout) -> int:
        return room_on_host_bytes(place(MODEL, build_graph(MODEL, RUN), layout, RUN, MEGATRON), CLUSTER)

    whole = CLUSTER.host_memory_bytes
    assert room(LAYOUT) == whole - 8 * PROCESS_BYTES - int(whole * SYSTEM_FRACTION)
    placed = place(
        MODEL, build_graph(MODEL, RUN), replace(LAYOUT, offload=Offload(optimizer_fraction=1.0)), RUN, MEGATRON
    )
    states = host_memory(placed, CLUSTER)
    assert states is not None
    assert room(placed.layout) == whole - sum(line.num_bytes for line in states.lines) < room(LAYOUT)


def test_what_moves_while_there_is_room_takes_no_time() -> None:
    for entry in by_name(0.06).values():
        if entry.offloaded is None or not entry.fits:
            continue
        assert entry.offloaded.step_seconds == entry.step_seconds
        assert entry.offloaded.peak_memory_bytes < entry.peak_memory_bytes
        assert entry.offloaded.fits
        assert 0 < entry.offloaded.moved_fraction <= 1
        assert entry.offloaded.host_memory_bytes > 0


def test_offload_makes_schedules_fit_and_then_the_best_one_counts() -> None:
    found = by_name(0.4)
    helped = {name for name, entry in found.items() if not entry.fits and entry.fitting_seconds is not None}
    assert {"ZB-V", "1F1B"} <= helped
    best = schedules(0.4).best
    assert best is not None
    assert best.schedule == "ZB-V"
    assert not best.fits
    cost = with_other_schedules(plan_of(LAYOUT, headroom=0.4)).schedule_cost_fraction
    own = plan_of(LAYOUT, headroom=0.4).best.step_seconds
    assert best.offloaded is not None
    assert cost is not None
    assert cost == pytest.approx(1 - best.offloaded.step_seconds / own)
    assert cost > 0


def test_a_host_without_memory_takes_nothing() -> None:
    plan = plan_of(LAYOUT, headroom=0.4)
    small = replace(plan, cluster=replace(plan.cluster, host_memory_bytes=1))
    found = with_other_schedules(small).schedules
    assert found is not None
    assert not any(entry.offloaded.fits for entry in found.priced if entry.offloaded is not None)


def priced(step_seconds: float, *, fits: bool, host_seconds: float | None = None) -> PricedSchedule:
    host = None
    if host_seconds is not None:
        host = OffloadedSchedule(
            step_seconds=host_seconds, peak_memory_bytes=1, host_memory_bytes=1, moved_fraction=1.0, fits=True
        )
    return PricedSchedule(
        schedule=f"{step_seconds}",
        index=0,
        layers_per_stage=(1,),
        step_seconds=step_seconds,
        peak_memory_bytes=2,
        fits=fits,
        needs=(),
        offloaded=host,
    )


def test_the_best_is_the_fastest_that_fits_one_way_or_the_other() -> None:
    first, second = priced(1.0, fits=False, host_seconds=3.0), priced(2.0, fits=True)
    assert OtherSchedules(priced=(first, second), left_out={}).best == second
    assert OtherSchedules(priced=(first, priced(2.0, fits=False)), left_out={}).best == first
    assert OtherSchedules(priced=(priced(1.0, fits=False),), left_out={}).best is None
    plan = replace(tiny_plan(), schedules=OtherSchedules(priced=(first,), left_out={}))
    assert plan.schedule_cost_fraction == 0.0


def test_a_rank_without_room_waits_for_copies_and_only_then() -> None:
    order = one_f_one_b(4, 12)
    times = PassTimes.uniform(4, forward=2.0, input_gradient=4.0, weight_gradient=0.0)
    sizes = Sizes(activation_bytes_V=(8,) * 4, weight_gradient_bytes_V=(0,) * 4, copy_seconds_V=(9.0,) * 4)
    without = run(order, times)

    def within(room: int) -> Offloaded | None:
        return offloaded(
            without, times, sizes, room_bytes_R=(room,) * 4, step_seconds=lambda timeline: timeline.end_seconds
        )

    roomy = within(32)
    assert roomy is not None
    assert not roomy.waits
    room = max(roomy.device_bytes_R) - 1
    assert room < 32
    tight = within(room)
    assert tight is not None
    assert tight.waits
    assert max(tight.device_bytes_R) <= room
    assert tight.timeline.end_seconds > without.end_seconds
    # Less room, and less still: no way to fit is faster than with more.
    tighter = within(max(tight.device_bytes_R) - 1)
    assert tighter is not None
    assert tighter.timeline.end_seconds >= tight.timeline.end_seconds
    assert within(7) == roomy


def test_a_schedule_can_be_asked_for_by_its_name() -> None:
    plan = plan_of(LAYOUT)
    found = scheduled(plan, 0, "ZB-V")
    assert found.timeline.order.name == "ZB-V"
    with pytest.raises(InputError) as unknown:
        scheduled(plan, 0, "ZB-W")
    assert str(unknown.value) == (
        "There is no pipeline schedule 'ZB-W'.\n"
        "Use one of 1F1B, GPipe, breadth-first, ZB-H1, ZB-H2, ZB-V, V-Half, V-Min, DualPipe,"
        " bidirectional interleaved, zero-bubble within memory."
    )
    few = plan_of(replace(LAYOUT, micro_batch_size=4, num_microbatches=4))
    with pytest.raises(InputError) as refused:
        scheduled(few, 0, "ZB-V")
    assert str(refused.value) == (
        "Layout 0 does not run under ZB-V: ZB-V needs at least 2 pp = 8 micro-batches, not 4."
    )
    alone = replace(
        LAYOUT, pp=1, dp=8, num_microbatches=4, schedule=Schedule.NO_PIPELINE, stages=stages_from_counts((32,))
    )
    with pytest.raises(InputError) as no_pipeline:
        scheduled(plan_of(alone), 0, "ZB-V")
    assert str(no_pipeline.value) == "Layout 0 does not run under ZB-V: it has no pipeline."
