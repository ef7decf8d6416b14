"""What is emitted for DeepSpeed: read back it is the plan, run in a real bash it starts what was meant."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.emit.deepspeed import BATCH_SCRIPT, CONFIG_FILE, FILES, LAUNCH_SCRIPT, MODEL_FILE, emit_deepspeed
from planner.errors import InputError
from planner.plans.plan import Plan
from planner.readers.deepspeed import layout_of, layout_of_files, read_deepspeed, top_level_keys, workload_of
from planner.requests.workload import TrainMethod
from tests.emitted.deepspeed_plans import LLAMA, deepspeed_plan, deepspeed_plans, layout_with
from tests.emitted.plans import HOSTILE_TEXT, cluster_of
from tests.examples import examples

RECORDER = '#!/usr/bin/env bash\nprintf "%s\\0" "$@"\n'
STAND_INS = {
    "torchrun": RECORDER,
    "srun": '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=1 exec "$@"\n',
    "scontrol": "#!/usr/bin/env bash\nprintf 'node-a\\nnode-b\\n'\n",
}
SCRIPTS = (LAUNCH_SCRIPT, BATCH_SCRIPT)
TWO_NODES = layout_with((4,), dp=16, zero_stage=3, num_microbatches=1)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    for name, text in STAND_INS.items():
        program = folder / name
        program.write_text(text)
        program.chmod(0o755)
    return folder


def run(script: str, *extra: str, stand_ins: Path, folder: Path) -> list[str]:
    """Return the words that torchrun was given."""
    path = folder.parent / f"{folder.name}.sh"
    path.write_text(script, encoding="utf-8")
    result = subprocess.run(
        ["/bin/bash", str(path), *extra],
        cwd=folder,
        env={
            "PATH": f"{stand_ins}:{os.environ['PATH']}",
            "NODE_RANK": "1",
            "MASTER_ADDR": "node-a",
            "SLURM_SUBMIT_DIR": "/submit ted",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "LC_ALL": "C.UTF-8",
        },
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert result.stderr == b""
    return result.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("file", SCRIPTS)
@settings(max_examples=examples(few=40, many=100), deadline=None)
@given(plan=deepspeed_plans())
def test_layout_and_workload_survive_the_round_trip(file: str, plan: Plan) -> None:
    files = emit_deepspeed(plan)
    job = read_deepspeed(files[file], file=file, config=files[CONFIG_FILE])

    assert layout_of(job) == layout_of_files(files, script=file) == plan.best.layout
    assert (job.launch.num_nodes, job.launch.gpus_per_node) == (plan.cluster.num_nodes, plan.cluster.gpus_per_node)
    told = replace(workload_of(job), tokens_to_train=None, method=plan.request.workload.method)
    assert told == plan.request.workload


@settings(max_examples=50, deadline=None)
@given(plan=deepspeed_plans())
def test_the_configuration_holds_the_users_batch_and_only_known_keys(plan: Plan) -> None:
    config = json.loads(emit_deepspeed(plan)[CONFIG_FILE])
    layout = plan.best.layout
    assert config.keys() <= top_level_keys()
    assert config["train_batch_size"] == plan.request.workload.global_batch_size
    assert config["train_batch_size"] == (
        config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * layout.dp
    )
    assert config.get("tensor_parallel", {}).get("autotp_size", 1) == layout.tp
    assert config.get("sequence_parallel_size", 1) == layout.cp


def test_the_model_is_written_whole() -> None:
    facts = json.loads(emit_deepspeed(deepspeed_plan(LLAMA, layout_with((4,))))[MODEL_FILE])
    assert facts["runs"][0]["count"] == 4
    assert facts["runs"][0]["block"]["mixer"]["num_key_value_heads"] == 4
    assert facts["rope_scaling"]["low_freq_factor"] == 1.0
    assert (facts["norm"], facts["vocab_size"], facts["traits"]) == ("rmsnorm", 512, [])


def test_files_are_the_same_for_every_layout_and_the_same_twice() -> None:
    plan = deepspeed_plan(LLAMA, layout_with((1, 3)))
    files = emit_deepspeed(plan)
    assert tuple(files) == FILES
    assert files == emit_deepspeed(plan)


@pytest.mark.parametrize(("file", "folder"), [(LAUNCH_SCRIPT, ".."), (BATCH_SCRIPT, "/submit ted")])
def test_torchrun_starts_the_program_beside_the_script(file: str, folder: str, stand_ins: Path, tmp_path: Path) -> None:
    files = emit_deepspeed(deepspeed_plan(LLAMA, TWO_NODES))
    words = run(files[file], "--save", "a b", stand_ins=stand_ins, folder=tmp_path)

    beside = str(tmp_path.parent) if file == LAUNCH_SCRIPT else folder
    assert words == [
        *("--nnodes", "2", "--nproc-per-node", "8", "--node-rank", "1"),
        *("--master-addr", "node-a", "--master-port", "29500"),
        f"{beside}/train_deepspeed.py",
        *("--deepspeed-config", f"{beside}/ds_config.json", "--model-facts", f"{beside}/model.json"),
        *("--layers-per-stage", "4", "--recompute", "none", "--seq-len", "32", "--padded-vocab-size", "512"),
        *("--attention", "flash", "--attention-dropout", "0.0", "--hidden-dropout", "0.0"),
        *("--data-type", "uint16", "--steps", "100", "--seed", "1234", "--save", "a b"),
    ]


@pytest.mark.parametrize("file", SCRIPTS)
@settings(
    max_examples=examples(few=20, many=40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.tuples(HOSTILE_TEXT, HOSTILE_TEXT), paths=st.lists(HOSTILE_TEXT, min_size=1, max_size=2))
def test_no_user_string_reaches_the_shell_as_code(
    file: str, names: tuple[str, str], paths: list[str], stand_ins: Path, tmp_path: Path
) -> None:
    plan = deepspeed_plan(replace(LLAMA, name=names[0]), TWO_NODES, data_path=tuple(paths))
    plan = replace(plan, cluster=cluster_of(2, 8, name=names[1]))
    words = run(emit_deepspeed(plan)[file], stand_ins=stand_ins, folder=tmp_path)

    first = words.index("--data") + 1
    assert words[first : first + len(paths)] == [path if path[0] != "-" else f"./{path}" for path in paths]
    assert words[first + len(paths)] == "--data-type"
    assert list(tmp_path.iterdir()) == []


def test_what_no_program_can_be_given_is_refused() -> None:
    with pytest.raises(InputError, match="the value of --data holds a NUL character"):
        emit_deepspeed(deepspeed_plan(LLAMA, TWO_NODES, data_path=("a\0b",)))


@settings(max_examples=50, deadline=None)
@given(name=HOSTILE_TEXT)
def test_batch_directives_are_the_seven_that_are_meant(name: str) -> None:
    script = emit_deepspeed(deepspeed_plan(replace(LLAMA, name=name), TWO_NODES))[BATCH_SCRIPT]
    directives = [line.partition("=")[0] for line in script.splitlines() if line.startswith("#SBATCH")]
    names = ("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "exclusive", "mem", "output")
    assert directives == [f"#SBATCH --{name}" for name in names]


def test_fine_tuning_says_where_the_base_model_comes_from() -> None:
    script = emit_deepspeed(deepspeed_plan(LLAMA, TWO_NODES, method=TrainMethod.FULL_FINETUNE))[LAUNCH_SCRIPT]
    assert "# Base model: append --model DIR" in script
    assert "Base model" not in emit_deepspeed(deepspeed_plan(LLAMA, TWO_NODES))[LAUNCH_SCRIPT]
