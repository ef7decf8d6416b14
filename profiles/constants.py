"""Constants of the analytic cost model, each with its physical range and its source.

Few are fitted, and each of them says what to: `KERNELS` to single kernels on an idle GPU, `TRAINED` together to whole
training runs (`planner.accuracy.fit`), the hardware's and the frameworks' apart. None is of one model; two speak of
what only one source has run: launches in the manner of 2022 (vTrain) and boards with less power (torchtitan).
The rest are read off a table, counted from what the software does, or assumed. Where an architecture has no constant
its nearest generation's is taken and the estimate is marked as assumed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum

_TRAINING_FIT = (
    "joint fit to at most 150 runs of each of ten published sources, sources weighted alike; over all 2,233 runs 6.1 %"
    " off in the median of dense ones, 17.0 % of mixtures"
)


class Origin(StrEnum):
    """How a constant came by its value."""

    TRAINED = "fitted to training runs"
    KERNELS = "fitted to kernels"
    MEASURED = "read off a table"
    COUNTED = "counted"
    ASSUMED = "assumed"
    """Carried over from other hardware, or nothing published gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A number with its physical range and where it comes from.

    Args:
        value: The number.
        low: Smallest value that physics allows.
        high: Largest value that physics allows.
        source: Where it comes from, with its residual where it was fitted.
        origin: How it came by its value.
    """

    value: float
    low: float
    high: float
    source: str
    origin: Origin = Origin.MEASURED

    @property
    def assumed(self) -> bool:
        """Return whether it was carried over from other hardware, or nothing published gives it."""
        return self.origin is Origin.ASSUMED

    def __post_init__(self) -> None:
        """Check that the value lies in its range."""
        if not self.low <= self.value <= self.high:
            raise ValueError(f"constant {self.value} lies outside [{self.low}, {self.high}]: {self.source}")


def _origin(*, assumed: bool) -> Origin:
    return Origin.ASSUMED if assumed else Origin.MEASURED


def _trained(value: float, low: float, high: float, what: str) -> Constant:
    return Constant(value=value, low=low, high=high, source=f"{what}; {_TRAINING_FIT}", origin=Origin.TRAINED)


def of_kernels(value: float, low: float, high: float, source: str) -> Constant:
    """Return a constant that was fitted to single kernels."""
    return Constant(value=value, low=low, high=high, source=source, origin=Origin.KERNELS)


def _fraction(value: float, source: str, *, assumed: bool = False) -> Constant:
    return Constant(value=value, low=0.0, high=1.0, source=source, origin=_origin(assumed=assumed))


def _seconds(value: float, source: str, *, assumed: bool = False) -> Constant:
    return Constant(value=value, low=0.0, high=1e-3, source=source, origin=_origin(assumed=assumed))


def _tokens(value: float, source: str, *, assumed: bool = False) -> Constant:
    return Constant(value=value, low=0.0, high=1e4, source=source, origin=_origin(assumed=assumed))


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmConstants:
    """Rate of large matrix products.

    Args:
        peak_fraction: Part of the datasheet rate that an endless product of large tiles reaches in a burst.
        sustained_fraction: Part of that burst rate that hours of training keep at the reference board power.
    """

    peak_fraction: Constant
    sustained_fraction: Constant


@dataclass(frozen=True, slots=True, kw_only=True)
class TileConstants:
    """How an architecture starts matrix products and feeds them.

    Args:
        memory_fraction: Part of the memory bandwidth that a product reaches.
        start: Launch and drain of a kernel.
    """

    memory_fraction: Constant
    start: Constant


_GEMM_FIT = "least mean absolute log error over 3,296 published bf16 GEMM timings of H100 and A100 SXM: 6.7 % median"
_MAMF = "best achieved matrix product on {device}, stas00/ml-engineering, compute/accelerator"


def _rate(value: float, source: str, *, origin: Origin = Origin.KERNELS) -> Constant:
    return Constant(value=value, low=0.3, high=1.1, source=source, origin=origin)


_BURST = _rate(1.02, f"datasheet rates are at a clock below the burst's; {_GEMM_FIT}")
_BURST_FP8 = _rate(
    0.92,
    "published fp8 GEMM timings on H100 SXM; vLLM's CUTLASS kernels within 14 % in the median, TensorRT-LLM's, which"
    " quantise too, within 30 %",
)


def _sustained(value: float) -> Constant:
    return _trained(
        value,
        0.5,
        1.1,
        "what hours of training keep of a burst; above 1 where kernels of a framework beat those of the burst",
    )


GEMM: dict[tuple[str, str], GemmConstants] = {
    ("hopper", "bf16"): GemmConstants(peak_fraction=_BURST, sustained_fraction=_sustained(0.754)),
    ("hopper", "fp8"): GemmConstants(peak_fraction=_BURST_FP8, sustained_fraction=_sustained(1.1)),
    ("ampere", "bf16"): GemmConstants(
        peak_fraction=_BURST,
        sustained_fraction=_sustained(0.734),
    ),
    ("blackwell", "bf16"): GemmConstants(
        peak_fraction=_rate(1.02, "carried over from H100", origin=Origin.ASSUMED),
        sustained_fraction=_sustained(0.517),
    ),
    ("blackwell", "fp8"): GemmConstants(
        peak_fraction=_rate(0.92, "carried over from H100", origin=Origin.ASSUMED),
        sustained_fraction=_sustained(0.793),
    ),
    ("cdna3", "bf16"): GemmConstants(
        peak_fraction=_rate(0.514, _MAMF.format(device="MI300X (668 of 1300 TFLOP/s)"), origin=Origin.MEASURED),
        sustained_fraction=_fraction(0.73, "carried over from A100", assumed=True),
    ),
    ("cdna4", "bf16"): GemmConstants(
        peak_fraction=_rate(0.680, _MAMF.format(device="MI355X (1565 of 2300 TFLOP/s)"), origin=Origin.MEASURED),
        sustained_fraction=_fraction(0.73, "carried over from A100", assumed=True),
    ),
}

_GEMM_START = "one in forty of published bf16 GEMM timings on {device} is shorter"
_GEMM_MEMORY = "published bf16 GEMM of over 100 MB that memory bounds, on {device}: between the medians of two engines"

TILES: dict[str, TileConstants] = {
    "hopper": TileConstants(
        memory_fraction=_fraction(0.85, _GEMM_MEMORY.format(device="H100 SXM")),
        start=_seconds(3.0e-6, _GEMM_START.format(device="H100 SXM")),
    ),
    "ampere": TileConstants(
        memory_fraction=_fraction(0.75, _GEMM_MEMORY.format(device="A100 SXM")),
        start=_seconds(4.0e-6, _GEMM_START.format(device="A100 SXM")),
    ),
}

FP8_START = _seconds(
    5.2e-6, "one in forty of published fp8 GEMM timings of vLLM's CUTLASS kernels on H100 SXM is shorter"
)

GEMM_HALF_RATE_SIZE = of_kernels(
    30.3, 0.0, 128.0, f"harmonic mean of a tile's sides at which half of the rate is reached; {_GEMM_FIT}"
)
GEMM_PROLOGUE_STEPS = of_kernels(
    195.0, 0.0, 512.0, f"steps of the inner dimension, at two bytes an element; {_GEMM_FIT}"
)
GEMM_WHOLE_WAVE_FRACTION = of_kernels(0.612, 0.0, 1.0, f"part of an unfinished wave that is paid for; {_GEMM_FIT}")

REFERENCE_WATTS_PER_TERAFLOPS: dict[str, float] = {
    "ampere": 400 / 311.9,  # A100 SXM
    "hopper": 700 / 989.4,  # H100 SXM
    "blackwell": 1000 / 2250.0,  # B200
}
"""Board power over the datasheet's bf16 rate of the GPUs that the sustained fractions were fitted on."""

POWER_EXPONENT = _trained(
    0.659, 0.33, 1.0, "a board with less power for its rate keeps (power / reference)^x: 500 W H100 of torchtitan"
)

NEAREST_ARCHITECTURE: dict[str, tuple[str, ...]] = {
    "volta": ("ampere",),
    "ampere": (),
    "ada": ("ampere", "hopper"),
    "hopper": (),
    "blackwell": ("hopper",),
    "cdna2": ("cdna3", "hopper"),
    "cdna3": ("hopper",),
    "cdna4": ("cdna3", "hopper"),
}
"""Where to look next when an architecture has no constant of its own."""


def with_fallbacks(architecture: str) -> tuple[str, ...]:
    """Return an architecture and those whose constants stand in for its own, nearest first."""
    return (architecture, *NEAREST_ARCHITECTURE.get(architecture, ()))


KERNEL_LAUNCH = _seconds(3.0e-6, _GEMM_START.format(device="H100 SXM"))

_PREFILL = "median of published bf16 prefill timings on {device} at head_dim 128, 1,024 to 16,384 tokens"

ATTENTION_FRACTION: dict[str, Constant] = {
    "ampere": _trained(0.375, 0.2, 0.7, "FlashAttention-2, forward and backward"),
    "hopper": _trained(0.372, 0.2, 0.7, "cuDNN and FlashAttention-3, forward and backward"),
    "blackwell": _trained(0.442, 0.2, 0.7, "cuDNN, forward and backward"),
}
"""Part of the datasheet's bf16 rate that an architecture's own attention kernels keep over hours of training when
tokens see many others."""

OLDER_ATTENTION: dict[str, Constant] = {
    "flash-2": _trained(0.552, 0.3, 1.0, "kernels written for Ampere, on what came after"),
    "flash-1": _trained(0.921, 0.5, 1.0, "over those of the second generation"),
}
"""What an older generation of kernels (`profiles.software.AttentionKernels`) keeps of the next one's rate."""

ATTENTION_RAMP: dict[str, Constant] = {
    "ampere": _tokens(650, _PREFILL.format(device="A100")),
    "hopper": _tokens(1500, _PREFILL.format(device="H100")),
}
"""Tokens of a causal sequence at which fused attention reaches half of its rate."""

LAUNCH_SECONDS: dict[str, Constant] = {
    "current": _trained(1e-05, 2e-6, 4e-5, "one launch of PyTorch 2"),
    "eager-2022": _trained(4.32e-05, 1e-5, 1.5e-4, "one launch of Megatron-DeepSpeed in 2022"),
}
"""Host time for one launch, by `profiles.software.HostPath`."""

RECOMPUTE_LAUNCHES = Constant(
    value=30.0,
    low=0.0,
    high=100.0,
    source="assumption: what a checkpointed region costs the host, in launches: states of random numbers saved, set and"
    " put back, one autograd pass inside another",
    origin=Origin.ASSUMED,
)

PLAIN_NORM_FACTOR = Constant(
    value=12.0,
    low=1.0,
    high=14.0,
    origin=Origin.COUNTED,
    source="an RMS norm of PyTorch operations (cast, square, mean, scale, cast, weight; all but the ends in"
    " fp32) moves 36 bytes an element forward and 84 backward, one kernel 4 and 6",
)

_LEFT_OUT = (
    "four of five of {runs} published {kind} lie within, sources weighted alike, by constants fitted without their "
)

TRAINING_BAND: dict[str, Constant] = {
    "dense": Constant(
        value=0.16, low=0.0, high=1.0, source=_LEFT_OUT.format(runs="2,165", kind="dense runs") + "source"
    ),
    "experts": Constant(
        value=0.39, low=0.0, high=2.0, source=_LEFT_OUT.format(runs="68", kind="runs of mixtures") + "source"
    ),
    "dense, other hardware": Constant(
        value=0.29,
        low=0.0,
        high=1.0,
        source=_LEFT_OUT.format(runs="2,165", kind="dense runs") + "generation of GPUs",
    ),
}
"""Half width of the band around a predicted step time, as a factor less one."""

RATIO_BAND = Constant(
    value=0.20,
    low=0.0,
    high=1.0,
    source="four of five of 17,708 pairs of published layouts of one dense model on one cluster lie within, sources"
    " weighted alike",
)
"""Half width of the band around the ratio of two layouts' predicted step times, as a factor less one.

Errors that both layouts have in common leave their ratio as it is; this is what is left, in-sample, of the two sources
that ran many layouts of one model, both of stacks that are harder to predict than most. Of mixtures only one such set
is known, so that a plan of one is less sure than that.
"""

_WITHOUT_A_SOURCE = "the furthest that {constants} moved in ten joint fits, each without one source of training runs"
_FOUR_OF_FIVE = "four of five of {timings} lie within, priced by the analytic model alone, systems weighted alike"


def _off_by(value: float, source: str) -> Constant:
    return Constant(value=value, low=0.0, high=1.0, source=source)


OPERATIONS_BAND: dict[str, Constant] = {
    "matrix products": _off_by(0.16, _FOUR_OF_FIVE.format(timings="3,296 published bf16 GEMM timings")),
    "attention": _off_by(
        0.22, _FOUR_OF_FIVE.format(timings="7,336 published 16-bit prefill timings of 1,024 tokens and more")
    ),
    "memory-bound kernels": _off_by(0.07, _WITHOUT_A_SOURCE.format(constants="MEMORY_FRACTION")),
    "collectives inside a node": _off_by(0.20, _WITHOUT_A_SOURCE.format(constants="COLLECTIVES_IN_TRAINING")),
    "collectives between nodes": _off_by(
        0.46, _FOUR_OF_FIVE.format(timings="503 NCCL timings of 1 MB and more over two Slingshot networks")
    ),
    "launches of the host": _off_by(0.72, _WITHOUT_A_SOURCE.format(constants="LAUNCH_SECONDS[current]")),
}
"""How far all operations of one class may be off together, as a factor less one.

A class may be off in two ways that are on record: its constants move when a source is left out of the fit to training
runs, and published timings of single operations lie beside the analytic price. The wider of the two counts: matrix
products 7 and 16 %, attention 18 and 22 %, collectives inside a node 20 and 12 % (299 timings of 1 MB and more),
between nodes 20 and 46 %; of memory-bound kernels and of the host there are fits alone. What a collective waits for its
stream (`COLLECTIVE_WAIT`) is left out: it moves by more than twice, and is short. Errors of single operations partly
even out over a step, so these are wide.
`tests/published/test_operation_bands.py` holds products, attention and collectives inside a node against the tables
that are shipped; the two Slingshot networks are not among them.
"""

ROUTING_KERNELS = _trained(
    278,
    20.0,
    400.0,
    "small kernels by which tokens are counted, sorted and padded for their experts or brought back, and waits for the"
    " host, either way",
)

SCAN_FRACTION = _fraction(
    0.25,
    "assumed: no published table; chunked scans are short products that wait for one another",
    assumed=True,
)

MEMORY_FRACTION = _trained(0.949, 0.6, 0.95, "part of the memory bandwidth that element-wise kernels and updates reach")

_NCCL = "nccl-tests bus bandwidth above 64 MB on {what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConstants:
    """Bus bandwidth inside an NVLink domain as a part of the datasheet's, for 2 and for 8 ranks."""

    two_ranks: Constant
    eight_ranks: Constant


def _peer(two: float, eight: float, what: str) -> PeerConstants:
    source = _NCCL.format(what=what)
    return PeerConstants(two_ranks=_fraction(two, source), eight_ranks=_fraction(eight, source))


PEER_FRACTION: dict[tuple[str, str], PeerConstants] = {
    ("hopper", "all_reduce"): _peer(0.71, 0.97, "H100 SXM, NVLink 4 with NVLS, NCCL 2.27"),
    ("hopper", "all_gather"): _peer(0.57, 0.74, "H100 SXM, NVLink 4, NCCL 2.27"),
    ("hopper", "reduce_scatter"): _peer(0.55, 0.74, "H100 SXM, NVLink 4, NCCL 2.27"),
    ("hopper", "all_to_all"): _peer(0.62, 0.71, "H100 SXM, NVLink 4, NCCL 2.27"),
    ("ampere", "all_reduce"): _peer(0.64, 0.74, "A100 SXM, NVLink 3, NCCL 2.27"),
    ("ampere", "all_gather"): _peer(0.50, 0.68, "A100 SXM, NVLink 3, NCCL 2.27"),
    ("ampere", "reduce_scatter"): _peer(0.55, 0.71, "A100 SXM, NVLink 3, NCCL 2.27"),
    ("ampere", "all_to_all"): _peer(0.55, 0.68, "A100 SXM, NVLink 3, NCCL 2.27"),
}

NETWORK_FRACTION = _fraction(
    0.9,
    "large NCCL messages between nodes of Alps (Slingshot 11) in NCCL tests: 0.92; on Polaris (Slingshot 10) 0.72",
)
PCIE_FRACTION = Constant(
    value=0.70,
    low=0.0,
    high=128 / 130,
    source="assumption: part of one direction of a PCIe slot that NCCL reaches, for want of a published table",
    origin=Origin.ASSUMED,
)
"""At most what 128b/130b coding leaves (PCI Express Base Specification 3.0 to 5.0)."""

COLLECTIVE_WAIT = _trained(
    7.2e-05,
    1e-6,
    1e-4,
    "what a collective between kernels adds to its start: its stream and theirs wait for one another",
)

COLLECTIVES_IN_TRAINING = _trained(
    0.876, 0.5, 1.0, "what collectives between kernels keep of the bandwidth that NCCL tests reach"
)

COLLECTIVE_START: dict[str, Constant] = {
    "hopper": _seconds(4.6e-6, "smallest NCCL message on H100 SXM less its hops"),
    "ampere": _seconds(7.9e-6, "smallest NCCL message on A100 SXM less its hops"),
}

PEER_HOP_FRACTION = _fraction(
    0.4, "hop of a ring inside an NVLink domain that reduces nothing on its way back; small NCCL messages on 8 GPUs"
)
"""Part of a peer level's latency that each hop of all_gather, reduce_scatter and all_to_all takes."""

COLLECTIVE_RAMP: dict[str, Constant] = {
    "ampere": _seconds(
        63e-6, "NCCL all_gather on 8 A100: intercept of the line through 16 MB and 256 MB, less its start"
    ),
    "hopper": _seconds(
        25e-6, "NCCL all_gather on 8 H100: intercept of the line through 16 MB and 256 MB, less its start"
    ),
}
"""What a long message adds to the start of a short one: NCCL leaves its low-latency protocols."""

COLLECTIVE_RAMP_BYTES = Constant(
    value=4e6,
    low=1e5,
    high=1e8,
    source="buffer at which half of the ramp is paid; 1 MB to 16 MB messages on A100 and H100",
)
OTHER_NETWORKS = "other networks"

RENDEZVOUS_SECONDS: dict[str, Constant] = {
    "slingshot": of_kernels(
        35e-6, 1e-6, 1e-4, "NCCL over Slingshot, 769 all_reduce timings of 2 to 32 nodes: 14 % median"
    ),
    OTHER_NETWORKS: Constant(
        value=9e-6,
        low=1e-6,
        high=1e-4,
        origin=Origin.COUNTED,
        source="hardware latency of a tree step with the simple protocol less that with LL, 14 and 5 us, in NCCL's"
        " tuner (src/graph/tuning.cc)",
    ),
}
"""What a message between nodes waits for both ends to agree on it, by the name of the network's level."""

RENDEZVOUS_BYTES = Constant(
    value=16384.0,
    low=1e2,
    high=1e6,
    origin=Origin.COUNTED,
    source="message from which both ends agree first: FI_CXI_RDZV_THRESHOLD of libfabric's cxi provider; half is paid"
    " at it",
)
CHUNK_BYTES = Constant(
    value=4 * 512 * 1024,
    low=1e4,
    high=1e9,
    origin=Origin.ASSUMED,
    source="assumption: first chunk of a tree on one network link, 512 KiB (NCCL_BUFFSIZE over NCCL_STEPS) on each of 4"
    " channels",
)

EXCHANGE_FRACTION = Constant(
    value=0.5,
    low=0.1,
    high=1.0,
    source="part of a ring's network bandwidth that all_to_all reaches; 2 and 8 nodes of 4 A100 over Slingshot, NCCL"
    " above 32 MB",
)

COLLECTIVE_CHANNELS = Constant(
    value=24.0,
    low=1.0,
    high=32.0,
    source="NCCL opens up to 24 channels inside a domain, each on a compute unit that a kernel beside it lacks",
)
P2P_CHANNELS = Constant(
    value=2.0,
    low=1.0,
    high=32.0,
    source="assumption: NCCL opens few channels to one peer across the network, each on a compute unit",
    origin=Origin.ASSUMED,
)


@contextmanager
def values_tried(values: Mapping[str, float]) -> Iterator[None]:
    """Give constants other values for as long as the context lasts: how a fit tries them.

    Constants are shared wherever they are imported, so this is seen everywhere, and by other threads too.

    Args:
        values: Values by the names of `named_constants`.

    Raises:
        ValueError: A value lies outside of its constant's range.
    """
    found = named_constants()
    before = {name: found[name].value for name in values}
    try:
        for name, value in values.items():
            object.__setattr__(found[name], "value", value)
            found[name].__post_init__()
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(found[name], "value", value)


def named_constants() -> dict[str, Constant]:
    """Return every constant of this module by name; those of a table have their keys behind it."""
    found: dict[str, Constant] = {}

    def collect(name: str, value: object) -> None:
        if isinstance(value, Constant):
            found[name] = value
        elif isinstance(value, GemmConstants | TileConstants | PeerConstants):
            for entry in fields(value):
                collect(f"{name}.{entry.name}", getattr(value, entry.name))
        elif isinstance(value, dict):
            for key, part in value.items():
                collect(f"{name}[{', '.join(key) if isinstance(key, tuple) else key}]", part)

    for name, value in globals().items():
        if name.isupper() and not name.startswith("_"):
            collect(name, value)
    return found
