"""The steady state of one engine in closed form: what ranks layouts before any is simulated.

With B running answers of mean context c, each answer's life takes B prompts' worth of prefill between its tokens, so

    tpot(B) = decode(B, c) + B prefill(prompt) / (output - 1);

in a closed loop an answer never waits for its own place's prompt, so that it is B - 1 there, and a request alone waits
for none. decode is a step over the tokens that it gives an answer, a mixed step pays the tokens of a chunk beside its
answers, and prefill is what a chunk adds to such a step. With arrivals by the clock, Little's law gives the rate
r = B / ((output - 1) tpot(B)) that keeps so many running. The first token waits for prompts in front of it: at a load u
of the engine's prefill capacity the mean wait is that of a queue with one server and fixed service (Pollaczek and
Khinchine), u / (2 (1 - u)) of a prompt's time. Stages of a pipeline must be filled before it is out
(`StepCosts.filling_seconds`).
"""

from dataclasses import dataclass
from functools import lru_cache

from planner.serving.engines import Scheduling
from planner.serving.simulate import Seats
from planner.serving.step_costs import StepCosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Traffic of one data-parallel rank, in the mean.

    Args:
        prompt: Tokens of a prompt that are computed.
        cached: Tokens of a prompt that the cache holds already.
        output: Tokens of an answer.
    """

    prompt: float
    output: float
    cached: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """The steady state of a data-parallel rank.

    Args:
        batch: Running answers.
        tpot_seconds: Between two tokens of an answer.
        ttft_seconds: To the first token.
        requests_per_second: That come and end.
        saturated: More come than end.
    """

    batch: float
    tpot_seconds: float
    ttft_seconds: float
    requests_per_second: float
    saturated: bool


def most_running(seats: Seats, load: Load) -> float:
    """Return how many answers run at once at most: by the seats, and by what the cache holds in the mean."""
    tokens = load.prompt + load.cached + load.output / 2
    return min(float(seats.sequences), seats.pool_bytes / (tokens * seats.token_bytes + seats.sequence_bytes))


def prefill_seconds(
    costs: StepCosts, seats: Seats, load: Load, *, decodes: float = 0.0, decode_seconds: float | None = None
) -> float:
    """Return what one prompt adds to the steps that it is a part of.

    Args:
        costs: What steps take.
        seats: What bounds them.
        load: The traffic.
        decodes: Answers that run beside it.
        decode_seconds: A step of these alone, where it is known.
    """
    context = load.prompt + load.cached + load.output / 2
    budget = float(seats.tokens) * costs.shape.pp
    mixed = costs.engine.scheduling is Scheduling.MIXED and decodes > 0
    room = max(1.0, budget - decodes * costs.answering.queries) if mixed else budget
    chunks: list[tuple[float, float]] = []
    past, left = load.cached, load.prompt
    while left > 0:
        tokens = min(left, room)
        chunks.append((tokens, past))
        past, left = past + tokens, left - tokens
    if decode_seconds is None:
        decode_seconds = costs.seconds(decodes=decodes, context=context) if mixed else 0.0
    alone = decode_seconds if mixed else 0.0
    # Prompts that fill a part of a step share it with others.
    total = 0.0
    for chunk in chunks:
        step = costs.seconds(chunks=[chunk], decodes=decodes if mixed else 0, context=context, finished=1)
        total += step - alone
    return total


def late_seconds(costs: StepCosts, seats: Seats, load: Load) -> float:
    """Return what a first token takes beside waiting and steps: the engine's door, and a pipeline that fills."""
    return costs.first_token_seconds + costs.filling_seconds(load.prompt, budget=seats.tokens, past=load.cached)


@lru_cache(maxsize=64)
def idle_seconds(costs: StepCosts, seats: Seats, load: Load) -> float:
    """Return what a first token takes where nothing else is under way; the same for every batch that is tried."""
    return prefill_seconds(costs, seats, load) + late_seconds(costs, seats, load)


def at_batch(
    costs: StepCosts, seats: Seats, load: Load, batch: float, *, prompts: float | None = None
) -> tuple[float, float]:
    """Return the seconds between two tokens with so many running answers, and those of one prompt's prefill.

    Args:
        costs: What steps take.
        seats: What bounds them.
        load: The traffic.
        batch: Running answers.
        prompts: Prompts that are computed in an answer's life; None for as many as answers run.
    """
    context = load.prompt + load.cached + load.output / 2
    step = costs.seconds(decodes=batch, context=context)
    decode = step / costs.answering.gain
    if load.output <= 1:
        return decode, prefill_seconds(costs, seats, load)
    prefill = prefill_seconds(costs, seats, load, decodes=batch, decode_seconds=step)
    return decode + (batch if prompts is None else prompts) * prefill / (load.output - 1), prefill


def at_concurrency(costs: StepCosts, seats: Seats, load: Load, concurrency: float) -> Steady:
    """Return the steady state with so many requests under way; what finds no seat waits."""
    batch = min(concurrency, max(most_running(seats, load), 1e-9))
    tpot, prefill = at_batch(costs, seats, load, batch, prompts=max(0.0, batch - 1))
    waiting = concurrency - batch
    life = prefill + (load.output - 1) * tpot
    ttft = idle_seconds(costs, seats, load) + waiting * life / batch
    return Steady(
        batch=batch,
        tpot_seconds=tpot,
        ttft_seconds=ttft,
        requests_per_second=batch / life,
        saturated=waiting > 0,
    )


def by_the_clock(costs: StepCosts, seats: Seats, load: Load, batch: float) -> Steady:
    """Return the steady state with requests that come at the rate that keeps so many answers running."""
    tpot, prefill = at_batch(costs, seats, load, batch)
    requests_per_second = batch / (prefill + (load.output - 1) * tpot)
    load_of_prefill = min(requests_per_second * prefill, 0.999)
    wait = prefill * load_of_prefill / (2 * (1 - load_of_prefill))
    return Steady(
        batch=batch,
        tpot_seconds=tpot,
        ttft_seconds=costs.seconds(decodes=batch, context=load.prompt) / 2 + wait + idle_seconds(costs, seats, load),
        requests_per_second=requests_per_second,
        saturated=False,
    )
