"""DeepSpeed's configuration and the script that starts it, read back: the layout and the workload they describe.

What the keys mean and what DeepSpeed assumes where one is absent: `deepspeed/runtime/config.py` and
`deepspeed/runtime/zero/config.py` of deepspeed 0.19.8. What DeepSpeed accepts and then ignores or gets wrong is refused
here: unknown keys at the top, degrees that do not divide the processes, "auto" outside the Hugging Face integration.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from planner.documents import Document, Node, parse_document
from planner.errors import InputError, Location
from planner.layout import (
    Granularity,
    Layout,
    Offload,
    Overlap,
    Recompute,
    Schedule,
    stages_from_counts,
)
from planner.offloading.drive_step import BUFFERS_OF_SUB_GROUP, DRIVE_SUB_GROUP_ELEMENTS, buffer_count
from planner.offloading.drive_weights import DriveWeights
from planner.offloading.states import SHARDED_WEIGHTS, SUB_GROUP_ELEMENTS
from planner.readers.key_tables import IGNORE_KEY, key_table
from planner.readers.launch_line import LaunchLine, read_launch_line
from planner.readers.programs import DEEPSPEED_PROGRAM
from planner.requests.workload import AttentionKernel, DType, Optimizer, Precision, TrainWorkload

CONFIG_FILE = "ds_config.json"
VERSION = "0.19.8"
"""The version that configurations are written for."""

OPTIMIZERS = {"adam": Optimizer.ADAM, "adamw": Optimizer.ADAM, "sgd": Optimizer.SGD}
DEFAULT_PREFETCH_ELEMENTS = 50_000_000
DEFAULT_WEIGHT_BUFFERS = 5
DEFAULT_WEIGHT_BUFFER_ELEMENTS = 100_000_000
DEFAULT_MAX_IN_CPU = 1_000_000_000
DEFAULT_REUSE_ELEMENTS = 1_000_000_000
"""`runtime/zero/offload_config.py`, `runtime/zero/config.py`: what counts where a key is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeedJob:
    """A training run as its configuration and its script describe it.

    Args:
        config: DeepSpeed's JSON.
        launch: The command that starts the program.
    """

    config: Document
    launch: LaunchLine

    def integer(self, *path: str, default: int | None) -> int | None:
        """Return a whole number that is at least 0, or the default where it is absent or null."""
        node = self._present(path)
        if node is None:
            return default
        value = node.content
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(path, f"takes a whole number, {_shown(node)} is given", "Write a number.")
        return value

    def degree(self, *path: str) -> int:
        """Return a degree of parallelism; DeepSpeed takes 0 for 1."""
        return self.integer(*path, default=1) or 1

    def flag(self, *path: str, default: bool) -> bool:
        """Return a truth value, or the default where it is absent or null."""
        node = self._present(path)
        if node is None:
            return default
        if not isinstance(node.content, bool):
            raise self.error(path, f"takes true or false, {_shown(node)} is given", "Write true or false.")
        return node.content

    def text(self, *path: str, default: str) -> str:
        """Return a text, or the default where it is absent or null."""
        node = self._present(path)
        if node is None:
            return default
        if not isinstance(node.content, str):
            raise self.error(path, f"takes a text, {_shown(node)} is given", "Write it in quotes.")
        return node.content

    def error(self, path: tuple[str, ...], problem: str, hint: str) -> InputError:
        """Return the error that points at a value."""
        return InputError(f"{path[-1]} {problem}.", location=self.config.locate(path), hint=hint)

    def _present(self, path: tuple[str, ...]) -> Node | None:
        for depth in range(1, len(path)):
            section = self.config.node(path[:depth])
            if section is None or section.content is None:
                return None
            if not isinstance(section.content, dict):
                raise self.error(path[:depth], f"takes a section, {_shown(section)} is given", "Write {...}.")
        node = self.config.node(path)
        return None if node is None or node.content is None else node


def _shown(node: Node) -> str:
    if isinstance(node.content, dict | list):
        return "a section" if isinstance(node.content, dict) else "a list"
    return repr(node.content)


def read_deepspeed(script: str, *, file: str, config: str, config_file: str = CONFIG_FILE) -> DeepSpeedJob:
    """Return the training run that a script starts with a configuration.

    Args:
        script: Text of a shell script.
        file: What messages call it.
        config: Text of DeepSpeed's JSON.
        config_file: What messages call it; its name ends in `.json`.
    """
    document = parse_document(config, file=config_file)
    if not isinstance(document.root.content, dict):
        raise InputError("This is no DeepSpeed configuration.", location=document.locate(), hint="Write {...}.")
    for key in document.root.content:
        if key not in top_level_keys() | {IGNORE_KEY}:
            raise InputError(
                f"DeepSpeed {VERSION} does not know the key `{key}` and would ignore it.",
                location=document.locate((key,), key=True),
                hint=_nearest(key),
            )
    return DeepSpeedJob(config=document, launch=read_launch_line(script, file=file, kind=DEEPSPEED_PROGRAM))


@cache
def top_level_keys() -> frozenset[str]:
    """Return every key at the top that something in DeepSpeed looks at; it reads no other and says nothing."""
    return frozenset(name for name, key in key_table(VERSION).keys.items() if not key.removed)


def _nearest(key: str) -> str:
    similar = get_close_matches(key.replace("-", "_").lower(), sorted(top_level_keys()), n=2, cutoff=0.85)
    return f"Did you mean {' or '.join(similar)}?" if similar else "Remove it, or move it into its section."


def layout_of_files(files: Mapping[str, str], *, script: str) -> Layout:
    """Return the layout that one script among emitted files says together with the configuration beside it."""
    return layout_of(read_deepspeed(files[script], file=script, config=files[CONFIG_FILE]))


def layout_of(job: DeepSpeedJob) -> Layout:
    """Return the layout that the configuration and the arguments describe."""
    counts = _stage_layers(job)
    tp, cp, pp = job.degree("tensor_parallel", "autotp_size"), job.degree("sequence_parallel_size"), len(counts)
    world = job.launch.world_size
    if world % (tp * cp * pp):
        raise InputError(
            f"{world} GPUs are not a multiple of autotp_size * sequence_parallel_size * pipeline stages "
            f"= {tp * cp * pp}; DeepSpeed itself would not say.",
            location=Location(file=job.launch.file),
            hint="Change the degrees or the number of GPUs.",
        )
    dp = world // (tp * cp * pp)
    micro_batch_size, num_microbatches = _batch(job, dp)
    zero_stage = job.integer("zero_optimization", "stage", default=0) or 0
    if zero_stage > 3:
        raise job.error(("zero_optimization", "stage"), f"is {zero_stage}", "Use 0, 1, 2 or 3.")
    return Layout(
        tp=tp,
        sequence_parallel=False,
        pp=pp,
        vpp=1,
        cp=cp,
        ulysses=cp,
        dp=dp,
        node_order=job.launch.node_order,
        zero_stage=zero_stage,
        micro_batch_size=micro_batch_size,
        num_microbatches=num_microbatches,
        schedule=Schedule.ONE_F_ONE_B if pp > 1 else Schedule.NO_PIPELINE,
        recompute=_recompute(job, pp),
        offload=_offload(job, zero_stage),
        overlap=_overlap(job, zero_stage),
        stages=stages_from_counts(counts),
        secondary_shard=job.degree("zero_optimization", "zero_hpz_partition_size"),
    )


def _stage_layers(job: DeepSpeedJob) -> tuple[int, ...]:
    """Return the decoder layers of each pipeline stage, which only the training program is told."""
    text = job.launch.text("--layers-per-stage")
    argument = job.launch.flag("--layers-per-stage")
    if argument is not None and not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", text, re.ASCII):
        raise job.launch.error(
            argument, f"takes layers of each stage, {text!r} is given", "Write numbers with commas, as 10,12,12,10."
        )
    return tuple(int(count) for count in text.split(","))


def _batch(job: DeepSpeedJob, dp: int) -> tuple[int, int]:
    """Return micro-batch size and micro-batches, completed as `_set_batch_related_parameters` completes them."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    total, micro, steps = (job.integer(name, default=None) for name in names)
    if total is None and micro is None:
        raise InputError(
            "neither train_batch_size nor train_micro_batch_size_per_gpu is given.",
            location=job.config.locate(),
            hint="DeepSpeed needs one of the two.",
        )
    if micro is None:
        micro = (total or 0) // dp // (steps or 1)
    if steps is None:
        steps = 1 if total is None else total // max(micro, 1) // dp
    if total is None:
        total = micro * steps * dp
    if min(micro, steps) < 1 or micro * steps * dp != total:
        given = next(name for name in names if job.config.node((name,)) is not None)
        raise InputError(
            f"train_batch_size {total} is not micro-batch {micro} * accumulation {steps} * dp {dp} "
            f"= {micro * steps * dp}.",
            location=job.config.locate((given,)),
            hint="Change one of the three; dp is what tp, cp and pp leave of the GPUs.",
        )
    return micro, steps


def _recompute(job: DeepSpeedJob, pp: int) -> Recompute:
    """Return the recompute choice: the program's argument, and with pipeline stages DeepSpeed's interval too."""
    kind = job.launch.text("--recompute", "none")
    argument = job.launch.flag("--recompute")
    if argument is not None and kind not in {"none", "full"}:
        raise job.launch.error(argument, f"is {kind!r}", "Use none or full.")
    interval = job.integer("pipeline", "activation_checkpoint_interval", default=0) if pp > 1 else None
    expected = 1 if kind == "full" else 0
    if interval is not None and interval != expected:
        raise job.error(
            ("pipeline", "activation_checkpoint_interval"),
            f"is {interval} where --recompute is {kind}",
            f"Use {expected}, or change --recompute.",
        )
    return Recompute(granularity=Granularity.FULL if kind == "full" else Granularity.NONE)


def _offload(job: DeepSpeedJob, zero_stage: int) -> Offload | None:
    """Return what lies on the host; what DeepSpeed takes there and plans do not price is refused."""
    zero = "zero_optimization"
    states, parameters = (_is_hosted(job, section) for section in ("offload_optimizer", "offload_param"))
    if parameters and (not states or zero_stage != SHARDED_WEIGHTS):
        raise job.error(
            (zero, "offload_param"),
            "without stage 3 and offload_optimizer is not priced by plans",
            "Use stage 3 and offload_optimizer with it, or no offload_param.",
        )
    if not states:
        return None
    if zero_stage != SHARDED_WEIGHTS:
        raise job.error(
            (zero, "offload_optimizer"),
            f"with stage {zero_stage} is not priced by plans",
            "Use stage 3, or no offload.",
        )
    drives, parameter_drives = (_is_on_drives(job, section) for section in ("offload_optimizer", "offload_param"))
    overlapped = drives and _is_pipelined(job)
    if drives or parameter_drives:
        _require_sub_groups(job, "states" if drives else "weights")
    if parameter_drives:
        _require_all_on_drives(job)
    return Offload(
        optimizer_fraction=_ratio(job, whole=parameters or drives),
        overlapped=overlapped,
        parameters=parameters,
        drives=drives,
        parameter_drives=parameter_drives,
    )


def _is_on_drives(job: DeepSpeedJob, section: str) -> bool:
    """Return whether a section of `zero_optimization` puts something on drives."""
    place = ("zero_optimization", section)
    if job.text(*place, "device", default="none") != "nvme":
        return False
    if job.config.node((*place, "nvme_path")) is None:
        raise job.error((*place, "device"), "is 'nvme' without nvme_path", "Name a folder on the drives of each node.")
    return True


def _require_sub_groups(job: DeepSpeedJob, what: str) -> None:
    """Refuse sub-groups of another size than plans write with something on drives."""
    place = ("zero_optimization", "sub_group_size")
    size = job.integer(*place, default=SUB_GROUP_ELEMENTS)
    if size != DRIVE_SUB_GROUP_ELEMENTS:
        raise job.error(
            place,
            f"is {size}, which plans do not price with {what} on drives",
            f"Use {DRIVE_SUB_GROUP_ELEMENTS}.",
        )


def _require_all_on_drives(job: DeepSpeedJob) -> None:
    """Refuse weights of which a part stays in host memory, beside those on drives."""
    place = ("zero_optimization", "offload_param", "max_in_cpu")
    kept = job.integer(*place, default=DEFAULT_MAX_IN_CPU)
    if kept:
        given = job.config.node(place) is not None
        raise job.error(
            place if given else place[:-1],
            f"is {kept} elements, which plans do not price" if given else "keeps weights in host memory by default",
            'Add "max_in_cpu": 0.' if not given else "Use 0.",
        )


def require_buffers(job: DeepSpeedJob, weights: DriveWeights) -> None:
    """Refuse buffers of weights on drives, or a distance, that are not what a plan prices.

    Args:
        job: A run whose weights are on drives.
        weights: What its model needs.

    Raises:
        InputError: Another number is given, or none.
    """
    zero = "zero_optimization"
    for path, default, needed in (
        ((zero, "offload_param", "buffer_count"), DEFAULT_WEIGHT_BUFFERS, weights.num_buffers),
        ((zero, "offload_param", "buffer_size"), DEFAULT_WEIGHT_BUFFER_ELEMENTS, weights.buffer_elements),
        ((zero, "stage3_max_reuse_distance"), DEFAULT_REUSE_ELEMENTS, weights.reuse_elements),
    ):
        given = job.integer(*path, default=default)
        if given != needed:
            raise job.error(path, f"is {given} where plans price {needed}", f"Use {needed}.")


def _ratio(job: DeepSpeedJob, *, whole: bool) -> float:
    """Return the part of the states' sub-groups that is on the host; no other than 1 where all must go."""
    place = ("zero_optimization", "offload_optimizer", "ratio")
    node = job.config.node(place)
    if node is None or node.content is None:
        return 1.0
    ratio = node.content
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0.0 <= ratio <= 1.0:
        raise job.error(place, f"takes a number from 0 to 1, {_shown(node)} is given", "Write 1.0, or a part.")
    if whole and ratio != 1:
        raise job.error(place, f"is {_shown(node)}, which plans price with states on the hosts alone", "Use 1.0.")
    if not ratio:
        raise job.error(place, "is 0: all states stay on the GPU", "Remove offload_optimizer, or use more.")
    return float(ratio)


def sub_group_size_of(job: DeepSpeedJob) -> int:
    """Return the elements that a sub-group of states holds at least."""
    return job.integer("zero_optimization", "sub_group_size", default=SUB_GROUP_ELEMENTS) or 0


def _is_pipelined(job: DeepSpeedJob) -> bool:
    """Return whether states on drives are read ahead and written behind; what plans do not price is refused."""
    place = ("zero_optimization", "offload_optimizer")
    reads, writes = (job.flag(*place, name, default=False) for name in ("pipeline_read", "pipeline_write"))
    if reads is not writes:
        raise job.error(
            (*place, "pipeline_read" if reads else "pipeline_write"),
            "is true without the other, which plans do not price",
            "Use pipeline_read and pipeline_write together, or neither.",
        )
    needed = buffer_count(pipelined=reads)
    buffers = job.integer(*place, "buffer_count", default=BUFFERS_OF_SUB_GROUP)
    if buffers != needed:
        raise job.error(
            (*place, "buffer_count"), f"is {buffers} where the step needs {needed}", f"Use {needed} buffers."
        )
    return reads


def _is_hosted(job: DeepSpeedJob, section: str) -> bool:
    """Return whether a section of `zero_optimization` puts something into page-locked host memory, or on drives."""
    zero = "zero_optimization"
    device = job.text(zero, section, "device", default="none")
    if device == "none":
        return False
    if device not in {"cpu", "nvme"}:
        raise job.error((zero, section, "device"), f"is {device!r}", "Plans price cpu, nvme, or none.")
    if not job.flag(zero, section, "pin_memory", default=True):
        raise job.error((zero, section, "pin_memory"), "is false, which plans do not price", "Use true.")
    return True


def _overlap(job: DeepSpeedJob, zero_stage: int) -> Overlap:
    """Return what is hidden: `overlap_comm` also moves stage 3's gathering to a stream of its own."""
    if zero_stage == 0:
        return Overlap(grad_reduce=False, param_gather=False, p2p=False)
    overlapped = job.flag("zero_optimization", "overlap_comm", default=zero_stage == 3)
    prefetched = job.integer("zero_optimization", "stage3_prefetch_bucket_size", default=DEFAULT_PREFETCH_ELEMENTS)
    return Overlap(grad_reduce=overlapped, param_gather=overlapped and zero_stage == 3 and bool(prefetched), p2p=False)


def workload_of(job: DeepSpeedJob) -> TrainWorkload:
    """Return the training run that configuration and arguments describe, as far as they say it."""
    layout = layout_of(job)
    precision = _precision(job)
    name = job.text("optimizer", "type", default="AdamW")
    if name.lower() not in OPTIMIZERS:
        raise job.error(("optimizer", "type"), f"is {name!r}", "Plans know AdamW and SGD.")
    data = job.launch.flag("--data")
    kernel = job.launch.text("--attention", AttentionKernel.FLASH.value)
    argument = job.launch.flag("--attention")
    if argument is not None and kernel not in set(AttentionKernel):
        raise job.launch.error(argument, f"is {kernel!r}", f"Use {', '.join(AttentionKernel)}.")
    seq_len = job.launch.integer("--seq-len")
    return TrainWorkload(
        seq_len=seq_len,
        global_batch_size=layout.global_batch_size,
        precision=precision,
        gradient_dtype=_gradient_dtype(job, precision),
        optimizer=OPTIMIZERS[name.lower()],
        attention_kernel=AttentionKernel(kernel),
        tokens_to_train=job.launch.integer("--steps") * seq_len * layout.global_batch_size,
        hidden_dropout=job.launch.number("--hidden-dropout", 0.0),
        attention_dropout=job.launch.number("--attention-dropout", 0.0),
        data_path=data.values if data is not None else (),
    )


def _precision(job: DeepSpeedJob) -> Precision:
    bf16 = job.flag("bf16", "enabled", default=job.flag("bfloat16", "enabled", default=False))
    fp16 = job.flag("fp16", "enabled", default=False)
    if bf16 == fp16:
        raise InputError(
            "bf16 and fp16 are both enabled." if bf16 else "neither bf16 nor fp16 is enabled.",
            location=job.config.locate(("fp16", "enabled") if fp16 else ()),
            hint="Plans train in one of the two.",
        )
    return Precision.BF16 if bf16 else Precision.FP16


def _gradient_dtype(job: DeepSpeedJob, precision: Precision) -> DType:
    default = precision.parameter_dtype
    name = job.text("data_types", "grad_accum_dtype", default=default.value)
    if name not in {DType.FP32, default}:
        raise job.error(
            ("data_types", "grad_accum_dtype"), f"is {name!r} with {precision}", f"Use {DType.FP32} or {default}."
        )
    return DType(name)
