"""Copies taken from one item and given to another, where the placement of greedily spread copies can be improved.

A copy more lightens all bins that hold an item; so one goes to an item on the heaviest bin, and the item whose copies
stay lightest with one copy less gives it. Both are packed anew, with swaps, and kept if the heaviest bin is lighter.
The items of the heaviest bin are tried heaviest first, `TRIED` of them, until none helps.

The start is the better of two: copies that make the heaviest copy lightest, and copies by the method of Webster (the
next copy to the largest weight / (c - 1/2)), which gives heavy items more.
"""

from collections.abc import Callable

import numpy as np

from solvers.replicas.copies import spread_copies
from solvers.replicas.packing import pack, swap
from solvers.replicas.problem import Bools, Floats, Ints, copies_LI, load_LB, share_LBS

TRIED = 3
"""Items of the heaviest bin that are given a copy in turn."""
WORTH = 1e-3
"""Share of the mean load above it from which the heaviest bin is worth work."""
STARTS = (0.0, 0.5)
"""What is taken from the number of copies in the divisor of each start."""


def place_anywhere(weight_LI: Floats, *, num_bins: int, slots_per_bin: int) -> Ints:
    """Return the item on each slot of each bin, where every item may stand on any."""

    def packed(weight_LI: Floats, copies: Ints) -> Ints:
        return swap(weight_LI, pack(weight_LI, copies, num_bins=num_bins, slots_per_bin=slots_per_bin))

    num_slots = num_bins * slots_per_bin
    item_LBS = packed(weight_LI, spread_copies(weight_LI, num_slots=num_slots, num_bins=num_bins))
    best = load_LB(weight_LI, item_LBS).max(axis=1)
    mean = weight_LI.sum(axis=1) / num_bins
    for less in STARTS[1:]:
        active = np.flatnonzero(best > mean * (1 + WORTH))
        if active.size:
            copies = spread_copies(weight_LI[active], num_slots=num_slots, num_bins=num_bins, less=less)
            _keep_better(item_LBS, best, active, packed(weight_LI[active], copies), weight_LI)
    active = np.flatnonzero(best > mean * (1 + WORTH))
    while active.size:
        helped = _exchange(weight_LI, item_LBS, best, active, packed)
        active = active[helped & (best[active] > mean[active] * (1 + WORTH))]
    return item_LBS


def _exchange(
    weight_LI: Floats, item_LBS: Ints, best: Floats, active: Ints, packed: Callable[[Floats, Ints], Ints]
) -> Bools:
    """Make one exchange in each active case, in place; return in which one helped."""
    num_items, num_bins, slots = weight_LI.shape[1], *item_LBS.shape[1:]
    helped = np.zeros(active.size, dtype=np.bool_)
    for position in range(min(TRIED, slots)):
        left = np.flatnonzero(~helped)
        cases = active[left]
        if not cases.size:
            break
        rows = np.arange(cases.size)
        weight, items = weight_LI[cases], item_LBS[cases]
        heaviest = load_LB(weight, items).argmax(axis=1)
        carried = share_LBS(weight, items)[rows, heaviest]
        slot = np.argsort(-carried, axis=1, kind="stable")[:, position]
        taker = items[rows, heaviest, slot]
        copies = copies_LI(items, num_items)
        after = np.where(copies >= 2, weight / np.maximum(copies - 1, 1), np.inf)
        after[rows, taker] = np.inf
        giver = after.argmin(axis=1)
        can = np.isfinite(after[rows, giver]) & (copies[rows, taker] < num_bins)
        copies[rows, taker] += 1
        copies[rows, giver] -= 1
        if can.any():
            helped[left[can]] = _keep_better(item_LBS, best, cases[can], packed(weight[can], copies[can]), weight_LI)
    return helped


def _keep_better(item_LBS: Ints, best: Floats, cases: Ints, items: Ints, weight_LI: Floats) -> Bools:
    """Take placements of some cases over, in place, where their heaviest bin is lighter; return where it is."""
    heaviest = load_LB(weight_LI[cases], items).max(axis=1)
    better = heaviest < best[cases] * (1 - 1e-6)
    item_LBS[cases[better]], best[cases[better]] = items[better], heaviest[better]
    return np.asarray(better, dtype=np.bool_)
