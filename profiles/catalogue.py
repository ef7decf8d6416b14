"""The hardware catalogue: GPUs and ready-made clusters by name, each figure with its source."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from profiles.hardware import Device
from profiles.package_data import Section, entry, entry_names, resolve_name
from profiles.schema import ClusterEntry, DeviceEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcedFigure:
    """One figure of the catalogue, as it is written there.

    Args:
        field: What it is, "memory" or "dense_flops.bf16".
        value: Its value with its unit, "79.11GiB".
        source: The document that prints it, or the assumption.
    """

    field: str
    value: str
    source: str


def device_names() -> tuple[str, ...]:
    """Return the names of all GPUs, by vendor and generation."""
    return entry_names(Section.DEVICES)


@cache
def load_device(name: str) -> Device:
    """Return a GPU by its name, or by the beginning of its name where only one begins so.

    Raises:
        CatalogueError: No GPU, or more than one, has that name; the message lists the nearest.
    """
    full_name = resolve_name(Section.DEVICES, name)
    return DeviceEntry.model_validate(entry(Section.DEVICES, full_name)).to_device()


def preset_names() -> tuple[str, ...]:
    """Return the names of all ready-made clusters."""
    return entry_names(Section.CLUSTERS)


@cache
def load_preset(name: str) -> ClusterEntry:
    """Return a ready-made cluster at its smallest: one node, or one rack where GPUs are joined across nodes.

    Raises:
        CatalogueError: No preset, or more than one, has that name; the message lists the nearest.
    """
    return ClusterEntry.model_validate({"preset": resolve_name(Section.CLUSTERS, name)})


def device_figures(name: str) -> tuple[SourcedFigure, ...]:
    """Return every figure of a GPU with its source, for printing.

    Raises:
        CatalogueError: No GPU, or more than one, has that name.
    """
    raw = entry(Section.DEVICES, resolve_name(Section.DEVICES, name))
    figures = tuple(_figures(raw))
    if "host_bandwidth" in raw:
        return figures
    device = load_device(name)
    host_link = SourcedFigure(
        field="host_bandwidth",
        value=f"{device.host_bytes_per_second / 1e9:g}GB/s",
        source=device.sources["host_bytes_per_second"],
    )
    return (*figures, host_link)


def _figures(fields: Mapping[str, object], prefix: str = "") -> Iterator[SourcedFigure]:
    """Yield the figures of a mapping and of the mappings in it."""
    for field, value in fields.items():
        if not isinstance(value, Mapping):
            continue
        if "document" not in value:
            yield from _figures(value, prefix=f"{field}.")
            continue
        note = value.get("note")
        source = f"{value['document']}: {note}" if note else str(value["document"])
        yield SourcedFigure(field=f"{prefix}{field}", value=str(value["value"]), source=source)


def preset_figures(name: str) -> tuple[SourcedFigure, ...]:
    """Return the figures of a ready-made cluster with their sources, for printing.

    Raises:
        CatalogueError: No preset, or more than one, has that name.
    """
    cluster = load_preset(name)
    raw = entry(Section.CLUSTERS, resolve_name(Section.CLUSTERS, name))
    stated = [
        SourcedFigure(field=field, value=_written(raw[field]), source=source)
        for field, source in cluster.sources.items()
    ]
    # Twice as many nodes as any level joins, so that every level of the network shows.
    largest = max((link.nodes or 1 for link in cluster.links), default=1)
    spread = ClusterEntry.model_validate({"preset": name, "nodes": 2 * max(largest, cluster.nodes)})
    levels = [
        SourcedFigure(field=f"links.{level.name}", value=f"{level.bytes_per_second / 1e9:g}GB/s", source=level.source)
        for level in spread.to_cluster().levels
    ]
    return (*stated, *levels)


def _written(value: object) -> str:
    """Return a preset's field as one phrase."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)
