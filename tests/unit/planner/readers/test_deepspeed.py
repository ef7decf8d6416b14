"""DeepSpeed's configuration and its launch line, read back; every error points at its place."""

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from planner.errors import InputError
from planner.layout import Granularity, Offload
from planner.readers.deepspeed import DeepSpeedJob, layout_of, read_deepspeed, workload_of
from planner.requests.workload import DType, Optimizer, Precision

SCRIPT = """\
deepspeed --num_nodes 2 --num_gpus=4 dir/train_deepspeed.py \\
    --layers-per-stage 12 --seq-len 4096 --steps 7
"""
CONFIG: Mapping[str, object] = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 2,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2, "overlap_comm": True},
}


def job_of(changes: Mapping[str, object] = MappingProxyType({}), *, script: str = SCRIPT) -> DeepSpeedJob:
    """Return the job of the configuration above with some keys changed; None removes one."""
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    return read_deepspeed(script, file="launch.sh", config=json.dumps(config, indent=1), config_file="ds.json")


def test_what_is_left_out_is_what_deepspeed_assumes() -> None:
    layout = layout_of(job_of())
    assert (layout.dp, layout.micro_batch_size, layout.num_microbatches, layout.zero_stage) == (8, 2, 2, 2)
    assert (layout.tp, layout.cp, layout.pp, layout.secondary_shard) == (1, 1, 1, 1)
    assert layout.recompute.granularity is Granularity.NONE
    workload = workload_of(job_of())
    assert (workload.precision, workload.gradient_dtype) == (Precision.BF16, DType.BF16)
    assert (workload.optimizer, workload.tokens_to_train) == (Optimizer.ADAM, 7 * 4096 * 32)


@pytest.mark.parametrize(
    ("given", "micro", "steps"),
    [
        ({"train_batch_size": None, "gradient_accumulation_steps": 3}, 2, 3),
        ({"train_micro_batch_size_per_gpu": None, "gradient_accumulation_steps": 2}, 2, 2),
        ({"train_micro_batch_size_per_gpu": None}, 4, 1),
        ({"train_batch_size": None}, 2, 1),
        ({"train_batch_size": 32.0}, 2, 2),
    ],
)
def test_the_batch_is_completed_as_deepspeed_completes_it(given: Mapping[str, object], micro: int, steps: int) -> None:
    layout = layout_of(job_of(given))
    assert (layout.micro_batch_size, layout.num_microbatches) == (micro, steps)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stage_three_overlaps_unless_told_otherwise(stage: int) -> None:
    overlap = layout_of(job_of({"zero_optimization": {"stage": stage}})).overlap
    assert (overlap.grad_reduce, overlap.param_gather) == (stage == 3, stage == 3)
    quiet = layout_of(job_of({"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 0}})).overlap
    assert (quiet.grad_reduce, quiet.param_gather) == (True, False)


def test_torchrun_and_batch_directives_say_the_size() -> None:
    program = "train_deepspeed.py --layers-per-stage 6,6"
    for text in (
        f"torchrun --nnodes 1 --nproc-per-node 4 {program}",
        f"python -m torch.distributed.run --nnodes=1 --nproc_per_node=4 {program}",
        f"#SBATCH --nodes=1\n#SBATCH --gpus-per-node=4\nsrun {program}",
    ):
        layout = layout_of(job_of({"train_batch_size": 16}, script=text))
        assert (layout.pp, layout.dp, layout.num_microbatches) == (2, 2, 4)


ERRORS: Mapping[str, tuple[Mapping[str, object], str]] = {
    "an unknown key": (
        {"zero_optimisation": {"stage": 3}},
        "ds.json:11:2: zero_optimisation: DeepSpeed 0.19.8 does not know the key `zero_optimisation` and would",
    ),
    "a key that is like one": ({"zero_optimisation": {}}, "would ignore it.\nDid you mean zero_optimization?"),
    "a key like no other": ({"stage": 3}, "would ignore it.\nRemove it, or move it into its section."),
    "a key with dashes": ({"train-batch-size": 1}, "would ignore it.\nDid you mean train_batch_size?"),
    "auto": (
        {"train_batch_size": "auto"},
        "ds.json:2:22: train_batch_size: train_batch_size takes a whole number, 'auto'",
    ),
    "a truth value": ({"zero_optimization": {"stage": True}}, "stage takes a whole number, True is given."),
    "a negative number": ({"sequence_parallel_size": -2}, "sequence_parallel_size takes a whole number, -2 is given."),
    "a section that is none": ({"zero_optimization": 2}, "zero_optimization takes a section, 2 is given."),
    "a text for a truth value": (
        {"zero_optimization": {"stage": 1, "overlap_comm": "yes"}},
        "overlap_comm takes true or false, 'yes' is given.",
    ),
    "a stage": ({"zero_optimization": {"stage": 4}}, "stage is 4.\nUse 0, 1, 2 or 3."),
    "no batch": (
        {"train_batch_size": None, "train_micro_batch_size_per_gpu": None},
        "neither train_batch_size nor train_micro_batch_size_per_gpu is given.",
    ),
    "a batch that does not divide": (
        {"train_batch_size": 33},
        "train_batch_size 33 is not micro-batch 2 * accumulation 2 * dp 8 = 32.",
    ),
    "a degree that does not divide": (
        {"sequence_parallel_size": 3},
        "launch.sh: 8 GPUs are not a multiple of autotp_size * sequence_parallel_size * pipeline stages = 3",
    ),
    "a list": ({"tensor_parallel": {"autotp_size": [2]}}, "autotp_size takes a whole number, a list is given."),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_the_configuration_say_where(name: str) -> None:
    changes, message = ERRORS[name]
    with pytest.raises(InputError) as caught:
        layout_of(job_of(changes))
    assert message in str(caught.value)


LINES: Mapping[str, tuple[str, str]] = {
    "no program": ("echo hello", "launch.sh: no command starts a training program."),
    "no size": ("torchrun train_deepspeed.py --layers-per-stage 4", "does not say how many GPUs it starts on."),
    "no stages": (
        "deepspeed --num_nodes 1 --num_gpus 8 train_deepspeed.py",
        "launch.sh: --layers-per-stage is missing.",
    ),
    "stages that are no numbers": (
        "deepspeed --num_nodes 1 --num_gpus 8 train_deepspeed.py --layers-per-stage 4,x",
        "launch.sh:1:57: --layers-per-stage takes layers of each stage, '4,x' is given.",
    ),
    "two values": (
        "deepspeed --num_nodes 1 --num_gpus 8 train_deepspeed.py --layers-per-stage 4 4",
        "--layers-per-stage takes one value, 2 are given.",
    ),
    "a recompute that is none": (
        "deepspeed --num_nodes 1 --num_gpus 8 train_deepspeed.py --layers-per-stage 4 --recompute some",
        "--recompute is 'some'.\nUse none or full.",
    ),
    "recompute against the interval": (
        "deepspeed --num_nodes 1 --num_gpus 8 train_deepspeed.py --layers-per-stage 2,2 --recompute full",
        "activation_checkpoint_interval is 0 where --recompute is full.\nUse 1, or change --recompute.",
    ),
    "an open quote": ("torchrun 'train_deepspeed.py", "' is missing."),
}


@pytest.mark.parametrize("name", LINES)
def test_errors_of_the_launch_line_say_where(name: str) -> None:
    text, message = LINES[name]
    with pytest.raises(InputError) as caught:
        layout_of(job_of({"pipeline": {"activation_checkpoint_interval": 0}}, script=text))
    assert message in str(caught.value)


RUNS: Mapping[str, tuple[Mapping[str, object], str]] = {
    "neither format": ({"bf16": None}, "neither bf16 nor fp16 is enabled."),
    "both formats": ({"fp16": {"enabled": True}}, "bf16 and fp16 are both enabled."),
    "an optimizer": ({"optimizer": {"type": "Lion"}}, "type is 'Lion'.\nPlans know AdamW and SGD."),
    "a number for a name": ({"optimizer": {"type": 3}}, "type takes a text, 3 is given."),
    "gradients": ({"data_types": {"grad_accum_dtype": "fp16"}}, "grad_accum_dtype is 'fp16' with bf16."),
}


@pytest.mark.parametrize("name", RUNS)
def test_errors_of_the_workload_say_where(name: str) -> None:
    changes, message = RUNS[name]
    with pytest.raises(InputError) as caught:
        workload_of(job_of(changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seq-len x", "--seq-len takes a whole number, 'x' is given."),
        ("--hidden-dropout x", "--hidden-dropout takes a number, 'x' is given."),
        ("--attention fast", "--attention is 'fast'."),
    ],
)
def test_errors_of_the_programs_arguments_say_where(words: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        workload_of(job_of(script=SCRIPT.rstrip() + f" {words}"))
    assert message in str(caught.value)


@pytest.mark.parametrize("config", ["[]", "3", '"text"'])
def test_a_configuration_is_a_mapping(config: str) -> None:
    with pytest.raises(InputError, match="This is no DeepSpeed configuration"):
        read_deepspeed(SCRIPT, file="launch.sh", config=config)


def offloading(stage: int = 3, **keys: object) -> Mapping[str, object]:
    return {"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu", **keys}}}


HOSTED = {"device": "cpu"}


def driving(stage: int = 3, sub_group: int | None = 100_000_000, **keys: object) -> Mapping[str, object]:
    """Return changes that put the states on drives, other keys of that section changed or with None left out."""
    section = {"device": "nvme", "nvme_path": "/local", "buffer_count": 4, **keys}
    given = {name: value for name, value in section.items() if value is not None}
    sizes = {} if sub_group is None else {"sub_group_size": sub_group}
    return {"zero_optimization": {"stage": stage, "offload_optimizer": given, **sizes}}


def test_states_and_weights_on_the_host_are_read() -> None:
    offload = Offload(optimizer_fraction=1.0, overlapped=False)
    assert layout_of(job_of(offloading())).offload == offload
    assert layout_of(job_of(offloading(ratio=1.0, pin_memory=True))).offload == offload
    assert layout_of(job_of(offloading(ratio=0.25))).offload == replace(offload, optimizer_fraction=0.25)
    assert layout_of(job_of(offloading(device="none"))).offload is None
    nothing = {"stage": 3, "offload_param": {"device": "none"}, "offload_optimizer": None}
    assert layout_of(job_of({"zero_optimization": nothing})).offload is None
    both = {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": HOSTED}
    assert layout_of(job_of({"zero_optimization": both})).offload == replace(offload, parameters=True)


def weighing(**changed: object) -> Mapping[str, object]:
    """Return changes that put the weights on drives and the states on the host, with keys changed or left out."""
    keys = {"sub_group_size": 100_000_000, "nvme_path": "/local", "max_in_cpu": 0, **changed}
    given = {name: value for name, value in keys.items() if value is not None}
    sizes = {name: given.pop(name) for name in ("sub_group_size",) if name in given}
    weights = {"device": "nvme", **given}
    return {"zero_optimization": {"stage": 3, "offload_optimizer": HOSTED, "offload_param": weights, **sizes}}


def test_weights_on_drives_are_read() -> None:
    offload = Offload(optimizer_fraction=1.0, overlapped=False, parameters=True, parameter_drives=True)
    assert layout_of(job_of(weighing())).offload == offload
    states = driving()["zero_optimization"]
    weights = weighing()["zero_optimization"]
    assert isinstance(states, dict)
    assert isinstance(weights, dict)
    both = {"zero_optimization": {**states, "offload_param": weights["offload_param"]}}
    assert layout_of(job_of(both)).offload == replace(offload, drives=True)


def test_states_on_drives_are_read() -> None:
    offload = Offload(optimizer_fraction=1.0, overlapped=False, drives=True)
    assert layout_of(job_of(driving())).offload == offload
    both = driving(pipeline_read=True, pipeline_write=True, buffer_count=12)
    assert layout_of(job_of(both)).offload == replace(offload, overlapped=True)
    weights = driving()["zero_optimization"]
    assert isinstance(weights, dict)
    hosted = {"zero_optimization": {**weights, "offload_param": {"device": "cpu"}}}
    assert layout_of(job_of(hosted)).offload == replace(offload, parameters=True)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (
            driving(nvme_path=None),
            "device is 'nvme' without nvme_path.",
            "Name a folder on the drives of each node.",
        ),
        (
            driving(pipeline_read=True, buffer_count=12),
            "pipeline_read is true without the other, which plans do not price.",
            "Use pipeline_read and pipeline_write together, or neither.",
        ),
        (
            driving(pipeline_read=True, pipeline_write=True),
            "buffer_count is 4 where the step needs 12.",
            "Use 12 buffers.",
        ),
        (driving(buffer_count=5), "buffer_count is 5 where the step needs 4.", "Use 4 buffers."),
        (
            driving(sub_group=None),
            "sub_group_size is 1000000000, which plans do not price with states on drives.",
            "Use 100000000.",
        ),
        (driving(ratio=0.5), "ratio is 0.5, which plans price with states on the hosts alone.", "Use 1.0."),
        (driving(stage=2), "offload_optimizer with stage 2 is not priced by plans.", "Use stage 3, or no offload."),
        (offloading(stage=2), "offload_optimizer with stage 2 is not priced by plans.", "Use stage 3, or no offload."),
        (offloading(pin_memory=False), "pin_memory is false, which plans do not price.", "Use true."),
        (
            offloading(ratio=0.0),
            "ratio is 0: all states stay on the GPU.",
            "Remove offload_optimizer, or use more.",
        ),
        (offloading(ratio=1.5), "ratio takes a number from 0 to 1, 1.5 is given.", "Write 1.0, or a part."),
        (offloading(ratio=True), "ratio takes a number from 0 to 1, True is given.", "Write 1.0, or a part."),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
            "offload_param without stage 3 and offload_optimizer is not priced by plans.",
            "Use stage 3 and offload_optimizer with it, or no offload_param.",
        ),
        (
            {"zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}, "offload_optimizer": HOSTED}},
            "offload_param without stage 3 and offload_optimizer is not priced by plans.",
            "Use stage 3 and offload_optimizer with it, or no offload_param.",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}, "offload_optimizer": HOSTED}},
            "device is 'nvme' without nvme_path.",
            "Name a folder on the drives of each node.",
        ),
        (
            weighing(sub_group_size=None),
            "sub_group_size is 1000000000, which plans do not price with weights on drives.",
            "Use 100000000.",
        ),
        (
            weighing(max_in_cpu=None),
            "offload_param keeps weights in host memory by default.",
            'Add "max_in_cpu": 0.',
        ),
        (
            weighing(max_in_cpu=1000),
            "max_in_cpu is 1000 elements, which plans do not price.",
            "Use 0.",
        ),
        (
            {
                "zero_optimization": {
                    "stage": 3,
                    "offload_param": {"device": "cpu", "pin_memory": False},
                    "offload_optimizer": HOSTED,
                }
            },
            "pin_memory is false, which plans do not price.",
            "Use true.",
        ),
    ],
)
def test_what_is_offloaded_otherwise_is_refused(changes: Mapping[str, object], message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        layout_of(job_of(changes))
    assert (caught.value.message, caught.value.hint) == (message, hint)
    assert caught.value.location is not None
    assert caught.value.location.line is not None
