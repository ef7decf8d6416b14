"""Engines that could serve: a shape on a kind of GPU with a token budget, its memory, its prices.

Where the spec names a draft, engines with some numbers of guesses stand beside those without; where it says which
experts tokens choose, engines with the balancer and some numbers of copies beside those that deal experts in order.

A candidate knows how many sequences its cache bears, and its steady state in closed form at any batch; that is what all
of them are ranked by. Nothing that changes results is chosen: formats are the user's.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from planner.frameworks.overheads import PUBLISHED
from planner.models.blocks import SelfAttention
from planner.serving.engines import Engine
from planner.serving.formats import ServedFormats
from planner.serving.ledger import KvLedger, kv_ledger, with_draft
from planner.serving.prices import ServingPrices
from planner.serving.rank_operators import EVEN, Balance
from planner.serving.simulate import Seats, seats_of
from planner.serving.speculation import GUESSES, tokens_per_step
from planner.serving.step_costs import ONE_BY_ONE, Answering, StepCosts
from planner.serving_plans.layout import Draft, EngineSettings, EngineShape
from planner.serving_plans.request import CacheSize, ServeConstraints, ServeRequest, Speculation
from planner.serving_search.expert_places import balances, in_order
from planner.serving_search.shapes import draft_refusal, engine_words
from planner.serving_search.traffic import Mean

TOKEN_BUDGETS = (2048, 4096, 8192, 16384)
"""Tokens of a step that are tried: vLLM's own default is among them; larger ones gain a prompt little and cost answers
beside it much."""

DOES_NOT_FIT = "weights, a step and the longest sequence do not fit"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftGround:
    """What drafts on one kind of GPU share.

    Args:
        prices: Prices of the draft there.
        formats: What the draft is held in.
        speculation: What it may do.
    """

    prices: ServingPrices
    formats: ServedFormats
    speculation: Speculation


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all candidates on one kind of GPU share.

    Args:
        index: Of the kind, in the order of the inventory.
        prices: Prices of the model there.
        formats: What the model is held in.
        engine: Whose steps are priced.
        request: What is asked.
        mean: The traffic in the mean.
        draft: What may guess ahead; None without.
    """

    index: int
    prices: ServingPrices
    formats: ServedFormats
    engine: Engine
    request: ServeRequest
    mean: Mean
    draft: DraftGround | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What is chosen of an engine before its batch.

    Args:
        shape: How it lies on its GPUs.
        budget: Tokens of a step of a data-parallel rank.
        guesses: Tokens that a draft guesses ahead; 0 without.
        balance: How experts are dealt to ranks, and whether a balancer runs.
    """

    shape: EngineShape
    budget: int
    guesses: int = 0
    balance: Balance = EVEN

    @property
    def words(self) -> str:
        """Return it in few words, without the budget."""
        return engine_words(self.shape, guesses=self.guesses, redundant=self.balance.redundant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An engine that fits.

    Args:
        ground: Where it stands.
        build: What is chosen of it.
        costs: What its steps take.
        most_seats: What bounds its steps with as many sequences as its cache bears at once, in the mean of their lives.
        fixed: What it is told where a file tells it, and not this search; None else.
    """

    ground: Ground
    build: Build
    costs: StepCosts
    most_seats: Seats
    fixed: EngineSettings | None = None

    def settings(self, seqs: int) -> EngineSettings:
        """Return what the engine is told, for so many sequences at once."""
        if self.fixed is not None:
            return replace(self.fixed, max_num_seqs=seqs)
        return settings_of(self.ground, self.build, seqs=seqs)

    def ledger(self, seqs: int) -> KvLedger:
        """Return its memory, for so many sequences at once."""
        return ledger_told(self.ground, self.build, self.settings(seqs))

    def seats(self, seqs: int) -> Seats:
        """Return what bounds its steps, for so many sequences at once."""
        return seats_of(self.ledger(seqs), self.settings(seqs), typical_tokens=self.ground.mean.typical_tokens)

    def told(self, seqs: int) -> int:
        """Return the least allowed batch with a seat for so many sequences, `most_seqs` at most."""
        bounds = self.ground.request.constraints.degrees.get("max_num_seqs")
        if bounds is None:
            return seqs
        if bounds.allowed is not None:
            return min(value for value in bounds.allowed if value >= seqs and bounds.admits(value))
        return max(seqs, bounds.minimum or 1)

    @property
    def most_seqs(self) -> int:
        """Return how many sequences its cache bears at once, on a data-parallel rank."""
        return self.most_seats.sequences

    @property
    def shape(self) -> EngineShape:
        """Return how it lies on its GPUs."""
        return self.build.shape

    @property
    def budget(self) -> int:
        """Return the tokens of a step of a data-parallel rank."""
        return self.build.budget

    @property
    def words(self) -> str:
        """Return it in few words, without the budget."""
        return self.build.words

    @property
    def num_gpus(self) -> int:
        """Return its GPUs."""
        return self.shape.num_gpus

    @property
    def order(self) -> tuple[int, int, str, int]:
        """Return what equals are sorted by."""
        return (self.ground.index, self.num_gpus, self.words, self.budget)


def starts_by_share(ground: Ground) -> bool:
    """Return whether an engine starts that is told to take its share of the memory.

    The share has to be free once the engine's own context is there (`vllm/v1/worker/utils.py: request_memory`).
    """
    memory = ground.prices.cluster.device.memory_bytes
    share = ground.request.gpu_memory_utilization or ground.engine.default_memory_fraction
    return share * memory <= memory - PUBLISHED.context_bytes


def settings_of(ground: Ground, build: Build, *, seqs: int) -> EngineSettings:
    """Return what an engine is told: the size of its cache as a share, or as the bytes that the share leaves it."""
    settings = _by_share(ground, build, seqs=seqs)
    size = ground.request.cache_size
    if size is CacheSize.SHARE or (size is None and starts_by_share(ground)):
        return settings
    left = ledger_told(ground, build, settings).pool_bytes
    if left <= 0:
        return settings
    return replace(settings, gpu_memory_utilization=None, kv_cache_memory_bytes=left)


def _by_share(ground: Ground, build: Build, *, seqs: int) -> EngineSettings:
    request = ground.request
    share = request.gpu_memory_utilization
    formats = ground.formats
    draft = None
    if build.guesses:
        assert request.speculation is not None, "nothing guesses without a draft"
        draft = Draft(model=request.speculation.served_model, num_tokens=build.guesses, tp=build.shape.tp)
    return EngineSettings(
        max_num_seqs=seqs,
        max_num_batched_tokens=build.budget,
        max_model_len=request.workload.max_model_len,
        gpu_memory_utilization=ground.engine.default_memory_fraction if share is None else share,
        block_size=_block_size(ground),
        kv_cache_dtype="fp8" if formats.cache == "fp8" else "auto",
        chunked_prefill=True,
        prefix_caching=request.workload.prefix is not None,
        quantization="fp8" if formats.name == "fp8" else None,
        redundant_experts=build.balance.redundant,
        draft=draft,
    )


def _block_size(ground: Ground) -> int | None:
    """Return the tokens of a block that an engine is told, those its memory is counted with; None leaves them to it.

    Kernels of latent attention take blocks of their own, and vLLM makes those beside recurrent states as large as a
    state; it does so by itself, and holds a number that it is told against them (`vllm/platforms/interface.py:
    update_block_size_for_backend`). Kernels of plain attention take its usual one.
    """
    mixers = [block.mixer for block in ground.prices.model.distinct_blocks]
    plain = all(isinstance(mixer, SelfAttention) for mixer in mixers)
    return ground.engine.block_size if plain else None


def ledger_of(ground: Ground, build: Build, *, seqs: int) -> KvLedger:
    """Return the memory of an engine, that of its draft included."""
    return ledger_told(ground, build, settings_of(ground, build, seqs=seqs))


def ledger_told(ground: Ground, build: Build, settings: EngineSettings) -> KvLedger:
    """Return the memory of an engine that is told so, that of its draft included."""
    alone = _ledger(ground, ground.prices, ground.formats, build, settings)
    if ground.draft is None or not build.guesses:
        return alone
    plain = replace(build, balance=EVEN)
    draft = _ledger(ground, ground.draft.prices, ground.draft.formats, plain, settings)
    return with_draft(alone, draft, guesses=build.guesses)


def _ledger(
    ground: Ground, prices: ServingPrices, formats: ServedFormats, build: Build, settings: EngineSettings
) -> KvLedger:
    return kv_ledger(
        rank=prices.rank(build.shape, formats, build.balance),
        shape=build.shape,
        formats=formats,
        engine=ground.engine,
        settings=settings,
        cluster=prices.cluster,
    )


def candidates_of(ground: Ground, shapes: Iterable[EngineShape], pruned: Counter[str]) -> list[Candidate]:
    """Return the engines of these shapes that fit, and count the others."""
    found: list[Candidate] = []
    for shape in shapes:
        # Steps take what they take whatever the budget.
        costs: dict[tuple[int, Balance], StepCosts] = {}
        for build in _builds(ground, shape, pruned):
            seats = _most_seats(ground, build)
            if seats is not None:
                kind = build.guesses, build.balance
                if kind not in costs:
                    costs[kind] = costs_of(ground, build)
                found.append(Candidate(ground=ground, build=build, costs=costs[kind], most_seats=seats))
        if not costs:
            pruned[DOES_NOT_FIT] += 1
    return found


def _builds(ground: Ground, shape: EngineShape, pruned: Counter[str]) -> Iterator[Build]:
    """Yield what may be chosen of engines of a shape."""
    constraints = ground.request.constraints
    guesses = list(_guesses(ground, shape, pruned))
    for balance in balances_of(ground, shape):
        # A balancer takes a draft's experts in too, of which it is told no number of copies (vLLM 0.32.0,
        # `v1/worker/gpu/eplb_utils.py: maybe_register_speculator`): that is not planned.
        apart = balance.redundant is not None and ground.draft is not None and ground.draft.prices.model.has_experts
        if apart:
            pruned["draft: routed experts beside a balancer"] += 1
        for budget in budgets_of(ground):
            if constraints.admits("max_num_batched_tokens", budget):
                for number in guesses:
                    if not (apart and number):
                        yield Build(shape=shape, budget=budget, guesses=number, balance=balance)


def _guesses(ground: Ground, shape: EngineShape, pruned: Counter[str]) -> Iterator[int]:
    """Yield the numbers of guesses that are tried for engines of a shape, 0 for none."""
    constraints = ground.request.constraints
    if "num_speculative_tokens" not in constraints.degrees:
        yield 0
    if ground.draft is None:
        return
    refusal = draft_refusal(shape, ground.draft.prices.model)
    if refusal is not None:
        pruned[refusal] += 1
        return
    named = constraints.degrees.get("num_speculative_tokens")
    for number in sorted({*GUESSES, *((named.allowed or ()) if named is not None else ())}):
        if constraints.admits("num_speculative_tokens", number):
            yield number


def balances_of(ground: Ground, shape: EngineShape) -> tuple[Balance, ...]:
    """Return the ways to deal experts to the ranks of engines of a shape, that with the fewest copies first."""
    routing, asked = ground.request.workload.routing, ground.request.constraints.degrees.get("redundant_experts")
    if routing is None:
        return (EVEN,)
    if not shape.expert_parallel:
        return (in_order(routing, 1),)
    return balances(routing, ranks=shape.tp * shape.pcp * shape.dp, asked=asked)


def costs_of(ground: Ground, build: Build) -> StepCosts:
    """Return what steps of an engine take, passes of its draft included."""
    answering = ONE_BY_ONE
    if ground.draft is not None and build.guesses:
        answering = Answering(
            queries=build.guesses + 1,
            sampled=build.guesses + 1,
            gain=tokens_per_step(build.guesses, ground.draft.speculation.acceptance),
            passes=ground.draft.prices.passes(build.shape, ground.draft.formats, ground.engine, guesses=build.guesses),
        )
    return ground.prices.costs(build.shape, ground.formats, ground.engine, balance=build.balance, answering=answering)


def _holds(ground: Ground, build: Build, *, seqs: int) -> bool:
    """Return whether an engine with so many seats starts, and has room for the longest sequence."""
    ledger = ledger_of(ground, build, seqs=seqs)
    return ledger.fits and (ledger.most_seats is None or seqs <= ledger.most_seats)


def budgets_of(ground: Ground) -> tuple[int, ...]:
    """Return the budgets that are tried; those that the user names come in."""
    bounds = ground.request.constraints.degrees.get("max_num_batched_tokens")
    named = (
        () if bounds is None else (*(bounds.allowed or ()), *(end for end in (bounds.minimum, bounds.maximum) if end))
    )
    return tuple(sorted({*TOKEN_BUDGETS, *named}))


def least_seats(constraints: ServeConstraints) -> int:
    """Return the least number of sequences that an engine may be told."""
    bounds = constraints.degrees.get("max_num_seqs")
    if bounds is None:
        return 1
    ends = (*(bounds.allowed or ()), bounds.minimum or 1)
    return min(value for value in ends if bounds.admits(value))


def _most_seats(ground: Ground, build: Build) -> Seats | None:
    """Return what bounds steps with the most sequences that run at once.

    None where the longest sequence does not fit, or no batch that is allowed.

    Room for logits grows with the sequences, so that the number is found from above. vLLM takes no budget of tokens
    below the number of sequences (`vllm/config/scheduler.py: verify_max_model_len`); of one whose answers are guessed
    ahead all guesses have a place in it.
    """
    constraints = ground.request.constraints
    bounds = constraints.degrees.get("max_num_seqs")
    most = min(ground.engine.default_num_seqs, build.budget // (build.guesses + 1))
    if bounds is not None:
        least = least_seats(constraints)
        most = max((value for value in range(1, most + 1) if bounds.admits(value)), default=least)
        if most * (build.guesses + 1) > build.budget:
            return None
        # The engine is told an allowed number of seats, more than it fills: room for their logits is there too.
        named = (least, *(value for value in bounds.allowed or () if value <= most))
        seated = [value for value in named if _holds(ground, build, seqs=value)]
        if least not in seated:
            return None
        if bounds.allowed is not None:
            most = max(seated)
    while most:
        settings = settings_of(ground, build, seqs=most)
        ledger = ledger_told(ground, build, settings)
        if not ledger.fits:
            most //= 2
            continue
        held = min(most, ledger.most_sequences(ground.mean.typical_tokens))
        if held == most:
            return seats_of(ledger, settings, typical_tokens=ground.mean.typical_tokens)
        most = held
    return None
