"""The argument list of Megatron-LM's `pretrain_gpt.py` for one planned layout, group by group.

Flags and their meaning: `megatron/training/arguments.py` of megatron-core 0.19.2. Everything that decides the plan is
written out, defaults included, so that a reader of the script sees the whole run.
"""

import math
from dataclasses import dataclass
from itertools import groupby

from planner.blocks import Activation, Norm, PositionEmbedding
from planner.emit.megatron_limits import (
    RANK_ORDERS,
    TRAIT_FLAGS,
    YARN_DEFAULTS,
    needs_precision_aware,
    only_block,
    rope_kind,
)
from planner.layout import Granularity, Layout, Stage
from planner.shard import VOCAB_DIVISOR, padded_vocab_size
from planner.specs import ModelSpec
from planner.workload import DType, Optimizer, Precision, TrainMethod, TrainWorkload

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

FSDP_STRATEGIES = {2: "optim_grads", 3: "optim_grads_params"}

LONGEST_SPELLED_RUN = 2
"""Runs of more equal stages than this are written `(...|)*n` in a pipeline layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Flags that belong together.

    Args:
        title: What they describe, for the comment above them.
        flags: Each a flag followed by its values.
    """

    title: str
    flags: tuple[tuple[str, ...], ...]


def argument_groups(model: ModelSpec, workload: TrainWorkload, layout: Layout) -> tuple[Group, ...]:
    """Return the whole argument list of a plan that Megatron-LM can express."""
    return (
        _model(model, workload),
        _vocabulary(model, workload, layout),
        _precision(workload),
        _optimizer(workload),
        _batch(workload, layout),
        _parallelism(layout, model),
        _sharding(layout, workload),
        _recompute(layout),
        _data(workload),
        _run(workload, layout),
    )


def arguments(model: ModelSpec, workload: TrainWorkload, layout: Layout) -> tuple[str, ...]:
    """Return the argument list as words."""
    return tuple(word for group in argument_groups(model, workload, layout) for flag in group.flags for word in flag)


def train_iterations(workload: TrainWorkload) -> int:
    """Return the optimizer steps that the token budget takes, or the stated default without one."""
    if workload.tokens_to_train is None:
        return DEFAULT_ITERATIONS
    return max(1, math.ceil(workload.tokens_to_train / workload.tokens_per_step))


def _when(condition: object, *flag: str) -> tuple[tuple[str, ...], ...]:
    return (flag,) if condition else ()


def _model(model: ModelSpec, workload: TrainWorkload) -> Group:
    attention, feed_forward = only_block(model)
    grouped = attention.num_key_value_heads != attention.num_attention_heads
    return Group(
        title="Architecture",
        flags=(
            ("--transformer-impl", "transformer_engine"),
            ("--num-layers", str(model.num_layers)),
            ("--hidden-size", str(model.hidden_size)),
            ("--ffn-hidden-size", str(feed_forward.intermediate_size)),
            ("--num-attention-heads", str(attention.num_attention_heads)),
            *_when(grouped, "--group-query-attention"),
            *_when(grouped, "--num-query-groups", str(attention.num_key_value_heads)),
            ("--kv-channels", str(attention.head_dim)),
            *_when(attention.qk_norm, "--qk-layernorm"),
            *_activation(feed_forward.activation, gated=feed_forward.gated, bias=feed_forward.bias),
            *_when(not feed_forward.bias, "--disable-bias-linear"),
            *_when(attention.qkv_bias and not feed_forward.bias, "--add-qkv-bias"),
            ("--normalization", "RMSNorm" if model.norm is Norm.RMS else "LayerNorm"),
            ("--norm-epsilon", repr(model.norm_epsilon)),
            *((TRAIT_FLAGS[trait],) for trait in model.traits),
            *_positions(model, workload),
            ("--attention-dropout", repr(workload.attention_dropout)),
            ("--hidden-dropout", repr(workload.hidden_dropout)),
            ("--attention-backend", workload.attention_kernel.value),
        ),
    )


def _activation(activation: Activation, *, gated: bool, bias: bool) -> tuple[tuple[str, ...], ...]:
    """Return the activation's flags; gelu fused with its bias is the tanh form, unfused the erf form."""
    if gated:
        return (("--swiglu",),)
    squared = activation is Activation.RELU2
    return (
        *_when(squared, "--squared-relu"),
        *_when(bias and activation in {Activation.RELU2, Activation.GELU}, "--no-bias-gelu-fusion"),
    )


def _positions(model: ModelSpec, workload: TrainWorkload) -> tuple[tuple[str, ...], ...]:
    """Return the position flags; only learned positions have a table, whose length is the model's own."""
    length = model.max_position_embeddings
    if model.position_embedding is PositionEmbedding.LEARNED:
        return (("--position-embedding-type", "learned_absolute"), ("--max-position-embeddings", str(length)))
    reach = ("--max-position-embeddings", str(max(length, workload.seq_len)))
    if model.position_embedding is PositionEmbedding.NONE:
        return (("--position-embedding-type", "none"), reach)
    kind = rope_kind(model)
    return (
        ("--position-embedding-type", "yarn" if kind == "yarn" else "rope"),
        reach,
        ("--rotary-base", str(int(model.rope_theta or 0))),
        ("--rotary-percent", repr(model.rotary_fraction)),
        *_rope_scaling(kind, model),
    )


def _rope_scaling(kind: str, model: ModelSpec) -> tuple[tuple[str, ...], ...]:
    scaling = model.rope_scaling
    if kind == "llama3":
        return (("--use-rope-scaling",), ("--rope-scaling-factor", repr(float(scaling["factor"]))))
    if kind == "linear":
        return (("--rotary-seq-len-interpolation-factor", str(int(scaling["factor"]))),)
    if kind == "yarn":
        original = scaling.get("original_max_position_embeddings", model.max_position_embeddings)
        return (
            ("--rotary-scaling-factor", repr(float(scaling["factor"]))),
            ("--yarn-original-max-position-embeddings", str(int(original))),
            ("--yarn-beta-fast", repr(float(scaling.get("beta_fast", YARN_DEFAULTS["beta_fast"])))),
            ("--yarn-beta-slow", repr(float(scaling.get("beta_slow", YARN_DEFAULTS["beta_slow"])))),
        )
    return ()


def _vocabulary(model: ModelSpec, workload: TrainWorkload, layout: Layout) -> Group:
    """Return the flags of the vocabulary: with a tokenizer of its own, its size is not the tokenizer's.

    A Hugging Face tokenizer's count of tokens stands in for `--vocab-size`, and often differs from the rows of the
    model's embedding; only `--padded-vocab-size` comes before it (`core/tokenizers/utils/build_tokenizer.py`).
    """
    padded = padded_vocab_size(model.vocab_size, layout.tp)
    tokenizer: tuple[tuple[str, ...], ...] = (("--tokenizer-type", "NullTokenizer"),)
    title = f"Vocabulary: {model.vocab_size} rows, padded to {padded} (a multiple of {VOCAB_DIVISOR} x tp)"
    if workload.tokenizer_model is not None:
        path = not_a_flag(workload.tokenizer_model)
        tokenizer = (("--tokenizer-type", "HuggingFaceTokenizer"), ("--tokenizer-model", path))
        title += "; the tokenizer may know fewer tokens, not more"
    return Group(
        title=title,
        flags=(
            *tokenizer,
            ("--vocab-size", str(model.vocab_size)),
            ("--make-vocab-size-divisible-by", str(VOCAB_DIVISOR)),
            *_when(workload.tokenizer_model is not None, "--padded-vocab-size", str(padded)),
            *_when(not model.tie_word_embeddings, "--untie-embeddings-and-output-weights"),
        ),
    )


def _precision(workload: TrainWorkload) -> Group:
    precision = workload.precision
    sixteen = "--fp16" if precision is Precision.FP16 else "--bf16"
    fp8: tuple[tuple[str, ...], ...] = ()
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
            *_when(full, "--accumulate-allreduce-grads-in-fp32"),
            *_when(workload.gradient_dtype is DType.BF16, "--grad-reduce-in-bf16"),
            *_when(fused_loss, "--cross-entropy-loss-fusion"),
            *_when(fused_loss, "--cross-entropy-fusion-impl", "native"),
        ),
    )


def _optimizer(workload: TrainWorkload) -> Group:
    rate, last_rate = LEARNING_RATES[workload.method]
    adam = workload.optimizer is Optimizer.ADAM
    aware = needs_precision_aware(workload)
    moments = workload.moment_dtype.value
    return Group(
        title="Optimizer (learning rate, decay and clipping are placeholders: no cost depends on them)",
        flags=(
            ("--optimizer", workload.optimizer.value),
            *_when(adam, "--adam-beta1", "0.9"),
            *_when(adam, "--adam-beta2", "0.95"),
            *_when(adam, "--adam-eps", "1e-08"),
            *_when(not adam, "--sgd-momentum", "0.9"),
            *_when(aware, "--use-precision-aware-optimizer"),
            *_when(aware, "--main-params-dtype", workload.master_dtype.value),
            *_when(aware, "--main-grads-dtype", "bf16" if workload.gradient_dtype is DType.BF16 else "fp32"),
            *_when(aware, "--exp-avg-dtype", moments),
            *_when(aware, "--exp-avg-sq-dtype", moments),
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
            ("--train-iters", str(train_iterations(workload))),
        ),
    )


def _parallelism(layout: Layout, model: ModelSpec) -> Group:
    return Group(
        title=f"Parallelism: tp {layout.tp}, pp {layout.pp}, vpp {layout.vpp}, cp {layout.cp}, dp {layout.dp}",
        flags=(
            ("--tensor-model-parallel-size", str(layout.tp)),
            *_when(layout.sequence_parallel, "--sequence-parallel"),
            ("--pipeline-model-parallel-size", str(layout.pp)),
            *_stages(layout, model),
            *_when(layout.vpp > 1 and not layout.overlap.p2p, "--no-overlap-p2p-communication"),
            ("--context-parallel-size", str(layout.cp)),
            *_when(layout.cp > 1, "--cp-comm-type", layout.cp_kind or "p2p"),
            *_when(RANK_ORDERS[layout.rank_order], *RANK_ORDERS[layout.rank_order]),
        ),
    )


def _stages(layout: Layout, model: ModelSpec) -> tuple[tuple[str, ...], ...]:
    """Return nothing for an even pipeline, the number of chunks for an even interleaved one, else the layout."""
    even = model.num_layers / len(layout.stages)
    if all(stage.num_layers == even for stage in layout.stages):
        return _when(layout.vpp > 1, "--num-virtual-stages-per-pipeline-rank", str(layout.vpp))
    return (("--pipeline-model-parallel-layout", pipeline_layout(layout.stages)),)


def pipeline_layout(stages: tuple[Stage, ...]) -> str:
    """Return the stages in the notation of `--pipeline-model-parallel-layout`: E embedding, t layer, L head, | between.

    Repeats are written `t*8` and `(t*8|)*14`, as `PipelineParallelLayerLayout.parse_str_to_list` reads them.
    """
    texts = [_stage_text(stage) for stage in stages]
    closed = [f"{text}|" for text in texts[:-1]]
    parts: list[str] = []
    for text, run in groupby(closed):
        count = len(tuple(run))
        parts.append(f"({text})*{count}" if count > LONGEST_SPELLED_RUN else text * count)
    return "".join([*parts, texts[-1]])


def _stage_text(stage: Stage) -> str:
    layers = f"t*{stage.num_layers}" if stage.num_layers > 1 else "t" * stage.num_layers
    return f"{'E' if stage.has_embedding else ''}{layers}{'L' if stage.has_head else ''}"


def _sharding(layout: Layout, workload: TrainWorkload) -> Group:
    fsdp = layout.zero_stage in FSDP_STRATEGIES
    gradients = workload.gradient_dtype.value
    return Group(
        title="Data parallelism",
        flags=(
            *_when(layout.zero_stage >= 1, "--use-distributed-optimizer"),
            *_when(fsdp, "--use-megatron-fsdp"),
            *_when(fsdp, "--data-parallel-sharding-strategy", FSDP_STRATEGIES.get(layout.zero_stage, "")),
            *_when(fsdp, "--megatron-fsdp-main-grads-dtype", gradients),
            *_when(fsdp, "--megatron-fsdp-grad-comm-dtype", gradients),
            *_when(fsdp, "--no-gradient-accumulation-fusion"),
            *_when(layout.overlap.grad_reduce, "--overlap-grad-reduce"),
            *_when(layout.overlap.param_gather, "--overlap-param-gather"),
        ),
    )


def _recompute(layout: Layout) -> Group:
    """Return the recompute flags; `block` counts layers from the first of each virtual stage."""
    recompute = layout.recompute
    flags: tuple[tuple[str, ...], ...] = ()
    if recompute.granularity is Granularity.SELECTIVE:
        flags = (("--recompute-granularity", "selective"), ("--recompute-modules", *recompute.modules))
    elif recompute.granularity is Granularity.FULL:
        method = "uniform" if recompute.num_layers is None else "block"
        flags = (
            ("--recompute-granularity", "full"),
            ("--recompute-method", method),
            ("--recompute-num-layers", str(recompute.num_layers or 1)),
        )
    return Group(title=f"Recompute: {recompute.granularity}", flags=flags)


def _data(workload: TrainWorkload) -> Group:
    if workload.data_path:
        paths = tuple(not_a_flag(path) for path in workload.data_path)
        flags: tuple[tuple[str, ...], ...] = (("--data-path", *paths), ("--split", "99,1,0"))
    else:
        flags = (("--mock-data",),)
    return Group(title="Data", flags=(*flags, ("--no-create-attention-mask-in-dataloader",)))


def not_a_flag(value: str) -> str:
    """Return a path that no argument parser takes for a flag: a leading dash becomes `./-`, which is the same file."""
    return f"./{value}" if value.startswith("-") else value


def _run(workload: TrainWorkload, layout: Layout) -> Group:
    checkpoint_format = "fsdp_dtensor" if layout.zero_stage in FSDP_STRATEGIES else "torch_dist"
    return Group(
        title="Run",
        flags=(
            *_when(workload.method is not TrainMethod.PRETRAIN, "--finetune"),
            # The base model's checkpoint has no adapters; they start at zero and a line of the log says so.
            *_when(workload.lora is not None, "--dist-ckpt-strictness", "log_unexpected"),
            ("--ckpt-format", checkpoint_format),
            ("--distributed-timeout-minutes", "60"),
            ("--eval-interval", "1000"),
            ("--eval-iters", "0"),
            ("--log-interval", "1"),
            ("--log-throughput",),
        ),
    )
