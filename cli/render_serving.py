"""Accuracy of serving predictions as tables and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict

from cli.render import Block, Facts, Line, Style, Table, columns, count, section
from cli.render_accuracy import error_cells, in_groups, or_none, reasons
from planner.accuracy.measurements import Kind
from planner.accuracy.scores import Errors, grouped
from planner.accuracy.serving import ServingPrediction
from planner.accuracy.serving_exclusions import Sorting, exclusions
from planner.accuracy.serving_fit import ENGINE_PRIORS, ERA_PRIOR, KERNEL_PRIORS, LeftOut
from planner.accuracy.serving_scores import (
    Metric,
    Order,
    Ranking,
    Sets,
    metric_errors,
    ranking_of,
    refused_rows,
    sets_of,
)
from planner.serving.engines import Calibration

SCHEMA_VERSION = 1


def serving_document(found: Sequence[ServingPrediction], sorting: Sorting, constants: Calibration) -> dict[str, object]:
    """Return predictions of serving runs as JSON."""
    sets = sets_of(found, sorting)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": Kind.SERVING.value,
        "definitions": {
            "ttft": "mean seconds from a request's arrival to its first token",
            "tpot": "mean over requests of (end to end - ttft) / (output tokens - 1)",
        },
        "constants": constants_of(constants),
        "excluded": excluded_document(sorting),
        "rows": [_row(entry) for entry in found],
        "summary": {
            **_coverage(found),
            "refused": [entry.row.id for entry in refused_rows(found)],
            **{name: _errors(entries) for name, entries in _named(sets)},
            "engines": {engine: _errors(entries) for (engine,), entries in grouped(sets.clean, ("engine",)).items()},
            "ranking": asdict(ranking_of(sets.clean, no_first_token=frozenset(sorting.no_first_token))),
        },
    }


def _coverage(found: Sequence[ServingPrediction]) -> dict[str, object]:
    """Return how many rows were predicted, of all and of those that state a layout and lengths."""
    predicted = sum(entry.error is None for entry in found)
    stated = sum(entry.run is not None for entry in found)
    return {
        "rows": len(found),
        "predicted": predicted,
        "coverage": predicted / len(found) if found else None,
        "coverage_of_stated": predicted / stated if stated else None,
    }


def constants_of(constants: Calibration) -> dict[str, object]:
    """Return fitted constants as JSON."""
    return {
        "source": constants.source,
        "engines": {
            name: {field: getattr(engine, field) for field in ENGINE_PRIORS}
            for name, engine in constants.engines.items()
        },
        "eras": {
            name: [{"before": era.before, ERA_PRIOR: era.sequence_seconds, "source": era.source} for era in eras]
            for name, eras in constants.eras.items()
        },
        "kernels": {field: getattr(constants.kernels, field) for field in KERNEL_PRIORS},
    }


def excluded_document(sorting: Sorting) -> list[dict[str, object]]:
    """Return what was left out of the scores as JSON."""
    named: list[dict[str, object]] = [
        {"name": rule.name, "kind": rule.kind.value, "reason": rule.reason, "rows": sorting.taken[rule.name]}
        for rule in exclusions()
    ]
    repeated = {"kind": "faulty", "reason": "they repeat another row", "rows": sorting.duplicates}
    return [*named, {"name": "duplicates", **repeated}]


def _named(sets: Sets) -> tuple[tuple[str, tuple[ServingPrediction, ...]], ...]:
    return (
        ("all", sets.every),
        ("clean", sets.clean),
        ("clean dense", _with_experts(sets.clean, has=False)),
        ("clean experts", _with_experts(sets.clean, has=True)),
        ("first token clean", sets.first_token),
        ("first token dense", _with_experts(sets.first_token, has=False)),
        ("first token experts", _with_experts(sets.first_token, has=True)),
        ("speculative", sets.speculative),
        ("static batches", sets.static),
        ("offline", sets.offline),
    )


def _with_experts(entries: Sequence[ServingPrediction], *, has: bool) -> tuple[ServingPrediction, ...]:
    return tuple(entry for entry in entries if entry.run is not None and entry.run.has_experts is has)


def _errors(entries: Sequence[ServingPrediction]) -> dict[str, object]:
    return {
        metric.name.lower(): {
            "rows_alike": or_none(metric_errors(entries, metric)),
            "sources_alike": or_none(metric_errors(entries, metric, sources_alike=True)),
        }
        for metric in Metric
    }


def _row(entry: ServingPrediction) -> dict[str, object]:
    def thousandfold(seconds: float | None) -> float | None:
        return None if seconds is None else 1e3 * seconds

    return {
        "id": entry.row.id,
        "predicted_ttft_ms": thousandfold(entry.ttft_seconds),
        "predicted_tpot_ms": thousandfold(entry.tpot_seconds),
        "predicted_total_tokens_per_second_per_gpu": entry.total_tokens_per_second_per_gpu,
        "predicted_output_tokens_per_second_per_gpu": entry.output_tokens_per_second_per_gpu,
        "predicted_fits": entry.fits,
        "measured_ttft_ms": thousandfold(entry.measured_ttft_seconds),
        "measured_tpot_ms": thousandfold(entry.measured_tpot_seconds),
        "assumptions": [] if entry.run is None else list(entry.run.assumed),
        "error": entry.error,
    }


def serving_blocks(found: Sequence[ServingPrediction], sorting: Sorting, by: Sequence[str]) -> tuple[Block, ...]:
    """Return what `accuracy` prints of serving runs."""
    sets = sets_of(found, sorting)
    first = {id(entry) for entry in sets.first_token}
    headers, groups = in_groups(sets.clean, by)
    rows = [
        (
            *key,
            count(len(entries)),
            *error_cells(metric_errors(entries, Metric.TPOT)),
            *error_cells(metric_errors([entry for entry in entries if id(entry) in first], Metric.TTFT))[:1],
        )
        for key, entries in groups
    ]
    refused = refused_rows(found)
    predicted, stated = sum(entry.error is None for entry in found), sum(entry.run is not None for entry in found)
    facts = [
        ("ran, predicted not to fit", f"{len(refused)} of {count(len(found))}"),
        ("predicted", f"{count(predicted)} of {count(len(found))}; {count(stated)} state a layout and lengths"),
        *_ranking_facts(ranking_of(sets.clean, no_first_token=frozenset(sorting.no_first_token))),
    ]
    names = [*headers, ">rows", ">tpot median", ">mean", ">bias", ">ttft median"]
    left = tuple(
        Line(f"  {entry['rows']:>4} x {entry['name']} ({entry['kind']}): {entry['reason']}")
        for entry in excluded_document(sorting)
        if entry["rows"]
    )
    return (
        Line("Predicted over measured, less one; steady rows that count", Style.HEADING),
        Table(columns=columns(*names), rows=tuple(rows)),
        *section("Median errors; tokens and answers: those a second and GPU", _summary_table(sets)),
        Line(""),
        Facts(pairs=tuple(facts)),
        *(section("Left out", *left) if left else ()),
        *reasons([entry.error for entry in found]),
    )


def _summary_table(sets: Sets) -> Table:
    """Return the errors of every set: median, mean in brackets; of the time per token with sources alike, too."""
    rows = []
    engines = [(f"clean {engine}", tuple(entries)) for (engine,), entries in grouped(sets.clean, ("engine",)).items()]
    for name, entries in (*_named(sets), *engines):
        alike = metric_errors(entries, Metric.TPOT, sources_alike=True)
        cells = [_cell(metric_errors(entries, metric)) for metric in Metric]
        if any(cells):
            rows.append((name, count(len(entries)), cells[0], _cell(alike), *cells[1:]))
    names = columns("%, mean in brackets", ">rows", ">tpot", ">sources alike", ">ttft", ">tokens", ">answers")
    return Table(columns=names, rows=tuple(rows))


def _cell(errors: Errors | None) -> str:
    return "" if errors is None else f"{100 * errors.median_absolute:.1f} ({100 * errors.mean_absolute:.0f})"


def _ranking_facts(ranking: Ranking) -> list[tuple[str, str]]:
    facts = [
        (name, _order_in_words(order))
        for name, order in (
            ("tpot order, other GPU counts", ranking.unequal_tpot),
            ("tokens order, other GPU counts", ranking.unequal_throughput),
            ("ttft order, other GPU counts", ranking.unequal_ttft),
            ("tpot order, equal GPU counts", ranking.equal_tpot),
            ("tokens order, equal GPU counts", ranking.equal_throughput),
            ("ttft order, equal GPU counts", ranking.equal_ttft),
        )
        if order.pairs
    ]
    if ranking.regret is not None:
        facts.append(("regret", f"{100 * ranking.regret:.2f} % of tokens, {ranking.groups} groups"))
    return facts


def _order_in_words(order: Order) -> str:
    baseline = "" if order.by_gpus is None else f"; by counting GPUs {100 * order.by_gpus:.1f} %"
    return f"{100 * (order.right or 0.0):.1f} % of {count(order.pairs)} pairs{baseline}"


def serving_refit_blocks(present: Calibration, fitted: Calibration) -> tuple[Block, ...]:
    """Return present and fitted values of the constants."""
    rows = []
    for name, engine in present.engines.items():
        for field, (_, low, high) in ENGINE_PRIORS.items():
            values = (getattr(engine, field), getattr(fitted.engines[name], field))
            rows.append((f"{name} {field}", *(f"{value:.4g}" for value in values), f"{low:g} to {high:g}"))
    _, low, high = ENGINE_PRIORS[ERA_PRIOR]
    for name, eras in present.eras.items():
        for era, other in zip(eras, fitted.eras[name], strict=True):
            values = (era.sequence_seconds, other.sequence_seconds)
            told = (f"{value:.4g}" for value in values)
            rows.append((f"{name} before {era.before} {ERA_PRIOR}", *told, f"{low:g} to {high:g}"))
    for field, (_, low, high) in KERNEL_PRIORS.items():
        values = (getattr(present.kernels, field), getattr(fitted.kernels, field))
        rows.append((field, *(f"{value:.4g}" for value in values), f"{low:g} to {high:g}"))
    names = columns("name", ">value", ">fitted to these runs", "range")
    return section("Constants of serving", Table(columns=names, rows=tuple(rows)))


def serving_without_document(without: Sequence[LeftOut], sorting: Sorting) -> dict[str, object]:
    """Return how fits predict the groups that they left out as JSON."""
    every = [entry for group in without for entry in group.predictions]
    return {
        "groups": [
            {"group": group.group, "constants": constants_of(group.constants), **_errors(group.predictions)}
            for group in without
        ],
        "all": _errors(every),
        "first_token": _errors([entry for entry in every if entry.row.id not in sorting.no_first_token]),
    }


def serving_without_blocks(without: Sequence[LeftOut], sorting: Sorting) -> tuple[Block, ...]:
    """Return how fits predict the groups that they left out."""
    every = [entry for group in without for entry in group.predictions]
    kinds = (*((group.group, group.predictions) for group in without), ("all", every))
    rows = tuple(
        (
            name,
            count(len(entries)),
            *error_cells(metric_errors(entries, Metric.TPOT)),
            *error_cells(
                metric_errors([entry for entry in entries if entry.row.id not in sorting.no_first_token], Metric.TTFT)
            )[:1],
        )
        for name, entries in kinds
    )
    names = columns("left out", ">rows", ">tpot median", ">mean", ">bias", ">ttft median")
    return section("By constants fitted without them", Table(columns=names, rows=rows))
