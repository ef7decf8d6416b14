"""Whole layers beside the sum of their parts, as a table and as JSON."""

from collections.abc import Sequence

from cli.render import Block, Item, Line, Style, Table, columns, gib, milliseconds, percent, section, signed_percent
from planner.profiling.whole_layers import MOST_BYTES_OFF, MOST_SECONDS_OFF, WholeLayer


def layer_document(layers: Sequence[WholeLayer]) -> list[dict[str, object]]:
    """Return whole layers beside their parts as plain data."""
    return [
        {
            "layer": layer.name,
            "measured_seconds": dict(layer.measured_seconds),
            "parts_seconds": dict(layer.parts_seconds),
            "seconds_off": layer.seconds_off,
            "measured_peak_bytes": layer.measured_bytes,
            "parts_peak_bytes": layer.parts_bytes,
            "bytes_off": layer.bytes_off,
            "gaps": list(layer.gaps),
        }
        for layer in layers
    ]


def layer_blocks(layers: Sequence[WholeLayer]) -> tuple[Block, ...]:
    """Return whole layers beside their parts; nothing without any."""
    if not layers:
        return ()
    blocks: list[Block] = []
    for layer in layers:
        table = Table(columns=columns("", ">measured", ">sum of parts", ">difference"), rows=tuple(_rows(layer)))
        blocks += [Item(layer.name), table]
        if layer.gaps:
            blocks.append(Line(f"  A gap in {' and '.join(layer.gaps)}.", Style.BAD))
    told = f"A gap is more than {percent(MOST_SECONDS_OFF)} of the time, {percent(MOST_BYTES_OFF)} of the peak."
    return section("Whole layers beside the sum of their parts", *blocks, Line(f"  {told}"))


def _rows(layer: WholeLayer) -> list[tuple[str, ...]]:
    measured, parts = layer.measured_seconds, layer.parts_seconds
    rows: list[tuple[str, ...]] = [
        (phase, milliseconds(measured[phase]), milliseconds(parts[phase]), "") for phase in measured
    ]
    both = milliseconds(sum(measured.values())), milliseconds(sum(parts.values()))
    rows.append(("together", *both, signed_percent(layer.seconds_off)))
    if layer.measured_bytes is None or layer.bytes_off is None:
        rows.append(("peak memory", "not measured", gib(layer.parts_bytes), ""))
    else:
        rows.append(("peak memory", gib(layer.measured_bytes), gib(layer.parts_bytes), signed_percent(layer.bytes_off)))
    return rows
