"""One model on one cluster: everything that layouts share is computed once and kept here."""

from planner.serving.attention_times import DecodeTimes, PromptTimes
from planner.serving.engines import Engine, KernelFactors, calibration
from planner.serving.formats import ServedFormats
from planner.serving.rank_operators import AttentionCore, RankModel, rank_model, serving_graph
from planner.serving.step_costs import StepCosts, StepTables, step_tables
from planner.serving_layout import EngineShape
from planner.specs import ModelSpec
from profiles.hardware import Cluster


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
        self._ranks: dict[tuple[EngineShape, ServedFormats], RankModel] = {}
        self._tables: dict[tuple[EngineShape, ServedFormats, str], StepTables] = {}
        self._answers: dict[tuple[AttentionCore, float], DecodeTimes] = {}
        self._prompts: dict[AttentionCore, PromptTimes] = {}

    def rank(self, shape: EngineShape, formats: ServedFormats) -> RankModel:
        """Return what one rank of an engine holds and runs."""
        key = (shape, formats)
        if key not in self._ranks:
            self._ranks[key] = rank_model(self.model, self._graph, shape, formats)
        return self._ranks[key]

    def costs(self, shape: EngineShape, formats: ServedFormats, engine: Engine) -> StepCosts:
        """Return what prices steps of an engine.

        Raises:
            CoverageError: The GPU lacks a rate that the model's formats need.
        """
        rank, key = self.rank(shape, formats), (shape, formats)
        if (*key, engine.name) not in self._tables:
            self._tables[*key, engine.name] = step_tables(
                rank, shape, self.cluster, factors=self._factors, engine=engine
            )
        attention = [
            (layer.count, self._answers_of(layer.attention, formats.cache_bytes), self._prompts_of(layer.attention))
            for layer in rank.layers
            if layer.attention is not None
        ]
        return StepCosts(
            rank=rank, shape=shape, engine=engine, tables=self._tables[*key, engine.name], attention=attention
        )

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
