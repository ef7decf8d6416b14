"""Files of measurements: CSV, one measurement a row, the kind recognised by the columns."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path

from planner.errors import InputError, Location

MAX_ROWS = 1_000_000
"""Rows of a file: a choice; the largest shipped table has 15,000."""
LONGEST_SHOWN = 60
"""Characters of a cell that a message repeats, so that it stays on one line."""
LARGEST = 1 << 40
"""Largest whole number that a cell may hold; far above any size, small enough that products stay exact."""


class Kind(StrEnum):
    """What a file measures."""

    TRAINING = "training"
    GEMM = "gemm"
    ATTENTION_PREFILL = "attention-prefill"
    ATTENTION_DECODE = "attention-decode"
    MLA = "mla"
    MOE = "moe"
    MOE_EXCHANGE = "moe-alltoall"
    COLLECTIVES = "collectives"
    SERVING = "serving"


COLUMNS: Mapping[Kind, frozenset[str]] = {
    Kind.TRAINING: frozenset({"model", "hardware", "num_gpus", "seq_len", "tp", "pp", "micro_batch", "global_batch"}),
    Kind.SERVING: frozenset({"model", "hardware", "engine", "tp", "isl", "osl", "ttft_ms", "tpot_ms", "mode"}),
    Kind.GEMM: frozenset({"system", "dtype", "m", "n", "k", "latency_us"}),
    Kind.MLA: frozenset({"system", "mla_dtype", "num_heads", "batch_size", "latency_us"}),
    Kind.MOE_EXCHANGE: frozenset({"system", "comm_backend", "phase", "ep_size", "num_tokens", "latency_us"}),
    Kind.MOE: frozenset({"system", "moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "latency_us"}),
    Kind.ATTENTION_PREFILL: frozenset({"system", "attn_dtype", "batch_size", "isl", "num_kv_heads", "latency_us"}),
    Kind.ATTENTION_DECODE: frozenset({"system", "attn_dtype", "batch_size", "kv_len", "num_kv_heads", "latency_us"}),
    Kind.COLLECTIVES: frozenset({"system", "op", "num_gpus", "num_nodes", "bytes", "latency_us"}),
}
"""Columns that every file of a kind has; a file may have more. The first kind whose columns are all there counts."""


MEASURED_OF_RUNS: Mapping[str, str] = {
    "step_time_s": "seconds",
    "tokens_per_s_per_gpu": "tokens",
    "tflops_per_gpu": "teraflops a second",
    "peak_mem_gb": "GB",
}
"""Columns of training runs that say what was measured, and in which unit; a run without any has no error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement as it is written.

    Args:
        id: Its own name, or its number from 0 in a file without ids.
        line: Where it stands; 2 is the first line below the header.
        cells: Text by column, stripped; absent and empty cells are alike.
    """

    id: str
    line: int
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a cell's text; empty where it says nothing."""
        return self.cells.get(column, "")

    def quoted(self, column: str) -> str:
        """Return a cell's text as messages show it, shortened."""
        text = self.text(column)
        return repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}...")

    def number(self, column: str) -> float | None:
        """Return the number in a cell, or None where it says nothing.

        Raises:
            ValueError: The cell holds no number, or one that is negative or not finite.
        """
        text = self.text(column)
        if not text:
            return None
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"{column} = {self.quoted(column)} is no number") from None
        if not 0 <= number < math.inf:
            raise ValueError(f"{column} = {self.quoted(column)} is no finite number from 0 on")
        return number

    def figure(self, column: str) -> float | None:
        """Return the number in a cell, or None where it says nothing or something else."""
        try:
            return self.number(column)
        except ValueError:
            return None

    def count(self, column: str) -> int | None:
        """Return the positive whole number in a cell, written as 8 or 8.0, or None where it says nothing.

        Raises:
            ValueError: The cell holds no such number.
        """
        number = self.number(column)
        if number is None:
            return None
        if not 1 <= number <= LARGEST or number != int(number):
            raise ValueError(f"{column} = {self.quoted(column)} is no positive whole number")
        return int(number)

    def needed(self, column: str) -> int:
        """Return the positive whole number in a cell.

        Raises:
            ValueError: The cell is empty or holds no such number.
        """
        found = self.count(column)
        if found is None:
            raise ValueError(f"{column} is empty")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """One file.

    Args:
        file: Its path as it was given.
        kind: What it measures.
        rows: Its rows, in order.
    """

    file: str
    kind: Kind
    rows: tuple[Row, ...]


def misnamed_columns(rows: Sequence[Row]) -> Mapping[str, str]:
    """Return columns of training runs that nothing reads, each with the one that it is near and that no row has.

    A step time in `step_time_ms` would otherwise be passed over without a word.
    """
    there = dict.fromkeys(column for row in rows for column, text in row.cells.items() if text)
    missing = [column for column in MEASURED_OF_RUNS if column not in there]
    near = {column: get_close_matches(column.lower(), missing, n=1, cutoff=0.75) for column in there}
    return {column: found[0] for column, found in near.items() if found}


def read_measurements(path: Path) -> Measurements:
    """Return the measurements of a CSV file.

    Raises:
        InputError: There is no such file, it is no CSV, or its columns are those of no kind.
    """
    location = Location(file=str(path))
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            kind = _kind(header, path)
            rows = tuple(_row(number, reader.line_num, header, cells, path) for number, cells in enumerate(reader))
    except OSError as error:
        raise InputError(
            f"The file cannot be read: {error.strerror}.", location=location, hint="Give a CSV file of measurements."
        ) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"This is not CSV: {error}.", location=location, hint="Give a CSV file in UTF-8.") from None
    return Measurements(file=str(path), kind=kind, rows=rows)


def _kind(header: Sequence[str], path: Path) -> Kind:
    repeated = next((name for name in header if name and header.count(name) > 1), None)
    if repeated is not None:
        raise InputError(
            f"The column {repeated} occurs twice.", location=Location(file=str(path), line=1), hint="Keep one of them."
        )
    found = next((kind for kind, columns in COLUMNS.items() if columns <= set(header)), None)
    if found is None:
        raise InputError(
            "The columns are those of no kind of measurement.",
            location=Location(file=str(path), line=1),
            hint="\n".join(f"{kind} has {', '.join(sorted(columns))}" for kind, columns in COLUMNS.items()),
        )
    return found


def _row(number: int, line: int, header: Sequence[str], cells: Sequence[str], path: Path) -> Row:
    if len(cells) != len(header) or number >= MAX_ROWS:
        message = f"the row has {len(cells)} cells, the header {len(header)}"
        if number >= MAX_ROWS:
            message = f"more than {MAX_ROWS:,} rows"
        raise InputError(
            f"{message[0].upper()}{message[1:]}.",
            location=Location(file=str(path), line=line),
            hint="Give each row a cell for each column.",
        )
    filled = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    return Row(id=filled.get("id") or str(number), line=line, cells=filled)
