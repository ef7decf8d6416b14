"""What is asked of an expert placement, and the slots that a GPU may have."""

from dataclasses import dataclass

from planner.errors import InputError
from planner.experts.histogram import RoutingHistogram
from planner.experts.traffic import RouterShape

MOST_EXTRA_SLOTS = 8
"""Slots a GPU above the fewest that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotMemory:
    """What a slot takes, and what there is.

    Args:
        expert_bytes: Weights of one routed expert of one layer.
        free_bytes: Memory of a GPU that is left for copies, beside the experts that it holds without any; None where
            that is not known.
    """

    expert_bytes: int
    free_bytes: int | None


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
        traffic_weight: What it costs to split all pairs of a token's experts between nodes, in units of the mean load.
    """

    num_gpus: int
    gpus_per_node: int
    redundant: int | None = None
    memory: SlotMemory | None = None
    router: RouterShape | None = None
    keep_groups: bool = False
    traffic_weight: float = 0.0

    @property
    def num_nodes(self) -> int:
        """Return the nodes."""
        return self.num_gpus // self.gpus_per_node

    @property
    def num_groups(self) -> int:
        """Return the groups of experts; 1 where none are known."""
        return self.router.num_groups if self.router else 1


def check_request(request: ExpertRequest, histogram: RoutingHistogram) -> None:
    """Raise where a question contradicts itself or its histogram.

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
