"""Small clusters whose nodes differ; their figures are made up and stand for no hardware."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from profiles.hardware import Cluster, Device, LinkKind, LinkLevel, NodeKind, UnequalNodes
from tests.builders import GIB, tiny_device, two_node_cluster

RATE = 2.5e10
"""Bandwidth of a link between nodes that is not slow."""

Pair = tuple[int, int]


def older_device(*, memory_bytes: int = 16 * GIB) -> Device:
    """Return a GPU that is everywhere slower than `tiny_device`."""
    new = tiny_device()
    return replace(
        new,
        name="older-gpu",
        architecture="ampere",
        compute_capability="8.0",
        memory_bytes=memory_bytes,
        memory_bytes_per_second=new.memory_bytes_per_second / 2,
        dense_flops_per_second={"bf16": 1.5e14, "fp16": 1.5e14, "fp32": 1e13},
    )


def equal_cluster(num_nodes: int, *, gpus_per_node: int = 2) -> Cluster:
    """Return equal nodes of a few GPUs."""
    base = two_node_cluster(num_nodes=num_nodes)
    return replace(base, gpus_per_node=gpus_per_node, levels=levels_of(num_nodes, gpus_per_node))


def levels_of(num_nodes: int, gpus_per_node: int) -> tuple[LinkLevel, ...]:
    """Return the levels of such nodes."""
    nvlink, rail = two_node_cluster(num_nodes=2).levels
    inner = (replace(nvlink, num_gpus=gpus_per_node),) if gpus_per_node > 1 else ()
    return (*inner, replace(rail, num_gpus=gpus_per_node * num_nodes, bytes_per_second=RATE))


def unequal_cluster(
    num_nodes: int,
    *,
    slow: Mapping[Pair, float] | None = None,
    older: Sequence[int] = (),
    older_memory_bytes: int = 16 * GIB,
    gpus_per_node: int = 2,
) -> Cluster:
    """Return nodes of a few GPUs.

    Args:
        num_nodes: How many.
        slow: Bandwidth between pairs of nodes; all others have `RATE`.
        older: Nodes with an older GPU.
        older_memory_bytes: What that GPU has.
        gpus_per_node: GPUs of one node.
    """
    rates = [[0.0 if here == there else RATE for there in range(num_nodes)] for here in range(num_nodes)]
    for (here, there), rate in (slow or {}).items():
        rates[here][there] = rates[there][here] = rate
    levels = levels_of(num_nodes, gpus_per_node)
    kinds = [NodeKind(device=tiny_device(), levels=levels)]
    if older:
        kinds.append(NodeKind(device=older_device(memory_bytes=older_memory_bytes), levels=levels))
    return with_nodes(
        equal_cluster(num_nodes, gpus_per_node=gpus_per_node),
        kinds=tuple(kinds),
        kind_of_node_N=tuple(int(node in older) for node in range(num_nodes)),
        rates=rates,
    )


def with_nodes(
    cluster: Cluster, *, kinds: tuple[NodeKind, ...], kind_of_node_N: tuple[int, ...], rates: Sequence[Sequence[float]]
) -> Cluster:
    """Return a cluster with these nodes, its network as fast as the best pair."""
    nodes = UnequalNodes(
        names=(),
        kinds=kinds,
        kind_of_node_N=kind_of_node_N,
        bytes_per_second_NN=tuple(tuple(row) for row in rates),
        source="made up",
    )
    best = nodes.best_bytes_per_second
    levels = tuple(level.with_bandwidth(best) if level.kind is LinkKind.NETWORK else level for level in cluster.levels)
    return replace(cluster, levels=levels, unequal=nodes)


def renumbered(cluster: Cluster, order: Sequence[int]) -> Cluster:
    """Return the same nodes in another order: node i of the new cluster is node order[i] of the old."""
    nodes = cluster.unequal
    assert nodes is not None
    rows = nodes.bytes_per_second_NN
    return replace(
        cluster,
        unequal=replace(
            nodes,
            kind_of_node_N=tuple(nodes.kind_of_node_N[node] for node in order),
            bytes_per_second_NN=tuple(tuple(rows[here][there] for there in order) for here in order),
        ),
    )
