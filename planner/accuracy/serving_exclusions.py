"""Which rows of published serving runs a score leaves out, and why: data, printed with every score.

The reasons were inferred from the numbers; no source states them. Duplicates (the same configuration and the same time
between tokens) count once.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources

from planner.accuracy.measurements import Row

_CONFIGURATION = (
    *("model", "quant", "hardware", "num_gpus", "tp", "pp", "dp", "ep", "engine", "engine_version", "isl", "osl"),
    *("concurrency_or_batch", "mode"),
)


class Kind(StrEnum):
    """What an exclusion takes a row out of."""

    FAULTY = "faulty"
    """Every score."""
    SPECULATIVE = "speculative"
    """Every score but its own."""
    FIRST_TOKEN = "first-token"
    """The score of first tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """One reason to leave rows out.

    Args:
        name: What it is called.
        kind: What it takes rows out of.
        reason: What is wrong with them.
        any: Alternatives; each gives columns and the texts that a row has one of in each.
        but: Ids of rows that stay.
    """

    name: str
    kind: Kind
    reason: str
    any: tuple[Mapping[str, tuple[str, ...]], ...]
    but: tuple[str, ...]

    def takes(self, row: Row) -> bool:
        """Return whether it takes a row out."""
        return row.id not in self.but and any(_holds(where, row) for where in self.any)


def _holds(where: Mapping[str, tuple[str, ...]], row: Row) -> bool:
    for column, texts in where.items():
        if column == "id":
            if row.id not in texts:
                return False
        elif column == "ttft_above_ms":
            found = row.figure("ttft_ms")
            if found is None or found <= float(texts[0]):
                return False
        elif _plain(row.text(column)) not in texts:
            return False
    return True


def _plain(text: str) -> str:
    """Return a cell without the point of a whole number: "8.0" is "8"."""
    return text.removesuffix(".0")


@cache
def exclusions() -> tuple[Exclusion, ...]:
    """Return every exclusion that comes with the package."""
    file = resources.files("planner") / "data" / "accuracy" / "serving_exclusions.json"
    rules = json.loads(file.read_text(encoding="utf-8"))["rules"]
    return tuple(
        Exclusion(
            name=rule["name"],
            kind=Kind(rule["kind"]),
            reason=rule["reason"],
            any=tuple({column: tuple(texts) for column, texts in where.items()} for where in rule["any"]),
            but=tuple(rule["but"]),
        )
        for rule in rules
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorting:
    """Which rows count for what.

    Args:
        clean: Ids that count.
        speculative: Ids that count apart.
        no_first_token: Ids of clean rows whose first token does not count.
        taken: Rows that each exclusion takes out.
        duplicates: Rows that repeat another one.
    """

    clean: frozenset[str]
    speculative: frozenset[str]
    no_first_token: frozenset[str]
    taken: Mapping[str, int]
    duplicates: int


def sort_rows(rows: Sequence[Row]) -> Sorting:
    """Return which rows count for what."""
    kinds = {row.id: {rule.kind for rule in exclusions() if rule.takes(row)} for row in rows}
    taken = {rule.name: sum(rule.takes(row) for row in rows) for rule in exclusions()}
    counted = [row for row in rows if not kinds[row.id] & {Kind.FAULTY, Kind.SPECULATIVE}]
    guessed = [row for row in rows if Kind.SPECULATIVE in kinds[row.id]]
    repeated = _repeated(counted) | _repeated(guessed)
    clean = {row.id for row in counted} - repeated
    return Sorting(
        clean=frozenset(clean),
        speculative=frozenset({row.id for row in guessed} - repeated),
        no_first_token=frozenset(found for found in clean if Kind.FIRST_TOKEN in kinds[found]),
        taken=taken,
        duplicates=len(repeated),
    )


def _repeated(rows: Iterable[Row]) -> set[str]:
    """Return the ids of rows whose configuration and time between tokens an earlier row has."""
    seen: set[tuple[str, ...]] = set()
    found: set[str] = set()
    for row in rows:
        tpot = row.figure("tpot_ms")
        if tpot is None:
            continue
        key = (*(row.text(column) for column in _CONFIGURATION), f"{tpot:.2f}")
        if key in seen:
            found.add(row.id)
        seen.add(key)
    return found
