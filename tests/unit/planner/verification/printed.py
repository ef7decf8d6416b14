"""What training programs print, made up for tests in the form of the real lines."""


def megatron_step(step: int, milliseconds: float, *, of: int = 10, skipped: int = 0) -> str:
    """Return the line of an iteration (`training_log`)."""
    return (
        f" [2026-11-21 10:{step // 60:02d}:{step % 60:02d}.104317] iteration {step:8d}/{of:8d} |"
        f" consumed samples: {128 * step:12d} | elapsed time per iteration (ms): {milliseconds:.1f} |"
        f" throughput per GPU (TFLOP/s/GPU): 412.3 | learning rate: 3.000000E-04 | global batch size:   128 |"
        f" lm loss: 1.203410E+01 | loss scale: 1.0 | grad norm: 7.312 |"
        f" number of skipped iterations: {skipped:3d} | number of nan iterations:   0 |\n"
    )


def megatron_memory(step: int, *, rank: int, peak_mib: float) -> str:
    """Return what a rank reports after an iteration (`report_memory`)."""
    return (
        f"[Rank {rank}] (after {step} iterations) memory (MB) | allocated: {peak_mib / 2:.2f} |"
        f" max allocated: {peak_mib:.2f} | reserved: {peak_mib + 512:.2f} | max reserved: {peak_mib + 512:.2f}\n"
    )


def megatron_log(milliseconds: float, *, steps: int = 10, peak_mib: float = 71680.0) -> str:
    """Return the log of a whole run: slow first steps, then steps of nearly one length."""
    lines = ["INFO:megatron.core.num_microbatches_calculator:setting number of microbatches to constant 32\n"]
    for step in range(1, steps + 1):
        slow = {1: 9.0, 2: 5.0, 3: 1.2}.get(step, 1.0)
        lines.append(megatron_step(step, slow * milliseconds + step % 3))
        if step <= 2:
            lines += [megatron_memory(step, rank=rank, peak_mib=peak_mib - 100 * rank) for rank in (0, 4)]
    return "".join(lines)


def deepspeed_log(seconds: float, *, steps: int = 10, peak_gib: float = 61.5) -> str:
    """Return what the shipped DeepSpeed program prints, and a line of DeepSpeed's own between."""
    lines = ["parameters 8030261248\n"]
    for step in range(1, steps + 1):
        lines.append(
            f"step {step}/{steps} loss 11.{step:06d} grad_norm 3.100000 seconds {seconds + (9 if step == 1 else 0):.3f}"
            f" tokens_per_second 61234 peak_memory_gib {peak_gib - (1 if step == 1 else 0):.3f}\n"
        )
        lines.append(f"steps: {step} loss: 11.2 iter time (s): 99.000 samples/sec: 1.300\n")
    return "".join(lines)


OUT_OF_MEMORY = (
    "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total capacity of"
    " 79.11 GiB of which 1.20 GiB is free.\n"
)
