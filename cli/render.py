"""Text for people: units with fixed decimals, and blocks that print as tables on a terminal, plain in a pipe.

Commands build blocks; `as_text` aligns them without any decoration, `as_rich` hands them to Rich. Both say the same.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

GIB = 2**30


def gib(num_bytes: float) -> str:
    """Return bytes as GiB with two decimals."""
    return f"{num_bytes / GIB:,.2f} GiB"


def signed_gib(num_bytes: float) -> str:
    """Return a change in bytes as GiB with its sign."""
    return f"{_signed(num_bytes / GIB, 2)} GiB"


def milliseconds(seconds: float) -> str:
    """Return seconds as ms with one decimal."""
    return f"{seconds * 1e3:,.1f} ms"


def signed_milliseconds(seconds: float) -> str:
    """Return a change in seconds as ms with its sign."""
    return f"{_signed(seconds * 1e3, 1)} ms"


def percent(fraction: float) -> str:
    """Return a fraction as percent with one decimal."""
    return f"{fraction * 100:.1f} %"


def signed_percent(fraction: float) -> str:
    """Return a change as percent with its sign."""
    return f"{_signed(fraction * 100, 1)} %"


def _signed(value: float, decimals: int) -> str:
    """Return a number with its sign; what rounds to zero has a plus."""
    return f"{round(value, decimals) + 0.0:+,.{decimals}f}"


def count(value: int) -> str:
    """Return a whole number with thousands separators."""
    return f"{value:,}"


def counted(value: int, one: str, many: str = "") -> str:
    """Return "1 node" or "8 nodes"."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def rate(per_second: float, unit: str) -> str:
    """Return a rate with an SI prefix and three significant digits: "989 TFLOP/s", "50.0 GB/s"."""
    exponent = max(0, min(5, math.floor(math.log10(per_second) / 3))) if per_second > 0 else 0
    scaled = per_second / 1000**exponent
    digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
    return f"{scaled:.{digits}f} {('', 'k', 'M', 'G', 'T', 'P')[exponent]}{unit}"


class Style(StrEnum):
    """How a line is set off on a terminal; plain text has no styles."""

    PLAIN = ""
    HEADING = "bold"
    GOOD = "green"
    BAD = "bold red"
    QUIET = "dim"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text."""

    text: str
    style: Style = Style.PLAIN


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a list."""

    text: str


@dataclass(frozen=True, slots=True)
class Blank:
    """An empty line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names and values in two columns."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table; figures stand to the right."""

    header: str
    right: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under a header."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        """Check that every row fills every column."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("every row of a table has one cell a column")


Block = Line | Item | Blank | Facts | Table


def section(title: str, *blocks: Block) -> tuple[Block, ...]:
    """Return blocks under a heading, set off by an empty line."""
    return (Blank(), Line(title, Style.HEADING), *blocks)


def columns(*headers: str) -> tuple[Column, ...]:
    """Return columns from their headers; a leading ">" sets the column to the right."""
    return tuple(Column(header=header.removeprefix(">"), right=header.startswith(">")) for header in headers)


def as_text(blocks: Iterable[Block]) -> str:
    """Return blocks as aligned text without decoration, whatever its width."""
    lines: list[str] = []
    for block in blocks:
        match block:
            case Line(text=text):
                lines.append(text)
            case Item(text=text):
                lines.append(f"  - {text}")
            case Blank():
                lines.append("")
            case Facts(pairs=pairs):
                lines += _aligned([(f"  {name}", value) for name, value in pairs], rights=(False, False))
            case Table(columns=header, rows=rows):
                titles = tuple(column.header for column in header)
                cells = [("  " + row[0], *row[1:]) for row in (titles, *rows)]
                lines += _aligned(cells, rights=tuple(column.right for column in header))
    return "\n".join(lines) + "\n"


def _aligned(rows: Sequence[Sequence[str]], *, rights: Sequence[bool]) -> list[str]:
    """Return rows with their cells padded to the width of their column."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rights))]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, rights, strict=True)
        ).rstrip()
        for row in rows
    ]


def as_rich(blocks: Iterable[Block]) -> str:
    """Return blocks as Rich draws them on the terminal at standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        for block in blocks:
            match block:
                case Line(text=text, style=style):
                    console.print(Text(text, style=style.value))
                case Item(text=text):
                    grid = RichTable.grid(padding=(0, 1))
                    grid.add_row(Text("  -"), Text(text))
                    console.print(grid)
                case Blank():
                    console.print()
                case Facts(pairs=pairs):
                    grid = RichTable.grid(padding=(0, 2))
                    for name, value in pairs:
                        grid.add_row(Text(f"  {name}", style="dim"), Text(value))
                    console.print(grid)
                case Table(columns=header, rows=rows):
                    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=True)
                    for column in header:
                        table.add_column(column.header, justify="right" if column.right else "left", overflow="fold")
                    for row in rows:
                        table.add_row(*(Text(cell) for cell in row))
                    console.print(table)
    return capture.get()
