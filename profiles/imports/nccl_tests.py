r"""Reads what NVIDIA's nccl-tests and AMD's rccl-tests print: one measured collective a row.

A log is cut into tests; a test begins with the line `# nThread ...`. In front of its rows stand the ranks, each with
host and GPU, and a header that names the columns. Versions differ in these:

    size count type redop root time algbw busbw #wrong time algbw busbw #wrong     2.11 and later
    size count type redop time algbw busbw error time algbw busbw error            before; of a gather without redop

The first time is out of place, the second in place, both in microseconds; bandwidths are in 1e9 bytes a second. Of
all_reduce `size` is the buffer, of gathers and scatters the whole tensor, of alltoall what one rank sends in all: what
`profiles.ops.Collective.buffer_bytes` is too (nccl-tests, doc/PERFORMANCE.md and src/*.cu). Of sendrecv it is what each
rank sends to the next one of a ring, all at once.

Every row is held against itself: algbw = size / time, and busbw / algbw = what PERFORMANCE.md gives for the collective
and its number of ranks. A time in another unit, a collective of another name or a wrong number of ranks shows there.

What launchers put in front of lines (Open MPI's `[1,0]<stdout>:`, Slurm's `0:`, a time) is left out. Lines of any other
kind, such as NCCL's or libfabric's own, say nothing.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from profiles.errors import ProfileFileError
from profiles.imports.imported import ImportedPoint, ImportedRun, sha256_of
from profiles.measure.points import point

KINDS: Mapping[str, str] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "sendrecv": "send_recv",
}
"""Collectives that planning knows, by the name that the tests have for them."""

_BUS_FACTOR: Mapping[str, Callable[[int], float]] = {
    "all_reduce": lambda ranks: 2 * (ranks - 1) / ranks,
    "all_gather": lambda ranks: (ranks - 1) / ranks,
    "reduce_scatter": lambda ranks: (ranks - 1) / ranks,
    "alltoall": lambda ranks: (ranks - 1) / ranks,
    "sendrecv": lambda _: 1.0,
}
"""busbw / algbw (nccl-tests, doc/PERFORMANCE.md)."""

_PREFIX = re.compile(
    r"^(?:\[\d+,\d+\]<std(?:out|err)>: ?|\s*\d+: (?=\s*[#\d])|\[?\d{4}-\d\d-\d\d[T ][\d:.,]+(?:Z|[+-]\d\d:?\d\d)?\]? )+"
)
_BEGIN = re.compile(r"^# *nThread +\d+ +nGpus +\d+ ")
_GRAPH = re.compile(r" graph: (\d{1,9})")
_NAMED = re.compile(r"Collective test starting: *(?:\S*/)?(?P<name>\w+?)_perf\b")
_COMMAND = re.compile(r"(?:^|[\s/])(?P<name>[a-z_]+)_perf(?= +-)")
_VERSION = re.compile(
    r"(?:(?P<tests>[nr]ccl-tests)(?: version|: Version) |\b(?P<library>[NR]CCL) version )(?P<version>\S+)"
)
_RANK = re.compile(
    r"^# +Rank +(?P<rank>\d{1,7}) +(?:Group +(?P<group>\d{1,7}) +)?Pid +\d+ +on +(?P<host>\S+) +device +\d+ +"
    r"\[[^\]]*\] *(?P<device>.*?) *$"
)
_TYPES = (
    *("int8", "uint8", "int32", "uint32", "int64", "uint64", "half", "float", "double", "bfloat16", "char"),
    *("f8e4m3", "f8e5m2", "fp8_e4m3", "fp8_e5m2"),
)
_FIGURES = ("time", "algbw", "busbw")
_LARGEST = 1e12

_SLACK = 0.02
"""Bandwidths are printed with two decimals of times that are: rounding of long and short ones is within this."""
_DIGIT = 0.006
"""The last digit of a printed bandwidth, in 1e9 bytes a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the user says where a log does not.

    Args:
        collective: Which one the tests ran, by its name there.
        gpus_per_node: GPUs of a node.
        called: What the GPU is called.
    """

    collective: str = ""
    gpus_per_node: int | None = None
    called: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rank:
    """One rank, as a test lists it."""

    group: int
    host: str
    device: str


@dataclass(slots=True, kw_only=True)
class _Test:
    """One test of a log, as far as it has been read."""

    file: str
    line: int
    graph: bool
    name: str
    ranks: dict[int, _Rank] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    rows: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)

    def error(self, message: str, remedy: str, *, line: int | None = None) -> ProfileFileError:
        """Return what is wrong with the test, or with a line of it."""
        return ProfileFileError(file=self.file, line=line or self.line, message=message, remedy=remedy)

    def take(self, number: int, line: str) -> None:
        """Add one line.

        Raises:
            ProfileFileError: A rank is listed twice.
        """
        rank = _RANK.match(line)
        if rank is not None:
            index = int(rank["rank"])
            if index in self.ranks:
                raise self.error(
                    f"rank {index} is listed twice: each process ran a test of its own",
                    "Build nccl-tests with MPI=1 and run it again.",
                    line=number,
                )
            self.ranks[index] = _Rank(group=int(rank["group"] or 0), host=rank["host"], device=rank["device"])
            return
        cells = tuple(line.lstrip("#").split())
        if line.startswith("#") and cells[:2] == ("size", "count"):
            self.columns = cells
        elif len(cells) > 2 and cells[0].isdigit() and cells[1].isdigit() and cells[2] in _TYPES:
            self.rows.append((number, cells))


def is_nccl_tests(text: str) -> bool:
    """Return whether a text is a log of nccl-tests."""
    return any(_BEGIN.match(_PREFIX.sub("", line)) for line in text.splitlines())


def read_nccl_tests(text: str, *, file: str, said: Said) -> tuple[ImportedRun, ...]:
    """Return what a log says, a run for each test.

    Raises:
        ProfileFileError: It holds no rows, a row contradicts itself, or it leaves open what was run.
    """
    tests, software = _tests(text, file)
    sha256 = sha256_of(text)
    found = tuple(_run(test, sha256=sha256, software=software, said=said) for test in tests if test.rows)
    if not found:
        raise ProfileFileError(
            file=file,
            line=None,
            message="this log of nccl-tests holds no rows",
            remedy="Give the log of a test that ran to its end.",
        )
    return found


def _tests(text: str, file: str) -> tuple[list[_Test], dict[str, str]]:
    """Return the tests of a log and the versions that it names."""
    tests: list[_Test] = []
    software: dict[str, str] = {}
    name = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _PREFIX.sub("", raw)
        named = _NAMED.search(line) or (None if line.startswith("#") else _COMMAND.search(line))
        name = name if named is None else named["name"]
        version = _VERSION.search(line)
        if version is not None:
            software[version["tests"] or version["library"].lower()] = version["version"]
        begin = _BEGIN.match(line)
        if begin is not None:
            tests.append(_Test(file=file, line=number, graph=_count(_GRAPH, line) > 0, name=name))
        elif tests:
            tests[-1].take(number, line)
    return tests, dict(sorted(software.items()))


def _count(pattern: re.Pattern[str], line: str) -> int:
    found = pattern.search(line)
    return int(found[1]) if found else 0


def _run(test: _Test, *, sha256: str, software: Mapping[str, str], said: Said) -> ImportedRun:
    """Return one test as a run."""
    name = _name(test, said)
    world_size = len(test.ranks)
    missing = next((rank for rank in range(world_size + 1) if rank not in test.ranks), world_size)
    if missing < world_size or not test.ranks:
        raise test.error(f"rank {missing} is not listed before the rows", "Give the whole log.")
    if not test.columns:
        raise test.error("no header with the columns stands before the rows", "Give the whole log.")
    group = _group(test)
    per_node = _per_node(test, said)
    devices = sorted({rank.device for rank in test.ranks.values()})
    if len(devices) > 1:
        raise test.error(f"this ran on several GPUs: {', '.join(devices)}", "Run it on nodes of one GPU.")
    device = devices[0] or said.called
    if not device:
        raise test.error("the log does not name the GPU", "Say it with --called, as `shardwright clusters` lists it.")
    return ImportedRun(
        file=test.file,
        line=test.line,
        sha256=sha256,
        format="nccl-tests",
        device=device,
        world_size=world_size,
        gpus_per_node=per_node,
        software=software,
        backend="rccl" if "rccl" in "".join(software) else "nccl",
        host=test.ranks[0].host,
        points=tuple(_points(test, name, group, per_node)),
    )


def _name(test: _Test, said: Said) -> str:
    """Return the name that the tests have for the collective."""
    if test.name and said.collective and test.name != said.collective:
        raise test.error(f"this is a test of {test.name}, not of {said.collective}", "Leave --collective out.")
    name = test.name or said.collective
    if not name:
        raise test.error(
            "the log does not say what was tested", f"Say it with --collective, one of {', '.join(KINDS)}."
        )
    if name not in KINDS:
        raise test.error(f"no plan uses {name}", f"Import tests of {', '.join(KINDS)}.")
    return name


def _group(test: _Test) -> tuple[int, int]:
    """Return size and stride of the groups that ran at once, which is one where they were not split."""
    members: dict[int, list[int]] = {}
    for number, rank in sorted(test.ranks.items()):
        members.setdefault(rank.group, []).append(number)
    shapes = set()
    for ranks in members.values():
        strides = {there - here for here, there in pairwise(ranks)}
        if len(ranks) < 2:
            raise test.error("a single rank has nobody to send to", "Run the test on two GPUs or more.")
        shapes.add((len(ranks), strides.pop() if len(strides) == 1 else 0))
    size, stride = shapes.pop()
    if shapes or not stride:
        raise test.error("the groups are not all of one regular shape", "Split ranks evenly with NCCL_TESTS_SPLIT.")
    return size, stride


def _per_node(test: _Test, said: Said) -> int:
    """Return the GPUs of a node: as many as took part, or what is said of a node of which only some did."""
    hosts: dict[str, int] = {}
    for rank in test.ranks.values():
        hosts[rank.host] = hosts.get(rank.host, 0) + 1
    fewest, most = min(hosts.values()), max(hosts.values())
    if fewest != most:
        raise test.error(f"nodes took part with {fewest} and with {most} ranks", "Run on equally many of each node.")
    wanted = said.gpus_per_node or most
    if wanted < most or (len(hosts) > 1 and wanted != most):
        raise test.error(
            f"{most} ranks ran on each of {len(hosts)} nodes, which does not go with --gpus-per-node {wanted}",
            "Leave --gpus-per-node out.",
        )
    return wanted


def _points(test: _Test, name: str, group: tuple[int, int], per_node: int) -> Iterator[ImportedPoint]:
    """Yield the rows that moved anything."""
    size, stride = group
    concurrent = size < len(test.ranks)
    if name == "sendrecv":
        # A ring: its slowest pair is one across nodes, where there is any; all pairs send at once.
        crosses = size * stride > per_node
        concurrent, size, stride = concurrent or size > 2, 2, per_node if crosses else stride
    for line, cells in test.rows:
        row = _row(test, line, cells)
        num_bytes = _whole(test, line, row["size"])
        if num_bytes == 0:
            continue
        measured = point(
            "collectives",
            kind=KINDS[name],
            mode="graph" if test.graph else "eager",
            beside="concurrent" if concurrent else "alone",
            size=size,
            stride=stride,
            bytes=num_bytes,
        )
        wrong = row.get("wrong") or row.get("error") or "0"
        if wrong.isdecimal() and int(wrong):
            yield ImportedPoint(point=measured, result={}, reason=f"line {line}: {wrong} values came out wrong")
            continue
        seconds = _seconds(test, line, row, num_bytes, _BUS_FACTOR[name](group[0]))
        yield ImportedPoint(point=measured, result={"seconds": seconds, "mode": "nccl-tests", "line": line})


def _row(test: _Test, line: int, cells: Sequence[str]) -> Mapping[str, str]:
    """Return the out-of-place half of a row, and what stands before it, by column.

    Operation and root are left blank by some versions for collectives without them.
    """
    columns = [column.lstrip("#") for column in test.columns]
    blank = {"redop", "root"} & set(columns)
    missing = len(columns) - len(cells)
    if missing and missing == len(blank):
        columns = [column for column in columns if column not in blank]
    if len(columns) != len(cells):
        raise test.error(
            f"the row has {len(cells)} cells, its header {len(columns)}",
            "Remove the line if the log was cut off there, or run the test again.",
            line=line,
        )
    row: dict[str, str] = {}
    for column, cell in zip(columns, cells, strict=True):
        row.setdefault(column, cell)
    return row


def _whole(test: _Test, line: int, text: str) -> int:
    if len(text) > 13:
        raise test.error(f"size {text[:40]} is more than any collective moves", "Correct the row.", line=line)
    if not text.isdecimal():
        raise test.error(f"size {text} is no number of bytes", "Correct the row.", line=line)
    return int(text)


def _seconds(test: _Test, line: int, row: Mapping[str, str], num_bytes: int, bus_factor: float) -> float:
    """Return the time of a row, once its bandwidths agree with it."""
    figures = {}
    for name in _FIGURES:
        try:
            figures[name] = float(row[name])
        except (KeyError, ValueError):
            figures[name] = math.nan
        if not 0 <= figures[name] < _LARGEST:
            raise test.error(f"{name} {row.get(name, '')[:40]!r} is no number from 0", "Correct the row.", line=line)
    seconds = figures["time"] * 1e-6
    if seconds <= 0:
        raise test.error("the time is 0", "Remove the row: nothing was timed.", line=line)
    algbw = num_bytes / seconds / 1e9
    if abs(algbw - figures["algbw"]) > _DIGIT + _SLACK * algbw:
        raise test.error(
            f"{num_bytes} bytes in {row['time']} us are {algbw:.2f} GB/s, and algbw says {row['algbw']}",
            "Times are microseconds and bandwidths 1e9 bytes a second: give the log as the test printed it.",
            line=line,
        )
    busbw = bus_factor * algbw
    if abs(busbw - figures["busbw"]) > 2 * _DIGIT + _SLACK * busbw:
        raise test.error(
            f"busbw is {row['busbw']}, and of this collective and so many ranks it would be {busbw:.2f}",
            "The collective is another one, or ranks are missing: give the whole log, or say it with --collective.",
            line=line,
        )
    return seconds
