"""What a block asks of a node, whatever lies where: bytes of a model, and seconds of its GPU.

Bytes and kernels are those of serving (`planner.serving`): one rank of an engine with tp 1, kernels that start as in
vLLM. Everything is summed over the layers of one pass.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from planner.errors import InputError
from planner.experts.histogram import RoutingHistogram
from planner.frameworks.profile_remarks import profile_remarks
from planner.inference_offload.popularity import ExpertGroup, expert_groups
from planner.inference_offload.request import OffloadRequest
from planner.models.specs import ModelSpec
from planner.serving.engines import engine_named
from planner.serving.formats import formats_of
from planner.serving.ledger import activation_bytes
from planner.serving.prices import ServingPrices
from planner.serving.rank_model import PLAIN_BYTES, AttentionCore, RankLayer, RoutedExperts
from planner.serving.source_fractions import COUNTED, fractions
from planner.serving.step_costs import StepCosts, Term
from planner.serving_plans.layout import EngineSettings, EngineShape
from profiles.estimate import Source
from profiles.hardware import Cluster, Device
from profiles.uses import Use

_SHAPE = EngineShape(tp=1)

PHASES = ("prompts", "answers")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSeconds:
    """Seconds of the GPU in one pass of one batch.

    Args:
        products: Linear layers.
        experts: Routed experts.
        attention: Attention.
        rest: Element-wise kernels, LM head and the host's own time.
    """

    products: float
    experts: float
    attention: float
    rest: float

    @property
    def total(self) -> float:
        """Return the sum."""
        return self.products + self.experts + self.attention + self.rest


class ModelWork:
    """Counts and prices what one model asks of one GPU.

    Args:
        model: The model.
        cluster: Whose GPU.
        request: Lengths and formats.
        histogram: How often experts are chosen; None where they count as equal.

    Raises:
        InputError: The model has recurrent states, or layers with different experts.
        CoverageError: The GPU lacks a rate.
    """

    def __init__(
        self, model: ModelSpec, cluster: Cluster, request: OffloadRequest, histogram: RoutingHistogram | None
    ) -> None:
        device, self.notes = _sixteen_bit(cluster.device)
        alone = replace(cluster, device=device, gpus_per_node=1, num_nodes=1, levels=(), unequal=None)
        formats = formats_of(request.weights_name, model, cache=request.cache_name)
        prices, engine = ServingPrices(model, alone), engine_named("vllm")
        self._costs: StepCosts = prices.costs(_SHAPE, formats, engine)
        self._counting: Mapping[Source, StepCosts] = (
            {source: prices.counting(source).costs(_SHAPE, formats, engine) for source in COUNTED}
            if prices.is_measured
            else {}
        )
        self.notes = (
            *self.notes,
            *profile_remarks(cluster, use=Use.OFFLOADING, launch_seconds=engine.kernel_seconds),
        )
        self._rank = self._costs.rank
        self._cache_width = formats.cache_bytes
        self._layers: tuple[RankLayer, ...] = self._rank.layers
        if any(layer.recurrence is not None for layer in self._layers):
            raise InputError(
                f"{model.name} has layers with recurrent states, whose offloading is not planned.",
                hint="Plan models whose layers have attention.",
            )
        self.hidden_bytes = model.hidden_size * PLAIN_BYTES
        self.num_layers = self._rank.num_layers
        self.expert = self._expert(model)
        self.groups: tuple[ExpertGroup, ...] = ()
        if self.expert is not None:
            self.groups = expert_groups(self.expert.experts, self.expert.topk, histogram)
        elif histogram is not None:
            raise InputError(
                f"{model.name} has no routed experts.", hint="Leave --histogram out, or plan a mixture of experts."
            )
        source = "equally often, for want of a histogram" if histogram is None else f"as in {histogram.source}"
        if self.expert is not None:
            self.notes = (*self.notes, f"experts are chosen {source}, and tokens choose independently")

    def _expert(self, model: ModelSpec) -> RoutedExperts | None:
        found = {layer.experts for layer in self._layers if layer.experts is not None}
        if len(found) > 1:
            raise InputError(f"The layers of {model.name} differ in their experts, which is not planned.")
        return next(iter(found), None)

    @property
    def expert_layers(self) -> int:
        """Return the layers with routed experts."""
        return sum(layer.count for layer in self._layers if layer.experts is not None)

    @property
    def expert_bytes(self) -> float:
        """Return the weights of one expert of one layer."""
        return 0.0 if self.expert is None else self._expert_parameters * self.expert.format.weight_bytes

    @property
    def _expert_parameters(self) -> float:
        return 0.0 if self.expert is None else float(self.expert.parameters_of_one)

    @property
    def routed_bytes(self) -> float:
        """Return the weights of all routed experts."""
        return 0.0 if self.expert is None else self.expert_layers * self.expert.experts * self.expert_bytes

    @property
    def dense_bytes(self) -> float:
        """Return the weights of all layers but their routed experts."""
        return sum(layer.count * layer.weight_bytes for layer in self._layers) - self.routed_bytes

    @property
    def layer_elements(self) -> int:
        """Return the weights of the heaviest layer, in 16 bit."""
        return math.ceil(self.layer_bytes(with_experts=True) / PLAIN_BYTES)

    @property
    def largest_tensor_elements(self) -> int:
        """Return the weights of the largest matrix."""
        sizes = [product.columns * product.depth for layer in self._layers for product in layer.products]
        if self.expert is not None:
            sizes.append((2 if self.expert.gated else 1) * self.expert.hidden * self.expert.inter)
        head = self._rank.head
        return max(*sizes, head.columns * head.depth)

    @property
    def end_bytes(self) -> float:
        """Return the weights of embedding and LM head, which stay on the GPU."""
        return self._rank.end_bytes

    def layer_bytes(self, *, with_experts: bool) -> float:
        """Return the weights of the heaviest layer."""
        routed = 0.0 if self.expert is None else self.expert.experts * self.expert_bytes
        return max(
            layer.weight_bytes - (0.0 if with_experts or layer.experts is None else routed) for layer in self._layers
        )

    def cache_bytes(self, tokens: float) -> float:
        """Return the cache of one sequence of so many tokens."""
        return sum(self._kept(layer, tokens) for layer in self._layers)

    def layer_cache_bytes(self, tokens: float) -> float:
        """Return the most that one layer keeps of a sequence."""
        return max(self._kept(layer, tokens) / layer.count for layer in self._layers)

    def _kept(self, layer: RankLayer, tokens: float) -> float:
        core = layer.attention
        if core is None:
            return 0.0
        kept = tokens if core.kept_tokens is None else min(tokens, core.kept_tokens)
        return layer.count * (kept * core.cache_elements * self._cache_width + tokens * core.index_bytes)

    def read_cache_bytes(self, context: float) -> float:
        """Return what a token reads of its sequence's cache."""
        total = 0.0
        for layer in self._layers:
            core = layer.attention
            if core is not None:
                seen = context if core.seen_tokens is None else min(context, core.seen_tokens)
                total += layer.count * (seen * core.cache_elements * self._cache_width + context * core.index_bytes)
        return total

    def attention_flops(self, context: float) -> float:
        """Return the products of one token with its sequence's cache."""
        total = 0.0
        for layer in self._layers:
            core = layer.attention
            if core is not None:
                seen = context if core.seen_tokens is None else min(context, core.seen_tokens)
                total += layer.count * 2.0 * core.num_heads * (core.decode_qk_dim + core.decode_v_dim) * seen
        return total

    @property
    def query_bytes(self) -> float:
        """Return the queries of one token, which attention on the CPU is sent; keys and values go there anyway."""
        return float(
            sum(layer.count * core.num_heads * core.decode_qk_dim * PLAIN_BYTES for layer, core in self._attentions)
        )

    @property
    def attended_bytes(self) -> float:
        """Return what attention on the CPU sends back for one token."""
        return float(
            sum(layer.count * core.num_heads * core.decode_v_dim * PLAIN_BYTES for layer, core in self._attentions)
        )

    @property
    def _attentions(self) -> Iterator[tuple[RankLayer, AttentionCore]]:
        """Yield the layers with softmax attention, each with it."""
        for layer in self._layers:
            if layer.attention is not None:
                yield layer, layer.attention

    @property
    def product_flops(self) -> float:
        """Return the products of one token with all weights but experts."""
        return 2.0 * sum(
            layer.count * product.columns * product.depth for layer in self._layers for product in layer.products
        )

    @property
    def product_inputs_bytes(self) -> float:
        """Return the inputs of all linear layers for one token."""
        return float(PLAIN_BYTES * sum(layer.count * p.depth for layer in self._layers for p in layer.products))

    @property
    def product_outputs_bytes(self) -> float:
        """Return their outputs."""
        return float(PLAIN_BYTES * sum(layer.count * p.columns for layer in self._layers for p in layer.products))

    @property
    def expert_flops(self) -> float:
        """Return the products of one token with one expert."""
        return 2.0 * self._expert_parameters

    @property
    def expert_token_bytes(self) -> int:
        """Return what one token sends to one expert, and gets back."""
        return 0 if self.expert is None else self.expert.hidden * PLAIN_BYTES

    def working_bytes(self, tokens: int, sampled: int) -> int:
        """Return what one layer holds of so many tokens while it is computed, and the logits of those sampled."""
        settings = EngineSettings(max_num_seqs=sampled, max_num_batched_tokens=tokens, max_model_len=tokens)
        return activation_bytes(self._rank, _SHAPE, settings)

    def source_fractions(
        self, *, together: int, prompt_tokens: int, sequences: int, context: float
    ) -> Mapping[str, Mapping[str, float]] | None:
        """Return which part of the GPU's time comes from where, by phase; None where it was not measured.

        Args:
            together: Prompts that are computed at once.
            prompt_tokens: Of each.
            sequences: Answers of a batch.
            context: Tokens that each of them sees.
        """
        if not self._counting:
            return None

        def seconds(costs: StepCosts) -> tuple[float, float]:
            chunks = [(float(prompt_tokens), 0.0)] * together
            of_prompts = costs.breakdown(chunks=chunks, finished=together)
            of_answers = costs.breakdown(decodes=sequences, context=context)
            return sum(of_prompts.values()), sum(of_answers.values())

        parts = {source: seconds(costs) for source, costs in self._counting.items()}
        return {
            phase: fractions(whole, {source: part[index] for source, part in parts.items()})
            for index, (phase, whole) in enumerate(zip(PHASES, seconds(self._costs), strict=True))
        }

    def prompts(self, sequences: int, tokens: int) -> GpuSeconds:
        """Return the time of prompts of so many tokens each that are computed at once."""
        return _seconds(
            self._costs.breakdown(chunks=[(float(tokens), 0.0)] * sequences, finished=sequences), Term.PROMPTS
        )

    def answers(self, sequences: int, context: float) -> GpuSeconds:
        """Return the time of one token for each sequence, which sees so many."""
        return _seconds(self._costs.breakdown(decodes=sequences, context=context), Term.ANSWERS)


def _seconds(terms: dict[str, float], attention: str) -> GpuSeconds:
    named = {Term.PRODUCTS, Term.EXPERTS, attention}
    return GpuSeconds(
        products=terms[Term.PRODUCTS],
        experts=terms[Term.EXPERTS],
        attention=terms[attention],
        rest=sum(seconds for name, seconds in terms.items() if name not in named),
    )


def _sixteen_bit(device: Device) -> tuple[Device, tuple[str, ...]]:
    """Return the GPU with a rate for 16-bit weights: where it has none for bf16, that of fp16."""
    rates = device.dense_flops_per_second
    if "bf16" in rates or "fp16" not in rates:
        return device, ()
    note = f"{device.name} has no rate for bf16: 16-bit weights are held and multiplied in fp16"
    return replace(device, dense_flops_per_second={**rates, "bf16": rates["fp16"]}), (note,)
