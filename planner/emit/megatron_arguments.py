"""The argument list of Megatron-LM's training programs for one planned layout, group by group.

Flags and their meaning: `megatron/training/arguments.py` of megatron-core 0.19.2. Everything that decides the plan is
written out, defaults included, so that a reader of the script sees the whole run.
"""

from planner.emit.megatron_expert_arguments import experts
from planner.emit.megatron_layout_arguments import FSDP_STRATEGIES, parallelism, recompute, sharding
from planner.emit.megatron_model_arguments import architecture, not_a_flag, vocabulary
from planner.emit.megatron_offload import activations, modules, offload_flags
from planner.emit.megatron_parts import parts_of
from planner.emit.megatron_words import Flags, Group, when
from planner.emit.megatron_workload_limits import needs_precision_aware
from planner.layout import Layout
from planner.models.specs import ModelSpec
from planner.requests.workload import DType, Optimizer, Packing, Precision, TrainMethod, TrainWorkload

DEFAULT_ITERATIONS = 100
"""Iterations of a run whose token budget is not given."""

LEARNING_RATES = {
    TrainMethod.PRETRAIN: ("3e-04", "3e-05"),
    TrainMethod.FULL_FINETUNE: ("1e-05", "1e-06"),
    TrainMethod.LORA: ("1e-04", "1e-05"),
}
"""First and last learning rate: placeholders, not advice; no cost depends on them."""

FP8_FLAGS = {
    Precision.FP8_DELAYED: ("hybrid", "delayed"),
    Precision.FP8_TENSORWISE: ("hybrid", "tensorwise"),
    Precision.FP8_BLOCKWISE: ("e4m3", "blockwise"),
    Precision.FP8_MXFP8: ("e4m3", "mxfp8"),
}
"""`--fp8-format` and `--fp8-recipe`: scaling per tensor keeps e5m2 for gradients, finer scaling is e4m3 throughout."""


def argument_groups(model: ModelSpec, workload: TrainWorkload, layout: Layout) -> tuple[Group, ...]:
    """Return the whole argument list of a plan that Megatron-LM can express."""
    parts = parts_of(model)
    return (
        architecture(model, parts, workload, layout),
        experts(parts, workload.routing),
        vocabulary(model, workload, layout),
        _precision(workload),
        _optimizer(workload, layout),
        _batch(workload, layout),
        parallelism(layout, model, parts),
        sharding(layout, workload),
        recompute(layout),
        activations(layout),
        modules(layout),
        _data(workload),
        _run(workload, layout),
    )


def arguments(model: ModelSpec, workload: TrainWorkload, layout: Layout) -> tuple[str, ...]:
    """Return the argument list as words."""
    return tuple(word for group in argument_groups(model, workload, layout) for flag in group.flags for word in flag)


def _precision(workload: TrainWorkload) -> Group:
    precision = workload.precision
    sixteen = "--fp16" if precision is Precision.FP16 else "--bf16"
    fp8: Flags = ()
    if precision.is_fp8:
        fp8_format, recipe = FP8_FLAGS[precision]
        fp8 = (("--fp8-format", fp8_format), ("--fp8-recipe", recipe))
        if precision is Precision.FP8_DELAYED:
            fp8 += (("--fp8-amax-history-len", "1024"), ("--fp8-amax-compute-algo", "max"))
    full = workload.gradient_dtype is DType.FP32
    # The native fused loss casts its gradient to bf16 (core/fusions/fused_cross_entropy.py), so fp16 goes without.
    fused_loss = precision is not Precision.FP16
    return Group(
        title="Precision",
        flags=(
            (sixteen,),
            *fp8,
            *when(full, "--accumulate-allreduce-grads-in-fp32"),
            *when(workload.gradient_dtype is DType.BF16, "--grad-reduce-in-bf16"),
            *when(fused_loss, "--cross-entropy-loss-fusion"),
            *when(fused_loss, "--cross-entropy-fusion-impl", "native"),
        ),
    )


def _optimizer(workload: TrainWorkload, layout: Layout) -> Group:
    rate, last_rate = LEARNING_RATES[workload.method]
    adam = workload.optimizer is Optimizer.ADAM
    aware = needs_precision_aware(workload) or layout.offload is not None
    moments = workload.moment_dtype.value
    return Group(
        title="Optimizer (learning rate, decay and clipping are placeholders: no cost depends on them)",
        flags=(
            ("--optimizer", workload.optimizer.value),
            *when(adam, "--adam-beta1", "0.9"),
            *when(adam, "--adam-beta2", "0.95"),
            *when(adam, "--adam-eps", "1e-08"),
            *when(not adam, "--sgd-momentum", "0.9"),
            *when(aware, "--use-precision-aware-optimizer"),
            *when(aware, "--main-params-dtype", workload.master_dtype.value),
            *when(aware, "--main-grads-dtype", "bf16" if workload.gradient_dtype is DType.BF16 else "fp32"),
            *when(aware, "--exp-avg-dtype", moments),
            *when(aware, "--exp-avg-sq-dtype", moments),
            *offload_flags(layout.offload),
            ("--lr", rate),
            ("--min-lr", last_rate),
            ("--lr-decay-style", "cosine"),
            ("--lr-warmup-fraction", "0.01"),
            ("--weight-decay", "0.1"),
            ("--clip-grad", "1.0"),
        ),
    )


def _batch(workload: TrainWorkload, layout: Layout) -> Group:
    budget = workload.tokens_to_train
    iterations = f"{budget} tokens" if budget is not None else f"no token budget given: {DEFAULT_ITERATIONS} iterations"
    return Group(
        title=f"Batch: {layout.num_microbatches} micro-batches on each of {layout.dp} replicas; {iterations}",
        flags=(
            ("--seq-length", str(workload.seq_len)),
            ("--micro-batch-size", str(layout.micro_batch_size)),
            ("--global-batch-size", str(workload.global_batch_size)),
            ("--train-iters", str(workload.steps_to_train or DEFAULT_ITERATIONS)),
        ),
    )


def _data(workload: TrainWorkload) -> Group:
    """Return the data's flags; documents that share a sequence are kept apart by their boundaries."""
    if workload.data_path:
        paths = tuple(not_a_flag(path) for path in workload.data_path)
        flags: Flags = (("--data-path", *paths), ("--split", "99,1,0"))
    else:
        flags = (("--mock-data",),)
    packed = workload.documents is not None and workload.documents.packing is Packing.PACKED
    return Group(
        title="Data",
        flags=(
            *flags,
            *when(packed, "--dataloader-inter-document-masking"),
            ("--no-create-attention-mask-in-dataloader",),
        ),
    )


def _run(workload: TrainWorkload, layout: Layout) -> Group:
    checkpoint_format = "fsdp_dtensor" if layout.zero_stage in FSDP_STRATEGIES else "torch_dist"
    return Group(
        title="Run",
        flags=(
            *when(workload.method is not TrainMethod.PRETRAIN, "--finetune"),
            # The base model's checkpoint has no adapters; they start at zero and a line of the log says so.
            *when(workload.lora is not None, "--dist-ckpt-strictness", "log_unexpected"),
            ("--ckpt-format", checkpoint_format),
            ("--distributed-timeout-minutes", "60"),
            ("--eval-interval", "1000"),
            ("--eval-iters", "0"),
            ("--log-interval", "1"),
            ("--log-throughput",),
        ),
    )
