"""Engines of bundled models on the catalogue's nodes, priced."""

from dataclasses import dataclass, replace
from functools import cache

from planner.models.bundled import load_bundled
from planner.serving.engines import Engine, engine_named
from planner.serving.formats import ServedFormats, formats_of
from planner.serving.ledger import KvLedger, default_settings, kv_ledger
from planner.serving.prices import ServingPrices
from planner.serving.simulate import Seats, seats_of
from planner.serving.step_costs import StepCosts
from planner.serving_plans.layout import EngineSettings, EngineShape
from profiles.catalogue import load_preset


@dataclass(frozen=True, kw_only=True)
class Served:
    """One engine of one model, with what its parts say of it."""

    prices: ServingPrices
    shape: EngineShape
    formats: ServedFormats
    engine: Engine

    @property
    def costs(self) -> StepCosts:
        return self.prices.costs(self.shape, self.formats, self.engine)

    def settings(self, *, max_model_len: int = 8192) -> EngineSettings:
        return default_settings(self.engine, max_model_len=max_model_len)

    def ledger(self, settings: EngineSettings | None = None, *, max_model_len: int = 8192) -> KvLedger:
        return kv_ledger(
            rank=self.prices.rank(self.shape, self.formats),
            shape=self.shape,
            formats=self.formats,
            engine=self.engine,
            settings=self.settings(max_model_len=max_model_len) if settings is None else settings,
            cluster=self.prices.cluster,
        )

    def seats(self, *, sequences: int = 1024, pool_bytes: float | None = None) -> Seats:
        found = seats_of(self.ledger(), replace(self.settings(), max_num_seqs=sequences), typical_tokens=1024)
        return found if pool_bytes is None else replace(found, pool_bytes=pool_bytes)


@cache
def prices_of(model: str, preset: str) -> ServingPrices:
    return ServingPrices(load_bundled(model), load_preset(preset).to_cluster())


def served(
    model: str = "llama-3.1-8b",
    *,
    preset: str = "dgx-h100",
    quantisation: str = "bf16",
    cache: str = "bfloat16",
    engine: str = "vllm",
    shape: EngineShape | None = None,
) -> Served:
    prices = prices_of(model, preset)
    return Served(
        prices=prices,
        shape=EngineShape(tp=1) if shape is None else shape,
        formats=formats_of(quantisation, prices.model, cache=cache),
        engine=engine_named(engine),
    )
