"""Whole layers beside the sum of their parts: no gap where there is none, and a planted one is named."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from planner.profiling.whole_layers import WholeLayer, whole_layers
from profiles.catalogue import load_preset
from profiles.measure.grid import default_points
from profiles.measure.journal import Journal
from profiles.measure.points import PHASES, Point, point
from profiles.recorded import read_recording
from tests.written_profiles import result_of, run_line, seconds_of

RUNNER = CliRunner()
CLUSTER = load_preset("dgx-h100").to_cluster()
SIZES = {"batch": 1, "tokens": 4096, "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "intermediate": 14336}


def products(**factors: float) -> list[tuple[Point, float]]:
    """Return every product of the layer with its time, by part times as long as the analytic model says."""
    shapes = [(4096, 6144, 4096), (4096, 4096, 4096), (4096, 28672, 4096), (4096, 4096, 14336)]
    found = []
    for m, n, k in shapes:
        for part, (rows, columns, depth) in (
            ("forward", (m, n, k)),
            ("grad_input", (m, k, n)),
            ("grad_weight", (n, k, m)),
        ):
            entry = point("gemm", dtype="bf16", part=part, batch=1, m=rows, n=columns, k=depth)
            found.append((entry, factors.get(part, 1.0) * seconds_of(entry, CLUSTER)))
    return found


def written(directory: Path, parts: list[tuple[Point, float]], layer: dict[str, float], **more: float) -> Path:
    """Write a profile of parts and of a layer with the seconds of its phases."""
    with Journal(directory, resume=True) as journal:
        journal.begin(run_line(CLUSTER))
        for entry, seconds in parts:
            journal.measured(entry, result_of(seconds))
        for phase, seconds in layer.items():
            result = {**result_of(seconds), **more}
            journal.measured(point("layer", dtype="bf16", phase=phase, **SIZES), result)
    return directory


def only(directory: Path) -> WholeLayer:
    (found,) = whole_layers(read_recording(directory), None)
    return found


def test_a_layer_that_takes_what_its_parts_take_has_no_gap(tmp_path: Path) -> None:
    first = only(written(tmp_path / "first", products(), dict.fromkeys(PHASES, 1.0)))
    assert set(first.parts_seconds) == set(PHASES)
    again = only(written(tmp_path / "again", products(), first.parts_seconds, peak_bytes=first.parts_bytes))
    assert again.seconds_off == pytest.approx(0)
    assert (again.bytes_off, again.gaps) == (0, ())


def test_the_parts_are_the_profiles_own(tmp_path: Path) -> None:
    once = only(written(tmp_path / "once", products(), {"forward": 1.0, "backward": 1.0}))
    twice = only(written(tmp_path / "twice", products(forward=2.0), {"forward": 1.0, "backward": 1.0}))
    forward = sum(seconds for entry, seconds in products() if entry.word("part") == "forward")
    assert twice.parts_seconds["forward"] > once.parts_seconds["forward"] + 0.4 * forward
    assert forward < once.parts_seconds["forward"] < 2 * forward


def test_a_gap_in_time_and_in_memory_is_a_finding_of_check(tmp_path: Path) -> None:
    grid = default_points(["gemm"], dtypes=["bf16"], world_size=1, per_node=1)
    parts = [(entry, seconds_of(entry, CLUSTER)) for entry in grid]
    sound = only(written(tmp_path / "first", parts, dict.fromkeys(PHASES, 1.0)))
    whole, peak = sound.parts_seconds, sound.parts_bytes
    good = written(tmp_path / "good", parts, whole, peak_bytes=peak)
    assert RUNNER.invoke(app, ["profile", "check", str(good)]).exit_code == 0
    slow = {phase: 1.1 * seconds for phase, seconds in whole.items()}
    bad = written(tmp_path / "bad", parts, slow, peak_bytes=int(1.06 * peak))
    result = RUNNER.invoke(app, ["profile", "check", str(bad)])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert "  A gap in time and memory." in lines
    assert "  A gap is more than 8.0 % of the time, 5.0 % of the peak." in lines
    (together,) = (line for line in lines if line.split()[:1] == ["together"])
    assert together.endswith("-9.1 %")
    document = json.loads(RUNNER.invoke(app, ["profile", "check", str(bad), "--format", "json"]).stdout)
    (layer,) = document["layers"]
    assert layer["gaps"] == ["time", "memory"]
    assert layer["bytes_off"] == pytest.approx(1 / 1.06 - 1, abs=1e-6)


def test_a_layer_of_one_phase_without_a_peak_is_told_as_far_as_it_goes(tmp_path: Path) -> None:
    found = only(written(tmp_path, products(), {"backward": 1.0}))
    assert set(found.parts_seconds) == {"backward"}
    assert (found.measured_bytes, found.bytes_off) == (None, None)


def test_the_ledger_counts_a_layer_as_it_counts_llamas(tmp_path: Path) -> None:
    """Weights and gradients of 218,112,000 elements in bf16; the rest are activations and temporaries."""
    found = only(written(tmp_path, products(), {"forward": 1.0}))
    hidden, kv, intermediate, tokens = 4096, 1024, 14336, 4096
    weights = hidden * (2 * hidden + 2 * kv + 3 * intermediate) + 2 * hidden
    assert weights == 218_112_000
    saved = 2 * tokens * (6 * hidden + 2 * kv + 3 * intermediate) + 4 * 32 * tokens
    temporaries = found.parts_bytes - 4 * weights - saved
    assert 0 < temporaries < 2 * tokens * 4 * intermediate
