"""Cluster presets and GPUs of the catalogue as tables and as JSON."""

from collections.abc import Sequence
from dataclasses import fields

from cli.render import Block, Facts, Line, Style, Table, columns, counted, gib, rate, section
from profiles.catalogue import (
    SourcedFigure,
    device_figures,
    device_names,
    load_device,
    load_preset,
    preset_figures,
    preset_names,
)
from profiles.hardware import Cluster, Device, LinkLevel

FORMATS = ("bf16", "fp16", "fp8", "fp4")
LINK_PREFIX = "links."
UNEQUAL = "unequal"
"""Field of a cluster in which no preset says anything: its nodes do not differ."""


def catalogue_blocks() -> tuple[Block, ...]:
    """Return every preset and every GPU, one row each."""
    presets = {name: load_preset(name).to_cluster() for name in preset_names()}
    devices = [load_device(name) for name in device_names()]
    formats = tuple(name for name in FORMATS if any(name in device.dense_flops_per_second for device in devices))
    return (
        Line("Cluster presets", Style.HEADING),
        Table(
            columns=columns(
                "preset",
                "GPU",
                ">GPUs a node",
                ">host memory a node",
                "links, inside out",
                whole=("GPU",),
                spare=("host memory a node",),
            ),
            rows=tuple(
                (
                    name,
                    preset.device.name,
                    str(preset.gpus_per_node),
                    gib(preset.host_memory_bytes),
                    _links_in_words(preset_figures(name)),
                )
                for name, preset in presets.items()
            ),
        ),
        *section(
            "GPUs",
            Table(
                columns=columns(
                    "GPU",
                    "architecture",
                    ">memory",
                    ">bandwidth",
                    *(f">{name}" for name in formats),
                    ">peer",
                    whole=("architecture",),
                    spare=("fp16", "fp4", "architecture", "peer", "fp8", "bandwidth"),
                ),
                rows=tuple(_device_row(device, formats) for device in devices),
            ),
        ),
    )


def _links_in_words(figures: Sequence[SourcedFigure]) -> str:
    """Return the network levels of a preset that is spread over several nodes or racks."""
    links = (figure for figure in figures if figure.field.startswith(LINK_PREFIX))
    return ", ".join(f"{figure.field.removeprefix(LINK_PREFIX)} {figure.value}" for figure in links)


def _device_row(device: Device, formats: Sequence[str]) -> tuple[str, ...]:
    flops_per_second = device.dense_flops_per_second
    return (
        device.name,
        device.architecture,
        gib(device.memory_bytes),
        rate(device.memory_bytes_per_second, "B/s"),
        *(rate(flops_per_second[name], "FLOP/s") if name in flops_per_second else "none" for name in formats),
        rate(device.peer_bytes_per_second, "B/s") if device.peer_bytes_per_second else "none",
    )


def preset_blocks(name: str) -> tuple[Block, ...]:
    """Return one preset with the source of every figure, and its GPU."""
    entry = load_preset(name)
    preset = entry.to_cluster()
    facts = (
        ("what it is", entry.title or preset.name),
        ("GPUs of a node", f"{preset.gpus_per_node} x {preset.device.name}"),
        ("smallest size", counted(preset.num_nodes, "node")),
    )
    return (
        Line(preset.name, Style.HEADING),
        Facts(pairs=facts),
        *section("Figures; links are one direction, per GPU", _figures_table(preset_figures(name))),
        *section(preset.device.name, _figures_table(device_figures(preset.device.name))),
    )


def device_blocks(name: str) -> tuple[Block, ...]:
    """Return one GPU with the source of every figure."""
    device = load_device(name)
    facts = (
        ("vendor", device.vendor),
        ("architecture", device.architecture),
        ("compute capability", device.compute_capability or "none"),
        ("links between GPUs", device.peer_topology if device.peer_bytes_per_second else "none"),
    )
    return (Line(device.name, Style.HEADING), Facts(pairs=facts), _figures_table(device_figures(name)))


def _figures_table(figures: Sequence[SourcedFigure]) -> Table:
    return Table(
        columns=columns("figure", ">value", "source"),
        rows=tuple((figure.field, figure.value, figure.source) for figure in figures),
    )


def catalogue_document() -> dict[str, object]:
    """Return every preset and every GPU as JSON."""
    return {
        "presets": [preset_document(name) for name in preset_names()],
        "devices": [device_document(load_device(name)) for name in device_names()],
    }


def preset_document(name: str) -> dict[str, object]:
    """Return one preset at its smallest as JSON; bytes, seconds and bytes a second."""
    preset = load_preset(name).to_cluster()
    return {
        **_fields(preset),
        "device": device_document(preset.device),
        "levels": [_fields(level) for level in preset.levels],
        "figures": [_fields(figure) for figure in preset_figures(name)],
    }


def device_document(device: Device) -> dict[str, object]:
    """Return one GPU as JSON; bytes, flops a second and bytes a second."""
    return {
        **_fields(device),
        "dense_flops_per_second": dict(device.dense_flops_per_second),
        "sources": dict(device.sources),
    }


def _fields(record: Cluster | Device | LinkLevel | SourcedFigure) -> dict[str, object]:
    named = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value for name, value in named.items() if name != UNEQUAL}
