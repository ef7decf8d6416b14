"""From the placement that runs now to a better one: what moving few copies gains, beside placing all anew.

`solvers.replicas.moves` makes the steps. A new placement gets its GPUs named so that most copies stay. What is moved
are the weights of every copy that a GPU holds and did not hold before.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planner.errors import InputError, Location
from planner.experts.histogram import Ints, RoutingHistogram
from planner.experts.placement import Placement, problem_of, scored
from planner.experts.request import ExpertRequest
from solvers.replicas.check import broken_constraints
from solvers.replicas.moves import matched, moved_L, steps

STEPS = (1, 2, 4, 8, 16, 32, 64)
"""Steps of each layer after which the placement is shown."""
BROKEN: Mapping[str, str] = {
    "shape": "does not have as many slots on each GPU",
    "every item": "leaves an expert out",
    "twice on a bin": "holds an expert twice on a GPU",
    "family apart": "has copies of one group in several nodes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One way to go on from the present placement.

    Args:
        name: What it is, in words.
        placement: What comes of it.
        copies: Copies that are moved, of all layers.
    """

    name: str
    placement: Placement
    copies: int


def moves(histogram: RoutingHistogram, request: ExpertRequest, present_LGS: Ints, anew: Placement) -> tuple[Move, ...]:
    """Return ways to go on, from keeping everything to placing everything anew.

    Raises:
        InputError: The present placement breaks what was asked.
    """
    layers = histogram.counted_layers
    before = present_LGS[layers]
    problem = problem_of(histogram, request, before.shape[2])
    broken = broken_constraints(problem, before)
    # Two copies on one GPU are the present placement's own fault; steps leave them where they are.
    if broken and set(broken) != {"twice on a bin"}:
        raise InputError(f"The present placement {BROKEN[broken[0]]}.")
    bound = anew.bound_L * problem.weight_LI.sum(axis=1) / request.num_gpus
    found = [Move(name="keep", placement=scored(histogram, request, before, bound), copies=0)]
    if not broken:
        for number, placed in enumerate(steps(problem, before, most=max(STEPS)), start=1):
            if number in STEPS:
                copies = int(moved_L(placed, before).sum())
                name = f"{number} step{'s' if number > 1 else ''} a layer"
                found.append(Move(name=name, placement=scored(histogram, request, placed, bound), copies=copies))
    rooms = request.num_nodes if request.keep_groups or request.router is not None else 1
    placed = matched(anew.expert_LGS[layers], before, num_rooms=rooms)
    copies = int(moved_L(placed, before).sum())
    found.append(Move(name="all anew", placement=scored(histogram, request, placed, bound), copies=copies))
    return tuple(found)


def chosen_move(
    found: tuple[Move, ...], *, close: float, most_copies: int | None, copy_weight: float | None = None
) -> int:
    """Return the fewest moves that are within a share `close` of the best of those that may be made.

    Where a copy that is moved has a weight, those with the least load over the mean plus what they weigh.
    """
    allowed = [index for index, move in enumerate(found) if most_copies is None or move.copies <= most_copies]
    if copy_weight is not None:
        totals = {index: found[index].placement.mean_imbalance + copy_weight * found[index].copies for index in allowed}
        return min(totals, key=lambda index: (totals[index], index))
    least = min(found[index].placement.mean_imbalance for index in allowed)
    good = [index for index in allowed if found[index].placement.mean_imbalance <= least * (1 + close)]
    return min(good, key=lambda index: (found[index].copies, index))


def present_map(values: object, histogram: RoutingHistogram, request: ExpertRequest, *, file: str) -> Ints:
    """Return the placement that a physical-to-logical map says.

    Raises:
        InputError: It is no such map of this histogram's layers on this many GPUs.
    """
    try:
        found = np.array(values)
    except ValueError:
        found = np.empty(0)
    if found.ndim != 2 or found.dtype.kind != "i":
        raise InputError(f"{file}: physical_to_logical_map is no list of layers, each a list of experts.")
    if found.shape[0] != histogram.num_layers or found.shape[1] % request.num_gpus or not found.size:
        raise InputError(
            f"{file}: {found.shape[0]} layers of {found.shape[1]} slots are not {histogram.num_layers} layers on "
            f"{request.num_gpus} GPUs."
        )
    if found.min() < 0 or found.max() >= histogram.num_experts:
        layer, slot = np.argwhere((found < 0) | (found >= histogram.num_experts))[0].tolist()
        raise InputError(
            f"{found[layer, slot]} is no expert: they are numbered 0 to {histogram.num_experts - 1}.",
            location=Location(file=file, path=f"physical_to_logical_map[{layer}][{slot}]"),
        )
    placed: Ints = found.reshape(histogram.num_layers, request.num_gpus, -1).astype(np.int64)
    return placed
