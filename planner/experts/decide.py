"""The main path of expert placement: a histogram and a question to slots, experts on them, and what that gains.

How many slots a GPU has: those of the present placement; else the fewest with which loads are within `CLOSE` of the
best that all the free memory buys. Then, in turn, where they are asked for: what traffic weighs, and what moves cost.
"""

from dataclasses import dataclass

from planner.errors import BrokenPromiseError, InputError
from planner.experts.following import followed
from planner.experts.front import FrontPoint, candidates, front, weighed
from planner.experts.histogram import Ints, RoutingHistogram
from planner.experts.moving import Move, chosen_move, moves
from planner.experts.placement import Placement, in_order, problem_of, scored
from planner.experts.request import ExpertRequest, check_request, slot_choices
from solvers.replicas.check import broken_constraints
from solvers.replicas.solve import solve

CLOSE = 0.01
"""Share by which loads may be above the best that could be had with more slots, or more moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPlan:
    """The whole answer.

    Args:
        request: What was asked.
        histogram: What it was asked of.
        before: The present placement; without one, experts in their order, as few on a GPU as there can be.
        choices: The best placement for each number of slots looked at, the fewest first.
        chosen: Which number of slots.
        front: The front of load and traffic; empty where it was not asked for.
        moves: Ways to go on from the present placement; empty without one.
        chosen_move: Which of them.
        best: The placement.
        one_more: The best placement with one slot more on every GPU; None where there is no such slot to ask of.
    """

    request: ExpertRequest
    histogram: RoutingHistogram
    before: Placement
    choices: tuple[Placement, ...]
    chosen: int
    front: tuple[FrontPoint, ...]
    moves: tuple[Move, ...]
    chosen_move: int
    best: Placement
    one_more: Placement | None

    @property
    def slot_bytes(self) -> int | None:
        """Return what one slot of every layer takes on a GPU; None where that is not known."""
        return self.copies_bytes(len(self.histogram.counted_layers))

    def copies_bytes(self, copies: int) -> int | None:
        """Return what copies of one expert of one layer take; None where that is not known."""
        memory = self.request.memory
        return None if memory is None else copies * memory.expert_bytes

    def redundant_bytes_per_gpu(self, placement: Placement) -> int | None:
        """Return what the redundant experts of all layers take on a GPU; None where that is not known."""
        taken = self.copies_bytes(placement.redundant * len(self.histogram.counted_layers))
        return None if taken is None else taken // self.request.num_gpus


def plan_experts(histogram: RoutingHistogram, request: ExpertRequest, present_LGS: Ints | None = None) -> ExpertPlan:
    """Return which expert stands on which GPU, in how many copies.

    Args:
        histogram: How often each expert is chosen.
        request: What is asked.
        present_LGS: Where the experts stand now; None where they stand nowhere.

    Raises:
        InputError: The question contradicts itself, the histogram or the present placement.
    """
    check_request(request, histogram, present_slots=None if present_LGS is None else present_LGS.shape[2])
    slots = slot_choices(request, histogram) if present_LGS is None else (int(present_LGS.shape[2]),)
    choices = tuple(balanced(histogram, request, count) for count in slots)
    least = min(choice.mean_imbalance for choice in choices)
    chosen = next(index for index, choice in enumerate(choices) if choice.mean_imbalance <= least * (1 + CLOSE))
    best = choices[chosen]
    points: tuple[FrontPoint, ...] = ()
    if request.traffic_weight is not None:
        if best.traffic_L is None:
            raise InputError(
                "What is sent between nodes is not known.",
                hint="Give --experts-per-token or --model, or a histogram with coactivation.",
            )
        found = (best,) if request.keep_groups else candidates(histogram, request, best.slots_per_gpu)
        points = front(histogram, request, found)
        best = weighed(histogram, request, found, request.traffic_weight)
    if request.follow:
        placed = followed(histogram, request)[histogram.counted_layers]
        mean = histogram.tokens_LE[histogram.counted_layers].sum(axis=1) / request.num_gpus
        best = scored(histogram, request, placed, best.bound_L * mean)
    ways: tuple[Move, ...] = ()
    way = 0
    if present_LGS is None:
        fewest = -(-histogram.num_experts // request.num_gpus)
        before = scored(histogram, request, in_order(histogram, request, fewest)[histogram.counted_layers])
    else:
        ways = moves(histogram, request, present_LGS, best)
        way = chosen_move(ways, close=CLOSE, most_copies=request.most_moved_copies, copy_weight=request.copy_weight)
        before, best = ways[0].placement, ways[way].placement
    _check(histogram, request, best, kept_twice=bool(ways) and way == 0)
    return ExpertPlan(
        request=request,
        histogram=histogram,
        before=before,
        choices=choices,
        chosen=chosen,
        front=points,
        moves=ways,
        chosen_move=way,
        best=best,
        one_more=None if present_LGS is not None or request.follow else _one_more(histogram, request, choices, chosen),
    )


def _one_more(
    histogram: RoutingHistogram, request: ExpertRequest, choices: tuple[Placement, ...], chosen: int
) -> Placement | None:
    """Return the best placement with one slot more on every GPU than was chosen; None where no expert is left."""
    if chosen + 1 < len(choices):
        return choices[chosen + 1]
    slots = choices[chosen].slots_per_gpu + 1
    most = histogram.num_experts // request.num_nodes if request.keep_groups else histogram.num_experts
    return balanced(histogram, request, slots) if slots <= most else None


def balanced(histogram: RoutingHistogram, request: ExpertRequest, slots_per_gpu: int) -> Placement:
    """Return the placement with the lightest heaviest GPU that was found with so many slots a GPU."""
    placed = solve(problem_of(histogram, request, slots_per_gpu))
    return scored(histogram, request, placed.item_LBS, placed.least_load_L)


def _check(histogram: RoutingHistogram, request: ExpertRequest, best: Placement, *, kept_twice: bool) -> None:
    """Raise where a placement of ours breaks what was asked; one that is kept as it was may hold an expert twice."""
    problem = problem_of(histogram, request, best.slots_per_gpu)
    broken = set(broken_constraints(problem, best.expert_LGS[histogram.counted_layers]))
    if broken - ({"twice on a bin"} if kept_twice else set()):
        raise BrokenPromiseError(f"a placement breaks: {', '.join(sorted(broken))}")
