"""The kernels and collectives of an engine on GPUs that were measured (`planner.serving.measured`).

Products: weights that are multiplied as they are held; those that are unpacked on the way have no rows. With scales by
blocks a product stands on rows with one scale a tensor, as an assumption. Grouped products of 16-bit experts stand on
grouped rows; a step's rows of an expert and its experts are rounded up to find a row's neighbours.

Element-wise kernels: one of n kernels of a kind has a part of their traffic, and takes the start that the engine pays
for each (`Engine.kernel_seconds`) and that part at the memory's bandwidth. What a profile says of such a kernel counts
over that start.

Collectives: sums of small tensors are one shot of the engine's own kernel, which no profile measures. Which those are
the engine's own prices say.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from planner.arrays import FloatArray
from planner.serving.engines import KernelFactors
from planner.serving.exchange import ExchangeTimes, OwnSums
from planner.serving.measured import Asked, Factors, Measured
from planner.serving.rank_model import Product, RankLayer, RoutedExperts
from planner.serving.step_tables import Grouping, LayerKernels, runnable
from profiles.hardware import Cluster, Device
from profiles.kernels.operations import FORMATS, Format
from profiles.kernels.rates import copied_bytes_per_second
from profiles.ops import CollectiveKind
from profiles.served_kernels import ServedKernel
from profiles.tables import Shape

SCALES_BYTES = 0.01
"""Bytes that scales of blocks add to a weight at most, and less than any format adds."""

_FORMAT_OF = {"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8", "int8": "int8"}
"""Formats of measured products, by their rate."""

_GROUPED_OF = {"bf16": "bf16", "fp16": "bf16", "fp8": "fp8", "int8": "int8"}
"""Grouped kernels (`planner.serving.grouped`) of measured products, likewise."""

WRITTEN = "written"
INSIDE, BETWEEN = "inside a node", "between nodes"


def is_measured(kind: Format) -> bool:
    """Return whether weights are multiplied as they are held, which is what a profile measures."""
    return 0 <= kind.weight_bytes - kind.activation_bytes < SCALES_BYTES


class MeasuredLayerKernels(LayerKernels):
    """Prices products, experts and element-wise kernels, by a profile first.

    Args:
        device: The GPU.
        factors: What kernels reach inside an engine.
        engine: Whose kernels run.
        measured: The profile.
        kernel_seconds: What the engine pays for each element-wise kernel beside its traffic.
    """

    def __init__(
        self, device: Device, factors: KernelFactors, engine: str, *, measured: Measured, kernel_seconds: float
    ) -> None:
        super().__init__(device, factors, engine)
        self._measured = measured
        self._kernel_seconds = kernel_seconds
        self.rest = measured.rest
        self.notes = (f"measured first: {measured.rows.text}",)
        alone = replace(factors, hidden_start=0.0)
        self._alone = AloneKernels(device, alone, engine)
        self._reference = AloneKernels(measured.rows.device, alone, engine)

    def product_T(self, product: Product, tokens_T: FloatArray) -> FloatArray:
        """Return the seconds of one linear layer."""
        seconds_T = super().product_T(product, tokens_T)
        kind = runnable(product.format, self._device)
        if not is_measured(kind):
            return self.rest * seconds_T
        rows_T = np.ceil(tokens_T)
        asked = Asked(
            kernel=ServedKernel.PRODUCTS,
            shapes=[_product(kind, int(rows), product.columns, product.depth, 1) for rows in rows_T.tolist()],
            own_seconds_P=self._alone.product_T(product, rows_T),
            reference=self._reference.measured_product_seconds,
            engine=self.engine,
            stands_in=kind.weight_bytes > kind.activation_bytes,
        )
        return seconds_T * self._measured.factors(asked).counted_P

    def grouped_T(
        self, experts: RoutedExperts, grouping: Grouping, *, columns: int, depth: int
    ) -> tuple[FloatArray, FloatArray]:
        """Return the seconds of products of each row with one of some experts: of small tiles and of full ones."""
        small_T, large_T = super().grouped_T(experts, grouping, columns=columns, depth=depth)
        kind = runnable(experts.format, self._device)
        if not is_measured(kind):
            return self.rest * small_T, self.rest * large_T
        each_P, active_P = np.ceil(grouping.each_T).ravel(), np.maximum(1.0, np.ceil(grouping.active_T)).ravel()
        whole = Grouping(each_T=each_P, active_T=active_P, rows_T=each_P * active_P)
        small_P, large_P = self._alone.grouped_T(experts, whole, columns=columns, depth=depth)
        asked = Asked(
            kernel=ServedKernel.GROUPED,
            shapes=[
                _product(kind, int(each), columns, depth, int(active))
                for each, active in zip(each_P.tolist(), active_P.tolist(), strict=True)
            ],
            own_seconds_P=small_P + large_P,
            reference=self._reference.measured_grouped_seconds,
            engine=self.engine,
            stands_in=kind.weight_bytes > kind.activation_bytes,
        )
        counted_T = self._measured.factors(asked).counted_P.reshape(small_T.shape)
        return counted_T * small_T, counted_T * large_T

    def stream_T(self, layers: Sequence[RankLayer], tokens_T: FloatArray, own_T: FloatArray) -> FloatArray:
        """Return the seconds of element-wise kernels beside their starts, `own_T` by their traffic alone."""
        copied = copied_bytes_per_second(self._device)
        seconds_T = self.rest * own_T
        for layer in layers:
            for kernel, (num_bytes, count) in layer.streams.items():
                if not count or not num_bytes:
                    continue
                each_T = np.ceil(tokens_T * num_bytes / count)
                alone_T = self._kernel_seconds + each_T / copied
                asked = Asked(
                    kernel=ServedKernel.ELEMENT_WISE,
                    shapes=[Shape(words=(kernel,), sizes=(int(each),)) for each in each_T.tolist()],
                    own_seconds_P=alone_T,
                    reference=self._measured_element_wise_seconds,
                    engine=self.engine,
                )
                found = self._measured.factors(asked)
                over_start_T = count * np.maximum(alone_T * found.factor_P - self._kernel_seconds, 0.0)
                stream_T = self.rest * tokens_T * num_bytes / copied
                seconds_T += layer.count * (over_start_T * found.part_P - stream_T)
        return np.maximum(seconds_T, 0.0)

    def _measured_element_wise_seconds(self, shape: Shape) -> float:
        copied = copied_bytes_per_second(self._measured.rows.device)
        return self._kernel_seconds + shape.sizes[0] / copied


class AloneKernels(LayerKernels):
    """Prices single kernels by the engine's own models, with nothing before them that hides their start."""

    def measured_product_seconds(self, shape: Shape) -> float:
        """Return the seconds of a product that was measured."""
        rows, columns, depth, _ = shape.sizes
        product = Product(columns=columns, depth=depth, format=FORMATS[_FORMAT_OF[shape.words[0]]])
        return float(self.product_T(product, np.array([float(rows)]))[0])

    def measured_grouped_seconds(self, shape: Shape) -> float:
        """Return the seconds of a grouped product that was measured."""
        rows, columns, depth, batch = shape.sizes
        name = shape.words[0]
        experts = RoutedExperts(
            hidden=depth,
            inter=columns,
            gated=False,
            experts=batch,
            copies=batch,
            on_rank=batch,
            topk=1,
            format=FORMATS[_FORMAT_OF[name]],
            grouped=_GROUPED_OF[name],
        )
        each_T, active_T = np.array([float(rows)]), np.array([float(batch)])
        grouping = Grouping(each_T=each_T, active_T=active_T, rows_T=each_T * active_T)
        small_T, large_T = self.grouped_T(experts, grouping, columns=columns, depth=depth)
        return float(small_T[0] + large_T[0])


class MeasuredExchangeTimes(ExchangeTimes):
    """Prices collectives of an engine, by a profile first.

    Args:
        cluster: Where it runs; groups are of neighbouring GPUs.
        sums: What the engine's own all-reduce kernels take.
        measured: The profile.
    """

    def __init__(self, cluster: Cluster, sums: OwnSums, *, measured: Measured) -> None:
        super().__init__(cluster, sums)
        self._sums, self._measured = sums, measured
        self._reference = ExchangeTimes(measured.rows.cluster, sums)

    def all_reduce_seconds_P(self, bytes_P: ArrayLike, size: int) -> FloatArray:
        """Return the seconds of sums of tensors of so many bytes over `size` neighbouring GPUs."""
        num_bytes = np.asarray(bytes_P, dtype=np.float64)
        if size <= 1:
            return np.zeros_like(num_bytes)
        one_shot_P, summed_P = self.one_shot_seconds_P(num_bytes, size), self.summed_seconds_P(num_bytes, size)
        found = self._factors(CollectiveKind.ALL_REDUCE, num_bytes, size, summed_P)
        counted_P: FloatArray = summed_P * found.counted_P.reshape(num_bytes.shape)
        if one_shot_P is None:
            return counted_P
        return np.where(one_shot_P < summed_P, self._measured.rest * one_shot_P, counted_P)

    def gather_seconds_P(self, bytes_P: ArrayLike, size: int) -> FloatArray:
        """Return the seconds of gathering tensors that are so large when whole; scattering sums takes as long."""
        seconds_P = super().gather_seconds_P(bytes_P, size)
        if size <= 1:
            return seconds_P
        return self._counted_P(CollectiveKind.ALL_GATHER, bytes_P, size, seconds_P)

    def send_seconds_P(self, bytes_P: ArrayLike, *, crosses_nodes: bool) -> FloatArray:
        """Return the seconds of one send from a GPU to another."""
        seconds_P = super().send_seconds_P(bytes_P, crosses_nodes=crosses_nodes)
        return self._counted_P(CollectiveKind.SEND_RECV, bytes_P, 2, seconds_P, crosses=crosses_nodes)

    def _counted_P(
        self, kind: CollectiveKind, bytes_P: ArrayLike, size: int, own_P: FloatArray, *, crosses: bool = False
    ) -> FloatArray:
        found = self._factors(kind, np.asarray(bytes_P, dtype=np.float64), size, own_P, crosses=crosses)
        counted_P: FloatArray = own_P * found.counted_P.reshape(own_P.shape)
        return counted_P

    def _factors(
        self, kind: CollectiveKind, bytes_P: FloatArray, size: int, own_P: FloatArray, *, crosses: bool = False
    ) -> Factors:
        leaves = crosses or size > self.cluster.largest_inside
        words = (kind.value, BETWEEN if leaves else INSIDE)
        asked = Asked(
            kernel=ServedKernel.COLLECTIVES,
            shapes=[Shape(words=words, sizes=(size, 1, max(1, math.ceil(one)))) for one in np.ravel(bytes_P).tolist()],
            own_seconds_P=np.ravel(own_P),
            reference=self._reference_seconds,
            engine=repr(self._sums),
        )
        return self._measured.factors(asked)

    def _reference_seconds(self, shape: Shape) -> float:
        (kind, where), (size, _, num_bytes) = shape.words, shape.sizes
        bytes_P = np.array([float(num_bytes)])
        match CollectiveKind(kind):
            case CollectiveKind.ALL_REDUCE:
                found = self._reference.summed_seconds_P(bytes_P, size)
            case CollectiveKind.ALL_GATHER:
                found = self._reference.gather_seconds_P(bytes_P, size)
            case _:
                found = self._reference.send_seconds_P(bytes_P, crosses_nodes=where == BETWEEN)
        return float(found[0])


def _product(kind: Format, rows: int, columns: int, depth: int, batch: int) -> Shape:
    return Shape(words=(kind.rate, WRITTEN), sizes=(rows, columns, depth, batch))
