"""Predicts rows of serving files: time to the first token, time for each next one, throughput, whether it fits.

A steady row is a closed loop: `WAVES` times as many requests as are under way, all of the first wave at once. Times are
means over all requests. A static row is one batch; an offline row runs as many requests as its cache holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.accuracy.measurements import Row
from planner.accuracy.serving_rows import Mode, ServedRun, ServedRuns
from planner.serving.engines import Calibration, calibration
from planner.serving.ledger import KvLedger, default_settings, kv_ledger
from planner.serving.simulate import Seats, seats_of, simulate
from planner.serving.steady import Load, at_concurrency, most_running, prefill_seconds
from planner.serving.traffic import closed_loop
from planner.serving_plans.layout import EngineSettings
from profiles.errors import ProfileError

WAVES = 10
"""Requests over those under way: benchmarks' usual length of a run (InferenceX: ten prompts a client)."""

MOST_MEMORY_FRACTION = 0.97
"""A row does not say which part of the memory its engine took: its default, or where that is too little, this."""

STATIC_TOKENS = 1 << 20
"""A static batch's prompts are one step."""

FIGURES = ("ttft_ms", "tpot_ms", "total_tokens_per_s_per_gpu", "output_tokens_per_s_per_gpu")
"""What was measured; a row that holds something else than a number there is not predicted."""

OFFLINE_SEQUENCES = 2048
"""Sequences that an offline run has at once at most: TensorRT-LLM's default `max_batch_size`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPrediction:
    """One row with its prediction, or with the reason why there is none.

    Args:
        row: The row.
        run: What it describes; None where it says too little.
        error: Why it is not predicted; None where it is.
        ttft_seconds: Predicted mean time to the first token; None where the row's mode has none.
        tpot_seconds: Predicted mean time for each further token, likewise.
        total_tokens_per_second_per_gpu: Predicted, prompts included.
        output_tokens_per_second_per_gpu: Predicted.
        fits: The engine holds its weights and one request at least; None where it is not known.
    """

    row: Row
    run: ServedRun | None
    error: str | None = None
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    total_tokens_per_second_per_gpu: float | None = None
    output_tokens_per_second_per_gpu: float | None = None
    fits: bool | None = None

    @property
    def measured_ttft_seconds(self) -> float | None:
        """Return the measured time to the first token."""
        return _thousandth(self.row.figure("ttft_ms"))

    @property
    def measured_tpot_seconds(self) -> float | None:
        """Return the measured time for each further token."""
        return _thousandth(self.row.figure("tpot_ms"))

    @property
    def measured_total(self) -> float | None:
        """Return the printed tokens of prompts and answers a second and GPU."""
        return self.row.figure("total_tokens_per_s_per_gpu")

    @property
    def measured_output(self) -> float | None:
        """Return the printed tokens of answers a second and GPU."""
        return self.row.figure("output_tokens_per_s_per_gpu")


def _thousandth(number: float | None) -> float | None:
    return None if number is None else number / 1e3


class ServingPredictor:
    """Predicts rows of serving files.

    Args:
        constants: Engines and what kernels reach in them; those of the package where None.
    """

    def __init__(self, constants: Calibration | None = None) -> None:
        self.runs = ServedRuns(calibration() if constants is None else constants)

    def predict(self, row: Row) -> ServingPrediction:
        """Return the prediction of a row."""
        run: ServedRun | None = None
        try:
            run = self.runs.of(row)
            for column in FIGURES:
                row.number(column)
            return self._of(run)
        except ValueError as error:
            return ServingPrediction(row=row, run=run, error=str(error))
        except ProfileError as error:
            return ServingPrediction(row=row, run=run, error=f"a cost is missing: {error}")

    def _of(self, run: ServedRun) -> ServingPrediction:
        ledger, settings = memory_of(run)
        if not ledger.fits:
            return ServingPrediction(row=run.row, run=run, fits=False)
        seats = seats_of(ledger, settings, typical_tokens=run.prompt + run.output // 2)
        predict = {Mode.STEADY: _steady, Mode.STATIC: _static, Mode.OFFLINE: _offline}[run.mode]
        return predict(run, seats)


def memory_of(run: ServedRun) -> tuple[KvLedger, EngineSettings]:
    """Return the ledger of a row's engine, and what it was told: its defaults, and memory as it needs it."""
    settings = default_settings(run.engine, max_model_len=run.prompt + run.output)
    costs = run.prices.rank(run.shape, run.formats)

    def ledger(settings: EngineSettings) -> KvLedger:
        return kv_ledger(
            rank=costs,
            shape=run.shape,
            formats=run.formats,
            engine=run.engine,
            settings=settings,
            cluster=run.prices.cluster,
        )

    found = ledger(settings)
    if not found.fits:
        settings = replace(settings, gpu_memory_utilization=MOST_MEMORY_FRACTION)
        found = ledger(settings)
    return found, settings


def _steady(run: ServedRun, seats: Seats) -> ServingPrediction:
    """Return the prediction of a closed loop."""
    if run.concurrency is None:
        raise ValueError("concurrency_or_batch is empty")
    concurrency = max(1, round(run.concurrency / run.shape.dp))
    requests = closed_loop(
        count=WAVES * concurrency,
        concurrency=concurrency,
        prompt=run.prompt,
        output=run.output,
        spread=run.spread,
    )
    found = simulate(requests, costs=run.prices.costs(run.shape, run.formats, run.engine), seats=seats)
    if found.refused:
        return ServingPrediction(row=run.row, run=run, fits=False)
    ranks = run.shape.dp / run.shape.num_gpus
    prompts = float(found.prompts_N.sum()) / found.seconds
    return ServingPrediction(
        row=run.row,
        run=run,
        ttft_seconds=float(found.ttft_N.mean()),
        tpot_seconds=float(np.nanmean(found.tpot_N)) if run.output > 1 else None,
        total_tokens_per_second_per_gpu=(found.output_tokens_per_second + prompts) * ranks,
        output_tokens_per_second_per_gpu=found.output_tokens_per_second * ranks,
        fits=True,
    )


def closed_form(run: ServedRun) -> tuple[float, float, float]:
    """Return a steady row's time between tokens, of a prompt's prefill, and what every first token takes beside it.

    Raises:
        ValueError: The row has no concurrency.
    """
    if run.concurrency is None:
        raise ValueError("concurrency_or_batch is empty")
    ledger, settings = memory_of(run)
    seats = seats_of(ledger, settings, typical_tokens=run.prompt + run.output // 2)
    costs = run.prices.costs(run.shape, run.formats, run.engine)
    share = (1 + run.spread) / 2
    load = Load(prompt=run.prompt * share, output=run.output * share)
    found = at_concurrency(costs, seats, load, max(1.0, run.concurrency / run.shape.dp))
    return found.tpot_seconds, prefill_seconds(costs, seats, load, decodes=found.batch / 2), costs.first_token_seconds


def _static(run: ServedRun, seats: Seats) -> ServingPrediction:
    """Return the prediction of one batch; its first token comes to nobody through a server."""
    if run.concurrency is None:
        raise ValueError("concurrency_or_batch is empty")
    bare = replace(run.engine, first_token_seconds=0.0, first_token_experts_seconds=0.0)
    batch = max(1, round(run.concurrency / run.shape.dp))
    requests = closed_loop(count=batch, concurrency=batch, prompt=run.prompt, output=run.output)
    costs = run.prices.costs(run.shape, run.formats, bare)
    found = simulate(requests, costs=costs, seats=replace(seats, tokens=STATIC_TOKENS, sequences=batch))
    if found.refused:
        return ServingPrediction(row=run.row, run=run, fits=False)
    ranks = run.shape.dp / run.shape.num_gpus
    return ServingPrediction(
        row=run.row,
        run=run,
        ttft_seconds=float(found.ttft_N.mean()),
        tpot_seconds=float(np.nanmean(found.tpot_N)) if run.output > 1 else None,
        total_tokens_per_second_per_gpu=(found.output_tokens_per_second * (1 + run.prompt / run.output)) * ranks,
        output_tokens_per_second_per_gpu=found.output_tokens_per_second * ranks,
        fits=True,
    )


def _offline(run: ServedRun, seats: Seats) -> ServingPrediction:
    """Return the prediction of a run with as many requests as fit, in closed form."""
    costs = run.prices.costs(run.shape, run.formats, run.engine)
    load = Load(prompt=run.prompt, output=run.output)
    batch = min(OFFLINE_SEQUENCES, run.concurrency or OFFLINE_SEQUENCES)
    found = at_concurrency(costs, seats, load, min(batch, most_running(seats, load)))
    ranks = run.shape.dp / run.shape.num_gpus
    return ServingPrediction(
        row=run.row,
        run=run,
        total_tokens_per_second_per_gpu=found.requests_per_second * (run.prompt + run.output) * ranks,
        output_tokens_per_second_per_gpu=found.requests_per_second * run.output * ranks,
        fits=True,
    )


def predict_all(
    predictor: ServingPredictor, rows: Sequence[Row], *, progress: Callable[[str], None] = lambda _: None
) -> list[ServingPrediction]:
    """Return the predictions of rows, in order."""
    found = []
    for number, row in enumerate(rows):
        if number % 100 == 0:
            progress(f"row {number:,} of {len(rows):,}")
        found.append(predictor.predict(row))
    return found
