"""How good predictions of serving runs are: errors, the order of layouts, regret, coverage, what fits.

Error is predicted over measured, less one; sources weigh alike in one line, rows alike in another. The order is judged
on pairs of layouts of one model, quantisation, hardware, engine, lengths and concurrency whose measured values lie
further apart than repeats of one configuration do (`NOISE`, `FIRST_TOKEN_NOISE`); beside it stands what counting GPUs
alone would give.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from planner.accuracy.scores import Errors, errors_of
from planner.accuracy.serving import ServingPrediction
from planner.accuracy.serving_exclusions import Sorting
from planner.accuracy.serving_rows import Mode
from planner.serving_plans.layout import EngineShape

NOISE = 1.05
"""Repeats of a configuration lie within 5 % in time between tokens, nine of ten of them."""
FIRST_TOKEN_NOISE = 1.13
"""The same of the time to the first token."""

CHOICE_COLUMNS = ("model", "quant", "hardware", "engine", "isl", "osl", "concurrency_or_batch")


class Metric(StrEnum):
    """What is predicted of a row."""

    TPOT = "time per token"
    TTFT = "first token"
    TOTAL = "tokens/s/GPU"
    OUTPUT = "answer tokens/s/GPU"


_PAIRS: Mapping[Metric, Callable[[ServingPrediction], tuple[float | None, float | None]]] = {
    Metric.TPOT: lambda entry: (entry.tpot_seconds, entry.measured_tpot_seconds),
    Metric.TTFT: lambda entry: (entry.ttft_seconds, entry.measured_ttft_seconds),
    Metric.TOTAL: lambda entry: (entry.total_tokens_per_second_per_gpu, entry.measured_total),
    Metric.OUTPUT: lambda entry: (entry.output_tokens_per_second_per_gpu, entry.measured_output),
}


def metric_errors(
    entries: Iterable[ServingPrediction], metric: Metric, *, sources_alike: bool = False
) -> Errors | None:
    """Return the errors of one metric; None where no row has it.

    Args:
        entries: Predictions.
        metric: Which figure.
        sources_alike: Every source weighs the same; else every row.
    """
    found = []
    for entry in entries:
        predicted, measured = _PAIRS[metric](entry)
        if predicted and measured:
            found.append((entry.row.text("source") if sources_alike else "", predicted, measured))
    return errors_of(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sets:
    """Predictions by what they count for.

    Args:
        every: All of them.
        clean: Those that count, steady.
        first_token: Of these, those whose first token counts.
        speculative: Those with guessed tokens.
        static: Those of static batches.
        offline: Those of offline runs.
    """

    every: tuple[ServingPrediction, ...]
    clean: tuple[ServingPrediction, ...]
    first_token: tuple[ServingPrediction, ...]
    speculative: tuple[ServingPrediction, ...]
    static: tuple[ServingPrediction, ...]
    offline: tuple[ServingPrediction, ...]


def sets_of(found: Sequence[ServingPrediction], sorting: Sorting) -> Sets:
    """Return predictions by what they count for."""

    def mode(entry: ServingPrediction) -> Mode | None:
        return None if entry.run is None else entry.run.mode

    clean = [entry for entry in found if mode(entry) is Mode.STEADY and entry.row.id in sorting.clean]
    return Sets(
        every=tuple(found),
        clean=tuple(clean),
        first_token=tuple(entry for entry in clean if entry.row.id not in sorting.no_first_token),
        speculative=tuple(entry for entry in found if entry.row.id in sorting.speculative),
        static=tuple(entry for entry in found if mode(entry) is Mode.STATIC),
        offline=tuple(entry for entry in found if mode(entry) is Mode.OFFLINE),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How well pairs of layouts are ordered.

    Args:
        pairs: Pairs that measurements order.
        right: Part of them that predictions order alike; None without pairs.
        by_gpus: Part of them that the number of GPUs orders alike; None for pairs of as many GPUs.
    """

    pairs: int
    right: float | None
    by_gpus: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How well predictions choose between layouts.

    Args:
        unequal_tpot: Time per token, of layouts with another number of GPUs.
        equal_tpot: The same of layouts with as many.
        unequal_throughput: Tokens per second and GPU, of layouts with another number of GPUs.
        equal_throughput: The same of layouts with as many.
        unequal_ttft: Time to the first token, where it counts, of layouts with another number of GPUs.
        equal_ttft: The same of layouts with as many.
        groups: Groups with several layouts.
        regret: Mean loss of tokens per second and GPU where the layout predicted best is taken; None without groups.
    """

    unequal_tpot: Order
    equal_tpot: Order
    unequal_throughput: Order
    equal_throughput: Order
    unequal_ttft: Order
    equal_ttft: Order
    groups: int
    regret: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """One layout of a group, with what is compared; releases of an engine are no choice."""

    shape: EngineShape
    tpot: tuple[float, float]
    throughput: tuple[float, float]
    ttft: tuple[float, float] | None


def ranking_of(entries: Sequence[ServingPrediction], *, no_first_token: frozenset[str] = frozenset()) -> Ranking:
    """Return how well predictions choose between the layouts of steady rows.

    Args:
        entries: Predictions of rows that count.
        no_first_token: Ids of those whose first token does not count.
    """
    groups: dict[tuple[str, ...], list[_Layout]] = defaultdict(list)
    for entry in entries:
        layout = _layout(entry, first_token=entry.row.id not in no_first_token)
        if layout is not None:
            groups[tuple(entry.row.text(column) for column in CHOICE_COLUMNS)].append(layout)
    several = [layouts for layouts in groups.values() if len({layout.shape for layout in layouts}) > 1]
    pairs = [pair for layouts in several for pair in combinations(layouts, 2) if pair[0].shape != pair[1].shape]
    unequal = [pair for pair in pairs if pair[0].shape.num_gpus != pair[1].shape.num_gpus]
    equal = [pair for pair in pairs if pair[0].shape.num_gpus == pair[1].shape.num_gpus]
    regrets = [
        max(layout.throughput[1] for layout in layouts)
        / max(layouts, key=lambda layout: layout.throughput[0]).throughput[1]
        - 1
        for layouts in several
    ]
    return Ranking(
        unequal_tpot=_order(unequal, lambda layout: layout.tpot),
        equal_tpot=_order(equal, lambda layout: layout.tpot),
        unequal_throughput=_order(unequal, lambda layout: layout.throughput),
        equal_throughput=_order(equal, lambda layout: layout.throughput),
        unequal_ttft=_order(unequal, lambda layout: layout.ttft, noise=FIRST_TOKEN_NOISE),
        equal_ttft=_order(equal, lambda layout: layout.ttft, noise=FIRST_TOKEN_NOISE),
        groups=len(several),
        regret=sum(regrets) / len(regrets) if regrets else None,
    )


def _layout(entry: ServingPrediction, *, first_token: bool) -> _Layout | None:
    run, tpot, ttft = entry.run, entry.measured_tpot_seconds, entry.measured_ttft_seconds
    if run is None or run.concurrency is None or not tpot or not ttft or not entry.tpot_seconds:
        return None
    gpus = run.shape.num_gpus

    def throughput(first: float, each: float) -> float:
        # Little's law: so many requests under way, each as long as its tokens take.
        assert run.concurrency is not None, "checked above"
        return run.concurrency * (run.prompt + run.output) / (first + each * (run.output - 1)) / gpus

    return _Layout(
        shape=run.shape,
        tpot=(entry.tpot_seconds, tpot),
        throughput=(throughput(entry.ttft_seconds or 0.0, entry.tpot_seconds), throughput(ttft, tpot)),
        ttft=(entry.ttft_seconds, ttft) if first_token and entry.ttft_seconds else None,
    )


def _order(
    pairs: Sequence[tuple[_Layout, _Layout]],
    value: Callable[[_Layout], tuple[float, float] | None],
    *,
    noise: float = NOISE,
) -> Order:
    right = by_gpus = counted = 0
    unequal = True
    for one, other in pairs:
        first, second = value(one), value(other)
        if first is None or second is None:
            continue
        (predicted, measured), (other_predicted, other_measured) = first, second
        if max(measured, other_measured) / min(measured, other_measured) < noise:
            continue
        counted += 1
        less = measured < other_measured
        right += (predicted < other_predicted) == less
        # More GPUs: less time per token, and fewer tokens per second and GPU.
        by_gpus += (one.shape.num_gpus > other.shape.num_gpus) == less
        unequal = one.shape.num_gpus != other.shape.num_gpus
    return Order(
        pairs=counted,
        right=right / counted if counted else None,
        by_gpus=by_gpus / counted if counted and unequal else None,
    )


def refused_rows(found: Sequence[ServingPrediction]) -> tuple[ServingPrediction, ...]:
    """Return the rows that ran and are predicted not to fit."""
    return tuple(entry for entry in found if entry.fits is False)
