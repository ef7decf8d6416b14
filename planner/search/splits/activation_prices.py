"""Prices points whose layers keep saved tensors on the hosts: how many layers do.

Layers that are offloaded are the first ones. The more of them, the less a GPU holds, the more its node does, and the
later their copies come to an end (`planner.offloading.activations`). So of the numbers that may be searched the least
that fits into the GPUs is the fastest of those that do, and if the nodes do not hold it, they hold none.
"""

import math
from dataclasses import replace

from planner.layout import Layout
from planner.search.bounds.costs import CostTable
from planner.search.splits.candidates import Candidate, PointBound, Pricer, Rejected
from profiles.hardware import Cluster


class ActivationPricer(Pricer):
    """Prices points of one space, each with the least number of offloaded layers that it needs.

    Args:
        table: Costs of the space.
        limit_bytes: What each GPU may use.
        cluster: Whose nodes must hold what is offloaded; None asks no node.
        counts: Numbers of layers that may be offloaded, ascending.
    """

    def __init__(self, table: CostTable, *, limit_bytes: int, cluster: Cluster | None, counts: tuple[int, ...]) -> None:
        super().__init__(table, limit_bytes=limit_bytes, cluster=cluster)
        self._counts = counts

    def fitting(self, point: Layout) -> Layout | None:
        """Return a point with its layers placed and the fewest of them offloaded; None where that does not fit."""
        found = self._with_fewest(point)
        return found if found is not None and self.hosts_hold(self.prices(found), found) else None

    def price(self, point: Layout, *, bound: PointBound, ceiling_seconds: float) -> Candidate | Rejected:
        """Return a point priced exactly, or why it is not worth it.

        Args:
            point: A point; its layers are placed here.
            bound: What the space knows of it, with whichever layers offloaded.
            ceiling_seconds: A step this long is of no interest.
        """
        placed = self._with_fewest(point)
        if placed is None:
            return Rejected(fits=False, bound_seconds=math.inf)
        if not self.hosts_hold(self.prices(placed), placed):
            return Rejected(fits=False, bound_seconds=math.inf, by_host=True)
        found = self.candidate(placed, lower_bound_seconds=bound.step_seconds)
        if found.step_seconds >= ceiling_seconds:
            return Rejected(fits=True, bound_seconds=found.step_seconds)
        return replace(found, point=point)

    def _with_fewest(self, point: Layout) -> Layout | None:
        """Return a point with its layers placed and the fewest of them offloaded that leave enough memory."""
        split = next(iter(self._splits(self.prices(point))))
        low, high = 0, len(self._counts)
        while low < high:
            middle = (low + high) // 2
            offloaded = replace(split, offloaded_layers=self._counts[middle])
            if self.prices(offloaded).peak_bytes(offloaded) <= self.limit_bytes:
                high = middle
            else:
                low = middle + 1
        return replace(split, offloaded_layers=self._counts[low]) if low < len(self._counts) else None
