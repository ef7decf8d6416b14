"""Prices a finished layout again, from scratch: every layer of every stage, operator by operator.

This is the independent check. It shares specs, graph, shard, memory, schedule and cost model with the search, but
neither its space, its tables, its formulation nor its solvers: nothing is vectorised here, so a mistake there shows up
as a gap between the searched and the re-evaluated time. What is the same object as before has its price: a layer under
the same recompute choice, and a stage of the same layers in the same order on a rank that costs the same.

A step is the simulated pipeline, from the first forward pass to the last rank's end, and then what all ranks wait for:
the gradient of a tied embedding, the gradient norm, the optimizer. Data-parallel collectives lengthen the first
forward and the last backward pass of each virtual stage by what nothing hides.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from planner.evaluation.assumptions import FP8_ASSUMPTION, UNEQUAL_NODES, layout_assumptions
from planner.evaluation.priced_step import (
    BUBBLE,
    DATA_PARALLEL,
    HOST,
    OPTIMIZER,
    Evaluator,
    SourceSeconds,
    priced_step,
    step_priced_by,
)
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.memory.terms import ASSUMED_SOURCES
from planner.models.graph import ModelGraph
from planner.models.required_flops import required_flops_per_sequence
from planner.plans.plan import MemoryLine, TimeLine
from planner.ranks.placement import PlacedModel
from planner.schedules.simulate import Timeline
from profiles.estimate import CostModel, Source
from profiles.hardware import Cluster
from profiles.unequal import UnequalCostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One layout, priced by simulation.

    Args:
        step_seconds: Time of one optimizer step.
        time: The step by term, on the rank with the most work.
        memory: The ledger.
        peak_memory_bytes: Largest phase of the heaviest rank.
        assumptions: What was assumed where no figure was known.
        timeline: The simulated pipeline.
        tail_communication_seconds: What all ranks exchange behind the last of them.
        tail_optimizer_seconds: The optimizer step behind that, what it waits for the host included.
        source_fractions: What part of the busiest rank's own time comes from where; the bubble, which follows from it,
            is left out.
    """

    step_seconds: float
    time: tuple[TimeLine, ...]
    memory: tuple[MemoryLine, ...]
    peak_memory_bytes: int
    assumptions: tuple[str, ...]
    timeline: Timeline
    tail_communication_seconds: float
    tail_optimizer_seconds: float
    source_fractions: Mapping[Source, float]


def simulated_step_seconds(placed: PlacedModel, cost_model: CostModel) -> float:
    """Return the step time of `evaluate` alone.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    return priced_step(placed, cost_model).simulated().step_seconds


def evaluate(placed: PlacedModel, cost_model: CostModel, *, memory: tuple[MemoryLine, ...] | None = None) -> Evaluation:
    """Return the price of `placed` by simulating its schedule.

    Args:
        placed: The layout.
        cost_model: Prices operations.
        memory: The ledger of a framework that keeps something else than the target; None for the target's.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    layout = placed.layout
    evaluator = Evaluator(placed, cost_model)
    simulated = step_priced_by(evaluator).simulated()
    step_seconds, timeline = simulated.step_seconds, simulated.timeline

    busiest = timeline.busiest_rank
    terms: defaultdict[str, float] = defaultdict(float)
    of_sources: SourceSeconds = defaultdict(float)
    for stage in simulated.stages[busiest :: layout.pp]:
        for term, seconds in stage.terms.items():
            terms[term] += seconds * layout.num_microbatches
        terms[DATA_PARALLEL] += stage.first_forward_extra_seconds + stage.last_backward_extra_seconds
        for source, seconds in stage.of_sources.items():
            of_sources[source] += seconds * layout.num_microbatches
        of_sources[stage.of_extra_source] += stage.first_forward_extra_seconds + stage.last_backward_extra_seconds
    of_sources[evaluator.worst_source(DATA_PARALLEL)] += simulated.tail_communication_seconds
    of_sources[evaluator.worst_source(OPTIMIZER)] += simulated.tail_optimizer_seconds
    of_sources[evaluator.worst_source(HOST)] += simulated.tail_host_seconds
    terms[DATA_PARALLEL] += simulated.tail_communication_seconds
    terms[OPTIMIZER] += simulated.tail_optimizer_seconds
    terms[HOST] += simulated.tail_host_seconds
    terms[BUBBLE] += step_seconds - sum(terms.values())
    if layout.pp > 1:
        evaluator.note(BUBBLE, Source.ANALYTIC, f"simulated {layout.schedule} schedule")

    memory = memory_ledger(placed) if memory is None else memory
    return Evaluation(
        step_seconds=step_seconds,
        time=tuple(
            TimeLine(term=term, seconds=seconds, source=_source_text(evaluator.notes.get(term, set())))
            for term, seconds in sorted(terms.items(), key=lambda item: (-item[1], item[0]))
            if seconds > 1e-9 * step_seconds
        ),
        memory=memory,
        peak_memory_bytes=peak_memory_bytes(memory),
        assumptions=_assumptions(evaluator, memory),
        timeline=timeline,
        tail_communication_seconds=simulated.tail_communication_seconds,
        tail_optimizer_seconds=simulated.tail_optimizer_seconds + simulated.tail_host_seconds,
        source_fractions={source: of_sources[source] / sum(of_sources.values()) for source in Source},
    )


def _source_text(notes: set[tuple[Source, str]]) -> str:
    return "; ".join(f"{source}: {note}" for source, note in sorted(notes))


def _assumptions(evaluator: Evaluator, memory: tuple[MemoryLine, ...]) -> tuple[str, ...]:
    """Return every figure that was assumed, each once."""
    found = {
        f"{term}: {note}"
        for term, notes in evaluator.notes.items()
        for source, note in notes
        if source is Source.ASSUMED
    }
    if evaluator.placed.workload.precision.is_fp8:
        found.add(FP8_ASSUMPTION)
    assumed = ASSUMED_SOURCES | evaluator.placed.capabilities.overheads.assumed
    found |= {f"memory, {line.term}: {line.source}" for line in memory if line.source in assumed}
    if isinstance(evaluator.cost_model, UnequalCostModel):
        found.add(UNEQUAL_NODES)
    found |= set(layout_assumptions(evaluator.placed))
    return tuple(sorted(found))


def model_flops_utilisation(placed: PlacedModel, graph: ModelGraph, cluster: Cluster, *, step_seconds: float) -> float:
    """Return required flops over what the GPUs could do in the step at the datasheet's dense rate.

    Recomputation does not count as required, nor does padding: its share of the tokens is taken off all flops. The
    rate is the one of the linear layers' format.
    """
    workload = placed.workload
    flops = required_flops_per_sequence(placed.model, graph, seq_len=workload.seq_len) * workload.global_batch_size
    dtype = workload.precision.gemm_dtype.value
    peak = cluster.device.dense_flops_per_second[dtype]
    if cluster.unequal is not None:
        of_nodes = [device.dense_flops_per_second[dtype] * count for device, count in cluster.device_counts]
        peak = sum(of_nodes) / cluster.num_nodes
    return flops * workload.useful_fraction / (step_seconds * cluster.world_size * peak)
