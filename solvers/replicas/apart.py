"""Swaps that weigh what keeping items apart costs against the heaviest bin, in all cases at once.

In turn, and every second time for the bin that is heaviest, all swaps of a slot of the bin with a slot of any other
are looked at, and of each case the best is made when it lowers the objective of `solvers.replicas.problem`. Copies
stay as many as they are. What a swap of items i and j between rooms r and q changes of what is together is, with
d[i, r] = sum over h of affinity[i, h] p[h, r],

    (d[i, q] - d[i, r]) / c[i] + (d[j, r] - d[j, q]) / c[j] - 2 affinity[i, j] / (c[i] c[j])

It ends when no bin of a case has a swap that helps, or after `MOST_TURNS` turns a bin.
"""

import numpy as np

from solvers.replicas.problem import Floats, Ints, ReplicaProblem, copies_LI, load_LB, share_LBS

MOST_TURNS = 5
"""Turns of each bin."""

HELPS = 1e-7
"""Change of the objective that is worth a swap."""


def room_share_LIR(problem: ReplicaProblem, item_LBS: Ints) -> Floats:
    """Return the share of each item's copies that stands in each room."""
    num_cases, num_items, num_rooms = problem.num_cases, problem.num_items, problem.num_rooms
    place = (np.arange(num_cases)[:, None, None] * num_items + item_LBS) * num_rooms + problem.room_B[None, :, None]
    counts = np.bincount(place.ravel(), minlength=num_cases * num_items * num_rooms)
    counts = counts.reshape(num_cases, num_items, num_rooms)
    share: Floats = counts / counts.sum(axis=2, keepdims=True)
    return share


def swap_together(problem: ReplicaProblem, item_LBS: Ints) -> Ints:
    """Return placements that no swap of two slots makes better, or those of the last turn."""
    state = _State(problem, item_LBS)
    idle = np.zeros(problem.num_cases, dtype=np.int64)
    for turn in range(MOST_TURNS * problem.num_bins):
        active = np.flatnonzero(idle < problem.num_bins + 1)
        if not active.size:
            break
        heaviest = state.load[active].argmax(axis=1)
        chosen = heaviest if turn % 2 else np.full(active.size, (turn // 2) % problem.num_bins)
        idle[active] = np.where(state.swap(active, chosen), 0, idle[active] + (0 if turn % 2 else 1))
    return state.item


class _State:
    """Placements, and what follows from them.

    Args:
        problem: The problem.
        item_LBS: Placements to start from.
    """

    def __init__(self, problem: ReplicaProblem, item_LBS: Ints) -> None:
        assert problem.affinity_LII is not None, "without affinities there is nothing to weigh"
        self.problem, self.affinity = problem, problem.affinity_LII
        self.item = np.array(item_LBS)
        self.share = share_LBS(problem.weight_LI, item_LBS)
        self.load = load_LB(problem.weight_LI, item_LBS)
        self.mean = np.maximum(self.load.mean(axis=1), 1e-300)
        self.part = 1.0 / copies_LI(item_LBS, problem.num_items)
        self.near = self.affinity @ room_share_LIR(problem, item_LBS)

    def swap(self, active: Ints, here: Ints) -> "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]":
        """Make the best swap with a slot of one bin in each active case; return in which there was one."""
        problem = self.problem
        rows, room = np.arange(active.size), problem.room_B
        items, shares, load = self.item[active], self.share[active], self.load[active]
        mine, my_shares, my_room = items[rows, here], shares[rows, here], room[here]
        # Axes of what follows: active case, bin, its slot, slot of this bin.
        change = my_shares[:, None, None, :] - shares[:, :, :, None]
        others = _heaviest_other(load, here)
        after = np.maximum(load[rows, here][:, None, None, None] - change, load[:, :, None, None] + change)
        after = np.maximum(after, others[:, :, None, None])
        gain = (load.max(axis=1)[:, None, None, None] - after) / self.mean[active][:, None, None, None]
        gain += problem.apart_weight * self._nearer(active, items, mine, my_room)
        same = items[:, :, :, None] == mine[:, None, None, :]
        gain[np.broadcast_to(same.any(axis=2)[:, :, None, :], gain.shape)] = -np.inf
        gain[np.broadcast_to(same.any(axis=3)[:, :, :, None], gain.shape)] = -np.inf
        gain[rows, here] = -np.inf
        if problem.family_I:
            gain[np.broadcast_to((room[None, :] != my_room[:, None])[:, :, None, None], gain.shape)] = -np.inf
        flat = gain.reshape(active.size, -1)
        best = flat.argmax(axis=1)
        helps = flat[rows, best] > HELPS
        for row in np.flatnonzero(helps).tolist():
            there, slot_there, slot_here = np.unravel_index(best[row], gain.shape[1:])
            self._make(int(active[row]), (int(here[row]), int(slot_here)), (int(there), int(slot_there)))
        return np.asarray(helps, dtype=np.bool_)

    def _nearer(self, active: Ints, items: Ints, mine: Ints, my_room: Ints) -> Floats:
        """Return how much more is together after each swap."""
        rows, room = np.arange(active.size), self.problem.room_B
        near, part, affinity = self.near[active], self.part[active], self.affinity[active]
        across = rows[:, None, None]
        mine_near = near[across[:, :, 0], mine]
        mine_gain = (
            mine_near[:, :, room]
            - mine_near[rows[:, None], np.arange(mine.shape[1])[None], my_room[:, None]][:, :, None]
        )
        mine_gain *= part[rows[:, None], mine][:, :, None]
        its_gain = near[across, items, my_room[:, None, None]] - near[across, items, room[None, :, None]]
        its_gain *= part[across, items]
        both = affinity[rows[:, None, None, None], items[:, :, :, None], mine[:, None, None, :]]
        both = both * part[across, items][:, :, :, None] * part[rows[:, None], mine][:, None, None, :]
        total = mine_gain.transpose(0, 2, 1)[:, :, None, :] + its_gain[:, :, :, None] - 2 * both
        total[np.broadcast_to((room[None, :] == my_room[:, None])[:, :, None, None], total.shape)] = 0.0
        nearer: Floats = total
        return nearer

    def _make(self, case: int, here: tuple[int, int], there: tuple[int, int]) -> None:
        """Swap the items of two slots, each a bin and its slot."""
        first, second = int(self.item[case][here]), int(self.item[case][there])
        moved = self.share[case][here] - self.share[case][there]
        self.load[case, here[0]] -= moved
        self.load[case, there[0]] += moved
        for array in (self.item[case], self.share[case]):
            array[here], array[there] = array[there], array[here]
        flow = (
            self.affinity[case, :, first] * self.part[case, first]
            - self.affinity[case, :, second] * self.part[case, second]
        )
        self.near[case, :, self.problem.room_B[here[0]]] -= flow
        self.near[case, :, self.problem.room_B[there[0]]] += flow


def _heaviest_other(load: Floats, here: Ints) -> Floats:
    """Return for each bin of each case the heaviest bin that is neither it nor `here`."""
    rows = np.arange(load.shape[0])
    left = np.array(load)
    left[rows, here] = -1.0
    first = left.argmax(axis=1)
    highest = left[rows, first]
    left[rows, first] = -1.0
    second = left.max(axis=1)
    other = np.repeat(highest[:, None], load.shape[1], axis=1)
    other[rows, first] = second
    highest_other: Floats = np.maximum(other, 0.0)
    return highest_other
