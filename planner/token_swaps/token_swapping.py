"""What dividing tokens between host memory and computing again would make of a plan's layouts.

The division is MEMO's (Zhao et al., SIGMOD 2025, arXiv 2407.12117, section 4.1; `planner.token_swaps.token_choices`),
chosen by a mixed-integer programme over all pipeline ranks together (`planner.token_swaps.token_problem`) for the least
time that copies and computing again add under the memory of GPUs and hosts. MEMO itself takes the largest alpha whose
copies hide under a layer's forward pass and fit the host; a test holds the two against each other where that is the
best there is.

No target can say it, so it is shown as what the target costs, and never planned:

- Megatron-LM (main of August 2026) moves whole tensors of named modules; its `--activation-offload-fraction` is a part
  of the groups of a micro-batch, in their order, "not a byte fraction" (docs/user-guide/features/
  fine_grained_activation_offloading.md; `PipelineOffloadManager` of core/pipeline_parallel/
  fine_grained_activation_offload.py switches groups off), and recomputation is of whole modules;
- Transformer Engine (main of August 2026) decides tensor by tensor (`OffloadableLayerState._check_if_offload` of
  pytorch/cpu_offload.py), whole layers at a time, and Megatron-LM refuses that beside recomputation;
- DeepSpeed (master of August 2026) moves the inputs of checkpointed layers (`cpu_checkpointing`), or, in
  `FPDT_Attention` of sequence/fpdt_layer.py, all chunks of a sequence (`cpu_offloading`), none or all.

Of a layout everything stays as it is but what it recomputes and what of its activations waits on the host. Its stages
take longer by what the slots of the answer take, and the pipeline is simulated with that. Data-parallel collectives are
hidden by what they were hidden by before. Slots hold for the steady phase of the pipeline
(`planner.token_swaps.token_slots`).
"""

from dataclasses import dataclass, replace

from planner.evaluation.priced_step import PricedStep, priced_step
from planner.frameworks.capabilities import capabilities_of
from planner.layout import Granularity, Layout, Recompute
from planner.memory.host import reserve
from planner.memory.ledger import activation_room_bytes, memory_ledger, peak_memory_bytes
from planner.models.layers import build_graph
from planner.plans.choices import RankTokens, SwappedTokens, TokenSwapping
from planner.plans.plan import Plan
from planner.ranks.placement import PlacedModel, place
from planner.schedule_views.offloaded_schedules import room_on_host_bytes
from planner.token_swaps.token_choices import COMPUTES_AGAIN, TokenChoice, copies_of, token_layer, writes_scores
from planner.token_swaps.token_problem import TokenCase, TokenProblem, TokenStage, base_seconds
from planner.units import GIB
from profiles.estimate import CostModel, Source
from profiles.hardware import Cluster
from profiles.host import sockets_of_node
from profiles.planned import cost_model_on
from solvers.errors import SolverError
from solvers.paced.registry import divide_paced
from solvers.paced.tidy import tidied_paced
from solvers.shares.problem import Shares, SharesLimits
from solvers.solution import Status

MOST_LAYOUTS = 2
"""Layouts of a plan that are priced, best first."""

UNEQUAL = "nodes that differ are not priced with swapped tokens"
SCORES = "its attention writes scores to memory for every token"
FULL = "no division of its tokens fits into the GPUs and their hosts"
NOTHING = "its GPUs have two layers each, which stay where they are"

_LIMITS = SharesLimits(max_nodes=200)
"""Enough for one kind of layer a rank; of three kinds on each of four ranks some ten-thousandths are left open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divided:
    """A layout whose tokens are divided.

    Args:
        placed: The layout without anything recomputed or on the host.
        problem: What was asked.
        answer: How tokens are divided.
        priced: The parts of its step, copies and computing again in the passes.
        again_seconds: What the busiest rank computes again in a step.
        waiting_seconds: What copies add to the passes of the rank that waits longest, in a step.
    """

    placed: PlacedModel
    problem: TokenProblem
    answer: Shares
    priced: PricedStep
    again_seconds: float
    waiting_seconds: float


class NotDividedError(Exception):
    """The tokens of a layout cannot be divided."""


def with_token_swapping(plan: Plan) -> Plan:
    """Return a plan with what its layouts would do with divided tokens.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    if not plan.plans:
        return plan
    capabilities = capabilities_of(plan.cluster, plan.request.target)
    graph = build_graph(plan.model, plan.request.workload, eager=capabilities.eager)
    cost_model = cost_model_on(plan.cluster, capabilities.software)
    priced: list[SwappedTokens] = []
    left_out: dict[str, str] = {}
    for index, planned in enumerate(plan.plans[:MOST_LAYOUTS]):
        if plan.cluster.unequal is not None:
            left_out[str(index)] = UNEQUAL
            continue
        placed = place(plan.model, graph, unrecomputed(planned.layout), plan.request.workload, capabilities)
        try:
            found = divided(placed, cost_model, plan.cluster, limit_bytes=planned.memory_limit_bytes)
        except NotDividedError as error:
            left_out[str(index)] = str(error)
            continue
        priced.append(_described(found, index=index))
    swapping = TokenSwapping(
        priced=tuple(priced),
        left_out=left_out,
        assumptions=_assumptions(cost_model, plan.cluster) if priced else (),
    )
    return replace(plan, token_swapping=swapping)


def _assumptions(cost_model: CostModel, cluster: Cluster) -> tuple[str, ...]:
    """Return what is assumed of hosts and of the ways there."""
    link, memory = (cost_model.compute(copy) for copy in copies_of(GIB))
    named = {"links": link, "memory of hosts": memory}
    found = {f"{name}: {copy.note}" for name, copy in named.items() if copy.source is Source.ASSUMED}
    found |= {f"host memory, {line.term}: {line.source}" for line in reserve(cluster)}
    if cluster.device.host_link != "c2c":
        found.add(f"sockets: {sockets_of_node(cluster)} a node, GPUs and memory divided evenly in their order")
    if cost_model.copy_slowdown is None:
        found.add("passes lose nothing to copies beside them: no profile says what they lose")
    return tuple(sorted(found))


def unrecomputed(layout: Layout) -> Layout:
    """Return a layout that recomputes nothing and keeps no activations on the host."""
    return replace(layout, recompute=Recompute(granularity=Granularity.NONE), offloaded_layers=0, offloaded_modules=())


def divided(
    placed: PlacedModel, cost_model: CostModel, cluster: Cluster, *, limit_bytes: int, solver: str = "mathopt"
) -> Divided:
    """Return how the tokens of a layout are best divided.

    Args:
        placed: A layout that recomputes nothing and keeps no activations on the host.
        cost_model: Prices operations.
        cluster: Where it runs; its nodes do not differ.
        limit_bytes: What a GPU may hold.
        solver: A name in `solvers.paced.registry.PACED_SOLVERS`.

    Raises:
        NotDividedError: No division fits, or none is possible.
        profiles.errors.CoverageError: Something has no cost.
    """
    if any(writes_scores(layer) for layer in placed.rank_model.layers):
        raise NotDividedError(SCORES)
    priced = priced_step(placed, cost_model)
    problem = TokenProblem(_case(placed, priced, cost_model, cluster, limit_bytes=limit_bytes))
    if not problem.things:
        raise NotDividedError(NOTHING)
    if min(*problem.case.room_bytes_R, problem.case.host_room_bytes) < 0:
        raise NotDividedError(FULL)
    paced = problem.problem()
    try:
        answer = divide_paced(paced, solver=solver, limits=_LIMITS)
    except SolverError as error:
        raise NotDividedError(str(error)) from error
    if answer.status is Status.INFEASIBLE:
        raise NotDividedError(FULL)
    answer = tidied_paced(paced, answer, solver=solver, limits=_LIMITS)
    return _answered(placed, problem, answer, priced)


def _case(
    placed: PlacedModel, priced: PricedStep, cost_model: CostModel, cluster: Cluster, *, limit_bytes: int
) -> TokenCase:
    layout, rank_model = placed.layout, placed.rank_model
    layers = tuple(token_layer(layer, cost_model) for layer in rank_model.layers)
    stages = []
    for index, stage in enumerate(layout.stages):
        kinds = rank_model.chain.kinds[stage.first_layer : stage.first_layer + stage.num_layers]
        passes = priced.times.forward_seconds_V[index] + priced.times.backward_seconds_V[index]
        own = sum(layers[kind].forward_seconds + layers[kind].backward_seconds for kind in kinds)
        stages.append(
            TokenStage(
                rank=index % layout.pp,
                chunk=index // layout.pp,
                kinds=tuple(kinds),
                other_seconds=max(0.0, passes - own),
                other_bytes=rank_model.embedding.all_saved_bytes if stage.has_embedding else 0,
                keeps_input=not stage.has_embedding,
            )
        )
    return TokenCase(
        layout=layout,
        layers=layers,
        stages=tuple(stages),
        cluster=cluster,
        room_bytes_R=tuple(activation_room_bytes(placed, rank, limit_bytes=limit_bytes) for rank in range(layout.pp)),
        host_room_bytes=room_on_host_bytes(placed, cluster),
        slowdown=cost_model.copy_slowdown or 0.0,
    )


def _answered(placed: PlacedModel, problem: TokenProblem, answer: Shares, priced: PricedStep) -> Divided:
    """Return what an answer makes of a step."""
    case = problem.case
    forward_V, backward_V = list(priced.times.forward_seconds_V), list(priced.times.backward_seconds_V)
    again_R, waiting_R = [0.0] * case.layout.pp, [0.0] * case.layout.pp
    seconds_P = problem.problem().shares.seconds_P(answer.share_O)
    for phase, seconds in zip(problem.phases, seconds_P, strict=False):
        slot, rank = phase.slot, case.stages[phase.stage].rank
        longer = phase.count * (seconds - base_seconds(slot, case.layers))
        again = 0.0
        if slot.is_backward and slot.is_divided:
            share = sum(problem.share(answer.share_O, rank, slot.kind, choice) for choice in COMPUTES_AGAIN)
            again = phase.count * share * case.layers[slot.kind].again_seconds
        (backward_V if slot.is_backward else forward_V)[phase.stage] += longer
        again_R[rank] += again
        waiting_R[rank] += max(0.0, longer - again)
    times = replace(priced.times, forward_seconds_V=tuple(forward_V), backward_seconds_V=tuple(backward_V))
    microbatches = case.layout.num_microbatches
    return Divided(
        placed=placed,
        problem=problem,
        answer=answer,
        priced=replace(priced, times=times),
        again_seconds=microbatches * max(again_R),
        waiting_seconds=microbatches * max(waiting_R),
    )


def _described(found: Divided, *, index: int) -> SwappedTokens:
    """Return what a plan says of a layout with divided tokens."""
    problem, share_O = found.problem, found.answer.share_O
    ledger = memory_ledger(found.placed, activation_bytes_R=problem.device_bytes_R(share_O))
    return SwappedTokens(
        index=index,
        step_seconds=found.priced.simulated().step_seconds,
        gap=_gap(found.answer),
        peak_memory_bytes=peak_memory_bytes(ledger),
        host_memory_bytes=problem.host_bytes(share_O),
        again_seconds=found.again_seconds,
        waiting_seconds=found.waiting_seconds,
        ranks=tuple(_rank_tokens(problem, share_O, rank) for rank in range(problem.case.layout.pp)),
    )


def _gap(answer: Shares) -> float:
    """Return by what part of its objective an answer may be improved at most."""
    assert answer.objective is not None
    assert answer.bound is not None
    return 0.0 if answer.status is Status.OPTIMAL else 1.0 - answer.bound / answer.objective


def _rank_tokens(problem: TokenProblem, share_O: tuple[float, ...], rank: int) -> RankTokens:
    """Return what becomes of the tokens of all layers of a rank; layers that stay in the buffers are kept."""
    counted = dict.fromkeys(TokenChoice, 0.0)
    total = sum(len(stage.kinds) for stage in problem.case.stages if stage.rank == rank)
    for stage, layers in zip(problem.case.stages, problem.divided_V, strict=True):
        if stage.rank != rank:
            continue
        for kind, count in layers.items():
            for choice in TokenChoice:
                counted[choice] += count / total * problem.share(share_O, rank, kind, choice)
    swapped = counted[TokenChoice.SWAPPED]
    again, here = counted[TokenChoice.AGAIN], counted[TokenChoice.AGAIN_HERE]
    return RankTokens(
        kept_fraction=max(0.0, 1.0 - swapped - again - here),
        swapped_fraction=swapped,
        again_fraction=again,
        again_here_fraction=here,
    )
