"""Text for people: units with fixed decimals, and blocks that print as tables on a terminal, plain in a pipe.

Commands build blocks; `as_text` aligns them without any decoration, `as_rich` hands them to Rich. Both say the same.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from planner.units import GIB

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table as RichTable

HANGING_INDENT = "  "
GAP = 3
"""Characters between two columns on a terminal."""
NARROWEST = 24
"""Characters below which folding a column of prose makes it unreadable."""


def gib(num_bytes: float) -> str:
    """Return bytes as GiB with two decimals."""
    return f"{num_bytes / GIB:,.2f} GiB"


def duration(days: float) -> str:
    """Return days in the unit in which they read well: "12.3 days", "4.6 hours", "0.8 minutes"."""
    if days >= 1:
        return f"{days:,.1f} days"
    hours = days * 24
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.2g} minutes"


def signed_gib(num_bytes: float) -> str:
    """Return a change in bytes as GiB with its sign."""
    return f"{_signed(num_bytes / GIB, 2)} GiB"


def milliseconds(seconds: float) -> str:
    """Return seconds as ms with one decimal."""
    return f"{seconds * 1e3:,.1f} ms"


def energy(joules: float) -> str:
    """Return an energy in kWh, from a thousand of them in MWh: "28.8 kWh", "1,234.5 MWh"."""
    kilowatt_hours = joules / 3.6e6
    return f"{kilowatt_hours:,.1f} kWh" if kilowatt_hours < 1000 else f"{kilowatt_hours / 1000:,.1f} MWh"


def signed_milliseconds(seconds: float) -> str:
    """Return a change in seconds as ms with its sign."""
    return f"{_signed(seconds * 1e3, 1)} ms"


def percent(fraction: float) -> str:
    """Return a fraction as percent with one decimal."""
    return f"{fraction * 100:z.1f} %"


def sources_in_words(fractions: Mapping[str, float]) -> str:
    """Return how much comes from where, best source first: "61.0 % measured, 39.0 % analytic"."""
    from profiles.estimate import Source

    return ", ".join(f"{percent(fractions[source])} {source}" for source in Source if fractions.get(source))


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
    """One column of a table.

    Args:
        header: Its title.
        right: It holds figures, which stand to the right.
        whole: It holds names, which are never folded; the first column always does.
        spare: On a narrow terminal it is left out, the lowest number first; 0 stays.
    """

    header: str
    right: bool = False
    whole: bool = False
    spare: int = 0


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


def columns(*headers: str, whole: Sequence[str] = (), spare: Sequence[str] = ()) -> tuple[Column, ...]:
    """Return columns from their headers.

    Args:
        headers: Titles; a leading ">" sets the column to the right.
        whole: Titles of columns that hold names.
        spare: Titles of columns that a narrow terminal does without, the first to go first.
    """
    titles = [(header.removeprefix(">"), header.startswith(">")) for header in headers]
    return tuple(
        Column(
            header=title,
            right=right,
            whole=right or index == 0 or title in whole,
            spare=spare.index(title) + 1 if title in spare else 0,
        )
        for index, (title, right) in enumerate(titles)
    )


_BETWEEN_PHRASES = "; "


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """Long texts, such as citations, taken out of a table.

    Args:
        marks: The mark that stands for each text in the table, equal texts sharing one.
        notes: Each distinct text once, behind its mark, without what a note before it has said.
    """

    marks: tuple[str, ...]
    notes: tuple[Line, ...]


def numbered(texts: Sequence[str]) -> Numbered:
    """Return a mark for each text, "[1]", "[2]" and so on, and the texts as notes.

    A source is phrases with semicolons between them, and many sources end with the same ones. What a note has said
    already it does not say again, and what an earlier one has said it points to; JSON has every text in full.
    """
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts), start=1)}
    said: dict[str, int] = {}
    notes = []
    for text, number in numbers.items():
        phrases = dict.fromkeys(text.split(_BETWEEN_PHRASES))
        earlier = sorted({said[phrase] for phrase in phrases if phrase in said})
        own = [phrase for phrase in phrases if phrase not in said]
        if earlier:
            marks = " and ".join(f"[{other}]" for other in earlier)
            own.append(f"the rest as in {marks}" if own else f"as in {marks}")
        notes.append(Line(f"  [{number}] {_BETWEEN_PHRASES.join(own)}"))
        said |= dict.fromkeys((phrase for phrase in phrases if phrase not in said), number)
    return Numbered(marks=tuple(f"[{numbers[text]}]" for text in texts), notes=tuple(notes))


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
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        for block in blocks:
            match block:
                case Line(text=text, style=style):
                    console.print(Text(hanging(text, width=console.width), style=style.value))
                case Item(text=text):
                    grid = RichTable.grid(padding=(0, 1))
                    grid.add_row(Text("  -"), Text(text))
                    console.print(grid)
                case Blank():
                    console.print()
                case Facts(pairs=pairs):
                    grid = RichTable.grid(padding=(0, 2))
                    grid.add_column(no_wrap=True)
                    grid.add_column(overflow="fold")
                    for name, value in pairs:
                        grid.add_row(Text(f"  {name}", style="dim"), Text(value))
                    console.print(grid)
                case Table() as table:
                    shown = shown_columns(table, width=console.width)
                    console.print(_rich_table(table, shown, width=console.width))
                    left_out = [column.header for index, column in enumerate(table.columns) if index not in shown]
                    if left_out:
                        remark = f"  Left out to fit {console.width} columns: {', '.join(left_out)}."
                        console.print(Text(hanging(remark, width=console.width), style=Style.QUIET.value))
    return capture.get()


def hanging(text: str, *, width: int) -> str:
    """Return one line folded to `width` between words, its continuations indented further than its start."""
    import textwrap

    indent = text[: len(text) - len(text.lstrip())]
    lines = textwrap.wrap(
        text.lstrip(),
        width,
        initial_indent=indent,
        subsequent_indent=indent + HANGING_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


def shown_columns(table: Table, *, width: int) -> tuple[int, ...]:
    """Return the columns that a terminal of this width has room for, the spare ones left out as far as needed."""
    shown = list(range(len(table.columns)))
    spare = sorted((index for index in shown if table.columns[index].spare), key=lambda i: table.columns[i].spare)
    while spare and _least_width(table, shown) > width:
        shown.remove(spare.pop(0))
    return tuple(shown)


def _least_width(table: Table, shown: Sequence[int]) -> int:
    """Return the fewest characters in which these columns of a table can be read beside one another."""
    return sum(_narrowest(table, index) + GAP for index in shown)


def _narrowest(table: Table, index: int) -> int:
    """Return the fewest characters in which a column can be read."""
    column = table.columns[index]
    widest = max(len(cell) for cell in (column.header, *(row[index] for row in table.rows)))
    return widest if column.whole else min(widest, max(NARROWEST, len(column.header)))


def _rich_table(table: Table, shown: Sequence[int], *, width: int) -> "RichTable":
    """Return a table as Rich draws it: where its whole columns have no room, all but the first are folded, none cut."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    fits = _least_width(table, shown) <= width
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=True)
    for column in (table.columns[index] for index in shown):
        side: JustifyMethod = "right" if column.right else "left"
        whole = column.whole and (fits or column is table.columns[0])
        drawn.add_column(Text(column.header), justify=side, no_wrap=whole, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(row[index]) for index in shown))
    return drawn
