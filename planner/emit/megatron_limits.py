"""What Megatron-LM cannot express, with the nearest it can.

Every rule was read in megatron-core 0.19.2 (`megatron/training/arguments.py`, `megatron/training/argument_utils.py`,
`megatron/core/transformer/transformer_config.py` and the modules named beside a rule). A plan that breaks one is
refused, never changed silently.
"""

from typing import NoReturn

from planner.blocks import Activation, Block, DenseFeedForward, PositionEmbedding, SelfAttention
from planner.errors import NotExpressibleError
from planner.layout import Granularity, Layout, Schedule
from planner.specs import ModelSpec, Trait
from planner.workload import DType, Optimizer, Precision, TrainWorkload
from profiles.hardware import Device

TARGET = "Megatron-LM (megatron-core 0.19.2)"

RANK_ORDERS = {"tp-cp-ep-dp-pp": (), "tp-cp-ep-pp-dp": ("--use-tp-pp-dp-mapping",)}

TRAIT_FLAGS = {
    Trait.ZERO_CENTERED_NORM: "--apply-layernorm-1p",
    Trait.INTERLEAVED_ROTARY: "--rotary-interleaved",
}

LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The only Llama-3 scaling that reaches the model: `gpt_config_from_args` drops `--rope-scaling-factor`, and
`RotaryEmbedding._apply_scaling` has the other three built in."""

YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}

ROPE_PARAMETERS = {
    "llama3": frozenset(LLAMA3_ROPE),
    "linear": frozenset({"factor"}),
    "yarn": frozenset({"factor", "original_max_position_embeddings", *YARN_DEFAULTS}),
}
"""Parameters of each kind of rope scaling that the flags can say."""

FIRST_BLACKWELL_CAPABILITY = 10


def refuse(message: str, nearest: str) -> NoReturn:
    """Raise the error that says what cannot be expressed, and the nearest that can."""
    raise NotExpressibleError(message, target=TARGET, hint=nearest)


def capability_major(device: Device) -> int | None:
    """Return the major CUDA compute capability; None on other vendors."""
    return None if device.compute_capability is None else int(device.compute_capability.split(".", maxsplit=1)[0])


def only_block(model: ModelSpec) -> tuple[SelfAttention, DenseFeedForward]:
    """Return the two sub-blocks that all layers share, or refuse a model whose layers differ."""
    blocks = model.distinct_blocks
    if len(blocks) != 1:
        refuse(
            f"{model.name} has {len(blocks)} different kinds of layers; the flags describe one.",
            "Use a model whose layers are all alike.",
        )
    block: Block = blocks[0]
    if block.mixer is None or block.feed_forward is None:
        refuse(f"a layer of {model.name} lacks attention or a feed-forward.", "Use layers that have both.")
    if block.parallel:
        refuse(
            f"{model.name} runs attention and feed-forward in parallel; a Megatron layer runs them in sequence.",
            "Nearest: the same sizes with sequential blocks, which is another architecture.",
        )
    if block.num_norms != 2:
        refuse(f"a layer of {model.name} has {block.num_norms} norms; a Megatron layer has 2.", "Use pre-norm layers.")
    return block.mixer, block.feed_forward


def require_model(model: ModelSpec) -> None:
    """Refuse architectures that the flags cannot describe."""
    attention, feed_forward = only_block(model)
    if model.lm_head_bias:
        refuse(f"{model.name} has a bias on its LM head; Megatron's has none.", "Nearest: the same model without it.")
    if model.embedding_norm:
        refuse(
            f"{model.name} normalises its embedding; Megatron has no such norm.", "Nearest: the same model without it."
        )
    if model.position_offset:
        refuse(
            f"{model.name} keeps {model.position_offset} rows in front of position 0; Megatron's table starts at 0.",
            "Nearest: the same model without the offset.",
        )
    unknown = [trait for trait in model.traits if trait not in TRAIT_FLAGS]
    if unknown:
        refuse(
            f"{model.name} has the traits {', '.join(unknown)}, for which there is no flag.",
            f"The flags can say {', '.join(TRAIT_FLAGS)}.",
        )
    _require_biases(model.name, attention, feed_forward)
    _require_activation(model.name, feed_forward)
    _require_positions(model)


def _require_biases(name: str, attention: SelfAttention, feed_forward: DenseFeedForward) -> None:
    biases = (attention.qkv_bias, attention.output_bias, feed_forward.bias)
    if biases not in {(False, False, False), (True, False, False), (True, True, True)}:
        carriers = ("qkv", "attention output", "feed-forward")
        found = [carrier for carrier, bias in zip(carriers, biases, strict=True) if bias]
        refuse(
            f"{name} has biases on {' and '.join(found)} only.",
            "The flags know three cases: no bias, qkv only (--add-qkv-bias), or every linear layer.",
        )


def _require_activation(name: str, feed_forward: DenseFeedForward) -> None:
    activation, gated = feed_forward.activation, feed_forward.gated
    if gated and activation is not Activation.SILU:
        refuse(
            f"{name} gates with {activation}; of the gated activations only SwiGLU (silu) has the same formula there.",
            "Nearest: --swiglu, which is another activation of equal cost.",
        )
    if not gated and activation in {Activation.SILU, Activation.RELU}:
        refuse(
            f"{name} uses {activation} without a gate.",
            "Without a gate there are gelu (with biases also its tanh form) and relu2 (--squared-relu).",
        )
    if not gated and activation is Activation.GELU_TANH and not feed_forward.bias:
        refuse(
            f"{name} uses the tanh form of gelu without biases; it exists only fused with a bias.",
            "Nearest: gelu (the erf form), which costs the same.",
        )


def _require_positions(model: ModelSpec) -> None:
    if model.position_embedding is not PositionEmbedding.ROPE:
        return
    if model.rope_theta is None or not float(model.rope_theta).is_integer():
        refuse(
            f"rope_theta = {model.rope_theta} of {model.name}; --rotary-base takes an integer.",
            "Round rope_theta to an integer.",
        )
    kind = rope_kind(model)
    if not kind:
        return
    scaling = model.rope_scaling
    if kind not in ROPE_PARAMETERS:
        refuse(f"rope scaling of kind {kind!r} in {model.name}.", "The flags know llama3, linear and yarn.")
    unknown = sorted(set(scaling) - ROPE_PARAMETERS[kind] - {"rope_type", "type"})
    if unknown or "factor" not in scaling:
        problem = f"with {', '.join(unknown)}" if unknown else "without a factor"
        refuse(
            f"{kind} rope scaling of {model.name} {problem}.",
            f"The flags for {kind} can say {', '.join(sorted(ROPE_PARAMETERS[kind]))}.",
        )
    if kind == "llama3" and any(scaling.get(key, value) != value for key, value in LLAMA3_ROPE.items()):
        found = ", ".join(f"{key} {scaling.get(key, value)}" for key, value in LLAMA3_ROPE.items())
        refuse(
            f"the llama3 rope scaling of {model.name} ({found}) does not reach the model: this version parses "
            "--rope-scaling-factor and then builds with factor 8, low 1, high 4, original length 8192.",
            "Leave `rope_scaling` out of the model (it changes no cost), or use factor 8.",
        )
    if kind == "linear" and not float(scaling["factor"]).is_integer():
        refuse(
            f"linear rope scaling by {scaling['factor']}; --rotary-seq-len-interpolation-factor takes an integer.",
            "Use an integer factor.",
        )


def rope_kind(model: ModelSpec) -> str:
    """Return the kind of rope scaling, empty without one."""
    if not model.rope_scaling:
        return ""
    kind = str(model.rope_scaling.get("rope_type", model.rope_scaling.get("type", "default")))
    return "" if kind == "default" else kind


def require_workload(workload: TrainWorkload, device: Device) -> None:
    """Refuse number formats and methods that the flags cannot describe."""
    if workload.master_dtype not in {DType.FP32, DType.FP16}:
        refuse(
            f"master_dtype {workload.master_dtype}; --main-params-dtype takes fp32 and fp16.",
            "Nearest: fp32 (with 16-bit moments the master copy of bf16 weights is stored as a 16-bit remainder).",
        )
    allowed = {DType.FP32, workload.precision.parameter_dtype}
    if workload.gradient_dtype not in allowed:
        refuse(
            f"gradient_dtype {workload.gradient_dtype} with precision {workload.precision}.",
            f"Gradients are kept in {' or '.join(sorted(allowed))}.",
        )
    if needs_precision_aware(workload) and workload.optimizer is not Optimizer.ADAM:
        refuse(
            f"master_dtype {workload.master_dtype} and moment_dtype {workload.moment_dtype} with {workload.optimizer}.",
            "Formats below fp32 need --use-precision-aware-optimizer, which knows Adam only.",
        )
    major = capability_major(device)
    if workload.precision is Precision.FP8_MXFP8 and (major is None or major < FIRST_BLACKWELL_CAPABILITY):
        refuse(f"precision fp8-mxfp8 on {device.name}.", "MXFP8 needs a Blackwell GPU; nearest: fp8-blockwise.")


def needs_precision_aware(workload: TrainWorkload) -> bool:
    """Return whether a state of the optimizer is kept below fp32."""
    return (workload.master_dtype, workload.moment_dtype) != (DType.FP32, DType.FP32)


def require_layout(layout: Layout, model: ModelSpec, workload: TrainWorkload) -> None:
    """Refuse layouts that the flags cannot describe."""
    _require_axes(layout, model)
    _require_pipeline(layout)
    _require_sharding(layout, workload)
    if workload.lora is not None:
        _require_adapters(layout)
    if layout.recompute.num_layers == 0:
        refuse("full recompute of 0 layers.", "Use recompute none.")
    modules = set(layout.recompute.modules) - {"core_attn", "mlp"}
    if layout.recompute.granularity is Granularity.SELECTIVE and modules:
        refuse(
            f"recompute of {', '.join(sorted(modules))} in a dense layer.",
            "With Transformer Engine the norms are fused into the linear layers: name core_attn or mlp.",
        )


def _require_axes(layout: Layout, model: ModelSpec) -> None:
    attention, feed_forward = only_block(model)
    heads, groups, tp = attention.num_attention_heads, attention.num_key_value_heads, layout.tp
    if heads % tp or (groups % tp and tp % groups) or feed_forward.intermediate_size % tp:
        refuse(
            f"tp = {tp} with {heads} heads, {groups} key/value heads and intermediate_size "
            f"{feed_forward.intermediate_size}.",
            "tp must divide heads and intermediate_size, and divide or be a multiple of the key/value heads.",
        )
    if layout.ep > 1 or layout.etp > 1:
        refuse(f"ep = {layout.ep}, etp = {layout.etp} without experts.", "Use ep = 1 and etp = 1.")
    if layout.rank_order not in RANK_ORDERS:
        refuse(f"rank order {layout.rank_order}.", f"Use {' or '.join(sorted(RANK_ORDERS))}.")
    if layout.sequence_parallel and tp == 1:
        refuse("sequence_parallel with tp = 1 is switched off by Megatron.", "Use sequence_parallel false.")


def _require_pipeline(layout: Layout) -> None:
    expected = Schedule.NO_PIPELINE
    if layout.pp > 1:
        expected = Schedule.INTERLEAVED if layout.vpp > 1 else Schedule.ONE_F_ONE_B
    if layout.schedule is not expected or (layout.pp == 1 and layout.vpp > 1):
        refuse(
            f"schedule {layout.schedule} with pp = {layout.pp} and vpp = {layout.vpp}.",
            f"Megatron runs {expected} there.",
        )
    if layout.vpp > 1 and layout.num_microbatches % layout.pp:
        refuse(
            f"{layout.num_microbatches} micro-batches, interleaved over pp = {layout.pp}.",
            "Interleaving needs a multiple of pp micro-batches.",
        )
    if layout.vpp == 1 and layout.overlap.p2p:
        refuse("overlapped p2p communication without virtual stages.", "Use overlap p2p false, or vpp > 1.")
    if layout.vpp > 1 and not layout.overlap.p2p and layout.pp == 2:
        refuse("interleaving over pp = 2 without overlapped p2p communication.", "Overlap p2p, or use pp > 2.")
    for index, stage in enumerate(layout.stages):
        if stage.num_layers == 0 and not (stage.has_embedding or stage.has_head):
            refuse(f"virtual stage {index} holds nothing.", "Give each stage a layer, the embedding or the head.")


def _require_sharding(layout: Layout, workload: TrainWorkload) -> None:
    if layout.zero_stage >= 2 and layout.pp > 1:
        refuse(
            f"zero_stage {layout.zero_stage} with pp = {layout.pp}: no configuration that Megatron-LM tests combines "
            "Megatron-FSDP with pipeline stages.",
            "Use zero_stage 0 or 1, or pp = 1.",
        )
    if layout.overlap.param_gather and (layout.zero_stage == 0 or not layout.overlap.grad_reduce):
        refuse(
            "overlapped parameter gathering without a sharded optimizer or without overlapped gradient reduction.",
            "--overlap-param-gather needs --use-distributed-optimizer and --overlap-grad-reduce.",
        )
    if layout.zero_stage >= 1 and workload.optimizer is not Optimizer.ADAM:
        refuse(
            f"zero_stage {layout.zero_stage} with {workload.optimizer}: Megatron's DistributedOptimizer asserts Adam.",
            "Use zero_stage 0, or adam.",
        )
    if needs_precision_aware(workload) and layout.zero_stage == 0:
        refuse(
            f"master_dtype {workload.master_dtype} and moment_dtype {workload.moment_dtype} with zero_stage 0.",
            "Formats below fp32 need --use-precision-aware-optimizer, which needs zero_stage 1.",
        )


def _require_adapters(layout: Layout) -> None:
    """Refuse what the emitted adapter program was not shown to do."""
    if layout.zero_stage >= 2:
        refuse(f"adapters with zero_stage {layout.zero_stage}.", "Use zero_stage 0 or 1.")
    if layout.cp > 1:
        refuse(f"adapters with cp = {layout.cp}.", "Use cp = 1.")
    if any(stage.num_layers == 0 for stage in layout.stages):
        refuse("adapters with a pipeline stage that holds no layer, so nothing to train.", "Give each stage a layer.")
