"""Copies onto bins: the heaviest first onto the lightest bins, then swaps of pairs, in all cases at once.

The copies of one item go onto different bins (constraint 2): onto the c[i] lightest bins that have a slot left. Where
fewer bins are left, the case is packed again with the fullest bins spared: onto the c[i] bins with most slots left,
which never fails (Gale, Pacific Journal of Mathematics 7, 1957: any order of rows, columns with most left first).

Swaps: two slots, one of them on the heaviest bin, change their items when that makes the heavier of the two bins
lighter; of all such swaps the best. It ends when no swap helps, or where the heaviest bin is within `CLOSE_ENOUGH` of
the mean.
"""

import numpy as np

from solvers.replicas.problem import Bools, Floats, Ints, load_LB, share_LBS

CLOSE_ENOUGH = 1e-4
"""Share of the mean load that no swap is made for."""


def pack(weight_LI: Floats, copies_LI: Ints, *, num_bins: int, slots_per_bin: int) -> Ints:
    """Return the item on each slot of each bin."""
    share = weight_LI / copies_LI
    order_LI = np.argsort(-share, axis=1, kind="stable")
    shape = (num_bins, slots_per_bin)
    item_LBS, failed_L = _pack(share, copies_LI, order_LI, shape, spare_full=False)
    if failed_L.any():
        again = np.flatnonzero(failed_L)
        item_LBS[again], still = _pack(share[again], copies_LI[again], order_LI[again], shape, spare_full=True)
        assert not still.any(), "bins with most slots left always hold the copies"
    return item_LBS


def _pack(
    share_LI: Floats, copies_LI: Ints, order_LI: Ints, shape: tuple[int, int], *, spare_full: bool
) -> tuple[Ints, Bools]:
    """Return the items on the slots, and in which cases some copy found no bin."""
    (num_cases, num_items), (num_bins, slots_per_bin) = share_LI.shape, shape
    cases = np.arange(num_cases)
    item_LBS = np.full((num_cases, num_bins, slots_per_bin), -1, dtype=np.int64)
    load, taken = np.zeros((num_cases, num_bins)), np.zeros((num_cases, num_bins), dtype=np.int64)
    failed = np.zeros(num_cases, dtype=np.bool_)
    total = share_LI.max(axis=1, keepdims=True) * slots_per_bin * num_bins + 1.0
    for position in range(num_items):
        item = order_LI[:, position]
        wanted = copies_LI[cases, item]
        key = load / total + (taken if spare_full else 0)
        key = np.where(taken < slots_per_bin, key, np.inf)
        most = int(wanted.max())
        bins = key.argmin(axis=1)[:, None] if most == 1 else np.argsort(key, axis=1, kind="stable")[:, :most]
        used = np.arange(most)[None, :] < wanted[:, None]
        fits = np.take_along_axis(taken, bins, axis=1) < slots_per_bin
        failed |= (used & ~fits).any(axis=1)
        case, column = np.nonzero(used & fits)
        chosen = bins[case, column]
        item_LBS[case, chosen, taken[case, chosen]] = item[case]
        taken[case, chosen] += 1
        load[case, chosen] += share_LI[case, item[case]]
    return item_LBS, failed


def swap(weight_LI: Floats, item_LBS: Ints) -> Ints:
    """Return a placement in which no swap with a slot of the heaviest bin makes it lighter."""
    item_LBS = np.array(item_LBS)
    share, load = share_LBS(weight_LI, item_LBS), load_LB(weight_LI, item_LBS)
    enough = load.mean(axis=1) * (1 + CLOSE_ENOUGH)
    active = np.flatnonzero(load.max(axis=1) > enough)
    while active.size:
        moved = _swap_once(item_LBS, share, load, active)
        active = active[moved & (load[active].max(axis=1) > enough[active])]
    return item_LBS


def _swap_once(item_LBS: Ints, share: Floats, load: Floats, active: Ints) -> Bools:
    """Make the best swap of each active case, in place; return in which there was one."""
    num_bins, slots = item_LBS.shape[1:]
    rows = np.arange(active.size)
    loads = load[active]
    heaviest = loads.argmax(axis=1)
    highest = loads[rows, heaviest]
    items, shares = item_LBS[active], share[active]
    here_items, here_shares = items[rows, heaviest], shares[rows, heaviest]
    # Axes: active case, bin, its slot, slot of the heaviest bin.
    same = items[:, :, :, None] == here_items[:, None, None, :]
    change = here_shares[:, None, None, :] - shares[:, :, :, None]
    after = np.maximum(highest[:, None, None, None] - change, loads[:, :, None, None] + change)
    after[np.broadcast_to(same.any(axis=2)[:, :, None, :], after.shape)] = np.inf
    after[np.broadcast_to(same.any(axis=3)[:, :, :, None], after.shape)] = np.inf
    after[rows, heaviest] = np.inf
    flat = after.reshape(active.size, -1)
    best = flat.argmin(axis=1)
    helps = flat[rows, best] < highest * (1 - 1e-9)
    rows, best = rows[helps], best[helps]
    there, slot_there, slot_here = np.unravel_index(best, (num_bins, slots, slots))
    case, here = active[rows], heaviest[rows]
    moved = change[rows, there, slot_there, slot_here]
    load[case, here] -= moved
    load[case, there] += moved
    for array in (item_LBS, share):
        kept = array[case, here, slot_here].copy()
        array[case, here, slot_here] = array[case, there, slot_there]
        array[case, there, slot_there] = kept
    return np.asarray(helps, dtype=np.bool_)
