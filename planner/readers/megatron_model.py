"""The model and the workload that a Megatron-LM argument list describes."""

from collections.abc import Collection

from planner.blocks import Activation, Block, DenseFeedForward, Norm, PositionEmbedding, SelfAttention
from planner.errors import InputError, Location
from planner.readers.megatron import MegatronJob
from planner.shard import VOCAB_DIVISOR, padded_vocab_size
from planner.specs import BlockRun, ModelSpec, Trait
from planner.workload import AttentionKernel, DType, Lora, Optimizer, Precision, TrainMethod, TrainWorkload

POSITIONS = {
    "rope": PositionEmbedding.ROPE,
    "yarn": PositionEmbedding.ROPE,
    "learned_absolute": PositionEmbedding.LEARNED,
    "none": PositionEmbedding.NONE,
}

TRAITS = {"--apply-layernorm-1p": Trait.ZERO_CENTERED_NORM, "--rotary-interleaved": Trait.INTERLEAVED_ROTARY}

FP8_RECIPES = {precision.removeprefix("fp8-"): precision for precision in Precision if precision.is_fp8}

ATTENTION_KERNELS = {
    "auto": AttentionKernel.FLASH,
    "flash": AttentionKernel.FLASH,
    "fused": AttentionKernel.FUSED,
    "unfused": AttentionKernel.UNFUSED,
}
"""With `auto` Transformer Engine takes the flash kernel or cuDNN's, which save the same tensors."""


def model_of(job: MegatronJob) -> ModelSpec:
    """Return the dense model that the flags describe, named after its file."""
    kind = _choice(job, "--position-embedding-type", "learned_absolute", POSITIONS)
    rotary = POSITIONS[kind] is PositionEmbedding.ROPE
    hidden_size = job.integer("--hidden-size")
    layers = job.integer("--num-layers")
    return ModelSpec(
        name=job.file,
        architecture="megatron-lm",
        hidden_size=hidden_size,
        vocab_size=_vocab_size(job),
        tie_word_embeddings=not job.has("--untie-embeddings-and-output-weights"),
        max_position_embeddings=job.integer("--max-position-embeddings"),
        norm=Norm.RMS if job.text("--normalization", "LayerNorm") == "RMSNorm" else Norm.LAYER,
        position_embedding=POSITIONS[kind],
        norm_epsilon=job.number("--norm-epsilon", 1e-5),
        rope_theta=job.number("--rotary-base", 10000) if rotary else None,
        rotary_fraction=job.number("--rotary-percent", 1.0) if rotary else 1.0,
        rope_scaling=_rope_scaling(job, kind),
        traits=tuple(trait for name, trait in TRAITS.items() if job.has(name)),
        runs=(BlockRun(block=_block(job, hidden_size), count=layers),),
    )


def _vocab_size(job: MegatronJob) -> int:
    """Return the rows of the vocabulary before padding; `--padded-vocab-size` may not say others."""
    padded = job.flag("--padded-vocab-size")
    if padded is None:
        return job.integer("--vocab-size")
    rows = job.integer("--padded-vocab-size")
    vocab_size = job.integer("--vocab-size", rows)
    tp = job.integer("--tensor-model-parallel-size", 1)
    expected = padded_vocab_size(vocab_size, tp)
    if rows != expected:
        raise job.error(
            padded,
            f"is {rows}; plans pad {vocab_size} rows over tp {tp} to {expected}",
            f"Plans pad to a multiple of {VOCAB_DIVISOR} x tp.",
        )
    return vocab_size


def _choice(job: MegatronJob, name: str, default: str, choices: Collection[str]) -> str:
    """Return the value of a flag that takes one of a few words."""
    value = job.text(name, default)
    flag = job.flag(name)
    if value not in choices and flag is not None:
        raise job.error(flag, f"is {value!r}", f"Plans know {', '.join(choices)}.")
    return value


def _block(job: MegatronJob, hidden_size: int) -> Block:
    heads = job.integer("--num-attention-heads")
    biased = not job.has("--disable-bias-linear")
    gated = job.has("--swiglu")
    feed_forward_size = job.integer("--ffn-hidden-size", hidden_size * 8 // 3 // 64 * 64 if gated else 4 * hidden_size)
    groups = job.integer("--num-query-groups", 1) if job.has("--group-query-attention") else heads
    return Block(
        mixer=SelfAttention(
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=job.integer("--kv-channels", hidden_size // heads),
            qkv_bias=biased or job.has("--add-qkv-bias"),
            output_bias=biased,
            qk_norm=job.has("--qk-layernorm"),
        ),
        feed_forward=DenseFeedForward(
            intermediate_size=feed_forward_size, gated=gated, activation=_activation(job, biased=biased), bias=biased
        ),
    )


def _activation(job: MegatronJob, *, biased: bool) -> Activation:
    """Return the activation; gelu fused with a bias is the tanh form (`core/fusions/fused_bias_gelu.py`)."""
    if job.has("--quick-geglu"):
        flag = job.flag("--quick-geglu")
        raise InputError(
            "--quick-geglu is an activation that plans do not know.",
            location=Location(file=job.file, line=flag.line if flag else None, column=flag.column if flag else None),
            hint="Use --swiglu, --squared-relu or gelu.",
        )
    if job.has("--swiglu"):
        return Activation.SILU
    if job.has("--squared-relu"):
        return Activation.RELU2
    return Activation.GELU_TANH if biased and not job.has("--no-bias-gelu-fusion") else Activation.GELU


def _rope_scaling(job: MegatronJob, kind: str) -> dict[str, float | str]:
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": job.number("--rotary-scaling-factor", 1.0),
            "original_max_position_embeddings": job.integer("--yarn-original-max-position-embeddings", 4096),
            "beta_fast": job.number("--yarn-beta-fast", 32.0),
            "beta_slow": job.number("--yarn-beta-slow", 1.0),
        }
    if kind == "rope" and job.has("--use-rope-scaling"):
        return {
            "rope_type": "llama3",
            "factor": job.number("--rope-scaling-factor", 8.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    if kind == "rope" and job.has("--rotary-seq-len-interpolation-factor"):
        return {"rope_type": "linear", "factor": float(job.integer("--rotary-seq-len-interpolation-factor"))}
    return {}


def workload_of(job: MegatronJob) -> TrainWorkload:
    """Return the training run that the flags describe; the token budget is the iterations' tokens."""
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
        optimizer=Optimizer(_choice(job, "--optimizer", "adam", list(Optimizer))),
        attention_kernel=ATTENTION_KERNELS[_choice(job, "--attention-backend", "auto", ATTENTION_KERNELS)],
        method=_method(job, lora),
        lora=lora,
        tokens_to_train=job.integer("--train-iters") * seq_len * global_batch_size,
        hidden_dropout=job.number("--hidden-dropout", 0.1),
        attention_dropout=job.number("--attention-dropout", 0.1),
        data_path=paths.values if paths else (),
        tokenizer_model=job.text("--tokenizer-model", "") or None,
    )


def _method(job: MegatronJob, lora: Lora | None) -> TrainMethod:
    if lora is not None:
        return TrainMethod.LORA
    return TrainMethod.FULL_FINETUNE if job.has("--finetune") else TrainMethod.PRETRAIN


def _lora(job: MegatronJob) -> Lora | None:
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


def _dtype(job: MegatronJob, name: str) -> DType:
    return DType(_choice(job, name, "fp32", list(DType)))


def _precision(job: MegatronJob) -> Precision:
    if job.has("--fp8-format"):
        return FP8_RECIPES[_choice(job, "--fp8-recipe", "delayed", FP8_RECIPES)]
    if job.has("--bf16"):
        return Precision.BF16
    if job.has("--fp16"):
        return Precision.FP16
    raise InputError(
        "neither --bf16 nor --fp16 is given.", location=Location(file=job.file), hint="Plans know 16-bit training only."
    )
