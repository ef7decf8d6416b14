"""The replica placement problem: which item, and in how many copies, stands on which slot of which bin.

Sets
    L   cases, each a problem of its own over the same items and bins; solved together, so that arrays do the work
    I   items; item i of case l has a weight
    B   bins, each with S slots; every slot holds a copy of one item
    R   rooms of neighbouring bins, as many bins in each
    F   families of items, as many items in each; empty where items may stand anywhere

Variables
    item[l, b, s]   item on each slot
    c[l, i]         its copies, the number of slots that hold it

What a bin carries: every copy takes an equal share,
    load[l, b] = sum over s of weight[l, i] / c[l, i], i = item[l, b, s]

Objective, in each case
    minimise  max over b of load[l, b] / mean[l]  +  apart_weight * apart[l],
    apart[l] = sum over pairs of items of affinity[l, i, j] (1 - sum over r of p[i, r] p[j, r]),
    p[i, r] = share of item i's copies that stand in room r

Constraints
    (1)  every item has a copy: c[l, i] >= 1
    (2)  a bin holds no item twice
    (3)  the copies of all items of a family stand in one room

Arrays name their axes: weight_LI, item_LBS, family_I, affinity_LII.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaProblem:
    """One replica placement problem.

    Args:
        weight_LI: Weight of each item, none negative.
        num_bins: Bins.
        slots_per_bin: Slots of each.
        num_rooms: Rooms, which divide the bins.
        family_I: Family of each item, 0 to the number of families less 1; empty where items may stand anywhere.
        affinity_LII: What it costs to keep two items apart, symmetric with a zero diagonal; None where nothing does.
        apart_weight: Weight of that in the objective.
        num_families: Follows from `family_I`.
    """

    weight_LI: Floats
    num_bins: int
    slots_per_bin: int
    num_rooms: int = 1
    family_I: tuple[int, ...] = ()
    affinity_LII: Floats | None = None
    apart_weight: float = 0.0
    num_families: int = field(init=False)

    def __post_init__(self) -> None:
        """Check shapes and counts, and make the arrays read-only."""
        weight_LI = np.array(self.weight_LI, dtype=np.float64)
        if weight_LI.ndim != 2 or not weight_LI.size or not np.isfinite(weight_LI).all() or (weight_LI < 0).any():
            raise ValueError("weight_LI must hold finite weights of cases by items, none of them negative")
        if min(self.num_bins, self.slots_per_bin, self.num_rooms) < 1 or self.num_bins % self.num_rooms:
            raise ValueError("bins, slots and rooms are at least 1, and rooms divide the bins")
        weight_LI.flags.writeable = False
        object.__setattr__(self, "weight_LI", weight_LI)
        if self.affinity_LII is not None:
            affinity_LII = np.array(self.affinity_LII, dtype=np.float64)
            if affinity_LII.shape != (*weight_LI.shape, weight_LI.shape[1]):
                raise ValueError("affinity_LII must have a row and a column for each item of each case")
            affinity_LII.flags.writeable = False
            object.__setattr__(self, "affinity_LII", affinity_LII)
        object.__setattr__(self, "num_families", len(set(self.family_I)))
        if self.family_I:
            self._check_families()
        if not self.num_items <= self.num_slots <= self.num_items * self.num_bins:
            raise ValueError("slots are at least as many as items, and a bin has no more of them than there are items")
        if self.family_I and self.slots_per_bin > self.num_items // self.num_rooms:
            raise ValueError("a bin has no more slots than there are items in its room")

    def _check_families(self) -> None:
        sizes = np.bincount(self.family_I)
        if len(self.family_I) != self.num_items or len(set(sizes.tolist())) != 1:
            raise ValueError("family_I must name the family of each item, all of one size")
        if self.num_families % self.num_rooms:
            raise ValueError("rooms must divide the families")

    @property
    def num_cases(self) -> int:
        """Return the number of cases."""
        return int(self.weight_LI.shape[0])

    @property
    def num_items(self) -> int:
        """Return the number of items."""
        return int(self.weight_LI.shape[1])

    @property
    def num_slots(self) -> int:
        """Return the slots of all bins."""
        return self.num_bins * self.slots_per_bin

    @property
    def bins_per_room(self) -> int:
        """Return the bins of one room."""
        return self.num_bins // self.num_rooms

    @property
    def room_B(self) -> Ints:
        """Return the room of each bin."""
        return np.arange(self.num_bins) // self.bins_per_room


def copies_LI(item_LBS: Ints, num_items: int) -> Ints:
    """Return the copies of each item in each case."""
    num_cases = item_LBS.shape[0]
    flat = (item_LBS.reshape(num_cases, -1) + num_items * np.arange(num_cases)[:, None]).ravel()
    return np.bincount(flat, minlength=num_cases * num_items).reshape(num_cases, num_items)


def share_LBS(weight_LI: Floats, item_LBS: Ints) -> Floats:
    """Return what each slot carries."""
    copies = np.maximum(copies_LI(item_LBS, weight_LI.shape[1]), 1)
    flat = item_LBS.reshape(item_LBS.shape[0], -1)
    return np.take_along_axis(weight_LI / copies, flat, axis=1).reshape(item_LBS.shape)


def load_LB(weight_LI: Floats, item_LBS: Ints) -> Floats:
    """Return what each bin carries."""
    loads: Floats = share_LBS(weight_LI, item_LBS).sum(axis=2)
    return loads


def imbalance_L(weight_LI: Floats, item_LBS: Ints) -> Floats:
    """Return the largest load over the mean in each case; 1 where nothing weighs anything."""
    loads = load_LB(weight_LI, item_LBS)
    mean: Floats = loads.mean(axis=1)
    ratio = np.ones_like(mean)
    np.divide(loads.max(axis=1), mean, out=ratio, where=mean > 0)
    return ratio
