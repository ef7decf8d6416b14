"""What the CPUs of a node multiply: assumptions, each with its source.

No table of the cost model measures a host. As in `profiles.host`, the kind of slot in which the GPUs sit tells the
generation of the CPUs, with two sockets a node; their rate is that of fused multiply-adds in fp32, as CPUs without
matrix units multiply 16-bit weights too.
"""

from profiles.constants import Constant, Origin
from profiles.errors import CoverageError
from profiles.hardware import Device


def _of_cores(*, sockets: int, cores: int, hertz: float, flops_per_cycle: int, what: str) -> Constant:
    """Return the fp32 rate of sockets."""
    rate = sockets * cores * hertz * flops_per_cycle
    return Constant(value=rate, low=0.0, high=2 * rate, source=f"assumption: {what}", origin=Origin.ASSUMED)


HOST_FLOPS_PER_SECOND = {
    "pcie3": _of_cores(
        sockets=2,
        cores=20,
        hertz=1.6e9,
        flops_per_cycle=64,
        what="two Xeon Gold 6148 of 20 cores at the 1.6 GHz of AVX-512, two units of 16 fp32 lanes",
    ),
    "pcie4": _of_cores(
        sockets=2,
        cores=64,
        hertz=2.25e9,
        flops_per_cycle=32,
        what="two EPYC 7742 of 64 cores at 2.25 GHz, two units of 8 fp32 lanes",
    ),
    "pcie5": _of_cores(
        sockets=2,
        cores=56,
        hertz=2.0e9,
        flops_per_cycle=64,
        what="two Xeon Platinum 8480+ of 56 cores at 2.0 GHz, two units of 16 fp32 lanes, without matrix units (AMX)",
    ),
    "pcie6": _of_cores(
        sockets=2,
        cores=86,
        hertz=2.0e9,
        flops_per_cycle=64,
        what="two Xeon 6787P of 86 cores at 2.0 GHz, two units of 16 fp32 lanes, without matrix units (AMX)",
    ),
    "c2c": _of_cores(
        sockets=1,
        cores=72,
        hertz=3.1e9,
        flops_per_cycle=32,
        what="one Grace CPU of 72 cores at 3.1 GHz, four units of 4 fp32 lanes",
    ),
}
"""Data sheet rate of a node's CPUs by the link of its GPUs."""

HOST_COMPUTE_FRACTION = Constant(
    value=0.5,
    low=0.1,
    high=0.9,
    source="assumption: products on the CPUs reach half of their data sheet's rate; no published figure is used",
    origin=Origin.ASSUMED,
)


def host_compute_rate(device: Device) -> tuple[float, str]:
    """Return the flops a second that products on the CPUs reach, and the assumptions behind it.

    Raises:
        CoverageError: The link of the GPUs tells nothing of their hosts.
    """
    constant = HOST_FLOPS_PER_SECOND.get(device.host_link)
    if constant is None:
        raise CoverageError(
            operation="products on the CPUs",
            missing=f"no rate is known for hosts whose GPUs hang on {device.host_link!r}",
            remedy=f"Use one of {', '.join(HOST_FLOPS_PER_SECOND)}.",
        )
    return constant.value * HOST_COMPUTE_FRACTION.value, f"{constant.source}; {HOST_COMPUTE_FRACTION.source}"
