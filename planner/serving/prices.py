"""One model on one cluster: everything that layouts share is computed once and kept here."""

from collections.abc import Sequence
from dataclasses import replace

from planner.serving.attention_times import DecodeTimes, PromptTimes
from planner.serving.balancer import moves_seconds
from planner.serving.context_parallel import context_exchange
from planner.serving.engines import Engine, KernelFactors, calibration
from planner.serving.exchange import ExchangeTimes
from planner.serving.formats import ServedFormats
from planner.serving.rank_operators import EVEN, AttentionCore, Balance, RankModel, rank_model, serving_graph
from planner.serving.step_costs import ONE_BY_ONE, Answering, DraftPasses, StepCosts
from planner.serving.step_tables import StepTables, step_tables
from planner.serving_layout import EngineShape
from planner.specs import ModelSpec
from profiles.hardware import Cluster

Key = tuple[EngineShape, ServedFormats, Balance]


def _key(shape: EngineShape, formats: ServedFormats, balance: Balance) -> Key:
    """Return what weights and kernels depend on: not on which ranks keep which part of a context."""
    return replace(shape, dcp=1), formats, balance


class ServingPrices:
    """Prices engines of one model on the GPUs of one cluster.

    Args:
        model: The model.
        cluster: The GPUs; engines stand on neighbouring ones.
        factors: What kernels reach inside an engine; those of the package where None.
    """

    def __init__(self, model: ModelSpec, cluster: Cluster, factors: KernelFactors | None = None) -> None:
        self._factors = calibration().kernels if factors is None else factors
        self.model = model
        self.cluster = cluster
        self._graph = serving_graph(model)
        self._ranks: dict[Key, RankModel] = {}
        self._tables: dict[tuple[Key, str], StepTables] = {}
        self._answers: dict[tuple[AttentionCore, float], DecodeTimes] = {}
        self._prompts: dict[AttentionCore, PromptTimes] = {}

    def rank(self, shape: EngineShape, formats: ServedFormats, balance: Balance = EVEN) -> RankModel:
        """Return what one rank of an engine holds and runs."""
        key = _key(shape, formats, balance)
        if key not in self._ranks:
            self._ranks[key] = rank_model(self.model, self._graph, shape, formats, balance)
        return self._ranks[key]

    def costs(
        self,
        shape: EngineShape,
        formats: ServedFormats,
        engine: Engine,
        *,
        balance: Balance = EVEN,
        answering: Answering = ONE_BY_ONE,
    ) -> StepCosts:
        """Return what prices steps of an engine.

        Raises:
            CoverageError: The GPU lacks a rate that the model's formats need.
        """
        rank, key = self.rank(shape, formats, balance), _key(shape, formats, balance)
        if (key, engine.name) not in self._tables:
            self._tables[key, engine.name] = step_tables(
                rank, shape, self.cluster, factors=self._factors, engine=engine
            )
        exchange = ExchangeTimes(self.cluster, engine.sums)
        return StepCosts(
            rank=rank,
            shape=shape,
            engine=engine,
            tables=self._tables[key, engine.name],
            attention=self._attention(rank, shape, formats, queries=answering.queries),
            context=context_exchange(rank, shape, exchange, cache_bytes=formats.cache_bytes),
            answering=answering,
            moves_seconds=0.0 if balance.redundant is None else moves_seconds(rank, shape, exchange),
        )

    def passes(self, shape: EngineShape, formats: ServedFormats, engine: Engine, *, guesses: int) -> DraftPasses:
        """Return what prices the passes of this model as the draft of another one's engine of this shape."""
        first = Answering(queries=guesses + 1)
        return DraftPasses(
            first=self.costs(shape, formats, engine, answering=first),
            further=self.costs(shape, formats, engine),
            guesses=guesses,
        )

    def _attention(
        self, rank: RankModel, shape: EngineShape, formats: ServedFormats, *, queries: int
    ) -> Sequence[tuple[int, DecodeTimes, PromptTimes]]:
        """Return the layers of each kind of attention, with what times it.

        Queries of one sequence share its cache as heads do; and a rank that keeps a part of each sequence attends to
        it with the heads of all ranks that keep the others.
        """
        found = []
        for layer in rank.layers:
            core = layer.attention
            if core is not None:
                wide = replace(core, num_heads=core.num_heads * queries * shape.dcp)
                found.append((layer.count, self._answers_of(wide, formats.cache_bytes), self._prompts_of(core)))
        return found

    def _answers_of(self, core: AttentionCore, cache_bytes: float) -> DecodeTimes:
        key = (core, cache_bytes)
        if key not in self._answers:
            self._answers[key] = DecodeTimes(
                core, cache_bytes, self.cluster.device, hidden_start=self._factors.hidden_start
            )
        return self._answers[key]

    def _prompts_of(self, core: AttentionCore) -> PromptTimes:
        if core not in self._prompts:
            self._prompts[core] = PromptTimes(core, self.cluster.device, hidden_start=self._factors.hidden_start)
        return self._prompts[core]
