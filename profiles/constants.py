"""Constants of the analytic cost model, each with its physical range and its source.

Fitted to published kernel and training measurements; the residual stands with the constant. Where an architecture has
no measurement its nearest generation is taken and the estimate is marked as assumed.
"""

from dataclasses import dataclass, fields

_TRAINING_FIT = "joint fit over 2,165 published dense training runs, sources weighted alike: 6.1 % median, in-sample"
_AT_EDGE = "at the edge of its range, the fit would go beyond; "
_ORDERED = "set by hand beside the fit, so that newer kernels are no slower than older; "


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A number with its physical range and where it comes from.

    Args:
        value: The number.
        low: Smallest value that physics allows.
        high: Largest value that physics allows.
        source: Where it comes from, with its residual where it was fitted.
        assumed: It was carried over from other hardware, or nothing published gives it.
    """

    value: float
    low: float
    high: float
    source: str
    assumed: bool = False

    def __post_init__(self) -> None:
        """Check that the value lies in its range."""
        if not self.low <= self.value <= self.high:
            raise ValueError(f"constant {self.value} lies outside [{self.low}, {self.high}]: {self.source}")


def _fraction(value: float, source: str, *, assumed: bool = False) -> Constant:
    return Constant(value=value, low=0.0, high=1.0, source=source, assumed=assumed)


def _seconds(value: float, source: str, *, assumed: bool = False) -> Constant:
    return Constant(value=value, low=0.0, high=1e-3, source=source, assumed=assumed)


def _tokens(value: float, source: str, *, assumed: bool = False) -> Constant:
    return Constant(value=value, low=0.0, high=1e4, source=source, assumed=assumed)


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
    """How an architecture cuts matrix products.

    Args:
        memory_fraction: Part of the memory bandwidth that a product reaches.
        start: Launch and drain of a kernel.
        half_rate_size: Harmonic mean of a tile's sides at which half of the rate is reached, at two bytes an element.
    """

    memory_fraction: Constant
    start: Constant
    half_rate_size: Constant


_GEMM_FIT = (
    "least mean absolute log error over {rows} published bf16 GEMM timings of {device}; all of them: 6.3 % median"
)
_HOPPER_GEMM = _GEMM_FIT.format(rows="1,910", device="H100 SXM")
_AMPERE_GEMM = _GEMM_FIT.format(rows="1,386", device="A100 SXM")
_BOTH_GEMM = _GEMM_FIT.format(rows="3,296", device="H100 and A100 SXM")
_MAMF = "best achieved matrix product on {device}, stas00/ml-engineering, compute/accelerator"


def _rate(value: float, source: str, *, assumed: bool = False) -> Constant:
    return Constant(value=value, low=0.3, high=1.1, source=source, assumed=assumed)


_BURST = _rate(1.04, "datasheet rates are at a clock below the burst's; " + _BOTH_GEMM)
_BURST_FP8 = _rate(
    0.94,
    "0.90 of the bf16 fraction, by published fp8 GEMM timings on H100 SXM; vLLM's CUTLASS kernels within 14 % in the"
    " median, TensorRT-LLM's, which quantise too, within 30 %",
)

GEMM: dict[tuple[str, str], GemmConstants] = {
    ("hopper", "bf16"): GemmConstants(peak_fraction=_BURST, sustained_fraction=_fraction(0.826, _TRAINING_FIT)),
    ("hopper", "fp8"): GemmConstants(peak_fraction=_BURST_FP8, sustained_fraction=_rate(1.1, _AT_EDGE + _TRAINING_FIT)),
    ("ampere", "bf16"): GemmConstants(
        peak_fraction=_BURST, sustained_fraction=_fraction(0.78, "set by hand beside the fit; " + _TRAINING_FIT)
    ),
    ("blackwell", "bf16"): GemmConstants(
        peak_fraction=_rate(1.04, "carried over from H100", assumed=True),
        sustained_fraction=_fraction(0.522, _TRAINING_FIT),
    ),
    ("blackwell", "fp8"): GemmConstants(
        peak_fraction=_rate(0.94, "carried over from H100", assumed=True),
        sustained_fraction=_rate(0.868, _TRAINING_FIT),
    ),
    ("cdna3", "bf16"): GemmConstants(
        peak_fraction=_rate(0.514, _MAMF.format(device="MI300X (668 of 1300 TFLOP/s)")),
        sustained_fraction=_fraction(0.85, "carried over from A100", assumed=True),
    ),
    ("cdna4", "bf16"): GemmConstants(
        peak_fraction=_rate(0.680, _MAMF.format(device="MI355X (1565 of 2300 TFLOP/s)")),
        sustained_fraction=_fraction(0.85, "carried over from A100", assumed=True),
    ),
}

TILES: dict[str, TileConstants] = {
    "hopper": TileConstants(
        memory_fraction=_fraction(0.83, _HOPPER_GEMM),
        start=_seconds(2.7e-6, _HOPPER_GEMM),
        half_rate_size=Constant(value=38.2, low=0.0, high=128.0, source=_HOPPER_GEMM),
    ),
    "ampere": TileConstants(
        memory_fraction=_fraction(0.726, _AMPERE_GEMM),
        start=_seconds(4.0e-6, _AMPERE_GEMM),
        half_rate_size=Constant(value=31.3, low=0.0, high=128.0, source=_AMPERE_GEMM),
    ),
}

FP8_START = _seconds(5.0e-6, "start of products of scaled fp8 operands: CUTLASS kernels of vLLM on H100 SXM")

GEMM_PROLOGUE_STEPS = Constant(
    value=185.0, low=0.0, high=512.0, source="steps of the inner dimension, at two bytes an element; " + _BOTH_GEMM
)
GEMM_WHOLE_WAVE_FRACTION = _fraction(0.616, _BOTH_GEMM)

REFERENCE_WATTS_PER_TERAFLOPS: dict[str, float] = {
    "ampere": 400 / 311.9,  # A100 SXM
    "hopper": 700 / 989.4,  # H100 SXM
    "blackwell": 1000 / 2250.0,  # B200
}
"""Board power over the datasheet's bf16 rate of the GPUs that the sustained fractions were fitted on."""

POWER_EXPONENT = Constant(
    value=0.712,
    low=0.0,
    high=1.0,
    source="a board with less power for its rate keeps (power / reference)^x: 500 W H100 of torchtitan; "
    + _TRAINING_FIT,
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

KERNEL_LAUNCH = _seconds(3.0e-6, "fitted start of a GEMM: 2.5 us (H100), 3.4 us (A100)")

_PREFILL = "median of published bf16 prefill timings on {device} at head_dim 128, 1,024 to 16,384 tokens"

ATTENTION_FRACTION: dict[tuple[str, str], Constant] = {
    ("ampere", "current"): _fraction(0.34, _ORDERED + _TRAINING_FIT),
    ("ampere", "flash-2"): _fraction(0.34, _ORDERED + _TRAINING_FIT),
    ("ampere", "flash-1"): _fraction(0.32, _ORDERED + _TRAINING_FIT),
    ("hopper", "current"): _fraction(0.35, _TRAINING_FIT),
    ("hopper", "flash-2"): _fraction(0.196, _TRAINING_FIT),
    ("hopper", "flash-1"): _fraction(0.174, _TRAINING_FIT),
    ("blackwell", "current"): _fraction(0.46, _TRAINING_FIT),
    ("blackwell", "flash-2"): _fraction(0.258, "the part of H100's that it keeps there, carried over", assumed=True),
}
"""Part of the datasheet's bf16 rate that attention keeps over hours of training when tokens see many others, by
architecture and generation of kernels (`profiles.software.AttentionKernels`)."""

ATTENTION_RAMP: dict[str, Constant] = {
    "ampere": _tokens(650, _PREFILL.format(device="A100")),
    "hopper": _tokens(1500, _PREFILL.format(device="H100")),
}
"""Tokens of a causal sequence at which fused attention reaches half of its rate."""

SCORES_FRACTION = _fraction(0.335, "batched products of kept scores; " + _TRAINING_FIT)
SCORES_PASSES = Constant(
    value=0.877,
    low=0.5,
    high=2.0,
    source="passes over kept scores, as a part of 6 forward and 8 backward; twice as many without a fused softmax; "
    + _TRAINING_FIT,
)

LAUNCH_SECONDS: dict[str, Constant] = {
    "current": _seconds(8e-06, _TRAINING_FIT),
    "eager": _seconds(1.5e-05, _TRAINING_FIT),
    "eager-2022": _seconds(6.3e-05, _TRAINING_FIT),
}
"""Host time for one launch, by `profiles.software.HostPath`."""

PLAIN_NORM_FACTOR = Constant(
    value=11.9,
    low=3.0,
    high=12.0,
    source="a norm of PyTorch operations over its least bytes: chains of fp32 copies; near the edge of its range; "
    + _TRAINING_FIT,
)

TRAINING_BAND: dict[str, Constant] = {
    "dense": Constant(
        value=0.18,
        low=0.0,
        high=1.0,
        source="four of five of 2,165 published dense runs lie within, sources weighted alike; in-sample",
    ),
    "experts": Constant(
        value=0.89,
        low=0.0,
        high=2.0,
        source="four of five of 68 published runs of mixtures lie within, both sources weighted alike; in-sample",
    ),
}
"""Half width of the band around a predicted step time, as a factor less one."""

RATIO_BAND = Constant(
    value=0.08,
    low=0.0,
    high=1.0,
    source="assumed, not yet calibrated: the spread of residuals within choice sets, runs of one model on one stack, is"
    " to set it",
    assumed=True,
)
"""Half width of the band around the ratio of two layouts' predicted step times, as a factor less one.

Narrower than `TRAINING_BAND`: the errors of two layouts of one model on one stack are mostly common, and common errors
leave a ratio as it is. What is left is the spread of the residuals within choice sets.
"""

ROUTING_KERNELS = Constant(
    value=200.0,
    low=20.0,
    high=400.0,
    source="small kernels by which tokens are counted, sorted and padded for their experts or brought back, and waits"
    " for the host; best of a few values from 1 to 300 on 68 published runs of mixtures: 18 % median",
)

EXPOSED_FRACTION = _fraction(0.415, "part of collectives beside a pass that is not hidden; " + _TRAINING_FIT)

SCAN_FRACTION = _fraction(
    0.25,
    "assumed: no published table; chunked scans are short products that wait for one another",
    assumed=True,
)

MEMORY_FRACTION = _fraction(0.733, "element-wise kernels; " + _TRAINING_FIT)

_NCCL = "nccl-tests bus bandwidth above 64 MB on {what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConstants:
    """Bus bandwidth inside an NVLink domain as a part of the datasheet's, for 2 and for 8 ranks."""

    two_ranks: Constant
    eight_ranks: Constant


def _peer(two: float, eight: float, what: str, *, assumed: bool = False) -> PeerConstants:
    source = _NCCL.format(what=what)
    return PeerConstants(
        two_ranks=_fraction(two, source, assumed=assumed), eight_ranks=_fraction(eight, source, assumed=assumed)
    )


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
    0.902,
    "large NCCL messages between nodes reach 0.72 (Polaris, Slingshot 10) to 0.92 (Alps, Slingshot 11); inside that, "
    + _TRAINING_FIT,
)
PCIE_FRACTION = Constant(
    value=0.70,
    low=0.0,
    high=128 / 130,
    source="assumption: part of one direction of a PCIe slot that NCCL reaches, for want of a published table",
    assumed=True,
)
"""At most what 128b/130b coding leaves (PCI Express Base Specification 3.0 to 5.0)."""

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
    assumed=True,
)


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
