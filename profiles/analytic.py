"""The analytic cost model: datasheet figures times constants with sources.

- A matrix product: `profiles.gemm_surface`, at a burst rate times what hours of training keep of it; a board with less
  power for its rate keeps less.
- Attention runs at a part of the datasheet rate that depends on the GPU's generation, on the generation of kernels and
  on how many keys a query sees, or at its traffic. Kept scores go through memory, pass by pass. Recurrences run at a
  part of the rate, or at their traffic.
- Everything else is its traffic to device memory; `profiles.host` prices what crosses to the host.
- The host launches kernels one after the other: `launch_seconds` each (`profiles.software`).
- Collectives: `profiles.collectives`.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

from profiles.collectives import CollectivePrices
from profiles.constants import (
    ATTENTION_FRACTION,
    ATTENTION_RAMP,
    COLLECTIVE_CHANNELS,
    FP8_START,
    GEMM,
    GEMM_HALF_RATE_SIZE,
    GEMM_PROLOGUE_STEPS,
    GEMM_WHOLE_WAVE_FRACTION,
    KERNEL_LAUNCH,
    MEMORY_FRACTION,
    OLDER_ATTENTION,
    P2P_CHANNELS,
    POWER_EXPONENT,
    REFERENCE_WATTS_PER_TERAFLOPS,
    SCAN_FRACTION,
    TILES,
    Constant,
    GemmConstants,
    TileConstants,
    with_fallbacks,
)
from profiles.drives import drive_copy
from profiles.errors import CoverageError
from profiles.estimate import Estimate, Reached, Source
from profiles.gemm_surface import GemmRates, GemmSurface
from profiles.hardware import Cluster
from profiles.host import host_copy, host_pass
from profiles.ops import Attention, ComputeOp, DriveCopy, Gemm, HostCopy, HostPass, MemoryBound, StateScan
from profiles.software import CURRENT_SOFTWARE, AttentionKernels, Software, TensorParallelOverlap

Facts = TypeVar("Facts", Constant, TileConstants)


_FLASH_2_ARCHITECTURE = "ampere"
"""Where FlashAttention-2 is the current generation."""

_SCORES_PASSES = {False: 4.5, True: 5.5}
"""Passes over kept scores beside the products, forward and backward. Softmax with scale and mask reads and writes
them, dropout too, and a byte of mask for each; backward softmax reads its output too (Megatron-LM's fused kernel)."""

_PLAIN_SCORES_PASSES = {False: 17.0, True: 19.0}
"""The same of PyTorch operations: scale, mask, a cast to fp32, softmax in it, a cast back, dropout."""


class AnalyticCostModel:
    """Prices operations on one cluster from datasheet figures; see the module's docstring.

    Args:
        cluster: Where the operations run.
        software: What runs them.
        sustained: Matrix products and collectives run as hours of training keep them, not in a burst.
    """

    def __init__(self, cluster: Cluster, software: Software = CURRENT_SOFTWARE, *, sustained: bool = True) -> None:
        self.cluster = cluster
        self.software = software
        self.sustained = sustained
        self._surfaces: dict[str, GemmSurface] = {}
        self.compute = lru_cache(maxsize=None)(self._compute)
        self.collective = lru_cache(maxsize=None)(CollectivePrices(cluster, software, sustained=sustained).price)

    def _compute(self, operation: ComputeOp) -> Estimate:  # noqa: PLR0911 - one for each kind of operation
        """Return the time of one operation on one GPU.

        Raises:
            CoverageError: The GPU has no rate for the format, or its architecture no constants.
        """
        match operation:
            case Gemm():
                return self._gemm(operation)
            case Attention():
                return self._attention(operation)
            case StateScan():
                return self._scan(operation)
            case HostCopy():
                return host_copy(operation, self.cluster)
            case HostPass():
                return host_pass(operation, self.cluster)
            case DriveCopy():
                return drive_copy(operation, self.cluster)
            case MemoryBound():
                factor = self.software.norm_factor if operation.is_norm else 1.0
                seconds = self._traffic_seconds(factor * operation.num_bytes)
                return Estimate(
                    seconds=seconds + operation.num_launches * KERNEL_LAUNCH.value,
                    source=Source.ANALYTIC,
                    note=(
                        f"bytes at {MEMORY_FRACTION.value} of {self.cluster.device.name} memory bandwidth"
                        f"; {MEMORY_FRACTION.source}"
                    ),
                )

    def _traffic_seconds(self, num_bytes: float) -> float:
        return num_bytes / (self.cluster.device.memory_bytes_per_second * MEMORY_FRACTION.value)

    def _peak_flops_per_second(self, dtype: str, operation: str) -> float:
        device = self.cluster.device
        if dtype not in device.dense_flops_per_second:
            raise CoverageError(
                operation=operation,
                missing=f"{device.name} has no {dtype} rate in the catalogue",
                remedy=f"Use one of {', '.join(sorted(device.dense_flops_per_second))}.",
            )
        return device.dense_flops_per_second[dtype]

    def _gemm_constants(self, dtype: str, operation: str) -> tuple[GemmConstants, bool]:
        """Return the constants and whether they were carried over from another architecture."""
        kind = "bf16" if dtype in ("fp16", "fp32") else dtype
        architecture = self.cluster.device.architecture
        for candidate in with_fallbacks(architecture):
            constants = GEMM.get((candidate, kind))
            if constants is not None:
                parts = (constants.peak_fraction, constants.sustained_fraction)
                return constants, candidate != architecture or any(part.assumed for part in parts)
        raise CoverageError(
            operation=operation,
            missing=f"no {dtype} GEMM efficiency is known for architecture {architecture}",
            remedy="Use a GPU of the catalogue.",
        )

    def _gemm(self, operation: Gemm) -> Estimate:
        surface = self._surfaces.get(operation.dtype)
        if surface is None:
            surface = GemmSurface(self._gemm_rates(operation.dtype, _gemm_text(operation)))
            self._surfaces[operation.dtype] = surface
        constants, carried_over = self._gemm_constants(operation.dtype, _gemm_text(operation))
        seconds = surface.seconds_P(
            operation.m, operation.n, operation.k, bytes_P=operation.num_bytes, batch_P=operation.batch
        )
        return Estimate(
            seconds=float(seconds),
            source=Source.ASSUMED if carried_over else Source.ANALYTIC,
            note=(
                f"{operation.dtype} tiles and waves; burst rate: {constants.peak_fraction.source}"
                + (f"; sustained: {constants.sustained_fraction.source}" if self.sustained else "")
            ),
        )

    def _gemm_rates(self, dtype: str, what: str) -> GemmRates:
        """Return what the surface of matrix products reads of this GPU.

        Args:
            dtype: Format of the operands.
            what: What is priced, for messages.

        Raises:
            CoverageError: The GPU has no rate for the format, or its architecture no constants.
        """
        peak = self._peak_flops_per_second(dtype, what)
        constants, _ = self._gemm_constants(dtype, what)
        tiles, _ = self._of_architecture(TILES, what)
        rate = peak * constants.peak_fraction.value
        if self.sustained:
            rate *= constants.sustained_fraction.value * self._power_fraction()
        # Operands of half the width are multiplied twice as fast, while tiles begin and are read as before.
        faster = 2.0 if dtype == "fp8" else 1.0
        device = self.cluster.device
        return GemmRates(
            flops_per_second=rate,
            bytes_per_second=device.memory_bytes_per_second * tiles.memory_fraction.value,
            num_units=device.num_compute_units,
            start_seconds=FP8_START.value if dtype == "fp8" else tiles.start.value,
            half_rate_size=GEMM_HALF_RATE_SIZE.value * faster,
            prologue_steps=GEMM_PROLOGUE_STEPS.value * faster,
            whole_wave_fraction=GEMM_WHOLE_WAVE_FRACTION.value,
        )

    def _power_fraction(self) -> float:
        """Return what the board's power keeps of a sustained rate that was fitted on a board with more for its rate."""
        device = self.cluster.device
        reference = REFERENCE_WATTS_PER_TERAFLOPS.get(device.architecture)
        if reference is None:
            return 1.0
        watts = device.tdp_watts / (device.dense_flops_per_second["bf16"] / 1e12)
        fraction: float = min(1.0, watts / reference) ** POWER_EXPONENT.value
        return fraction

    def _attention(self, operation: Attention) -> Estimate:
        what = f"attention of {operation.batch} x {operation.query_len} tokens"
        kernels = self.software.attention if operation.fused else self.software.scores
        if kernels.keeps_scores:
            return self._attention_with_scores(operation, kernels)
        peak = self._peak_flops_per_second(operation.dtype, what) * self._power_fraction()
        reached = self._attention_fraction(operation, kernels, what)
        seconds = max(operation.flops / (peak * reached.fraction), self._traffic_seconds(operation.num_bytes))
        return Estimate(
            seconds=seconds + operation.num_launches * KERNEL_LAUNCH.value,
            source=Source.ASSUMED if reached.assumed else Source.ANALYTIC,
            note=f"{kernels} attention at part of the datasheet rate, {reached.source}",
        )

    def _attention_with_scores(self, operation: Attention, kernels: AttentionKernels) -> Estimate:
        """Return the time of attention whose scores go through memory: two products, and passes over the scores."""
        products = sum(self._gemm(product).seconds for product in operation.products)
        plain = kernels is AttentionKernels.PLAIN
        passes = (_PLAIN_SCORES_PASSES if plain else _SCORES_PASSES)[operation.backward]
        softmax = self._traffic_seconds(passes * operation.score_bytes)
        return Estimate(
            seconds=products + softmax + 2 * KERNEL_LAUNCH.value,
            source=Source.ANALYTIC,
            note=f"{kernels} attention: its products, and {passes} passes over scores in memory",
        )

    def _scan(self, operation: StateScan) -> Estimate:
        what = f"a recurrence over {operation.tokens} tokens"
        peak = self._peak_flops_per_second(operation.dtype, what) * SCAN_FRACTION.value
        seconds = max(operation.flops / peak, self._traffic_seconds(operation.num_bytes))
        return Estimate(
            seconds=seconds + operation.num_launches * KERNEL_LAUNCH.value,
            source=Source.ASSUMED,
            note=f"chunks at {SCAN_FRACTION.value} of the datasheet rate, {SCAN_FRACTION.source}",
        )

    def _attention_fraction(self, operation: Attention, kernels: AttentionKernels, what: str) -> Reached:
        """Return the part of the rate that attention reaches.

        A kernel fills its tiles the better the more keys a query sees: n / (n + n0), with n the length of a causal
        sequence in which a query sees as many on average in one call.
        """
        long, long_from = self._of_architecture(ATTENTION_FRACTION, what)
        ramp, ramp_from = self._of_architecture(ATTENTION_RAMP, what)
        length = 2 * operation.pairs / (operation.query_len * operation.calls)
        kept = 1.0
        if kernels is not AttentionKernels.CURRENT and long_from != _FLASH_2_ARCHITECTURE:
            kept = OLDER_ATTENTION["flash-2"].value
        if kernels is AttentionKernels.FLASH_1:
            kept *= OLDER_ATTENTION["flash-1"].value
        here = self.cluster.device.architecture
        return Reached(
            fraction=long.value * kept * length / (length + ramp.value),
            source=long.source,
            assumed=long.assumed or long_from != here or ramp_from != here,
        )

    def _of_architecture(self, constants: Mapping[str, Facts], what: str) -> tuple[Facts, str]:
        """Return the constants of the GPU's architecture, or of the nearest, and which that is."""
        architecture = self.cluster.device.architecture
        for candidate in with_fallbacks(architecture):
            if candidate in constants:
                return constants[candidate], candidate
        raise CoverageError(
            operation=what,
            missing=f"no efficiency is known for architecture {architecture}",
            remedy="Use a GPU of the catalogue.",
        )

    @property
    def overlap_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a collective runs beside it.

        The collective's channels hold c of n compute units, at most half of them, so the kernel runs at (n - c) / n of
        its rate.
        """
        return self._slowdown(COLLECTIVE_CHANNELS)

    @property
    def transfer_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a pipeline send or receive runs beside it.

        As `overlap_slowdown`, with the few channels of a transfer to one peer.
        """
        return self._slowdown(P2P_CHANNELS)

    @property
    def copy_slowdown(self) -> None:
        """Return that nothing tells what a kernel loses to copies to or from the host beside it."""
        return

    @property
    def tensor_parallel_overlap(self) -> TensorParallelOverlap:
        """Return what tensor-parallel collectives run beside."""
        return self.software.tensor_parallel_overlap

    @property
    def launch_seconds(self) -> float:
        """Return the host's time for one launch."""
        return self.software.launch_seconds.value

    def _slowdown(self, channels: Constant) -> float:
        units = self.cluster.device.num_compute_units
        held = min(channels.value, units / 2)
        return held / (units - held)


def _gemm_text(operation: Gemm) -> str:
    return f"{operation.dtype} GEMM {operation.m} x {operation.n} x {operation.k}"
