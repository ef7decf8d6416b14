"""What kernel models read of a GPU: burst rates, bandwidth, constants of its architecture or of the nearest."""

from collections.abc import Mapping
from typing import TypeVar

from profiles.constants import (
    FP8_START,
    GEMM,
    GEMM_HALF_RATE_SIZE,
    GEMM_PROLOGUE_STEPS,
    GEMM_WHOLE_WAVE_FRACTION,
    TILES,
    with_fallbacks,
)
from profiles.errors import CoverageError
from profiles.gemm_surface import GemmRates
from profiles.hardware import Device

Value = TypeVar("Value")

_FASTER: Mapping[str, float] = {"fp8": 2.0, "int8": 2.0, "fp4": 4.0}
"""How many times as fast as 16-bit operands, by their width."""

_GEMM_LIKE: Mapping[str, tuple[str, ...]] = {
    "fp4": ("fp8",),
    "int8": ("fp8", "bf16"),
    "fp16": ("bf16",),
    "fp32": ("bf16",),
    "tf32": ("bf16",),
}
"""Formats whose part of the datasheet rate stands in for that of another."""


def of_architecture(constants: Mapping[str, Value], device: Device) -> Value:
    """Return the constant of a GPU's architecture, or of the nearest that has one.

    Raises:
        CoverageError: Neither has one.
    """
    for candidate in with_fallbacks(device.architecture):
        if candidate in constants:
            return constants[candidate]
    raise CoverageError(
        operation=f"a kernel on {device.name}",
        missing=f"no constant is known for architecture {device.architecture}",
        remedy="Use a GPU of the catalogue.",
    )


def peak_flops_per_second(device: Device, rate: str) -> float:
    """Return a datasheet rate of a GPU.

    Raises:
        CoverageError: The GPU has none for the format.
    """
    if rate not in device.dense_flops_per_second:
        raise CoverageError(
            operation=f"a kernel in {rate}",
            missing=f"{device.name} has no {rate} rate in the catalogue",
            remedy=f"Use one of {', '.join(sorted(device.dense_flops_per_second))}.",
        )
    return device.dense_flops_per_second[rate]


def copied_bytes_per_second(device: Device) -> float:
    """Return the memory bandwidth at which tensors are copied beside a kernel: that of matrix products.

    Raises:
        CoverageError: The GPU's architecture has no constants.
    """
    return device.memory_bytes_per_second * of_architecture(TILES, device).memory_fraction.value


def burst_rates(device: Device, rate: str) -> GemmRates:
    """Return what the surface of matrix products reads of a GPU that runs them in a burst.

    Raises:
        CoverageError: The GPU has no such rate, or its architecture no constants.
    """
    tiles = of_architecture(TILES, device)
    fractions = {
        kind: {architecture: found.peak_fraction for (architecture, name), found in GEMM.items() if name == kind}
        for kind in ("bf16", "fp8")
    }
    kinds = _GEMM_LIKE.get(rate, (rate,))
    architectures = with_fallbacks(device.architecture)
    fraction = next(
        (
            fractions[kind][candidate]
            for kind in (*kinds, "bf16")
            for candidate in architectures
            if candidate in fractions.get(kind, {})
        ),
        None,
    )
    if fraction is None:
        raise CoverageError(
            operation=f"a product in {rate}",
            missing=f"no {rate} efficiency is known for architecture {device.architecture}",
            remedy="Use a GPU of the catalogue.",
        )
    peak = peak_flops_per_second(device, rate)
    # Narrow operands are multiplied faster, while tiles begin and are read as before.
    faster = _FASTER.get(rate, 1.0)
    return GemmRates(
        flops_per_second=peak * fraction.value,
        bytes_per_second=device.memory_bytes_per_second * tiles.memory_fraction.value,
        num_units=device.num_compute_units,
        start_seconds=FP8_START.value if rate == "fp8" else tiles.start.value,
        half_rate_size=GEMM_HALF_RATE_SIZE.value * faster,
        prologue_steps=GEMM_PROLOGUE_STEPS.value * faster,
        whole_wave_fraction=GEMM_WHOLE_WAVE_FRACTION.value,
    )
