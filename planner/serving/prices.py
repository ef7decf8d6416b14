"""One model on one cluster: everything that layouts share is computed once and kept here."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.models.specs import ModelSpec
from planner.serving.attention_times import DecodeTimes, PromptTimes
from planner.serving.balancer import moves_seconds
from planner.serving.context_parallel import context_exchange
from planner.serving.engines import Engine, KernelFactors, calibration
from planner.serving.exchange import ExchangeTimes
from planner.serving.formats import ServedFormats
from planner.serving.rank_model import AttentionCore, RankModel
from planner.serving.rank_operators import EVEN, Balance, rank_model, serving_graph
from planner.serving.step_costs import ONE_BY_ONE, Answering, DraftPasses, StepCosts
from planner.serving.step_tables import LayerKernels, StepTables, step_tables
from planner.serving_plans.layout import EngineShape
from profiles.estimate import Source
from profiles.hardware import Cluster

if TYPE_CHECKING:
    from planner.serving.measured import Measured

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
        measured: What a profile says of its kernels; what the cluster's says where None.
    """

    def __init__(
        self,
        model: ModelSpec,
        cluster: Cluster,
        factors: KernelFactors | None = None,
        *,
        measured: "Measured | None" = None,
    ) -> None:
        self._factors = calibration().kernels if factors is None else factors
        self.model = model
        self.cluster = cluster
        self._graph = serving_graph(model)
        if measured is None and cluster.profile is not None:
            measured = _measured_on(cluster)
        self._measured = measured
        self._ranks: dict[Key, RankModel] = {}
        self._tables: dict[tuple[Key, str], StepTables] = {}
        self._answers: dict[tuple[AttentionCore, float], DecodeTimes] = {}
        self._prompts: dict[AttentionCore, PromptTimes] = {}

    @property
    def is_measured(self) -> bool:
        """Return whether a profile prices some kernels."""
        return self._measured is not None

    def counting(self, source: Source) -> "ServingPrices":
        """Return the same prices where those of one source count, and all others are 0: parts of a step."""
        assert self._measured is not None, "without a profile there is one source"
        return ServingPrices(self.model, self.cluster, self._factors, measured=self._measured.counting(source))

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
        exchange = self.exchange(engine)
        if (key, engine.name) not in self._tables:
            self._tables[key, engine.name] = step_tables(rank, shape, kernels=self._kernels(engine), exchange=exchange)
        return StepCosts(
            rank=rank,
            shape=shape,
            engine=self.engine(engine),
            tables=self._tables[key, engine.name],
            attention=self._attention(rank, shape, formats, queries=answering.queries),
            context=context_exchange(rank, shape, exchange, cache_bytes=formats.cache_bytes),
            answering=answering,
            moves_seconds=0.0 if balance.redundant is None else self._moves_seconds(rank, shape, exchange),
        )

    def _moves_seconds(self, rank: RankModel, shape: EngineShape, exchange: ExchangeTimes) -> float:
        copies = 1.0 if self._measured is None else self._measured.rest
        return moves_seconds(rank, shape, exchange, copies=copies)

    def engine(self, engine: Engine) -> Engine:
        """Return an engine whose small kernels start in the time that was measured, where that is longer.

        A bare graph of one kernel bounds what an engine's take from below, as a bare loop does a framework's launches.
        """
        if self._measured is None:
            return engine
        kernel_seconds = self._kernel_seconds(engine)
        if self._measured.only is None:
            return replace(engine, kernel_seconds=kernel_seconds)
        counts = kernel_seconds > engine.kernel_seconds and self._measured.only is Source.MEASURED
        return replace(
            engine,
            step_seconds=0.0,
            sequence_seconds=0.0,
            kernel_seconds=kernel_seconds if counts else 0.0,
            experts_seconds=0.0,
            latent_seconds=0.0,
        )

    def _kernel_seconds(self, engine: Engine) -> float:
        bare = None if self._measured is None else self._measured.rows.kernel_seconds
        return max(engine.kernel_seconds, bare or 0.0)

    def exchange(self, engine: Engine) -> ExchangeTimes:
        """Return what prices collectives of an engine."""
        if self._measured is None:
            return ExchangeTimes(self.cluster, engine.sums)
        from planner.serving.measured_kernels import MeasuredExchangeTimes  # noqa: PLC0415 - with a profile alone

        return MeasuredExchangeTimes(self.cluster, engine.sums, measured=self._measured)

    def _kernels(self, engine: Engine) -> LayerKernels:
        if self._measured is None:
            return LayerKernels(self.cluster.device, self._factors, engine.name)
        from planner.serving.measured_kernels import MeasuredLayerKernels  # noqa: PLC0415 - with a profile alone

        return MeasuredLayerKernels(
            self.cluster.device,
            self._factors,
            engine.name,
            measured=self._measured,
            kernel_seconds=self._kernel_seconds(engine),
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
            self._answers[key] = self._new_answers(core, cache_bytes)
        return self._answers[key]

    def _new_answers(self, core: AttentionCore, cache_bytes: float) -> DecodeTimes:
        hidden, device = self._factors.hidden_start, self.cluster.device
        if self._measured is None:
            return DecodeTimes(core, cache_bytes, device, hidden_start=hidden)
        from planner.serving.measured_attention import MeasuredDecodeTimes  # noqa: PLC0415 - with a profile alone

        return MeasuredDecodeTimes(core, cache_bytes, device, hidden_start=hidden, measured=self._measured)

    def _prompts_of(self, core: AttentionCore) -> PromptTimes:
        if core not in self._prompts:
            self._prompts[core] = self._new_prompts(core)
        return self._prompts[core]

    def _new_prompts(self, core: AttentionCore) -> PromptTimes:
        hidden, device = self._factors.hidden_start, self.cluster.device
        if self._measured is None:
            return PromptTimes(core, device, hidden_start=hidden)
        from planner.serving.measured_attention import MeasuredPromptTimes  # noqa: PLC0415 - with a profile alone

        return MeasuredPromptTimes(core, device, hidden_start=hidden, measured=self._measured)


def _measured_on(cluster: Cluster) -> "Measured | None":
    """Return what the profile of a cluster says of engines; SciPy, which it needs, is loaded with one alone."""
    from planner.serving.measured import measured_on  # noqa: PLC0415

    return measured_on(cluster)
