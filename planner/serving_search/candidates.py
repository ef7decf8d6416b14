"""Engines that could serve: a shape on a kind of GPU with a token budget, its memory, its prices.

A candidate knows how many sequences its cache bears, and its steady state in closed form at any batch; that is what all
of them are ranked by. Nothing that changes results is chosen: formats are the user's.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from planner.serve_request import ServeRequest
from planner.serving.engines import Engine
from planner.serving.formats import ServedFormats
from planner.serving.ledger import KvLedger, kv_ledger
from planner.serving.prices import ServingPrices
from planner.serving.simulate import Seats, seats_of
from planner.serving.step_costs import StepCosts
from planner.serving_layout import EngineSettings, EngineShape
from planner.serving_search.shapes import shape_words
from planner.serving_search.traffic import Mean

TOKEN_BUDGETS = (2048, 4096, 8192, 16384)
"""Tokens of a step that are tried: vLLM's own default is among them; larger ones gain a prompt little and cost answers
beside it much."""

DOES_NOT_FIT = "weights, a step and the longest sequence do not fit"


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
    """

    index: int
    prices: ServingPrices
    formats: ServedFormats
    engine: Engine
    request: ServeRequest
    mean: Mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An engine that fits.

    Args:
        ground: Where it stands.
        shape: How it lies on its GPUs.
        budget: Tokens of a step of a data-parallel rank.
        costs: What its steps take.
        most_seqs: Sequences that its cache bears at once, in the mean of their lives, on a data-parallel rank.
        most_seats: What bounds its steps with so many.
    """

    ground: Ground
    shape: EngineShape
    budget: int
    costs: StepCosts
    most_seqs: int
    most_seats: Seats

    def settings(self, seqs: int) -> EngineSettings:
        """Return what the engine is told, for so many sequences at once."""
        return settings_of(self.ground, budget=self.budget, seqs=seqs)

    def ledger(self, seqs: int) -> KvLedger:
        """Return its memory, for so many sequences at once."""
        return ledger_of(self.ground, self.shape, self.settings(seqs))

    def seats(self, seqs: int) -> Seats:
        """Return what bounds its steps, for so many sequences at once."""
        return _seats(self.ground, self.shape, self.settings(seqs))

    def told(self, seqs: int) -> int:
        """Return the least allowed batch with a seat for so many sequences, `most_seqs` at most."""
        bounds = self.ground.request.constraints.degrees.get("max_num_seqs")
        if bounds is None:
            return seqs
        if bounds.allowed is not None:
            return min(value for value in bounds.allowed if value >= seqs and bounds.admits(value))
        return max(seqs, bounds.minimum or 1)

    @property
    def words(self) -> str:
        """Return its shape in few words."""
        return shape_words(self.shape)

    @property
    def num_gpus(self) -> int:
        """Return its GPUs."""
        return self.shape.num_gpus

    @property
    def order(self) -> tuple[int, int, str, int]:
        """Return what equals are sorted by."""
        return (self.ground.index, self.num_gpus, self.words, self.budget)


def settings_of(ground: Ground, *, budget: int, seqs: int) -> EngineSettings:
    """Return what an engine is told."""
    request = ground.request
    share = request.gpu_memory_utilization
    formats = ground.formats
    return EngineSettings(
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        max_model_len=request.workload.max_model_len,
        gpu_memory_utilization=ground.engine.default_memory_fraction if share is None else share,
        kv_cache_dtype="fp8" if formats.cache == "fp8" else "auto",
        chunked_prefill=True,
        prefix_caching=request.workload.prefix is not None,
        quantization="fp8" if formats.name == "fp8" else None,
    )


def ledger_of(ground: Ground, shape: EngineShape, settings: EngineSettings) -> KvLedger:
    """Return the memory of an engine."""
    return kv_ledger(
        rank=ground.prices.rank(shape, ground.formats),
        shape=shape,
        formats=ground.formats,
        engine=ground.engine,
        settings=settings,
        cluster=ground.prices.cluster,
    )


def _seats(ground: Ground, shape: EngineShape, settings: EngineSettings) -> Seats:
    ledger = ledger_of(ground, shape, settings)
    return seats_of(ledger, settings, typical_tokens=ground.mean.typical_tokens)


def candidates_of(ground: Ground, shapes: Iterable[EngineShape], pruned: Counter[str]) -> list[Candidate]:
    """Return the engines of these shapes that fit, and count the others."""
    found: list[Candidate] = []
    constraints = ground.request.constraints
    for shape in shapes:
        fits = False
        for budget in _budgets(ground):
            if not constraints.admits("max_num_batched_tokens", budget):
                continue
            seqs = _most_seqs(ground, shape, budget)
            if seqs:
                fits = True
                costs = ground.prices.costs(shape, ground.formats, ground.engine)
                seats = _seats(ground, shape, settings_of(ground, budget=budget, seqs=seqs))
                found.append(
                    Candidate(ground=ground, shape=shape, budget=budget, costs=costs, most_seqs=seqs, most_seats=seats)
                )
        if not fits:
            pruned[DOES_NOT_FIT] += 1
    return found


def _holds(ground: Ground, shape: EngineShape, budget: int, seqs: int) -> bool:
    """Return whether an engine with so many seats has room for the longest sequence."""
    return ledger_of(ground, shape, settings_of(ground, budget=budget, seqs=seqs)).fits


def _budgets(ground: Ground) -> tuple[int, ...]:
    """Return the budgets that are tried; those that the user names come in."""
    bounds = ground.request.constraints.degrees.get("max_num_batched_tokens")
    named = (
        () if bounds is None else (*(bounds.allowed or ()), *(end for end in (bounds.minimum, bounds.maximum) if end))
    )
    return tuple(sorted({*TOKEN_BUDGETS, *named}))


def _most_seqs(ground: Ground, shape: EngineShape, budget: int) -> int:
    """Return how many sequences run at once at most; 0 where the longest does not fit, or no batch that is allowed.

    Room for logits grows with the sequences, so that the number is found from above. vLLM takes no budget of tokens
    below the number of sequences (`vllm/config/scheduler.py: verify_max_model_len`).
    """
    constraints = ground.request.constraints
    bounds = constraints.degrees.get("max_num_seqs")
    most = min(ground.engine.default_num_seqs, budget)
    if bounds is not None:
        ends = (*(bounds.allowed or ()), bounds.minimum or 1)
        least = min(value for value in ends if bounds.admits(value))
        most = max((value for value in range(1, most + 1) if bounds.admits(value)), default=least)
        if most > budget:
            return 0
        # The engine is told an allowed number of seats, more than it fills: room for their logits is there too.
        named = (least, *(value for value in bounds.allowed or () if value <= most))
        seated = [value for value in named if _holds(ground, shape, budget, value)]
        if least not in seated:
            return 0
        if bounds.allowed is not None:
            most = max(seated)
    while most:
        ledger = ledger_of(ground, shape, settings_of(ground, budget=budget, seqs=most))
        if not ledger.fits:
            most //= 2
            continue
        held = min(most, ledger.most_sequences(ground.mean.typical_tokens))
        if held == most:
            return most
        most = held
    return 0
