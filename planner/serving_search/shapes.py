"""The shapes that an engine of a model can have on nodes of one kind, and why others are left out.

Considered are all tp x pp x dp, with and without expert parallelism and decode context parallelism, on whole nodes or
on a part of one. What is left is what vLLM starts (`planner.rules.vllm_mesh`, `planner.rules.vllm_experts` say the same
of files), less two choices of this search: tensor parallelism stays where links are fast, and sizes inside a node each
divide the next, so that any engines whose GPUs add up to a node's have a place on it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.models.blocks import (
    DenseFeedForward,
    LatentAttention,
    LinearAttention,
    MixtureOfExperts,
    SelfAttention,
    StateSpace,
)
from planner.models.specs import ModelSpec
from planner.serving.formats import ServedFormats, formats_of
from planner.serving_plans.layout import EngineShape
from planner.serving_plans.request import ServeConstraints
from planner.serving_search.expert_places import tried_copies
from profiles.hardware import Cluster

SCALE_BLOCK = 128
"""Columns and rows that share a scale in block-quantised fp8; vLLM refuses parts of one (validate_fp8_block_shape)."""

CONSTRAINED = "is constrained"
"""How the reason ends that refuses a shape which the user's constraints leave out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeSpace:
    """The shapes of an engine.

    Args:
        shapes: Those that break no rule, in order of their GPUs.
        considered: How many there were.
        pruned: Those left out, by reason.
    """

    shapes: tuple[EngineShape, ...]
    considered: int
    pruned: Counter[str]


def engine_shapes(
    model: ModelSpec, cluster: Cluster, formats: ServedFormats, constraints: ServeConstraints
) -> ShapeSpace:
    """Return the shapes that an engine of a model can have on a cluster.

    Args:
        model: The model.
        cluster: Nodes of one kind.
        formats: What the model is held in.
        constraints: What the user pins.
    """
    shapes: list[EngineShape] = []
    pruned: Counter[str] = Counter()
    considered = 0
    for shape in _considered(model, cluster):
        considered += 1
        reason = _refusal(shape, model, cluster, formats, constraints)
        if reason is None:
            shapes.append(shape)
        else:
            pruned[reason] += 1
    shapes.sort(key=shape_order)
    return ShapeSpace(shapes=tuple(shapes), considered=considered, pruned=pruned)


def shape_order(shape: EngineShape) -> tuple[int, ...]:
    """Return what shapes are sorted by: the fewest GPUs, then the simplest."""
    return (shape.num_gpus, shape.pp, shape.dp, int(shape.expert_parallel), shape.dcp, shape.tp)


def shape_words(shape: EngineShape) -> str:
    """Return a shape in few words: "tp8", "tp1 dp8 ep8"."""
    parts = [f"tp{shape.tp}"]
    parts += [f"{name}{value}" for name, value in (("pp", shape.pp), ("dp", shape.dp), ("dcp", shape.dcp)) if value > 1]
    if shape.expert_parallel:
        parts.append(f"ep{shape.tp * shape.pcp * shape.dp}")
    return " ".join(parts)


def engine_words(shape: EngineShape, *, guesses: int, redundant: int | None) -> str:
    """Return an engine in few words: "tp8 spec4", "tp1 dp8 ep8 eplb+8"."""
    parts = [shape_words(shape)]
    if redundant is not None:
        parts.append(f"eplb+{redundant}")
    if guesses:
        parts.append(f"spec{guesses}")
    return " ".join(parts)


def draft_refusal(shape: EngineShape, draft: ModelSpec) -> str | None:
    """Return why a draft cannot guess for an engine of a shape; None where it can.

    It has the engine's tensor-parallel degree, as vLLM asks, and its routed experts lie over all ranks, as the
    engine's own do (`vllm/model_executor/layers/fused_moe/layer.py`, `vllm/config/speculative.py:
    create_draft_parallel_config`). vLLM 0.32.0 makes it on the last pipeline stage, and there by the engine's own
    pipeline group: only that stage's part of its layers, which then wait for what no other stage computes
    (`vllm/v1/worker/gpu/spec_decode/standalone_ar/speculator.py: load_draft_model`,
    `vllm/model_executor/models/utils.py: make_layers`).
    """
    if shape.pp > 1:
        return "draft: pipeline stages, of which vLLM makes the last one's part of it alone"
    alone = EngineShape(tp=shape.tp, dp=shape.dp, expert_parallel=shape.expert_parallel)
    plain = formats_of("", draft)
    if _heads_refusal(alone, draft) or _width_refusal(alone, draft, plain):
        return "draft: its heads, columns or experts do not divide over the ranks"
    if shape.dcp > 1 and _context_refusal(shape, draft):
        return "draft: its key/value heads have no copies to share out"
    return None


def _considered(model: ModelSpec, cluster: Cluster) -> Iterator[EngineShape]:
    node = cluster.gpus_per_node
    sizes = [*_divisors(node), *(node * nodes for nodes in range(2, cluster.num_nodes + 1))]
    contexts = [False, True] if model.has_experts else [False]
    for size in sizes:
        for tp in _divisors(size):
            for pp in _divisors(size // tp):
                for expert_parallel in contexts:
                    shape = EngineShape(tp=tp, pp=pp, dp=size // tp // pp, expert_parallel=expert_parallel)
                    yield shape
                    for dcp in _divisors(tp)[1:]:
                        yield replace(shape, dcp=dcp)


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]


def _refusal(  # noqa: PLR0911 - one reason each
    shape: EngineShape, model: ModelSpec, cluster: Cluster, formats: ServedFormats, constraints: ServeConstraints
) -> str | None:
    """Return why an engine cannot have a shape; None where it can."""
    for name in ("tp", "pp", "dp", "dcp"):
        if not constraints.admits(name, getattr(shape, name)):
            return f"`{name}` {CONSTRAINED}"
    if model.has_experts and constraints.expert_parallel not in {None, shape.expert_parallel}:
        return f"`expert_parallel` {CONSTRAINED}"
    node = cluster.gpus_per_node
    if shape.num_gpus < node and shape.num_gpus not in nested_sizes(node):
        return "its GPUs do not nest in a node beside other sizes"
    if shape.num_gpus > node and node % shape.rank_gpus and shape.rank_gpus % node:
        return "its ranks do not fill nodes"
    if shape.tp > max(cluster.fast_domain_size, 1) and shape.tp > node:
        return "tensor parallelism leaves the fast links"
    if shape.pp > model.num_layers:
        return "more pipeline stages than layers"
    if shape.dp > 1 and not model.has_experts:
        return "data parallelism of a dense model: replicas do the same"
    if shape.expert_parallel and shape.tp * shape.dp == 1:
        return "expert parallelism on one rank"
    return (
        _heads_refusal(shape, model)
        or _width_refusal(shape, model, formats)
        or _context_refusal(shape, model)
        or _copies_refusal(shape, model, constraints)
    )


def _copies_refusal(shape: EngineShape, model: ModelSpec, constraints: ServeConstraints) -> str | None:
    """Return why an engine cannot keep the copies of experts that are asked for; None where it can, or none are."""
    asked = constraints.degrees.get("redundant_experts")
    if asked is None:
        return None
    if not shape.expert_parallel:
        return "`redundant_experts` is constrained, and experts are split"
    parts = (block.feed_forward for block in model.distinct_blocks)
    numbers = {part.num_experts for part in parts if isinstance(part, MixtureOfExperts)}
    ranks = shape.tp * shape.pcp * shape.dp
    if not all(tried_copies(number, ranks, asked) for number in numbers):
        return "`redundant_experts` allows no number that the ranks divide"
    return None


def nested_sizes(node: int) -> tuple[int, ...]:
    """Return sizes of engines that pack into a node whatever their mix: each divides the next."""
    sizes = [1]
    for divisor in _divisors(node):
        if divisor % sizes[-1] == 0 and divisor > sizes[-1]:
            sizes.append(divisor)
    return tuple(sizes)


def _heads_refusal(shape: EngineShape, model: ModelSpec) -> str | None:  # noqa: C901 - one kind of heads each
    for block in model.distinct_blocks:
        match block.mixer:
            case SelfAttention(num_attention_heads=heads, num_key_value_heads=groups):
                if heads % shape.tp:
                    return "tp does not divide the attention heads"
                if groups % shape.tp and shape.tp % groups:
                    return "tp neither divides the key/value heads nor is a multiple of them"
            case LatentAttention(num_attention_heads=heads):
                if heads % shape.tp:
                    return "tp does not divide the attention heads"
            case StateSpace(num_heads=heads):
                if heads % shape.tp:
                    return "tp does not divide the heads of the recurrence"
            case LinearAttention(num_key_heads=keys, num_value_heads=values):
                if keys % shape.tp or values % shape.tp:
                    return "tp does not divide the heads of the recurrence"
    return None


def _width_refusal(shape: EngineShape, model: ModelSpec, formats: ServedFormats) -> str | None:
    ranks = shape.tp * shape.pcp * shape.dp
    blocked = formats.name == "fp8_block"
    for block in model.distinct_blocks:
        part = block.feed_forward
        if isinstance(part, MixtureOfExperts):
            if shape.expert_parallel and part.num_experts % ranks:
                return "the experts do not divide over the ranks"
            widths = [] if shape.expert_parallel else [(part.expert.intermediate_size, ranks)]
            if part.shared is not None:
                widths.append((part.shared.intermediate_size, shape.tp))
        elif isinstance(part, DenseFeedForward):
            widths = [(part.intermediate_size, shape.tp)]
        else:
            continue
        for width, parts in widths:
            if width % parts:
                return "a feed-forward's columns do not divide over the ranks"
            if blocked and (width // parts) % SCALE_BLOCK:
                return f"a rank's columns are not whole blocks of {SCALE_BLOCK}"
    return None


def _context_refusal(shape: EngineShape, model: ModelSpec) -> str | None:
    """Return why the cache cannot be shared out in decode: only copies of the same heads can.

    vLLM 0.32.0 takes no windows there (`vllm/v1/core/single_type_kv_cache_manager.py`); what an indexer's keys take is
    not priced.
    """
    if shape.dcp == 1:
        return None
    for block in model.distinct_blocks:
        match block.mixer:
            case SelfAttention(window=window, chunk=chunk) if window is not None or chunk is not None:
                return "decode context parallelism of windows"
            case SelfAttention(num_attention_heads=heads, num_key_value_heads=groups):
                if shape.dcp > shape.tp // groups or (heads // groups) % shape.dcp:
                    return "decode context parallelism above the copies of a key/value head"
            case LatentAttention(indexer=None):
                pass
            case LatentAttention():
                return "decode context parallelism of indexed attention"
            case _:
                return "decode context parallelism of recurrences"
    return None
