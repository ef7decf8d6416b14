"""The main path of offloaded inference: a model, a node and lengths to what lies where, for each target.

A plan's throughput is that of the simulation (`planner.inference_offload.evaluate`); the search's own figure, in which
the busiest part of the node never waits, bounds it. Beside the plan of each target it says what one GiB more of each
place would gain with batches of the same size, and how fast streaming can be at all (`streaming_bound`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from planner.errors import InputError
from planner.experts.histogram import RoutingHistogram
from planner.inference_offload.blocks import BATCH_SIZES, LONE_BATCHES, Block, Searched, best_block, settled
from planner.inference_offload.evaluate import simulated_seconds
from planner.inference_offload.machine import Machine, machine_of
from planner.inference_offload.plan import Busy, Gain, Held, ModelFacts, OffloadPlan, Placed, Streaming, TargetPlan
from planner.inference_offload.prices import BlockPrices
from planner.inference_offload.request import WORDS, OffloadRequest, Place, Target, Thing, Words
from planner.inference_offload.work import PHASES, ModelWork
from planner.models.specs import ModelSpec
from planner.units import GIB
from profiles.hardware import Cluster

NARROW = (Target.VLLM, Target.DEEPSPEED)
"""Targets that can be told less than everything."""

LARGE_BATCH = 8192
"""Tokens of a pass in which the GPU is as good as it gets."""

MOST_GROWN = 1.3
"""By how much a batch may be larger with one GiB more."""

NEAR = 0.97
"""Part of the fastest block's tokens a second from which on the search goes on in a batch size."""

LEAST_SHARE = 5e-5
"""Smaller shares are solvers' tolerances, and not shown."""


BLOCK_ASSUMPTION = (
    "links, drive, GPU and CPUs work at once, each in the order of FlexGen's schedule; a runtime that does one after"
    " the other is slower"
)
LENGTHS_ASSUMPTION = "every prompt and every answer is as long as the longest"


def plan_offload(
    model: ModelSpec,
    cluster: Cluster,
    request: OffloadRequest,
    *,
    histogram: RoutingHistogram | None = None,
    solver: str = "mathopt",
) -> OffloadPlan:
    """Return what lies where while a node answers a batch of prompts, for every target.

    Args:
        model: The model.
        cluster: Whose node; one of its GPUs computes.
        request: Lengths, and what may be used.
        histogram: How often experts are chosen.
        solver: A name in `solvers.shares.registry.SHARES_SOLVERS`.

    Raises:
        InputError: The question contradicts itself, the model or the node.
        CoverageError: A cost is missing.
        SolverError: A solver stopped with nothing.
    """
    if cluster.unequal is not None:
        raise InputError("The nodes of the cluster differ.", hint="Offloading takes one node: describe that one.")
    if request.output_tokens < 2:
        raise InputError("Answers of one token leave nothing to plan.", hint="Give an output of 2 tokens or more.")
    machine = machine_of(cluster, request)
    work = ModelWork(model, cluster, request, histogram)
    asked = _Asked(work=work, machine=machine, request=request, solver=solver)
    narrow = [plan for target in NARROW if (plan := _best_plan(target, asked)) is not None]
    whole = _best_plan(Target.ANY, asked, narrow)
    plans = tuple(narrow) if whole is None else (whole, *narrow)
    return OffloadPlan(
        model=model,
        cluster=cluster,
        request=request,
        facts=ModelFacts(layer_elements=work.layer_elements, largest_tensor_elements=work.largest_tensor_elements),
        plans=plans,
        streaming=streaming_bound(work, machine, request),
        least_bytes=max(0.0, _least_bytes(work, request) - sum(machine.room_bytes.values())),
        assumptions=(BLOCK_ASSUMPTION, LENGTHS_ASSUMPTION, *work.notes, *machine.notes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One question: the model's work, the node, the lengths, and who solves programmes."""

    work: ModelWork
    machine: Machine
    request: OffloadRequest
    solver: str

    def prices(self, words: Words) -> BlockPrices:
        return BlockPrices(self.work, self.machine, self.request, words)

    def searched(self, prices: BlockPrices, target: Target, batch_sizes: tuple[int, ...] = ()) -> Searched:
        return best_block(
            prices.problem,
            most_batches=WORDS[target].most_batches,
            most_sequences=self.request.num_sequences,
            batch_sizes=batch_sizes or _sizes(target),
            solver=self.solver,
        )


def _sizes(target: Target) -> tuple[int, ...]:
    """Return the batch sizes that are looked at."""
    return LONE_BATCHES if WORDS[target].most_batches == 1 else BATCH_SIZES


def _best_plan(target: Target, asked: _Asked, narrow: Sequence[TargetPlan] = ()) -> TargetPlan | None:
    """Return the plan of a target that is fastest in the simulation; None where nothing fits.

    Of each batch size the best block that the search has looked at is simulated, until the next one would be slower
    even if nothing waited. The search then goes on in the size of the fastest. A runtime with everything tries the
    blocks of those that can be told less too, and each of its last blocks with less work for the CPU, which what is
    never waited for makes look better than it is.

    Args:
        target: Who runs it.
        asked: The question.
        narrow: Plans of targets that can be told less.
    """
    words = WORDS[target]
    searched = asked.searched(asked.prices(words), target)
    sizes = [(block.batch_size, block.num_batches, block.rate) for block in searched.of_sizes]
    simulated = list(_simulated_plans(target, words, sizes, asked))
    if words.most_batches is None:
        fastest = max((plan.tokens_per_second for plan in simulated), default=0.0)
        near = [plan.batch_size for plan in simulated if plan.tokens_per_second >= NEAR * fastest]
        again = [block for size in near for block in asked.searched(asked.prices(words), target, (size,)).of_sizes]
        last = [(block.batch_size, block.num_batches, block.rate) for block in again]
        last += [(plan.batch_size, plan.num_batches, float("inf")) for plan in narrow]
        for less in _narrower(words):
            fastest = max((plan.tokens_per_second for plan in simulated), default=0.0)
            simulated += _simulated_plans(target, less, last, asked, above=fastest)
    best = max(simulated, key=lambda plan: plan.tokens_per_second, default=None)
    if best is None:
        return None
    most = max(searched.most_rate * asked.request.output_tokens, best.unpaused_tokens_per_second)
    return replace(
        best,
        most_tokens_per_second=max(most, *(plan.most_tokens_per_second for plan in narrow), 0.0),
        gains=_gains(asked, best),
        programmes=searched.programmes,
        stopped=searched.stopped,
    )


def _narrower(words: Words) -> Iterator[Words]:
    """Yield what a target can be told, then no products on the CPU, no CPU, and at last a batch's prompts at once."""
    yield words
    for spared in ((Thing.WEIGHTS, Thing.EXPERTS), tuple(Thing)):
        words = replace(
            words,
            uses={
                thing: tuple(use for use in uses if not use.on_cpu or thing not in spared)
                for thing, uses in words.uses.items()
            },
        )
        yield words
    yield replace(words, slice_tokens=None)


def _simulated_plans(
    target: Target, words: Words, blocks: Iterable[tuple[int, int, float]], asked: _Asked, *, above: float = 0.0
) -> Iterator[TargetPlan]:
    """Yield the simulated plans of some blocks, but for those that cannot be the fastest.

    Args:
        target: Who runs it.
        words: What of its words may be used.
        blocks: Batch size, number of batches, and sequences a second that they do not exceed.
        asked: The question.
        above: Tokens a second that are reached already.
    """
    prices = asked.prices(words)
    for batch_size, num_batches, most_rate in blocks:
        if most_rate * asked.request.output_tokens <= above:
            continue
        block = settled(prices.problem, batch_size, num_batches, solver=asked.solver)
        if block is None:
            continue
        found = _simulated(_target_plan(target, words, prices, block, asked.request), asked)
        above = max(above, found.tokens_per_second)
        yield found


def _target_plan(
    target: Target, words: Words, prices: BlockPrices, block: Block, request: OffloadRequest
) -> TargetPlan:
    problem = prices.problem(block.batch_size, block.num_batches)
    share_O = block.shares.share_O
    prompt_seconds, answer_seconds = problem.seconds_P(share_O)
    placed = []
    for option, share in zip(prices.options, share_O, strict=True):
        if share >= LEAST_SHARE:
            whole = prices.held_bytes(option, batch_size=block.batch_size, num_batches=block.num_batches)
            placed.append(Placed(option=option, share=share, num_bytes=share * whole))
    unpaused = block.rate * request.output_tokens
    return TargetPlan(
        target=target,
        batch_size=block.batch_size,
        num_batches=block.num_batches,
        slice_tokens=words.slice_tokens,
        tokens_per_second=unpaused,
        unpaused_tokens_per_second=unpaused,
        most_tokens_per_second=unpaused,
        prompt_seconds=prompt_seconds,
        answer_seconds=answer_seconds,
        placed=tuple(placed),
        busy=tuple(
            Busy(phase=PHASES[chain.phase], part=chain.name, seconds=chain.seconds(share_O)) for chain in problem.chains
        ),
        held=tuple(
            Held(name=room.name, num_bytes=room.used(share_O), room_bytes=room.capacity) for room in problem.rooms
        ),
        gains=(),
        programmes=0,
        stopped=False,
    )


def _simulated(plan: TargetPlan, asked: _Asked) -> TargetPlan:
    """Return the plan with the times of a simulation."""
    request, words = asked.request, WORDS[plan.target]
    prompts, answers = simulated_seconds(plan, asked.work, asked.machine, request)
    most = words.slice_tokens
    together = plan.batch_size if most is None else min(plan.batch_size, max(1, most // request.prompt_tokens))
    plan = replace(
        plan,
        source_fractions=asked.work.source_fractions(
            together=together,
            prompt_tokens=request.prompt_tokens,
            sequences=plan.batch_size,
            context=request.prompt_tokens + request.output_tokens / 2,
        ),
    )
    block = prompts + (request.output_tokens - 1) * answers
    generated = plan.batch_size * plan.num_batches * request.output_tokens
    return replace(plan, tokens_per_second=generated / block, prompt_seconds=prompts, answer_seconds=answers)


def _gains(asked: _Asked, best: TargetPlan) -> tuple[Gain, ...]:
    """Return what one GiB more of each place gains, if parts never wait.

    Batches stay as large as the plan's; a batch that is a block by itself may grow.
    """
    sizes = (best.batch_size,)
    if WORDS[best.target].most_batches == 1:
        sizes = tuple(size for size in LONE_BATCHES if best.batch_size <= size <= best.batch_size * MOST_GROWN)

    def most(machine: Machine) -> float:
        node = replace(asked, machine=machine)
        searched = node.searched(node.prices(WORDS[best.target]), best.target, sizes)
        return 0.0 if searched.best is None else searched.best.rate * asked.request.output_tokens

    now = most(asked.machine)
    return tuple(
        Gain(place=place, tokens_per_second=max(0.0, most(asked.machine.with_more(place, GIB)) - now))
        for place in asked.machine.room_bytes
        if any(use.place is place for uses in WORDS[best.target].uses.values() for use in uses)
    )


def _least_bytes(work: ModelWork, request: OffloadRequest) -> float:
    """Return what the model and one sequence take, wherever they lie."""
    tokens = request.prompt_tokens + request.output_tokens
    return work.end_bytes + work.dense_bytes + work.routed_bytes + work.cache_bytes(tokens)


def streaming_bound(work: ModelWork, machine: Machine, request: OffloadRequest) -> Streaming | None:
    """Return how fast a runtime can be that brings all weights which the GPU does not hold once a pass.

    The first stage of MoE-Lens's model (Yuan et al., arXiv 2504.09345): a pass takes as long as its weights on the
    link; each running sequence gets a token, and holds on average the cache of s + n / 2 tokens, so that the host's
    memory bounds how many run. The GPU bounds it otherwise, with prompts and answers in its largest batches. Weights
    that the CPU multiplies, or that lie on a drive or on peers, are not in it.
    """
    all_bytes = work.dense_bytes + work.routed_bytes
    streamed = max(0.0, all_bytes + work.end_bytes - machine.room_bytes[Place.GPU])
    each = work.cache_bytes(request.prompt_tokens + request.output_tokens / 2)
    sequences = (machine.room_bytes[Place.HOST] - streamed) / each
    if sequences < 1:
        return None
    batch = LARGE_BATCH
    prompts = max(1, batch // request.prompt_tokens)
    one = (
        work.prompts(prompts, request.prompt_tokens).total / prompts
        + (request.output_tokens - 1) * work.answers(batch, request.prompt_tokens).total / batch
    )
    of_gpu = request.output_tokens / one
    if not streamed:
        return Streaming(tokens_per_second=of_gpu, by_memory=False)
    of_memory = sequences * machine.link_bytes_per_second / streamed
    return Streaming(tokens_per_second=min(of_gpu, of_memory), by_memory=of_memory < of_gpu)
