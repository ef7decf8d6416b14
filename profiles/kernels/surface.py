"""Analytic times of single kernels on one GPU, from its datasheet."""

from profiles.gemm_surface import GemmSurface
from profiles.hardware import Device
from profiles.kernels.attention import decode_seconds, prefill_seconds
from profiles.kernels.experts import experts_seconds
from profiles.kernels.operations import Decode, GroupedExperts, KernelOp, MatrixProduct, Prefill
from profiles.kernels.rates import burst_rates


class KernelSurface:
    """Prices kernels on one GPU in a burst, without any measured table.

    Args:
        device: The GPU.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._products: dict[str, GemmSurface] = {}

    def seconds(self, operation: KernelOp) -> float:
        """Return the time of one kernel.

        Raises:
            CoverageError: The GPU lacks a rate that the kernel needs.
        """
        match operation:
            case MatrixProduct():
                return self._product_seconds(operation)
            case Prefill():
                return prefill_seconds(operation, self.device)
            case Decode():
                return decode_seconds(operation, self.device)
            case GroupedExperts():
                return experts_seconds(operation, self.device, self._surface(operation.format.rate))

    def _surface(self, rate: str) -> GemmSurface:
        found = self._products.get(rate)
        if found is None:
            found = self._products[rate] = GemmSurface(burst_rates(self.device, rate))
        return found

    def _product_seconds(self, operation: MatrixProduct) -> float:
        surface = self._surface(operation.format.rate)
        return float(surface.seconds_P(operation.m, operation.n, operation.k, bytes_P=operation.num_bytes))
