"""Files of measurements are read whole or refused with their place."""

from pathlib import Path

import pytest

from planner.accuracy.measurements import COLUMNS, Kind, read_measurements
from planner.errors import InputError
from tests.unit.planner.accuracy.rows import run_row


def file_of(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("kind", Kind)
def test_a_kind_is_recognised_by_its_columns_in_any_order(kind: Kind, tmp_path: Path) -> None:
    names = sorted(COLUMNS[kind], reverse=True)
    path = file_of(tmp_path, ",".join([*names, "more"]) + "\n" + ",".join("1" for _ in range(len(names) + 1)) + "\n")
    found = read_measurements(path)
    assert (found.kind, len(found.rows)) == (kind, 1)
    assert (found.rows[0].id, found.rows[0].line) == ("0", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", ":1: The columns are those of no kind of measurement."),
        ("", ":1: The columns are those of no kind of measurement."),
        ("system,dtype,m,n,k,latency_us,m\n", ":1: The column m occurs twice."),
        ("system,dtype,m,n,k,latency_us\nh100,bfloat16,1,2\n", ":2: The row has 4 cells, the header 6."),
        ('system,dtype,m,n,k,latency_us\nh100,"bf\n', "This is not CSV"),
        (b"system,dtype,m,n,k,latency_us\n\xff\xfe,1,2,3,4,5\n", "This is not CSV"),
    ],
)
def test_what_is_no_file_of_measurements_is_refused_with_its_place(
    text: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read_measurements(file_of(tmp_path, text))
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv.*cannot be read"):
        read_measurements(tmp_path / "nowhere.csv")


def test_cells_are_numbers_or_say_why_not() -> None:
    row = run_row(tp="8.0", pp="", micro_batch="1.5", vpp="x")
    assert (row.count("tp"), row.count("pp"), row.number("micro_batch")) == (8, None, 1.5)
    for read, message in (
        (lambda: row.count("micro_batch"), "micro_batch = '1.5' is no positive whole number"),
        (lambda: row.number("vpp"), "vpp = 'x' is no number"),
        (lambda: row.needed("pp"), "pp is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            read()
