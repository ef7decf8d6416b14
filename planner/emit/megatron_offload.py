"""Optimizer states in host memory, in Megatron-LM's words.

`validate_args` wants `--use-precision-aware-optimizer` with `--optimizer-cpu-offload`, and that one wants Adam and the
distributed optimizer (`core/optimizer/optimizer_config.py`). `HybridDeviceOptimizer` keeps fp32 states whatever
`--exp-avg-dtype` says. Objects of it point at one another in circles: without `--manual-gc`, which collects once
before the first step, copies of the first one, over unsplit weights, may stay.
"""

from planner.emit.megatron_refusal import refuse
from planner.emit.megatron_words import Flags, when
from planner.emit.megatron_workload_limits import needs_precision_aware
from planner.layout import Layout, Offload
from planner.workload import Optimizer, TrainWorkload

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
