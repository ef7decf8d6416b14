"""The emitted scripts run in a real bash, with stand-ins for torchrun, srun and scontrol that record what they get."""

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.emit.megatron import BATCH_SCRIPT, LAUNCH_SCRIPT, LORA_PROGRAM, emit_megatron
from planner.emit.megatron_arguments import arguments
from planner.emit.megatron_model_arguments import not_a_flag
from planner.plans.plan import Plan
from planner.requests.workload import Lora, Precision, TrainMethod, TrainWorkload
from tests.emitted.plans import HOSTILE_TEXT, LLAMA_8B, cluster_of, layout_of_degrees, plan_of
from tests.examples import examples

RECORDER = '#!/usr/bin/env bash\nprintf "%s\\0" "$@" "${CUDA_DEVICE_MAX_CONNECTIONS:-}"\n'
STAND_INS = {
    "torchrun": RECORDER,
    "srun": '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=1 exec "$@"\n',
    "scontrol": "#!/usr/bin/env bash\nprintf 'node-a\\nnode-b\\n'\n",
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    for name, text in STAND_INS.items():
        program = folder / name
        program.write_text(text)
        program.chmod(0o755)
    return folder


def run(script: str, *extra: str, stand_ins: Path, folder: Path) -> list[str]:
    """Return the words that torchrun was given, and the exported connection limit as the last."""
    path = folder.parent / f"{folder.name}.sh"
    path.write_text(script, encoding="utf-8")
    result = subprocess.run(
        ["/bin/bash", str(path), *extra],
        cwd=folder,
        env={
            "PATH": f"{stand_ins}:{os.environ['PATH']}",
            "MEGATRON_LM_DIR": "/opt/mega tron",
            "NODE_RANK": "1",
            "MASTER_ADDR": "node-a",
            "SLURM_SUBMIT_DIR": "/submitted",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "LC_ALL": "C.UTF-8",
        },
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert result.stderr == b""
    return result.stdout.decode().split("\0")[:-1]


def plan_with(*, name: str = "model", cluster: str = "nodes", workload: TrainWorkload | None = None) -> Plan:
    return plan_of(
        dataclasses.replace(LLAMA_8B, name=name),
        workload or TrainWorkload(seq_len=8192, global_batch_size=128, precision=Precision.BF16),
        layout_of_degrees(layers=(32,), tp=2, dp=8, num_microbatches=16),
        cluster_of(2, 8, name=cluster),
    )


LAUNCHER = ["--nnodes", "2", "--nproc-per-node", "8", "--node-rank", "1", "--master-addr", "node-a"]


@pytest.mark.parametrize("file", [LAUNCH_SCRIPT, BATCH_SCRIPT])
def test_torchrun_gets_the_argument_list_and_what_is_appended(file: str, stand_ins: Path, tmp_path: Path) -> None:
    plan = plan_with()
    words = run(emit_megatron(plan)[file], "--save", "a b", stand_ins=stand_ins, folder=tmp_path)

    expected = arguments(plan.model, plan.request.workload, plan.best.layout)
    assert words == [
        *LAUNCHER,
        "--master-port",
        "29500",
        "/opt/mega tron/pretrain_gpt.py",
        *expected,
        "--save",
        "a b",
        "1",
    ]


@pytest.mark.parametrize("file", [LAUNCH_SCRIPT, BATCH_SCRIPT])
@settings(
    max_examples=examples(few=20, many=40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.tuples(HOSTILE_TEXT, HOSTILE_TEXT),
    paths=st.lists(HOSTILE_TEXT, min_size=2, max_size=3),
)
def test_no_user_string_reaches_the_shell_as_code(
    file: str, names: tuple[str, str], paths: list[str], stand_ins: Path, tmp_path: Path
) -> None:
    tokenizer, *data_path = paths
    workload = TrainWorkload(
        seq_len=8192,
        global_batch_size=128,
        precision=Precision.BF16,
        data_path=tuple(data_path),
        tokenizer_model=tokenizer,
    )
    plan = plan_with(name=names[0], cluster=names[1], workload=workload)
    words = run(emit_megatron(plan)[file], stand_ins=stand_ins, folder=tmp_path)

    given_words = words[len(LAUNCHER) + 3 : -1]
    assert tuple(given_words) == arguments(plan.model, workload, plan.best.layout)
    assert given_words[given_words.index("--tokenizer-model") + 1] == not_a_flag(tokenizer)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=100, deadline=None)
@given(name=HOSTILE_TEXT, cluster=HOSTILE_TEXT)
def test_batch_directives_are_the_seven_that_are_meant(name: str, cluster: str) -> None:
    script = emit_megatron(plan_with(name=name, cluster=cluster))[BATCH_SCRIPT]

    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert [line.partition("=")[0] for line in directives] == [
        "#SBATCH --job-name",
        "#SBATCH --nodes",
        "#SBATCH --ntasks-per-node",
        "#SBATCH --gpus-per-node",
        "#SBATCH --exclusive",
        "#SBATCH --mem",
        "#SBATCH --output",
    ]
    assert directives[0].removeprefix("#SBATCH --job-name=").isascii()
    assert " " not in directives[0].removeprefix("#SBATCH ")


@pytest.mark.parametrize(("file", "folder"), [(LAUNCH_SCRIPT, "."), (BATCH_SCRIPT, "/submitted")])
def test_adapters_start_the_program_beside_the_script(file: str, folder: str, stand_ins: Path, tmp_path: Path) -> None:
    lora = Lora(rank=16, alpha=32.0, target_modules=("qkv", "proj"))
    workload = TrainWorkload(
        seq_len=8192, global_batch_size=128, precision=Precision.BF16, method=TrainMethod.LORA, lora=lora
    )
    plan = plan_with(workload=workload)
    files = emit_megatron(plan)
    words = run(files[file], stand_ins=stand_ins, folder=tmp_path)

    beside = tmp_path.parent if folder == "." else Path(folder)
    assert words[len(LAUNCHER) + 2] == str(beside / LORA_PROGRAM)
    assert tuple(words[len(LAUNCHER) + 3 : -1]) == arguments(plan.model, workload, plan.best.layout)
    assert "export LORA_RANK=16\nexport LORA_ALPHA=32.0\nexport LORA_TARGETS=qkv,proj\n" in files[file]
    compile(files[LORA_PROGRAM], LORA_PROGRAM, "exec")


def test_a_missing_program_directory_is_named(stand_ins: Path, tmp_path: Path) -> None:
    path = tmp_path / LAUNCH_SCRIPT
    path.write_text(emit_megatron(plan_with())[LAUNCH_SCRIPT])
    result = subprocess.run(
        ["/bin/bash", str(path)], env={"PATH": str(stand_ins)}, capture_output=True, text=True, check=False
    )

    assert result.returncode == 1
    assert "MEGATRON_LM_DIR: set it to a checkout of Megatron-LM core_v0.19.2" in result.stderr
