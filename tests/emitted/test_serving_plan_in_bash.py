"""What bash starts of a serving plan: every engine once, on GPUs of its own, and a benchmark at the planned load."""

import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from planner.serving_plans.plan import ServePlan
from planner.serving_search.launch import serve_files
from tests.served import served

SPLIT = ("workload:", "constraints: {split: only, tp: [1, 2]}\nworkload:")
TWO_NODES = ("nodes: 1", "nodes: 2")
CLOSED = ("input: 1000", "arrivals: closed-loop\n  input: {min: 500, max: 1500}")
AGGREGATED = ("workload:", "constraints: {split: never, tp: 2}\nworkload:")

PLANS = ((SPLIT, TWO_NODES), (AGGREGATED, CLOSED))


ON_A_LINE = 'echo "$* gpus=${CUDA_VISIBLE_DEVICES:-all}"'
A_WORD_A_LINE = 'printf "%s\\n" "$@"'


def run(folder: Path, plan: ServePlan, script: str, program: str = ON_A_LINE, **environment: str) -> list[str]:
    """Return the lines that stand-ins for the programs print."""
    for name, text in serve_files(plan).items():
        (folder / name).write_text(text, encoding="utf-8")
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    stand_in = programs / "vllm"
    stand_in.write_text(f"#!/usr/bin/env bash\n{program}\n")
    stand_in.chmod(0o755)
    result = subprocess.run(
        ["bash", script],
        cwd=folder,
        env={"PATH": f"{programs}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("changes", PLANS)
def test_every_engine_starts_once_on_gpus_of_its_own(changes: tuple[tuple[str, str], ...], tmp_path: Path) -> None:
    plan = served(*changes)
    (cluster,) = plan.clusters
    started: Counter[str] = Counter()
    for node in range(cluster.num_nodes):
        lines = run(tmp_path, plan, "start.sh", NODE_INDEX=str(node), ADDRESSES="10.0.0.1 10.0.0.2")
        devices: list[str] = []
        ports: list[str] = []
        for line in lines:
            if line.startswith("nothing"):
                continue
            words = line.split()
            started[words[words.index("--config") + 1].removesuffix(".yaml")] += 1
            ports.append(words[words.index("--port") + 1])
            gpus = words[-1].removeprefix("gpus=")
            devices += [str(index) for index in range(8)] if gpus == "all" else gpus.split(",")
        assert len(set(devices)) == len(devices)
        assert len(set(ports)) == len(ports)
    assert started == {entry.pool.name: entry.pool.replicas for entry in plan.pools}


def test_the_router_knows_every_engine_where_it_starts(tmp_path: Path) -> None:
    plan = served(SPLIT, TWO_NODES)
    nodes = ("10.0.0.1", "10.0.0.2")
    listening: dict[str, set[str]] = {"prefill": set(), "decode": set()}
    for index, node in enumerate(nodes):
        for line in run(tmp_path, plan, "start.sh", NODE_INDEX=str(index), ADDRESSES=" ".join(nodes)):
            words = line.split()
            role = words[words.index("--config") + 1].removesuffix(".yaml").partition("-")[0]
            listening[role].add(f"http://{node}:{words[words.index('--port') + 1]}")
    router = tmp_path / "bin" / "vllm-router"
    router.write_text(f"#!/usr/bin/env bash\n{A_WORD_A_LINE}\n")
    router.chmod(0o755)
    words = run(tmp_path, plan, "router.sh", ADDRESSES=" ".join(nodes))
    for role, urls in listening.items():
        told = [words[place + 1] for place, word in enumerate(words) if word == f"--{role}"]
        assert len(told) == len(set(told))
        assert set(told) == urls
        pools = [entry for entry in plan.pools if entry.pool.role.value == role]
        policy = words[words.index(f"--{role}-policy") + 1]
        assert policy == ("round_robin" if len(pools) == 1 else "power_of_two")
    assert words[words.index("--port") + 1] == "9000"
    assert "--vllm-pd-disaggregation" in words


def test_engines_that_do_everything_need_no_router() -> None:
    assert "router.sh" not in serve_files(served(AGGREGATED))


def test_the_benchmark_has_the_planned_load(tmp_path: Path) -> None:
    plan = served(SPLIT, TWO_NODES)
    (line,) = run(tmp_path, plan, "bench.sh", HOST="router")
    words = line.split()
    rate = float(words[words.index("--request-rate") + 1])
    assert rate == pytest.approx(plan.requests_per_second, rel=1e-3)
    assert words[words.index("--host") + 1] == "router"
    assert words[words.index("--port") + 1] == "9000"
    assert words[words.index("--random-input-len") + 1] == "1000"
    assert words[words.index("--goodput") + 1 :][:2] == ["ttft:500", "tpot:25"]


def test_a_closed_loop_is_measured_with_its_requests_under_way(tmp_path: Path) -> None:
    plan = served(AGGREGATED, CLOSED)
    (entry,) = plan.pools
    (line,) = run(tmp_path, plan, "bench.sh")
    words = line.split()
    assert int(words[words.index("--max-concurrency") + 1]) == entry.pool.settings.max_num_seqs
    assert words[words.index("--random-range-ratio") + 1 :][:2] == ['{"input":', "0.5,"]


def test_an_engine_that_ends_badly_is_told(tmp_path: Path) -> None:
    run(tmp_path, served(AGGREGATED), "start.sh")
    stand_in = tmp_path / "bin" / "vllm"
    stand_in.write_text("#!/usr/bin/env bash\nexit 3\n")
    stand_in.chmod(0o755)
    started = subprocess.run(
        ["bash", "start.sh"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    assert started.returncode == 3


def test_an_engine_that_ends_badly_is_told_at_once(tmp_path: Path) -> None:
    plan = served(AGGREGATED)
    run(tmp_path, plan, "start.sh")
    stand_in = tmp_path / "bin" / "vllm"
    # The last engine dies while those before it run on, until they are told to end.
    last = 8000 + sum(entry.pool.replicas for entry in plan.pools) - 1
    stand_in.write_text(f'#!/usr/bin/env bash\n[[ "$*" == *"{last}"* ]] && exit 3\nexec sleep 600\n')
    stand_in.chmod(0o755)
    with subprocess.Popen(
        ["bash", "start.sh"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        assert script.stderr is not None
        assert script.stderr.readline() == f"server on port {last} ended with status 3\n"
        assert script.poll() is None
        script.terminate()
        assert script.stderr.read().count("ended with status 143") == last - 8000
    assert script.returncode == 128 + signal.SIGTERM


def test_who_ends_the_script_ends_its_engines(tmp_path: Path) -> None:
    plan = served(AGGREGATED)
    run(tmp_path, plan, "start.sh")
    stand_in = tmp_path / "bin" / "vllm"
    stand_in.write_text("#!/usr/bin/env bash\necho started\nexec sleep 600\n")
    stand_in.chmod(0o755)
    with subprocess.Popen(
        ["bash", "start.sh"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    ) as script:
        assert script.stdout is not None
        for _ in range(sum(entry.pool.replicas for entry in plan.pools)):
            assert script.stdout.readline() == "started\n"
        script.terminate()
        assert script.stdout.read() == ""  # every engine holds it open until it ends
    assert script.returncode == 128 + signal.SIGTERM
