"""A lock says what its plan says, comes back from its file unchanged, and tells what differs from another."""

from dataclasses import replace

import pytest

from planner.documents import parse_document
from planner.errors import InputError
from planner.locks.lock_changes import About, Level, changes
from planner.locks.plan_lock import PlanLock, RankBytes
from planner.plans.plan import Plan
from planner.schema.plan import plan_from_document, plan_to_text
from planner.schema.plan_lock import lock_from_document, lock_to_text
from planner.validation.locked import lock_of, text_hash
from tests.builders import tiny_certainty, tiny_plan

FILES = {"launch.sh": "exec torchrun\n"}


def lock(plan: Plan | None = None) -> PlanLock:
    return lock_of(plan or replace(tiny_plan(), certainty=tiny_certainty()), files=FILES)


def test_a_lock_comes_back_from_its_file() -> None:
    text = lock_to_text(lock())
    assert lock_from_document(parse_document(text, file="plan.lock.json")) == lock()
    assert lock_to_text(lock_from_document(parse_document(text, file="plan.lock.json"))) == text


def test_a_lock_says_what_the_plan_says() -> None:
    plan = tiny_plan()
    found = lock_of(plan, files=FILES)
    assert found.step_seconds == plan.best.step_seconds
    assert sum(found.seconds_by_term.values()) == pytest.approx(sum(line.seconds for line in plan.best.time))
    assert found.tightest.peak_bytes == plan.best.peak_memory_bytes
    assert found.files == {"launch.sh": text_hash(FILES["launch.sh"])}


def test_hashes_are_those_of_the_plan_file_read_back() -> None:
    again = plan_from_document(parse_document(plan_to_text(tiny_plan()), file="plan.json"))
    assert lock_of(again, files={}).inputs == lock_of(tiny_plan(), files={}).inputs


def test_each_input_has_a_hash_of_its_own() -> None:
    plan = tiny_plan()
    before = lock_of(plan, files={}).inputs
    others = {
        "model": replace(plan, model=replace(plan.model, hidden_size=plan.model.hidden_size * 2)),
        "cluster": replace(plan, cluster=replace(plan.cluster, price_per_gpu_hour=7.0)),
        "workload": replace(
            plan, request=replace(plan.request, workload=replace(plan.request.workload, tokens_to_train=10**9))
        ),
        "wanted": replace(plan, request=replace(plan.request, memory_headroom=0.5)),
    }
    for part, other in others.items():
        after = lock_of(other, files={}).inputs
        assert [name for name in before if before[name][1] != after[name][1]] == [part]


def test_equal_locks_have_no_changes() -> None:
    found = changes(lock(), lock())
    assert (found.inputs, found.settings, found.terms, found.files, found.remarks) == ({}, {}, {}, (), ())
    assert found.step_fraction == 0
    assert not found.is_bad


@pytest.mark.parametrize(
    ("factor", "about"),
    [(0.9, About.FASTER), (1.05, About.SLOWER_WITHIN_BAND), (1.5, About.SLOWER)],
)
def test_a_longer_step_is_bad_only_beyond_the_band(factor: float, about: About) -> None:
    before = replace(lock(), ratio_fraction=0.1)
    after = replace(before, step_seconds=before.step_seconds * factor)
    found = changes(before, after)
    assert [remark.about for remark in found.remarks] == [about]
    assert found.is_bad == (about is About.SLOWER)


def test_without_a_band_every_longer_step_is_bad() -> None:
    before = replace(lock(), ratio_fraction=None)
    found = changes(before, replace(before, step_seconds=before.step_seconds * 1.001))
    assert [remark.level for remark in found.remarks] == [Level.BAD]


def test_the_step_of_another_workload_is_neither_better_nor_worse() -> None:
    before = lock()
    other = {**before.inputs, "workload": ("8 tokens x 1 sequences, bf16", "0" * 64)}
    found = changes(before, replace(before, step_seconds=before.step_seconds * 9, inputs=other))
    assert [remark.about for remark in found.remarks] == [About.OTHER_WORKLOAD]
    models = {**other, "model": ("another", "0" * 64)}
    both = changes(before, replace(before, step_seconds=before.step_seconds * 9, inputs=models))
    assert [remark.text.partition(", ")[2] for remark in both.remarks] == ["of another model and workload."]


@pytest.mark.parametrize(("left", "abouts"), [(-1, [About.NO_ROOM]), (10, [About.LITTLE_ROOM]), (300, []), (999, [])])
def test_memory_is_remarked_on_where_it_is_short_or_shrinks_to_little(left: int, abouts: list[About]) -> None:
    before = replace(lock(), ranks=(RankBytes(rank=0, phase_bytes={"a": 700}, limit_bytes=1000),))
    after = replace(before, ranks=(RankBytes(rank=4, phase_bytes={"a": 1000 - left}, limit_bytes=1000),))
    assert [remark.about for remark in changes(before, after).remarks] == abouts


def test_a_smaller_proof_and_another_planner_are_said() -> None:
    before = replace(lock(), gap=0.0)
    found = changes(before, replace(before, gap=None, planner="shardwright 99"))
    assert [remark.about for remark in found.remarks] == [About.PROVEN_LESS, About.OTHER_PLANNER]
    assert [r.about for r in changes(before, replace(before, gap=0.2)).remarks] == [About.PROVEN_LESS]


def test_terms_settings_and_files_are_listed_with_both_sides() -> None:
    before = lock()
    after = replace(
        before,
        settings={**before.settings, "tp": "64"},
        seconds_by_term={**before.seconds_by_term, "new term": 0.5},
        files={"job.sbatch": "1" * 64},
    )
    found = changes(before, after)
    assert found.settings == {"tp": (before.settings["tp"], "64")}
    assert found.terms == {"new term": (0.0, 0.5)}
    assert found.files == ("job.sbatch", "launch.sh")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"step_seconds": ', '"step_seconds": -', "step_seconds"),
        ('"schema_version": 1', '"schema_version": 2', "schema_version"),
        ('"ranks"', '"rangs"', "ranks"),
    ],
)
def test_a_damaged_lock_is_refused_with_its_place(old: str, new: str, said: str) -> None:
    text = lock_to_text(lock())
    assert old in text
    with pytest.raises(InputError) as caught:
        lock_from_document(parse_document(text.replace(old, new, 1), file="plan.lock.json"))
    assert said in str(caught.value)
    assert "plan.lock.json:" in str(caught.value)
