"""The ledger by rank and phase."""

from dataclasses import replace

from planner.plans.plan import Phase
from planner.plans.rank_memory import heaviest_rank, memory_by_rank, peak_terms
from tests.unit.cli.samples import GIB, sample_planned


def test_memory_adds_up_by_rank_and_phase() -> None:
    lines = sample_planned().memory
    first, second = memory_by_rank(lines, limit_bytes=7 * GIB)
    assert (first.rank, second.rank) == (0, 2)
    assert first.phase_bytes == {
        Phase.INITIALISATION: 2 * GIB,
        Phase.FORWARD_BACKWARD: 6 * GIB,
        Phase.OPTIMIZER_STEP: 2 * GIB,
    }
    assert (second.peak_bytes, second.peak_phase, second.left_bytes) == (4 * GIB, Phase.FORWARD_BACKWARD, 3 * GIB)
    assert sum(sum(rank.phase_bytes.values()) for rank in (first, second)) == sum(line.num_bytes for line in lines)


def test_the_heaviest_rank_holds_the_peak_of_the_plan() -> None:
    planned = sample_planned()
    heaviest = heaviest_rank(memory_by_rank(planned.memory, limit_bytes=planned.memory_limit_bytes))
    assert heaviest.rank == 0
    assert heaviest.peak_bytes == planned.peak_memory_bytes
    assert [line.term for line in peak_terms(planned.memory, heaviest)] == ["activations", "weights"]


def test_of_equally_heavy_ranks_the_lowest_is_named() -> None:
    lines = tuple(replace(line, num_bytes=GIB) for line in sample_planned().memory)
    assert heaviest_rank(memory_by_rank(lines, limit_bytes=7 * GIB)).rank == 0
