"""Simulates one engine, step by step, through a list of requests.

A step is built as the engine's scheduler builds it and takes what `StepCosts` says. Requests are served in order of
arrival:

- MIXED: running answers get a token each; what the token budget leaves goes to chunks of prompts, the one that is
  begun first, then waiting ones as long as a seat and room in the cache are free.
- PREFILL_FIRST: as long as prompts can be taken in, steps hold chunks of prompts alone, up to the budget.
- A prompt is taken in when its tokens and the engine's reserved part of its answer find room. Where answers find no
  more room, the one that was taken in last is put back, and its tokens are computed again.

Between two events (an arrival, an end, a full cache) steps of running answers differ only in the length of the
contexts, in which their time is linear but for bends; they are taken together, at the mean context. So cost grows with
the number of requests, not of steps. Nothing is random: the same requests give the same times.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from planner.arrays import FloatArray, IntArray
from planner.serving.engines import Scheduling
from planner.serving.ledger import KvLedger
from planner.serving.step_costs import StepCosts
from planner.serving.traffic import Requests
from planner.serving_plans.layout import EngineSettings, Role

ROUNDING = 1e-9
"""Tokens by which sums of fractions of tokens may miss a whole one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """What bounds a step of a data-parallel rank.

    Args:
        sequences: Requests that run at once.
        tokens: Tokens of a step.
        pool_bytes: Bytes of cache.
        token_bytes: Bytes of cache of one token.
        sequence_bytes: Bytes of cache of a sequence beside those of its tokens: windows and states.
        chunked: Prompts are cut to the budget; else a prompt is computed in one step.
    """

    sequences: int
    tokens: int
    pool_bytes: float
    token_bytes: float
    sequence_bytes: float
    chunked: bool = True


def seats_of(ledger: KvLedger, settings: EngineSettings, *, typical_tokens: int) -> Seats:
    """Return what bounds an engine's steps, its ledger linear around sequences of a typical length."""
    block = ledger.block_tokens
    length = max(typical_tokens, block)
    whole = ledger.sequence_bytes(length)
    slope = max(0.0, ledger.sequence_bytes(length + block) - whole) / block
    # Blocks are full but for the last, which is half full in the mean.
    fixed = max(0.0, ledger.sequence_bytes(length) - slope * math.ceil(length / block) * block) + slope * block / 2
    return Seats(
        sequences=settings.max_num_seqs,
        tokens=settings.max_num_batched_tokens,
        pool_bytes=float(ledger.pool_bytes),
        token_bytes=slope,
        sequence_bytes=fixed,
        chunked=settings.chunked_prefill,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What became of each request.

    Args:
        arrival_N: Seconds at which it came.
        first_token_N: Seconds at which its first token was out; NaN where it was never taken in.
        end_N: Seconds at which its last token was out; NaN likewise.
        outputs_N: Tokens of its answer.
        prompts_N: Tokens of its prompt.
        preempted: How often an answer was put back.
        steps: Steps of the engine.
        mean_batch: Running answers, in the mean over steps.
    """

    arrival_N: FloatArray
    first_token_N: FloatArray
    end_N: FloatArray
    outputs_N: IntArray
    prompts_N: IntArray
    preempted: int
    steps: int
    mean_batch: float

    @property
    def ttft_N(self) -> FloatArray:
        """Return the seconds to each first token."""
        seconds_N: FloatArray = self.first_token_N - self.arrival_N
        return seconds_N

    @property
    def tpot_N(self) -> FloatArray:
        """Return the seconds for each token behind the first; NaN for answers of one."""
        behind_N = (self.outputs_N - 1).astype(np.float64)
        seconds_N: FloatArray = np.divide(
            self.end_N - self.first_token_N, behind_N, out=np.full(len(behind_N), np.nan), where=behind_N > 0
        )
        return seconds_N

    @property
    def seconds(self) -> float:
        """Return the time from the first arrival to the last end."""
        return float(np.nanmax(self.end_N) - self.arrival_N[0])

    @property
    def output_tokens_per_second(self) -> float:
        """Return the tokens of answers over that time."""
        return float(self.outputs_N[~np.isnan(self.end_N)].sum()) / self.seconds

    @property
    def refused(self) -> int:
        """Return how many requests can never be taken in: each alone is larger than the cache."""
        return int(np.isnan(self.end_N).sum())


def simulate(requests: Requests, *, costs: StepCosts, seats: Seats, role: Role = Role.BOTH) -> Simulation:
    """Return what becomes of requests that one data-parallel rank of an engine serves.

    Args:
        requests: Those of this rank.
        costs: What its steps take.
        seats: What bounds them.
        role: PREFILL ends with the first token; DECODE finds prompts' caches made.
    """
    return _Run(requests, costs, seats, role).done()


class _Run:
    """The state of one simulation.

    Ends of answers are counted in ticks: tokens that every running answer gets. A step is a tick, or as many as guesses
    make it in the mean; what its last step gives an answer too much is thrown away.
    """

    def __init__(self, requests: Requests, costs: StepCosts, seats: Seats, role: Role) -> None:
        self._costs, self._seats, self._role = costs, seats, role
        self._mixed = costs.engine.scheduling is Scheduling.MIXED
        self._reserved = costs.engine.reserved_fraction
        self._budget = seats.tokens * costs.shape.pp
        self._queries, self._gain = costs.answering.queries, costs.answering.gain
        self._prompts: list[int] = requests.prompts_N.tolist()
        self._outputs: list[int] = [1] * requests.count if role is Role.PREFILL else requests.outputs_N.tolist()
        self._cached: list[int] = requests.cached_N.tolist()
        self._arrivals: list[float] = requests.arrivals_N.tolist()
        self._closed = requests.concurrency is not None
        self._limit = 0  # requests from here on cannot come yet
        self._first = [math.nan] * requests.count
        self._end = [math.nan] * requests.count
        self._computed = [0] * requests.count
        self._answered = [0] * requests.count
        self._clock = 0.0
        self._next = 0  # first request that has not come
        self._waiting: deque[int] = deque()
        self._chunked: deque[int] = deque()  # taken in, not yet computed whole
        self._running: dict[int, float] = {}  # request -> tick at which its last token is out, in order of start
        self._ends: list[tuple[float, int]] = []
        self._tick: float = 0
        self._context: float = 0  # tokens of all running sequences
        self._held = 0.0  # bytes of cache
        self._growth = seats.token_bytes * (1.0 - self._reserved)  # that a token of an answer adds
        self._preempted = self._steps = self._batches = self._answering = 0
        for _ in range(requests.concurrency or requests.count):
            self._let_come()

    def done(self) -> Simulation:
        """Return what became of all requests."""
        while True:
            while self._next < self._limit and self._arrivals[self._next] <= self._clock:
                self._waiting.append(self._next)
                self._next += 1
            chunks, finished = self._build()
            if chunks:
                self._mixed_step(chunks, finished)
            elif finished:
                for request in finished:
                    self._start(request)
            elif self._running:
                self._answer()
            elif self._next < self._limit:
                self._clock = max(self._clock, self._arrivals[self._next])
            else:
                break
        assert not self._waiting, "with nothing running everything that fits is taken in"
        late_N = self._late_N()
        return Simulation(
            arrival_N=np.asarray(self._arrivals),
            first_token_N=np.asarray(self._first) + late_N,
            end_N=np.asarray(self._end) + late_N,
            outputs_N=np.asarray(self._outputs, dtype=np.int64),
            prompts_N=np.asarray(self._prompts, dtype=np.int64),
            preempted=self._preempted,
            steps=self._steps,
            mean_batch=self._batches / max(self._answering, 1),
        )

    def _late_N(self) -> FloatArray:
        """Return what every request waits beside the engine's steps: at its door, and for the pipeline to fill."""
        door_N = np.full(len(self._arrivals), self._costs.first_token_seconds)
        if self._costs.shape.pp == 1 or self._role is Role.DECODE:
            return door_N
        lengths = [(prompt - cached, cached) for prompt, cached in zip(self._prompts, self._cached, strict=True)]
        fill = {
            (tokens, past): self._costs.filling_seconds(tokens, budget=self._seats.tokens, past=past)
            for tokens, past in dict.fromkeys(lengths)
        }
        late_N: FloatArray = door_N + np.array([fill[length] for length in lengths])
        return late_N

    def _let_come(self) -> None:
        """Let one request more come: by its clock, or in a closed loop now."""
        if self._limit < len(self._arrivals):
            if self._closed:
                self._arrivals[self._limit] = self._clock
            self._limit += 1

    def _size(self, request: int) -> float:
        """Return the bytes that are held for a request: its tokens and the reserved part of what is left to answer."""
        left = self._outputs[request] - self._answered[request]
        tokens = self._prompts[request] + self._answered[request] + self._reserved * left
        return tokens * self._seats.token_bytes + self._seats.sequence_bytes

    def _build(self) -> tuple[list[tuple[float, float]], list[int]]:
        """Return the chunks of the next step, and the requests whose prompts are whole behind it."""
        chunks: list[tuple[float, float]] = []
        finished: list[int] = []
        budget = self._budget - (len(self._running) * self._queries if self._mixed else 0)
        while budget > 0 and (self._chunked or self._admit(len(finished))):
            request = self._chunked[0]
            if self._role is Role.DECODE and not self._answered[request]:
                finished.append(self._chunked.popleft())  # its cache came from elsewhere
                continue
            past = self._computed[request]
            left = self._prompts[request] + self._answered[request] - past
            if not self._seats.chunked and left > budget and chunks:
                break
            tokens = min(left, budget) if self._seats.chunked else left
            chunks.append((float(tokens), float(past)))
            self._computed[request] = past + tokens
            budget -= tokens
            if tokens == left:
                finished.append(self._chunked.popleft())
        return chunks, finished

    def _admit(self, starting: int) -> bool:
        """Take in the first waiting request for which a seat and room are free; refuse what can never fit.

        Args:
            starting: Requests that run from the next step on.
        """
        seats = self._seats
        while self._waiting and len(self._running) + starting + len(self._chunked) < seats.sequences:
            request = self._waiting[0]
            whole = (self._prompts[request] + self._outputs[request]) * seats.token_bytes + seats.sequence_bytes
            if whole > seats.pool_bytes:
                self._waiting.popleft()
                if self._closed:
                    self._let_come()
                continue
            size = self._size(request)
            if self._held + size > seats.pool_bytes:
                return False
            self._waiting.popleft()
            self._computed[request] = 0 if self._answered[request] else self._cached[request]
            self._held += size
            self._chunked.append(request)
            return True
        return False

    def _mixed_step(self, chunks: list[tuple[float, float]], finished: list[int]) -> None:
        """Run one step with chunks of prompts."""
        decodes = len(self._running) if self._mixed and self._room(1) else 0
        seconds = self._costs.seconds(
            chunks=chunks,
            decodes=decodes,
            context=self._context / decodes if decodes else 0.0,
            finished=len(finished),
        )
        self._pass(seconds, 1, decodes)
        for request in finished:
            self._start(request)

    def _answer(self) -> None:
        """Run steps of running answers alone until something happens."""
        steps = self._room(max(1, math.ceil((self._ends[0][0] - self._tick) / self._gain - ROUNDING)))
        decodes = len(self._running)
        context = self._context / decodes
        seconds = self._costs.seconds(decodes=decodes, context=context + self._gain * (steps - 1) / 2)
        if self._next < self._limit and steps > 1:
            wait = self._arrivals[self._next] - self._clock
            if wait < steps * seconds:
                # Contexts grow evenly: the mean of the first of so many steps lies between the first and that of all.
                first = self._costs.seconds(decodes=decodes, context=context)
                mean = first + (seconds - first) * wait / (steps * seconds)
                steps = min(steps, max(1, math.ceil(wait / mean)))
                seconds = self._costs.seconds(decodes=decodes, context=context + self._gain * (steps - 1) / 2)
        self._pass(steps * seconds, steps, decodes)

    def _room(self, steps: int) -> int:
        """Return how many of the steps find room, one at least: what was started last is put back until one does."""
        growth = self._growth
        if growth <= 0 or not self._running:
            return steps
        while True:
            possible = int((self._seats.pool_bytes - self._held) / (growth * self._gain * len(self._running)))
            if possible >= 1 or len(self._running) == 1:
                return max(1, min(possible, steps))
            request, end = self._running.popitem()
            answered = self._outputs[request] - (end - self._tick)
            self._held -= self._size(request) + (answered - self._answered[request]) * growth
            self._context -= self._prompts[request] + answered
            self._answered[request] = int(answered)
            self._waiting.appendleft(request)
            self._preempted += 1

    def _pass(self, seconds: float, steps: int, decodes: int) -> None:
        """Let time pass in which `decodes` running answers go `steps` steps on, and end those that are whole."""
        self._clock += seconds
        self._steps += steps
        if not decodes:
            return
        tokens = steps * self._gain
        self._tick += tokens
        self._answering += steps
        self._batches += decodes * steps
        self._context += decodes * tokens
        self._held += decodes * tokens * self._growth
        while self._ends and self._ends[0][0] <= self._tick + ROUNDING:
            end, request = heapq.heappop(self._ends)
            if self._running.get(request) == end:
                del self._running[request]
                over = self._tick - end
                self._context -= self._prompts[request] + self._outputs[request] + over
                self._held -= over * self._growth
                self._finish(request)

    def _start(self, request: int) -> None:
        """Let the first token of a request be out, or the next one of one that was put back."""
        if math.isnan(self._first[request]):
            self._first[request] = self._clock
        self._answered[request] += 1
        self._held += self._growth
        left = self._outputs[request] - self._answered[request]
        if not left:
            self._finish(request)
            return
        end = self._tick + left
        self._running[request] = end
        heapq.heappush(self._ends, (end, request))
        self._context += self._prompts[request] + self._answered[request]

    def _finish(self, request: int) -> None:
        self._answered[request] = self._outputs[request]
        self._end[request] = self._clock
        self._held -= self._size(request)
        if self._closed:
            self._let_come()
