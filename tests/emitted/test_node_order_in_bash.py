"""Where nodes differ, the emitted scripts start each node at its place, in a real bash, and say the order when read."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from planner.emit.deepspeed import emit_deepspeed
from planner.emit.megatron import BATCH_SCRIPT, LAUNCH_SCRIPT, emit_megatron
from planner.emit.node_order import HOSTFILE
from planner.errors import InputError
from planner.plans.plan import MemoryLine, Phase, Plan
from planner.readers.deepspeed import layout_of_files
from planner.readers.megatron import layout_of, read_megatron
from planner.requests.request import Target
from planner.requests.workload import Precision, TrainWorkload
from planner.targets.launch import launch_file_names
from planner.verification.kit import verification_kit
from profiles.hardware import NodeKind, UnequalNodes
from tests.emitted.deepspeed_plans import LLAMA, deepspeed_plan, layout_with
from tests.emitted.plans import LLAMA_8B, cluster_of, layout_of_degrees, plan_of

ORDER = (2, 0, 3, 1)
NAMES = ("alpha", "beta", "gamma", "delta")
RECORDER = '#!/usr/bin/env bash\nprintf "%s\\0" "$@"\n'
STAND_INS = {
    "torchrun": RECORDER,
    "deepspeed": RECORDER,
    "srun": '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    # Slurm lists a job's hosts in an order of its own.
    "scontrol": "#!/usr/bin/env bash\nprintf '%s\\n' ${ALLOCATED:-alpha beta delta gamma}\n",
}


def on_nodes_that_differ(plan: Plan, *, names: tuple[str, ...] = NAMES, order: tuple[int, ...] = ORDER) -> Plan:
    """Return a plan for nodes in an order of their own."""
    count = plan.cluster.num_nodes
    nodes = UnequalNodes(
        names=names,
        kinds=(NodeKind(device=plan.cluster.device, levels=plan.cluster.levels),),
        kind_of_node_N=(0,) * count,
        bytes_per_second_NN=tuple(tuple(float(here != there) for there in range(count)) for here in range(count)),
        source="made up",
    )
    held = MemoryLine(rank=0, phase=Phase.INITIALISATION, term="weights", num_bytes=0, source="made up")
    best = replace(plan.best, layout=replace(plan.best.layout, node_order=order), memory=(held,))
    return replace(plan, cluster=replace(plan.cluster, unequal=nodes), plans=(best,))


def megatron_plan() -> Plan:
    workload = TrainWorkload(seq_len=8192, global_batch_size=256, precision=Precision.BF16)
    return plan_of(
        LLAMA_8B, workload, layout_of_degrees(layers=(32,), tp=2, dp=16, num_microbatches=16), cluster_of(4, 8)
    )


def ds_plan() -> Plan:
    return deepspeed_plan(LLAMA, layout_with((4,), dp=32, zero_stage=3, num_microbatches=1))


FILES = {
    "megatron": lambda **how: emit_megatron(on_nodes_that_differ(megatron_plan(), **how)),
    "deepspeed": lambda **how: emit_deepspeed(on_nodes_that_differ(ds_plan(), **how)),
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    for name, text in STAND_INS.items():
        program = folder / name
        program.write_text(text)
        program.chmod(0o755)
    return folder


def start(script: str, *, stand_ins: Path, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    path = folder / "script.sh"
    path.write_text(script, encoding="utf-8")
    environment = {
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
        "MEGATRON_LM_DIR": "/opt/megatron",
        "SLURM_SUBMIT_DIR": "/submitted",
        "SLURM_JOB_NODELIST": "nodes",
        "LC_ALL": "C.UTF-8",
        **variables,
    }
    return subprocess.run(
        ["/bin/bash", str(path)], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def told(result: "subprocess.CompletedProcess[str]") -> tuple[str, str]:
    """Return (node rank, address) that torchrun was told."""
    assert (result.returncode, result.stderr) == (0, "")
    words = result.stdout.split("\0")
    return words[words.index("--node-rank") + 1], words[words.index("--master-addr") + 1]


@pytest.mark.parametrize("framework", FILES)
@pytest.mark.parametrize("named", [True, False])
def test_each_node_is_started_at_its_place(framework: str, named: bool, stand_ins: Path, tmp_path: Path) -> None:
    script = FILES[framework](names=NAMES if named else ())[LAUNCH_SCRIPT]
    variables = {} if named else {"NODE_HOSTS": " ".join(NAMES)}
    ranks = [
        told(start(script, stand_ins=stand_ins, folder=tmp_path, NODE_RANK=str(node), **variables)) for node in range(4)
    ]
    # Node 2 stands at place 0, node 0 at place 1, node 3 at place 2, node 1 at place 3.
    assert ranks == [("1", "gamma"), ("3", "gamma"), ("0", "gamma"), ("2", "gamma")]


@pytest.mark.parametrize("framework", FILES)
def test_slurm_starts_named_nodes_at_their_places_however_it_lists_them(
    framework: str, stand_ins: Path, tmp_path: Path
) -> None:
    script = FILES[framework]()[BATCH_SCRIPT]
    assert "#SBATCH --nodelist=alpha,beta,gamma,delta\n" in script
    ranks = [told(start(script, stand_ins=stand_ins, folder=tmp_path, SLURM_NODEID=str(index))) for index in range(4)]
    assert ranks == [("1", "gamma"), ("3", "gamma"), ("2", "gamma"), ("0", "gamma")]  # alpha, beta, delta, gamma


def test_slurm_starts_nodes_without_names_by_their_number_in_its_list(stand_ins: Path, tmp_path: Path) -> None:
    script = FILES["megatron"](names=())[BATCH_SCRIPT]
    assert "--nodelist" not in script
    ranks = [told(start(script, stand_ins=stand_ins, folder=tmp_path, SLURM_NODEID=str(index))) for index in range(4)]
    assert ranks == [("1", "delta"), ("3", "delta"), ("0", "delta"), ("2", "delta")]


def test_a_node_that_is_not_of_the_plan_is_not_started(stand_ins: Path, tmp_path: Path) -> None:
    files = FILES["megatron"]()
    result = start(files[LAUNCH_SCRIPT], stand_ins=stand_ins, folder=tmp_path, NODE_RANK="7")
    assert result.returncode == 1
    assert "there is no such node as NODE_RANK" in result.stderr
    result = start(
        files[BATCH_SCRIPT], stand_ins=stand_ins, folder=tmp_path, SLURM_NODEID="0", ALLOCATED="alpha beta gamma omega"
    )
    assert result.returncode == 1
    assert "omega is no node of this plan" in result.stderr


def test_deepspeed_starts_named_nodes_from_one_by_their_places(stand_ins: Path, tmp_path: Path) -> None:
    files = FILES["deepspeed"]()
    assert files[HOSTFILE] == "gamma slots=8\nalpha slots=8\ndelta slots=8\nbeta slots=8\n"
    result = start(files[LAUNCH_SCRIPT], stand_ins=stand_ins, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    words = result.stdout.split("\0")
    assert words[:2] == ["--hostfile", f"{tmp_path}/{HOSTFILE}"]
    assert words[2:6] == ["--no_local_rank", "--master_port", "29500", f"{tmp_path}/train_deepspeed.py"]
    alone = start(files[LAUNCH_SCRIPT], stand_ins=stand_ins, folder=tmp_path, NODE_RANK="0").stdout.split("\0")
    program = alone.index(f"{tmp_path}/train_deepspeed.py")
    assert words[5:] == alone[program:]


def test_the_order_as_listed_is_that_of_the_hostfile_too() -> None:
    assert FILES["deepspeed"](order=())[HOSTFILE].split()[::2] == list(NAMES)


def test_no_hostfile_is_written_without_names_or_for_another_framework(stand_ins: Path, tmp_path: Path) -> None:
    unnamed = FILES["deepspeed"](names=())
    assert HOSTFILE not in unnamed
    assert "deepspeed --hostfile" not in unnamed[LAUNCH_SCRIPT]
    assert HOSTFILE not in FILES["megatron"]()
    assert HOSTFILE not in emit_deepspeed(ds_plan())
    result = start(unnamed[LAUNCH_SCRIPT], stand_ins=stand_ins, folder=tmp_path)
    assert result.returncode != 0
    assert "NODE_RANK: set it to the number of this node in the cluster file, from 0" in result.stderr


def test_the_names_of_the_files_are_known_before_there_is_a_plan() -> None:
    for names in (NAMES, ()):
        plan = on_nodes_that_differ(ds_plan(), names=names)
        announced = launch_file_names(plan.request.workload, plan.cluster, target=Target.DEEPSPEED)
        assert set(announced) == set(emit_deepspeed(plan))


@pytest.mark.parametrize("order", [ORDER, ()])
def test_the_order_is_read_back_and_the_listed_one_is_not_said(order: tuple[int, ...]) -> None:
    for name in (LAUNCH_SCRIPT, BATCH_SCRIPT):
        text = FILES["megatron"](order=order)[name]
        assert layout_of(read_megatron(text, file=name)) == replace(megatron_plan().best.layout, node_order=order)
        files = FILES["deepspeed"](order=order)
        assert layout_of_files(files, script=name) == replace(ds_plan().best.layout, node_order=order)


@pytest.mark.parametrize("table", ["0 1 2 2", "0 1 2 x", "1 2 3 4"])
def test_a_table_that_leaves_a_node_out_is_refused(table: str) -> None:
    text = FILES["megatron"]()[LAUNCH_SCRIPT].replace("NODE_ORDER=(2 0 3 1)", f"NODE_ORDER=({table})")
    with pytest.raises(InputError, match="NODE_ORDER does not hold each of the numbers 0 to 3 once") as caught:
        read_megatron(text, file="launch.sh")
    assert caught.value.location is not None
    line = text.splitlines()[(caught.value.location.line or 0) - 1]
    assert line.startswith("NODE_ORDER=")


def test_short_runs_ask_for_the_same_nodes_and_leave_the_order_to_each_run() -> None:
    kit = verification_kit(on_nodes_that_differ(megatron_plan()), target=megatron_plan().target)
    assert kit is not None
    scripts = {name: text for name, text in kit.files.items() if name.endswith(("run.sh", "job.sbatch", "launch.sh"))}
    batch = next(text for name, text in scripts.items() if name.endswith("verify/job.sbatch"))
    run = next(text for name, text in scripts.items() if name.endswith("run.sh"))
    assert "#SBATCH --nodelist=alpha,beta,gamma,delta\n" in batch
    assert "MASTER_ADDR:?" not in run
    assert any("NODE_ORDER=(2 0 3 1)\n" in text for name, text in scripts.items() if name.endswith("launch.sh"))
