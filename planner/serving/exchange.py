"""How long the collectives inside an engine take, as engines run them in captured graphs.

Inside a peer domain small tensors are summed in one kernel: every rank reads all the others' parts (one shot), or each
sums a part and the others read it (two shots), whichever is faster; large ones go through NCCL at its bus bandwidth.
Constants are read off published timings of vLLM's, SGLang's and TensorRT-LLM's kernels in graphs on H100, 256 B to
1 GB, and scale with the datasheet's link. Where a group leaves the domain NCCL's price counts (`profiles.collectives`).
Where the cluster was measured its profile comes first (`planner.serving.measured_kernels`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from planner.arrays import FloatArray
from profiles.collectives import CollectivePrices
from profiles.constants import Constant, Origin
from profiles.hardware import Cluster, LinkKind
from profiles.ops import Collective, CollectiveKind


def _read_off(value: float, high: float, what: str) -> Constant:
    return Constant(
        value=value,
        low=0.0,
        high=high,
        origin=Origin.MEASURED,
        source=f"{what}; published all-reduce timings in graphs of three engines, 2 and 8 H100",
    )


START_PER_RANK = _read_off(0.07e-6, 1e-5, "what each further GPU adds to it")
ONE_SHOT_FRACTION = _read_off(0.58, 1.0, "part of the link that one-shot kernels reach")
BUS_FRACTION_TWO = _read_off(0.72, 1.1, "bus bandwidth over the link of 2 GPUs, endless")
BUS_FRACTION_EIGHT = _read_off(1.0, 1.1, "bus bandwidth over the link of 8 GPUs, endless")
RAMP = _read_off(50e-6, 1e-3, "what large tensors take longer than their bandwidth says")
RAMP_BYTES = _read_off(12e6, 1e9, "size at which half of that is paid")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSums:
    """What an engine's own all-reduce kernels take beside their traffic.

    Args:
        start: Shortest all-reduce of two GPUs in a graph.
        second_shot: What one of eight GPUs takes longer where parts are summed first and gathered then.
    """

    start: Constant
    second_shot: Constant


def _own(engine: str, start: float, second_shot: float) -> OwnSums:
    return OwnSums(
        start=_read_off(start, 1e-4, f"shortest sum of {engine} over 2 GPUs"),
        second_shot=_read_off(second_shot, 1e-4, f"two shots of {engine} over one, 8 GPUs"),
    )


OWN_SUMS: Mapping[str, OwnSums] = MappingProxyType(
    {
        "vllm": _own("vLLM", 4.3e-6, 5e-6),
        "trtllm": _own("TensorRT-LLM", 2.7e-6, 13e-6),
        "sglang": _own("SGLang", 4.4e-6, 5e-6),
    }
)
"""By engine."""

HOST_LINK_START = Constant(
    value=12e-6, low=0.0, high=1e-3, origin=Origin.ASSUMED, source="assumption: NCCL over PCIe slots of one node"
)
HOST_LINK_FRACTION = Constant(
    value=0.65, low=0.0, high=1.0, origin=Origin.ASSUMED, source="assumption: part of a PCIe slot that NCCL reaches"
)


class ExchangeTimes:
    """Prices collectives of an engine on a cluster.

    Args:
        cluster: Where it runs; groups are of neighbouring GPUs.
        sums: What the engine's own all-reduce kernels take; barriers of a second shot grow with the number of GPUs.
    """

    def __init__(self, cluster: Cluster, sums: OwnSums) -> None:
        self.cluster = cluster
        self._start = sums.start.value
        self._second_shot = sums.second_shot.value
        self._network = CollectivePrices(cluster, sustained=False)

    def all_reduce_seconds_P(self, bytes_P: ArrayLike, size: int) -> FloatArray:
        """Return the seconds of sums of tensors of so many bytes over `size` neighbouring GPUs."""
        num_bytes = np.asarray(bytes_P, dtype=np.float64)
        if size <= 1:
            return np.zeros_like(num_bytes)
        one_shot_P, summed_P = self.one_shot_seconds_P(num_bytes, size), self.summed_seconds_P(num_bytes, size)
        return summed_P if one_shot_P is None else np.minimum(one_shot_P, summed_P)

    def one_shot_seconds_P(self, bytes_P: FloatArray, size: int) -> FloatArray | None:
        """Return the same where every rank reads all others' parts, as engines' own kernels can; None where none do."""
        link = self.cluster.device.peer_bytes_per_second
        if size > self.cluster.largest_inside or link is None:
            return None
        start = self._start + START_PER_RANK.value * (size - 2)
        seconds_P: FloatArray = start + (size - 1) * bytes_P / (link * ONE_SHOT_FRACTION.value)
        return seconds_P

    def summed_seconds_P(self, bytes_P: FloatArray, size: int) -> FloatArray:
        """Return the same where parts are summed and gathered, as two shots do and NCCL."""
        if size > self.cluster.largest_inside:
            return self._priced(CollectiveKind.ALL_REDUCE, bytes_P, size)
        traffic_P = 2 * (size - 1) / size * bytes_P
        link = self.cluster.device.peer_bytes_per_second
        if link is None:
            slot = self.cluster.device.host_bytes_per_second * HOST_LINK_FRACTION.value
            over_slots_P: FloatArray = HOST_LINK_START.value * (1 + np.log2(size)) + traffic_P / slot
            return over_slots_P
        start = self._start + START_PER_RANK.value * (size - 2)
        two_shots_P = self._second_shot * size / 8 + traffic_P / (link * self.bus_fraction(size)) + _ramp_P(bytes_P)
        seconds_P: FloatArray = start + two_shots_P
        return seconds_P

    def gather_seconds_P(self, bytes_P: ArrayLike, size: int) -> FloatArray:
        """Return the seconds of gathering tensors that are so large when whole; scattering sums takes as long."""
        num_bytes = np.asarray(bytes_P, dtype=np.float64)
        if size <= 1:
            return np.zeros_like(num_bytes)
        if size > self.cluster.largest_inside:
            return self._priced(CollectiveKind.ALL_GATHER, num_bytes, size)
        traffic_P = (size - 1) / size * num_bytes
        link = self.cluster.device.peer_bytes_per_second
        if link is None:
            slot = self.cluster.device.host_bytes_per_second * HOST_LINK_FRACTION.value
            over_slots_P: FloatArray = HOST_LINK_START.value * (1 + np.log2(size)) + traffic_P / slot
            return over_slots_P
        start = self._start + START_PER_RANK.value * (size - 2)
        seconds_P: FloatArray = start + traffic_P / (link * self.bus_fraction(size)) + _ramp_P(num_bytes) / 2
        return seconds_P

    def send_seconds_P(self, bytes_P: ArrayLike, *, crosses_nodes: bool) -> FloatArray:
        """Return the seconds of one send from a GPU to another."""
        num_bytes = np.asarray(bytes_P, dtype=np.float64)
        device = self.cluster.device
        if crosses_nodes:
            level = next(level for level in reversed(self.cluster.levels) if level.kind is LinkKind.NETWORK)
            over_network_P: FloatArray = level.latency_seconds + num_bytes / level.bytes_per_second
            return over_network_P
        link = device.peer_bytes_per_second
        rate = (
            device.host_bytes_per_second * HOST_LINK_FRACTION.value if link is None else link * BUS_FRACTION_TWO.value
        )
        seconds_P: FloatArray = self._start + num_bytes / rate
        return seconds_P

    @staticmethod
    def bus_fraction(size: int) -> float:
        """Return the part of the link that the bus bandwidth of so many GPUs reaches, between 2 and 8 by their log."""
        share = min(1.0, np.log2(size / 2) / 2)
        return float(BUS_FRACTION_TWO.value + share * (BUS_FRACTION_EIGHT.value - BUS_FRACTION_TWO.value))

    def _priced(self, kind: CollectiveKind, bytes_P: FloatArray, size: int) -> FloatArray:
        price = lru_cache(maxsize=None)(self._network.price)
        seconds = [
            price(Collective(kind=kind, buffer_bytes=max(1, int(num_bytes)), size=size, stride=1)).seconds
            for num_bytes in np.atleast_1d(bytes_P)
        ]
        return np.asarray(seconds, dtype=np.float64).reshape(np.shape(bytes_P))


def _ramp_P(bytes_P: FloatArray) -> FloatArray:
    ramp_P: FloatArray = RAMP.value * bytes_P / (bytes_P + RAMP_BYTES.value)
    return ramp_P
