"""Number formats that Megatron-LM's flags cannot describe."""

from planner.emit.megatron_refusal import FIRST_BLACKWELL_CAPABILITY, capability_major, refuse
from planner.requests.workload import DType, Optimizer, Precision, TrainWorkload
from profiles.hardware import Device


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
    if workload.routing is not None and workload.routing.reroutes:
        refuse("reroute least-loaded: no dispatcher does it.", "Leave `reroute` out, or use target any.")
    major = capability_major(device)
    if workload.precision is Precision.FP8_MXFP8 and (major is None or major < FIRST_BLACKWELL_CAPABILITY):
        refuse(f"precision fp8-mxfp8 on {device.name}.", "MXFP8 needs a Blackwell GPU; nearest: fp8-blockwise.")


def needs_precision_aware(workload: TrainWorkload) -> bool:
    """Return whether a state of the optimizer is kept below fp32."""
    return (workload.master_dtype, workload.moment_dtype) != (DType.FP32, DType.FP32)
