"""Laws of divided tokens: more memory, more host memory or a faster way to it is never worse; nothing beats keeping."""

from dataclasses import replace

import pytest

from planner.frameworks.capabilities import MEGATRON
from planner.layout import Layout, Schedule, even_counts, stages_from_counts
from planner.models.layers import build_graph
from planner.ranks.placement import place
from planner.requests.workload import Precision, TrainWorkload
from planner.token_swaps.token_choices import TokenChoice
from planner.token_swaps.token_problem import TokenCase, TokenProblem
from planner.token_swaps.token_swapping import divided
from profiles.planned import cost_model_on
from solvers.paced.registry import divide_paced
from solvers.solution import OPTIMALITY_TOLERANCE
from tests.unit.planner.schedule_views.test_other_schedules import CLUSTER, LAYOUT, MODEL

GIB = 1 << 30
RUN = TrainWorkload(seq_len=16384, global_batch_size=32, precision=Precision.BF16)
WITHOUT = replace(
    LAYOUT, pp=1, dp=2, tp=4, sequence_parallel=True, schedule=Schedule.NO_PIPELINE, stages=stages_from_counts((32,))
)
WITH = replace(LAYOUT, dp=1, tp=2, sequence_parallel=True, num_microbatches=32)
CHUNKS = replace(
    WITH, vpp=2, schedule=Schedule.INTERLEAVED, stages=stages_from_counts(even_counts(32, 8)), num_microbatches=32
)
TIGHT_GIB = {WITHOUT: 36, WITH: 42, CHUNKS: 42}


def case_of(layout: Layout, limit_gib: float) -> TokenCase:
    placed = place(MODEL, build_graph(MODEL, RUN, eager=False), layout, RUN, MEGATRON)
    cost_model = cost_model_on(CLUSTER, MEGATRON.software)
    return divided(placed, cost_model, CLUSTER, limit_bytes=int(limit_gib * GIB)).problem.case


def lasts(case: TokenCase) -> float:
    found = divide_paced(TokenProblem(case).problem())
    return float("inf") if found.objective is None else found.objective


@pytest.mark.parametrize("layout", [WITHOUT, WITH, CHUNKS], ids=["no pipeline", "1f1b", "interleaved"])
def test_more_room_or_a_faster_way_to_it_is_never_worse(layout: Layout) -> None:
    case = case_of(layout, TIGHT_GIB[layout])
    case = replace(case, host_room_bytes=case.host_room_bytes // 8)
    before = lasts(case)
    roomy = replace(case, room_bytes_R=tuple(2 * room for room in case.room_bytes_R))
    slow = tuple(replace(layer, link_seconds=3 * layer.link_seconds) for layer in case.layers)
    far = tuple(replace(layer, memory_seconds=20 * layer.memory_seconds) for layer in case.layers)
    costly = tuple(replace(layer, again_seconds=2 * layer.again_seconds) for layer in case.layers)
    kept = lasts(replace(case, room_bytes_R=(1 << 50,) * layout.pp))
    better = [lasts(roomy), lasts(replace(case, host_room_bytes=8 * case.host_room_bytes)), kept]
    worse = [
        lasts(replace(case, layers=slow)),
        lasts(replace(case, layers=far)),
        lasts(replace(case, layers=costly)),
        lasts(replace(case, slowdown=0.2)),
        lasts(replace(case, host_room_bytes=0)),
    ]
    assert kept < before < float("inf")
    for objective in better:
        assert kept * (1 - OPTIMALITY_TOLERANCE) <= objective <= before * (1 + OPTIMALITY_TOLERANCE)
    for objective in worse:
        assert objective >= before * (1 - OPTIMALITY_TOLERANCE)
    assert max(worse) > before * 1.001


@pytest.mark.parametrize("layout", [WITHOUT, WITH], ids=["no pipeline", "1f1b"])
def test_without_a_host_tokens_are_computed_again(layout: Layout) -> None:
    case = replace(case_of(layout, TIGHT_GIB[layout]), host_room_bytes=0)
    problem = TokenProblem(case)
    answer = divide_paced(problem.problem())
    assert problem.host_bytes(answer.share_O) == 0
    again = [problem.share(answer.share_O, rank, kind, TokenChoice.AGAIN_HERE) for rank, kind in problem.things]
    assert max(again) > 0
    assert all(problem.share(answer.share_O, rank, kind, TokenChoice.SWAPPED) == 0 for rank, kind in problem.things)
