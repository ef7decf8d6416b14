"""DeepSpeed: pipeline stages, and experts (AutoEP)."""

from collections.abc import Iterator

from planner.readers.deepspeed_run import DeepSpeedRun
from planner.readers.flag_tables import Framework
from planner.rules.rule import Fix, Found, FoundAt, Rule, Severity, listed, nearest_divisors, nearest_multiples, rule

ENGINE = "deepspeed/runtime/pipe/engine.py: PipelineEngine.__init__"
FOLDING = "deepspeed/module_inject/auto_ep_folding.py"
PIPELINE = "pipeline"
EXPERTS = "expert_parallel"
ZERO = "zero_optimization"

UNREAD = ("stages", "partition", "seed_layers")
"""Keys of `pipeline` that have defaults and that nothing reads: `PipelineModule` is told them by the program."""


@rule(
    id="DSP201",
    name="zero-with-pipeline",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism",
    found_at=FoundAt.BUILD,
    source=ENGINE,
)
def zero_with_pipeline(run: DeepSpeedRun) -> Iterator[Found]:
    """With pipeline stages, ZeRO goes up to stage 1.

    A stage adds up the gradients of many micro-batches, which stage 2 would shard after each of them. That the program
    builds stages is taken from the `pipeline` section or from its arguments.
    """
    if run.has_pipeline and run.stage >= 2:
        place = run.value_place(ZERO, "stage")
        number = run.content(ZERO, "stage")
        certain = isinstance(number, int) and not isinstance(number, bool)
        yield Found(
            place=place,
            message=f"ZeRO stage {run.stage} with pipeline stages.",
            hint="Use stage 1, or no pipeline stages and no `pipeline` section.",
            fix=Fix(location=place, old=str(number), new="1") if certain else None,
        )


@rule(
    id="DSP202",
    name="stages-divide-the-gpus",
    framework=Framework.DEEPSPEED,
    prevents="RuntimeError: num_stages (...) must divide distributed world size (...)",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/pipe/module.py: PipelineModule.__init__",
)
def stages_divide(run: DeepSpeedRun) -> Iterator[Found]:
    """Pipeline stages x tensor-parallel ranks divide the number of GPUs."""
    replica = run.pp * max(run.program_tp, run.tp)
    if run.pp > 1 and run.world_size % replica:
        yield Found(
            place=run.place(PIPELINE),
            message=f"{run.world_size} GPUs are not a multiple of {replica} GPUs of a replica: {run.pp} stages x "
            f"{replica // run.pp} tensor-parallel ranks.",
            hint=f"A replica of {listed(nearest_divisors(run.world_size, replica))} GPUs would do, "
            f"or {listed(nearest_multiples(replica, run.world_size))} GPUs.",
        )


@rule(
    id="DSP203",
    name="overlap-with-pipeline",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="Pipeline parallelism does not support overlapped communication, will be disabled.",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/engine.py: DeepSpeedEngine._configure_zero_optimizer",
)
def overlap_with_pipeline(run: DeepSpeedRun) -> Iterator[Found]:
    """`overlap_comm` does nothing with pipeline stages: gradients are reduced after the last micro-batch."""
    if run.has_pipeline and run.stage == 1 and run.is_on(ZERO, "overlap_comm"):
        yield Found(
            place=run.place(ZERO, "overlap_comm"),
            message="overlap_comm is switched off with pipeline stages.",
            hint="Write false, and expect no overlap.",
        )


@rule(
    id="DSP204",
    name="fewer-micro-batches-than-stages",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="stages that wait for more than half of every step",
    found_at=FoundAt.UNNOTICED,
    source="deepspeed/runtime/pipe/schedule.py: TrainSchedule",
)
def few_micro_batches(run: DeepSpeedRun) -> Iterator[Found]:
    """A pipeline has at least as many micro-batches as stages.

    The micro-batches of a step are `gradient_accumulation_steps`. With m of them and p stages, a stage works for
    m / (m + p - 1) of a step.
    """
    steps = run.integer("gradient_accumulation_steps")
    if run.has_pipeline and steps is not None and 0 < steps < run.pp:
        yield Found(
            place=run.value_place("gradient_accumulation_steps"),
            message=f"{steps} micro-batches for {run.pp} stages: a stage works for "
            f"{steps / (steps + run.pp - 1):.0%} of a step.",
            hint=f"Use {run.pp} or more, with a smaller train_micro_batch_size_per_gpu if need be.",
        )


@rule(
    id="DSP205",
    name="pipeline-keys-that-nothing-reads",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="stages that are built as the program says, whatever the file says",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/config.py: get_pipeline_config",
)
def unread_pipeline_keys(run: DeepSpeedRun) -> Iterator[Found]:
    """`stages`, `partition` and `seed_layers` of `pipeline` have defaults, and nothing reads them.

    The program tells `PipelineModule(num_stages=..., partition_method=...)`.
    """
    for key in UNREAD:
        if run.given(PIPELINE, key):
            yield Found(
                place=run.place(PIPELINE, key),
                message=f"`{key}` of `pipeline` is read by nothing.",
                hint="Tell the program's PipelineModule, and remove the key.",
            )


@rule(
    id="DSP206",
    name="own-accumulation-with-pipeline",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="AssertionError: managed_gradient_accumulation=False is not supported with pipeline parallelism",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/engine.py: DeepSpeedEngine._do_sanity_check",
)
def own_accumulation(run: DeepSpeedRun) -> Iterator[Found]:
    """`managed_gradient_accumulation: false` goes without pipeline stages, and overlaps at stages 2 and 3 only."""
    if not run.given("managed_gradient_accumulation") or run.is_on("managed_gradient_accumulation"):
        return
    if run.has_pipeline:
        message = "managed_gradient_accumulation is false with pipeline stages."
    elif run.stage < 2 and run.is_on(ZERO, "overlap_comm"):
        message = f"managed_gradient_accumulation is false with overlap_comm at ZeRO stage {run.stage}."
    else:
        return
    yield Found(place=run.place("managed_gradient_accumulation"), message=message, hint="Remove the key.")


@rule(
    id="DSP207",
    name="checkpoint-interval",
    framework=Framework.DEEPSPEED,
    prevents="layers that keep everything where they were to be recomputed",
    found_at=FoundAt.NEVER,
    source=ENGINE,
)
def checkpoint_interval(run: DeepSpeedRun) -> Iterator[Found]:
    """`activation_checkpoint_interval` is 0 for no recompute, or the layers between two kept inputs; below 0 is 0."""
    interval = run.integer(PIPELINE, "activation_checkpoint_interval")
    if interval is not None and interval < 0:
        place = run.value_place(PIPELINE, "activation_checkpoint_interval")
        yield Found(
            place=place,
            message=f"activation_checkpoint_interval is {interval}, which counts as 0: nothing is recomputed.",
            hint="Use 1 to recompute every layer, 0 for none.",
        )


@rule(
    id="DSP208",
    name="sequence-parallel-with-pipeline",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="sequences that are not split, and replicas that are counted as if there were none",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/config.py: DeepSpeedConfig.__init__",
)
def sequence_parallel_with_pipeline(run: DeepSpeedRun) -> Iterator[Found]:
    """`sequence_parallel_size` counts for nothing with pipeline stages, whose groups take its place."""
    if run.has_pipeline and run.sp > 1:
        yield Found(
            place=run.place("sequence_parallel_size"),
            message=f"sequence_parallel_size {run.sp} with pipeline stages counts for nothing.",
            hint="Use one of the two.",
        )


def _experts(run: DeepSpeedRun) -> bool:
    return run.is_on(EXPERTS, "enabled")


@rule(
    id="DSP301",
    name="experts-divide-the-gpus",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="ValueError: ... must divide the stage size",
    found_at=FoundAt.BUILD,
    source=f"{FOLDING}: build_folding_spec",
)
def experts_divide(run: DeepSpeedRun) -> Iterator[Found]:
    """`autoep_size` x `expert_tensor_parallel_size` divides the GPUs of a pipeline stage."""
    if not _experts(run):
        return
    width = run.degree(EXPERTS, "autoep_size") * run.degree(EXPERTS, "expert_tensor_parallel_size")
    ranks = run.world_size // run.pp
    if ranks % width:
        yield Found(
            place=run.value_place(EXPERTS, "autoep_size"),
            message=f"{ranks} GPUs of a stage are not a multiple of the experts' {width}.",
            hint=f"autoep_size {listed(nearest_divisors(ranks, width))} would do.",
        )


@rule(
    id="DSP302",
    name="no-tensor-parallel-experts",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="ValueError: expert_parallel.expert_tensor_parallel_size=... is reserved",
    found_at=FoundAt.BUILD,
    source=f"{FOLDING}: validate_folding_global",
)
def no_tensor_parallel_experts(run: DeepSpeedRun) -> Iterator[Found]:
    """`expert_tensor_parallel_size` is 1; DeepSpeed has the key and refuses every other value."""
    size = run.degree(EXPERTS, "expert_tensor_parallel_size")
    if _experts(run) and size != 1:
        place = run.value_place(EXPERTS, "expert_tensor_parallel_size")
        yield Found(
            place=place,
            message=f"expert_tensor_parallel_size is {size}.",
            hint="Use 1, and a larger autoep_size.",
            fix=Fix(location=place, old=str(size), new="1"),
        )


@rule(
    id="DSP303",
    name="experts-with-autotp",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="ValueError: AutoEP+AutoTP folding ...",
    found_at=FoundAt.BUILD,
    source=f"{FOLDING}: validate_folding_global",
)
def experts_with_autotp(run: DeepSpeedRun) -> Iterator[Found]:
    """AutoEP together with AutoTP has limits of its own.

    `autoep_size` above 1, no pipeline stages, no sequence parallelism, no DeepCompile, no offload section, and no
    `use_data_before_expert_parallelism`.
    """
    if not _experts(run) or run.tp == 1:
        return
    against = [
        ("autoep_size 1", run.degree(EXPERTS, "autoep_size") == 1),
        ("pipeline stages", run.has_pipeline),
        ("sequence_parallel_size", run.sp > 1),
        ("compile.deepcompile", run.is_on("compile", "deepcompile")),
        ("offload_optimizer", run.given(ZERO, "offload_optimizer")),
        ("offload_param", run.given(ZERO, "offload_param")),
        ("use_data_before_expert_parallelism", run.is_on("use_data_before_expert_parallelism")),
    ]
    found = [name for name, is_there in against if is_there]
    if found:
        yield Found(
            place=run.place(EXPERTS),
            message=f"Experts with autotp_size {run.tp} go without {', '.join(found)}.",
            hint="Use autotp_size 1, or remove the other.",
        )


@rule(
    id="DSP304",
    name="experts-with-zero-3",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="AssertionError: AutoEP with ZeRO Stage 3 does not support ... yet",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/engine.py: DeepSpeedEngine._validate_zero3_moe_compatibility",
)
def experts_with_zero_3(run: DeepSpeedRun) -> Iterator[Found]:
    """AutoEP at ZeRO stage 3 goes without sequence parallelism, quantized gradients and second copies of weights."""
    if not _experts(run) or run.stage != 3:
        return
    against = [
        ("sequence_parallel_size", run.sp > 1),
        ("zero_quantized_gradients", run.is_on(ZERO, "zero_quantized_gradients")),
        ("zero_hpz_partition_size", run.degree(ZERO, "zero_hpz_partition_size") > 1),
    ]
    for name, is_there in against:
        if is_there:
            yield Found(
                place=run.place(*(() if name == "sequence_parallel_size" else (ZERO,)), name),
                message=f"{name} with experts at ZeRO stage 3.",
                hint="Remove it, or use stage 2.",
            )


@rule(
    id="DSP305",
    name="tokens-of-deepep",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="ValueError: comm_max_tokens_per_rank must be a positive integer when comm_backend='deepep'.",
    found_at=FoundAt.BUILD,
    source="deepspeed/module_inject/auto_ep_config.py: validate_autoep_config",
)
def tokens_of_deepep(run: DeepSpeedRun) -> Iterator[Found]:
    """`comm_backend: deepep` needs `comm_max_tokens_per_rank`: the most tokens that a rank routes."""
    if _experts(run) and run.text(EXPERTS, "comm_backend") == "deepep":
        tokens = run.integer(EXPERTS, "comm_max_tokens_per_rank") or 0
        if tokens < 1:
            yield Found(
                place=run.place(EXPERTS, "comm_backend"),
                message="comm_backend deepep without comm_max_tokens_per_rank.",
                hint="Write train_micro_batch_size_per_gpu x the longest padded sequence.",
            )


@rule(
    id="DSP306",
    name="presets-agree",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="ValueError: tensor_parallel.preset_model and expert_parallel.preset_model must match",
    found_at=FoundAt.BUILD,
    source=f"{FOLDING}: validate_folding_global",
)
def presets_agree(run: DeepSpeedRun) -> Iterator[Found]:
    """`preset_model` of `tensor_parallel` and of `expert_parallel` name the same model."""
    dense, experts = run.text("tensor_parallel", "preset_model"), run.text(EXPERTS, "preset_model")
    if _experts(run) and dense is not None and experts is not None and dense != experts:
        yield Found(
            place=run.place(EXPERTS, "preset_model"),
            message=f"preset_model is {experts} here, and {dense} in tensor_parallel.",
            hint="Write the same in both.",
        )


@rule(
    id="DSP307",
    name="load-balance-coefficient",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="ValueError: load_balance_coeff=... is not supported",
    found_at=FoundAt.START,
    source="deepspeed/module_inject/auto_ep_config.py: parse_autoep_config",
)
def load_balance_coefficient(run: DeepSpeedRun) -> Iterator[Found]:
    """`load_balance_coeff` is null, or absent; every number is refused."""
    if run.given(EXPERTS, "load_balance_coeff"):
        yield Found(
            place=run.place(EXPERTS, "load_balance_coeff"),
            message="load_balance_coeff is given, which DeepSpeed refuses.",
            hint="Remove it; the router's own coefficient counts.",
        )


RULES: tuple[Rule[DeepSpeedRun], ...] = (
    zero_with_pipeline,
    stages_divide,
    overlap_with_pipeline,
    few_micro_batches,
    unread_pipeline_keys,
    own_accumulation,
    checkpoint_interval,
    sequence_parallel_with_pipeline,
    experts_divide,
    no_tensor_parallel_experts,
    experts_with_autotp,
    experts_with_zero_3,
    tokens_of_deepep,
    presets_agree,
    load_balance_coefficient,
)
