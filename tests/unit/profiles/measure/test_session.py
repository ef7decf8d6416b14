import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from profiles.measure.journal import FILE, Journal, JournalError, read_journal
from profiles.measure.session import Progress, Session
from tests.unit.profiles.measure.slow_job import SlowJob, request

ROOT = Path(__file__).parents[4]
KILLS = 20
COUNT = 400


def started(directory: Path, count: int) -> subprocess.Popen[bytes]:
    """Start a run that goes on with what is in a directory."""
    command = [sys.executable, "-m", "tests.unit.profiles.measure.slow_job", str(directory), str(count)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_killed_at_random_moments_it_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    drawn = random.Random(7)
    path = tmp_path / FILE
    path.touch()
    for _ in range(KILLS):
        before = path.stat().st_size
        with started(tmp_path, COUNT) as process:
            # Once it has begun to write, at any moment of writing.
            while path.stat().st_size == before and process.poll() is None:
                time.sleep(0.001)
            time.sleep(drawn.uniform(0.0, 0.02))
            process.send_signal(signal.SIGKILL)
    interrupted = [entry.point for entry in read_journal(path).entries]
    assert 0 < len(interrupted) < COUNT
    with started(tmp_path, COUNT) as process:
        assert process.wait() == 0
    content = read_journal(path)
    points = [entry.point for entry in content.entries]
    assert points[: len(interrupted)] == interrupted
    assert len(points) == len(set(points)) == COUNT
    assert set(points) == {entry.point for entry in request(COUNT)}
    assert sorted(content.runs) == list(range(1, max(content.runs) + 1))


def test_a_budget_ends_a_run_and_resuming_measures_the_rest(tmp_path: Path) -> None:
    ticks = iter(range(1000))
    told: list[Progress] = []
    session = Session(request(30), SlowJob(), budget_seconds=40.0, told=told.append, clock=lambda: float(next(ticks)))
    with Journal(tmp_path, resume=False) as journal:
        first = session.run(journal)
    assert 0 < first.left < 30
    assert first.measured + first.failed + first.left == 30
    assert (told[0].done, told[0].total, told[0].left_seconds) == (0, 30, 40.0)
    assert told[-1].key == ""
    with Journal(tmp_path, resume=True) as journal:
        second = Session(request(30), SlowJob()).run(journal)
    assert (second.measured + second.failed, second.left) == (first.left, 0)
    with Journal(tmp_path, resume=True) as journal:
        third = Session(request(30), SlowJob()).run(journal)
    assert (third.measured, third.failed, third.left) == (0, 0, 0)


def test_the_time_left_is_that_of_the_points_left_at_the_pace_so_far(tmp_path: Path) -> None:
    ticks = iter(range(1000))
    told: list[Progress] = []
    session = Session(request(3), SlowJob(), told=told.append, clock=lambda: float(next(ticks)))
    with Journal(tmp_path, resume=False) as journal:
        session.run(journal)
    assert told[0].left_seconds is None
    for progress in told[1:-1]:
        pace = progress.elapsed_seconds / progress.done
        assert progress.left_seconds == (progress.total - progress.done) * pace
    assert told[-1].left_seconds == 0.0


class LostJob(SlowJob):
    """Its fifth point takes the device down."""

    def __init__(self) -> None:
        self.measured = 0

    def is_lost(self) -> bool:
        self.measured += 1
        return self.measured == 5


def test_a_lost_device_ends_a_run_and_the_next_one_goes_on_behind_it(tmp_path: Path) -> None:
    with Journal(tmp_path, resume=False) as journal:
        first = Session(request(9), LostJob()).run(journal)
    assert (first.measured + first.failed, first.left, first.lost) == (5, 4, True)
    with Journal(tmp_path, resume=True) as journal:
        second = Session(request(9), SlowJob()).run(journal)
    assert (second.measured + second.failed, second.left, second.lost) == (4, 0, False)


class OtherDeviceJob(SlowJob):
    """Runs on another device, and keeps what the other ranks are told."""

    def __init__(self) -> None:
        self.told: list[int | None] = []

    def choice(self, index: int | None) -> int | None:
        self.told.append(index)
        return index

    def provenance(self) -> Mapping[str, object]:
        return {**super().provenance(), "device": "another"}


def test_where_the_journal_is_of_another_device_the_other_ranks_are_told_that_it_is_over(tmp_path: Path) -> None:
    with Journal(tmp_path, resume=False) as journal:
        Session(request(2), SlowJob()).run(journal)
    job = OtherDeviceJob()
    with Journal(tmp_path, resume=True) as journal, pytest.raises(JournalError, match="this is a profile of"):
        Session(request(3), job).run(journal)
    assert job.told == [None]


class ToldJob(SlowJob):
    """Keeps what the other ranks are told, and what they are asked."""

    def __init__(self, *, lost_at: int = 0) -> None:
        self.calls: list[str] = []
        self._lost_at = lost_at

    def choice(self, index: int | None) -> int | None:
        self.calls.append("end" if index is None else "go on")
        return index

    def is_lost(self) -> bool:
        self.calls.append("lost?")
        return self.calls.count("lost?") == self._lost_at


@pytest.mark.parametrize(
    ("lost_at", "calls"),
    [(0, [*["go on", "lost?"] * 3, "end"]), (3, ["go on", "lost?"] * 3)],
    ids=["in the middle", "as the device is lost"],
)
def test_a_full_disk_ends_all_ranks_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_at: int, calls: list[str]
) -> None:
    written, write = [], os.write

    def full(descriptor: int, raw: bytes) -> int:
        written.append(raw)
        if len(written) > 3:  # the run and two points fit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, raw)

    job = ToldJob(lost_at=lost_at)
    with Journal(tmp_path, resume=False) as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(JournalError) as caught:
            Session(request(9), job).run(journal)
        monkeypatch.setattr(os, "write", write)
    assert job.calls == calls
    assert str(caught.value) == (
        f"{tmp_path / FILE}: nothing more can be written: No space left on device\n"
        "Make room, and go on with --resume: what stands there is kept."
    )
    with Journal(tmp_path, resume=True) as journal:
        assert len(journal.content.entries) == 2
        second = Session(request(9), SlowJob()).run(journal)
    assert (second.measured + second.failed, second.left) == (7, 0)
