"""The layout that a Megatron-LM launch script describes.

What the flags mean, and what Megatron assumes where one is absent: `megatron/training/arguments.py` of megatron-core
0.19.2.
"""

from planner.errors import InputError, Location
from planner.layout import (
    OFFLOADABLE,
    REPLICAS_OUTERMOST,
    STAGES_OUTERMOST,
    Granularity,
    Layout,
    Offload,
    Overlap,
    Recompute,
    Schedule,
    stages_from_counts,
)
from planner.readers.launch_line import LaunchLine, read_launch_line
from planner.readers.megatron_stages import stage_layers
from planner.readers.programs import MEGATRON_PROGRAM

SHARDING_STRATEGIES = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}


def read_megatron(text: str, *, file: str) -> LaunchLine:
    """Return the training run that a torchrun script or a Slurm batch script starts."""
    return read_launch_line(text, file=file, kind=MEGATRON_PROGRAM)


def layout_of(job: LaunchLine) -> Layout:
    """Return the layout that the flags describe."""
    tp = job.positive("--tensor-model-parallel-size", 1)
    pp = job.positive("--pipeline-model-parallel-size", 1)
    cp = job.positive("--context-parallel-size", 1)
    replica = tp * pp * cp
    if job.world_size % replica:
        raise InputError(
            f"{job.world_size} GPUs are not a multiple of tp * pp * cp = {replica}.",
            location=Location(file=job.file),
            hint="Change the degrees or the number of GPUs.",
        )
    dp = job.world_size // replica
    counts = stage_layers(job, pp)
    vpp = len(counts) // pp
    micro_batch_size = job.positive("--micro-batch-size")
    ep, etp = _expert_degrees(job, tp=tp, stage_ranks=tp * cp * dp)
    return Layout(
        tp=tp,
        sequence_parallel=tp > 1 and job.has("--sequence-parallel"),
        pp=pp,
        vpp=vpp,
        cp=cp,
        ulysses=_ulysses(job, cp),
        ep=ep,
        etp=etp,
        dp=dp,
        zero_stage=_zero_stage(job),
        state_replicas=job.positive("--num-distributed-optimizer-instances", 1),
        micro_batch_size=micro_batch_size,
        num_microbatches=_num_microbatches(job, micro_batch_size * dp),
        schedule=_schedule(pp, vpp),
        recompute=_recompute(job),
        overlap=Overlap(
            grad_reduce=job.has("--overlap-grad-reduce"),
            param_gather=job.has("--overlap-param-gather"),
            p2p=vpp > 1 and not job.has("--no-overlap-p2p-communication"),
        ),
        offload=_offload(job),
        offloaded_layers=job.integer("--cpu-offloading-num-layers", 0),
        offloaded_modules=_offloaded_modules(job),
        stages=stages_from_counts(counts),
        node_order=job.node_order,
        rank_order=REPLICAS_OUTERMOST if job.has("--use-tp-pp-dp-mapping") else STAGES_OUTERMOST,
    )


def _expert_degrees(job: LaunchLine, *, tp: int, stage_ranks: int) -> tuple[int, int]:
    """Return ep and etp; without a word on it, experts are split over tp like everything else."""
    if not job.integer("--num-experts", 0):
        return 1, 1
    ep = job.positive("--expert-model-parallel-size", 1)
    etp = job.positive("--expert-tensor-parallel-size", tp)
    if stage_ranks % (ep * etp):
        raise InputError(
            f"ep * etp = {ep * etp} does not divide tp * cp * dp = {stage_ranks}.",
            location=Location(file=job.file),
            hint="Change --expert-model-parallel-size or --expert-tensor-parallel-size.",
        )
    return ep, etp


def _ulysses(job: LaunchLine, cp: int) -> int:
    """Return the part of cp that exchanges heads."""
    flag = job.flag("--cp-comm-type")
    if cp == 1 or flag is None:
        return 1
    kind = job.text(flag.name, "p2p")
    if kind == "p2p":
        return 1
    if kind == "a2a":
        return cp
    if kind != "a2a+p2p":
        raise job.error(flag, f"is {kind!r}", "Plans know p2p, a2a and a2a+p2p.")
    sizes = job.flag("--hierarchical-context-parallel-sizes")
    if sizes is None:
        raise job.error(flag, "needs --hierarchical-context-parallel-sizes", "Give the sizes of all-to-all and ring.")
    numbers = [int(value) for value in sizes.values if value.isdecimal() and len(value) < 10]
    if len(sizes.values) != 2 or len(numbers) != 2 or numbers[0] * numbers[1] != cp:
        raise job.error(sizes, f"is {' '.join(sizes.values)}", f"Give two numbers whose product is cp = {cp}.")
    return numbers[0]


def _num_microbatches(job: LaunchLine, sequences_per_round: int) -> int:
    global_batch_size = job.positive("--global-batch-size", sequences_per_round)
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


def _zero_stage(job: LaunchLine) -> int:
    if job.has("--use-megatron-fsdp"):
        strategy = job.text("--data-parallel-sharding-strategy", "optim_grads_params")
        flag = job.flag("--data-parallel-sharding-strategy")
        if strategy not in SHARDING_STRATEGIES and flag is not None:
            raise job.error(flag, f"is {strategy!r}", f"Use {', '.join(SHARDING_STRATEGIES)}.")
        return SHARDING_STRATEGIES[strategy]
    return 1 if job.has("--use-distributed-optimizer") else 0


def _offloaded_modules(job: LaunchLine) -> tuple[str, ...]:
    """Return the modules whose saved tensors wait on the host: all groups of them, or the plan would be another."""
    if not job.has("--fine-grained-activation-offloading"):
        return ()
    flag = job.flag("--offload-modules")
    if flag is None:
        return ()
    unknown = next((name for name in flag.values if name not in OFFLOADABLE), None)
    if unknown is not None:
        raise job.error(flag, f"names {unknown!r}", f"Plans know {', '.join(OFFLOADABLE)}.")
    for name, whole in (("--activation-offload-fraction", 1.0), ("--delta-offload-bytes-across-pp-ranks", 0.0)):
        part = job.flag(name)
        text = job.text(name, str(whole))
        if part is not None and _number(text) != whole:
            raise job.error(part, f"is {text!r}", f"Plans offload every group of a module: write {whole:g}.")
    return tuple(name for name in OFFLOADABLE if name in flag.values)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _offload(job: LaunchLine) -> Offload | None:
    """Return what lies on the host; `--optimizer-offload-fraction` is 1 unless given, and 0 moves nothing."""
    if not job.has("--optimizer-cpu-offload"):
        return None
    text = job.text("--optimizer-offload-fraction", "1.0")
    flag = job.flag("--optimizer-offload-fraction")
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if flag is not None and not 0.0 <= fraction <= 1.0:
        raise job.error(flag, f"is {text!r}", "Write a number from 0 to 1.")
    if not fraction:
        return None
    return Offload(optimizer_fraction=fraction, overlapped=job.has("--overlap-cpu-optimizer-d2h-h2d"))


def _recompute(job: LaunchLine) -> Recompute:
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
        if modules is not None and not modules.values:
            raise job.error(modules, "names no module", "Name at least one.")
        return Recompute(granularity=Granularity.SELECTIVE, modules=modules.values if modules else ("core_attn",))
    if kind != Granularity.FULL:
        raise job.error(granularity, f"is {kind!r}", "Use full or selective.")
    block = job.text("--recompute-method", "") == "block"
    layers = job.positive("--recompute-num-layers")
    if not block and layers != 1:
        raise job.error(
            granularity,
            f"recomputes groups of {layers} layers (--recompute-method uniform)",
            "Plans know uniform over single layers, and block.",
        )
    return Recompute(granularity=Granularity.FULL, num_layers=layers if block else None)
