"""How long a collective takes, inside a node and across nodes, by NCCL's algorithms.

- Bytes pass at the bandwidth of the narrowest level. A ring over a group with n members in each unit of an inner level
  leaves that unit on n GPUs' network links at once, so the bus bandwidth of level l is n times the bandwidth of one GPU
  at l. Where each pair of N GPUs shares one link, a group of n uses n - 1 of a GPU's N - 1 links. A ring moves
  2 (p - 1) / p of the buffer for all_reduce and (p - 1) / p for the others (Patarasuk and Yuan, JPDC 69(2), 2009);
  send_recv moves all of it once. Over two nodes a double tree sends the buffer once (Sanders, Speck and Traeff,
  Parallel Computing 35(12), 2009): `TREE_OVER_TWO_NODES`.
- Hops: a ring goes p - 1 times from member to member, all_reduce twice that. all_reduce of small buffers goes up and
  down a tree instead, 2 log2(p) hops. In an all_to_all a member sends to every other one; where tokens are forwarded,
  once to every other node.
- A message between nodes waits until both ends agree on it, unless it is short; those of an all_to_all wait together.
  A tree also waits for the first chunk of its pipeline at every level (`RENDEZVOUS_SECONDS`, `CHUNK_BYTES`).
- Inside a node a long message leaves NCCL's low-latency protocols: a ramp beside the start.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from profiles.constants import (
    CHUNK_BYTES,
    COLLECTIVE_RAMP,
    COLLECTIVE_RAMP_BYTES,
    COLLECTIVE_START,
    COLLECTIVE_WAIT,
    COLLECTIVES_IN_TRAINING,
    EXCHANGE_FRACTION,
    NETWORK_FRACTION,
    OTHER_NETWORKS,
    PCIE_FRACTION,
    PEER_FRACTION,
    PEER_HOP_FRACTION,
    RENDEZVOUS_BYTES,
    RENDEZVOUS_SECONDS,
    Constant,
    with_fallbacks,
)
from profiles.estimate import Estimate, Reached, Source
from profiles.hardware import Cluster, LinkKind, LinkLevel, PeerTopology
from profiles.ops import Collective, CollectiveKind
from profiles.software import CURRENT_SOFTWARE, Software

TREE_OVER_TWO_NODES = frozenset({"hopper", "blackwell"})
"""Architectures of which NCCL joins two nodes by a double tree where NVLink joins the GPUs of each.

Read off large all_reduce of two nodes: 90 GB/s over the 100 of a node's cards on Alps (GH200, NCCL 2.23), 20 over 40,
a ring's, on Polaris (A100, NCCL 2.18 and 2.21).
"""

_POINT_TO_POINT = frozenset({CollectiveKind.ALL_TO_ALL, CollectiveKind.SEND_RECV})
"""Collectives in which a member sends on its own link only, whatever its neighbours do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crossing:
    """One level of links that a group lies across.

    Args:
        level: The level.
        units: Units of the level below that the group lies in, in the group that lies in most.
        hops: Hops of a ring over this level.
        links: GPUs of a unit below that send over this level at once.
        reached: Part of the bandwidth that is reached.
        bytes_per_second: Bandwidth of one GPU that is reached.
    """

    level: LinkLevel
    units: int
    hops: int
    links: int
    reached: Reached
    bytes_per_second: float

    @property
    def is_network(self) -> bool:
        """Return whether it lies between nodes."""
        return self.level.kind is LinkKind.NETWORK

    def agreement_seconds(self, num_bytes: float) -> float:
        """Return what a message waits until both ends agree on it."""
        if not self.is_network:
            return 0.0
        return _rendezvous(self.level).value * num_bytes / (num_bytes + RENDEZVOUS_BYTES.value)

    def message_seconds(self, num_bytes: float) -> float:
        """Return what one message over this level takes beside its bytes."""
        return self.level.latency_seconds + self.agreement_seconds(num_bytes)

    def ring_seconds(self, message_bytes: float, *, one_way: bool) -> float:
        """Return what the hops of a ring over this level take, once round.

        Args:
            message_bytes: What a member sends the next at a time.
            one_way: Nothing is reduced on the way back, so that hops inside a peer domain are short.
        """
        is_short = one_way and self.level.kind is LinkKind.PEER
        return self.hops * self.message_seconds(message_bytes) * (PEER_HOP_FRACTION.value if is_short else 1.0)

    def first_chunk_seconds(self, buffer_bytes: float) -> float:
        """Return what one level of a tree waits for the first chunk of its pipeline, which is never the whole."""
        if not self.is_network:
            return 0.0
        share = buffer_bytes / self.links
        return share * CHUNK_BYTES.value / (share + CHUNK_BYTES.value) / self.bytes_per_second


def _rendezvous(level: LinkLevel) -> Constant:
    return RENDEZVOUS_SECONDS.get(level.name, RENDEZVOUS_SECONDS[OTHER_NETWORKS])


class CollectivePrices:
    """Prices collectives on one cluster; see the module's docstring.

    Args:
        cluster: Where they run.
        software: What runs them.
        sustained: They run between the kernels of training, not alone in a benchmark.
    """

    def __init__(self, cluster: Cluster, software: Software = CURRENT_SOFTWARE, *, sustained: bool = True) -> None:
        self.cluster = cluster
        self.software = software
        self.sustained = sustained

    def price(self, operation: Collective) -> Estimate:
        """Return the time of one collective, all its ranks taking part.

        Raises:
            ValueError: The cluster has not so many GPUs.
        """
        size = min(operation.size, 2) if operation.kind is CollectiveKind.SEND_RECV else operation.size
        if size <= 1:
            return Estimate(seconds=0.0, source=Source.ANALYTIC, note="a group of one sends nothing")
        if size > self.cluster.world_size:
            raise ValueError(f"{operation.kind} of {size} ranks on {self.cluster.world_size} GPUs")
        crossings = self._crossings(operation, size)
        between = self._constants_between(operation.kind, crossings)
        seconds = self._traffic_seconds(operation, size, crossings) + self._hop_seconds(operation, size, crossings)
        if self.sustained:
            seconds += COLLECTIVE_WAIT.value
        start, _ = self._nearest(COLLECTIVE_START)
        ramp, ramp_carried_over = self._nearest(COLLECTIVE_RAMP)
        ramp_seconds = ramp.value * operation.buffer_bytes / (operation.buffer_bytes + COLLECTIVE_RAMP_BYTES.value)
        how = "send" if operation.kind is CollectiveKind.SEND_RECV else f"{operation.kind}"
        parts = [crossing.reached for crossing in crossings]
        sources = dict.fromkeys((*(part.source for part in parts), *(constant.source for constant in between)))
        return Estimate(
            seconds=start.value + ramp_seconds + seconds,
            source=Source.ASSUMED if ramp_carried_over or any(part.assumed for part in parts) else Source.ANALYTIC,
            note="; ".join((f"{how} over link levels", *sources, ramp.source)),
        )

    def leaves_node(self, operation: Collective) -> bool:
        """Return whether some group of a collective lies across nodes."""
        size = min(operation.size, 2) if operation.kind is CollectiveKind.SEND_RECV else operation.size
        return size > 1 and any(crossing.is_network for crossing in self._crossings(operation, size))

    def _crossings(self, operation: Collective, size: int) -> list[_Crossing]:
        """Return the levels that the group lies across, from the inside out."""
        crossings: list[_Crossing] = []
        kept = COLLECTIVES_IN_TRAINING.value if self.sustained else 1.0
        below, per_unit = size, 1  # units of the level below, and the fewest members in one of them
        for level in self.cluster.levels:
            units = self._units(operation, size, level.num_gpus)
            if units < below:
                members = self._members_in_unit(operation, level.num_gpus)
                reached = self._reached(level, operation.kind, members)
                crossing = _Crossing(
                    level=level,
                    units=below,
                    hops=below - units,
                    links=1 if operation.kind in _POINT_TO_POINT else per_unit,
                    reached=reached,
                    bytes_per_second=level.bytes_per_second * reached.fraction * kept,
                )
                crossings.append(crossing)
                below, per_unit = units, members
            if units == 1:
                break
        return crossings

    def _constants_between(self, kind: CollectiveKind, crossings: list[_Crossing]) -> list[Constant]:
        """Return the fitted constants that decide a price beside the fractions of its links."""
        found = [COLLECTIVES_IN_TRAINING, COLLECTIVE_WAIT] if self.sustained else []
        network = [crossing for crossing in crossings if crossing.is_network]
        if network:
            found.append(_rendezvous(network[-1].level))
            if kind is CollectiveKind.ALL_TO_ALL and not self.software.forwards_tokens:
                found.append(EXCHANGE_FRACTION)
        return found

    def _traffic_seconds(self, operation: Collective, size: int, crossings: list[_Crossing]) -> float:
        """Return how long the bytes of the narrowest level take; levels overlap."""
        longest = 0.0
        is_tree = self._is_tree_over_two_nodes(operation.kind, crossings)
        for crossing in crossings:
            if operation.kind is CollectiveKind.ALL_TO_ALL:
                # What is meant for members beyond the unit below.
                sent = self._exchanged_bytes(operation, crossing.units)
                if crossing.is_network and not self.software.forwards_tokens:
                    sent /= EXCHANGE_FRACTION.value
            elif is_tree and crossing.is_network:
                sent = float(operation.buffer_bytes)
            else:
                sent = operation.buffer_bytes * _ring_factor(operation.kind, size)
            longest = max(longest, sent / (crossing.bytes_per_second * crossing.links))
        return longest

    def _is_tree_over_two_nodes(self, kind: CollectiveKind, crossings: list[_Crossing]) -> bool:
        """Return whether an all_reduce goes through a double tree over two nodes, NVLink inside each."""
        network = [crossing for crossing in crossings if crossing.is_network]
        return (
            kind is CollectiveKind.ALL_REDUCE
            and self.cluster.device.architecture in TREE_OVER_TWO_NODES
            and bool(network)
            and network[0].units == 2
            and crossings[0].level.kind is LinkKind.PEER
        )

    def _hop_seconds(self, operation: Collective, size: int, crossings: list[_Crossing]) -> float:
        """Return what messages take from member to member beside their bytes."""
        buffer_bytes = operation.buffer_bytes
        message_bytes = buffer_bytes / size
        match operation.kind:
            case CollectiveKind.SEND_RECV:
                return max(crossing.message_seconds(buffer_bytes) for crossing in crossings)
            case CollectiveKind.ALL_TO_ALL:
                return self._messages_seconds(message_bytes, size, crossings)
            case CollectiveKind.ALL_GATHER | CollectiveKind.REDUCE_SCATTER:
                return sum(crossing.ring_seconds(message_bytes, one_way=True) for crossing in crossings)
            case CollectiveKind.ALL_REDUCE:
                ring = 2 * sum(crossing.ring_seconds(message_bytes, one_way=False) for crossing in crossings)
                return min(ring, _tree_seconds(buffer_bytes, size, crossings))

    def _messages_seconds(self, message_bytes: float, size: int, crossings: list[_Crossing]) -> float:
        """Return what one member's messages of an all_to_all take, one after the other, beside their bytes."""
        network = [crossing for crossing in crossings if crossing.is_network]
        per_message = size // network[0].units if network and self.software.forwards_tokens else 1
        reached, seconds = size, 0.0  # members in one unit of the level, and of those inside it
        for crossing in reversed(crossings):
            inside = -(-size // crossing.units)
            messages = (reached - inside) / (per_message if crossing.is_network else 1)
            short = PEER_HOP_FRACTION.value if crossing.level.kind is LinkKind.PEER else 1.0
            seconds += messages * crossing.level.latency_seconds * short
            reached = inside
        return seconds + max(crossing.agreement_seconds(message_bytes) for crossing in crossings)

    def _exchanged_bytes(self, operation: Collective, units: int) -> float:
        """Return what one rank of an all-to-all sends to other units than its own, of `units` with equal parts.

        A row goes to a given unit with the probability 1 - (1 - 1/u)^k, with k its copies that are forwarded there as
        one: all of them, or each alone.
        """
        joined = operation.copies if self.software.forwards_tokens else 1
        return operation.buffer_bytes / joined * (units - 1) * (1 - (1 - 1 / units) ** joined)

    def _units(self, operation: Collective, size: int, unit_size: int) -> int:
        """Return in how many units of `unit_size` consecutive ranks a group lies, in the group that lies in most.

        Groups begin at multiples of size times stride, so at an offset in a unit that the greatest common divisor of
        both divides.
        """
        if operation.kind is CollectiveKind.SEND_RECV:
            return size // self._members_in_unit(operation, unit_size)
        if unit_size >= self.cluster.world_size:
            return 1
        span = operation.size * operation.stride
        return min(size, -(-(unit_size - math.gcd(unit_size, span) + span) // unit_size))

    def _members_in_unit(self, operation: Collective, unit_size: int) -> int:
        """Return how many members share one unit of `unit_size` consecutive ranks, in the group that is worst off.

        Groups begin at multiples of size times stride. Where that does not divide the unit, some group lies across
        two units, with the remainder in one of them.
        """
        if operation.kind is CollectiveKind.SEND_RECV:
            if operation.first_rank is None:
                inside = unit_size >= self.cluster.world_size or unit_size % (operation.size * operation.stride) == 0
                return 2 if inside else 1
            first, last = operation.first_rank, operation.first_rank + operation.stride
            return 2 if first // unit_size == last // unit_size else 1
        if unit_size >= self.cluster.world_size:
            return operation.size
        together = math.gcd(unit_size, operation.size * operation.stride) // operation.stride
        return max(1, min(operation.size, together))

    def _reached(self, level: LinkLevel, kind: CollectiveKind, size: int) -> Reached:
        """Return the part of a level's bandwidth that `size` ranks in one unit of it reach."""
        match level.kind:
            case LinkKind.PEER:
                return self._reached_of_peers(level, kind, size)
            case LinkKind.HOST:
                constant = PCIE_FRACTION
            case LinkKind.NETWORK:
                constant = NETWORK_FRACTION
        return Reached(fraction=constant.value, source=constant.source, assumed=constant.assumed)

    def _reached_of_peers(self, level: LinkLevel, kind: CollectiveKind, size: int) -> Reached:
        """Return the part of a peer domain's bandwidth that `size` of its ranks reach.

        A switch that reduces (NVLS) makes the published all_reduce of Hopper faster than its all_gather. A mesh has no
        switch, so all its collectives take the fraction of all_gather, on the links that join the group.
        """
        is_mesh = self.cluster.device.peer_topology is PeerTopology.MESH
        name = CollectiveKind.ALL_GATHER if is_mesh or kind is CollectiveKind.SEND_RECV else kind
        architecture = self.cluster.device.architecture
        measured = next(
            candidate
            for candidate in (*with_fallbacks(architecture), "hopper")
            if (candidate, name.value) in PEER_FRACTION
        )
        constants = PEER_FRACTION[measured, name.value]
        weight = min(max(math.log2(size) - 1.0, 0.0) / 2.0, 1.0)
        two, eight = constants.two_ranks.value, constants.eight_ranks.value
        fraction = two + weight * (eight - two)
        source = constants.eight_ranks.source
        if is_mesh:
            size = max(size, 2)  # a group that lies across two units may have one member in the other
            fraction *= (size - 1) / (level.num_gpus - 1)
            source = f"{size - 1} of {level.num_gpus - 1} links of a mesh, {source}"
        return Reached(fraction=fraction, source=source, assumed=is_mesh or measured != architecture)

    def _nearest(self, constants: Mapping[str, Constant]) -> tuple[Constant, bool]:
        """Return a constant of this architecture or the nearest, and whether it was carried over."""
        architecture = self.cluster.device.architecture
        measured = next(candidate for candidate in (*with_fallbacks(architecture), "hopper") if candidate in constants)
        return constants[measured], measured != architecture


def _ring_factor(kind: CollectiveKind, size: int) -> float:
    """Return how often a ring sends its buffer over a link."""
    if kind is CollectiveKind.SEND_RECV:
        return 1.0
    share = (size - 1) / size
    return 2 * share if kind is CollectiveKind.ALL_REDUCE else share


def _tree_seconds(buffer_bytes: float, size: int, crossings: list[_Crossing]) -> float:
    """Return what messages take up and down a tree: inside the units that a network joins, and between them."""
    network = [crossing for crossing in crossings if crossing.is_network]
    inner = [crossing for crossing in crossings if not crossing.is_network]
    units = network[0].units if network else 1
    seconds = 0.0
    if inner:
        inside = math.ceil(size / units)
        seconds += math.ceil(math.log2(inside)) * max(crossing.level.latency_seconds for crossing in inner)
    if network:
        slowest = max(crossing.message_seconds(buffer_bytes) for crossing in network)
        chunk = max(crossing.first_chunk_seconds(buffer_bytes) for crossing in network)
        seconds += math.ceil(math.log2(units)) * (slowest + chunk)
    return 2 * seconds
