"""DeepSpeed: degrees against the number of GPUs and the nodes."""

from collections.abc import Iterator

from planner.readers.deepspeed_run import DeepSpeedRun
from planner.readers.flag_tables import Framework
from planner.rules.rule import (
    Fix,
    Found,
    FoundAt,
    Rule,
    Severity,
    fast_links,
    listed,
    nearest_divisors,
    nearest_multiples,
    rule,
)

GROUPS = "deepspeed/utils/groups.py"
TENSOR = "tensor_parallel"
ZERO = "zero_optimization"
HPZ = (ZERO, "zero_hpz_partition_size")


@rule(
    id="DSP101",
    name="autotp-divides",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: ... is not divisible by ...",
    found_at=FoundAt.BUILD,
    source=f"{GROUPS}: _init_tp_mesh_device, _ensure_divisibility",
)
def autotp_divides(run: DeepSpeedRun) -> Iterator[Found]:
    """`autotp_size` divides the number of GPUs.

    The GPUs are split into whole tensor-parallel groups of neighbouring ranks; what is left of a division would belong
    to no group.
    """
    if run.tp > 1 and run.world_size % run.tp:
        yield Found(
            place=run.value_place(TENSOR, "autotp_size"),
            message=f"{run.world_size} GPUs are not a multiple of autotp_size {run.tp}.",
            hint=f"autotp_size {listed(nearest_divisors(run.world_size, run.tp))} would do, "
            f"or {listed(nearest_multiples(run.tp, run.world_size))} GPUs.",
        )


@rule(
    id="DSP102",
    name="sequence-parallel-divides",
    framework=Framework.DEEPSPEED,
    prevents="the batch is counted with a fraction of a replica, and accumulation steps become fractions",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/config.py: DeepSpeedConfig.__init__",
)
def sequence_parallel_divides(run: DeepSpeedRun) -> Iterator[Found]:
    """`sequence_parallel_size` is positive and divides the number of GPUs.

    DeepSpeed divides the processes by it without looking at the remainder. A batch that happens to fit the fraction is
    accepted, and the groups that the program then makes do not fit it.
    """
    size = run.integer("sequence_parallel_size")
    if size is not None and size < 1:
        yield Found(
            place=run.value_place("sequence_parallel_size"),
            message=f"sequence_parallel_size is {size}.",
            hint="Use 1, or remove it.",
        )
    if run.sp > 1 and run.world_size % run.sp:
        yield Found(
            place=run.value_place("sequence_parallel_size"),
            message=f"{run.world_size} GPUs are not a multiple of sequence_parallel_size {run.sp}.",
            hint=f"sequence_parallel_size {listed(nearest_divisors(run.world_size, run.sp))} would do, "
            f"or {listed(nearest_multiples(run.sp, run.world_size))} GPUs.",
        )


@rule(
    id="DSP103",
    name="mesh-of-data-and-sequence",
    framework=Framework.DEEPSPEED,
    prevents="RuntimeError: Mesh should not be bigger than default world size ...; or processes outside of the mesh",
    found_at=FoundAt.BUILD,
    source="deepspeed/__init__.py: initialize; deepspeed/comm/comm.py: initialize_mesh_device",
)
def mesh_of_data_and_sequence(run: DeepSpeedRun) -> Iterator[Found]:
    """`data_parallel_size` x `sequence_parallel_size` is the number of GPUs.

    Given together, the two make up the mesh of all processes, and nothing is divided any more.
    """
    if not (run.given("data_parallel_size") and run.given("sequence_parallel_size")):
        return
    dp, sp, world = run.degree("data_parallel_size"), run.sp, run.world_size
    if dp * sp != world and world % sp == 0:
        yield Found(
            place=run.value_place("data_parallel_size"),
            message=f"data_parallel_size {dp} x sequence_parallel_size {sp} = {dp * sp}, not {world} GPUs.",
            hint=f"data_parallel_size {world // sp} would do.",
            fix=Fix(location=run.value_place("data_parallel_size"), old=str(dp), new=str(world // sp)),
        )


@rule(
    id="DSP104",
    name="data-parallel-size-alone",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="a degree that nothing reads",
    found_at=FoundAt.NEVER,
    source="deepspeed/__init__.py: initialize",
)
def data_parallel_size_alone(run: DeepSpeedRun) -> Iterator[Found]:
    """`data_parallel_size` counts only beside `sequence_parallel_size`; alone it is read by nothing."""
    if run.given("data_parallel_size") and not run.given("sequence_parallel_size"):
        yield Found(
            place=run.place("data_parallel_size"),
            message="data_parallel_size without sequence_parallel_size is read by nothing.",
            hint="Remove it; the data-parallel degree is what the other degrees leave of the GPUs.",
        )


@rule(
    id="DSP105",
    name="autotp-with-sequence-parallel",
    framework=Framework.DEEPSPEED,
    prevents="gradients are reduced in the groups of one of the two only",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/engine.py: DeepSpeedEngine._configure_tensor_parallel_states",
)
def autotp_with_sequence_parallel(run: DeepSpeedRun) -> Iterator[Found]:
    """AutoTP and Ulysses sequence parallelism exclude each other.

    AutoTP puts groups of its own in the place of those that sequence parallelism came with. Nothing is refused; the
    ranks then reduce gradients in groups that know one of the two splits.
    """
    if run.tp > 1 and run.sp > 1:
        yield Found(
            place=run.value_place(TENSOR, "autotp_size"),
            message=f"autotp_size {run.tp} together with sequence_parallel_size {run.sp}.",
            hint="Use one of the two.",
        )


@rule(
    id="DSP106",
    name="tp-size-agrees",
    framework=Framework.DEEPSPEED,
    since="0.18",
    prevents="ValueError: tensor_parallel.tp.tp_size (...) does not match tensor_parallel.autotp_size (...).",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/engine.py: DeepSpeedEngine._apply_autotp_partitioning",
)
def tp_size_agrees(run: DeepSpeedRun) -> Iterator[Found]:
    """`tensor_parallel.tp.tp_size`, if it is given, is `autotp_size`."""
    inner = run.degree(TENSOR, "tp", "tp_size")
    if run.tp > 1 and inner not in {1, run.tp}:
        yield Found(
            place=run.value_place(TENSOR, "tp", "tp_size"),
            message=f"tp.tp_size {inner} beside autotp_size {run.tp}.",
            hint=f"Remove tp_size, or write {run.tp}.",
            fix=Fix(location=run.value_place(TENSOR, "tp", "tp_size"), old=str(inner), new=str(run.tp)),
        )


@rule(
    id="DSP107",
    name="autotp-is-off",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="a model that is not split, while its configuration says so",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/engine.py: DeepSpeedEngine.__init__",
)
def autotp_is_off(run: DeepSpeedRun) -> Iterator[Found]:
    """Only `autotp_size` above 1 splits the model; the rest of `tensor_parallel` does nothing without it.

    `tp_size` is the spelling of DeepSpeed's inference configuration. In training it is read only beside `autotp_size`,
    unless the program itself calls `deepspeed.tp_model_init`.
    """
    inner = run.degree(TENSOR, "tp", "tp_size")
    others = [key for key in run.keys(TENSOR) if key != "autotp_size"]
    if run.tp == 1 and others and (inner > 1 or not run.given(TENSOR, "autotp_size")):
        yield Found(
            place=run.place(TENSOR),
            message=f"tensor_parallel without autotp_size above 1 does nothing, nor does {', '.join(others)}.",
            hint=f"Add autotp_size{f' {inner}' if inner > 1 else ''}, or remove the section.",
        )


@rule(
    id="DSP108",
    name="autotp-in-a-node",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="all-reduces of every layer between nodes",
    found_at=FoundAt.UNNOTICED,
    source=f"{GROUPS}: _init_tp_mesh_device",
)
def autotp_in_a_node(run: DeepSpeedRun) -> Iterator[Found]:
    """A tensor-parallel group stays inside a node.

    AutoTP's groups are neighbouring ranks. A size that does not divide a node's GPUs makes some of them cross nodes,
    and every layer then waits for the network between nodes.
    """
    whole = run.num_gpus is None or run.num_gpus % run.tp == 0
    if run.tp > 1 and whole and (near := fast_links(run.domain_gpus, run.gpus_per_node))[0] % run.tp:
        yield Found(
            place=run.value_place(TENSOR, "autotp_size"),
            message=f"Groups of autotp_size {run.tp} cross {near[1]}.",
            hint=f"autotp_size {listed(nearest_divisors(near[0], run.tp))} stays inside.",
        )


@rule(
    id="DSP109",
    name="autotp-with-zero-3",
    framework=Framework.DEEPSPEED,
    until="0.19",
    prevents="AssertionError: Currently, the compatibility between 'autotp' and 'zero_stage = 3' has not been ...",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/engine.py: DeepSpeedEngine._configure_tensor_parallel_states (0.18.9)",
)
def autotp_with_zero_3(run: DeepSpeedRun) -> Iterator[Found]:
    """AutoTP goes with ZeRO stages 0 to 2 before DeepSpeed 0.19."""
    if run.tp > 1 and run.stage == 3:
        yield Found(
            place=run.value_place(ZERO, "stage"),
            message=f"ZeRO stage 3 with autotp_size {run.tp}, which DeepSpeed {run.version} refuses.",
            hint="Use stage 2, or DeepSpeed 0.19.",
        )


@rule(
    id="DSP110",
    name="secondary-shard-divides",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: ... is not divisible by ...",
    found_at=FoundAt.BUILD,
    source=f"{GROUPS}: _create_zero_param_parallel_group",
)
def secondary_shard_divides(run: DeepSpeedRun) -> Iterator[Found]:
    """`zero_hpz_partition_size` divides the number of GPUs: the second copies of the weights lie in whole groups."""
    size = run.degree(*HPZ)
    if run.stage == 3 and 1 < size <= run.world_size and run.world_size % size:
        yield Found(
            place=run.value_place(*HPZ),
            message=f"{run.world_size} GPUs are not a multiple of zero_hpz_partition_size {size}.",
            hint=f"{listed(nearest_divisors(run.world_size, size))} would do.",
        )


@rule(
    id="DSP111",
    name="secondary-shard-larger-than-the-run",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="another size than is written: the smaller of the two is taken",
    found_at=FoundAt.NEVER,
    source=f"{GROUPS}: _create_zero_param_parallel_group",
)
def secondary_shard_larger(run: DeepSpeedRun) -> Iterator[Found]:
    """`zero_hpz_partition_size` is at most the number of GPUs; DeepSpeed takes a larger one for all of them.

    Over all GPUs, the second copy is split as the first is, and saves no traffic between nodes.
    """
    size = run.degree(*HPZ)
    if run.stage == 3 and size > run.world_size:
        yield Found(
            place=run.value_place(*HPZ),
            message=f"zero_hpz_partition_size {size} is more than {run.world_size} GPUs.",
            hint="Use the GPUs of a node.",
        )


@rule(
    id="DSP112",
    name="secondary-shard-in-a-node",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="the gathering between nodes that the second copy is there to avoid",
    found_at=FoundAt.UNNOTICED,
    source=f"{GROUPS}: _create_zero_param_parallel_group",
)
def secondary_shard_in_a_node(run: DeepSpeedRun) -> Iterator[Found]:
    """`zero_hpz_partition_size` is the GPUs of a node, or divides them.

    The second copy of the weights (ZeRO++) exists so that backward gathers them without leaving the node.
    """
    size = run.degree(*HPZ)
    if run.stage == 3 and size > 1 and run.world_size % size == 0 and run.gpus_per_node % size:
        yield Found(
            place=run.value_place(*HPZ),
            message=f"Groups of zero_hpz_partition_size {size} cross nodes of {run.gpus_per_node} GPUs.",
            hint=f"{listed(nearest_divisors(run.gpus_per_node, size))} stays inside a node.",
        )


@rule(
    id="DSP113",
    name="mics-shards-divide",
    framework=Framework.DEEPSPEED,
    until="0.19",
    prevents="AssertionError: dp group is not dividable by dp_shard_size",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/zero/mics_utils.py: _generate_mics_config (0.18.9)",
)
def mics_shards_divide(run: DeepSpeedRun) -> Iterator[Found]:
    """`mics_shard_size` divides the number of GPUs: MiCS splits them into whole groups that hold a model each."""
    size = run.integer(ZERO, "mics_shard_size") or 0
    if size > 0 and run.world_size % size:
        yield Found(
            place=run.value_place(ZERO, "mics_shard_size"),
            message=f"{run.world_size} GPUs are not a multiple of mics_shard_size {size}.",
            hint=f"{listed(nearest_divisors(run.world_size, size))} would do.",
        )


RULES: tuple[Rule[DeepSpeedRun], ...] = (
    autotp_divides,
    sequence_parallel_divides,
    mesh_of_data_and_sequence,
    data_parallel_size_alone,
    autotp_with_sequence_parallel,
    tp_size_agrees,
    autotp_is_off,
    autotp_in_a_node,
    autotp_with_zero_3,
    secondary_shard_divides,
    secondary_shard_larger,
    secondary_shard_in_a_node,
    mics_shards_divide,
)
