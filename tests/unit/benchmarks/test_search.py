"""The benchmark of the search says what it measured, and where anything disagrees."""

import json
from dataclasses import replace

import pytest

from benchmarks.brute_force import Exhausted, brute_force, count_layouts, splits
from benchmarks.instances import Wanted, instances
from benchmarks.points import legal_points
from benchmarks.search import Row, lines_of, main, measure

INSTANCES = {instance.name: instance for instance in instances()}
NAME = "llama-2-7b-4xl40s"


@pytest.fixture(scope="module")
def row() -> Row:
    return measure(INSTANCES[NAME])


def test_an_instance_is_solved_and_its_points_are_counted_again(row: Row) -> None:
    assert row.disagreements == ()
    assert row.counted.considered == row.solved.considered
    assert row.solved.status == "optimal"
    assert "stages" in row.solved.dimensions
    assert row.exhausted is None


def test_whatever_disagrees_is_said(row: Row) -> None:
    assert row.counted.considered is not None
    assert row.counted.legal is not None
    assert row.solved.step_seconds is not None
    wrong = replace(
        row,
        counted=replace(row.counted, considered=row.counted.considered + 1, legal=row.counted.legal - 1),
        exhausted=Exhausted(best=None, step_seconds=1.0, num_layouts=2, num_fitting=1, seconds=1.0),
    )
    assert wrong.disagreements == (
        "17396 points considered, 17397 counted",
        "9588 + 0 legal points, 9587 counted",
        f"best step {row.solved.step_seconds} s, exhaustively 1.0 s",
    )
    assert lines_of(wrong)[-3:] == [f"  DISAGREES   {finding}" for finding in wrong.disagreements]


def test_the_document_holds_every_instance_that_was_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", NAME, "--format", "json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert [entry["name"] for entry in document] == [NAME]
    assert document[0]["disagreements"] == []


def test_as_many_layouts_are_counted_as_are_looked_at() -> None:
    run = INSTANCES["llama-3.2-1b-4xa100"].run()
    num_layouts = count_layouts(run, at_most=100_000)
    assert num_layouts == sum(1 for point in legal_points(run) for _ in splits(point, run))
    assert count_layouts(run, at_most=num_layouts - 1) is None


def test_where_memory_is_too_small_exhaustive_search_finds_nothing() -> None:
    run = INSTANCES["llama-3.2-1b-4xa100"].run()
    device = replace(run.cluster.device, memory_bytes=1)
    request = replace(run.request, workload=replace(run.workload, global_batch_size=1))
    exhausted = brute_force(replace(run, cluster=replace(run.cluster, device=device), request=request))
    assert exhausted.best is None
    assert exhausted.step_seconds is None
    assert exhausted.num_fitting == 0
    assert exhausted.num_layouts > 0


def test_what_is_wanted_and_missed_is_said(row: Row) -> None:
    slow = replace(row.solved, seconds=2.5, gap=0.02, peak_rss_bytes=2 * 10**9)
    lines = lines_of(replace(row, solved=slow, wanted=Wanted(seconds=2.0, gap=0.005)))
    assert lines[1].startswith("  solved      2.50 s (wanted 2 s, missed), ")
    assert lines[2] == "  peak RSS    1,907 MiB, wanted 1 GB, missed"
    assert lines[3].startswith("  status      optimal, gap 2.000% (wanted 0.5 %, missed), ")
    met = lines_of(replace(row, solved=replace(slow, seconds=1.0, gap=0.0), wanted=Wanted(seconds=2.0, gap=0.005)))
    assert met[1].startswith("  solved      1.00 s (wanted 2 s), ")
    assert met[3].startswith("  status      optimal, gap 0.000% (wanted 0.5 %), ")
