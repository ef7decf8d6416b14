"""Logs and traces as Megatron-LM and torch's profiler write them, with times made up here."""

from collections.abc import Mapping

from profiles.slowed import OperationClass

KERNELS = {
    OperationClass.PRODUCTS: ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n"),
    OperationClass.ATTENTION: (
        "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128> >",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop",
    ),
    OperationClass.MEMORY_BOUND: ("void at::native::vectorized_elementwise_kernel<4>", "rmsnorm_fwd_tuned_kernel"),
}


def megatron_log(step_ms: float, *, steps: int = 10, batch: int = 32) -> str:
    """Return a log whose first steps take longer."""
    return "".join(
        f" [2026-01-01 00:00:00] iteration {step:8d}/      10 | consumed samples: {step * batch:12d} | elapsed time per"
        f" iteration (ms): {step_ms * (3 if step < 4 else 1):.1f} | learning rate: 1.0E-04 | lm loss: 1.0E+01 | number"
        " of skipped iterations:   0 |\n"
        for step in range(1, steps + 1)
    )


def trace(
    seconds: Mapping[OperationClass, float], *, steps: int = 2, rank: int | None = 0, waiting: float = 0.0
) -> dict[str, object]:
    """Return a trace whose kernels take so long in each step; every second collective also waits.

    Args:
        seconds: Of one step by class; INSIDE is one kind of collective, run four times.
        steps: Steps.
        rank: Of the trace; None leaves it out.
        waiting: Seconds that a collective waits.
    """
    events: list[dict[str, object]] = []

    def event(cat: str, name: str, duration: float, **more: object) -> None:
        events.append({"ph": "X", "cat": cat, "name": name, "ts": 1.0, "dur": duration * 1e6, **more})

    for step in range(steps):
        event("user_annotation", f"ProfilerStep#{step + 5}", 2.0)
        event("gpu_user_annotation", f"ProfilerStep#{step + 5}", 2.5)
        event("cpu_op", "aten::mm", 9.0)
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 9.0)
        for kind, names in KERNELS.items():
            for name in names:
                event("kernel", name, seconds.get(kind, 0.0) / len(names))
        moved = {"Collective name": "allreduce", "In msg nelems": 1024, "Out msg nelems": 1024, "Group size": 8}
        for index in range(4):
            waited = waiting * (index % 2)
            duration = seconds.get(OperationClass.INSIDE, 0.0) / 4 + waited
            event("kernel", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL", duration, args=moved)
        event("kernel", "ncclDevKernel_SendRecv", 3.0, args={"Collective name": "send", "In msg nelems": 8})
    found: dict[str, object] = {"schemaVersion": 1, "traceEvents": [*events, {"ph": "M", "name": "process_name"}]}
    return found if rank is None else {**found, "distributedInfo": {"rank": rank, "world_size": 8}}
