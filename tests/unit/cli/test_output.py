"""Files appear all at once or not at all; other people's files stay."""

import os
from pathlib import Path

import pytest

from cli.output import Stopwatch, check_writable, wants_progress, write_file, write_files
from planner.errors import InputError

FILES = {"plan.json": "{}\n", "train.sh": "#!/bin/bash\n", "slurm/train.sbatch": "#!/bin/bash\n"}


def contents(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_a_new_directory_holds_exactly_the_files(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    assert write_files(out, FILES, force=False) == tuple(out / name for name in FILES)
    assert contents(tmp_path / "a") == {f"run/{name}": text for name, text in FILES.items()}


def test_scripts_may_be_run_and_data_may_not(tmp_path: Path) -> None:
    write_files(tmp_path / "run", FILES, force=False)
    assert os.access(tmp_path / "run" / "train.sh", os.X_OK)
    assert not (tmp_path / "run" / "plan.json").stat().st_mode & 0o111


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_files(tmp_path, FILES, force=False)
    write_files(tmp_path, {**FILES, "plan.json": "new\n"}, force=True)
    assert contents(tmp_path) == {**FILES, "plan.json": "new\n", "notes.txt": "mine"}


def test_existing_files_are_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("old")
    with pytest.raises(InputError) as caught:
        write_files(tmp_path, FILES, force=False)
    assert str(caught.value) == (
        f"{tmp_path}: --out: There is already plan.json.\n"
        "Name another directory, or overwrite these files with --force; other files there are left alone."
    )
    assert contents(tmp_path) == {"plan.json": "old"}


def test_a_file_is_no_place_for_files(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match=r"This is a file; files are written into a directory\."):
        check_writable(tmp_path / "run", ("plan.json",), force=True)


def test_a_place_below_a_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        check_writable(tmp_path / "file" / "run", ("plan.json",), force=False)
    assert str(caught.value) == (
        f"{tmp_path / 'file' / 'run'}: --out: Nothing can be written into {tmp_path / 'file'}.\n"
        "Name a directory that you may write to."
    )


def test_a_directory_in_the_way_is_refused_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(InputError, match=r"A directory is in the way of plan\.json\."):
        write_files(tmp_path, FILES, force=True)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_is_left_behind_when_a_file_cannot_be_written(tmp_path: Path, *, exists: bool) -> None:
    out = tmp_path / "run"
    if exists:
        write_files(out, {"train.sh": "#!/bin/sh\n"}, force=False)
    before = contents(tmp_path)
    unwritable = {**FILES, "n" * 300: "a name longer than any file system takes"}
    with pytest.raises(InputError, match=r"The files cannot be written: File name too long\."):
        write_files(out, unwritable, force=True)
    assert contents(tmp_path) == before
    assert out.exists() is exists


def test_a_single_file_is_not_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    write_file(path, "one\n", force=False)
    with pytest.raises(InputError) as caught:
        write_file(path, "two\n", force=False)
    assert str(caught.value) == (
        f"{path}: There is already such a file.\nName another file, or overwrite it with --force."
    )
    assert path.read_text() == "one\n"
    write_file(path, "two\n", force=True)
    assert contents(tmp_path) == {"spec.yaml": "two\n"}


def test_a_single_file_needs_its_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The file cannot be written: No such file or directory\."):
        write_file(tmp_path / "none" / "spec.yaml", "", force=False)


def test_progress_needs_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert not wants_progress()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert wants_progress()
    monkeypatch.setenv("CI", "true")
    assert not wants_progress()


def test_laps_add_up_to_the_total() -> None:
    stopwatch = Stopwatch()
    stopwatch.lap("search")
    stopwatch.lap("print")
    names = [line.split()[0] for line in stopwatch.lines()]
    assert names == ["search", "print", "total"]
