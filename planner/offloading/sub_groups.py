"""Which of a rank's states DeepSpeed keeps on the GPU where `ratio` leaves a part of them on the host.

DeepSpeed adds the shares of tensors, in the order in which the program hands them over, until a sub-group holds
`sub_group_size` elements (`runtime/zero/stage3.py: _create_fp16_sub_groups` of deepspeed 0.19), and deals whole
sub-groups: of n the first int((1 - ratio) n) stay on the GPU, whatever their sizes (`_create_fp32_partitions`). With
its default size of a billion elements a rank often has a single one, so that `ratio` does nothing (issue 4775).

A plan's fraction counts elements and is written as the `ratio`. So a size is looked for with which the dealing keeps as
many elements on the GPU as it can and none more than the plan's fraction leaves there: sizes that make from
`LEAST_GROUPS` to `MOST_GROUPS` of the share are tried, else one sub-group takes everything to the host. What the host
holds beyond the fraction is a large tensor's share at most (the embedding, as a rule, is the first); the ledger of
nodes counts for every fraction what the worst one of them leaves (`most_beyond`).

The order is that of the training program beside an emitted configuration (`planner/data/deepspeed/planned_model.py`).
Hugging Face's models put norms elsewhere in a layer, which moves a sub-group's end by a norm's few elements.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from planner.models.blocks import (
    Block,
    DenseFeedForward,
    LatentAttention,
    MixtureOfExperts,
    QueryKeyNorm,
    SelfAttention,
)
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.requests.workload import Precision, TrainWorkload

LEAST_GROUPS, MOST_GROUPS = 20, 50
"""Sub-groups of a rank that are tried: more deal finer, and each is a call of either optimizer. A choice."""

_WHOLE_PERCENTS = range(1, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealing:
    """How a rank's sub-groups are dealt.

    Args:
        sub_group_size: Elements that a sub-group holds at least.
        num_groups: Sub-groups.
        num_kept: Sub-groups whose states stay on the GPU.
        kept_elements: Elements of these.
        elements: Elements of all.
    """

    sub_group_size: int
    num_groups: int
    num_kept: int
    kept_elements: int
    elements: int

    @property
    def hosted_fraction(self) -> float:
        """Return the part of the elements whose states are on the host."""
        return 1.0 - self.kept_elements / self.elements


def dealing(tensors: Sequence[int], *, ranks: int, sub_group_size: int, ratio: float) -> Dealing:
    """Return how DeepSpeed deals a rank's share of these tensors.

    Args:
        tensors: Elements of each trainable tensor, in the program's order.
        ranks: Ranks that split each of them.
        sub_group_size: DeepSpeed's key.
        ratio: DeepSpeed's key.
    """
    ends = _group_ends(tuple(-(-tensor // ranks) for tensor in tensors), sub_group_size)
    return _dealt(ends, sub_group_size, ratio)


@lru_cache(maxsize=1 << 10)
def planned_dealing(tensors: tuple[int, ...], *, ranks: int, fraction: float) -> Dealing:
    """Return the dealing, with `fraction` as the ratio, that keeps most on the GPU and not more than it leaves there.

    Of sizes that keep as much the largest is taken.

    Args:
        tensors: Elements of each trainable tensor, in the program's order.
        ranks: Ranks that split each of them.
        fraction: Part of the states that is on the host.
    """
    shares = tuple(-(-tensor // ranks) for tensor in tensors)
    room = int((1.0 - fraction) * -(-sum(tensors) // ranks))
    tried = [_dealt(ends, size, fraction) for size, ends in _sizes(shares)]
    return max((found for found in tried if found.kept_elements <= room), key=lambda found: found.kept_elements)


def most_beyond(tensors: tuple[int, ...], *, ranks: int, fraction: float) -> float:
    """Return at most which part of a rank's states is on the host beyond a fraction of them, as sub-groups are whole.

    The same for every fraction that is a whole percent, so that a larger one never leaves less on the host.
    """
    percents = _most_beyond_percents(tensors, ranks)
    return max(percents, planned_dealing(tensors, ranks=ranks, fraction=fraction).hosted_fraction - fraction)


@lru_cache(maxsize=64)
def largest_kept(tensors: tuple[int, ...], *, ranks: int) -> int:
    """Return at most what a sub-group holds that stays on the GPU: a tensor may overshoot its size."""
    shares = [-(-tensor // ranks) for tensor in tensors]
    return -(-sum(shares) // LEAST_GROUPS) + max(shares)


@lru_cache(maxsize=8)
def tensor_elements(model: ModelSpec) -> tuple[int, ...]:
    """Return the elements of each tensor of a model in the order in which the training program hands them over.

    What that program does not build is taken in the order of the layer's graph.
    """
    hidden, norm = model.hidden_size, model.norm.num_vectors
    positions = () if not model.num_position_rows else (model.num_position_rows * hidden,)
    of_block = {run.block: tuple(_block_tensors(run.block, model)) for run in model.runs}
    head = () if model.tie_word_embeddings else (model.vocab_size * hidden,)
    return (
        model.vocab_size * hidden,
        *positions,
        *((hidden,) * norm if model.embedding_norm else ()),
        *(elements for run in model.runs for _ in range(run.count) for elements in of_block[run.block]),
        *(hidden,) * norm,
        *head,
        *((model.vocab_size,) if model.lm_head_bias else ()),
    )


@lru_cache(maxsize=64)
def _most_beyond_percents(tensors: tuple[int, ...], ranks: int) -> float:
    found = (
        planned_dealing(tensors, ranks=ranks, fraction=percent / 100).hosted_fraction - percent / 100
        for percent in _WHOLE_PERCENTS
    )
    return max(found)


@lru_cache(maxsize=64)
def _sizes(shares: tuple[int, ...]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Return each size that is tried, largest first, with the ends of its sub-groups."""
    total = sum(shares)
    sizes = dict.fromkeys([total, *(-(-total // count) for count in range(LEAST_GROUPS, MOST_GROUPS + 1))])
    return tuple((size, _group_ends(shares, size)) for size in sizes)


def _group_ends(shares: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return how many elements there are up to the end of each sub-group."""
    ends, begun = [], 0
    reached = tuple(accumulate(shares))
    for end in reached:
        if end - begun >= size or end == reached[-1]:
            ends.append(end)
            begun = end
    return tuple(ends)


def _dealt(ends: tuple[int, ...], size: int, ratio: float) -> Dealing:
    num_kept = int((1 - ratio) * len(ends))  # in floats, as DeepSpeed writes it
    return Dealing(
        sub_group_size=size,
        num_groups=len(ends),
        num_kept=num_kept,
        kept_elements=ends[num_kept - 1] if num_kept else 0,
        elements=ends[-1],
    )


def _block_tensors(block: Block, model: ModelSpec) -> Iterator[int]:
    hidden, norm = model.hidden_size, model.norm.num_vectors
    parts = (block.mixer, block.feed_forward)
    built = (SelfAttention, LatentAttention, DenseFeedForward, MixtureOfExperts)
    if any(part is not None and not isinstance(part, built) for part in parts):
        workload = TrainWorkload(seq_len=1, global_batch_size=1, precision=Precision.BF16)
        graph = build_graph(model, workload).blocks[block]
        yield from (weight.num_elements for weight in graph.weights if weight.trainable)
        return
    match block.mixer:
        case SelfAttention():
            yield from _attention_tensors(block.mixer, hidden, norm)
        case LatentAttention():
            yield from _latent_tensors(block.mixer, hidden, norm)
    match block.feed_forward:
        case DenseFeedForward():
            yield from _dense_tensors(block.feed_forward, hidden)
        case MixtureOfExperts():
            yield from _expert_tensors(block.feed_forward, hidden)
    yield from (hidden,) * (norm * (block.num_norms + block.num_post_norms))


def _linear(rows: int, columns: int, *, bias: bool) -> tuple[int, ...]:
    return (rows * columns, rows) if bias else (rows * columns,)


def _attention_tensors(mixer: SelfAttention, hidden: int, norm: int) -> Iterator[int]:
    queries, keys = mixer.num_attention_heads * mixer.head_dim, mixer.num_key_value_heads * mixer.head_dim
    yield from _linear(queries, hidden, bias=mixer.qkv_bias)
    yield from _linear(keys, hidden, bias=mixer.qkv_bias) * 2
    yield from _linear(hidden, queries, bias=mixer.output_bias)
    if mixer.qk_norm is QueryKeyNorm.HEAD:
        yield from (mixer.head_dim,) * (2 * norm)
    elif mixer.qk_norm is QueryKeyNorm.WIDTH:
        yield from (*(queries,) * norm, *(keys,) * norm)


def _latent_tensors(mixer: LatentAttention, hidden: int, norm: int) -> Iterator[int]:
    heads, rank, latent = mixer.num_attention_heads, mixer.q_lora_rank, mixer.kv_lora_rank
    if rank is not None:
        yield from (*_linear(rank, hidden, bias=mixer.bias), *(rank,) * norm)
    yield heads * (mixer.qk_nope_head_dim + mixer.qk_rope_head_dim) * (hidden if rank is None else rank)
    yield from _linear(latent + mixer.qk_rope_head_dim, hidden, bias=mixer.bias)
    yield from (latent,) * norm
    yield heads * (mixer.qk_nope_head_dim + mixer.v_head_dim) * latent
    yield from _linear(hidden, heads * mixer.v_head_dim, bias=mixer.bias)


def _dense_tensors(shapes: DenseFeedForward, hidden: int) -> Iterator[int]:
    yield from _linear(shapes.intermediate_size, hidden, bias=shapes.bias) * (2 if shapes.gated else 1)
    yield from _linear(hidden, shapes.intermediate_size, bias=shapes.bias)


def _expert_tensors(shapes: MixtureOfExperts, hidden: int) -> Iterator[int]:
    """Yield the tensors of experts, which the module itself has, and behind them those of the modules in it."""
    expert, count = shapes.expert, shapes.num_experts
    yield count * expert.intermediate_size * (2 if expert.gated else 1) * hidden
    yield count * hidden * expert.intermediate_size
    yield from _linear(count, hidden, bias=shapes.router.bias)
    if shapes.shared is not None:
        yield from _dense_tensors(shapes.shared, hidden)
    if shapes.shared_gate:
        yield hidden
