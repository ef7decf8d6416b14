"""How long one step of an engine takes, from its operators and the prices of its kernels.

A step holds chunks of prompts and one token of each running answer. Its time is

    host + products and experts of all tokens + element-wise kernels + exchanges + attention of chunks
         + attention of answers + LM head of the tokens that are sampled from + moves of a balancer of experts.

Everything but attention stands in tables (`planner.serving.step_tables`). An answer that is guessed ahead brings more
tokens into a step than one (`queries`), and passes of a draft come before it (`planner.serving.speculation`).

Data-parallel ranks run in step: a step has as many tokens on each, and experts see those of all. Pipeline stages each
hold a micro-batch of the step; its time is one micro-batch's way through all stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.serving.attention_times import DecodeTimes, PromptTimes
from planner.serving.context_parallel import ContextExchange
from planner.serving.engines import Engine
from planner.serving.rank_model import RankModel
from planner.serving.step_tables import StepTables, at_tokens
from planner.serving_plans.layout import EngineShape


class Term:
    """Names of what a step's time is spent on."""

    HOST = "host"
    PRODUCTS = "linear layers"
    EXPERTS = "experts"
    ELEMENT_WISE = "element-wise kernels"
    EXCHANGE = "collectives"
    PROMPTS = "attention of prompts"
    ANSWERS = "attention of answers"
    HEAD = "lm head"
    DRAFT = "draft"
    MOVES = "moves of experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """How running answers come into a step.

    Args:
        queries: Tokens of each in a step: its last one, and guesses that are checked.
        sampled: Of these, tokens that the LM head multiplies.
        gain: Tokens that each gets from a step in the mean.
        passes: What guesses them; None where nothing is guessed.
    """

    queries: int = 1
    sampled: int = 1
    gain: float = 1
    passes: "DraftPasses | None" = None


ONE_BY_ONE = Answering()


class StepCosts:
    """Prices steps of one engine; `planner.serving.prices` makes it.

    Args:
        rank: What a rank holds and runs.
        shape: How the engine lies on its GPUs.
        engine: Which engine it is.
        tables: What its kernels take.
        attention: For each kind of attention its layers, and what times it in answers and in prompts.
        context: What sharing the context out over ranks takes; None where it is not.
        answering: How running answers come into a step.
        moves_seconds: What a balancer's moves of experts add to a step, in the mean.
    """

    def __init__(  # noqa: PLR0913 - the parts of a price
        self,
        *,
        rank: RankModel,
        shape: EngineShape,
        engine: Engine,
        tables: StepTables,
        attention: Sequence[tuple[int, DecodeTimes, PromptTimes]],
        context: ContextExchange | None = None,
        answering: Answering = ONE_BY_ONE,
        moves_seconds: float = 0.0,
    ) -> None:
        self.rank = rank
        self.shape = shape
        self.engine = engine
        self.tables = tables
        self.answering = answering
        self._context = context
        self._moves = moves_seconds
        self._terms_T = {
            Term.PRODUCTS: engine.compute_factor * tables.products_T,
            Term.EXPERTS: engine.compute_factor * tables.experts_T,
            Term.ELEMENT_WISE: tables.stream_T,
            Term.EXCHANGE: tables.exchange_T,
        }
        self._fixed = engine.step_seconds + (
            tables.num_kernels * engine.kernel_seconds
            + tables.expert_layers * engine.experts_seconds
            + tables.latent_layers * engine.latent_seconds
        )
        self._tokens_T: list[float] = sum(self._terms_T.values(), np.zeros_like(tables.products_T)).tolist()
        self._scans_T: list[float] = tables.scans_T.tolist()
        self._head_T: list[float] = tables.head_T.tolist()
        self._decode = [(count, decode) for count, decode, _ in attention]
        self._prompts = [(count, prompts) for count, _, prompts in attention]
        self._recurs = any(layer.recurrence is not None for layer in rank.layers)
        # The last answers asked for: a step with a prompt is asked for beside the same one without.
        self._answered = (-1.0, 0.0, 0.0)

    def seconds(
        self,
        *,
        chunks: Sequence[tuple[float, float]] = (),
        decodes: float = 0,
        context: float = 0.0,
        finished: float = 0,
    ) -> float:
        """Return the time of one step of a data-parallel rank.

        Args:
            chunks: Of each prompt in the step its tokens and those before them.
            decodes: Answers that are continued.
            context: Tokens that each of them sees, in the mean.
            finished: Prompts whose last token is in the step, so that it is sampled from.
        """
        answering = self.answering
        prompt_tokens = sum(tokens for tokens, _ in chunks)
        total = self._fixed + self._moves + self.engine.sequence_seconds * (decodes + len(chunks))
        total += at_tokens(self._tokens_T, prompt_tokens + decodes * answering.queries) + at_tokens(
            self._head_T, decodes * answering.sampled + finished
        )
        if decodes:
            total += self.answers_seconds(decodes, context)
        if chunks:
            total += self.prompts_seconds(chunks)
        if self._context is not None:
            total += self._context.seconds(chunks, decodes * answering.queries)
        if answering.passes is not None:
            total += answering.passes.seconds(chunks=chunks, decodes=decodes, context=context, finished=finished)
        return total

    @property
    def first_token_seconds(self) -> float:
        """Return what the first token takes beside its steps."""
        with_experts = self.engine.first_token_experts_seconds if self.rank.has_experts else 0.0
        return self.engine.first_token_seconds + with_experts

    def filling_seconds(self, tokens: float, *, budget: float, past: float = 0.0) -> float:
        """Return what a prompt waits for a pipeline to fill, beside the time in which the stages could begin others.

        A chunk is one micro-batch: its way through pp stages takes pp times as long as the stages are busy with it
        each, and a step prices it as if it were cut into pp (Narayanan and others, arXiv 2104.04473, section 2.2.1).
        vLLM gives a prompt of no more than its budget to one micro-batch (`vllm/v1/core/sched/scheduler.py`).

        Args:
            tokens: Tokens of the prompt that are computed.
            budget: Tokens of a micro-batch.
            past: Tokens in front of its last chunk.
        """
        pp = self.shape.pp
        if pp == 1 or tokens <= 0:
            return 0.0
        chunk = min(tokens, budget)
        way = self.seconds(chunks=[(chunk * pp, past + tokens - chunk)], finished=1)
        return way * (1 - 1 / pp)

    def answers_seconds(self, decodes: float, context: float) -> float:
        """Return the time of all layers' attention and recurrences of running answers."""
        if self._answered[:2] == (decodes, context):
            return self._answered[2]
        each = max(decodes / self.shape.pp, 1.0) if decodes else 0.0
        total = each * self.tables.state_seconds if self._recurs else 0.0
        seen = context / self.shape.dcp
        for count, decode in self._decode:
            total += count * decode.seconds(each, seen)
        self._answered = (decodes, context, total)
        return total

    def prompts_seconds(self, chunks: Sequence[tuple[float, float]]) -> float:
        """Return the time of all layers' attention and recurrences of prompts' chunks."""
        pp = self.shape.pp
        parts = [(tokens / pp, past) for tokens, past in chunks] if pp > 1 else chunks
        total = at_tokens(self._scans_T, sum(tokens for tokens, _ in chunks)) if self._recurs else 0.0
        for count, prompts in self._prompts:
            total += count * prompts.seconds(parts)
        return total

    def breakdown(
        self,
        *,
        chunks: Sequence[tuple[float, float]] = (),
        decodes: float = 0,
        context: float = 0.0,
        finished: float = 0,
    ) -> dict[str, float]:
        """Return the seconds of one step by term; they sum to `seconds`."""
        answering = self.answering
        tokens = sum(tokens for tokens, _ in chunks) + decodes * answering.queries
        found = {
            Term.HOST: self._fixed + self.engine.sequence_seconds * (decodes + len(chunks)),
            Term.HEAD: at_tokens(self._head_T, decodes * answering.sampled + finished),
            Term.PROMPTS: self.prompts_seconds(chunks) if chunks else 0.0,
            Term.ANSWERS: self.answers_seconds(decodes, context) if decodes else 0.0,
        }
        found |= {name: at_tokens(seconds_T.tolist(), tokens) for name, seconds_T in self._terms_T.items()}
        if self._context is not None:
            found[Term.EXCHANGE] += self._context.seconds(chunks, decodes * answering.queries)
        if self._moves:
            found[Term.MOVES] = self._moves
        if answering.passes is not None:
            found[Term.DRAFT] = answering.passes.seconds(
                chunks=chunks, decodes=decodes, context=context, finished=finished
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPasses:
    """The passes of a draft before each step of the model that it guesses for.

    The first takes in all tokens of the step, prompts' chunks among them, so that the draft's cache is as far as the
    model's; each further one continues every answer by one guess. A pass is taken to occupy the host as long as a
    step of its own, which is an upper bound.

    Args:
        first: Prices the first pass.
        further: Prices each further one.
        guesses: Tokens that are guessed.
    """

    first: StepCosts
    further: StepCosts
    guesses: int

    def seconds(
        self, *, chunks: Sequence[tuple[float, float]], decodes: float, context: float, finished: float
    ) -> float:
        """Return the time of all passes of a step; arguments as of `StepCosts.seconds`."""
        total = self.first.seconds(chunks=chunks, decodes=decodes, context=context, finished=finished)
        running = decodes + finished
        if running and self.guesses > 1:
            total += (self.guesses - 1) * self.further.seconds(decodes=running, context=context)
        return total
