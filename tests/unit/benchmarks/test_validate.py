"""The benchmarks of `shardwright validate` say in JSON what they say in words."""

import json

import pytest

from benchmarks import damaged_files, startup


def test_startup_is_told_as_a_multiple_of_numpy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def seconds(command: list[str]) -> float:
        return 0.3 if "validate" in command else 0.2 if "import numpy" in command else 0.1

    monkeypatch.setattr(startup, "seconds", seconds)
    monkeypatch.setattr("sys.argv", ["startup", "--repeats", "1", "--format", "json"])
    startup.main()
    document = json.loads(capsys.readouterr().out)
    assert list(document["median_seconds"].values()) == [0.1, 0.2, 0.3]
    assert document["validate_over_numpy"] == pytest.approx(1.5)
    monkeypatch.setattr("sys.argv", ["startup", "--repeats", "1"])
    startup.main()
    assert capsys.readouterr().out.splitlines()[-1] == "validate over numpy: 1.50"


@pytest.mark.parametrize(("most_seconds", "code"), [(60.0, 0), (0.0, 1)])
def test_the_slowest_of_damaged_files_are_told_beside_themselves_undamaged(
    most_seconds: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(damaged_files, "MOST_SECONDS", most_seconds)
    monkeypatch.setattr("sys.argv", ["damaged_files", "--cases", "4", "--slowest", "2", "--format", "json"])
    with pytest.raises(SystemExit) as ended:
        damaged_files.main()
    assert ended.value.code == code
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == 4
    slow, slower = document["slowest"][1], document["slowest"][0]
    assert 0 < slow["cpu_seconds"] <= slower["cpu_seconds"]
    assert {one["name"] for one in document["slowest"]} <= {name for name, _ in damaged_files.SOURCES}
    assert all(one["undamaged_cpu_seconds"] > 0 for one in document["slowest"])
