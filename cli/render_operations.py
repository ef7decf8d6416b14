"""Accuracy of single operations as a table and as JSON."""

from collections import Counter
from collections.abc import Sequence

from cli.render import Block, Facts, Line, Style, Table, columns, count
from cli.render_accuracy import (
    SCHEMA_VERSION,
    constants_document,
    coverage,
    error_cells,
    in_groups,
    or_none,
    reasons,
)
from planner.accuracy.measurements import Kind
from planner.accuracy.operations import OperationPrediction
from planner.accuracy.scores import operation_errors
from planner.accuracy.tables import Basis, Tables
from profiles.estimate import Source


def operation_document(kind: Kind, tables: Tables, found: Sequence[OperationPrediction]) -> dict[str, object]:
    """Return predictions of operations as JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind.value,
        "basis": {"kind": tables.basis.value, "parts": tables.parts or None, "text": tables.text},
        "constants": constants_document(),
        "rows": [
            {
                "id": entry.row.id,
                "measured_us": entry.measured_us,
                "predicted_us": entry.predicted_us,
                "source": entry.source,
                "note": entry.note,
                "error": entry.error,
            }
            for entry in found
        ],
        "summary": {
            **coverage(found),
            "sources": dict(sources_of(found)),
            "latency": or_none(operation_errors(found)),
        },
    }


def sources_of(found: Sequence[OperationPrediction]) -> Counter[str]:
    """Return how many predictions come from where, most first."""
    counted = Counter(entry.source for entry in found if entry.source is not None)
    return Counter(dict(counted.most_common()))


def operation_blocks(
    kind: Kind, tables: Tables, found: Sequence[OperationPrediction], by: Sequence[str]
) -> tuple[Block, ...]:
    """Return what `accuracy` prints of operations."""
    headers, groups = in_groups(found, by)
    rows = [(*key, count(len(entries)), *error_cells(operation_errors(entries))) for key, entries in groups]
    sources = ", ".join(f"{count(number)} {source}" for source, number in sources_of(found).items())
    return (
        Line(f"{kind}: predicted over measured, less one; systems weigh the same", Style.HEADING),
        Table(columns=columns(*headers, ">rows", ">median error", ">mean error", ">bias"), rows=tuple(rows)),
        Facts(pairs=(("priced by", tables.text), *((("of them", sources),) if sources else ()))),
        *_unused(kind, tables, found),
        *reasons([entry.error for entry in found]),
    )


def _unused(kind: Kind, tables: Tables, found: Sequence[OperationPrediction]) -> tuple[Block, ...]:
    """Return what to know of tables that price nothing, or the very rows they hold."""
    sources = sources_of(found)
    if tables.profile is not None and not set(sources) - {Source.ANALYTIC.value}:
        device = tables.profile.metadata.device
        return (Line(f"  None of these rows is priced by it: it is of {device}, or has no table of {kind}"),)
    if tables.basis is Basis.TABLES and sources and set(sources) == {Source.MEASURED.value}:
        return (Line("  The tables hold every one of these rows, so this is no test of them: try --left-out 5"),)
    return ()
