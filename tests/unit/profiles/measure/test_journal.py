import json
from pathlib import Path

import pytest

from profiles.measure.journal import COLLECTOR, FILE, Journal, JournalError, done_points, read_journal
from profiles.measure.points import point

RUN = {"device": "a GPU", "called": "", "world_size": 1, "kind": "cuda"}
FIRST, SECOND, THIRD = (point("launch", term="launch", kernels=kernels) for kernels in (1, 2, 3))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a directory with one measured point and one that failed."""
    with Journal(tmp_path, resume=False) as journal:
        assert journal.begin(RUN) == 1
        journal.measured(FIRST, {"seconds": 1.5})
        journal.conditions({"at": "now", "sm_clock_mhz": 1980.0})
        journal.failed(SECOND, "no memory")
    return tmp_path


def test_what_was_written_is_read(directory: Path) -> None:
    content = read_journal(directory / FILE)
    assert content.runs == {1: {"type": "run", "run": 1, "collector": COLLECTOR, **RUN}}
    assert [(entry.point, entry.result, entry.reason) for entry in content.entries] == [
        (FIRST, {"seconds": 1.5}, ""),
        (SECOND, {}, "no memory"),
    ]
    assert [found["sm_clock_mhz"] for found in content.conditions] == [1980.0]
    assert not content.torn


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_costs_that_line_alone(directory: Path, cut: int) -> None:
    path = directory / FILE
    path.write_bytes(path.read_bytes()[:-cut])
    content = read_journal(path)
    assert content.torn
    assert [entry.point for entry in content.entries] == [FIRST]
    with Journal(directory, resume=True) as journal:
        assert journal.begin(RUN) == 2
        journal.measured(THIRD, {"seconds": 2.5})
    again = read_journal(path)
    assert not again.torn
    assert [entry.point for entry in again.entries] == [FIRST, THIRD]


def test_points_of_another_run_need_a_word(directory: Path) -> None:
    with pytest.raises(JournalError) as caught:
        Journal(directory, resume=False)
    assert str(caught.value) == (
        f"{directory / FILE}: 2 points are here already\nGo on with --resume, or name another directory."
    )


def test_there_is_one_writer_at_a_time(directory: Path) -> None:
    with Journal(directory, resume=True), pytest.raises(JournalError, match="another run is writing here"):
        Journal(directory, resume=True)
    Journal(directory, resume=True).close()


def test_another_device_is_refused(directory: Path) -> None:
    with Journal(directory, resume=True) as journal, pytest.raises(JournalError, match="this is a profile of a GPU\n"):
        journal.begin({**RUN, "device": "another GPU"})


def test_a_failed_point_is_tried_again_under_other_conditions(directory: Path) -> None:
    content = read_journal(directory / FILE)
    assert list(done_points(content, RUN)) == [FIRST, SECOND]
    assert list(done_points(content, {**RUN, "world_size": 8})) == [FIRST]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "it is not a mapping"),
        ("{}", "'type' is missing"),
        ('{"type": "point", "run": 7}', "there is no run 7 before it"),
        ('{"type": "run", "run": 1}', "there is a run 1 already"),
        ('{"type": "song", "run": 1}', "type 'song' is not one of run, point, failed, conditions"),
        ('{"type": "point", "run": 1, "point": {}, "result": {}}', "a point is a mapping with a suite"),
        ('{"type": "point", "run": 1, "result": 3}', "result is not a mapping"),
    ],
)
def test_a_whole_line_that_is_no_fact_is_named(directory: Path, line: str, message: str) -> None:
    path = directory / FILE
    path.write_text(f"{path.read_text()}{line}\n{json.dumps({'type': 'conditions', 'run': 1})}\n")
    with pytest.raises(JournalError) as caught:
        read_journal(path)
    assert (caught.value.line, caught.value.message) == (5, f"this is no line of a journal: {message}")


def test_a_line_that_is_nested_too_deeply_is_named(directory: Path) -> None:
    path = directory / FILE
    path.write_text(f"{path.read_text()}{'[' * 100_000}\n")
    with pytest.raises(JournalError) as caught:
        read_journal(path)
    assert caught.value.line == 5
    assert caught.value.message.startswith("this is no line of a journal: maximum recursion depth exceeded")
