"""The CPUs of processes whose optimizer steps run on the host."""

from planner.layout import Layout

THREADS = "OMP_NUM_THREADS"


def thread_lines(layout: Layout, gpus_per_node: int) -> list[str]:
    """Return what gives each process its share of the CPUs; torchrun would give it one thread."""
    if layout.offload is None:
        return []
    return [f'export {THREADS}="${{{THREADS}:-$(($(nproc --all) / {gpus_per_node}))}}"', ""]
