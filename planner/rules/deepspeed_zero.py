"""DeepSpeed: what ZeRO's stages take, and what they ignore."""

from collections.abc import Iterator

from planner.readers.deepspeed_run import DeepSpeedRun
from planner.readers.flag_tables import Framework
from planner.rules.rule import Fix, Found, FoundAt, Rule, Severity, rule

ZERO = "zero_optimization"
MODEL = "deepspeed/runtime/zero/config.py: DeepSpeedZeroConfig"
STAGE_2 = "deepspeed/runtime/zero/stage_1_and_2.py: DeepSpeedZeroOptimizer.__init__"
STAGE_3 = "deepspeed/runtime/zero/stage3.py: DeepSpeedZeroOptimizer_Stage3.__init__"
CHOICE = "deepspeed/runtime/engine.py: DeepSpeedEngine._configure_zero_optimizer"

ONLY_STAGE_3 = (
    "sub_group_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
    "stage3_module_granularity_threshold",
    "stage3_use_all_reduce_for_fetch_params",
    "stage3_gather_16bit_weights_on_model_save",
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
)
"""Keys that only stage 3 reads; a value that means "off" is no finding."""

OFF = (None, False, 0, 1)
"""Values that switch such a key off: 1 of `zero_hpz_partition_size` is no second copy."""


@rule(
    id="DSP501",
    name="stage-is-missing",
    framework=Framework.DEEPSPEED,
    prevents="a run without ZeRO, because stage 0 is the default",
    found_at=FoundAt.NEVER,
    source=MODEL,
)
def stage_is_missing(run: DeepSpeedRun) -> Iterator[Found]:
    """A `zero_optimization` section says its `stage`; without one it is 0, and ZeRO is off."""
    if run.keys(ZERO) and not run.given(ZERO, "stage"):
        yield Found(
            place=run.place(ZERO),
            message="zero_optimization without a stage is stage 0: ZeRO is off.",
            hint='Add "stage": 1, 2 or 3, or remove the section.',
        )


@rule(
    id="DSP507",
    name="keys-of-stage-3",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="settings that nothing reads",
    found_at=FoundAt.NEVER,
    source=CHOICE,
)
def keys_of_stage_3(run: DeepSpeedRun) -> Iterator[Found]:
    """Keys that only stage 3 reads do nothing below it.

    That holds for `stage3_...`, `sub_group_size`, and ZeRO++: second copies, quantized weights and gradients.
    """
    if run.stage == 3:
        return
    found = [key for key in ONLY_STAGE_3 if run.given(ZERO, key) and run.content(ZERO, key) not in OFF]
    if found:
        yield Found(
            place=run.place(ZERO, found[0]),
            message=f"ZeRO stage {run.stage} does not read {', '.join(found)}.",
            hint="Use stage 3, or remove what it alone reads.",
        )


@rule(
    id="DSP510",
    name="norm-of-gradients-stage",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="ValidationError: ... compute_grad_norm=false is supported only with ZeRO Stage 1 or 2",
    found_at=FoundAt.PARSE,
    source=f"{MODEL}.compute_grad_norm_valid",
)
def norm_stage(run: DeepSpeedRun) -> Iterator[Found]:
    """`compute_grad_norm: false` goes with stages 1 and 2."""
    if run.keys(ZERO) and not run.is_on(ZERO, "compute_grad_norm") and run.stage not in {1, 2}:
        yield Found(
            place=run.place(ZERO, "compute_grad_norm"),
            message=f"compute_grad_norm is false at ZeRO stage {run.stage}.",
            hint="Use stage 1 or 2, or remove it.",
        )


@rule(
    id="DSP511",
    name="norm-of-gradients-is-needed",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="ValueError: zero_optimization.compute_grad_norm=false requires gradient_clipping=0; ...",
    found_at=FoundAt.BUILD,
    source=f"{STAGE_2}; deepspeed/runtime/engine.py: DeepSpeedEngine._do_optimizer_sanity_check",
)
def norm_is_needed(run: DeepSpeedRun) -> Iterator[Found]:
    """`compute_grad_norm: false` goes without what needs the norm of the gradients.

    That is clipping, which is on by default (`gradient_clipping` 1.0 where it is absent), optimizer offload, ZenFlow,
    and bf16 weights with fp32 gradients at stage 1.
    """
    if not run.keys(ZERO) or run.is_on(ZERO, "compute_grad_norm") or run.stage not in {1, 2}:
        return
    against = [
        (f"gradient_clipping {run.number('gradient_clipping'):g}", (run.number("gradient_clipping") or 0) > 0),
        ("offload_optimizer", run.offload_device("offload_optimizer") != "none"),
        ("zenflow", run.given(ZERO, "zenflow")),
    ]
    found = [name for name, is_there in against if is_there]
    if found:
        yield Found(
            place=run.place(ZERO, "compute_grad_norm"),
            message=f"compute_grad_norm is false with {', '.join(found)}.",
            hint='Remove it, or write "gradient_clipping": 0 and no offload.',
        )


@rule(
    id="DSP512",
    name="even-gathering",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: allgather_bucket_size must be a multiple of nccl_start_alignment_factor, 2",
    found_at=FoundAt.BUILD,
    source=STAGE_2,
)
def even_gathering(run: DeepSpeedRun) -> Iterator[Found]:
    """`allgather_bucket_size` is even at stages 1 and 2: two 16-bit numbers make up four bytes."""
    size = run.integer(ZERO, "allgather_bucket_size")
    if size is not None and size % 2 and run.stage in {1, 2}:
        place = run.value_place(ZERO, "allgather_bucket_size")
        yield Found(
            place=place,
            message=f"allgather_bucket_size {size} is odd.",
            hint=f"Use {size + 1}.",
            fix=Fix(location=place, old=str(size), new=str(size + 1)),
        )


@rule(
    id="DSP513",
    name="scaled-gradients-with-reduce-scatter",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: gradient_predivide_factor != 1.0 is not yet supported with ...; "
    "AssertionError: pre-scale gradients is not yet supported with ...",
    found_at=FoundAt.BUILD,
    source=f"{STAGE_2}; {STAGE_3}",
)
def scaled_gradients(run: DeepSpeedRun) -> Iterator[Found]:
    """`gradient_predivide_factor` and `prescale_gradients` go without `reduce_scatter` at stages 2 and 3."""
    summed = run.stage == 2 and (run.text("gradient_allreduce_op") or "mean").lower() == "sum"
    if run.stage < 2 or summed or not run.is_on(ZERO, "reduce_scatter"):
        return
    factor = run.number("gradient_predivide_factor")
    if factor not in {None, 1.0}:
        yield Found(
            place=run.place("gradient_predivide_factor"),
            message=f"gradient_predivide_factor {factor:g} with reduce_scatter at ZeRO stage {run.stage}.",
            hint='Write 1.0, or "reduce_scatter": false.',
        )
    elif run.is_on("prescale_gradients"):
        yield Found(
            place=run.place("prescale_gradients"),
            message=f"prescale_gradients with reduce_scatter at ZeRO stage {run.stage}.",
            hint='Write false, or "reduce_scatter": false.',
        )


@rule(
    id="DSP514",
    name="summed-gradients",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="ValueError: gradient_allreduce_op='sum' is not supported with ZeRO stage 3",
    found_at=FoundAt.START,
    source="deepspeed/runtime/config.py: DeepSpeedConfig._do_error_check",
)
def summed_gradients(run: DeepSpeedRun) -> Iterator[Found]:
    """`gradient_allreduce_op: sum` goes with stages 0 to 2, without ZenFlow and without DeepCompile."""
    if (run.text("gradient_allreduce_op") or "").lower() != "sum":
        return
    against = [
        ("ZeRO stage 3", run.stage == 3),
        ("zenflow", run.given(ZERO, "zenflow")),
        ("compile.deepcompile", run.is_on("compile", "deepcompile")),
    ]
    for name, is_there in against:
        if is_there:
            yield Found(
                place=run.place("gradient_allreduce_op"),
                message=f"gradient_allreduce_op is sum with {name}.",
                hint='Use "mean", and divide in the program.',
            )


@rule(
    id="DSP515",
    name="old-stage-1",
    framework=Framework.DEEPSPEED,
    prevents="Exception: The deprecated version of ZeRO Stage 1 is not supported in deepspeed >= 0.5.9.",
    found_at=FoundAt.BUILD,
    source=CHOICE,
)
def old_stage_1(run: DeepSpeedRun) -> Iterator[Found]:
    """`legacy_stage1` still has a key, and is refused at every stage above 0."""
    if run.is_on(ZERO, "legacy_stage1") and run.stage > 0:
        yield Found(
            place=run.place(ZERO, "legacy_stage1"), message="legacy_stage1 is no longer there.", hint="Remove it."
        )


@rule(
    id="DSP516",
    name="quantized-gradients-with-reduce-scatter",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: when enable all_to_all_reduce, reduce_scatter should also be enabled",
    found_at=FoundAt.BUILD,
    source=STAGE_3,
)
def quantized_gradients(run: DeepSpeedRun) -> Iterator[Found]:
    """`zero_quantized_gradients` needs `reduce_scatter` (ZeRO++ exchanges gradients in its place)."""
    if run.stage == 3 and run.is_on(ZERO, "zero_quantized_gradients") and not run.is_on(ZERO, "reduce_scatter"):
        yield Found(
            place=run.place(ZERO, "reduce_scatter"),
            message="reduce_scatter is false with zero_quantized_gradients.",
            hint="Remove reduce_scatter: it is true by default.",
        )


@rule(
    id="DSP517",
    name="quantized-gradients-in-whole-nodes",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: num_gpus not equal to device per node, cannot initialize All-To-All; or ranks left out",
    found_at=FoundAt.BUILD,
    source="deepspeed/utils/groups.py: _get_local_all_to_all_group",
)
def quantized_gradients_in_nodes(run: DeepSpeedRun) -> Iterator[Found]:
    """`zero_quantized_gradients` needs whole nodes: gradients are exchanged inside each, and then between them."""
    if run.is_on(ZERO, "zero_quantized_gradients") and run.world_size > run.gpus_per_node:
        rest = run.world_size % run.gpus_per_node
        if rest:
            yield Found(
                place=run.place(ZERO, "zero_quantized_gradients"),
                message=f"{run.world_size} GPUs are not whole nodes of {run.gpus_per_node}.",
                hint=f"Use {run.world_size - rest} or {run.world_size - rest + run.gpus_per_node} GPUs.",
            )


@rule(
    id="DSP518",
    name="elastic-checkpoint",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="ZeRO-3 elastic checkpointing is deprecated and no longer supported.",
    found_at=FoundAt.NEVER,
    source=f"{MODEL}.elastic_checkpoint_deprecated",
)
def elastic_checkpoint(run: DeepSpeedRun) -> Iterator[Found]:
    """`elastic_checkpoint` does nothing at stage 3."""
    if run.is_on(ZERO, "elastic_checkpoint") and run.stage == 3:
        yield Found(
            place=run.place(ZERO, "elastic_checkpoint"),
            message="elastic_checkpoint at ZeRO stage 3 does nothing.",
            hint='Remove it, and use "checkpoint": {"load_universal": true} to change the number of GPUs.',
        )


@rule(
    id="DSP519",
    name="zero-as-a-truth-value",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="this format of ZeRO optimization setup is deprecated",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/zero/config.py: read_zero_config_deprecated",
)
def zero_as_truth(run: DeepSpeedRun) -> Iterator[Found]:
    """`"zero_optimization": true` is a long deprecated way to write stage 1."""
    whole = run.content(ZERO)
    if isinstance(whole, bool):
        place = run.value_place(ZERO)
        yield Found(
            place=place,
            message=f"zero_optimization is {str(whole).lower()}, which means stage {int(whole)}.",
            hint=f'Write {{"stage": {int(whole)}}}.',
            fix=Fix(location=place, old=str(whole).lower(), new=f'{{"stage": {int(whole)}}}'),
        )


@rule(
    id="DSP520",
    name="overlap-of-bf16-at-stage-1",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="gradients that are reduced after the last micro-batch, not during backward",
    found_at=FoundAt.UNNOTICED,
    source="deepspeed/runtime/engine.py: DeepSpeedEngine._do_optimizer_sanity_check, _configure_bf16_optimizer",
)
def overlap_of_bf16(run: DeepSpeedRun) -> Iterator[Found]:
    """`overlap_comm` does nothing at stage 1 with bf16 weights and fp32 gradients.

    DeepSpeed then takes an optimizer of its own for bf16, which knows neither `overlap_comm` nor the buckets. It does
    not with `offload_optimizer` to the CPU.
    """
    fp32 = (run.text("data_types", "grad_accum_dtype") or "") in {"fp32", "float32", "float", "torch.float32"}
    bf16 = run.is_on("bf16", "enabled") or (not run.given("bf16") and run.is_on("bfloat16", "enabled"))
    own = run.stage == 1 and fp32 and bf16 and run.offload_device("offload_optimizer") != "cpu"
    if own and run.is_on(ZERO, "overlap_comm") and not run.has_pipeline:
        yield Found(
            place=run.place(ZERO, "overlap_comm"),
            message="overlap_comm does nothing at ZeRO stage 1 with bf16 weights and fp32 gradients.",
            hint="Use stage 2, or gradients in bf16.",
        )


@rule(
    id="DSP521",
    name="old-size-of-gathering",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="a setting that nothing reads",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/zero/config.py: read_zero_config_deprecated",
)
def old_size_of_gathering(run: DeepSpeedRun) -> Iterator[Found]:
    """`allgather_size` at the top counts only beside `"zero_optimization": true`, the way to write stage 1 of old."""
    if run.given("allgather_size") and not isinstance(run.content(ZERO), bool):
        yield Found(
            place=run.place("allgather_size"),
            message="allgather_size at the top is read by nothing.",
            hint="Write allgather_bucket_size in zero_optimization.",
        )


@rule(
    id="DSP522",
    name="prefetch-more-than-may-live",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="weights that are gathered only when their layer starts",
    found_at=FoundAt.UNNOTICED,
    source="deepspeed/runtime/zero/partitioned_param_coordinator.py: PartitionedParameterCoordinator.fetch_sub_module",
)
def prefetch_more_than_live(run: DeepSpeedRun) -> Iterator[Found]:
    """`stage3_max_live_parameters` leaves room for `stage3_prefetch_bucket_size`.

    Weights are fetched ahead only as long as fewer than `stage3_max_live_parameters` numbers are there.
    """
    ahead = run.integer(ZERO, "stage3_prefetch_bucket_size")
    most = run.integer(ZERO, "stage3_max_live_parameters")
    if run.stage == 3 and ahead is not None and most is not None and ahead > most:
        yield Found(
            place=run.place(ZERO, "stage3_max_live_parameters"),
            message=f"stage3_prefetch_bucket_size {ahead} is more than stage3_max_live_parameters {most}.",
            hint=f"Use {ahead} or more for stage3_max_live_parameters, and count the layers that compute besides.",
        )


RULES: tuple[Rule[DeepSpeedRun], ...] = (
    stage_is_missing,
    keys_of_stage_3,
    norm_stage,
    norm_is_needed,
    even_gathering,
    scaled_gradients,
    summed_gradients,
    old_stage_1,
    quantized_gradients,
    quantized_gradients_in_nodes,
    elastic_checkpoint,
    zero_as_truth,
    overlap_of_bf16,
    old_size_of_gathering,
    prefetch_more_than_live,
)
