"""Reads folders of measured operators as aiconfigurator lays them out: one table an operator, CSV or Parquet.

    gemm_perf                  gemm_dtype, m, n, k, latency
    context_attention_perf     attn_dtype, batch_size, isl, num_heads, num_key_value_heads, head_dim, window_size,
                               latency
    generation_attention_perf  the same, with step: isl is 1 and a token sees step + 1 keys
    custom_allreduce_perf      allreduce_dtype, num_gpus, message_size, latency
    nccl_perf                  op_name, nccl_dtype, num_gpus, message_size, latency

Latency is in milliseconds, message_size in elements, not in bytes. Of all_reduce it is the buffer. Of the other
collectives of nccl_perf it is not said whether it is the whole or one rank's part, so the table's own times say it: of
as large a message on as many ranks p, gathering, scattering or exchanging the whole takes half as long as reducing it
everywhere, up to as long where a switch adds; of p times as much it takes p / 2 times as long or more. Where the
largest messages on four ranks and more do not say it, or not all the same, these rows are left out. Other tables
measure no single operation of a plan (whole expert layers), or are in microseconds (exchanges between experts), and are
left out.

Version folders are often copies of one another, and files hold the same row twice: a file with the content of an
earlier one is left out, and so is a row with the point and the time of an earlier one. What is left out is counted by
reason.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from profiles.errors import ProfileFileError
from profiles.imports.imported import ImportedPoint, ImportedRun, sha256_of
from profiles.imports.nccl_tests import Said
from profiles.measure.points import Point, point

SUFFIXES = (".csv", ".txt", ".parquet")
FORMATS = MappingProxyType({"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "fp8": "fp8"})
WIDTHS = MappingProxyType({"bfloat16": 2, "float16": 2, "half": 2, "bf16": 2})
LARGEST_MS = 1e7

Row = Mapping[str, str]

COLLECTIVES = MappingProxyType(
    {
        "all_gather": "all_gather",
        "reduce_scatter": "reduce_scatter",
        "alltoall": "all_to_all",
        "all_to_all": "all_to_all",
    }
)
"""Collectives beside all_reduce, by the names that tables have for them."""

LEAST_TELLING_BYTES = 16 << 20
"""Of smaller messages times are latencies, which tell nothing of sizes."""

LEAST_TELLING_RANKS = 4
"""On two ranks a part and the whole differ by too little."""

UNCLEAR = 1.15
"""A ratio of times within this factor of the middle says nothing."""


class _LeftOut(Exception):  # noqa: N818 - an answer, not an error
    """A row that is no point, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """One file: its rows with their numbers, and what names its content."""

    path: Path
    stem: str
    rows: tuple[tuple[int, Row], ...]
    sha256: str


@dataclass(slots=True, kw_only=True)
class Tables:
    """What a folder holds.

    Args:
        runs: A run for each table and software.
        left_out: What was not taken, with how often.
    """

    runs: list[ImportedRun] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def read_tables(folder: Path, *, said: Said) -> Tables:
    """Return the tables in a folder and all below it.

    Raises:
        ProfileFileError: There is none, a row cannot be read, or it leaves open what was measured.
    """
    found = Tables()
    seen_files: set[str] = set()
    paths = sorted(path for path in folder.rglob("*_perf.*") if path.suffix in SUFFIXES and path.is_file())
    if not paths:
        raise _refused(folder, None, "there are no tables of operators in it", "Give a folder with gemm_perf and such.")
    for path in paths:
        stem = path.name.removesuffix(path.suffix)
        if stem not in (*_READERS, NCCL):
            found.left_out[f"{stem}: no single operation of a plan"] += 1
            continue
        rows = tuple(_rows(path))
        digest = sha256_of("\n".join(",".join(f"{key}={row[key]}" for key in sorted(row)) for _, row in rows))
        if digest in seen_files:
            found.left_out[f"{stem}: a copy of another file"] += 1
            continue
        seen_files.add(digest)
        _take(found, _Table(path=path, stem=stem, rows=rows, sha256=digest), said)
    if not found.runs:
        told = "; ".join(f"{reason}, {count} times" for reason, count in sorted(found.left_out.items()))
        raise _refused(folder, None, f"no row of it can be used: {told}", "Give tables of 16-bit or fp8 operators.")
    return found


def _refused(path: Path, line: int | None, message: str, remedy: str) -> ProfileFileError:
    return ProfileFileError(file=str(path), line=line, message=message, remedy=remedy)


def _take(found: Tables, table: _Table, said: Said) -> None:
    """Add one table."""
    runs: dict[tuple[str, str, str], list[ImportedPoint]] = {}
    seen: set[tuple[Point, float]] = set()
    path, stem, ranks = table.path, table.stem, 1
    read = _nccl(table.rows) if stem == NCCL else _READERS[stem]
    for line, row in table.rows:
        try:
            seconds = _latency(row) * 1e-3
            measured = read(row, said)
        except _LeftOut as reason:
            found.left_out[f"{stem}: {reason}"] += 1
            continue
        except (KeyError, ValueError) as error:
            told = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise _refused(path, line, told, "Correct the row, or leave the table out.") from None
        if (measured, seconds) in seen:
            found.left_out[f"{stem}: the same row again"] += 1
            continue
        seen.add((measured, seconds))
        if measured.suite == "collectives":
            ranks = max(ranks, measured.size("size"))
        key = (row.get("framework", ""), row.get("version", ""), row.get("device", "") or said.called)
        result = {"seconds": seconds, "mode": "table", "kernel": row.get("kernel_source", ""), "line": line}
        runs.setdefault(key, []).append(ImportedPoint(point=measured, result=result))
    for (framework, version, device), points in sorted(runs.items()):
        if not device:
            raise _refused(path, None, "the table does not name the GPU", "Say it with --called.")
        found.runs.append(
            ImportedRun(
                file=str(path),
                line=1,
                sha256=table.sha256,
                format="operator tables",
                device=device,
                world_size=ranks,
                gpus_per_node=said.gpus_per_node or 1,
                software={framework or "unnamed": version},
                backend="",
                host="",
                points=tuple(points),
            )
        )


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a table with their numbers, as texts.

    Raises:
        ProfileFileError: It cannot be read.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(path, None, f"the file cannot be read: {error}", "Give a table as CSV.") from None
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next(reader, [])
        for cells in reader:
            if len(cells) != len(header):
                raise ValueError(f"the row has {len(cells)} cells, the header {len(header)}")  # noqa: TRY301
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except (ValueError, csv.Error) as error:
        raise _refused(path, max(1, reader.line_num), str(error), "Correct the row, or leave it out.") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        from pyarrow import ArrowException  # noqa: PLC0415 - an optional and large dependency
        from pyarrow.parquet import read_table  # noqa: PLC0415
    except ImportError:
        raise _refused(
            path, None, "reading Parquet needs pyarrow", "Install it: pip install 'shardwright[parquet]'."
        ) from None
    try:
        rows = read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise _refused(path, None, f"this is no Parquet: {error}", "Give the table whole.") from None
    for number, row in enumerate(rows, start=1):
        yield number, {str(key): "" if value is None else str(value) for key, value in row.items()}


def _latency(row: Row) -> float:
    try:
        value = float(row["latency"])
    except ValueError:
        value = math.nan
    if not 0 < value < LARGEST_MS:
        raise ValueError(f"latency {row['latency'][:40]!r} is no time in milliseconds above 0")
    return value


def _whole(row: Row, name: str) -> int:
    text = row[name].removesuffix(".0")
    if not text.isascii() or not text.isdigit() or len(text) > 13:
        raise ValueError(f"{name} {row[name][:40]!r} is no whole number")
    return int(text)


def _format(row: Row, name: str) -> str:
    if row[name] not in FORMATS:
        raise _LeftOut(f"{name} {row[name]}")
    return FORMATS[row[name]]


def _gemm(row: Row, _: Said) -> Point:
    sizes = {name: _whole(row, name) for name in ("m", "n", "k")}
    return point("gemm", dtype=_format(row, "gemm_dtype"), part="forward", batch=1, **sizes)


def _attention(row: Row, *, phase: str) -> Point:
    heads, kv_heads, width = (_whole(row, name) for name in ("num_heads", "num_key_value_heads", "head_dim"))
    if kv_heads == 0:
        raise _LeftOut("num_key_value_heads 0, which is not said to mean anything")
    query = _whole(row, "isl")
    return point(
        "attention",
        dtype=_format(row, "attn_dtype"),
        phase=phase,
        mask="causal" if phase == "forward" else "full",
        batch=_whole(row, "batch_size"),
        query_len=query,
        kv_len=query if phase == "forward" else query + _whole(row, "step"),
        window=_whole(row, "window_size") if row.get("window_size") else 0,
        heads=heads,
        kv_heads=kv_heads,
        qk_dim=width,
        v_dim=width,
    )


def _all_reduce(row: Row, said: Said, *, dtype: str) -> Point:
    if row[dtype] not in WIDTHS:
        raise _LeftOut(f"{dtype} {row[dtype]}")
    if said.gpus_per_node is None:
        raise ValueError("the table does not say how many GPUs a node has: say it with --gpus-per-node")
    size = _whole(row, "num_gpus")
    if size > said.gpus_per_node:
        raise _LeftOut(f"num_gpus {size}, more than a node's: how they are joined is not said")
    if size < 2:
        raise _LeftOut("a single GPU")
    return point(
        "collectives",
        kind="all_reduce",
        mode="eager",
        beside="alone",
        size=size,
        stride=1,
        bytes=_whole(row, "message_size") * WIDTHS[row[dtype]],
    )


def _nccl(rows: Sequence[tuple[int, Row]]) -> Callable[[Row, Said], Point]:
    """Return what reads the rows of one table of collectives."""
    told: dict[str, bool | None] = {}

    def read(row: Row, said: Said) -> Point:
        name = row["op_name"]
        if name == "all_reduce":
            return _all_reduce(row, said, dtype="nccl_dtype")
        if name not in COLLECTIVES:
            raise _LeftOut(f"op_name {name}")
        if name not in told:
            told[name] = _is_whole(name, rows)
        if told[name] is None:
            raise _LeftOut(f"op_name {name}: its times do not say whether message_size is a part or the whole")
        # Everything beside the collective's name and its bytes is as of an all_reduce.
        alike = _all_reduce(row, said, dtype="nccl_dtype").as_json()
        size, num_bytes = int(str(alike["size"])), int(str(alike["bytes"]))
        whole = num_bytes if told[name] else size * num_bytes
        values = {key: value for key, value in alike.items() if key != "suite"}
        return point("collectives", **{**values, "kind": COLLECTIVES[name], "bytes": whole})  # type: ignore[arg-type]

    return read


def _is_whole(name: str, rows: Sequence[tuple[int, Row]]) -> bool | None:
    """Return whether a collective's message_size is the whole; None where the table's times do not say it."""
    seconds: dict[str, dict[tuple[str, int, int], float]] = {"all_reduce": {}, name: {}}
    for _, row in rows:
        if row["op_name"] in seconds and row["nccl_dtype"] in WIDTHS:
            place = (row["nccl_dtype"], _whole(row, "num_gpus"), _whole(row, "message_size"))
            seconds[row["op_name"]][place] = _latency(row)
    largest: dict[tuple[str, int], int] = {}
    for dtype, ranks, size in seconds["all_reduce"].keys() & seconds[name].keys():
        if ranks >= LEAST_TELLING_RANKS and size * WIDTHS[dtype] >= LEAST_TELLING_BYTES:
            largest[dtype, ranks] = max(size, largest.get((dtype, ranks), 0))
    told = set()
    for (dtype, ranks), size in largest.items():
        ratio = seconds[name][dtype, ranks, size] / seconds["all_reduce"][dtype, ranks, size]
        beside_middle = ratio / math.sqrt(ranks / 2)
        told.add(beside_middle < 1 if not 1 / UNCLEAR < beside_middle < UNCLEAR else None)
    return told.pop() if len(told) == 1 else None


_READERS: Mapping[str, Callable[[Row, Said], Point]] = MappingProxyType(
    {
        "gemm_perf": _gemm,
        "context_attention_perf": lambda row, _: _attention(row, phase="forward"),
        "generation_attention_perf": lambda row, _: _attention(row, phase="decode"),
        "custom_allreduce_perf": lambda row, said: _all_reduce(row, said, dtype="allreduce_dtype"),
    }
)
"""Tables that are read row by row, by the stem of their files."""

NCCL = "nccl_perf"
