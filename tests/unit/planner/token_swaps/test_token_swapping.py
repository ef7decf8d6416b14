"""Tokens swapped or computed again: slots against two clocks, rooms against the ledger, answers against layouts."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from planner.evaluation.evaluate import evaluate
from planner.frameworks.capabilities import MEGATRON
from planner.layout import Granularity, Layout, Recompute, Schedule, stages_from_counts
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.models.layers import build_graph
from planner.ranks.placement import PlacedModel, place
from planner.requests.workload import AttentionKernel
from planner.schedule_views.offloaded_schedules import room_on_host_bytes
from planner.schedules.orders import fullest_counts, operation_order, peak_activation_bytes, turns_at_once
from planner.token_swaps.token_choices import TokenChoice, TokenLayer, again_steps, always_bytes
from planner.token_swaps.token_problem import TokenProblem, sockets_of
from planner.token_swaps.token_slots import num_divided, slots
from planner.token_swaps.token_swapping import (
    FULL,
    NOTHING,
    SCORES,
    UNEQUAL,
    Divided,
    NotDividedError,
    divided,
    unrecomputed,
    with_token_swapping,
)
from profiles.catalogue import load_preset
from profiles.hardware import Cluster
from profiles.host import sockets_of_node
from profiles.planned import cost_model_on
from solvers.paced.check import broken_answer
from solvers.solution import OPTIMALITY_TOLERANCE
from tests.builders import tiny_dense_model, tiny_infeasible_plan
from tests.unequal_clusters import unequal_cluster
from tests.unit.planner.schedule_views.test_other_schedules import CLUSTER, LAYOUT, MODEL, RUN, plan_of

RECOMPUTES = replace(LAYOUT, recompute=Recompute(granularity=Granularity.FULL))
GIB = 1 << 30


@cache
def placed(layout: Layout = LAYOUT) -> PlacedModel:
    return place(MODEL, build_graph(MODEL, RUN, eager=False), layout, RUN, MEGATRON)


def found(*, limit_gib: float, layout: Layout = LAYOUT, cluster: Cluster = CLUSTER, solver: str = "mathopt") -> Divided:
    cost_model = cost_model_on(cluster, MEGATRON.software)
    return divided(placed(layout), cost_model, cluster, limit_bytes=int(limit_gib * GIB), solver=solver)


def two_clocks(computes: Sequence[float], copies: Sequence[float]) -> float:
    """Return when layers are through that write to two buffers in turn, the first ones' copied behind them.

    A layer begins behind the one before it, once the copy of the one before that has left; copies run one by one.
    """
    gpu = stream = 0.0
    left: list[float] = []
    for index, seconds in enumerate(computes):
        gpu = max(gpu, left[index - 2] if 2 <= index < len(copies) + 2 else 0.0) + seconds
        if index < len(copies):
            stream = max(stream, gpu) + copies[index]
            left.append(stream)
    return gpu


@pytest.mark.parametrize("seed", range(20))
def test_slots_last_as_long_as_two_clocks_say(seed: int) -> None:
    draw = np.random.default_rng(seed)
    kinds = tuple(draw.integers(0, 3, int(draw.integers(1, 9))).tolist())
    forward, backward, copy = draw.uniform(0.1, 1.0, 3), draw.uniform(0.1, 2.0, 3), draw.uniform(0.0, 2.0, 3)
    copies = [copy[kind] for kind in kinds[: num_divided(len(kinds), turns=True)]]
    lasts = {False: 0.0, True: 0.0}
    for slot, count in slots(kinds, turns=True).items():
        computes = backward[slot.kind] if slot.is_backward else forward[slot.kind]
        beside = [copy[kind] for kind in (slot.leaving, slot.coming) if kind is not None]
        lasts[slot.is_backward] += count * max(computes, *beside, 0.0)
    assert lasts[False] == pytest.approx(two_clocks([forward[kind] for kind in kinds], copies))
    # Backward the other way round: what is fetched for layer i while i + 1 runs leaves nothing behind it.
    gpu = stream = 0.0
    here = [0.0] * len(kinds)
    for index in reversed(range(len(kinds))):
        gpu = max(gpu, here[index])
        if 0 <= index - 1 < len(copies):
            stream = max(stream, gpu) + copies[index - 1]
            here[index - 1] = stream
        gpu += backward[kinds[index]]
    assert lasts[True] == pytest.approx(gpu)


def test_every_layer_leaves_and_comes_back_where_micro_batches_are_in_flight() -> None:
    counted = slots((0, 1, 1), turns=False)
    for backward, attribute in ((False, "leaving"), (True, "leaving"), (False, "coming"), (True, "coming")):
        moved = sorted(
            kind
            for slot, count in counted.items()
            for kind in [getattr(slot, attribute)] * count
            if kind is not None and slot.is_backward is backward
        )
        assert moved == ([1] if backward is (attribute == "leaving") else [0, 1])
    assert all(slot.is_divided for slot in counted)
    assert num_divided(1, turns=True) == 0


@pytest.mark.parametrize(
    ("schedule", "pp", "vpp"), [("1f1b", 4, 1), ("interleaved-1f1b", 4, 3), ("interleaved-1f1b", 2, 2)]
)
def test_the_fullest_moments_are_those_that_the_ledger_counts(schedule: str, pp: int, vpp: int) -> None:
    draw = np.random.default_rng(pp + vpp)
    order = operation_order(Schedule(schedule), pp=pp, vpp=vpp, num_microbatches=4 * pp)
    for _ in range(20):
        bytes_RC = draw.integers(0, 100, (pp, vpp))
        peaks = peak_activation_bytes(order, bytes_RC)
        for rank in range(pp):
            held = [np.dot(moment, bytes_RC[rank]) for moment in fullest_counts(order, rank)]
            assert max(held) == peaks[rank]


def test_the_last_rank_turns_at_once_and_so_does_a_run_without_a_pipeline() -> None:
    order = operation_order(Schedule.ONE_F_ONE_B, pp=3, vpp=1, num_microbatches=6)
    assert [turns_at_once(order, rank) for rank in range(3)] == [False, False, True]
    assert turns_at_once(operation_order(Schedule.NO_PIPELINE, pp=1, vpp=1, num_microbatches=2), 0)
    chunks = operation_order(Schedule.INTERLEAVED, pp=2, vpp=2, num_microbatches=4)
    assert not any(turns_at_once(chunks, rank) for rank in range(2))


def test_attention_never_runs_again_and_neither_does_the_last_product() -> None:
    (layer,) = placed().rank_model.layers
    again = again_steps(layer)
    whole = [operator.operator.name for operator in layer.operators]
    left_out = {"core attention", *whole[whole.index("fc2") :]}
    expected = [step for part in layer.operators if part.operator.name not in left_out for step in part.forward]
    assert list(again) == expected
    named = {part.saved.name: part.num_bytes for part in layer.saved}
    kept = ("attention norm input", "attention output", "log-sum-exp")
    assert always_bytes(layer) == sum(named[name] for name in kept)


def test_a_layout_with_room_for_everything_keeps_its_time_and_its_memory() -> None:
    with_swaps = with_token_swapping(plan_of(LAYOUT)).token_swapping
    assert with_swaps is not None
    (entry,) = with_swaps.priced
    evaluation = evaluate(placed(), cost_model_on(CLUSTER, MEGATRON.software))
    assert entry.step_seconds == pytest.approx(evaluation.step_seconds)
    assert entry.peak_memory_bytes == evaluation.peak_memory_bytes
    assert (entry.host_memory_bytes, entry.again_seconds, entry.waiting_seconds) == (0, 0.0, 0.0)
    assert all(tokens.kept_fraction == pytest.approx(1.0) for tokens in entry.ranks)


def test_a_layout_that_recomputes_gains_what_it_need_not_recompute() -> None:
    plan = plan_of(RECOMPUTES, headroom=0.5)
    swapping = with_token_swapping(plan).token_swapping
    assert swapping is not None
    (entry,) = swapping.priced
    assert entry.step_seconds < plan.best.step_seconds
    assert entry.peak_memory_bytes <= plan.best.memory_limit_bytes
    first = entry.ranks[0]
    assert first.swapped_fraction > 0.1
    assert 0.0 < entry.host_memory_bytes <= room_on_host_bytes(placed(unrecomputed(RECOMPUTES)), CLUSTER)
    parts = (first.kept_fraction, first.swapped_fraction, first.again_fraction, first.again_here_fraction)
    assert sum(parts) == pytest.approx(1.0)


@pytest.mark.parametrize("limit_gib", [38.0, 41.0, 44.0])
def test_answers_of_both_back_ends_are_as_good_and_fit_the_ledger(limit_gib: float) -> None:
    objectives = []
    for solver in ("mathopt", "pulp"):
        answered = found(limit_gib=limit_gib, solver=solver)
        problem = answered.problem
        assert broken_answer(problem.problem(), answered.answer) == ()
        ledger = memory_ledger(answered.placed, activation_bytes_R=problem.device_bytes_R(answered.answer.share_O))
        assert peak_memory_bytes(ledger) <= limit_gib * GIB
        assert problem.host_bytes(answered.answer.share_O) <= problem.case.host_room_bytes
        objectives.append(answered.answer.objective)
    assert objectives[0] == pytest.approx(objectives[1], rel=OPTIMALITY_TOLERANCE)


def test_what_stays_is_counted_once_for_every_micro_batch_in_flight_beside_two_buffers() -> None:
    answered = found(limit_gib=41.0)
    problem, share_O = answered.problem, answered.answer.share_O
    (layer,) = problem.case.layers
    kept, here = (problem.share(share_O, 0, 0, choice) for choice in (TokenChoice.KEPT, TokenChoice.AGAIN_HERE))
    held = 4 * 8 * (kept * layer.saved_bytes + here * layer.always_bytes)
    passing = (1 - kept) * layer.saved_bytes - here * layer.always_bytes
    assert problem.device_bytes_R(share_O)[0] == pytest.approx(held + 2 * passing, rel=1e-9)
    swapped, again = (problem.share(share_O, 0, 0, choice) for choice in (TokenChoice.SWAPPED, TokenChoice.AGAIN))
    on_host = 4 * 8 * (swapped * layer.saved_bytes + again * layer.always_bytes)
    first_rank = CLUSTER.gpus_per_node // 4
    swaps = (TokenChoice.SWAPPED, TokenChoice.AGAIN)
    assert [problem.share(share_O, rank, 0, choice) for rank in (1, 2, 3) for choice in swaps] == [0.0] * 6
    assert problem.host_bytes(share_O) == pytest.approx(first_rank * on_host, rel=1e-9)


def test_gpus_of_one_pipeline_rank_share_their_socket_slot_by_slot() -> None:
    assert sockets_of((0, 0, 1, 1, 2, 2, 3, 3), 2) == ((0, 0, 1, 1), (2, 2, 3, 3))
    assert sockets_of((0, 1, 2), 2) == ((0, 1), (2,))
    slow = TokenLayer(
        saved_bytes=100,
        always_bytes=10,
        input_bytes=5,
        forward_seconds=1.0,
        backward_seconds=2.0,
        again_seconds=0.5,
        link_seconds=1.0,
        memory_seconds=4.0,
    )
    case = replace(found(limit_gib=60.0).problem.case, layers=(slow,))
    problem = TokenProblem(case)
    copies = {chain.seconds_O for chain in problem.problem().shares.chains if chain.name == "copies"}
    # Two of the four GPUs of a socket are of one rank: a copy takes half of what it takes while all of them copy.
    assert {max(seconds_O) for seconds_O in copies} == {2.0}
    (first, _) = problem.problem().links
    # Both ways, two GPUs of each of two ranks, of four: 8 layers of the first, 8 of the second.
    assert first.seconds_O == pytest.approx(
        tuple(2 * 2 * 8 * 4.0 / 4 * part for _ in (0, 1) for part in (0.0, 1.0, 0.1, 0.0)) + (0.0,) * 8
    )


@pytest.mark.parametrize(("preset", "gpus", "sockets"), [("dgx-h100", 8, 2), ("alps", 4, 4), ("gb200-nvl72", 4, 2)])
def test_gpus_have_as_many_sockets_as_their_hosts(preset: str, gpus: int, sockets: int) -> None:
    cluster = load_preset(preset).to_cluster()
    assert (cluster.gpus_per_node, sockets_of_node(cluster)) == (gpus, sockets)
    assert sockets_of_node(replace(cluster, gpus_per_node=1)) == 1


def test_why_tokens_are_not_divided() -> None:
    cost_model = cost_model_on(CLUSTER, MEGATRON.software)
    with pytest.raises(NotDividedError, match=FULL):
        found(limit_gib=20.0)
    written = replace(RUN, attention_kernel=AttentionKernel.UNFUSED)
    scores = place(MODEL, build_graph(MODEL, written, eager=False), LAYOUT, written, MEGATRON)
    with pytest.raises(NotDividedError, match=SCORES):
        divided(scores, cost_model, CLUSTER, limit_bytes=60 * GIB)
    model = tiny_dense_model(num_layers=2)
    alone = replace(
        LAYOUT, pp=1, dp=8, num_microbatches=4, schedule=Schedule.NO_PIPELINE, stages=stages_from_counts((2,))
    )
    shallow = place(model, build_graph(model, RUN, eager=False), alone, RUN, MEGATRON)
    with pytest.raises(NotDividedError, match=NOTHING):
        divided(shallow, cost_model, CLUSTER, limit_bytes=60 * GIB)
    full = with_token_swapping(plan_of(LAYOUT, headroom=0.75)).token_swapping
    assert full is not None
    assert (full.priced, dict(full.left_out), full.best) == ((), {"0": FULL}, None)
    mixed = with_token_swapping(replace(plan_of(LAYOUT), cluster=unequal_cluster(2))).token_swapping
    assert mixed is not None
    assert dict(mixed.left_out) == {"0": UNEQUAL}


def test_a_plan_without_layouts_stays_as_it_is() -> None:
    plan = tiny_infeasible_plan()
    assert with_token_swapping(plan) is plan
