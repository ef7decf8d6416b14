"""Which GPUs carry the same chip: kernels compute alike on them, whatever their memory."""

from profiles.hardware import Device

SAME_RATE = 0.01
"""Part by which datasheet rates of one chip differ between the products that carry it."""


def is_same_chip(one: Device, other: Device) -> bool:
    """Return whether two GPUs compute alike: the same architecture, units and 16-bit rate."""
    rates = [device.dense_flops_per_second.get("bf16", 0.0) for device in (one, other)]
    return (
        one.architecture == other.architecture
        and one.num_compute_units == other.num_compute_units
        and abs(rates[0] - rates[1]) <= SAME_RATE * max(rates)
    )
