"""How long one step of an engine takes, from its operators and the prices of its kernels.

A step holds chunks of prompts and one token of each running answer. Its time is

    host + products and experts of all tokens + element-wise kernels + exchanges + attention of chunks
         + attention of answers + LM head of the tokens that are sampled from.

Everything but attention depends on the number of tokens alone, and is computed once for a layout on a grid of tokens
(axis T); between its points time is linear. So a step is priced in microseconds, and whole surfaces with NumPy.

Experts: with uniform routing a step of M tokens reaches E (1 - (1 - k / E)^M) of E experts; each of these reads its
weights once and multiplies its share of the rows. Where experts are dealt to ranks the busiest one counts: by the
deviations of random routing, and of rows at most by the skew that training assumes too.

Kernels' timings hold their own start and end; in a captured graph a part of it is hidden behind the kernel before
(`KernelFactors.hidden_start`).

Data-parallel ranks run in step: a step has as many tokens on each, and experts see those of all. Pipeline stages each
hold a micro-batch of the step; its time is one micro-batch's way through all stages.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.serving.attention_times import DecodeTimes, PromptTimes
from planner.serving.engines import Engine, KernelFactors
from planner.serving.exchange import ExchangeTimes
from planner.serving.grouped import Grouped, grouped_kernels
from planner.serving.rank_operators import PLAIN_BYTES, Product, RankLayer, RankModel, RoutedExperts
from planner.serving_layout import EngineShape
from planner.workload import DEFAULT_ROUTING_SKEW
from profiles.constants import FP8_START, SCAN_FRACTION
from profiles.gemm_surface import GemmSurface
from profiles.hardware import Cluster, Device
from profiles.kernels.operations import Format
from profiles.kernels.rates import burst_rates, copied_bytes_per_second, peak_flops_per_second

FloatArray = NDArray[np.float64]

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

_GRID_T = np.array(TOKENS_T, dtype=np.float64)


class Term:
    """Names of what a step's time is spent on."""

    HOST = "host"
    PRODUCTS = "linear layers"
    EXPERTS = "experts"
    ELEMENT_WISE = "element-wise kernels"
    EXCHANGE = "collectives"
    PROMPTS = "attention of prompts"
    ANSWERS = "attention of answers"
    RECURRENCES = "recurrences"
    HEAD = "lm head"


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
        num_kernels: Element-wise kernels of a step.
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


def runnable(kind: Format, device: Device) -> Format:
    """Return the format that a GPU multiplies weights of `kind` in: 16 bit where it has no rate for theirs."""
    if kind.rate in device.dense_flops_per_second:
        return kind
    return replace(kind, rate="bf16", activation_bytes=PLAIN_BYTES)


class LayerKernels:
    """Prices products and experts on one GPU, vectorised over tokens."""

    def __init__(self, device: Device, factors: KernelFactors, engine: str) -> None:
        self._device = device
        self._engine = engine
        self._factors = factors
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
        """Return the seconds of one layer's experts on the busiest rank."""
        kind = runnable(experts.format, self._device)
        has_fp4 = "fp4" in self._device.dense_flops_per_second
        grouped = grouped_kernels(experts.grouped, engine=self._engine, has_fp4=has_fp4)
        share = experts.topk / experts.experts
        reached_T = 1 - (1 - share) ** tokens_T
        active_T = experts.on_rank * reached_T
        rows_T = tokens_T * experts.topk * experts.on_rank / experts.experts
        ranks = experts.experts / experts.on_rank
        if ranks > 1:
            # The busiest of some ranks lies so many deviations above their mean.
            deviations = np.sqrt(2 * np.log(ranks))
            active_T = np.minimum(experts.on_rank, active_T + deviations * np.sqrt(active_T * (1 - reached_T)))
            rows_T = np.minimum(rows_T + deviations * np.sqrt(rows_T), rows_T * DEFAULT_ROUTING_SKEW)
        active_T = np.minimum(active_T, rows_T)
        each_T = rows_T / active_T
        small, large = self._surface(kind.rate, grouped, full_tiles=False), self._surface(kind.rate, grouped)
        filled_T = np.minimum(each_T / FULL_TILE_ROWS, 1.0)
        first = experts.inter * (2 if experts.gated else 1)
        seconds_T = np.full_like(tokens_T, grouped.start.value * (1 - self._factors.hidden_start))
        starts = 2 * large.rates.start_seconds
        for columns, depth in ((first, experts.hidden), (experts.hidden, experts.inter)):
            num_bytes_T = active_T * columns * depth * kind.weight_bytes + rows_T * (
                depth * kind.activation_bytes + PLAIN_BYTES * columns
            )
            for surface, weight_T in ((small, 1 - filled_T), (large, filled_T)):
                seconds_T += weight_T * surface.seconds_P(each_T, columns, depth, bytes_P=num_bytes_T, batch_P=active_T)
        copied_T = PLAIN_BYTES * (rows_T * (3 * experts.hidden + 3 * experts.inter) + tokens_T * experts.hidden)
        return seconds_T - starts + copied_T / copied_bytes_per_second(self._device)

    def _surface(self, rate: str, grouped: Grouped | None = None, *, full_tiles: bool = True) -> GemmSurface:
        key = (rate, grouped, full_tiles)
        if key not in self._surfaces:
            rates, factors = burst_rates(self._device, rate), self._factors
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


def step_tables(
    model: RankModel, shape: EngineShape, cluster: Cluster, *, factors: KernelFactors, engine: Engine
) -> StepTables:
    """Return what a layout's kernels take for every number of tokens of a data-parallel rank.

    Args:
        model: What a rank holds and runs.
        shape: How the engine lies on its GPUs.
        cluster: Where it runs.
        factors: What kernels reach inside an engine.
        engine: Whose kernels run.

    Raises:
        CoverageError: The GPU lacks a rate that the model's formats need.
    """
    device = cluster.device
    kernels = LayerKernels(device, factors, engine.name)
    exchange = ExchangeTimes(cluster, engine.sums)
    tokens_T = np.maximum(_GRID_T / shape.pp, 1.0)
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
            expert_layers += layer.count * (factors.fp4_experts_share if is_fp4 else 1.0)
        if layer.is_latent or layer.recurrence is not None:
            latent_layers += layer.count
        exchange_T += layer.count * _exchange_T(layer, shape, exchange, tokens_T, model.hidden_size)
        scans_T += layer.count * _scan_T(layer, device, tokens_T)
        stream_bytes += layer.count * layer.stream_bytes_per_token
        num_kernels += layer.count * layer.num_kernels
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
        stream_T=tokens_T * stream_bytes / copied,
        exchange_T=exchange_T,
        scans_T=scans_T,
        head_T=head_T + 3 * logits_T / copied,
        num_kernels=num_kernels,
        expert_layers=expert_layers,
        latent_layers=latent_layers,
        state_seconds=state_bytes / copied,
        notes=(f"kernels: surfaces of {device.architecture}'s constants and the datasheet of {device.name}",),
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


class StepCosts:
    """Prices steps of one engine; `planner.serving.prices` makes it.

    Args:
        rank: What a rank holds and runs.
        shape: How the engine lies on its GPUs.
        engine: Which engine it is.
        tables: What its kernels take.
        attention: For each kind of attention its layers, and what times it in answers and in prompts.
    """

    def __init__(
        self,
        *,
        rank: RankModel,
        shape: EngineShape,
        engine: Engine,
        tables: StepTables,
        attention: Sequence[tuple[int, DecodeTimes, PromptTimes]],
    ) -> None:
        self.rank = rank
        self.shape = shape
        self.engine = engine
        self.tables = tables
        self._terms_T = {
            Term.PRODUCTS: engine.compute_factor * tables.products_T,
            Term.EXPERTS: engine.compute_factor * tables.experts_T,
            Term.ELEMENT_WISE: tables.stream_T,
            Term.EXCHANGE: tables.exchange_T,
        }
        self._fixed = engine.step_seconds + (
            tables.num_kernels * engine.kernel_seconds
            + tables.expert_layers * engine.experts_seconds
            + tables.latent_layers * engine.latent_seconds
        )
        self._tokens_T: list[float] = sum(self._terms_T.values(), np.zeros_like(_GRID_T)).tolist()
        self._scans_T: list[float] = tables.scans_T.tolist()
        self._head_T: list[float] = tables.head_T.tolist()
        self._decode = [(count, decode) for count, decode, _ in attention]
        self._prompts = [(count, prompts) for count, _, prompts in attention]
        self._recurs = any(layer.recurrence is not None for layer in rank.layers)

    def seconds(
        self,
        *,
        chunks: Sequence[tuple[float, float]] = (),
        decodes: float = 0,
        context: float = 0.0,
        finished: float = 0,
    ) -> float:
        """Return the time of one step of a data-parallel rank.

        Args:
            chunks: Of each prompt in the step its tokens and those before them.
            decodes: Answers that get a token each.
            context: Tokens that each of them sees, in the mean.
            finished: Prompts whose last token is in the step, so that it is sampled from.
        """
        prompt_tokens = sum(tokens for tokens, _ in chunks)
        total = self._fixed + self.engine.sequence_seconds * (decodes + len(chunks))
        total += _at(self._tokens_T, prompt_tokens + decodes) + _at(self._head_T, decodes + finished)
        if decodes:
            total += self.answers_seconds(decodes, context)
        if chunks:
            total += self.prompts_seconds(chunks)
        return total

    @property
    def first_token_seconds(self) -> float:
        """Return what the first token takes beside its steps."""
        with_experts = self.engine.first_token_experts_seconds if self.rank.has_experts else 0.0
        return self.engine.first_token_seconds + with_experts

    def answers_seconds(self, decodes: float, context: float) -> float:
        """Return the time of all layers' attention and recurrences of running answers."""
        each = max(decodes / self.shape.pp, 1.0) if decodes else 0.0
        total = each * self.tables.state_seconds if self._recurs else 0.0
        seen = context / self.shape.dcp
        for count, decode in self._decode:
            total += count * decode.seconds(each, seen)
        return total

    def prompts_seconds(self, chunks: Sequence[tuple[float, float]]) -> float:
        """Return the time of all layers' attention and recurrences of prompts' chunks."""
        pp = self.shape.pp
        parts = [(tokens / pp, past) for tokens, past in chunks] if pp > 1 else chunks
        total = _at(self._scans_T, sum(tokens for tokens, _ in chunks)) if self._recurs else 0.0
        for count, prompts in self._prompts:
            total += count * prompts.seconds(parts)
        return total

    def breakdown(
        self,
        *,
        chunks: Sequence[tuple[float, float]] = (),
        decodes: float = 0,
        context: float = 0.0,
        finished: float = 0,
    ) -> dict[str, float]:
        """Return the seconds of one step by term; they sum to `seconds`."""
        tokens = sum(tokens for tokens, _ in chunks) + decodes
        found = {
            Term.HOST: self._fixed + self.engine.sequence_seconds * (decodes + len(chunks)),
            Term.HEAD: _at(self._head_T, decodes + finished),
            Term.PROMPTS: self.prompts_seconds(chunks) if chunks else 0.0,
            Term.ANSWERS: self.answers_seconds(decodes, context) if decodes else 0.0,
        }
        return found | {name: _at(seconds_T.tolist(), tokens) for name, seconds_T in self._terms_T.items()}


def _at(seconds_T: Sequence[float], tokens: float) -> float:
    """Return the seconds of so many tokens: linear between points of the grid and behind its last; none take none."""
    if tokens <= 0:
        return 0.0
    index = min(max(bisect_right(TOKENS_T, tokens) - 1, 0), len(TOKENS_T) - 2)
    first, second = seconds_T[index], seconds_T[index + 1]
    return first + (second - first) * (max(tokens, 1.0) - TOKENS_T[index]) / (TOKENS_T[index + 1] - TOKENS_T[index])
