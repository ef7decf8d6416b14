"""What a row of a serving file describes: model, GPUs, engine, layout, formats, lengths, load; and what was assumed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

from planner.accuracy.machines import cluster_named
from planner.accuracy.measurements import Row
from planner.errors import InputError
from planner.models.bundled import find_bundled, load_bundled
from planner.models.specs import ModelSpec
from planner.serving.engines import Calibration, Engine, Scheduling, engine_named
from planner.serving.formats import ServedFormats, formats_of
from planner.serving.prices import ServingPrices
from planner.serving_plans.layout import EngineShape

SCENARIOS = frozenset({(1024, 1024), (1024, 8192), (8192, 1024)})
"""Prompts and answers of InferenceX, a public benchmark: lengths are drawn evenly from 0.8 of these to these."""

SCENARIO_SPREAD = 0.8
"""The shortest of these lengths over the longest."""

FIXED_SPREAD = 0.98
"""Requests of one length drift apart in engines that mix prompts and answers, as a benchmark's clients do."""

_OWN_SWEEP = re.compile(r"source_file=\w+/\w+/")
"""A source's own sweep of one system and engine, in a file named after both: lengths are fixed."""


class Mode(StrEnum):
    """How a row was measured."""

    STEADY = "agg"
    """A number of requests is under way at any time."""
    STATIC = "static batch"
    """One batch from its beginning to its end."""
    OFFLINE = "agg offline max-throughput"
    """All requests at once; throughput alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRun:
    """One measured run, as far as its row says.

    Args:
        row: The row.
        mode: How it was measured.
        prices: Of its model on its GPUs.
        engine: Its engine.
        before: The version before which it is, where earlier versions have constants of their own; else None.
        shape: One engine's place on the GPUs.
        formats: What the model is held in.
        prompt: Tokens of a prompt, at most.
        output: Tokens of an answer, at most.
        spread: Shortest over longest length.
        concurrency: Requests under way on all data-parallel ranks; None where the row does not say.
        assumed: What filled empty cells.
    """

    row: Row
    mode: Mode
    prices: ServingPrices
    engine: Engine
    before: str | None
    shape: EngineShape
    formats: ServedFormats
    prompt: int
    output: int
    spread: float
    concurrency: int | None
    assumed: tuple[str, ...]

    @property
    def model(self) -> ModelSpec:
        """Return its model."""
        return self.prices.model

    @property
    def has_experts(self) -> bool:
        """Return whether the model has routed experts."""
        return self.model.has_experts


class ServedRuns:
    """Reads rows; prices of a model on a GPU are shared by all of them.

    Args:
        constants: Engines and what kernels reach in them.
    """

    def __init__(self, constants: Calibration) -> None:
        self._constants = constants
        self._prices: dict[tuple[str, int], ServingPrices] = {}

    def of(self, row: Row) -> ServedRun:
        """Return what a row describes.

        Raises:
            ValueError: It names what is not known, or says too little.
        """
        modes: Mapping[str, Mode] = {mode.value: mode for mode in Mode}
        if row.text("mode") not in modes:
            raise ValueError(f"mode = {row.quoted('mode')} says neither layout nor lengths that can be priced")
        mode = modes[row.text("mode")]
        name = row.text("model")
        bundled = find_bundled(name)
        if bundled is None:
            raise ValueError(f"model {row.quoted('model')} is not bundled")
        assumed: list[str] = []
        try:
            engine = self._constants.engines[engine_named(row.text("engine")).name]
            version, day = row.text("engine_version"), row.text("date")
            era = self._constants.era_of(engine.name, version=version, day=day)
            if era is not None:
                engine = replace(engine, sequence_seconds=era.sequence_seconds)
            if self._constants.eras.get(engine.name) and not (version or day):
                assumed.append("version: one of the newest")
            tp, pp = row.count("tp") or 1, row.count("pp") or 1
            dp, ep = row.count("dp") or 1, row.count("ep") or 1
            cluster, note = cluster_named(row.text("hardware"), tp * pp * dp)
            if note is not None:
                assumed.append(note)
            key = (bundled.name, id(cluster))
            if key not in self._prices:
                self._prices[key] = ServingPrices(_loaded(bundled.name), cluster, self._constants.kernels)
            prices = self._prices[key]
            if not row.text("quant"):
                assumed.append("quantisation: as the weights are published")
            formats = formats_of(row.text("quant"), prices.model)
        except InputError as error:
            raise ValueError(error.message) from None
        formats = formats.with_cache("fp8" if formats.quantised else "bfloat16")
        if formats.quantised:
            assumed.append("cache: fp8, as weights are quantised")
        prompt, output = row.needed("isl"), row.needed("osl")
        spread, note = _spread(row, mode, prompt, output, engine)
        assumed.append(note)
        return ServedRun(
            row=row,
            mode=mode,
            prices=prices,
            engine=engine,
            before=None if era is None else era.before,
            shape=EngineShape(tp=tp, pp=pp, dp=dp, expert_parallel=ep > 1),
            formats=formats,
            prompt=prompt,
            output=output,
            spread=spread,
            concurrency=row.count("concurrency_or_batch"),
            assumed=tuple(assumed),
        )


def _spread(row: Row, mode: Mode, prompt: int, output: int, engine: Engine) -> tuple[float, str]:
    """Return the shortest over the longest length, and what was assumed of it."""
    if mode is not Mode.STEADY:
        return 1.0, "lengths: all alike"
    if (prompt, output) in SCENARIOS and not _OWN_SWEEP.search(row.text("source")):
        return SCENARIO_SPREAD, f"lengths: even between {SCENARIO_SPREAD:g} of those in the row and those (InferenceX)"
    if engine.scheduling is Scheduling.PREFILL_FIRST and prompt % 1024 == 0:
        return 1.0, "lengths: all alike"
    return FIXED_SPREAD, f"lengths: even between {FIXED_SPREAD:g} of those in the row and those"


@lru_cache(maxsize=256)
def _loaded(name: str) -> ModelSpec:
    return load_bundled(name)
