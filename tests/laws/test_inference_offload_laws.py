"""Laws of offloaded inference: what more memory, larger blocks, a simulation and a narrower runtime may change."""

from dataclasses import replace

import pytest

from planner.inference_offload.blocks import CLOSE, best_block
from planner.inference_offload.plan import TargetPlan
from planner.inference_offload.prices import BlockPrices
from planner.inference_offload.request import WORDS, Place, Target, Thing
from planner.units import GIB
from solvers.shares.problem import SharesProblem
from solvers.shares.registry import divide
from tests.offloaded import CASES, offloaded, priced

SMALL = (1, 4, 16)


def problem_of(case: str, target: Target, batch_size: int, num_batches: int, *, peers: int = 0) -> SharesProblem:
    work, machine, request = priced(case, peers=peers)
    return BlockPrices(work, machine, request, WORDS[target]).problem(batch_size, num_batches)


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_size", SMALL)
def test_a_larger_block_of_the_same_batches_takes_no_less(case: str, target: Target, batch_size: int) -> None:
    """The search's bound stands on it; of one batch the GPU waits for the CPU, of two it does as much at least."""
    divisions = [divide(problem_of(case, target, batch_size, count).relaxed).objective for count in (1, 2, 3, 8, 40)]
    found = [seconds for seconds in divisions if seconds is not None]
    assert divisions[: len(found)] == found, "what does not fit does not fit in larger blocks"
    assert found == sorted(found)
    before, behind = (problem_of(case, target, batch_size, count) for count in (3, 4))
    for chain, later in zip(before.chains, behind.chains, strict=True):
        assert (chain.phase, chain.name) == (later.phase, later.name)
        assert chain.fixed_seconds <= later.fixed_seconds
    for room, later_room in zip(before.rooms, behind.rooms, strict=True):
        assert room.name == later_room.name
        assert room.fixed <= later_room.fixed
        assert all(first <= second for first, second in zip(room.use_O, later_room.use_O, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_more_of_a_place_never_takes_longer(case: str) -> None:
    work, machine, request = priced(case, peers=1)
    words = WORDS[Target.ANY]
    now = divide(BlockPrices(work, machine, request, words).problem(4, 3).relaxed)
    assert now.objective is not None
    for place in machine.room_bytes:
        more = BlockPrices(work, machine.with_more(place, 8 * GIB), request, words).problem(4, 3)
        found = divide(more.relaxed)
        assert found.objective is not None
        assert found.objective <= now.objective * (1 + 1e-6)
        less = divide(BlockPrices(work, machine.with_more(place, -2 * GIB), request, words).problem(4, 3).relaxed)
        assert less.objective is None or less.objective >= now.objective * (1 - 1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("most", [40, 150])
def test_the_search_is_as_good_as_looking_at_every_number_of_batches(case: str, most: int) -> None:
    work, machine, request = priced(case)
    prices = BlockPrices(work, machine, request, WORDS[Target.ANY])
    found = best_block(lambda size, count: prices.problem(size, count).relaxed, most_sequences=most, batch_sizes=(4,))
    assert found.best is not None
    every = []
    for count in range(1, most // 4 + 1):
        seconds = divide(prices.problem(4, count).relaxed).objective
        if seconds is not None:
            every.append(4 * count / seconds)
    assert max(every) <= found.best.rate * (1 + CLOSE) * (1 + 1e-6)
    assert max(every) <= found.most_rate * (1 + 1e-6)
    assert found.best.rate <= max(every) * (1 + 1e-6)
    assert not found.stopped


def plans(case: str) -> tuple[TargetPlan, ...]:
    return offloaded(case, peers=1).plans


@pytest.mark.parametrize("case", CASES)
def test_no_order_of_work_is_faster_than_the_busiest_part(case: str) -> None:
    for plan in plans(case):
        assert 0.2 * plan.unpaused_tokens_per_second < plan.tokens_per_second
        assert plan.tokens_per_second <= plan.unpaused_tokens_per_second * (1 + 1e-6)
        assert plan.unpaused_tokens_per_second <= plan.most_tokens_per_second


@pytest.mark.parametrize("case", CASES)
def test_a_runtime_that_can_be_told_less_is_no_faster(case: str) -> None:
    whole = offloaded(case, peers=1).of(Target.ANY)
    assert whole is not None
    for plan in plans(case):
        assert plan.tokens_per_second <= whole.tokens_per_second * (1 + 1e-6)
        assert plan.most_tokens_per_second <= whole.most_tokens_per_second * (1 + CLOSE)
        words = WORDS[plan.target]
        assert all(placed.option.use in words.uses[placed.option.thing] for placed in plan.placed)
        assert words.most_batches is None or plan.num_batches <= words.most_batches


@pytest.mark.parametrize("case", CASES)
def test_everything_lies_somewhere_and_nothing_is_overfull(case: str) -> None:
    for plan in plans(case):
        shares: dict[tuple[Thing, int], float] = {}
        for placed in plan.placed:
            key = placed.option.thing, placed.option.group
            shares[key] = shares.get(key, 0.0) + placed.share
        assert all(total == pytest.approx(1.0, abs=2e-4) for total in shares.values())
        assert all(held.num_bytes <= held.room_bytes * (1 + 1e-6) for held in plan.held)
        lies = {place: sum(p.num_bytes for p in plan.placed if p.option.use.place is place) for place in Place}
        for held in plan.held:
            place = Place(held.name.split(",")[0])
            if not held.name.endswith("answers"):
                assert lies[place] <= held.num_bytes * (1 + 1e-3) + 1


def test_hot_experts_are_nearer_than_cold_ones() -> None:
    """With few sequences a pass does not reach the cold ones, so that room on the GPU is worth more to the hot."""
    plan = offloaded("mixture", num_sequences=4).of(Target.ANY)
    assert plan is not None
    on_gpu = {
        placed.option.group: placed.share
        for placed in plan.placed
        if placed.option.thing is Thing.EXPERTS and placed.option.use.place is Place.GPU
    }
    shares = [on_gpu.get(group, 0.0) for group in range(8)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


def test_both_back_ends_find_the_same() -> None:
    first, second = (offloaded("dense", solver=solver).plans for solver in ("mathopt", "pulp"))
    for one, other in zip(first, second, strict=True):
        assert one.most_tokens_per_second == pytest.approx(other.most_tokens_per_second, rel=2 * CLOSE)


def test_an_idle_peer_is_room_that_helps() -> None:
    alone, with_peers = (offloaded("large", peers=peers).of(Target.ANY) for peers in (0, 3))
    assert alone is not None
    assert with_peers is not None
    assert with_peers.tokens_per_second > alone.tokens_per_second * 1.5


def test_slower_cpus_are_asked_to_do_less() -> None:
    work, machine, request = priced("dense")
    slow = replace(machine, cpu_flops_per_second=1e9, cpu_bytes_per_second=1e8)
    problem = BlockPrices(work, slow, request, WORDS[Target.ANY]).problem(4, 8)
    answer = divide(problem)
    options = BlockPrices(work, slow, request, WORDS[Target.ANY]).options
    by_cpu = [share for option, share in zip(options, answer.share_O, strict=True) if option.use.on_cpu]
    assert sum(by_cpu) < 0.05
