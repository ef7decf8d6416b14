"""The collector itself, with torch on the CPU: alone, under torchrun, killed, and copied to where nothing else is."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from cli.profile_launchers import collector_files
from profiles.measure.grid import ON_CPU, default_points
from profiles.measure.journal import FILE, read_journal
from profiles.measure.points import COLUMNS, PHASES, Point, Wanted, point, request_text
from profiles.recorded import read_recording

pytestmark = pytest.mark.frameworks
pytest.importorskip("torch", reason="the collector measures with torch (extra: dev)")

ROOT = Path(__file__).parents[2]
SECONDS_PER_RUN = 600
"""Far above what a run takes; only a hang reaches it."""

KILLS = 20

SPEC = """\
schema: 1
model:
  architectures: [LlamaForCausalLM]
  model_type: llama
  hidden_size: 256
  intermediate_size: 512
  num_hidden_layers: 4
  num_attention_heads: 4
  num_key_value_heads: 2
  head_dim: 64
  vocab_size: 1024
  max_position_embeddings: 512
  tie_word_embeddings: false
cluster:
  gpu: {name: this-cpu, vendor: nvidia, architecture: ampere, compute_capability: "8.0", num_compute_units: 108,
    memory: 80GB, memory_bandwidth: 2000GB/s, dense_flops: {bf16: 312TFLOPS}, host_link: pcie4, tdp: 400W}
  gpus_per_node: 2
  nodes: 1
  host_ram: 512GB
workload: {kind: train, seq_len: 256, global_batch_size: 8, precision: bf16}
constraints: {micro_batch_size: 1, cp: 1}
"""
"""A small model on two CPU processes; a GPU's datasheet stands for what nothing was measured of."""


def environment(path: Path = ROOT) -> dict[str, str]:
    """Return the variables of a run: the code of a folder, one thread a process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHARDWRIGHT_")}
    return {**kept, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}


def run(words: list[str], *, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a Python command line, to its end."""
    return subprocess.run(
        [sys.executable, *words],
        env=environment(path),
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS_PER_RUN,
    )


def small(suite: str, *, ranks: int) -> list[Point]:
    """Return the smallest point of every kind of a suite."""
    grid = default_points(
        [suite], dtypes=["bf16", "fp32", "int8", "fp8"], world_size=ranks, per_node=ranks, shrink=ON_CPU
    )
    least: dict[tuple[str, ...], Point] = {}
    for entry in sorted(grid, key=lambda entry: entry.sizes):
        # Products in fp8 need multiples of 16.
        if entry.words[0] != "fp8" or entry.size("m") % 16 == 0:
            least.setdefault(entry.words, entry)
    return list(least.values())


def request(path: Path, points: list[Point]) -> Path:
    """Write a request of points."""
    path.write_text(request_text([Wanted(point=entry) for entry in points]))
    return path


ONLY_ON_A_GPU = {
    "only a GPU has graphs",
    "a CPU has no link to itself",
    "the allocator of a CPU cannot be asked",
    "a CPU has no queue and no graphs",
}


def test_two_processes_measure_every_suite(tmp_path: Path) -> None:
    points = [entry for suite in COLUMNS if suite != "layer" for entry in small(suite, ranks=2)]
    # A layer of the grid takes a busy CPU ten seconds.
    sizes = {"batch": 1, "tokens": 16, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 64}
    points += [point("layer", dtype="fp32", phase=phase, **sizes) for phase in PHASES]
    asked = request(tmp_path / "request.jsonl", points)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "profiles.measure"]
    words = ["--request", str(asked), "--out", str(tmp_path / "out"), "--device", "cpu", "--seconds", "0.01"]
    done = run([*torchrun, *words])
    assert done.returncode == 0, done.stderr
    content = read_journal(tmp_path / "out" / FILE)
    assert {entry.point for entry in content.entries} == set(points)
    refused = {entry.reason for entry in content.entries if entry.reason}
    assert refused <= ONLY_ON_A_GPU, refused
    measured = [entry for entry in content.entries if not entry.reason]
    assert {entry.point.suite for entry in measured} == set(COLUMNS)
    for entry in measured:
        if entry.point.suite in ("memory", "overlap"):
            continue
        result = entry.result
        assert 0 < result["best"] <= result["p10"] <= result["seconds"] <= result["p90"], entry.point.key  # type: ignore[operator]
        assert result["samples"] >= 1  # type: ignore[operator]
    both = [entry for entry in measured if entry.point.suite == "gemm"]
    assert all(entry.result["ranks"] == 2 for entry in both)
    assert content.runs[1]["backend"] == "gloo"


def test_a_profile_of_two_processes_prices_a_plan(tmp_path: Path) -> None:
    spec, out = tmp_path / "spec.yaml", tmp_path / "measured"
    spec.write_text(SPEC)
    words = ["profile", "run", str(spec), "--processes", "2", "--device", "cpu", "--called", "this-cpu", "--no-grid"]
    suites = [word for name in ("gemm", "attention", "elementwise", "collectives") for word in ("--suite", name)]
    done = run(["-m", "cli.start", *words, *suites, "--seconds", "0.01", "--out", str(out), "--format", "json"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["device"] == "this-cpu"
    planned = run(["-m", "cli.start", "plan", str(spec), "--profile", str(out), "--format", "json"])
    assert planned.returncode == 0, planned.stderr
    best = json.loads(planned.stdout)["plans"][0]
    assert best["source_fractions"]["measured"] > 0.3
    without = json.loads(run(["-m", "cli.start", "plan", str(spec), "--format", "json"]).stdout)["plans"][0]
    # A CPU is far slower than the GPU whose datasheet stands in the spec.
    assert best["step_seconds"] > 10 * without["step_seconds"]


def test_killed_at_random_moments_the_collector_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    points = [point("launch", term="launch", kernels=kernels) for kernels in range(1, 401)]
    asked = request(tmp_path / "request.jsonl", points)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "profiles.measure", "--request", str(asked), "--out", str(out), "--resume"]
    command += ["--device", "cpu", "--progress", "none"]
    drawn = random.Random(11)
    path = out / FILE
    out.mkdir()
    path.touch()
    for _ in range(KILLS):
        before = path.stat().st_size
        with subprocess.Popen(command, cwd=ROOT, env=environment()) as process:
            while path.stat().st_size == before and process.poll() is None:
                time.sleep(0.001)
            time.sleep(drawn.uniform(0.0, 0.5))
            process.send_signal(signal.SIGKILL)
    assert 0 < len(read_journal(path).entries) < len(points)
    done = run(command[1:])
    assert done.returncode == 0, done.stderr
    found = [entry.point for entry in read_journal(path).entries]
    assert len(found) == len(points)
    assert set(found) == set(points)


def test_the_emitted_folder_is_enough(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    for name, text in collector_files().items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    asked = request(folder / "request.jsonl", small("elementwise", ranks=1))
    words = ["-P", "-m", "profiles.measure", "--request", str(asked), "--out", str(folder / "out"), "--device", "cpu"]
    done = run([*words, "--seconds", "0.01"], path=folder / "collector")
    assert done.returncode == 0, done.stderr
    assert len(read_recording(folder / "out").measured) == len(small("elementwise", ranks=1))
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "soon"], "argument --budget: invalid seconds_of value: 'soon'"),
        (["--request", "nowhere.jsonl"], "nowhere.jsonl: "),
    ],
)
def test_words_that_mean_nothing_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    done = run(["-m", "profiles.measure", "--out", str(tmp_path / "out"), *words])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    asked = request(tmp_path / "request.jsonl", [point("launch", term="launch", kernels=1)])
    words = ["-m", "profiles.measure", "--request", str(asked), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert run(words).returncode == 0
    again = run(words)
    assert again.returncode == 2
    assert f"{tmp_path / 'out' / FILE}: 1 points are here already" in again.stderr


def test_every_set_of_operands_runs_before_any_is_timed() -> None:
    from profiles.measure.timing import Bench, Effort, Machine  # noqa: PLC0415 - it imports torch

    ran: list[int] = []
    calls = [partial(ran.append, index) for index in range(9)]
    Bench(Machine("cpu"), Effort(seconds=0.01))._warmed(calls)
    assert ran == [*range(9), 0]
