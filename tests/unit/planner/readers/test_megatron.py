"""Launch scripts that others wrote."""

import dataclasses

import pytest

from planner.errors import InputError
from planner.layout import Granularity, Layout, Recompute, Schedule
from planner.models.blocks import Activation, DenseFeedForward, SelfAttention
from planner.readers.launch_line import LaunchLine
from planner.readers.megatron import layout_of, read_megatron
from planner.readers.megatron_model import model_of
from planner.readers.megatron_workload import workload_of
from planner.requests.workload import AttentionKernel, Precision

SCRIPT = """\
#!/bin/bash
#SBATCH --nodes=2
export CUDA_DEVICE_MAX_CONNECTIONS=1
GPUS=8
LAUNCH="--nproc_per_node $GPUS --nnodes ${NNODES:-2}"
MODEL="
    --num-layers 12
    --hidden-size 768 --num-attention-heads 12
    --max-position-embeddings=2048
    --vocab-size 50257
"
PARALLEL=(
    --tensor-model-parallel-size 2   # inside a node
    "--pipeline-model-parallel-size" 4
    --sequence-parallel
)
if [ -n "$RESUME" ]; then
    PARALLEL+=(--tensor-model-parallel-size 4)
fi
torchrun $LAUNCH pretrain_gpt.py \\
    $MODEL "${PARALLEL[@]}" \\
    --seq-length 1024 --micro-batch-size 2 --global-batch-size 64 --train-iters 10 \\
    --bf16 --use-distributed-optimizer --save "$OUT/x" >> log.txt 2>&1
"""


def job_with(flags: str, *, world: str = "--nnodes 1 --nproc-per-node 8") -> LaunchLine:
    return read_megatron(f"torchrun {world} pretrain_gpt.py {flags}", file="job.sh")


def layout_with(flags: str) -> Layout:
    return layout_of(job_with(f"--num-layers 24 --micro-batch-size 1 --global-batch-size 64 {flags}"))


def refusal(flags: str) -> str:
    with pytest.raises(InputError) as caught:
        layout_with(flags)
    return str(caught.value)


def test_a_script_with_variables_is_read_without_running_it() -> None:
    job = read_megatron(SCRIPT, file="train.sh")

    assert (job.num_nodes, job.gpus_per_node, job.world_size) == (2, 8, 16)
    assert job.environment == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    layout = layout_of(job)
    assert (layout.tp, layout.pp, layout.dp, layout.num_microbatches) == (2, 4, 2, 16)
    assert layout.sequence_parallel
    assert layout.schedule is Schedule.ONE_F_ONE_B
    assert [stage.num_layers for stage in layout.stages] == [3, 3, 3, 3]
    assert job.text("--save", "") == "$OUT/x"


def test_every_flag_knows_its_place() -> None:
    job = read_megatron(SCRIPT, file="train.sh")
    places = {flag.name: (flag.line, flag.column) for flag in job.flags}
    assert places["--num-layers"] == (7, 5)
    assert places["--max-position-embeddings"] == (9, 5)
    assert places["--pipeline-model-parallel-size"] == (14, 6)
    assert places["--seq-length"] == (22, 5)


def test_megatrons_defaults_fill_what_is_not_said() -> None:
    job = read_megatron(SCRIPT, file="train.sh")
    model, workload = model_of(job), workload_of(job)

    attention, feed_forward = model.distinct_blocks[0].mixer, model.distinct_blocks[0].feed_forward
    assert attention == SelfAttention(
        num_attention_heads=12, num_key_value_heads=12, head_dim=64, qkv_bias=True, output_bias=True
    )
    assert feed_forward == DenseFeedForward(
        intermediate_size=3072, gated=False, activation=Activation.GELU_TANH, bias=True
    )
    assert model.tie_word_embeddings
    assert workload.precision is Precision.BF16
    assert workload.attention_kernel is AttentionKernel.FLASH
    assert workload.hidden_dropout == 0.1


def test_a_later_flag_overrides_an_earlier() -> None:
    assert layout_with("--tensor-model-parallel-size 2 --tensor-model-parallel-size 8").tp == 8


@pytest.mark.parametrize(
    ("flags", "layers"),
    [
        ("--pipeline-model-parallel-size 2", (12, 12)),
        ("--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 3", (3,) * 8),
        ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2", (6,) * 4),
        ("--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 3", (3, 7, 7, 7)),
        (
            (
                "--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 4 "
                "--decoder-last-pipeline-num-layers 4 --num-virtual-stages-per-pipeline-rank 2"
            ),
            (2, 4, 4, 2, 2, 4, 4, 2),
        ),
        (
            (
                "--num-layers 6 --pipeline-model-parallel-size 4 --account-for-embedding-in-pipeline-split "
                "--account-for-loss-in-pipeline-split"
            ),
            (1, 2, 2, 1),
        ),
        ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et*3|(tt,t|)*6t*3L'", (3,) * 8),
        ("--pipeline-model-parallel-size 4 --pipeline-model-parallel-layout 'E|t*12|t*12|L'", (0, 12, 12, 0)),
    ],
)
def test_every_way_to_split_the_layers_is_understood(flags: str, layers: tuple[int, ...]) -> None:
    assert tuple(stage.num_layers for stage in layout_with(flags).stages) == layers


@pytest.mark.parametrize(
    ("flags", "recompute"),
    [
        ("", Recompute(granularity=Granularity.NONE)),
        ("--recompute-activations", Recompute(granularity=Granularity.SELECTIVE, modules=("core_attn",))),
        (
            "--recompute-granularity selective --recompute-modules mlp core_attn",
            Recompute(granularity=Granularity.SELECTIVE, modules=("mlp", "core_attn")),
        ),
        (
            "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
            Recompute(granularity=Granularity.FULL),
        ),
        (
            "--recompute-granularity full --recompute-method block --recompute-num-layers 5",
            Recompute(granularity=Granularity.FULL, num_layers=5),
        ),
    ],
)
def test_recompute_flags_are_understood(flags: str, recompute: Recompute) -> None:
    assert layout_with(flags).recompute == recompute


@pytest.mark.parametrize(
    ("flags", "zero_stage"),
    [
        ("", 0),
        ("--use-distributed-optimizer", 1),
        ("--use-megatron-fsdp", 3),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads", 2),
    ],
)
def test_sharding_flags_are_understood(flags: str, zero_stage: int) -> None:
    assert layout_with(flags).zero_stage == zero_stage


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--tensor-model-parallel-size three",
            ("job.sh:1:116: --tensor-model-parallel-size takes a whole number, 'three' is given.\nWrite a number."),
        ),
        (
            "--tensor-model-parallel-size 3",
            "job.sh: 8 GPUs are not a multiple of tp * pp * cp = 3.\nChange the degrees or the number of GPUs.",
        ),
        (
            "--micro-batch-size 3",
            (
                "job.sh:1:93: global batch 64 is not a multiple of micro-batch size * dp = 24.\n"
                "Change --micro-batch-size or the number of replicas."
            ),
        ),
        (
            "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Et*12|t*11L",
            (
                "job.sh:1:149: --pipeline-model-parallel-layout does not begin with its only E and end with its only "
                "L.\nWrite E...L."
            ),
        ),
        (
            "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et*12|t*11L'",
            (
                "job.sh:1:149: --pipeline-model-parallel-layout places 23 layers, the "
                "model has 24.\nPlace every layer once."
            ),
        ),
        (
            "--pipeline-model-parallel-layout 'Et*99999L'",
            ("job.sh:1:116: --pipeline-model-parallel-layout repeats more than 4096 times.\nPlace every layer once."),
        ),
        (
            "--pipeline-model-parallel-layout 'Et*24mL'",
            (
                "job.sh:1:116: --pipeline-model-parallel-layout does not place 0 prediction modules (m) directly "
                "before L.\nPlans hold them on the LM head's stage."
            ),
        ),
        (
            "--pipeline-model-parallel-size 8 --num-virtual-stages-per-pipeline-rank 2",
            (
                "job.sh: 3 layers cannot be split over 2 virtual stages.\n"
                "Choose a split without remainder, or --pipeline-model-parallel-layout."
            ),
        ),
    ],
)
def test_contradictions_are_errors_that_point_at_the_flag(flags: str, message: str) -> None:
    assert refusal(flags) == message


def test_a_script_without_a_training_program_is_an_error() -> None:
    with pytest.raises(InputError) as caught:
        read_megatron("echo hello", file="job.sh")
    assert str(caught.value) == (
        "job.sh: no command starts a Megatron-LM training program.\n"
        "Expected torchrun with .../pretrain_gpt.py and its arguments."
    )


def test_an_open_number_of_gpus_is_an_error_only_when_it_is_needed() -> None:
    job = job_with("--num-layers 4 --micro-batch-size 1", world='--nnodes "$N"')
    assert dataclasses.asdict(job)["num_nodes"] is None
    with pytest.raises(InputError) as caught:
        layout_of(job)
    assert str(caught.value) == (
        "job.sh: the script does not say how many GPUs it starts on.\n"
        "Give torchrun --nnodes and --nproc-per-node as numbers."
    )


def test_padded_rows_that_plans_would_not_have_are_an_error_that_points_at_the_flag() -> None:
    world = "--nnodes 1 --nproc-per-node 2"
    flags = "--hidden-size 64 --num-layers 4 --num-attention-heads 8 --max-position-embeddings 64 --vocab-size 500"
    assert model_of(job_with(f"{flags} --padded-vocab-size 512", world=world)).vocab_size == 500
    with pytest.raises(InputError) as caught:
        model_of(job_with(f"{flags} --padded-vocab-size 640", world=world))
    assert str(caught.value).endswith(
        "--padded-vocab-size is 640; plans pad 500 rows over tp 1 to 512.\nPlans pad to a multiple of 128 x tp."
    )
