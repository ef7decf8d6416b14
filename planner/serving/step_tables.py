"""What the kernels of a step take for every number of tokens: products, experts, element-wise traffic, collectives.

Everything but attention depends on the number of tokens alone, and is computed once for a layout on a grid of tokens
(axis T); between its points time is linear. So a step is priced in microseconds, and whole surfaces with NumPy.

Experts: how many of them a step reaches on the busiest rank, and how many rows these get, is said by
`planner.serving.reached_experts`; each of these reads its weights once and multiplies its share of the rows. Copies of
experts share what comes to them. Where it is known how often tokens choose each expert, a layer takes the mean of those
that were counted.

Where the cluster was measured its profile comes first (`planner.serving.measured_kernels`).

Kernels' timings hold their own start and end; in a captured graph a part of it is hidden behind the kernel before
(`KernelFactors.hidden_start`).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.arrays import FloatArray
from planner.serving.engines import KernelFactors
from planner.serving.exchange import ExchangeTimes
from planner.serving.grouped import Grouped, grouped_kernels
from planner.serving.rank_model import PLAIN_BYTES, Product, RankLayer, RankModel, RoutedExperts
from planner.serving.reached_experts import Reached, reached_on_busiest
from planner.serving_plans.layout import EngineShape
from profiles.constants import FP8_START, SCAN_FRACTION
from profiles.gemm_surface import GemmSurface
from profiles.hardware import Device
from profiles.kernels.operations import Format
from profiles.kernels.rates import burst_rates, copied_bytes_per_second, peak_flops_per_second

TOKENS_T = (
    *(
        1,
        2,
        3,
        4,
        6,
        8,
        12,
        16,
        24,
        32,
        48,
        64,
        80,
        96,
        128,
        160,
        192,
        224,
        256,
        320,
        384,
        448,
        512,
        640,
        768,
        896,
        1024,
    ),
    *(1280, 1536, 1792, 2048, 2560, 3072, 4096, 5120, 6144, 8192, 10240, 12288, 16384, 24576, 32768, 65536),
)
"""Tokens of a step that are priced: steps of tiles and waves lie between 64 and some thousands."""

FULL_TILE_ROWS = 128
"""Rows of an expert from which its tiles are full; kernels for fewer rows have smaller tiles, and read weights."""

GRID_T = np.array(TOKENS_T, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTables:
    """What kernels take for every number of tokens, before an engine's constants.

    Args:
        products_T: Linear layers.
        experts_T: Routed experts.
        stream_T: Traffic of element-wise kernels.
        exchange_T: Collectives.
        scans_T: Recurrences of prompts.
        head_T: LM head, by sampled tokens.
        num_kernels: Element-wise kernels of a step that run apart.
        expert_layers: Layers with routed experts, those with fp4 weights as the part of one that their kernels take.
        latent_layers: Layers with latent attention or a recurrence.
        state_seconds: Reading and writing the states of one sequence in decode.
        notes: Where the prices come from.
    """

    products_T: FloatArray
    experts_T: FloatArray
    stream_T: FloatArray
    exchange_T: FloatArray
    scans_T: FloatArray
    head_T: FloatArray
    num_kernels: int
    expert_layers: float
    latent_layers: int
    state_seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grouping:
    """How rows are dealt to experts.

    Args:
        each_T: Rows of an expert.
        active_T: Experts with rows.
        rows_T: Rows of all.
    """

    each_T: FloatArray
    active_T: FloatArray
    rows_T: FloatArray


def runnable(kind: Format, device: Device) -> Format:
    """Return the format that a GPU multiplies weights of `kind` in: 16 bit where it has no rate for theirs."""
    if kind.rate in device.dense_flops_per_second:
        return kind
    return replace(kind, rate="bf16", activation_bytes=PLAIN_BYTES)


class LayerKernels:
    """Prices products and experts on one GPU, vectorised over tokens.

    Args:
        device: The GPU.
        factors: What kernels reach inside an engine.
        engine: Whose kernels run.
    """

    rest = 1.0
    """Factor of what no profile knows."""
    notes: tuple[str, ...] = ()
    """Where prices come from before any other."""

    def __init__(self, device: Device, factors: KernelFactors, engine: str) -> None:
        self._device = device
        self.engine = engine
        self.factors = factors
        self._surfaces: dict[tuple[str, Grouped | None, bool], GemmSurface] = {}

    def product_T(self, product: Product, tokens_T: FloatArray) -> FloatArray:
        """Return the seconds of one linear layer."""
        kind = runnable(product.format, self._device)
        num_bytes_T = (
            tokens_T * (product.depth * kind.activation_bytes + product.columns * PLAIN_BYTES)
            + float(product.columns) * product.depth * kind.weight_bytes
        )
        return self._surface(kind.rate).seconds_P(tokens_T, product.columns, product.depth, bytes_P=num_bytes_T)

    def experts_T(self, experts: RoutedExperts, tokens_T: FloatArray) -> FloatArray:
        """Return the seconds of one layer's experts on the busiest rank, the mean of the layers that were counted.

        With copies the same rows lie in more and smaller tiles. That smaller tiles reach more of the tensor cores is
        read off timings without copies, and is no reason for them: they take no less than the same experts without
        any, evenly on the ranks.
        """
        spread = self.factors.routing_spread
        seconds_T = self._experts_seconds(experts, tokens_T, reached_on_busiest(experts, tokens_T, spread=spread))
        if experts.copies > experts.experts:
            on_rank = experts.on_rank * experts.experts // experts.copies
            alone = replace(experts, copies=experts.experts, on_rank=on_rank)
            reached = reached_on_busiest(alone, tokens_T, spread=spread, evenly=True)
            even_T = self._experts_seconds(alone, tokens_T, reached)
            seconds_T = np.maximum(seconds_T, even_T)
        return seconds_T if experts.placed is None else np.asarray(seconds_T.mean(axis=0))

    def _experts_seconds(self, experts: RoutedExperts, tokens_T: FloatArray, reached: Reached) -> FloatArray:
        """Return the seconds of experts; an axis of layers stands in front where they have one.

        Args:
            experts: The experts of a rank.
            tokens_T: Tokens of a step.
            reached: What these bring to it.
        """
        kind, grouped = self._grouped(experts)
        active_T, rows_T = reached.active_T, reached.rows_T
        grouping = Grouping(each_T=rows_T / active_T, active_T=active_T, rows_T=rows_T)
        first = experts.inter * (2 if experts.gated else 1)
        seconds_T = np.full_like(rows_T, self.rest * grouped.start.value * (1 - self.factors.hidden_start))
        starts = 2 * self._surface(kind.rate, grouped).rates.start_seconds
        for columns, depth in ((first, experts.hidden), (experts.hidden, experts.inter)):
            for part_T in self.grouped_T(experts, grouping, columns=columns, depth=depth):
                seconds_T += part_T
        copied_T = PLAIN_BYTES * (rows_T * (3 * experts.hidden + 3 * experts.inter) + tokens_T * experts.hidden)
        return seconds_T - self.rest * starts + self.rest * copied_T / copied_bytes_per_second(self._device)

    def grouped_T(
        self, experts: RoutedExperts, grouping: "Grouping", *, columns: int, depth: int
    ) -> tuple[FloatArray, FloatArray]:
        """Return the seconds of products of each row with one of some experts: of small tiles and of full ones.

        Args:
            experts: The experts.
            grouping: How rows are dealt to them.
            columns: Columns of an expert's weights.
            depth: Their rows.
        """
        kind, grouped = self._grouped(experts)
        each_T, active_T, rows_T = grouping.each_T, grouping.active_T, grouping.rows_T
        num_bytes_T = active_T * columns * depth * kind.weight_bytes + rows_T * (
            depth * kind.activation_bytes + PLAIN_BYTES * columns
        )
        filled_T = np.minimum(each_T / FULL_TILE_ROWS, 1.0)
        small, large = (
            weight_T
            * self._surface(kind.rate, grouped, full_tiles=full_tiles)
            .seconds_P(each_T.ravel(), columns, depth, bytes_P=num_bytes_T.ravel(), batch_P=active_T.ravel())
            .reshape(rows_T.shape)
            for full_tiles, weight_T in ((False, 1 - filled_T), (True, filled_T))
        )
        return small, large

    def _grouped(self, experts: RoutedExperts) -> tuple[Format, Grouped]:
        """Return what experts are multiplied in, and the kernels that do."""
        has_fp4 = "fp4" in self._device.dense_flops_per_second
        grouped = grouped_kernels(experts.grouped, engine=self.engine, has_fp4=has_fp4)
        return runnable(experts.format, self._device), grouped

    def stream_T(self, layers: Sequence[RankLayer], tokens_T: FloatArray, own_T: FloatArray) -> FloatArray:
        """Return the seconds of element-wise kernels, `own_T` by their traffic alone."""
        del layers, tokens_T
        return own_T

    def _surface(self, rate: str, grouped: Grouped | None = None, *, full_tiles: bool = True) -> GemmSurface:
        key = (rate, grouped, full_tiles)
        if key not in self._surfaces:
            rates, factors = burst_rates(self._device, rate), self.factors
            computing = memory = 1.0
            if grouped is not None:
                computing = grouped.compute.value if full_tiles else 1.0
                memory = grouped.memory.value * factors.experts_memory
            if self._device.architecture == "blackwell":
                memory *= factors.blackwell_memory
                computing *= {"fp8": factors.blackwell_fp8, "fp4": factors.blackwell_fp4}.get(rate, 1.0)
            start = rates.start_seconds
            if rate == "fp4":
                start = max(start, FP8_START.value) + factors.fp4_start_seconds
            self._surfaces[key] = GemmSurface(
                replace(
                    rates,
                    flops_per_second=rates.flops_per_second * computing,
                    bytes_per_second=rates.bytes_per_second * memory,
                    start_seconds=start * (1 - factors.hidden_start),
                )
            )
        return self._surfaces[key]


def _scan_T(layer: RankLayer, device: Device, tokens_T: FloatArray) -> FloatArray:
    """Return the seconds of one layer's recurrence over prompts' tokens."""
    scan = layer.recurrence
    if scan is None:
        return np.zeros_like(tokens_T)
    flops = tokens_T * scan.flops_per_token / (peak_flops_per_second(device, "bf16") * SCAN_FRACTION.value)
    return flops + tokens_T * scan.bytes_per_token / copied_bytes_per_second(device)


def step_tables(model: RankModel, shape: EngineShape, *, kernels: LayerKernels, exchange: ExchangeTimes) -> StepTables:
    """Return what a layout's kernels take for every number of tokens of a data-parallel rank.

    Args:
        model: What a rank holds and runs.
        shape: How the engine lies on its GPUs.
        kernels: Prices its kernels.
        exchange: Prices its collectives, where it runs.

    Raises:
        CoverageError: The GPU lacks a rate that the model's formats need.
    """
    cluster = exchange.cluster
    device = cluster.device
    tokens_T = np.maximum(GRID_T / shape.pp, 1.0)
    products_T, experts_T, exchange_T, scans_T = (np.zeros_like(tokens_T) for _ in range(4))
    stream_bytes = state_bytes = 0.0
    num_kernels = latent_layers = 0
    expert_layers = 0.0
    for layer in model.layers:
        seconds_T = sum((kernels.product_T(product, tokens_T) for product in layer.products), np.zeros_like(tokens_T))
        products_T += layer.count * seconds_T
        if layer.experts is not None:
            experts_T += layer.count * kernels.experts_T(layer.experts, tokens_T * shape.dp)
            is_fp4 = runnable(layer.experts.format, device).rate == "fp4"
            expert_layers += layer.count * (kernels.factors.fp4_experts_share if is_fp4 else 1.0)
        if layer.is_latent or layer.recurrence is not None:
            latent_layers += layer.count
        exchange_T += layer.count * _exchange_T(layer, shape, exchange, tokens_T, model.hidden_size)
        scans_T += kernels.rest * layer.count * _scan_T(layer, device, tokens_T)
        stream_bytes += layer.count * layer.stream_bytes_per_token
        num_kernels += layer.count * (layer.num_kernels - layer.fused.get(kernels.engine, 0))
        state_bytes += layer.count * (0 if layer.recurrence is None else 2 * layer.recurrence.state_bytes)
    stream_bytes += 3 * PLAIN_BYTES * model.hidden_size
    tensor_bytes_T = PLAIN_BYTES * tokens_T * model.hidden_size
    exchange_T += exchange.all_reduce_seconds_P(tensor_bytes_T, shape.tp)  # the embedding's parts
    if shape.pp > 1:
        crosses = shape.rank_gpus > cluster.gpus_per_node
        exchange_T += (shape.pp - 1) * exchange.send_seconds_P(tensor_bytes_T / shape.tp, crosses_nodes=crosses)
    copied = copied_bytes_per_second(device)
    logits_T = PLAIN_BYTES * tokens_T * model.head.columns * shape.tp
    head_T = kernels.product_T(model.head, tokens_T) + exchange.gather_seconds_P(logits_T, shape.tp)
    return StepTables(
        products_T=products_T,
        experts_T=experts_T,
        stream_T=kernels.stream_T(model.layers, tokens_T, tokens_T * stream_bytes / copied),
        exchange_T=exchange_T,
        scans_T=scans_T,
        head_T=head_T + kernels.rest * 3 * logits_T / copied,
        num_kernels=num_kernels,
        expert_layers=expert_layers,
        latent_layers=latent_layers,
        state_seconds=kernels.rest * state_bytes / copied,
        notes=(
            *kernels.notes,
            f"kernels: surfaces of {device.architecture}'s constants and the datasheet of {device.name}",
        ),
    )


def _exchange_T(
    layer: RankLayer, shape: EngineShape, exchange: ExchangeTimes, tokens_T: FloatArray, hidden: int
) -> FloatArray:
    """Return the seconds of one layer's collectives."""
    num_bytes_T = PLAIN_BYTES * tokens_T * hidden
    if layer.experts is None or shape.dp == 1:
        return layer.reductions * exchange.all_reduce_seconds_P(num_bytes_T, shape.tp)
    # Tokens of all data-parallel ranks are gathered for the experts, and their results scattered.
    ranks = shape.tp * shape.dp
    whole_T = num_bytes_T * shape.dp
    seconds_T = 2 * exchange.gather_seconds_P(whole_T, ranks)
    return seconds_T + (layer.reductions - 1) * exchange.all_reduce_seconds_P(num_bytes_T, shape.tp)


def at_tokens(seconds_T: Sequence[float], tokens: float) -> float:
    """Return the seconds of so many tokens: linear between points of the grid and behind its last; none take none."""
    if tokens <= 0:
        return 0.0
    index = bisect_right(TOKENS_T, tokens, 1, len(TOKENS_T) - 1) - 1
    first, second = seconds_T[index], seconds_T[index + 1]
    return first + (second - first) * (max(tokens, 1.0) - TOKENS_T[index]) / (TOKENS_T[index + 1] - TOKENS_T[index])
