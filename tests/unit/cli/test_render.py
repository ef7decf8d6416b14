"""Units, and blocks as plain text."""

from collections import Counter

import pytest

from cli.render import (
    Blank,
    Facts,
    Item,
    Line,
    Style,
    Table,
    as_rich,
    as_text,
    columns,
    counted,
    duration,
    gib,
    milliseconds,
    numbered,
    percent,
    rate,
    shown_columns,
    signed_gib,
    signed_milliseconds,
    signed_percent,
)


def test_units_have_fixed_decimals() -> None:
    assert gib(5 * 2**29) == "2.50 GiB"
    assert gib(2048 * 2**30) == "2,048.00 GiB"
    assert signed_gib(-(2**30)) == "-1.00 GiB"
    assert milliseconds(12.3456) == "12,345.6 ms"
    assert signed_milliseconds(0.01) == "+10.0 ms"
    assert signed_milliseconds(-0.00001) == "+0.0 ms"
    assert percent(0.4567) == "45.7 %"
    assert signed_percent(0.05) == "+5.0 %"
    assert counted(1, "node") == "1 node"
    assert counted(2, "node") == "2 nodes"


@pytest.mark.parametrize(
    ("per_second", "text"),
    [
        (0.0, "0.00 B/s"),
        (999.0, "999 B/s"),
        (32e9, "32.0 GB/s"),
        (3.35e12, "3.35 TB/s"),
        (989.4e12, "989 TB/s"),
        (1.25e15, "1.25 PB/s"),
    ],
)
def test_rates_carry_a_prefix_and_three_digits(per_second: float, text: str) -> None:
    assert rate(per_second, "B/s") == text


def test_plain_text_aligns_and_decorates_nothing() -> None:
    blocks = (
        Line("Title", Style.HEADING),
        Blank(),
        Facts(pairs=(("a", "1"), ("longer", "2"))),
        Table(columns=columns("name", ">size"), rows=(("x", "1"), ("yy", "10"))),
        Item("said"),
    )
    assert as_text(blocks) == "Title\n\n  a       1\n  longer  2\n  name  size\n  x        1\n  yy      10\n  - said\n"


def test_plain_text_is_never_cut_off() -> None:
    long = "w" * 500
    assert long in as_text([Table(columns=columns("a", "b"), rows=((long, "x"),))])


def test_rich_takes_markup_in_names_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    blocks = (Line("[bold]x[/bold]"), Table(columns=columns("n"), rows=(("[red]y",),)), Item("[/]"))
    text = as_rich(blocks)
    assert "[bold]x[/bold]" in text
    assert "[red]y" in text
    assert "[/]" in text


def test_a_terminal_that_is_too_narrow_cuts_nothing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    cells = ("sequence_parallel", "gradient reduction, parameter gather", "selective (core_attn)")
    text = as_rich([Table(columns=columns("", ">before", ">after"), rows=(cells,))])
    letters = [letter for cell in cells for letter in cell if letter.isalnum()]
    shown = [letter for letter in text if letter.isalnum()]
    assert all(len(line) <= 40 for line in text.splitlines())
    assert Counter(letters) <= Counter(shown)


def test_narrow_terminals_do_without_the_spare_columns() -> None:
    header = columns("name", ">a", ">b", "prose", spare=("b", "a"))
    table = Table(columns=header, rows=(("n" * 10, "1" * 10, "2" * 10, "words " * 20),))
    assert shown_columns(table, width=80) == (0, 1, 2, 3)
    assert shown_columns(table, width=60) == (0, 1, 3)
    assert shown_columns(table, width=20) == (0, 3)


def test_equal_texts_share_a_number() -> None:
    found = numbered(["a", "b", "a"])
    assert found.marks == ("[1]", "[2]", "[1]")
    assert as_text(found.notes) == "  [1] a\n  [2] b\n"


def test_what_a_note_has_said_is_not_said_again() -> None:
    found = numbered(["a; fit", "b; fit; c; fit", "d; c; a", "a; c"])
    assert found.marks == ("[1]", "[2]", "[3]", "[4]")
    lines = as_text(found.notes).splitlines()
    assert lines == [
        "  [1] a; fit",
        "  [2] b; c; the rest as in [1]",
        "  [3] d; the rest as in [1] and [2]",
        "  [4] as in [1] and [2]",
    ]


@pytest.mark.parametrize(
    ("days", "text"),
    [(1234.5, "1,234.5 days"), (1.0, "1.0 days"), (0.5, "12.0 hours"), (0.01, "14 minutes"), (1e-4, "0.14 minutes")],
)
def test_short_runs_are_given_in_hours_or_minutes(days: float, text: str) -> None:
    assert duration(days) == text


def test_a_row_that_misses_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="every row of a table has one cell a column"):
        Table(columns=columns("a", "b"), rows=(("x",),))
