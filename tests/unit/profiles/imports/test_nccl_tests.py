import json
import random
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from profiles.errors import ProfileFileError
from profiles.imports.nccl_tests import Said, is_nccl_tests, read_nccl_tests
from profiles.judging import judge
from profiles.recorded import read_recording
from tests.unit.profiles.imports.nccl_logs import efa_log, microseconds, nvidia_log, old_log, rccl_log, row

RUNNER = CliRunner()
SIZES = (1 << 20, 1 << 26)


def points(text: str, **said: object) -> list[tuple[object, ...]]:
    runs = read_nccl_tests(text, file="log", said=Said(**said))  # type: ignore[arg-type]
    return [(*entry.point.words, *entry.point.sizes) for run in runs for entry in run.points]


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("all_reduce", "all_reduce", 8),
        ("all_gather", "all_gather", 8),
        ("reduce_scatter", "reduce_scatter", 8),
        ("alltoall", "all_to_all", 8),
    ],
)
def test_each_collective_with_its_bytes_and_its_time(name: str, kind: str, size: int) -> None:
    (run,) = read_nccl_tests(nvidia_log(name), file="log", said=Said())
    assert [(*entry.point.words, *entry.point.sizes) for entry in run.points] == [
        (kind, "eager", "alone", size, 1, num_bytes) for num_bytes in SIZES
    ]
    assert [entry.result["seconds"] for entry in run.points] == pytest.approx([microseconds(n) * 1e-6 for n in SIZES])
    assert (run.device, run.world_size, run.gpus_per_node) == ("NVIDIA H100 80GB HBM3", 8, 8)
    assert run.software == {"nccl-tests": "2.18.3"}


def test_a_ring_of_sends_is_as_slow_as_its_pair_between_nodes() -> None:
    assert points(nvidia_log("sendrecv"))[0] == ("send_recv", "eager", "concurrent", 2, 1, 1 << 20)
    assert points(nvidia_log("sendrecv", hosts=2))[0] == ("send_recv", "eager", "concurrent", 2, 8, 1 << 20)
    assert points(nvidia_log("sendrecv", per_host=2))[0] == ("send_recv", "eager", "alone", 2, 1, 1 << 20)


def test_split_groups_run_at_once() -> None:
    found = points(nvidia_log(hosts=4, group=lambda rank: rank % 8))
    assert found[0] == ("all_reduce", "eager", "concurrent", 4, 8, 1 << 20)


def test_captured_launches_are_kept_apart() -> None:
    assert points(nvidia_log(graph=1))[0][:2] == ("all_reduce", "graph")


def test_logs_of_other_vendors_and_versions() -> None:
    (efa,) = read_nccl_tests(efa_log(), file="log", said=Said())
    assert (efa.world_size, efa.gpus_per_node, len(efa.points)) == (16, 8, 2)
    assert efa.points[0].point.words[0] == "all_gather"
    assert efa.software == {"nccl": "2.18.5+cuda12.2"}
    (rccl,) = read_nccl_tests(rccl_log(), file="log", said=Said(collective="all_reduce"))
    assert (rccl.device, len(rccl.points)) == ("AMD Instinct MI300X", 2)
    assert (rccl.software, rccl.backend) == ({"rccl-tests": "develop:83d38d9"}, "rccl")
    for name in ("all_gather", "all_reduce"):
        (old,) = read_nccl_tests(old_log(name), file="log", said=Said(collective=name))
        assert (old.world_size, [entry.point.word("kind") for entry in old.points]) == (4, [name, name])


def test_several_tests_in_one_log() -> None:
    runs = read_nccl_tests(nvidia_log("all_reduce") + nvidia_log("alltoall", hosts=2), file="log", said=Said())
    assert [(run.points[0].point.word("kind"), run.world_size) for run in runs] == [
        ("all_reduce", 8),
        ("all_to_all", 16),
    ]


def test_rows_that_move_nothing_are_left_out_and_wrong_values_are_no_times() -> None:
    text = nvidia_log()
    first = row("all_reduce", 1 << 20, 8)
    nothing = "           0             0     float     sum      -1 " + 2 * "    0.11    0.00    0.00      0 "
    (run,) = read_nccl_tests(text.replace(first, nothing), file="log", said=Said())
    assert [entry.point.size("bytes") for entry in run.points] == [1 << 26]
    (run,) = read_nccl_tests(text.replace(first, row("all_reduce", 1 << 20, 8, wrong="12")), file="log", said=Said())
    assert run.points[0].reason == "line 18: 12 values came out wrong"


def without_ranks(text: str, rank: int) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith(f"#  Rank {rank:2d} "))


@pytest.mark.parametrize(
    ("text", "said", "message"),
    [
        (
            old_log(),
            Said(),
            "log:1: the log does not say what was tested\nSay it with --collective, one of all_reduce,",
        ),
        (nvidia_log(), Said(collective="alltoall"), "log:3: this is a test of all_reduce, not of alltoall"),
        (nvidia_log().replace("all_reduce_perf", "scatter_perf"), Said(), "log:3: no plan uses scatter"),
        (nvidia_log("all_gather").replace("all_gather", "all_reduce"), Said(), "log:18: busbw is "),
        (without_ranks(nvidia_log(), 7), Said(), "log:17: busbw is "),
        (without_ranks(nvidia_log(), 3), Said(), "log:3: rank 3 is not listed before the rows"),
        (nvidia_log().replace("Rank  3", "Rank  0"), Said(), "log:9: rank 0 is listed twice: each process ran a test"),
        (nvidia_log(per_host=1), Said(), "log:3: a single rank has nobody to send to"),
        (
            nvidia_log().replace(" on      node0 device  7", " on node1 device  7"),
            Said(),
            "log:3: nodes took part with 1",
        ),
        (nvidia_log(hosts=2), Said(gpus_per_node=4), "log:3: 8 ranks ran on each of 2 nodes, which does not go with"),
        (nvidia_log(group=lambda rank: int(rank > 2)), Said(), "log:3: the groups are not all of one regular shape"),
        (
            nvidia_log().replace("NVIDIA H100 80GB HBM3", ""),
            Said(),
            "log:3: the log does not name the GPU\nSay it with --called",
        ),
        (
            nvidia_log().replace("HBM3", "PCIe", 1),
            Said(),
            "log:3: this ran on several GPUs: NVIDIA H100 80GB HBM3, NVIDIA",
        ),
        (
            nvidia_log().replace(f"{microseconds(1 << 26):9.2f}", "     0.36"),
            Said(),
            "log:19: 67108864 bytes in 0.36 us are",
        ),
        (nvidia_log(sizes=()), Said(), "log: this log of nccl-tests holds no rows"),
        (
            nvidia_log().replace("1048576", "\u00b3048576"),
            Said(),
            "log:18: size \u00b3048576 is no number of bytes",
        ),
        ("\n".join(nvidia_log().splitlines()[:-3])[:-30], Said(), "log:19: the row has 9 cells, its header 13"),
    ],
)
def test_what_is_wrong_with_a_log_is_said(text: str, said: Said, message: str) -> None:
    with pytest.raises(ProfileFileError) as caught:
        read_nccl_tests(text, file="log", said=said)
    assert str(caught.value).startswith(message)


def test_a_mutated_log_is_read_or_refused() -> None:
    random_ = random.Random(5)
    text = nvidia_log(hosts=2) + efa_log()
    for _ in range(400):
        cut = list(text)
        for _ in range(random_.randint(1, 6)):
            place = random_.randrange(len(cut))
            cut[place : place + random_.randint(0, 40)] = random_.choice(["", "9", "#", "\n", " ", "x", "-1", "\x00"])
        mutated = "".join(cut)
        if is_nccl_tests(mutated):
            with suppress(ProfileFileError):
                read_nccl_tests(mutated, file="log", said=Said())


def test_the_command_makes_a_profile_that_prices_collectives(tmp_path: Path) -> None:
    sizes = tuple(1 << power for power in range(12, 31, 2))
    (tmp_path / "inside.log").write_text(nvidia_log("all_reduce", sizes))
    (tmp_path / "across.log").write_text(nvidia_log("all_gather", sizes, hosts=2))
    out = tmp_path / "measured"
    files = [str(tmp_path / "across.log"), str(tmp_path / "inside.log")]
    result = RUNNER.invoke(app, ["profile", "import", *files, "--out", str(out), "--format", "json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["device"] == "h100-sxm-80gb"
    recording = read_recording(out)
    assert recording.newest["world_size"] == 16
    assert (recording.newest["backend"], recording.newest["date"]) == ("nccl", "not said")
    assert len(recording.measured) == 2 * len(sizes)
    assert not judge(recording).excluded
    again = RUNNER.invoke(app, ["profile", "import", *files, "--out", str(out)])
    assert again.exit_code == 2
    assert "--force" in again.stderr


def test_profiles_of_two_gpus_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "one.log").write_text(nvidia_log())
    (tmp_path / "other.log").write_text(rccl_log("all_reduce").replace("# nThread", "# all_reduce\n# nThread"))
    files = [str(tmp_path / "one.log"), str(tmp_path / "other.log")]
    result = RUNNER.invoke(
        app, ["profile", "import", *files, "--collective", "all_reduce", "--out", str(tmp_path / "x")]
    )
    assert result.exit_code == 2
    assert "this ran on AMD Instinct MI300X, " in result.stderr
    (tmp_path / "other.log").write_text("hello\n")
    result = RUNNER.invoke(app, ["profile", "import", *files, "--out", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert "no line begins with # nThread" in result.stderr
