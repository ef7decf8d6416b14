"""Constants of the analytic cost model, each with its physical range and its source.

Fitted to published kernel and training measurements; the residual stands with the constant. Where an architecture has
no measurement its nearest generation is taken and the estimate is marked as assumed.
"""

from dataclasses import dataclass

_GEMM_FIT = "least median error over {rows} published {what} timings with m >= 512: {error} median"
_TRAINING_FIT = "joint fit over published training runs (llm-foundry, Megatron-Bridge, InternEvo, vTrain and others)"


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
        peak_fraction: Part of the datasheet rate that a product with full waves and endless k reaches in a burst.
        sustained_fraction: Part of that burst rate that hours of training keep (power limit, backward shapes).
    """

    peak_fraction: Constant
    sustained_fraction: Constant


_HOPPER_GEMM = _GEMM_FIT.format(rows=830, what="H100 SXM bf16 GEMM", error="5.2 %")
_AMPERE_GEMM = _GEMM_FIT.format(rows=496, what="A100 SXM bf16 GEMM", error="7.0 %")
_HOPPER_FP8 = _GEMM_FIT.format(rows=830, what="H100 SXM fp8 GEMM", error="13 %")
_MAMF = "best achieved matrix product on {device}, stas00/ml-engineering, compute/accelerator"

GEMM: dict[tuple[str, str], GemmConstants] = {
    ("hopper", "bf16"): GemmConstants(
        peak_fraction=_fraction(0.845, _HOPPER_GEMM),
        sustained_fraction=_fraction(
            0.80,
            "hand estimate, no fit: 4 Megatron-LM weak-scaling runs on H100, micro-batch unstated, imply about 0.81;"
            " llm-foundry's H100 runs about 0.62; the joint-fit value is 0.69",
        ),
    ),
    ("hopper", "fp8"): GemmConstants(
        peak_fraction=_fraction(0.611, _HOPPER_FP8), sustained_fraction=_fraction(1.0, _TRAINING_FIT)
    ),
    ("ampere", "bf16"): GemmConstants(
        peak_fraction=_fraction(0.904, _AMPERE_GEMM),
        sustained_fraction=_fraction(
            0.78,
            "hand estimate, no fit: between what A100 runs imply, about 0.80 (61 of llm-foundry, FSDP) and 0.75 (86 of"
            " Aleph-Alpha, TP and PP); the joint-fit value is 0.89",
        ),
    ),
    ("blackwell", "bf16"): GemmConstants(
        peak_fraction=_fraction(0.845, "carried over from H100", assumed=True),
        sustained_fraction=_fraction(0.55, _TRAINING_FIT),
    ),
    ("blackwell", "fp8"): GemmConstants(
        peak_fraction=_fraction(0.611, "carried over from H100", assumed=True),
        sustained_fraction=_fraction(0.98, _TRAINING_FIT),
    ),
    ("cdna3", "bf16"): GemmConstants(
        peak_fraction=_fraction(0.514, _MAMF.format(device="MI300X (668 of 1300 TFLOP/s)")),
        sustained_fraction=_fraction(0.78, "carried over from A100", assumed=True),
    ),
    ("cdna4", "bf16"): GemmConstants(
        peak_fraction=_fraction(0.680, _MAMF.format(device="MI355X (1565 of 2300 TFLOP/s)")),
        sustained_fraction=_fraction(0.78, "carried over from A100", assumed=True),
    ),
}

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

GEMM_K_RAMP = Constant(
    value=130.0,
    low=0.0,
    high=1024.0,
    source="inner dimension at which a product reaches half its rate; " + _HOPPER_GEMM,
)
GEMM_SMALL_TILE_FRACTION = _fraction(
    0.95, "rate of a 128 x 128 tile against 128 x 256; fitted 0.98 (H100), 0.93 (A100)"
)
KERNEL_LAUNCH = _seconds(3.0e-6, "fitted start of a GEMM: 2.5 us (H100), 3.4 us (A100)")

_PREFILL = "median of published bf16 prefill timings on {device} at head_dim 128, 1,024 to 16,384 tokens"

ATTENTION_FRACTION: dict[str, Constant] = {
    "ampere": _fraction(
        0.48, "180 TFLOP/s causal prefill of long sequences on A100, 0.83 of it in training; " + _TRAINING_FIT
    ),
    "hopper": _fraction(
        0.37, "660 TFLOP/s causal prefill of long sequences on H100, 0.56 of it in training; " + _TRAINING_FIT
    ),
    "blackwell": _fraction(0.42, "H100's prefill rate times 2.3, 0.63 of it in training; " + _TRAINING_FIT),
}
"""Part of the datasheet rate that fused attention keeps over hours of training when tokens see many others."""

ATTENTION_RAMP: dict[str, Constant] = {
    "ampere": _tokens(650, _PREFILL.format(device="A100")),
    "hopper": _tokens(1500, _PREFILL.format(device="H100")),
}
"""Tokens of a causal sequence at which fused attention reaches half of its rate."""

UNFUSED_ATTENTION_FRACTION = _fraction(
    0.35, "batched products of the score matrix, taken as half a good GEMM", assumed=True
)

SCAN_FRACTION = _fraction(
    0.25,
    "assumed: no published table; chunked scans are short products that wait for one another",
    assumed=True,
)

MEMORY_FRACTION = _fraction(0.77, "element-wise kernels move 1.3 times their least bytes; " + _TRAINING_FIT)

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
    0.80,
    "bus bandwidth of large NCCL messages between nodes: 0.72 (Polaris, Slingshot 10) to 0.92 (Alps, Slingshot 11)",
)
PCIE_FRACTION = Constant(
    value=0.70,
    low=0.0,
    high=128 / 130,
    source="assumption: part of one direction of a PCIe slot that NCCL reaches, for want of a published table",
    assumed=True,
)
"""At most what 128b/130b coding leaves (PCI Express Base Specification 3.0 to 5.0)."""

COLLECTIVE_START = _seconds(6.0e-6, "smallest NCCL message less its hops: 4.6 us (H100), 7.9 us (A100)")

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
