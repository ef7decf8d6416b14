"""The scripts of `verify/` run in a real bash, with a torchrun that prints what a queue of outcomes says."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.main import app
from cli.output import write_files
from planner.plans.plan import Plan
from planner.requests.request import Target
from planner.verification.kit import verification_kit
from tests.emitted.plans import HOSTILE_TEXT
from tests.unit.planner.verification import printed
from tests.unit.planner.verification.plans import one_node_plan, two_node_plan

RUNNER = CliRunner()

TORCHRUN = """\
#!/usr/bin/env bash
node="${NODE_RANK:-0}"
printf '%s\\0' "$@" >> "$FAKE/words"
printf '%s\\n' "$PWD" "${SLURM_SUBMIT_DIR:-}" >> "$FAKE/places"
read -r outcome < "$FAKE/queue-$node"
sed -i 1d "$FAKE/queue-$node"
case "$outcome" in
    oom) cat "$FAKE/oom" >&2; exit 1 ;;
    fail) echo "NCCL error: remote process exited" >&2; exit 1 ;;
    hang) head -n 5 "$FAKE/log-210"; echo $$ > "$FAKE/hanging-$node"; exec sleep 60 ;;
    *) cat "$FAKE/log-$outcome" ;;
esac
"""
STAND_INS = {
    "torchrun": TORCHRUN,
    "srun": '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"\n',
    "scontrol": "#!/usr/bin/env bash\nprintf 'node-a\\nnode-b\\n'\n",
}


@dataclass(frozen=True)
class Machine:
    """A machine on which torchrun does what a queue says.

    Args:
        fake: Holds the stand-ins, the queues and what torchrun was given.
        kit: The folder of the kit.
    """

    fake: Path
    kit: Path

    def queue(self, *outcomes: str, node: int = 0) -> None:
        (self.fake / f"queue-{node}").write_text("".join(f"{outcome}\n" for outcome in outcomes))

    def start(self, script: str, *extra: str, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["/bin/bash", script, *extra],
            cwd=self.kit,
            env={
                "PATH": f"{self.fake}:{os.environ['PATH']}",
                "FAKE": str(self.fake),
                "MEGATRON_LM_DIR": "/opt/mega tron",
                "LC_ALL": "C.UTF-8",
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *extra: str, **variables: str) -> list[str]:
        """Return the lines that a script prints, and each layout's folder in them by its number alone."""
        process = self.start(script, *extra, **variables)
        output, errors = ended(process)
        assert (process.returncode, errors) == (0, "")
        return said(output)

    def exit_codes(self, node: int = 0) -> list[str]:
        """Return what each layout's run ended with on a node."""
        return [path.read_text().strip() for path in sorted(self.kit.glob(f"layout-*/node-{node}.exit"))]


def ended(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return what a process printed until its end, which comes soon or never."""
    try:
        return process.communicate(timeout=50)
    finally:
        process.kill()


def said(output: str) -> list[str]:
    """Return lines with the folders' digests left out, less the last, which says how to go on."""
    *lines, last = output.splitlines()
    assert last.startswith("Read the logs with: shardwright collect ")
    return [f"{line[:8]}{line[17:]}" for line in lines]


def machine_of(plan: Plan, root: Path, *, target: Target = Target.MEGATRON) -> Machine:
    fake = root / "fake"
    fake.mkdir()
    for name, text in STAND_INS.items():
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    for milliseconds in (190, 210, 240):
        (fake / f"log-{milliseconds}").write_text(printed.megatron_log(float(milliseconds)))
    (fake / "log-slurm").write_text(printed.deepspeed_log(0.2))
    (fake / "oom").write_text(printed.megatron_step(1, 900.0) + printed.OUT_OF_MEMORY)
    kit = verification_kit(plan, target=target)
    assert kit is not None
    write_files(root / "run it", kit.files, force=False)
    return Machine(fake=fake, kit=root / "run it" / "verify")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return machine_of(one_node_plan(), tmp_path)


def collected(machine: Machine) -> tuple[int, Mapping[str, object], str]:
    """Return how `collect` ends, its JSON document, and its measurements."""
    result = RUNNER.invoke(app, ["collect", str(machine.kit.parent), "--format", "json"])
    return result.exit_code, json.loads(result.stdout), (machine.kit / "measurements.csv").read_text()


def column(document: Mapping[str, object], key: str) -> list[object]:
    runs = document["runs"]
    assert isinstance(runs, Sequence)
    return [run[key] for run in runs]


def test_failures_stop_nothing_and_only_what_is_open_is_made_again(machine: Machine) -> None:
    machine.queue("210", "oom", "hang")
    lines = machine.run("run.sh", VERIFY_LIMIT_SECONDS="1")
    assert lines == [
        "layout-0: started, at most 1 seconds",
        "layout-0: ended well",
        "layout-1: started, at most 1 seconds",
        lines[3],
        "layout-2: started, at most 1 seconds",
        "layout-2: ended by its time limit",
    ]
    assert lines[3].startswith("layout-1: failed with exit code 1, see layout-1-")
    assert machine.exit_codes() == ["0", "1", "124"]

    code, document, table = collected(machine)
    assert code == 1
    assert column(document, "status") == ["ok", "oom", "missing"]
    assert column(document, "measured_step_seconds") == [pytest.approx(0.211), None, None]
    assert column(document, "measured_peak_bytes") == [71680 << 20, None, 71680 << 20]
    assert column(document, "problem")[2] == (
        "its log holds 2 steps, 6 are needed; it was ended by its time limit, which VERIFY_LIMIT_SECONDS replaces; "
        f"last line: {printed.megatron_step(2, 1052.0).strip()[:160]}..."
    )
    assert len(table.splitlines()) == 3

    machine.queue("190")
    assert machine.run("run.sh") == [
        "layout-0: made before",
        "layout-1: made before",
        "layout-2: started, at most 908 seconds",
        "layout-2: ended well",
    ]
    code, document, table = collected(machine)
    assert code == 0
    assert column(document, "measured_step_seconds") == [pytest.approx(0.211), None, pytest.approx(0.191)]
    best = document["best"]
    assert isinstance(best, str)
    assert best.startswith("layout-2-")
    assert len(table.splitlines()) == 4

    machine.queue()
    assert machine.run("run.sh") == [f"layout-{index}: made before" for index in range(3)]
    assert collected(machine) == (code, document, table)


def test_a_failure_that_is_no_lack_of_memory_is_made_again(machine: Machine) -> None:
    machine.queue("fail", "240", "210")
    machine.run("run.sh")
    assert machine.exit_codes() == ["1", "0", "0"]
    machine.queue("190")
    assert machine.run("run.sh")[1] == "layout-0: ended well"
    assert machine.exit_codes() == ["0", "0", "0"]


def test_every_run_gets_its_own_arguments_and_what_is_appended(machine: Machine) -> None:
    machine.queue("210", "240", "190")
    machine.run("run.sh", "--load", "a b")
    words = (machine.fake / "words").read_text().split("\0")
    assert [words[at + 1] for at, word in enumerate(words) if word == "--tensor-model-parallel-size"] == ["2", "4", "4"]
    assert [words[at + 1] for at, word in enumerate(words) if word == "--train-iters"] == ["10"] * 3
    assert [words[at + 1] for at, word in enumerate(words) if word == "--load"] == ["a b"] * 3


def test_predictions_stand_beside_what_was_measured(machine: Machine) -> None:
    machine.queue("210", "oom", "190")
    machine.run("run.sh")
    folder = machine.kit
    result = RUNNER.invoke(app, ["collect", str(folder)])
    assert (result.exit_code, result.stderr) == (0, "")
    names = [path.name for path in sorted(folder.glob("layout-*"))]
    assert result.stdout == (
        "Measured beside predicted, best first by prediction\n"
        "  run                predicted  measured    error  predicted peak  measured peak  status\n"
        f"  {names[0]}   200.0 ms  211.0 ms   -5.2 %        6.00 GiB      70.00 GiB  7 steps\n"
        f"  {names[1]}   250.0 ms                           2.00 GiB                 out of memory\n"
        f"  {names[2]}   260.0 ms  191.0 ms  +36.1 %        2.00 GiB      70.00 GiB  7 steps\n"
        "  error: predicted over measured, less one; peaks: of the framework's allocator\n"
        "\n"
        f"The best measured is {names[2]}: its step takes 9.5 % less than that of the best by prediction.\n"
        "\n"
        "Files\n"
        f"  - {folder}/measurements.csv: as `shardwright accuracy '{folder}/measurements.csv'` reads it\n"
    )


def test_the_job_runs_each_layout_in_one_allocation(machine: Machine) -> None:
    machine.queue("210", "oom", "190")
    lines = machine.run("job.sbatch", SLURM_SUBMIT_DIR=str(machine.kit), SLURM_JOB_NODELIST="node-[a-b]")
    assert [line.split(",")[0] for line in lines] == [
        "layout-0: started",
        "layout-0: ended well",
        "layout-1: started",
        "layout-1: failed with exit code 1",
        "layout-2: started",
        "layout-2: ended well",
    ]
    code, document, _ = collected(machine)
    assert (code, column(document, "status")) == (0, ["ok", "oom", "ok"])
    # Each script looks for its programs in its own folder.
    places = (machine.fake / "places").read_text().splitlines()
    assert places == [text for path in sorted(machine.kit.glob("layout-*")) for text in (str(machine.kit), str(path))]
    directives = [line for line in (machine.kit / "job.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    assert [line.partition("=")[0] for line in directives] == [
        "#SBATCH --job-name",
        "#SBATCH --nodes",
        "#SBATCH --ntasks-per-node",
        "#SBATCH --gpus-per-node",
        "#SBATCH --exclusive",
        "#SBATCH --mem",
        "#SBATCH --output",
    ]


def test_a_request_to_end_ends_the_run_and_the_script(machine: Machine) -> None:
    machine.queue("hang")
    process = machine.start("run.sh")
    until_there(machine.fake / "hanging-0")
    hanging = int((machine.fake / "hanging-0").read_text())
    process.terminate()
    ended(process)
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    assert machine.exit_codes() == []


def until_there(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def test_nodes_wait_for_one_another_and_one_failure_ends_the_run_on_all(tmp_path: Path) -> None:
    machine = machine_of(two_node_plan(), tmp_path)
    machine.queue("oom", "slurm", node=0)
    machine.queue("hang", "210", node=1)
    common = {"MASTER_ADDR": "node-a", "VERIFY_POLL_SECONDS": "0.1", "VERIFY_GRACE_SECONDS": "0.1"}
    # The second node is there first: the first one then fails before its own part can end.
    second = machine.start("run.sh", NODE_RANK="1", **common)
    until_there(machine.fake / "hanging-1")
    first = machine.start("run.sh", NODE_RANK="0", **common)
    outputs = [ended(process) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert [errors for _, errors in outputs] == ["", ""]
    assert said(outputs[0][0])[2:] == ["layout-1: started, at most 915 seconds", "layout-1: ended well"]
    assert said(outputs[1][0])[2:] == ["layout-1: started, at most 915 seconds", "layout-1: ended well"]
    assert machine.exit_codes(0) == ["1", "0"]
    assert machine.exit_codes(1)[0] not in {"0", "", "124"}  # ended by its neighbour, not by its time limit
    code, document, _ = collected(machine)
    assert (code, column(document, "status")) == (0, ["oom", "ok"])

    for node in (0, 1):
        lines = machine.run("run.sh", NODE_RANK=str(node), **common)
        assert lines == ["layout-0: made before", "layout-1: made before"]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.tuples(HOSTILE_TEXT, HOSTILE_TEXT))
def test_no_user_string_reaches_the_shell_as_code(
    names: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    plan = one_node_plan()
    plan = replace(
        plan,
        model=replace(plan.model, name=names[0]),
        cluster=replace(plan.cluster, name=names[1]),
        plans=plan.plans[:1],
    )
    machine = machine_of(plan, tmp_path_factory.mktemp("hostile"))
    machine.queue("210", "210")
    machine.run("run.sh")
    for path in machine.kit.glob("layout-*/node-*"):
        path.unlink()
    machine.run("job.sbatch", SLURM_SUBMIT_DIR=str(machine.kit), SLURM_JOB_NODELIST="node-[a-b]")
    assert sorted(path.name for path in machine.kit.iterdir())[:1] == ["job.sbatch"]
    assert sorted(path.name.partition("-")[0] for path in machine.kit.iterdir()) == [
        "job.sbatch",
        "layout",
        "run.sh",
        "runs.csv",
    ]
    assert sorted(path.name for path in machine.kit.glob("layout-*/*")) == [
        "job.sbatch",
        "launch.sh",
        "node-0.exit",
        "node-0.log",
    ]
    code, document, _ = collected(machine)
    assert (code, column(document, "status")) == (0, ["ok"])
