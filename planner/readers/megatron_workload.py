"""The training run that a Megatron-LM argument list describes."""

from planner.errors import InputError, Location
from planner.readers.launch_line import LaunchLine
from planner.requests.workload import AttentionKernel, DType, Lora, Optimizer, Precision, TrainMethod, TrainWorkload

FP8_RECIPES = {precision.removeprefix("fp8-"): precision for precision in Precision if precision.is_fp8}

ATTENTION_KERNELS = {
    "auto": AttentionKernel.FLASH,
    "flash": AttentionKernel.FLASH,
    "fused": AttentionKernel.FUSED,
    "unfused": AttentionKernel.UNFUSED,
}
"""With `auto` Transformer Engine takes the flash kernel or cuDNN's, which save the same tensors."""


def workload_of(job: LaunchLine) -> TrainWorkload:
    """Return the training run that the flags describe.

    The token budget is the iterations' tokens. No flag says how long documents are, or how evenly tokens are routed.
    """
    precision = _precision(job)
    sixteen = precision.parameter_dtype
    seq_len = job.integer("--seq-length")
    global_batch_size = job.integer("--global-batch-size")
    paths = job.flag("--data-path")
    lora = _lora(job)
    in_fp32 = job.has("--accumulate-allreduce-grads-in-fp32") or (
        precision is not Precision.FP16 and not job.has("--grad-reduce-in-bf16")
    )
    return TrainWorkload(
        seq_len=seq_len,
        global_batch_size=global_batch_size,
        precision=precision,
        master_dtype=_dtype(job, "--main-params-dtype"),
        gradient_dtype=DType.FP32 if in_fp32 else sixteen,
        moment_dtype=_dtype(job, "--exp-avg-dtype"),
        optimizer=Optimizer(job.choice("--optimizer", "adam", list(Optimizer))),
        attention_kernel=ATTENTION_KERNELS[job.choice("--attention-backend", "auto", ATTENTION_KERNELS)],
        method=_method(job, lora),
        lora=lora,
        tokens_to_train=job.integer("--train-iters") * seq_len * global_batch_size,
        hidden_dropout=job.number("--hidden-dropout", 0.1),
        attention_dropout=job.number("--attention-dropout", 0.1),
        data_path=paths.values if paths else (),
        tokenizer_model=job.text("--tokenizer-model", "") or None,
    )


def _method(job: LaunchLine, lora: Lora | None) -> TrainMethod:
    if lora is not None:
        return TrainMethod.LORA
    return TrainMethod.FULL_FINETUNE if job.has("--finetune") else TrainMethod.PRETRAIN


def _lora(job: LaunchLine) -> Lora | None:
    """Return the adapters that the environment of `lora_gpt.py` asks for."""
    variables = job.environment
    if not job.program.endswith("lora_gpt.py"):
        return None
    try:
        return Lora(
            rank=int(variables["LORA_RANK"]),
            alpha=float(variables["LORA_ALPHA"]),
            target_modules=tuple(variables["LORA_TARGETS"].split(",")),
        )
    except (KeyError, ValueError):
        raise InputError(
            "lora_gpt.py needs LORA_RANK, LORA_ALPHA and LORA_TARGETS.",
            location=Location(file=job.file),
            hint="Export all three before torchrun.",
        ) from None


def _dtype(job: LaunchLine, name: str) -> DType:
    return DType(job.choice(name, "fp32", list(DType)))


def _precision(job: LaunchLine) -> Precision:
    if job.has("--fp8-format"):
        return FP8_RECIPES[job.choice("--fp8-recipe", "delayed", FP8_RECIPES)]
    if job.has("--bf16"):
        return Precision.BF16
    if job.has("--fp16"):
        return Precision.FP16
    raise InputError(
        "neither --bf16 nor --fp16 is given.", location=Location(file=job.file), hint="Plans know 16-bit training only."
    )
