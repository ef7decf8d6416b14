"""From a placement that is there to better ones, step by step, with few copies moved.

A step of a case is whichever makes its heaviest bin lightest of

    a swap         two slots, one of them on the heaviest bin, change their items; two copies are moved
    a replacement  a slot whose item has other copies takes a copy of an item of the heaviest bin; one copy is moved

where a replacement's gain counts twice, since it moves half as much. Copies of an item of a family stay in its room.

`matched` gives bins of a placement other names, so that as many copies as can be stand where they stood (an assignment
problem between bins, and between rooms where rooms have to stay together; solved by SciPy).
"""

from collections.abc import Iterator

import numpy as np

from solvers.replicas.problem import Bools, Floats, Ints, ReplicaProblem, copies_LI, load_LB, share_LBS

HELPS = 1e-6
"""Share of the heaviest bin's load that is worth a step."""


def moved_L(item_LBS: Ints, before_LBS: Ints) -> Ints:
    """Return the copies of each case that a bin holds and did not hold before."""
    stays = (item_LBS[:, :, :, None] == before_LBS[:, :, None, :]).any(axis=3)
    moved: Ints = (~stays).sum(axis=(1, 2))
    return moved


def steps(problem: ReplicaProblem, item_LBS: Ints, *, most: int) -> Iterator[Ints]:
    """Yield the placements after one step in each case, after two, and so on; a case without a step stays as it is."""
    item_LBS = np.array(item_LBS)
    left = list(range(problem.num_cases))
    for _ in range(most):
        left = [case for case in left if _step(problem, problem.weight_LI[case], item_LBS[case])]
        if not left:
            return
        yield item_LBS.copy()


def _step(problem: ReplicaProblem, weight_I: Floats, item_BS: Ints) -> bool:
    """Make the best step of one case, in place; return whether there was one."""
    load = load_LB(weight_I[None], item_BS[None])[0]
    heaviest = int(load.argmax())
    swapped, swap = _best_swap(problem, weight_I, item_BS, load)
    replaced, replacement = _best_replacement(problem, weight_I, item_BS, load)
    least = load[heaviest] * (1 - HELPS)
    if min(swapped, replaced) >= least:
        return False
    if 2 * (load[heaviest] - replaced) >= load[heaviest] - swapped:
        bin_, slot, item = replacement
        item_BS[bin_, slot] = item
        return True
    slot_here, bin_, slot = swap
    item_BS[heaviest, slot_here], item_BS[bin_, slot] = item_BS[bin_, slot], item_BS[heaviest, slot_here]
    return True


def _best_swap(
    problem: ReplicaProblem, weight_I: Floats, item_BS: Ints, load: Floats
) -> tuple[float, tuple[int, int, int]]:
    """Return the heaviest bin's load after the best swap; its slot, the other bin and the slot there."""
    share = share_LBS(weight_I[None], item_BS[None])[0]
    heaviest = int(load.argmax())
    mine = item_BS[heaviest]
    # Axes: slot of the heaviest bin, bin, its slot.
    change = share[heaviest][:, None, None] - share[None]
    after = np.maximum(load[heaviest] - change, load[None, :, None] + change)
    after = np.maximum(after, _without(load, heaviest)[None, :, None])
    same = mine[:, None, None] == item_BS[None]
    allowed = ~(same.any(axis=2)[:, :, None] | same.any(axis=0)[None]) & _within_room(problem, heaviest)[None, :, None]
    after = np.where(allowed, after, np.inf)
    best = int(after.argmin())
    slot_here, bin_, slot = np.unravel_index(best, after.shape)
    return float(after.flat[best]), (int(slot_here), int(bin_), int(slot))


def _best_replacement(
    problem: ReplicaProblem, weight_I: Floats, item_BS: Ints, load: Floats
) -> tuple[float, tuple[int, int, int]]:
    """Return the heaviest bin's load after the best replacement; its bin, its slot and the item that comes there."""
    heaviest = int(load.argmax())
    copies = copies_LI(item_BS[None], problem.num_items)[0]
    held = np.zeros((problem.num_items, problem.num_bins))
    held[item_BS, np.arange(problem.num_bins)[:, None]] = 1.0
    best, found = float("inf"), (0, 0, 0)
    giving = copies[item_BS] >= 2
    for taker in item_BS[heaviest].tolist():
        now, then = weight_I[taker] / copies[taker], weight_I[taker] / (copies[taker] + 1)
        lightened = load - held[taker] * (now - then)
        allowed = giving & (held[taker] == 0)[:, None] & _within_room(problem, heaviest)[:, None]
        for bin_, slot in np.argwhere(allowed).tolist():
            giver = int(item_BS[bin_, slot])
            now_giver, then_giver = weight_I[giver] / copies[giver], weight_I[giver] / (copies[giver] - 1)
            after = lightened + held[giver] * (then_giver - now_giver)
            after[bin_] += then - then_giver
            highest = float(after.max())
            if highest < best:
                best, found = highest, (bin_, slot, taker)
    return best, found


def _within_room(problem: ReplicaProblem, bin_: int) -> Bools:
    """Return the bins that items of a bin may go to."""
    if not problem.family_I:
        return np.ones(problem.num_bins, dtype=np.bool_)
    return np.asarray(problem.room_B == problem.room_B[bin_], dtype=np.bool_)


def _without(load: Floats, heaviest: int) -> Floats:
    """Return for each bin the heaviest load of all but it and the heaviest."""
    others = np.array(load)
    others[heaviest] = 0.0
    second = int(others.argmax())
    found = np.full(load.size, others[second])
    others[second] = 0.0
    found[second] = others.max()
    return found


def matched(item_LBS: Ints, before_LBS: Ints, *, num_rooms: int) -> Ints:
    """Return the same placement with bins named so that most copies stand where they stood; rooms stay together."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - SciPy only where it is used

    num_bins = item_LBS.shape[1]
    size = num_bins // num_rooms
    found = np.empty_like(item_LBS)
    for case, (items, before) in enumerate(zip(item_LBS, before_LBS, strict=True)):
        # Axes: bin before, bin now.
        same = (before[:, None, :, None] == items[None, :, None, :]).any(axis=3).sum(axis=2)
        rooms = np.zeros((num_rooms, num_rooms))
        names: dict[tuple[int, int], Ints] = {}
        for old in range(num_rooms):
            for new in range(num_rooms):
                part = same[old * size : (old + 1) * size, new * size : (new + 1) * size]
                rows, columns = linear_sum_assignment(part, maximize=True)
                rooms[old, new], names[old, new] = part[rows, columns].sum(), columns
        for old, new in np.stack(linear_sum_assignment(rooms, maximize=True), axis=1).tolist():
            found[case, old * size : (old + 1) * size] = items[new * size + names[old, new]]
    return found
