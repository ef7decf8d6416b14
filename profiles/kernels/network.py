"""How long a collective takes that fills several nodes, as nccl-tests runs it.

Inside a node it starts as a short one does there. Between nodes all_reduce goes up and down a tree, 2 log2(n) hops;
all_gather and reduce_scatter go round a ring, n - 1 hops; all_to_all sends a message to each rank of other nodes. A hop
takes longer once both ends must agree on a transfer, and again while a pipeline of chunks fills. Bytes pass at the
bandwidth of all network cards of a node. A double tree over two nodes sends the buffer once over a node's cards
(Sanders, Speck and Traeff, Parallel Computing 35(12), 2009), which NCCL takes where switches reduce (NVLS); else a ring
sends it 2 (p - 1) / p times (Patarasuk and Yuan, JPDC 69(2), 2009).
"""

import math

from profiles.constants import NETWORK_FRACTION
from profiles.hardware import Cluster, LinkKind
from profiles.kernel_constants import (
    CHUNK_BYTES,
    CHUNK_HOPS,
    EXCHANGE_FRACTION,
    NETWORK_HOP_SECONDS,
    RENDEZVOUS_BYTES,
    RENDEZVOUS_HOPS,
)
from profiles.ops import CollectiveKind

REDUCING_SWITCHES = frozenset({"hopper", "blackwell"})
"""Architectures whose NVLink switches reduce: NVLS, from NVLink 4 on."""


def hop_seconds(message_bytes: float) -> float:
    """Return what one message from node to node takes beside its bytes."""
    agreeing = RENDEZVOUS_HOPS.value * message_bytes / (message_bytes + RENDEZVOUS_BYTES.value)
    filling = CHUNK_HOPS.value * message_bytes / (message_bytes + CHUNK_BYTES.value)
    return NETWORK_HOP_SECONDS.value * (1 + agreeing + filling)


def across_nodes_seconds(
    kind: CollectiveKind, *, buffer_bytes: int, size: int, cluster: Cluster, inside_seconds: float
) -> float:
    """Return the time of a collective of whole nodes.

    Args:
        kind: Which collective.
        buffer_bytes: Bytes of the full tensor, as `profiles.ops.Collective` has them.
        size: Ranks; they fill the units that their innermost level joins.
        cluster: Where it runs.
        inside_seconds: Time of a short one inside such a unit.

    Raises:
        ValueError: The collective has no price across nodes.
    """
    domain = cluster.fast_domain_size
    nodes = math.ceil(size / domain)
    level = next(level for level in cluster.levels if level.kind is LinkKind.NETWORK and level.num_gpus >= size)
    node_bytes_per_second = level.bytes_per_second * domain * NETWORK_FRACTION.value
    match kind:
        case CollectiveKind.ALL_REDUCE:
            hops = 2 * math.log2(nodes) * hop_seconds(buffer_bytes)
            is_tree = nodes == 2 and cluster.device.architecture in REDUCING_SWITCHES
            sent = buffer_bytes * (1.0 if is_tree else 2 * (size - 1) / size)
        case CollectiveKind.ALL_GATHER | CollectiveKind.REDUCE_SCATTER:
            hops = (nodes - 1) * hop_seconds(buffer_bytes)
            sent = buffer_bytes * (size - 1) / size
        case CollectiveKind.ALL_TO_ALL:
            hops = (size - domain) * hop_seconds(0.0)
            sent = domain * buffer_bytes * (size - domain) / size / EXCHANGE_FRACTION.value
        case CollectiveKind.SEND_RECV:
            raise ValueError("send_recv has no price across nodes: which ranks exchange is not said")
    return inside_seconds + hops + sent / node_bytes_per_second
