"""The memory of one layout that the user names: no cluster, no search, no time."""

from dataclasses import dataclass, fields, replace

from planner.errors import InputError
from planner.frameworks.capabilities import ANY
from planner.inputs.contradictions import length_error, precision_error
from planner.layout import Granularity, Layout, Recompute, even_counts, stages_from_counts
from planner.memory.ledger import memory_ledger, memory_limit_bytes, peak_memory_bytes
from planner.models.graph import ModelGraph
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.plans.plan import MemoryLine
from planner.ranks.placement import place
from planner.requests.request import MAX_DEGREE, Constraints
from planner.requests.workload import MAX_LENGTH, TrainWorkload
from planner.search.space.dimensions import recompute_choices
from planner.search.space.enumeration import broken_rules
from planner.search.space.points import Scope, point_of
from planner.search.splits.formulate import skeleton
from profiles.hardware import Device

TOO_MANY_STAGES = "more pipeline stages than layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """The degrees of a layout, as far as they decide memory.

    Args:
        tp: Tensor-parallel degree.
        sequence_parallel: Norms and residuals are split over tp.
        pp: Pipeline-parallel degree.
        vpp: Virtual stages per pipeline rank.
        dp: Data-parallel degree.
        zero_stage: What is split over dp.
        micro_batch_size: Sequences of one micro-batch.
        num_microbatches: Micro-batches of one step on one replica.
        recompute: How much is recomputed.
        cp: Context-parallel degree, as a ring.
        ep: Expert-parallel degree.
        etp: Tensor-parallel degree of the experts.
    """

    tp: int
    sequence_parallel: bool
    pp: int
    vpp: int
    dp: int
    zero_stage: int
    micro_batch_size: int
    num_microbatches: int
    recompute: Granularity
    cp: int = 1
    ep: int = 1
    etp: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTable:
    """The memory of one layout on one kind of GPU.

    Args:
        layout: The layout, layers placed.
        lines: The ledger.
        limit_bytes: What each GPU may use, headroom taken off.
    """

    layout: Layout
    lines: tuple[MemoryLine, ...]
    limit_bytes: int

    @property
    def fits(self) -> bool:
        """Return whether every rank stays below the limit in every phase."""
        return peak_memory_bytes(self.lines) <= self.limit_bytes


def memory_table(
    model: ModelSpec, device: Device, workload: TrainWorkload, degrees: Degrees, *, memory_headroom: float
) -> MemoryTable:
    """Return the memory of `model` under `degrees`, with layers spread as evenly as they can be.

    Args:
        model: The model.
        device: The GPU.
        workload: The training run; its batch is what the degrees say.
        degrees: The layout's degrees.
        memory_headroom: Fraction of the GPU's memory that is left free.

    Raises:
        InputError: The degrees break a rule of the planner's own layouts.
    """
    error = precision_error(device, workload.precision)
    if error is not None:
        raise error
    error = length_error(model, workload.seq_len)
    if error is not None:
        raise error
    _require_sizes(workload, degrees)
    if degrees.recompute is Granularity.PER_LAYER:
        raise InputError(
            "What is recomputed of each layer is a choice of the search.",
            hint="Give none, selective or full; `shardwright plan` with `target: any` searches the rest.",
        )
    graph = build_graph(model, workload)
    _require_legal(model, graph, workload, degrees)
    unplaced = skeleton(
        tp=degrees.tp,
        sequence_parallel=degrees.sequence_parallel,
        cp=degrees.cp,
        pp=degrees.pp,
        vpp=degrees.vpp,
        dp=degrees.dp,
        ep=degrees.ep,
        etp=degrees.etp,
        zero_stage=degrees.zero_stage,
        micro_batch_size=degrees.micro_batch_size,
        num_microbatches=degrees.num_microbatches,
        recompute=_recompute(graph, workload, degrees.recompute),
    )
    counts = even_counts(model.num_layers, degrees.pp * degrees.vpp)
    layout = replace(unplaced, stages=stages_from_counts(counts))
    placed = place(model, graph, layout, workload, ANY)
    return MemoryTable(
        layout=layout,
        lines=memory_ledger(placed),
        limit_bytes=memory_limit_bytes(device.memory_bytes, memory_headroom),
    )


def _recompute(graph: ModelGraph, workload: TrainWorkload, granularity: Granularity) -> Recompute:
    """Return the first choice of the search with this granularity."""
    return next(choice for choice in recompute_choices(graph, workload, ANY) if choice.granularity is granularity)


def _require_sizes(workload: TrainWorkload, degrees: Degrees) -> None:
    """Raise for more GPUs or sequences than any run has; beyond them numbers overflow."""
    num_stage_gpus = degrees.tp * degrees.cp * degrees.dp
    for what, value, largest in (
        ("tp * cp * pp * dp", num_stage_gpus * degrees.pp, MAX_DEGREE),
        ("vpp", degrees.vpp, MAX_DEGREE),
        ("the batch of one step", workload.global_batch_size, MAX_LENGTH),
        ("seq_len", workload.seq_len, MAX_LENGTH),
    ):
        if value > largest:
            raise InputError(f"{what} = {value} is out of range.", hint=f"Give at most {largest:,}.")
    if num_stage_gpus % (degrees.etp * degrees.ep):
        raise InputError(
            f"etp * ep = {degrees.etp * degrees.ep} does not divide tp * cp * dp = {num_stage_gpus}.",
            hint="Change one of the degrees: both grids are over the same GPUs.",
        )


def _require_legal(model: ModelSpec, graph: ModelGraph, workload: TrainWorkload, degrees: Degrees) -> None:
    """Raise for every rule of the search's space that the degrees break."""
    given = {entry.name: int(getattr(degrees, entry.name)) for entry in fields(Degrees) if entry.name != "recompute"}
    point = point_of(**given)
    scope = Scope(
        model=model,
        graph=graph,
        num_gpus=degrees.tp * degrees.cp * degrees.pp * degrees.dp,
        fast_domain_size=1,
        workload=workload,
        constraints=Constraints(),
        capabilities=ANY,
    )
    broken = list(broken_rules(point, scope))
    if degrees.pp > model.num_layers:
        broken = [TOO_MANY_STAGES, *(rule for rule in broken if "stages than layers" not in rule)]
    if degrees.vpp > 1 and degrees.pp == 1:
        broken.append("virtual stages need pp of at least 2")
    if degrees.ep * degrees.etp > 1 and not model.has_experts:
        broken.append("ep and etp lay out routed experts, and it has none")
    if broken:
        raise InputError(
            f"{model.name} cannot be laid out like this: {'; '.join(broken)}.", hint="Change one of the degrees."
        )
