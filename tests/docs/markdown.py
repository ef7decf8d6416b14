"""Markdown of the generated parts of `docs/`: cells that hold what they are given, tables, one form for numbers."""

import re
from collections.abc import Iterable, Sequence

MADE = "<!-- Made by `pytest tests/docs --update-golden`; changes belong where it comes from. -->"

_CODE = re.compile(r"(`[^`]*`)")


def plain(text: str) -> str:
    """Return text as Markdown that shows it as it is; code between backticks stays code."""
    parts = _CODE.split(text)
    return "".join(part if part.startswith("`") else re.sub(r"([<*\[\]])", r"\\\1", part) for part in parts)


def code(text: str) -> str:
    """Return text as code."""
    return f"`{text}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; bars within cells are escaped, in code too, as tables ask for."""
    listed = [head, *rows]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in listed]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def number(value: float) -> str:
    """Return a number to six digits, or whole: thousands apart then, tiny ones as powers of ten."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.6g}"


def fenced(kind: str, lines: Iterable[str]) -> list[str]:
    """Return a block of code."""
    return [f"```{kind}", *lines, "```"]
