"""What drives take: by the cluster's figures, by a profile, and not at all where nothing is known."""

from dataclasses import replace
from pathlib import Path

import pytest

from profiles.drives import READ_SOURCE, SAID_SOURCE, drive_copy, drive_rates, has_drives
from profiles.errors import CoverageError
from profiles.estimate import Source
from profiles.measure.journal import Journal
from profiles.measure.points import point
from profiles.ops import DriveCopy
from profiles.recorded import read_recording
from tests.builders import two_node_cluster
from tests.written_profiles import run_line

BARE = two_node_cluster()
CLUSTER = replace(BARE, nvme_bytes=10**12, nvme_bytes_per_second=8e9)
READ, WRITE = (DriveCopy(num_bytes=10**9, written=written) for written in (False, True))


def test_the_gpus_of_a_node_share_its_drives() -> None:
    sharers = CLUSTER.gpus_per_node
    assert drive_copy(READ, CLUSTER).seconds == pytest.approx(sharers / 8)
    assert drive_copy(WRITE, CLUSTER).seconds == pytest.approx(sharers / 8)
    assert READ_SOURCE in drive_copy(WRITE, CLUSTER).note
    slower = replace(CLUSTER, nvme_write_bytes_per_second=2e9)
    assert drive_copy(READ, slower).seconds == pytest.approx(sharers / 8)
    assert drive_copy(WRITE, slower).seconds == pytest.approx(sharers / 2)
    assert drive_copy(WRITE, slower).note == f"drives written, shared by {sharers}: {SAID_SOURCE}"
    assert drive_copy(WRITE, slower).source is Source.ASSUMED


def test_a_profile_comes_first(tmp_path: Path) -> None:
    with Journal(tmp_path, resume=False) as journal:
        journal.begin(run_line(CLUSTER))
        for direction, seconds in (("from_drive", 0.5), ("to_drive", 2.0)):
            journal.measured(
                point("copies", direction=direction, memory="pageable", beside="alone", bytes=1 << 30),
                {"seconds": seconds, "samples": 5, "mode": "stream", "kernel": ""},
            )
    measured = replace(CLUSTER, profile=read_recording(tmp_path).reference)
    rates = drive_rates(measured)
    assert rates is not None
    assert (rates.read_bytes_per_second, rates.write_bytes_per_second) == ((1 << 30) / 0.5, (1 << 30) / 2.0)
    assert drive_copy(READ, measured).source is Source.MEASURED
    assert has_drives(replace(measured, nvme_bytes_per_second=None))


def test_what_is_not_known_has_no_cost() -> None:
    assert has_drives(CLUSTER)
    assert not has_drives(BARE)
    assert not has_drives(replace(CLUSTER, nvme_bytes=None))
    with pytest.raises(CoverageError, match="neither the cluster nor a profile says how fast its drives are"):
        drive_copy(READ, BARE)
