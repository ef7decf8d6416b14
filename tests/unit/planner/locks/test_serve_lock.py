"""Locks of serving plans: they come back from their files, and say what changed."""

from dataclasses import replace

import pytest

from planner.documents import parse_document
from planner.errors import InputError
from planner.locks.lock_changes import About
from planner.locks.serve_lock import ServeLock
from planner.locks.serve_lock_changes import serve_changes
from planner.schema.serve_plan_file import serve_plan_from_document, serve_plan_to_text
from planner.schema.serve_plan_lock import is_serve_lock, serve_lock_from_document, serve_lock_to_text
from planner.serving_search.launch import serve_files
from planner.validation.locked import serve_lock_of
from tests.served import served

AGGREGATED = ("workload:", "constraints: {split: never, tp: 1}\nworkload:")
SLOWER = ("workload:", "constraints: {split: never, tp: 1, max_num_seqs: {max: 32}}\nworkload:")
LOOSER = ("tpot_ms: 25", "tpot_ms: 30")


def lock(*changes: tuple[str, str]) -> ServeLock:
    plan = served(*changes)
    return serve_lock_of(plan, files=serve_files(plan))


@pytest.mark.parametrize("changes", [(), (AGGREGATED,)])
def test_a_lock_comes_back_from_its_file(changes: tuple[tuple[str, str], ...]) -> None:
    document = parse_document(serve_lock_to_text(lock(*changes)), file="plan.lock.json")
    assert is_serve_lock(document)
    assert serve_lock_from_document(document) == lock(*changes)


def test_a_plan_read_back_has_the_same_lock() -> None:
    plan = served()
    again = serve_plan_from_document(parse_document(serve_plan_to_text(plan), file="plan.json"))
    assert serve_lock_of(again, files=serve_files(again)) == lock()


def test_nothing_changed_between_equal_plans() -> None:
    found = serve_changes(lock(), lock())
    assert (found.remarks, found.settings, found.terms, found.times, found.files) == ((), {}, {}, {}, ())


def test_every_setting_that_engines_are_told_is_there() -> None:
    found = lock(AGGREGATED)
    (entry,) = served(AGGREGATED).pools
    settings = found.settings
    assert settings["server max_num_seqs"] == str(entry.pool.settings.max_num_seqs)
    assert settings["server replicas"] == "8"
    assert sum(found.seconds_by_term.values()) == pytest.approx(sum(entry.step_seconds.values()))
    changed = replace(found, pools=(replace(found.pools[0], settings={**found.pools[0].settings, "tp": "2"}),))
    assert serve_changes(found, changed).settings == {"server tp": ("1", "2")}


def test_other_constraints_are_other_questions() -> None:
    found = serve_changes(lock(AGGREGATED), lock(SLOWER))
    assert [remark.about for remark in found.remarks] == [About.OTHER_WORKLOAD]
    assert list(found.inputs) == ["wanted"]
    assert "server max_num_seqs" in found.settings
    assert not found.is_bad
    assert list(serve_changes(lock(), lock(LOOSER)).inputs) == ["workload"]


@pytest.mark.parametrize(
    ("factor", "gpus", "about"),
    [
        (0.9, 0, [About.SLOWER]),
        (0.99, 0, [About.SLOWER_WITHIN_BAND]),
        (1.1, 0, [About.FASTER]),
        (1.0, 1, [About.DEARER]),
        (1.1, 1, [About.FASTER]),
        (1.0, 0, []),
    ],
)
def test_fewer_requests_and_more_gpus_are_told(factor: float, gpus: int, about: list[About]) -> None:
    before = lock()
    after = replace(before, requests_per_second=before.requests_per_second * factor, num_gpus=before.num_gpus + gpus)
    found = serve_changes(before, after)
    assert [remark.about for remark in found.remarks] == about
    assert found.is_bad == bool({About.SLOWER, About.DEARER} & set(about))


def test_what_is_less_sure_or_of_another_planner_is_told() -> None:
    found = serve_changes(lock(), replace(lock(), status="feasible", planner="shardwright 99"))
    assert [remark.about for remark in found.remarks] == [About.PROVEN_LESS, About.OTHER_PLANNER]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"requests_per_second": ', '"requests_per_second": -', "requests_per_second"),
        ('"schema_version": 1', '"schema_version": 2', "schema_version"),
        ('"num_gpus": ', '"num_gpus": -', "num_gpus"),
        ('"status": "optimal"', '"status": "best"', "status"),
    ],
)
def test_a_damaged_lock_is_refused_with_its_place(old: str, new: str, said: str) -> None:
    text = serve_lock_to_text(lock())
    assert old in text
    with pytest.raises(InputError) as caught:
        serve_lock_from_document(parse_document(text.replace(old, new, 1), file="plan.lock.json"))
    assert said in str(caught.value)
    assert "plan.lock.json:" in str(caught.value)
