"""Layouts that Megatron-LM's flags cannot describe, or that it would give up on after the start."""

from planner.emit.megatron_axis_limits import require_context, require_experts_grid, require_tensor
from planner.emit.megatron_offload import require_activation_offload, require_module_offload, require_offload
from planner.emit.megatron_parts import Form, Parts, parts_of
from planner.emit.megatron_refusal import refuse
from planner.emit.megatron_workload_limits import needs_precision_aware
from planner.frameworks.capabilities import MEGATRON
from planner.layout import REPLICAS_OUTERMOST, STAGES_OUTERMOST, Granularity, Layout, Schedule
from planner.models.graph import Module
from planner.models.specs import ModelSpec
from planner.requests.workload import Optimizer, Precision, TrainWorkload

RANK_ORDERS = {STAGES_OUTERMOST: (), REPLICAS_OUTERMOST: ("--use-tp-pp-dp-mapping",)}

CONNECTIONS = "Megatron-FSDP wants CUDA_DEVICE_MAX_CONNECTIONS unset, tp and cp before Blackwell want it to be 1"

FSDP_ALONE = {
    "pp": "no configuration that Megatron-LM tests combines Megatron-FSDP with pipeline stages",
    "tp": CONNECTIONS,
    "cp": CONNECTIONS,
    "ep": "plans do not combine Megatron-FSDP with expert parallelism",
}
"""Why zero_stage 2 and 3 stand alone (`validate_args`; `planner.frameworks.capabilities`)."""


def require_layout(layout: Layout, model: ModelSpec, workload: TrainWorkload) -> None:
    """Refuse layouts that the flags cannot describe."""
    parts = parts_of(model)
    if layout.rank_order not in RANK_ORDERS:
        refuse(f"rank order {layout.rank_order}.", f"Use {' or '.join(sorted(RANK_ORDERS))}.")
    require_tensor(layout, parts, workload)
    require_context(layout, parts, workload)
    require_experts_grid(layout, parts)
    _require_pipeline(layout, parts)
    if layout.pp > 1 and model.mtp is not None and model.tie_word_embeddings:
        refuse(
            f"pp = {layout.pp} for {model.name}, with multi-token prediction and a tied LM head: Megatron would hold "
            "the table twice on the last stage (`GPTModel`: the embedding of its prediction modules, and an LM head).",
            "Use pp = 1, or an LM head of its own.",
        )
    _require_sharding(layout, workload, parts)
    require_offload(layout, workload)
    require_activation_offload(layout, parts)
    require_module_offload(layout, workload, parts)
    if workload.lora is not None:
        _require_adapters(layout, model, parts)
    _require_recompute(layout, parts, workload)


def _require_pipeline(layout: Layout, parts: Parts) -> None:
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
    if layout.vpp > 1 and parts.form is Form.HETEROGENEOUS:
        refuse(
            f"vpp = {layout.vpp} for layers that differ; `GPTModelBuilder` builds them without virtual stages.",
            "Use vpp = 1.",
        )
    for index, stage in enumerate(layout.stages):
        if stage.num_layers == 0 and not (stage.has_embedding or stage.has_head):
            refuse(f"virtual stage {index} holds nothing.", "Give each stage a layer, the embedding or the head.")


def _require_sharding(layout: Layout, workload: TrainWorkload, parts: Parts) -> None:
    largest = {
        "pp": (layout.pp, MEGATRON.zero_with_pipeline),
        "tp": (layout.tp, MEGATRON.zero_with_tensor),
        "cp": (layout.cp, MEGATRON.zero_with_context),
        "ep": (layout.ep, MEGATRON.zero_with_experts),
    }
    for axis, (degree, stage) in largest.items():
        if degree > 1 and layout.zero_stage > stage:
            refuse(
                f"zero_stage {layout.zero_stage} with {axis} = {degree}: {FSDP_ALONE[axis]}.",
                f"Use zero_stage {' or '.join(str(allowed) for allowed in range(stage + 1))}, or {axis} = 1.",
            )
    if layout.secondary_shard > 1:
        refuse(
            f"a second copy of the weights over {layout.secondary_shard} ranks (`secondary_shard`).",
            "Use secondary_shard 1.",
        )
    _require_replicas(layout, parts)
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


def _require_replicas(layout: Layout, parts: Parts) -> None:
    """Refuse groups that `initialize_model_parallel` cannot make."""
    replicas = layout.state_replicas
    if replicas == 1:
        return
    if layout.zero_stage == 0:
        refuse(f"state_replicas {replicas} with zero_stage 0, where nothing is split.", "Use state_replicas 1.")
    sharded = {"dp * cp": layout.dp * layout.cp}
    if parts.experts is not None:
        sharded["edp"] = layout.edp
    for what, ranks in sharded.items():
        if ranks % replicas:
            refuse(
                f"state_replicas {replicas} with {what} = {ranks}.",
                f"--num-distributed-optimizer-instances must divide {what}.",
            )


def _require_adapters(layout: Layout, model: ModelSpec, parts: Parts) -> None:
    """Refuse what the emitted adapter program was not shown to do."""
    if parts.form is not Form.GPT or parts.attention is None or parts.dense is None or parts.experts is not None:
        refuse(
            f"adapters on {model.name}, whose layers are not all attention and a dense feed-forward.",
            "Fine-tune it in full (method full-finetune).",
        )
    if parts.linear is not None or model.mtp is not None:
        refuse(f"adapters on {model.name}, with linear attention or multi-token prediction.", "Fine-tune it in full.")
    if layout.zero_stage >= 2:
        refuse(f"adapters with zero_stage {layout.zero_stage}.", "Use zero_stage 0 or 1.")
    if layout.cp > 1:
        refuse(f"adapters with cp = {layout.cp}.", "Use cp = 1.")
    if any(stage.num_layers == 0 for stage in layout.stages):
        refuse("adapters with a pipeline stage that holds no layer, so nothing to train.", "Give each stage a layer.")


def _require_recompute(layout: Layout, parts: Parts, workload: TrainWorkload) -> None:
    recompute = layout.recompute
    if recompute.is_per_layer:
        refuse(
            "recompute that differs from layer to layer.",
            "Use one choice for all layers: Megatron-LM's recompute flags are said once.",
        )
    if recompute.num_layers == 0:
        refuse("full recompute of 0 layers.", "Use recompute none.")
    if recompute.granularity is not Granularity.SELECTIVE:
        return
    present = _recomputable(parts)
    absent = [module for module in recompute.modules if module not in present]
    if absent:
        refuse(
            f"recompute of {', '.join(absent)}, which the layers do not have.",
            f"They have {', '.join(present)}." if present else "Use recompute none or full.",
        )
    scaled_before = [module for module in recompute.modules if module in (Module.MOE_ACTIVATION, Module.LAYER_NORM)]
    if scaled_before and workload.precision is Precision.FP8_DELAYED:
        refuse(
            f"recompute of {scaled_before[0]} with precision {workload.precision}.",
            "Delayed scaling cannot run it again: use another fp8 recipe, or recompute moe.",
        )


def _recomputable(parts: Parts) -> tuple[str, ...]:
    """Return the modules that layers of these parts have.

    With Transformer Engine most norms are fused into the linear layers behind them; those in front of latent attention
    and of experts are not.
    """
    present = {
        Module.CORE_ATTENTION: parts.attention is not None or parts.latent is not None,
        Module.LAYER_NORM: parts.latent is not None or parts.experts is not None,
        Module.MLP: parts.dense is not None,
        Module.MLA_UP_PROJECTION: parts.latent is not None,
        Module.MOE: parts.experts is not None,
        Module.MOE_ACTIVATION: parts.experts is not None,
        Module.SHARED_EXPERTS: parts.experts is not None and parts.experts.shared is not None,
    }
    return tuple(module.value for module, found in present.items() if found)
