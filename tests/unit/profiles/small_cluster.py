"""A cluster with round figures, for prices that are computed by hand."""

from profiles.hardware import Cluster, LinkKind, LinkLevel
from tests.builders import tiny_device


def level(name: str, num_gpus: int, bytes_per_second: float, latency_seconds: float) -> LinkLevel:
    return LinkLevel(
        name=name,
        kind={"nvlink": LinkKind.PEER, "pcie": LinkKind.HOST}.get(name, LinkKind.NETWORK),
        num_gpus=num_gpus,
        bytes_per_second=bytes_per_second,
        latency_seconds=latency_seconds,
        source="test",
    )


def cluster(*, gpus_per_node: int = 8, num_nodes: int = 4, domain: int | None = None) -> Cluster:
    """Return 100 GB/s inside a domain of 8 and 10 GB/s beyond."""
    world = gpus_per_node * num_nodes
    levels = (level("nvlink", domain or gpus_per_node, 100e9, 2e-6), level("rail", world, 10e9, 5e-6))
    return Cluster(
        name="test",
        device=tiny_device(),
        gpus_per_node=gpus_per_node,
        num_nodes=num_nodes,
        levels=levels,
        host_memory_bytes=1 << 40,
        nvme_bytes_per_second=None,
        nvme_bytes=None,
        price_per_gpu_hour=None,
        watts_per_gpu=None,
    )
