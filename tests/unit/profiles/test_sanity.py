"""Gates over a profile: rows with planted faults are named, each with its fault, and no other row is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from profiles.catalogue import load_preset
from profiles.errors import ProfileFileError
from profiles.judging import judge
from profiles.measure.grid import default_points
from profiles.measure.journal import FILE, Journal
from profiles.measure.points import Point, point
from profiles.profiled import remarks
from profiles.recorded import Recording, merged_text, read_recording
from tests.written_profiles import SOFTWARE, noise, result_of, run_line, seconds_of, write_profile

CLUSTER = load_preset("dgx-h100").to_cluster()
GRID = [
    entry
    for entry in default_points(
        ["gemm", "attention", "elementwise", "collectives"], dtypes=["bf16", "fp8"], world_size=8, per_node=8
    )
    if entry.word("mode" if entry.suite == "collectives" else "phase" if entry.suite != "gemm" else "part")
    not in ("graph", "decode")
]
SHORT = [
    point("gemm", dtype="fp16", part="forward", batch=1, m=m, n=n, k=k)
    for m in (128, 512)
    for n in (128, 1024)
    for k in (512, 1024, 2048)
]


def reduction(mode: str, num_bytes: int) -> Point:
    shape = {"size": 8, "stride": 1, "bytes": num_bytes}
    return point("collectives", kind="all_reduce", mode=mode, beside="alone", **shape)


LONG = [
    point("gemm", dtype="fp16", part="forward", batch=1, m=8192, n=n, k=k) for n in (4096, 16384) for k in (4096, 16384)
]


def faults(directory: Path) -> dict[str, str]:
    """Return the fault of every row that is left out, by what was measured."""
    judged = judge(read_recording(directory), CLUSTER)
    return {entry.row.name: entry.fault for entry in judged.excluded}


@pytest.mark.parametrize("cluster", [CLUSTER, None])
def test_a_sound_profile_passes_whole(tmp_path: Path, cluster: object) -> None:
    write_profile(tmp_path, [*GRID, *SHORT, *LONG], CLUSTER)
    judged = judge(read_recording(tmp_path), CLUSTER if cluster is not None else None)
    assert (judged.excluded, len(judged.kept)) == ((), len(GRID) + len(SHORT) + len(LONG))
    assert judged.roofline == "h100-sxm-80gb"


def some(suite: str, choose: Callable[[Point], bool] = lambda _: True) -> Point:
    """Return a point from the middle of the grid."""
    found = [entry for entry in GRID if entry.suite == suite and choose(entry)]
    return found[len(found) // 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A fault in one row."""

    point: Point
    factor: float
    fault: str


PLANTED = (
    Planted(point=some("gemm", lambda p: p.words == ("bf16", "forward")), factor=1e3, fault="swapped unit"),
    Planted(
        point=some("gemm", lambda p: p.words == ("fp8", "forward") and p.size("m") == 8192),
        factor=0.2,
        fault="faster than the roofline",
    ),
    Planted(
        point=some("attention", lambda p: p.word("phase") == "forward"), factor=5.0, fault="far from its neighbours"
    ),
    Planted(
        point=some("collectives", lambda p: p.size("bytes") == 1 << 28 and p.word("kind") == "all_gather"),
        factor=1e-3,
        fault="faster than the roofline",
    ),
    Planted(
        point=some("elementwise", lambda p: p.word("operation") == "copy"), factor=8.0, fault="far from its neighbours"
    ),
)


def test_each_planted_fault_is_named_and_nothing_else(tmp_path: Path) -> None:
    by_point = {planted.point: planted for planted in PLANTED}
    assert len(by_point) == len(PLANTED)
    twice = some("gemm", lambda p: p.words == ("bf16", "grad_weight"))

    def factor(measured: Point) -> float:
        # A host that takes 60 us for every launch hides what is short.
        if measured in SHORT:
            return 60e-6 / seconds_of(measured, CLUSTER)
        return by_point[measured].factor if measured in by_point else 1.0

    write_profile(tmp_path, [*GRID, *SHORT, *LONG, twice], CLUSTER, factor=factor)
    judged = judge(read_recording(tmp_path), CLUSTER)
    expected = {planted.point.key: planted.fault for planted in PLANTED}
    expected |= {short.key: "flat plateau" for short in SHORT}
    found = {entry.row.name: entry.fault for entry in judged.excluded if entry.fault != "duplicate"}
    assert found == expected
    (duplicate,) = (entry for entry in judged.excluded if entry.fault == "duplicate")
    last = 1 + len(GRID) + len(SHORT) + len(LONG) + 1
    assert (duplicate.row.name, duplicate.reason) == (twice.key, f"measured again at line {last}")
    assert {entry.line for entry in judged.kept} | {entry.row.line for entry in judged.excluded} == set(
        range(2, last + 1)
    )


def test_more_work_in_less_time_is_named_where_no_price_says_more(tmp_path: Path) -> None:
    sizes = [1 << power for power in range(16, 26)]
    copies = [
        point("elementwise", dtype="bf16", operation="copy", phase="forward", rows=1, features=size) for size in sizes
    ]
    drawn = noise(3)
    with Journal(tmp_path, resume=False) as journal:
        journal.begin(run_line(CLUSTER, called="", device="a machine of mine"))
        for place, entry in enumerate(copies):
            seconds = 1e-10 * entry.size("features") * drawn()
            journal.measured(entry, result_of(seconds * (6.0 if place == 4 else 1.0)))
    judged = judge(read_recording(tmp_path))
    assert judged.roofline == ""
    ((row, fault, reason),) = ((entry.row, entry.fault, entry.reason) for entry in judged.excluded)
    assert (row.name, fault) == (copies[4].key, "not monotone")
    assert reason.startswith("takes ")
    assert copies[5].key in reason


def test_a_way_of_running_that_takes_far_longer_than_another_is_named(tmp_path: Path) -> None:
    points = [reduction(mode, 1 << power) for mode in ("graph", "eager") for power in range(10, 20)]
    slow = reduction("eager", 1 << 12)
    write_profile(tmp_path, points, CLUSTER, factor=lambda entry: 4.0 if entry == slow else 1.0)
    (excluded,) = judge(read_recording(tmp_path), CLUSTER).excluded
    assert (excluded.row.name, excluded.fault) == (slow.key, "far from another backend")
    assert reduction("graph", 1 << 12).key in excluded.reason


def test_launches_and_overlap_are_not_held_against_one_another(tmp_path: Path) -> None:
    """One of many launches takes less than a single one, and a larger message may slow a product less."""
    launches = [(point("launch", term="launch", kernels=kernels), 1e-5 / kernels) for kernels in (1, 10, 100)]
    sides = {"alone": 1e-3, "other_alone": 1e-3, "other_beside": 1e-3}
    with Journal(tmp_path, resume=False) as journal:
        journal.begin(run_line(CLUSTER))
        for entry, seconds in launches:
            journal.measured(entry, result_of(seconds))
        for num_bytes, seconds in ((1 << 24, 9e-3), (1 << 27, 1e-3)):
            entry = point("overlap", dtype="bf16", beside="all_reduce", product=4096, bytes=num_bytes)
            journal.measured(entry, {**sides, "beside": seconds, "seconds": seconds})
    judged = judge(read_recording(tmp_path), CLUSTER)
    assert judged.excluded == ()
    assert len(judged.kept) == 5


def test_the_last_of_two_runs_counts(tmp_path: Path) -> None:
    write_profile(tmp_path, GRID[:20], CLUSTER)
    write_profile(tmp_path, GRID[:20], CLUSTER, factor=lambda _: 1.2, software={"torch": "2.14.0"})
    recording = read_recording(tmp_path)
    judged = judge(recording, CLUSTER)
    assert {entry.run for entry in judged.kept} == {2}
    assert [entry.fault for entry in judged.excluded] == ["duplicate"] * 20
    assert recording.stale == (
        "stale: run 1 differs from the newest: software torch 2.13.0, driver 570.1, cuda 12.8, nccl 2.27.3",
    )


IMPORTED = {"file": "all_reduce.log", "line": 1, "sha256": "0" * 64, "format": "nccl-tests"}


def merged(tmp_path: Path, *, imported_last: bool, software: Mapping[str, str] = {"nccl": "2.27.3"}) -> Recording:
    """Return a profile of this project's runs and of another program's, as `merge` joins them."""
    products = read_recording(write_profile(tmp_path / "own", GRID[:20], CLUSTER, gpus_per_node=1, world_size=1))
    sums = [reduction("eager", 1 << 26)]
    logs = read_recording(
        write_profile(tmp_path / "logs", sums, CLUSTER, imported=IMPORTED, software=software, date="not said")
    )
    joined = tmp_path / "joined"
    joined.mkdir()
    parts = [products, logs] if imported_last else [logs, products]
    (joined / FILE).write_text(merged_text(parts))
    return read_recording(joined)


@pytest.mark.parametrize("imported_last", [True, False])
def test_what_others_measured_is_not_stale_for_what_its_file_does_not_say(tmp_path: Path, imported_last: bool) -> None:
    recording = merged(tmp_path, imported_last=imported_last)
    assert recording.stale == ()
    assert remarks(recording, CLUSTER) == (), "the collectives' own run says how many GPUs a node has"
    assert recording.newest["software"] == SOFTWARE, "the collector's run speaks for the profile"
    assert (recording.gpus_per_node, recording.most_ranks) == (8, 8)


@pytest.mark.parametrize("imported_last", [True, False])
def test_what_a_file_says_of_the_same_things_is_held_against_the_newest(tmp_path: Path, imported_last: bool) -> None:
    number = 2 if imported_last else 1
    other = merged(tmp_path / "other", imported_last=imported_last, software={"nccl": "2.19.0", "vllm": "0.11"})
    assert other.stale == (f"stale: run {number} differs from the newest: software nccl 2.19.0",)


def test_nodes_count_between_runs_that_measured_between_gpus(tmp_path: Path) -> None:
    write_profile(tmp_path, [reduction("eager", 1 << 26)], CLUSTER, gpus_per_node=4)
    write_profile(tmp_path, [reduction("eager", 1 << 24)], CLUSTER)
    write_profile(tmp_path, GRID[:3], CLUSTER, gpus_per_node=1)
    assert read_recording(tmp_path).stale == ("stale: run 1 differs from the newest: gpus_per_node 4",)


def test_foreign_profiles_are_named(tmp_path: Path) -> None:
    write_profile(tmp_path, GRID, CLUSTER)
    recording = read_recording(tmp_path)
    assert remarks(recording, CLUSTER) == ()
    (carried,) = remarks(recording, load_preset("dgx-h200").to_cluster())
    assert carried == (
        "foreign: the profile is of h100-sxm-80gb, the cluster has h200: its residuals are carried over, as an"
        " assumption"
    )
    assert remarks(recording, load_preset("dgx-a100").to_cluster()) == (
        "foreign: the profile is of h100-sxm-80gb, the cluster has a100-sxm-80gb: nothing of it is used there",
    )


def test_a_result_without_its_figure_is_named(tmp_path: Path) -> None:
    write_profile(tmp_path, GRID[:2], CLUSTER)
    path = tmp_path / FILE
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"seconds": ', '"seconds": -')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(Exception, match=r"points.jsonl:3: result.seconds is no number above 0\n"):
        read_recording(tmp_path)


@pytest.mark.parametrize(("name", "value", "most"), [("gpus_per_node", 0, 1024), ("world_size", "many", 1048576)])
def test_a_run_of_a_job_that_cannot_be_is_named(tmp_path: Path, name: str, value: object, most: int) -> None:
    with Journal(tmp_path, resume=False) as journal:
        journal.begin(run_line(CLUSTER, **{name: value}))
        journal.measured(GRID[0], result_of(1e-3))
    with pytest.raises(ProfileFileError, match=f"run 1 has {name} {value}, no whole number from 1 to {most}\n"):
        read_recording(tmp_path)
