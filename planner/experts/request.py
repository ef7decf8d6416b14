"""What is asked of an expert placement, and the slots that a GPU may have."""

from dataclasses import dataclass

from planner.errors import InputError
from planner.experts.histogram import RoutingHistogram
from planner.experts.traffic import RouterShape
from planner.units import GIB

MOST_EXTRA_SLOTS = 8
"""Slots a GPU above the fewest that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotMemory:
    """What a slot takes, and what there is.

    Args:
        expert_bytes: Weights of one routed expert of one layer.
        free_bytes: Memory of a GPU that is left for copies, beside the experts that it holds without any; None where
            that is not known.
        assumed: How the bytes of an expert were come by, where they were not said; empty where they were.
    """

    expert_bytes: int
    free_bytes: int | None
    assumed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRequest:
    """One question.

    Args:
        num_gpus: GPUs that the experts of a layer are spread over.
        gpus_per_node: GPUs of a node.
        redundant: Copies beside the experts of a layer; None lets it be chosen under `memory`.
        memory: What a slot takes; None where it is not known.
        router: How a token chooses; None where it is not known, and then nothing is said of traffic.
        keep_groups: The copies of all experts of a group stand in one node.
        traffic_weight: What a token's traffic between nodes weighs against the load over the mean; None looks at loads
            alone.
        follow: Experts that follow one another stand together, whatever they carry.
        most_moved_bytes: Weights that may be moved from the present placement; None for any.
        move_weight: What a GiB that is moved to a GPU, in the mean of all, weighs against the load over the mean; None
            takes the fewest moves that are as good as any.
    """

    num_gpus: int
    gpus_per_node: int
    redundant: int | None = None
    memory: SlotMemory | None = None
    router: RouterShape | None = None
    keep_groups: bool = False
    traffic_weight: float | None = None
    follow: bool = False
    most_moved_bytes: int | None = None
    move_weight: float | None = None

    @property
    def copy_weight(self) -> float | None:
        """Return what a copy that is moved weighs against the load over the mean; None where moves weigh nothing."""
        if self.move_weight is None:
            return None
        assert self.memory is not None, "a request has been checked"
        return self.move_weight * self.memory.expert_bytes / GIB / self.num_gpus

    @property
    def num_nodes(self) -> int:
        """Return the nodes."""
        return self.num_gpus // self.gpus_per_node

    @property
    def num_groups(self) -> int:
        """Return the groups of experts; 1 where none are known."""
        return self.router.num_groups if self.router else 1

    @property
    def most_moved_copies(self) -> int | None:
        """Return the copies of one expert of one layer that may be moved; None for any number."""
        if self.most_moved_bytes is None:
            return None
        assert self.memory is not None, "a request has been checked"
        return self.most_moved_bytes // self.memory.expert_bytes


def check_request(request: ExpertRequest, histogram: RoutingHistogram, *, present_slots: int | None = None) -> None:
    """Raise where a question contradicts itself, its histogram or the slots of the present placement.

    Raises:
        InputError: It does.
    """
    experts, gpus = histogram.num_experts, request.num_gpus
    if gpus % request.gpus_per_node:
        raise InputError(
            f"{gpus} GPUs are no whole number of nodes of {request.gpus_per_node}.",
            hint="Give --gpus-per-node a divisor of --gpus.",
        )
    if request.router is not None:
        _check_router(request.router, experts)
    if request.keep_groups:
        _check_groups(request)
    if request.most_moved_bytes is not None or request.move_weight is not None:
        _check_moves(request, present_slots)
    if request.follow and (request.keep_groups or request.traffic_weight is not None or present_slots is not None):
        raise InputError(
            "Experts that follow one another are placed by that alone.",
            hint="Leave --keep-groups, --traffic-weight and --present out, or --follow.",
        )
    if present_slots is not None:
        redundant = present_slots * gpus - experts
        if request.redundant not in {None, redundant}:
            raise InputError(
                f"The present placement has {redundant} redundant experts, not {request.redundant}.",
                hint="Leave --redundant out, or place without --present.",
            )
        return
    if request.redundant is None and (request.memory is None or request.memory.free_bytes is None):
        raise InputError(
            "How many redundant experts fit is not known.",
            hint="Give --redundant; or --free, with --expert-size or --model, so that it can be chosen.",
        )
    if request.redundant is not None and (experts + request.redundant) % gpus:
        up = -(experts + request.redundant) % gpus
        fitting = sorted({count for count in (request.redundant + up - gpus, request.redundant + up) if count >= 0})
        raise InputError(
            f"{experts} experts and {request.redundant} copies do not divide over {gpus} GPUs.",
            hint=f"--redundant {' or '.join(str(count) for count in fitting)} would do.",
        )


def _check_moves(request: ExpertRequest, present_slots: int | None) -> None:
    if present_slots is None:
        raise InputError(
            "Moves are bounded or weighed, and it is not said from where.",
            hint="Give --present. Engines that start read every expert once, wherever it goes: that weighs nothing.",
        )
    if request.memory is None:
        raise InputError(
            "Moves are bounded or weighed, and it is not said what an expert takes.",
            hint="Give --expert-size, or --model for bf16.",
        )


def _check_router(router: RouterShape, experts: int) -> None:
    if router.experts_per_token > experts:
        raise InputError(f"A token cannot choose {router.experts_per_token} of {experts} experts.")
    if experts % router.num_groups or router.groups_per_token > router.num_groups:
        raise InputError(
            f"{router.groups_per_token} of {router.num_groups} groups do not fit {experts} experts.",
            hint="Groups are equally large, and a token chooses no more of them than there are.",
        )


def _check_groups(request: ExpertRequest) -> None:
    if request.num_groups == 1:
        raise InputError("There are no groups to keep.", hint="Give --groups, or leave --keep-groups out.")
    if request.num_groups % request.num_nodes:
        raise InputError(
            f"{request.num_groups} groups do not divide over {request.num_nodes} nodes.",
            hint="Leave --keep-groups out: experts may then stand on any node.",
        )


def slot_choices(request: ExpertRequest, histogram: RoutingHistogram) -> tuple[int, ...]:
    """Return the numbers of slots a GPU that are looked at, the fewest first.

    Raises:
        InputError: There are none.
    """
    experts, gpus = histogram.num_experts, request.num_gpus
    most = experts // request.num_nodes if request.keep_groups else experts
    if request.redundant is not None:
        slots = (experts + request.redundant) // gpus
        if slots > most:
            raise InputError(
                f"{slots} slots on each GPU are more than there are experts to stand on them, {most}.",
                hint=f"--redundant {most * gpus - experts} is the most.",
            )
        return (slots,)
    memory = request.memory
    assert memory is not None, "a request has been checked"
    assert memory.free_bytes is not None, "a request has been checked"
    fewest = -(-experts // gpus)
    fitting = memory.free_bytes // (memory.expert_bytes * len(histogram.counted_layers))
    return tuple(range(fewest, min(fewest + min(fitting, MOST_EXTRA_SLOTS), most) + 1))
