"""Profiles on disk: equal profiles are equal bytes, and a file that is wrong says where."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from profiles.errors import ProfileFileError
from profiles.store import read_profile, shipped_devices, shipped_profile
from profiles.tables import SPECS, TableKind
from tests.unit.profiles.profile_files import METADATA, TABLES, gemm_row, write_profile


def test_a_profile_that_was_written_is_read_back(tmp_path: Path) -> None:
    write_profile(tmp_path, METADATA, TABLES)
    profile = read_profile(tmp_path)
    assert profile.metadata == METADATA
    for kind in TableKind:
        assert set(profile.rows(kind)) == set(TABLES.get(kind, ()))


def test_equal_profiles_are_equal_bytes_in_whatever_order_their_rows_come(tmp_path: Path) -> None:
    write_profile(tmp_path / "one", METADATA, TABLES)
    one = read_profile(tmp_path / "one")
    tables = {kind: tuple(reversed(one.rows(kind))) for kind in TABLES}
    origins = dict(reversed(list(one.metadata.origins.items())))
    files = write_profile(tmp_path / "two", replace(one.metadata, origins=origins), tables)
    assert [file.name for file in files] == ["gemm.csv", "collectives.csv", "profile.json"]
    for file in files:
        assert file.read_bytes() == (tmp_path / "one" / file.name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(file.name for file in files)


@pytest.mark.parametrize("device", shipped_devices())
def test_shipped_profiles_are_as_they_would_be_written(device: str, tmp_path: Path) -> None:
    profile = shipped_profile(device)
    assert profile is not None
    assert profile.metadata.device == device
    tables = {kind: profile.rows(kind) for kind in TableKind}
    assert all(tables.values())
    for file in write_profile(tmp_path, profile.metadata, tables):
        assert file.read_bytes() == (Path(profile.name) / file.name).read_bytes()


@pytest.mark.parametrize("device", shipped_devices())
def test_every_shipped_row_has_a_source_and_a_licence_that_lets_it_be_passed_on(device: str) -> None:
    profile = shipped_profile(device)
    assert profile is not None
    assert {origin.licence for origin in profile.metadata.origins.values()} == {"Apache-2.0"}
    assert all(origin.source for origin in profile.metadata.origins.values())


@pytest.mark.parametrize("device", shipped_devices())
def test_every_shipped_row_can_be_priced(device: str) -> None:
    profile = shipped_profile(device)
    assert profile is not None
    for kind, spec in SPECS.items():
        if spec.operation is not None:
            for row in profile.rows(kind):
                spec.operation(row.shape)


HEADER = "dtype,m,n,k,latency_us,origin\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the columns are missing, not dtype, m, n, k, latency_us, origin"),
        ("dtype,m,n,latency_us,origin\n", 1, "the columns are dtype, m, n, latency_us, origin, not"),
        (HEADER + "bfloat16,1,2,3,4.5\n", 2, "the row has 5 cells, the header 6"),
        (HEADER + "bfloat16,1,2,3,4.5,ours\nbfloat16,1,-2,3,4.5,ours\n", 3, "n = '-2' is no positive whole number"),
        (HEADER + "bfloat16,1,2,3.5,4.5,ours\n", 2, "k = '3.5' is no positive whole number"),
        (HEADER + f"bfloat16,1,2,{10**16},4.5,ours\n", 2, "is no positive whole number"),
        (HEADER + "int3,1,2,3,4.5,ours\n", 2, "format 'int3' is not one of"),
        (HEADER + "bfloat16,1,2,3,0,ours\n", 2, "latency_us = '0' is no time in microseconds above 0"),
        (HEADER + "bfloat16,1,2,3,nan,ours\n", 2, "latency_us = 'nan' is no time in microseconds above 0"),
        (HEADER + "bfloat16,1,2,3,4.5,nobody\n", 2, "origin 'nobody' is not one of profile.json: ours, theirs"),
        (HEADER + 'bfloat16,1,2,3,"4.5"x,ours\n', 2, "expected after '\"'"),
    ],
)
def test_a_table_that_is_wrong_says_where(text: str, line: int, message: str, tmp_path: Path) -> None:
    write_profile(tmp_path, METADATA, {})
    file = tmp_path / "gemm.csv"
    file.write_text(text)
    with pytest.raises(ProfileFileError) as raised:
        read_profile(tmp_path).rows(TableKind.GEMM)
    assert (raised.value.file, raised.value.line) == (str(file), line)
    assert message in raised.value.message
    assert str(raised.value).startswith(f"{file}:{line}: ")
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "this is not JSON"),
        ("[]", "the document: Input should be a valid dictionary"),
        (json.dumps({"schema_version": 2}), "schema_version: Input should be 1"),
        (json.dumps({"schema_version": 1, "device": "x", "measured": "", "origins": {}}), "origins: Dictionary"),
        (
            json.dumps({"schema_version": 1, "device": "x", "measured": "", "origins": {"a": {"source": "b", "c": 1}}}),
            "origins.a.c: Extra inputs are not permitted",
        ),
    ],
)
def test_metadata_that_is_wrong_says_where(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(content)
    with pytest.raises(ProfileFileError) as raised:
        read_profile(tmp_path)
    assert raised.value.file == str(tmp_path / "profile.json")
    assert message in raised.value.message


def test_a_directory_without_a_profile_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ProfileFileError, match="there is no such file"):
        read_profile(tmp_path / "nowhere")
    (tmp_path / "profile.json").write_bytes(b"\xff")
    with pytest.raises(ProfileFileError, match="it is not UTF-8"):
        read_profile(tmp_path)


def test_a_row_of_nobody_is_not_written(tmp_path: Path) -> None:
    row = replace(gemm_row(1, 2, 3, 4.0), implementation=replace(TABLES[TableKind.GEMM][0].implementation, version="2"))
    with pytest.raises(ValueError, match=r"ours 2 bench is none of the profile's origins"):
        write_profile(tmp_path, METADATA, {TableKind.GEMM: [row]})
