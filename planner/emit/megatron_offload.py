"""Optimizer states or activations in host memory, in Megatron-LM's words.

`validate_args` wants `--use-precision-aware-optimizer` with `--optimizer-cpu-offload`, and that one wants Adam and the
distributed optimizer (`core/optimizer/optimizer_config.py`). `HybridDeviceOptimizer` keeps fp32 states whatever
`--exp-avg-dtype` says. Objects of it point at one another in circles: without `--manual-gc`, which collects once
before the first step, copies of the first one, over unsplit weights, may stay.
"""

from planner.emit.megatron_parts import Parts
from planner.emit.megatron_refusal import refuse
from planner.emit.megatron_words import Flags, Group, when
from planner.emit.megatron_workload_limits import needs_precision_aware
from planner.layout import Granularity, Layout, Offload
from planner.offloading.activations import LARGEST_ZERO_STAGE
from planner.offloading.modules import CORE, LEAST_ELEMENTS, MOST_UNDER_WAY, PROJECTION, clashes
from planner.requests.workload import Optimizer, TrainWorkload

OFFLOAD_ZERO_STAGE = 1

MANY_COLLECTIONS = "100"
"""Iterations between collections of garbage, which are not automatic any more."""


def offload_flags(offload: Offload | None) -> Flags:
    """Return the flags that put a part of the optimizer's states on the host."""
    if offload is None:
        return ()
    return (
        ("--optimizer-cpu-offload",),
        ("--optimizer-offload-fraction", repr(offload.optimizer_fraction)),
        *when(offload.overlapped, "--overlap-cpu-optimizer-d2h-h2d"),
        ("--manual-gc",),
        ("--manual-gc-interval", MANY_COLLECTIONS),
    )


def activations(layout: Layout) -> Group:
    """Return the flag that puts the saved tensors of the first layers on the host."""
    layers = layout.offloaded_layers
    flags = when(layers, "--cpu-offloading-num-layers", str(layers))
    return Group(title=f"Activations on the host: {layers} of the layers", flags=flags)


def modules(layout: Layout) -> Group:
    """Return the flags that put the saved tensors of modules on the host.

    Tensors are resized whole and copied in parts, so none is too small; what is under way is bounded so that memory is.
    """
    named = layout.offloaded_modules
    return Group(
        title="Modules whose saved tensors wait on the host",
        flags=(
            *when(named, "--fine-grained-activation-offloading"),
            *when(named, "--offload-modules", *named),
            *when(named, "--min-offloaded-tensor-size", str(LEAST_ELEMENTS)),
            *when(named, "--fine-grained-offloading-max-inflight-offloads", str(MOST_UNDER_WAY)),
        ),
    )


def require_module_offload(layout: Layout, workload: TrainWorkload, parts: Parts) -> None:
    """Refuse modules on the host where Megatron-LM does not put them there, or does what plans do not price."""
    named = layout.offloaded_modules
    if not named:
        return
    if layout.offloaded_layers:
        refuse(
            "modules and whole layers on the host: --fine-grained-activation-offloading goes without"
            " --cpu-offloading-num-layers.",
            "Use one of them.",
        )
    if PROJECTION in named and CORE not in named:
        refuse(
            f"{PROJECTION} on the host without {CORE}, whose backward pass needs its input.", f"Offload {CORE} as well."
        )
    if clashes(layout.recompute, named):
        refuse(
            f"{', '.join(named)} on the host with recompute {layout.recompute.granularity} of"
            f" {', '.join(layout.recompute.modules) or 'whole layers'}, which keeps nothing of them.",
            "Offload other modules, or recompute others.",
        )
    if layout.zero_stage > LARGEST_ZERO_STAGE:
        refuse(
            f"modules on the host with zero_stage {layout.zero_stage}: nobody tried Megatron-FSDP beside"
            " --fine-grained-activation-offloading.",
            f"Use zero_stage {LARGEST_ZERO_STAGE} at most, or no offloaded_modules.",
        )
    if parts.state_space is not None or parts.linear is not None:
        refuse("modules of layers with a state on the host.", "Use no offloaded_modules.")
    if workload.lora is not None or workload.precision.is_fp8:
        refuse(
            "modules with adapters or fp8 copies on the host, which plans do not price.", "Use no offloaded_modules."
        )


def require_activation_offload(layout: Layout, parts: Parts) -> None:
    """Refuse activations on the host where Megatron-LM does not put them there (`TransformerConfig`)."""
    if not layout.offloaded_layers:
        return
    if layout.pp > 1:
        refuse(
            f"activations on the host with pp = {layout.pp}: --cpu-offloading-num-layers has no pipelines.",
            "Use pp 1, or no offloaded_layers.",
        )
    if layout.recompute.granularity is not Granularity.NONE:
        refuse(
            f"activations on the host with recompute {layout.recompute.granularity}: --cpu-offloading-num-layers goes"
            " without.",
            "Use recompute none, or no offloaded_layers.",
        )
    if layout.zero_stage > LARGEST_ZERO_STAGE:
        refuse(
            f"activations on the host with zero_stage {layout.zero_stage}: nobody tried Megatron-FSDP beside"
            " --cpu-offloading-num-layers.",
            f"Use zero_stage {LARGEST_ZERO_STAGE} at most, or no offloaded_layers.",
        )
    if parts.state_space is not None or parts.linear is not None:
        refuse(
            "activations of layers with a state on the host: only `TransformerBlock` puts them there.",
            "Use no offloaded_layers.",
        )
    num_layers = sum(stage.num_layers for stage in layout.stages)
    if layout.offloaded_layers >= num_layers:
        refuse(
            f"activations of {layout.offloaded_layers} layers on the host, of {num_layers}.",
            f"Use at most {num_layers - 1}: the last layer is needed at once.",
        )


def require_offload(layout: Layout, workload: TrainWorkload) -> None:
    """Refuse optimizer states on the host where Megatron-LM does not put them there."""
    if layout.offload is None:
        return
    if layout.zero_stage != OFFLOAD_ZERO_STAGE:
        refuse(
            f"optimizer states on the host with zero_stage {layout.zero_stage}: --optimizer-cpu-offload takes the path"
            " of the distributed optimizer, and Megatron-FSDP has its own.",
            f"Use zero_stage {OFFLOAD_ZERO_STAGE}, or no offload.",
        )
    if layout.offload.drives:
        refuse("optimizer states on drives: --optimizer-cpu-offload keeps them in host memory.", "Use no drives.")
    if workload.optimizer is not Optimizer.ADAM:
        refuse(
            f"states of {workload.optimizer} on the host: --use-precision-aware-optimizer knows Adam only.",
            "Use adam, or no offload.",
        )
    if needs_precision_aware(workload):
        refuse(
            f"master_dtype {workload.master_dtype} and moment_dtype {workload.moment_dtype} on the host, where"
            " `HybridDeviceOptimizer` keeps both in fp32.",
            "Use fp32 states, or no offload.",
        )
    if workload.lora is not None:
        refuse("optimizer states of adapters on the host.", "Use no offload; adapters have few states.")
