"""What each dimension of a point may be: divisors of real sizes, choices of recomputation, parts on the hosts."""

from dataclasses import dataclass
from functools import lru_cache

from planner.frameworks.capabilities import Capabilities
from planner.layout import (
    DRIVE_WEIGHTS,
    GPU_WEIGHTS,
    HOST_WEIGHTS,
    IN_TURN,
    ON_HOSTS,
    PIPELINED,
    Granularity,
    Recompute,
    even_counts,
)
from planner.memory.state_bytes import uses_precision_aware_optimizer
from planner.models.graph import ModelGraph, Module
from planner.models.specs import ModelSpec
from planner.offloading.states import SHARDED_WEIGHTS
from planner.requests.request import OFFLOADED_LAYERS, OFFLOADED_MODULES
from planner.requests.workload import AttentionKernel, TrainWorkload
from planner.search.space.points import Scope
from planner.search.space.space_rules import WHOLE, is_offloadable

LARGEST_ZERO_BY_LAYER = 2
"""With zero_stage 3 a backward pass hides two collectives: a step may end sooner where passes are longer, and no choice
of a layer is best by its own time."""

UNEVEN_VPP = (2, 4, 8)
"""Virtual stages of a rank that are searched although layers do not divide evenly over them; more bring little."""

OFFLOAD_PERCENTS = tuple(range(1, 101))
"""Parts of the optimizer's states that are searched in host memory."""

_DIMENSIONS = (
    "tp",
    "sequence_parallel",
    "cp",
    "ulysses",
    "pp",
    "vpp",
    "dp",
    "rank_order",
    "zero_stage",
    "state_replicas",
    "secondary_shard",
    "micro_batch_size",
    "recompute",
    "stages",
)


def dimensions(  # noqa: PLR0913 - one for each kind of offload
    graph: ModelGraph,
    *,
    with_offload: bool = False,
    with_parameters: bool = False,
    with_drives: bool = False,
    with_parameter_drives: bool = False,
    with_activations: bool = False,
    with_modules: bool = False,
) -> tuple[str, ...]:
    """Return the names of the dimensions that are searched for a model."""
    experts = ("ep", "etp") if graph.has_experts else ()
    hosted = {
        "optimizer_offload": with_offload,
        "parameter_offload": with_parameters,
        "drive_offload": with_drives,
        "parameter_drives": with_parameter_drives,
        OFFLOADED_LAYERS: with_activations,
        OFFLOADED_MODULES: with_modules,
    }
    return (*_DIMENSIONS, *experts, *(name for name, searched in hosted.items() if searched))


def offload_percents(scope: Scope) -> tuple[int, ...]:
    """Return the parts of the optimizer's states, in percent and above 0, that may be searched in host memory.

    What the user pins is searched even where rules forbid it, so that they are named.
    """
    pinned = scope.constraints.optimizer_offload
    if pinned is not None:
        return tuple(sorted({round(100 * fraction) for fraction in pinned} - {0}))
    if scope.constraints.asks_all_states:
        return (WHOLE,)
    return OFFLOAD_PERCENTS if scope.capabilities.offload_zero_stages and is_offloadable(scope.workload) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Where layouts with states on the hosts have the rest.

    Args:
        parameters: Where the weights lie.
        drives: How the nodes' drives take part in the optimizer step.
    """

    parameters: int
    drives: int

    @property
    def uses_drives(self) -> bool:
        """Return whether states or weights lie on drives."""
        return self.drives != ON_HOSTS or self.parameters == DRIVE_WEIGHTS


def tiers(scope: Scope) -> tuple[Tier, ...]:
    """Return where weights may lie beside optimizer states that are on the hosts, and whether drives may hold these.

    Those without drives first, and those with weights on drives last. Nothing where no states may. What the user pins
    is searched even where rules forbid it, so that they are named.
    """
    percents, constraints, target = offload_percents(scope), scope.constraints, scope.capabilities
    if not percents:
        return ()
    whole = percents[-1] == WHOLE
    weights: tuple[int, ...] = (GPU_WEIGHTS, HOST_WEIGHTS) if target.parameter_offload and whole else (GPU_WEIGHTS,)
    if constraints.parameter_offload is not None:
        weights = (HOST_WEIGHTS if constraints.parameter_offload else GPU_WEIGHTS,)
    ways: tuple[int, ...] = (ON_HOSTS,)
    if constraints.drive_offload:
        ways = (PIPELINED, IN_TURN)
    elif constraints.drive_offload is None and scope.has_drives and target.drive_offload and whole:
        ways = (ON_HOSTS, PIPELINED, IN_TURN)
    found = tuple(Tier(parameters=parameters, drives=drives) for drives in ways for parameters in weights)
    on_drives = tuple(Tier(parameters=DRIVE_WEIGHTS, drives=drives) for drives in ways)
    if constraints.parameter_drives:
        return on_drives
    is_open = constraints.parameter_drives is None and constraints.parameter_offload is None
    return found + on_drives if is_open and scope.has_drives and target.parameter_drives and whole else found


def offloaded_layer_counts(scope: Scope) -> tuple[int, ...]:
    """Return the numbers of layers, ascending and above 0, whose saved tensors may be searched in host memory.

    What the user pins is searched even where rules forbid it, so that they are named.
    """
    constraints = scope.constraints
    if not (scope.capabilities.activation_offload or constraints.asks_activations):
        return ()
    return tuple(count for count in range(1, scope.model.num_layers) if constraints.admits(OFFLOADED_LAYERS, count))


def least_offload_percent(scope: Scope) -> int:
    """Return the least part of the optimizer's states in host memory that the user allows, in percent."""
    if scope.constraints.asks_all_states:
        return WHOLE
    return round(100 * min(scope.constraints.optimizer_offload or (0.0,)))


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """Return the divisors of `number`, ascending."""
    small = [candidate for candidate in range(1, int(number**0.5) + 1) if number % candidate == 0]
    return tuple(sorted({*small, *(number // candidate for candidate in small)}))


def interleaved_counts(num_layers: int, num_stages: int) -> tuple[int, ...] | None:
    """Return the layers of each virtual stage when stages are interleaved; None for more stages than layers.

    Where the count allows all alike, or one fewer beside the head, or one fewer beside the embedding and the head: the
    splits that count embedding and head as a layer each, as Megatron-LM's
    `--account-for-embedding-in-pipeline-split` and `--account-for-loss-in-pipeline-split` do. Else as even as can be,
    the light stages at both ends.
    """
    exact = _with_equal_stages(num_layers, num_stages)
    if exact is not None:
        return exact
    return even_counts(num_layers, num_stages) if num_stages <= num_layers else None


def _with_equal_stages(num_layers: int, num_stages: int) -> tuple[int, ...] | None:
    for ends in ((), (-1,), (0, -1)):
        whole, remainder = divmod(num_layers + len(ends), num_stages)
        if not remainder and (whole > 1 or not ends):
            counts = [whole] * num_stages
            for end in ends:
                counts[end] -= 1
            return tuple(counts)
    return None


def virtual_degrees(num_layers: int, pp: int) -> tuple[int, ...]:
    """Return the vpp at which interleaved stages come out even, and a few at which they do not; 1 always."""
    if pp == 1:
        return (1,)
    most = max(num_layers // pp, 1)
    return tuple(
        vpp
        for vpp in range(1, most + 1)
        if vpp == 1 or vpp in UNEVEN_VPP or _with_equal_stages(num_layers, pp * vpp) is not None
    )


def recompute_choices(graph: ModelGraph, workload: TrainWorkload, capabilities: Capabilities) -> tuple[Recompute, ...]:
    """Return the recompute choices worth searching, the most frugal one last; those with modules come as sets.

    Recomputing the attention core frees memory only when its scores are kept (an unfused kernel). Of the experts'
    activation and the whole feed-forward one choice is made; dense and expert layers are recomputed alike. Norms count
    where they are layers of their own (latent attention, experts).
    """
    choices = [Recompute(granularity=Granularity.NONE)]
    if capabilities.selective_recompute:
        present = graph.modules
        unfused = workload.attention_kernel is AttentionKernel.UNFUSED
        mixers: list[tuple[Module, ...]] = [()]
        if unfused and Module.CORE_ATTENTION in present:
            mixers.append((Module.CORE_ATTENTION,))
        if Module.MLA_UP_PROJECTION in present:
            mixers.append((Module.MLA_UP_PROJECTION,))
        forwards: list[tuple[Module, ...]] = [()]
        if Module.MOE_ACTIVATION in present:
            forwards.append((Module.MOE_ACTIVATION,))
        whole = tuple(module for module in (Module.MLP, Module.MOE) if module in present)
        if whole:
            forwards.append(whole)
        norms: list[tuple[Module, ...]] = [(), (Module.LAYER_NORM,)] if Module.LAYER_NORM in present else [()]
        choices += [
            Recompute(granularity=Granularity.SELECTIVE, modules=tuple(module.value for module in modules))
            for forward in forwards
            for mixer in mixers
            for norm in norms
            if (modules := (*mixer, *norm, *forward))
        ]
    if capabilities.per_layer_recompute:
        choices.append(Recompute(granularity=Granularity.PER_LAYER))
    choices.append(Recompute(granularity=Granularity.FULL))
    return tuple(choices)


def partial_recompute_layers(model: ModelSpec, *, num_stages: int) -> tuple[int, ...]:
    """Return how many layers of each virtual stage may be recomputed while the others keep everything.

    At most as many as the smallest even stage holds, and fewer than all. Where layers differ, only without a pipeline:
    what the first layers of a stage keep then depends on where it begins, which no problem of the solvers says.
    """
    most = model.num_layers // num_stages
    if len(model.distinct_blocks) > 1 and num_stages > 1:
        return ()
    return tuple(count for count in range(1, most + 1) if count * num_stages < model.num_layers)


def zero_stage_alone(workload: TrainWorkload, capabilities: Capabilities) -> int:
    """Return the zero_stage of one replica alone: it says nothing, but some optimizers and targets want one."""
    return max(int(uses_precision_aware_optimizer(workload)), capabilities.least_zero_stage)


def zero_stages_alone(
    workload: TrainWorkload, capabilities: Capabilities, *, offloads: bool, sharded: bool = False
) -> tuple[int, ...]:
    """Return the zero_stages of one replica alone that are not the same thing under two names.

    Args:
        workload: The training run.
        capabilities: What the target can run.
        offloads: A part of the states is on the host, which a sharded optimizer alone has.
        sharded: Sharded weights alone will do: they lie on the host too, or states on drives.
    """
    if sharded:
        return (SHARDED_WEIGHTS,)
    least = max(zero_stage_alone(workload, capabilities), int(offloads))
    apart = workload.gradient_dtype is not workload.precision.parameter_dtype
    return (least, 2) if capabilities.half_gradients and apart else (least,)
