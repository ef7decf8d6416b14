"""What DeepSpeed, with the training program that is shipped for it, cannot express, with the nearest it can.

Every rule was read in deepspeed 0.19.8, in the module named beside it. DeepSpeed has no model of its own: what a model
may hold is what `planner/data/deepspeed/train_deepspeed.py` builds. A plan that breaks a rule is refused, never
changed silently.
"""

from typing import NoReturn

from planner.errors import NotExpressibleError
from planner.frameworks.capabilities import DEEPSPEED
from planner.layout import (
    DRIVE_WEIGHTS,
    HOST_WEIGHTS,
    STAGES_OUTERMOST,
    ContextKind,
    Granularity,
    Layout,
    Overlap,
    Schedule,
)
from planner.models.blocks import (
    Block,
    LatentAttention,
    MixtureOfExperts,
    QueryKeyNorm,
    SelfAttention,
)
from planner.models.specs import ModelSpec, Trait
from planner.requests.workload import (
    AttentionKernel,
    DType,
    Optimizer,
    Packing,
    Precision,
    TrainMethod,
    TrainWorkload,
)
from profiles.hardware import Cluster

TARGET = DEEPSPEED.title

"""`PipeDataParallelTopology` puts dp inside pp; AutoTP and `parallel_state_sp` put tp and cp next to each other."""

TRAITS = frozenset({Trait.ZERO_CENTERED_NORM, Trait.INTERLEAVED_ROTARY})
"""Traits that the training program has."""

ROPE_PARAMETERS = {
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "linear": frozenset({"factor"}),
    "yarn": frozenset({"factor", "original_max_position_embeddings", "beta_fast", "beta_slow"}),
}
"""Parameters of each kind of rope scaling that the training program has."""

ROPE_NEEDED = {
    "llama3": ROPE_PARAMETERS["llama3"],
    "linear": ROPE_PARAMETERS["linear"],
    "yarn": frozenset({"factor", "original_max_position_embeddings"}),
}


def refuse(message: str, nearest: str) -> NoReturn:
    """Raise the error that says what cannot be expressed, and the nearest that can."""
    raise NotExpressibleError(message, target=TARGET, hint=nearest)


def overlap_of(layout: Layout) -> Overlap:
    """Return which communication DeepSpeed hides behind computation at the degrees of a layout."""
    several = layout.dp * layout.cp > 1
    return Overlap(
        grad_reduce=several and layout.zero_stage >= DEEPSPEED.reduce_overlap_from,
        param_gather=several and layout.zero_stage >= DEEPSPEED.gather_overlap_from,
        p2p=False,
    )


def require_model(model: ModelSpec) -> None:
    """Refuse architectures that the training program does not build."""
    if model.mtp is not None:
        refuse(
            f"{model.name} predicts {model.mtp.num_modules} further tokens; the training program has no such modules.",
            "Nearest: the same model without `mtp_modules`: `shardwright models NAME --format yaml` prints it to edit.",
        )
    unknown = [trait for trait in model.traits if trait not in TRAITS]
    if unknown:
        refuse(
            f"{model.name} has the traits {', '.join(unknown)}, which the training program does not have.",
            f"It has {', '.join(sorted(TRAITS))}.",
        )
    _require_rope(model)
    for block in model.distinct_blocks:
        _require_block(model.name, block)


def _require_rope(model: ModelSpec) -> None:
    kind = model.rope_kind
    if not kind:
        return
    if kind not in ROPE_PARAMETERS:
        refuse(
            f"rope scaling of kind {kind!r} in {model.name}.",
            f"The training program has {', '.join(sorted(ROPE_PARAMETERS))}.",
        )
    unknown = sorted(set(model.rope_scaling) - ROPE_PARAMETERS[kind] - {"rope_type", "type"})
    missing = sorted(ROPE_NEEDED[kind] - set(model.rope_scaling))
    if unknown or missing:
        problem = f"with {', '.join(unknown)}" if unknown else f"without {', '.join(missing)}"
        refuse(
            f"{kind} rope scaling of {model.name} {problem}.",
            f"The training program knows {', '.join(sorted(ROPE_PARAMETERS[kind]))} of {kind}.",
        )


def _require_block(name: str, block: Block) -> None:
    num_parts = (block.mixer is not None) + (block.feed_forward is not None)
    allowed = {0, num_parts, 1} if block.parallel else {0, num_parts}
    if block.num_norms not in allowed or block.num_post_norms not in {0, num_parts}:
        refuse(
            f"a layer of {name} has {block.num_norms} norms in front of {num_parts} sub-blocks and "
            f"{block.num_post_norms} behind.",
            "The training program has none or one for each sub-block, or one for both where they run in parallel.",
        )
    match block.mixer:
        case SelfAttention():
            _require_attention(name, block.mixer)
        case LatentAttention():
            if block.mixer.indexer is not None:
                refuse(
                    f"{name} picks keys with an indexer; the training program attends to all.",
                    "Nearest: the same model without its indexer.",
                )
        case None:
            pass
        case mixer:
            refuse(
                f"{name} has {mixer.kind} layers, which the training program does not build.",
                "It builds attention and latent attention.",
            )
    if isinstance(block.feed_forward, MixtureOfExperts):
        _require_experts(name, block.feed_forward)


def _require_attention(name: str, attention: SelfAttention) -> None:
    absent = [
        words
        for given, words in (
            (attention.sinks, "attention sinks"),
            (attention.output_gate, "a gate on attention's output"),
            (attention.shared_key_value, "values that are the keys"),
            (attention.value_norm, "normalised values"),
            (attention.qk_norm is QueryKeyNorm.UNIT, "queries and keys of unit length"),
        )
        if given
    ]
    if absent:
        refuse(
            f"{name} has {' and '.join(absent)}, which the training program does not have.",
            "Nearest: plain attention of the same sizes, which is another architecture.",
        )


def _require_experts(name: str, experts: MixtureOfExperts) -> None:
    absent = [
        words
        for given, words in (
            (experts.latent_size is not None, "experts behind a projection of their own"),
            (experts.num_norms > 0, "norms beside its experts"),
            (experts.router.scales, "a router that scales its input"),
            (experts.expert.bias, "experts with biases"),
        )
        if given
    ]
    if absent:
        refuse(
            f"{name} has {' and '.join(absent)}, which the training program does not have.",
            "Nearest: plain experts of the same sizes, which is another architecture.",
        )


def require_workload(workload: TrainWorkload) -> None:
    """Refuse number formats and methods that the configuration and the training program cannot describe."""
    if workload.optimizer is not Optimizer.ADAM:
        refuse(
            f"optimizer {workload.optimizer}: of the planned optimizers ZeRO is tested with Adam only "
            "(`ZERO_SUPPORTED_OPTIMIZERS`).",
            "Use adam.",
        )
    if workload.precision not in {Precision.BF16, Precision.FP16}:
        refuse(f"precision {workload.precision}: DeepSpeed has no fp8 recipe.", "Use bf16 or fp16.")
    if workload.method is TrainMethod.LORA:
        refuse("low-rank adapters: the training program has none.", "Use pretrain or full-finetune.")
    if (workload.master_dtype, workload.moment_dtype) != (DType.FP32, DType.FP32):
        refuse(
            f"master_dtype {workload.master_dtype} and moment_dtype {workload.moment_dtype}: DeepSpeed lowers them "
            "only together with the gradients, and not in every optimizer.",
            "Use fp32 for both.",
        )
    allowed = (DType.FP32, workload.precision.parameter_dtype)
    if workload.gradient_dtype not in allowed:
        refuse(
            f"gradient_dtype {workload.gradient_dtype} with precision {workload.precision}.",
            f"Gradients are kept in {' or '.join(allowed)}.",
        )
    if workload.routing is not None and workload.routing.reroutes:
        refuse("reroute least-loaded: the training program has none.", "Leave `reroute` out, or use target any.")
    if workload.routing is not None and workload.routing.capacity_factor is not None:
        refuse(
            f"capacity_factor {workload.routing.capacity_factor:g}: the training program drops no tokens.",
            "Leave `capacity_factor` out, or use target megatron.",
        )
    if workload.documents is not None and workload.documents.packing is Packing.PACKED:
        refuse(
            "packed documents: the training program lets every token see all tokens before it in its sequence.",
            "Use packing padded, or leave `documents` out.",
        )


def require_layout(layout: Layout, model: ModelSpec, workload: TrainWorkload, cluster: Cluster) -> None:
    """Refuse layouts that the configuration and the training program cannot describe."""
    _require_axes(layout)
    _require_heads(layout, model, workload)
    _require_pipeline(layout, model)
    _require_sharding(layout)
    _require_recompute(layout)
    _require_offload(layout)
    if layout.world_size != cluster.world_size:
        refuse(
            f"a layout of {layout.world_size} GPUs on a cluster of {cluster.world_size}.",
            "torchrun starts one process on every GPU of every node; plan for the GPUs that take part.",
        )
    expected = overlap_of(layout)
    if layout.overlap != expected:
        refuse(
            f"overlap {_overlapped(layout.overlap)} with zero_stage {layout.zero_stage} and pp = {layout.pp}.",
            f"DeepSpeed overlaps {_overlapped(expected)} there.",
        )


def _overlapped(overlap: Overlap) -> str:
    hidden = [
        words
        for given, words in (
            (overlap.grad_reduce, "gradient reduction"),
            (overlap.param_gather, "parameter gathering"),
            (overlap.p2p, "p2p transfers"),
        )
        if given
    ]
    return " and ".join(hidden) or "nothing"


def _require_axes(layout: Layout) -> None:
    if layout.ep > 1 or layout.etp > 1:
        refuse(
            f"ep = {layout.ep}, etp = {layout.etp}: the training program keeps all experts of a layer on every rank.",
            "Use ep = 1 and etp = 1; ZeRO splits the experts' states and, in stage 3, their weights.",
        )
    if layout.sequence_parallel:
        refuse(
            "sequence_parallel: AutoTP keeps norms and residuals whole on every tensor-parallel rank.",
            "Use sequence_parallel false, or Ulysses (cp with cp_kind ulysses) instead of tp.",
        )
    if layout.cp_kind not in {None, ContextKind.ULYSSES} or layout.state_exchange:
        refuse(
            f"context parallelism of kind {layout.cp_kind}: DeepSpeed exchanges heads for tokens only.",
            f"Use cp_kind {ContextKind.ULYSSES}.",
        )
    degrees = {"tp": layout.tp, "cp": layout.cp, "pp": layout.pp}
    above = [f"{name} = {degree}" for name, degree in degrees.items() if degree > 1]
    if len(above) > 1:
        refuse(
            f"{' with '.join(above)}: AutoTP, Ulysses and PipelineModule each bring a process grid of their own.",
            "Use one of tp, cp and pp above 1; dp goes with each.",
        )
    if layout.rank_order != STAGES_OUTERMOST:
        refuse(f"rank order {layout.rank_order}.", f"DeepSpeed lays ranks out as {STAGES_OUTERMOST}.")


def _require_heads(layout: Layout, model: ModelSpec, workload: TrainWorkload) -> None:
    if layout.cp > 1 and workload.seq_len % layout.cp:
        refuse(f"{workload.seq_len} tokens over cp = {layout.cp}.", "cp must divide seq_len.")
    split = max(layout.tp, layout.cp)
    if split == 1:
        return
    axis = "tp" if layout.tp > 1 else "cp"
    for block in model.distinct_blocks:
        if isinstance(block.mixer, SelfAttention):
            heads, groups = block.mixer.num_attention_heads, block.mixer.num_key_value_heads
            if heads % split or groups % split:
                refuse(
                    f"{axis} = {split} with {heads} heads and {groups} key/value heads; ranks beyond the key/value "
                    "heads would hold no attention.",
                    f"{axis} must divide both.",
                )
        elif isinstance(block.mixer, LatentAttention) and block.mixer.num_attention_heads % split:
            refuse(f"{axis} = {split} with {block.mixer.num_attention_heads} heads.", f"{axis} must divide them.")
        if layout.tp > 1:
            _require_tensor_parallel(layout.tp, model, block)


def _require_tensor_parallel(tp: int, model: ModelSpec, block: Block) -> None:
    if isinstance(block.mixer, SelfAttention) and block.mixer.qk_norm is QueryKeyNorm.WIDTH:
        refuse(
            f"tp = {tp} with one query norm over all heads: AutoTP splits the heads and not the norm.", "Use tp = 1."
        )
    if isinstance(block.feed_forward, MixtureOfExperts):
        refuse(
            f"tp = {tp} for {model.name}: AutoTP would leave the stacked experts whole on every rank.",
            "Use tp = 1 for a model with routed experts.",
        )
    if block.feed_forward is not None and block.feed_forward.intermediate_size % tp:
        refuse(
            f"tp = {tp} with intermediate_size {block.feed_forward.intermediate_size}.",
            "tp must divide intermediate_size.",
        )


def _require_pipeline(layout: Layout, model: ModelSpec) -> None:
    if layout.vpp > 1:
        refuse(f"vpp = {layout.vpp}: PipelineModule gives each rank one run of layers.", "Use vpp = 1 (schedule 1f1b).")
    expected = Schedule.ONE_F_ONE_B if layout.pp > 1 else Schedule.NO_PIPELINE
    if layout.schedule is not expected:
        refuse(f"schedule {layout.schedule} with pp = {layout.pp}.", f"DeepSpeed runs {expected} there.")
    if layout.pp > 1 and model.tie_word_embeddings and model.lm_head_bias:
        refuse(
            f"pp = {layout.pp} for {model.name}: a tied LM head on another stage is the embedding table and has no "
            "bias.",
            "Use pp = 1.",
        )
    for index, stage in enumerate(layout.stages):
        if stage.num_layers == 0 and not (stage.has_embedding or stage.has_head):
            refuse(f"stage {index} holds nothing.", "Give each stage a layer, the embedding or the head.")
    if layout.pp > 1 and layout.zero_stage > DEEPSPEED.zero_with_pipeline:
        # `PipelineEngine.__init__` asserts it.
        refuse(
            f"zero_stage {layout.zero_stage} with pp = {layout.pp}: ZeRO-2 and ZeRO-3 are incompatible with pipeline "
            "parallelism.",
            "Use zero_stage 1, or pp = 1.",
        )


def _require_sharding(layout: Layout) -> None:
    if layout.tp > 1 and layout.zero_stage > DEEPSPEED.zero_with_tensor:
        refuse(
            f"zero_stage {layout.zero_stage} with tp = {layout.tp}: the training program builds the whole model on "
            "every rank before AutoTP splits it.",
            f"Use zero_stage {DEEPSPEED.zero_with_tensor} or less, or tp = 1.",
        )
    if layout.zero_stage < DEEPSPEED.least_zero_stage:
        refuse(
            f"zero_stage {layout.zero_stage}: without sharding DeepSpeed's 16-bit optimizers keep no fp32 gradients, "
            "and take other steps than with it.",
            f"Use zero_stage {DEEPSPEED.least_zero_stage}, which moves as much and keeps less.",
        )
    if layout.cp > 1 and layout.zero_stage < DEEPSPEED.least_zero_with_context:
        refuse(
            f"zero_stage {layout.zero_stage} with cp = {layout.cp}: BF16_Optimizer sums the norm of the gradients "
            "over the ranks of a sequence twice.",
            f"Use zero_stage {DEEPSPEED.least_zero_with_context} or {DEEPSPEED.zero_with_context}.",
        )
    if layout.state_replicas > 1:
        refuse(
            f"states in {layout.state_replicas} replicas: this version removed MiCS (`mics_shard_size`).",
            "Use state_replicas 1; with zero_stage 3, secondary_shard keeps a second copy of the weights in each node.",
        )
    if layout.secondary_shard > 1 and (layout.zero_stage != 3 or layout.world_size % layout.secondary_shard):
        refuse(
            f"a second copy of the weights over {layout.secondary_shard} ranks with zero_stage {layout.zero_stage} on "
            f"{layout.world_size} GPUs.",
            "zero_hpz_partition_size needs zero_stage 3 and divides the number of GPUs.",
        )


def _require_offload(layout: Layout) -> None:
    """Refuse optimizer states on the host where plans do not price it; and activations."""
    if layout.offloaded_modules:
        refuse("modules of layers on the host: DeepSpeed has no such offload.", "Use no offloaded_modules.")
    if layout.offloaded_layers:
        refuse(
            "activations on the host: `cpu_checkpointing` moves the inputs of layers that are recomputed, which plans"
            " do not price.",
            "Use no offloaded_layers.",
        )
    if layout.offload is None:
        return
    if layout.zero_stage not in DEEPSPEED.offload_zero_stages:
        refuse(
            f"optimizer states on the host with zero_stage {layout.zero_stage}, where gradients stay on the GPU until"
            " the last micro-batch; plans do not price it.",
            "Use zero_stage 3, or no offload.",
        )
    if layout.offload.optimizer_fraction < 1.0 and (layout.parameters_offloaded or layout.offload.drives):
        refuse(
            f"{layout.offload.optimizer_fraction:g} of the optimizer states away from the GPU, with the weights away"
            " too or states on drives, which plans do not price.",
            "Offload all of them, or neither weights nor to drives.",
        )
    if layout.offload.overlapped and not layout.offload.drives:
        refuse(
            "optimizer states on the host with copies beside updates, which DeepSpeed does one after the other.",
            "Use offload.overlapped false.",
        )
    if layout.parameter_offload == DRIVE_WEIGHTS and layout.secondary_shard > 1:
        refuse(
            "weights on drives with a second copy of them: DeepSpeed has no place for it (`_partition_param_sec`).",
            "Use secondary_shard 1, or offload.parameters false.",
        )
    if layout.parameter_offload == HOST_WEIGHTS and layout.secondary_shard > 1:
        refuse(
            "weights on the host with a second copy of them: DeepSpeed puts that on the host too, which plans do not"
            " price.",
            "Use secondary_shard 1, or offload.parameters false.",
        )


def _require_recompute(layout: Layout) -> None:
    recompute = layout.recompute
    if recompute.is_per_layer:
        refuse(
            "recompute that differs from layer to layer.",
            "Recompute every layer or none of them.",
        )
    if recompute.granularity is Granularity.SELECTIVE:
        refuse(
            f"recompute of {', '.join(recompute.modules)}: DeepSpeed's activation checkpointing takes whole layers.",
            "Use recompute none or full.",
        )
    if recompute.num_layers is not None:
        refuse(
            f"full recompute of {recompute.num_layers} layers of each stage.", "Recompute every layer or none of them."
        )


def window_below(model: ModelSpec, seq_len: int) -> bool:
    """Return whether some layer sees less than all tokens before it."""
    mixers = [block.mixer for block in model.distinct_blocks]
    reaches = [mixer.window or mixer.chunk for mixer in mixers if isinstance(mixer, SelfAttention)]
    return any(reach is not None and reach < seq_len for reach in reaches)


def needs_flash_attention_package(model: ModelSpec, workload: TrainWorkload) -> bool:
    """Return whether torch's own flash attention is not enough: it takes no window."""
    return workload.attention_kernel is AttentionKernel.FLASH and window_below(model, workload.seq_len)
