"""Argument lists of Megatron-LM outside of commands, and the commands that start it."""

import pytest

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.validation.source import Asked
from planner.validation.sources import read_source

TEXT = """# the model
--num-layers 24 \\
--hidden-size=2048
--num-attention-heads 16
--bf16
--data-path "a b"
"""

MODEL_ARGS = """ENV_VARS:
  CUDA_DEVICE_MAX_CONNECTIONS: 1
MODEL_ARGS:
  --num-layers: 24
  --hidden-size: 2048
  --num-attention-heads: 16
  --bf16: true
  --swiglu: false
  --data-path: 1.0 a
"""

NAMES = """num_layers: 24
hidden_size: 2048
num-attention-heads: 16
bf16: true
swiglu: false
gradient_accumulation_fusion: false
recompute_modules: [core_attn, mlp]
lr: null
"""

WORDS = """- --num-layers 24
- --hidden-size
- 2048
- --num-attention-heads=16
- --bf16
"""

ARGS = "--num-layers 24 --hidden-size 2048 --num-attention-heads 16"


def runs(text: str, *, file: str = "train.sh", num_gpus: int | None = None) -> tuple[MegatronRun, ...]:
    """Return the runs that a file starts."""
    found = read_source(text, file=file, asked=Asked(versions={}, num_gpus=num_gpus, gpus_per_node=None)).runs
    assert all(isinstance(run, MegatronRun) for run in found)
    return tuple(run for run in found if isinstance(run, MegatronRun))


@pytest.mark.parametrize(
    ("file", "text"), [("args.txt", TEXT), ("model.yaml", MODEL_ARGS), ("names.yaml", NAMES), ("words.yml", WORDS)]
)
def test_lists_are_read_in_every_form(file: str, text: str) -> None:
    (run,) = runs(text, file=file)
    assert (run.num_layers, run.hidden_size, run.num_attention_heads) == (24, 2048, 16)
    assert run.arguments.is_on("bf16")
    assert not run.arguments.is_on("swiglu")
    assert run.arguments.mistakes == ()


def test_values_of_a_text_know_their_places() -> None:
    (run,) = runs(TEXT, file="args.txt")
    use = run.arguments.use("data_path")
    assert use is not None
    assert (use.location.line, use.location.column) == (6, 1)
    assert use.texts == ("a b",)
    assert run.environment is None


def test_model_args_have_their_environment_and_split_words() -> None:
    (run,) = runs(MODEL_ARGS, file="model.yaml")
    assert run.exported("CUDA_DEVICE_MAX_CONNECTIONS") == "1"
    use = run.arguments.use("data_path")
    assert use is not None
    assert use.texts == ("1.0", "a")
    assert (use.location.line, use.location.column) == (9, 3)


def test_names_stand_for_the_flags_that_set_them() -> None:
    (run,) = runs(NAMES, file="names.yaml", num_gpus=16)
    assert [use.spelled for use in run.arguments.given] == [
        "--num-layers",
        "--hidden-size",
        "--num-attention-heads",
        "--bf16",
        "--no-gradient-accumulation-fusion",
        "--recompute-modules",
    ]
    assert run.world_size == 16


def test_an_unknown_name_is_reported() -> None:
    (run,) = runs(NAMES.replace("lr: null", "hiden_sise: 8"), file="names.yaml")
    assert [mistake.message for mistake in run.arguments.mistakes] == ["Megatron-LM 0.19.2 has no flag `--hiden-sise`"]


@pytest.mark.parametrize("text", ["model: llama\ncluster: dgx\n", "- a\n- b\n", "just: text\n"])
def test_other_documents_are_no_lists(text: str) -> None:
    assert runs(text, file="spec.yaml") == ()


@pytest.mark.parametrize("text", ["some words\n", "--help\n", "echo --num-layers 24 --hidden-size 8 --bf16\n"])
def test_other_texts_are_no_lists(text: str) -> None:
    assert runs(text, file="notes.txt") == ()


@pytest.mark.parametrize(
    ("script", "world"),
    [
        (f"torchrun --nnodes=2 --nproc_per_node 8 pretrain_gpt.py {ARGS}\n", 16),
        (f"python -m torch.distributed.run --nnodes 2 --nproc-per-node 4 pretrain_gpt.py {ARGS}\n", 8),
        (f"#SBATCH --nodes=4\n#SBATCH --gpus-per-node=8\nsrun torchrun pretrain_gpt.py {ARGS}\n", 32),
        (f"#SBATCH -N 4\n#SBATCH --ntasks-per-node=8 # a GPU each\nsrun python pretrain_gpt.py {ARGS}\n", 32),
        (f"srun --nodes 2 --ntasks-per-node=8 python -u /m/pretrain_gpt.py {ARGS}\n", 16),
        (f"#SBATCH --nodes=2\n#SBATCH --gres=gpu:a100:4\nsrun python pretrain_gpt.py {ARGS}\n", 8),
    ],
)
def test_the_size_comes_from_launcher_and_batch_system(script: str, world: int) -> None:
    (run,) = runs(script)
    assert run.world_size == world
    assert run.num_layers == 24


@pytest.mark.parametrize(
    "command",
    [
        "CUDA_DEVICE_MAX_CONNECTIONS=1 torchrun",
        "env CUDA_DEVICE_MAX_CONNECTIONS=1 torchrun",
        "srun --export=ALL,CUDA_DEVICE_MAX_CONNECTIONS=1 torchrun",
    ],
)
def test_a_command_has_the_variables_that_are_set_for_it(command: str) -> None:
    first, second = runs(f"{command} pretrain_gpt.py {ARGS}\ntorchrun pretrain_gpt.py {ARGS}\n")
    assert first.exported("CUDA_DEVICE_MAX_CONNECTIONS") == "1"
    assert second.exported("CUDA_DEVICE_MAX_CONNECTIONS") is None


def test_every_run_of_a_script_is_read() -> None:
    found = runs(f"torchrun pretrain_gpt.py {ARGS}\nN=48\ntorchrun pretrain_gpt.py {ARGS} --num-layers $N\n")
    assert [run.num_layers for run in found] == [24, 48]
    assert [run.arguments.start.line for run in found] == [1, 3]


@pytest.mark.parametrize(("program", "mistakes"), [("pretrain_gpt.py", 1), ("pretrain_vlm.py", 0)])
def test_flags_of_a_program_s_own_are_no_mistakes(program: str, mistakes: int) -> None:
    (run,) = runs(f"torchrun {program} {ARGS} --freeze-vision\n")
    assert len(run.arguments.mistakes) == mistakes


def test_versions_are_those_of_the_tables() -> None:
    source = read_source(TEXT, file="args.txt", asked=Asked(versions={Framework.MEGATRON: "0.18.2"}))
    assert [run.version for run in source.runs] == ["0.18.2"]
