"""Rules that look at a price, at a server's memory or at what a lock says, by numbers that are made up."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from planner.errors import InputError, Location
from planner.plans.plan import HostLine, HostMemory
from planner.rules import priced, served_against_lock, served_memory, unread_files
from planner.rules.priced import Change, PricedRun
from planner.rules.rule import Found, NoPriceError, Rule
from planner.rules.served_against_lock import HeldServer
from planner.rules.served_memory import ServedRun
from planner.rules.unread_files import UnreadFile
from planner.serving.ledger import KvLedger, Line
from planner.serving_plans.plan import Served, Spread
from planner.serving_search.held import HeldEngine
from planner.units import GIB
from tests.builders import tiny_planned_layout

PLACE = Location(file="train.sh", line=3)


def said(rules: tuple[Rule[Any], ...], run: object) -> dict[str, list[Found]]:
    """Return what each rule that finds something finds."""
    found = {rule.id: list(rule.check(run)) for rule in rules}
    return {rule_id: each for rule_id, each in found.items() if each}


# Two ranks of 3 GiB, the second with 4 bytes more, where plans may use 15 GiB.
RUN = PricedRun(place=PLACE, planned=tiny_planned_layout(), memory_bytes=16 * GIB, best=None, changes=(), open_parts={})


def test_a_run_that_fits_breaks_nothing() -> None:
    assert said(priced.RULES, RUN) == {}
    as_good = replace(RUN, best=tiny_planned_layout(step_seconds=0.246))
    assert said(priced.RULES, as_good) == {}


def test_a_rank_above_its_memory_is_told_with_its_largest_terms() -> None:
    (first, second) = said(priced.RULES, replace(RUN, memory_bytes=2 * GIB))["MEM001"]
    assert first.message == "Rank 0 needs 3.0 GiB in forward and backward, 1.0 GiB more than its GPU has."
    assert first.hint == (
        "Largest: weights 2.0 GiB, activations 1.0 GiB. More recompute, a smaller micro-batch, or more tp, pp or cp."
    )
    assert second.message.startswith("Rank 4 needs 3.0 GiB")


@pytest.mark.parametrize(("limit_bytes", "ranks"), [(3 * GIB + 4, []), (3 * GIB + 3, [4]), (3 * GIB - 1, [0, 4])])
def test_a_rank_above_what_plans_leave_free_is_told(limit_bytes: int, ranks: list[int]) -> None:
    run = replace(RUN, planned=replace(RUN.planned, memory_limit_bytes=limit_bytes))
    found = said(priced.RULES, run)
    assert set(found) == ({"MEM002"} if ranks else set())
    messages = [one.message for one in found.get("MEM002", [])]
    left = "in forward and backward, which leaves 13.0 GiB of its GPU."
    assert messages == [f"Rank {rank} needs 3.0 GiB {left}" for rank in ranks]


def lying(*gibs: int, limit_bytes: int) -> HostMemory:
    """Return terms of so many GiB."""
    lines = tuple(HostLine(term=f"term {gib}", num_bytes=gib * GIB, source="made up") for gib in gibs)
    return HostMemory(lines=lines, limit_bytes=limit_bytes)


@pytest.mark.parametrize("limit_bytes", [10 * GIB, 10 * GIB - 1])
def test_what_a_node_keeps_beside_its_gpus_has_to_fit(limit_bytes: int) -> None:
    kept = lying(1, 4, 2, 3, limit_bytes=limit_bytes)
    found = said(priced.RULES, replace(RUN, planned=replace(RUN.planned, host_memory=kept, drive_memory=kept)))
    if limit_bytes == 10 * GIB:
        assert found == {}
        return
    (host,), (drives,) = found["MEM003"], found["MEM004"]
    assert host.message == "A node needs 10 GiB of host memory, and has 10 GiB."
    assert host.hint.startswith("Largest: term 4 4 GiB, term 3 3 GiB, term 2 2 GiB. ")
    assert drives.message == "A node needs 10 GiB of its drives, which hold 10 GiB."
    assert drives.hint.startswith("Largest: term 1 1 GiB, term 4 4 GiB, ")


def test_a_slower_layout_and_changes_that_help_are_told() -> None:
    change = Change(part="recompute", layout="tp 2, no recompute", saved_fraction=0.125)
    found = said(priced.RULES, replace(RUN, best=tiny_planned_layout(step_seconds=0.2), changes=(change,)))
    (slower,), (helps,) = found["ADV001"], found["ADV002"]
    assert slower.message == "A step takes 0.250 s, 25% more than the best layout's 0.200 s."
    assert slower.hint.startswith("The best: tp 2 with sequence parallelism, pp 2, dp 2")
    assert helps.message == "Another choice of recompute alone saves 12% of the step."
    assert helps.hint == "With it: tp 2, no recompute."


def test_a_part_that_could_not_be_searched_leaves_advice_open() -> None:
    run = replace(RUN, open_parts={"recompute": "no layout within 5 s", "tp": "no price"})
    with pytest.raises(NoPriceError) as error:
        list(priced.one_change_helps.check(run))
    assert error.value.why == "another choice of recompute: no layout within 5 s; another choice of tp: no price"


# 6 of 10 GiB are held, a token takes 1 MiB in blocks of 16: 4,096 tokens fit.
LEDGER = KvLedger(
    capacity_bytes=10 * GIB,
    lines=(Line(name="weights", num_bytes=5 * GIB, source="made up"), Line(name="graphs", num_bytes=GIB, source="")),
    token_bytes=float(1 << 20),
    window_layers=(),
    state_bytes=0,
    block_tokens=16,
    needed_tokens=4096,
    pool=None,
)
LARGEST = "Largest: weights 5.0 GiB, graphs 1.0 GiB. It fits with"
SERVER = ServedRun(
    start=PLACE,
    length_place=PLACE,
    ledger=LEDGER,
    memory_bytes=12 * GIB,
    share=10 / 12,
    cache_bytes=None,
    max_model_len=4096,
    max_num_seqs=8,
    seqs_place=PLACE,
    captures_decode=True,
    fitting_tp=None,
)


@pytest.mark.parametrize(
    ("changes", "messages", "hints"),
    [
        ({}, {}, ()),
        ({"max_model_len": None}, {}, ()),
        (
            {"max_model_len": 4097},
            {"MEM102": "A request of 4,097 tokens needs 4.0 GiB of cache on a GPU, which has 4.0 GiB."},
            ("It fits with --max-model-len 4096 or --gpu-memory-utilization 0.84.",),
        ),
        (
            {"max_model_len": 4097, "cache_bytes": 1, "share": None, "fitting_tp": 2},
            {"MEM102": "A request of 4,097 tokens needs 4.0 GiB of cache on a GPU, which has 0.0 GiB."},
            ("It fits with --tensor-parallel-size 2.",),
        ),
        (
            {"max_model_len": 4096, "cache_bytes": 1, "share": None},
            {"MEM102": "A request of 4,096 tokens needs 4.0 GiB of cache on a GPU, which has 0.0 GiB."},
            ("It fits with more tensor or pipeline parallelism.",),
        ),
        ({"max_model_len": None, "cache_bytes": 4 * GIB}, {}, ()),
        (
            {"max_model_len": None, "cache_bytes": 4 * GIB + 1, "share": None},
            {"MEM101": "A GPU needs 6.0 GiB beside the cache, and the engine has 6.0 GiB for it."},
            (f"{LARGEST} more tensor or pipeline parallelism, or weights of fewer bytes.",),
        ),
        (
            {"ledger": replace(LEDGER, capacity_bytes=6 * GIB)},
            {"MEM101": "A GPU needs 6.0 GiB beside the cache, and the engine has 6.0 GiB for it."},
            (f"{LARGEST} --gpu-memory-utilization 0.84.",),
        ),
    ],
    ids=str,
)
def test_a_server_has_to_hold_its_weights_and_its_longest_request(
    changes: Mapping[str, Any], messages: Mapping[str, str], hints: tuple[str, ...]
) -> None:
    found = said(served_memory.RULES, replace(SERVER, **changes))
    assert {rule_id: each[0].message for rule_id, each in found.items()} == messages
    assert tuple(each[0].hint for each in found.values()) == hints


class Seats(KvLedger):
    """A ledger of layers that keep states, of which so many sequences have a block."""

    @property
    def most_seats(self) -> int | None:
        """Return eight."""
        return 8


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_num_seqs": 8}, False),
        ({"max_num_seqs": 9}, True),
        ({"max_num_seqs": 9, "captures_decode": False}, False),
        ({"max_num_seqs": 9, "max_model_len": 5000}, False),
    ],
)
def test_sequences_need_a_block_of_states_each(changes: Mapping[str, Any], *, told: bool) -> None:
    seats = Seats(**{name: getattr(LEDGER, name) for name in KvLedger.__slots__})
    found = said(served_memory.RULES, replace(SERVER, ledger=seats, **changes)).get("MEM103", [])
    message = "9 sequences need a block of states each, and the cache has 8."
    assert [one.message for one in found] == ([message] if told else [])


def spread(seconds: float) -> Spread:
    """Return a metric whose stated statistic is so many seconds."""
    return Spread(mean=seconds, p50=seconds, p90=seconds, p99=seconds, stated=seconds)


SERVED = Served(
    requests_per_second=2.0,
    ttft=spread(0.5),
    tpot=spread(0.025),
    e2e=spread(2.0),
    attainment=0.875,
    saturated=False,
    preempted=0.0,
    refused=0,
    mean_batch=4.0,
    num_requests=1000,
)
ENGINE = HeldEngine(ledger=LEDGER, served=SERVED, keeps=True)
HELD = HeldServer(place=PLACE, pool="server", settings={}, engine=ENGINE, targets="TTFT 400 ms")


def held_cases() -> Iterator[tuple[HeldServer, dict[str, str]]]:
    """Yield servers, and what is found of each."""
    yield HELD, {}
    yield replace(HELD, engine=None), {}
    yield replace(HELD, engine=replace(ENGINE, served=None, keeps=None)), {}
    yield (
        replace(HELD, engine=replace(ENGINE, keeps=False)),
        {
            "LCK006": "At the locked load of pool server 87.5% keep all targets (TTFT 400 ms): "
            "TTFT 500 ms, TPOT 25.0 ms."
        },
    )
    yield (
        replace(HELD, engine=replace(ENGINE, keeps=False, served=replace(SERVED, saturated=True))),
        {
            "LCK006": "At the locked load of pool server waiting grows as long as requests come (TTFT 400 ms): "
            "TTFT 500 ms, TPOT 25.0 ms."
        },
    )
    yield (
        replace(HELD, engine=HeldEngine(ledger=replace(LEDGER, needed_tokens=4608), served=None, keeps=None)),
        {"LCK007": "A GPU of pool server lacks 0.50 GiB for weights, a step and the longest sequence."},
    )
    yield (
        replace(HELD, settings={"tp": ("2", "4"), "max_num_seqs": ("64", "32")}),
        {"LCK008": "The engine is not the locked one of pool server: tp 4 (locked: 2), max_num_seqs 32 (locked: 64)."},
    )


@pytest.mark.parametrize(("run", "messages"), tuple(held_cases()))
def test_a_server_is_held_against_its_lock(run: HeldServer, messages: dict[str, str]) -> None:
    found = said(served_against_lock.RULES, run)
    assert {rule_id: each[0].message for rule_id, each in found.items()} == messages


@pytest.mark.parametrize("location", [None, Location(file="run.sh", line=7)])
def test_a_file_that_cannot_be_read_is_told_where_it_is_damaged(location: Location | None) -> None:
    error = InputError("A quote is never closed.", location=location, hint="Close it.")
    ((found,),) = said(unread_files.RULES, UnreadFile(file="run.sh", error=error)).values()
    assert found.place == (location or Location(file="run.sh"))
    assert (found.message, found.hint) == ("Not judged: A quote is never closed.", "Close it.")
