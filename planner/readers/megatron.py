"""Megatron-LM launch scripts, read back: every flag with its place, and the layout that they describe.

What the flags mean, and what Megatron assumes where one is absent: `megatron/training/arguments.py` and
`megatron/core/transformer/pipeline_parallel_layer_layout.py` of megatron-core 0.19.2.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from planner.errors import InputError, Location
from planner.layout import (
    Granularity,
    Layout,
    Overlap,
    Recompute,
    Schedule,
    stages_from_counts,
)
from planner.readers.shell import Command, Script, Word, read_script

PROGRAM = re.compile(r"(?:^|/)(?:pretrain_\w+|lora_gpt)\.py$")
FLAG = re.compile(r"--[A-Za-z]")
BATCH_DIRECTIVE = re.compile(r"SBATCH\s+--(nodes|gpus-per-node|gres)[=\s]\s*(?:gpu:)?(?:\w+:)?([0-9]+)\s*$")

LARGEST_REPEAT = 4096
"""Largest repetition in a pipeline layout that is unrolled; no model has as many layers."""

SHARDING_STRATEGIES = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag as it was given.

    Args:
        name: The flag, with its dashes.
        values: What follows it, up to the next flag.
        line: Where it stands; 1 is the first line.
        column: Where it stands; 1 is the first column.
    """

    name: str
    values: tuple[str, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronJob:
    """A training run as its launch script starts it.

    Args:
        file: The script, for messages.
        program: The training program that is started.
        flags: The flags of the training program, in order; a later one overrides an earlier.
        num_nodes: Nodes that torchrun or Slurm is told of; None when the script leaves it open.
        gpus_per_node: Processes of one node; None when the script leaves it open.
        environment: Variables that the script exports.
    """

    file: str
    program: str
    flags: tuple[Flag, ...]
    num_nodes: int | None
    gpus_per_node: int | None
    environment: Mapping[str, str]

    def flag(self, name: str) -> Flag | None:
        """Return the last use of a flag, which is the one that counts."""
        return next((flag for flag in reversed(self.flags) if flag.name == name), None)

    def has(self, name: str) -> bool:
        """Return whether a flag is given."""
        return self.flag(name) is not None

    def text(self, name: str, default: str) -> str:
        """Return the value of a flag, or what Megatron assumes without it."""
        flag = self.flag(name)
        if flag is None:
            return default
        if len(flag.values) != 1:
            raise self.error(flag, f"takes one value, {len(flag.values)} are given", "Give it one value.")
        return flag.values[0]

    def integer(self, name: str, default: int | None = None) -> int:
        """Return the whole number that a flag gives; without a default the flag is needed."""
        flag = self.flag(name)
        if flag is None:
            if default is None:
                raise InputError(
                    f"{name} is missing.", location=Location(file=self.file), hint="Megatron-LM does not start without."
                )
            return default
        value = self.text(name, "")
        if not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII):
            raise self.error(flag, f"takes a whole number, {value!r} is given", "Write a number.")
        return int(value)

    def number(self, name: str, default: float) -> float:
        """Return the number that a flag gives, or what Megatron assumes without it."""
        value = self.text(name, repr(default))
        try:
            return float(value)
        except ValueError:
            flag = self.flag(name)
            if flag is None:
                raise
            raise self.error(flag, f"takes a number, {value!r} is given", "Write a number.") from None

    def error(self, flag: Flag, problem: str, hint: str) -> InputError:
        """Return the error that points at a flag."""
        location = Location(file=self.file, line=flag.line, column=flag.column)
        return InputError(f"{flag.name} {problem}.", location=location, hint=hint)

    @property
    def world_size(self) -> int:
        """Return the number of processes that the script starts."""
        if self.num_nodes is None or self.gpus_per_node is None:
            raise InputError(
                "the script does not say how many GPUs it starts on.",
                location=Location(file=self.file),
                hint="Give torchrun --nnodes and --nproc-per-node as numbers.",
            )
        return self.num_nodes * self.gpus_per_node


def read_megatron(text: str, *, file: str) -> MegatronJob:
    """Return the training run that a torchrun script or a Slurm batch script starts."""
    script = read_script(text, file=file)
    for command in reversed(script.commands):
        program = next((index for index, word in enumerate(command.words) if PROGRAM.search(word.text)), None)
        if program is not None:
            return _job(script, command, program, file)
    raise InputError(
        "no command starts a Megatron-LM training program.",
        location=Location(file=file),
        hint="Expected torchrun with .../pretrain_gpt.py and its arguments.",
    )


def _job(script: Script, command: Command, program: int, file: str) -> MegatronJob:
    directives = _batch_directives(script)
    launcher = _flags(command.words[:program])
    return MegatronJob(
        file=file,
        program=command.words[program].text,
        flags=_flags(command.words[program + 1 :]),
        num_nodes=_launcher_number(launcher, "--nnodes", directives.get("nodes")),
        gpus_per_node=_launcher_number(
            launcher, "--nproc-per-node", directives.get("gpus-per-node", directives.get("gres"))
        ),
        environment=dict(script.exports),
    )


def _batch_directives(script: Script) -> dict[str, int]:
    found = (BATCH_DIRECTIVE.match(comment) for _, comment in script.comments)
    return {match.group(1): int(match.group(2)) for match in found if match is not None}


def _launcher_number(launcher: tuple[Flag, ...], name: str, directive: int | None) -> int | None:
    """Return what torchrun is told, dashes and underscores alike, else what the batch system is told."""
    for flag in reversed(launcher):
        if flag.name.replace("_", "-") == name and flag.values and flag.values[0].isdecimal():
            return int(flag.values[0])
    return directive


def _flags(words: tuple[Word, ...]) -> tuple[Flag, ...]:
    """Return the flags among the words, each with the values behind it; `--flag=value` is taken apart."""
    flags: list[Flag] = []
    for word in words:
        if FLAG.match(word.text):
            name, equals, value = word.text.partition("=")
            flags.append(
                Flag(name=name, values=(value,) if equals else (), line=word.line, column=word.column),
            )
        elif flags:
            last = flags[-1]
            flags[-1] = Flag(name=last.name, values=(*last.values, word.text), line=last.line, column=last.column)
    return tuple(flags)


def layout_of(job: MegatronJob) -> Layout:
    """Return the layout that the flags describe."""
    tp = job.integer("--tensor-model-parallel-size", 1)
    pp = job.integer("--pipeline-model-parallel-size", 1)
    cp = job.integer("--context-parallel-size", 1)
    replica = tp * pp * cp
    if job.world_size % replica:
        raise InputError(
            f"{job.world_size} GPUs are not a multiple of tp * pp * cp = {replica}.",
            location=Location(file=job.file),
            hint="Change the degrees or the number of GPUs.",
        )
    dp = job.world_size // replica
    counts = _stage_layers(job, pp)
    vpp = len(counts) // pp
    micro_batch_size = job.integer("--micro-batch-size")
    return Layout(
        tp=tp,
        sequence_parallel=tp > 1 and job.has("--sequence-parallel"),
        pp=pp,
        vpp=vpp,
        cp=cp,
        cp_kind=job.text("--cp-comm-type", "p2p") if cp > 1 else None,
        ep=job.integer("--expert-model-parallel-size", 1),
        etp=1,
        dp=dp,
        zero_stage=_zero_stage(job),
        micro_batch_size=micro_batch_size,
        num_microbatches=_num_microbatches(job, micro_batch_size * dp),
        schedule=_schedule(pp, vpp),
        recompute=_recompute(job),
        overlap=Overlap(
            grad_reduce=job.has("--overlap-grad-reduce"),
            param_gather=job.has("--overlap-param-gather"),
            p2p=vpp > 1 and not job.has("--no-overlap-p2p-communication"),
        ),
        stages=stages_from_counts(counts),
        rank_order="tp-cp-ep-pp-dp" if job.has("--use-tp-pp-dp-mapping") else "tp-cp-ep-dp-pp",
    )


def _num_microbatches(job: MegatronJob, sequences_per_round: int) -> int:
    global_batch_size = job.integer("--global-batch-size", sequences_per_round)
    if global_batch_size % sequences_per_round:
        flag = job.flag("--global-batch-size")
        raise InputError(
            f"global batch {global_batch_size} is not a multiple of micro-batch size * dp = {sequences_per_round}.",
            location=Location(file=job.file, line=flag.line if flag else None, column=flag.column if flag else None),
            hint="Change --micro-batch-size or the number of replicas.",
        )
    return global_batch_size // sequences_per_round


def _schedule(pp: int, vpp: int) -> Schedule:
    if pp == 1:
        return Schedule.NO_PIPELINE
    return Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B


def _zero_stage(job: MegatronJob) -> int:
    if job.has("--use-megatron-fsdp"):
        strategy = job.text("--data-parallel-sharding-strategy", "optim_grads_params")
        flag = job.flag("--data-parallel-sharding-strategy")
        if strategy not in SHARDING_STRATEGIES and flag is not None:
            raise job.error(flag, f"is {strategy!r}", f"Use {', '.join(SHARDING_STRATEGIES)}.")
        return SHARDING_STRATEGIES[strategy]
    return 1 if job.has("--use-distributed-optimizer") else 0


def _recompute(job: MegatronJob) -> Recompute:
    """Return the recompute choice; `uniform` over single layers recomputes every layer."""
    granularity = job.flag("--recompute-granularity")
    if granularity is None:
        selective = job.has("--recompute-activations")
        return (
            Recompute(granularity=Granularity.SELECTIVE, modules=("core_attn",))
            if selective
            else Recompute(granularity=Granularity.NONE)
        )
    kind = job.text("--recompute-granularity", "")
    if kind == Granularity.SELECTIVE:
        modules = job.flag("--recompute-modules")
        return Recompute(granularity=Granularity.SELECTIVE, modules=modules.values if modules else ("core_attn",))
    if kind != Granularity.FULL:
        raise job.error(granularity, f"is {kind!r}", "Use full or selective.")
    block = job.text("--recompute-method", "") == "block"
    layers = job.integer("--recompute-num-layers")
    if not block and layers != 1:
        raise job.error(
            granularity,
            f"recomputes groups of {layers} layers (--recompute-method uniform)",
            "Plans know uniform over single layers, and block.",
        )
    return Recompute(granularity=Granularity.FULL, num_layers=layers if block else None)


def _stage_layers(job: MegatronJob, pp: int) -> tuple[int, ...]:
    """Return the decoder layers of each virtual stage, in model order."""
    layers = job.integer("--num-layers")
    layout = job.flag("--pipeline-model-parallel-layout")
    if layout is not None:
        return _custom_stages(job, layout, pp=pp, layers=layers)
    first = job.flag("--decoder-first-pipeline-num-layers")
    last = job.flag("--decoder-last-pipeline-num-layers")
    with_embedding = job.has("--account-for-embedding-in-pipeline-split")
    with_loss = job.has("--account-for-loss-in-pipeline-split")
    slots = layers + with_embedding + with_loss
    vpp = _virtual_stages(job, slots=slots, pp=pp)
    per_rank: list[int] = []
    if first is None and last is None:
        per_rank = [_divided(job, slots, pp, "pipeline stages")] * pp
    else:
        head = job.integer("--decoder-first-pipeline-num-layers", 0)
        tail = job.integer("--decoder-last-pipeline-num-layers", 0)
        middle = pp - (first is not None) - (last is not None)
        inner = _divided(job, layers - head - tail, middle, "middle pipeline stages") if middle > 0 else 0
        per_rank = [head] * (first is not None) + [inner] * middle + [tail] * (last is not None)
    counts = [_divided(job, per_rank[stage % pp], vpp, "virtual stages") for stage in range(pp * vpp)]
    counts[0] -= with_embedding
    counts[-1] -= with_loss
    if sum(counts) != layers or min(counts) < 0:
        raise InputError(
            f"the pipeline stages hold {sum(counts)} layers, the model has {layers}.",
            location=Location(file=job.file),
            hint="Change --num-layers or the split.",
        )
    return tuple(counts)


def _virtual_stages(job: MegatronJob, *, slots: int, pp: int) -> int:
    if job.has("--num-virtual-stages-per-pipeline-rank"):
        return job.integer("--num-virtual-stages-per-pipeline-rank")
    if job.has("--num-layers-per-virtual-pipeline-stage"):
        chunk = job.integer("--num-layers-per-virtual-pipeline-stage")
        return _divided(job, _divided(job, slots, pp, "pipeline stages"), chunk, "layers of a virtual stage")
    return 1


def _divided(job: MegatronJob, layers: int, parts: int, what: str) -> int:
    if parts < 1 or layers < 0 or layers % parts:
        raise InputError(
            f"{layers} layers cannot be split over {parts} {what}.",
            location=Location(file=job.file),
            hint="Choose a split without remainder, or --pipeline-model-parallel-layout.",
        )
    return layers // parts


def _custom_stages(job: MegatronJob, flag: Flag, *, pp: int, layers: int) -> tuple[int, ...]:
    text = job.text(flag.name, "")
    if any(len(count) > 4 or int(count) > LARGEST_REPEAT for count in re.findall(r"[0-9]+", text, re.ASCII)):
        raise job.error(flag, f"repeats more than {LARGEST_REPEAT} times", "Place every layer once.")
    stages = _unrolled(text).split("|")
    unknown = sorted(set("".join(stages)) - set("EtL"))
    if unknown:
        raise job.error(flag, f"has {', '.join(map(repr, unknown))}", "Plans know E, t, L and |.")
    joined = "".join(stages)
    if not (joined.startswith("E") and joined.endswith("L") and joined.count("E") == joined.count("L") == 1):
        raise job.error(flag, "does not begin with its only E and end with its only L", "Write E...L.")
    if joined.count("t") != layers:
        raise job.error(flag, f"places {joined.count('t')} layers, the model has {layers}", "Place every layer once.")
    if len(stages) % pp:
        raise job.error(flag, f"has {len(stages)} stages, not a multiple of pp = {pp}", "Add or merge stages.")
    return tuple(stage.count("t") for stage in stages)


def _unrolled(text: str) -> str:
    """Return a pipeline layout with `(...)*n` and `x*n` written out; commas mean nothing."""
    text = text.replace(",", "")
    text = re.sub(r"\(([^)]+)\)\*([0-9]+)", lambda match: match.group(1) * int(match.group(2)), text)
    return re.sub(r"(.)\*([0-9]+)", lambda match: match.group(1) * int(match.group(2)), text)
