"""The pool of cache blocks as vLLM deals it, and what it asks of the pool before an engine starts.

All layers of a rank take blocks from one pool. A block of the pool holds as many tokens of every layer of a group; each
group has a table of its own, so a sequence takes the sum over groups. vLLM makes the groups (0.32.0,
`vllm/v1/core/kv_cache_utils.py`: `get_kv_cache_groups`, `_get_kv_cache_groups_uniform_page_size`,
`unify_kv_cache_spec_page_size`):

- Layers that all keep every token, or all the same window, are one group; their pages may differ.
- Otherwise pages are made equal: a smaller page takes a multiple of the tokens where that fills the largest page, and
  is padded where not; a state of a recurrence is padded.
- Equal layers are split into groups of as many layers as the rarest kind has, or the commonest where that is less than
  half as many again; a group that is not full takes the same bytes.

A sequence of some tokens takes (`vllm/v1/kv_cache_interface.py`: `max_memory_usage_bytes` of each kind)

- of a group that keeps every token: ceil(tokens / (context-parallel ranks of decode x tokens of a block));
- of a group with a window: what the window and the steps in flight cover, at most all tokens, and one block more
  because a window may start within one. Steps in flight: one for each stage, and one more where steps are scheduled
  ahead (`vllm/config/vllm.py: max_in_flight_tokens`);
- of a group of recurrent states: one, or with prefix caching those that it keeps to resume from.

An engine starts where the pool holds one sequence of the longest length beside one block that is never given out
(`get_kv_cache_configs`). Layers are taken to lie on stages as evenly as they can; a chunk of local attention is counted
as a window, which is at most one block of a group more.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.serving.formats import ServedFormats
from planner.serving.rank_model import RankLayer, RankModel
from planner.serving_plans.layout import EngineSettings, EngineShape

PADDING_BOUND = 1.5
"""Up to which ratio of the commonest to the rarest kind the commonest sets the size of groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """Layers that share a form of cache.

    Args:
        page_bytes: Bytes of a block in one layer.
        block_tokens: Tokens of a block.
        window: Most tokens that are seen; None for all, and for states.
        states: States of a recurrence that a sequence keeps; 0 for attention.
    """

    page_bytes: int
    block_tokens: int
    window: int | None = None
    states: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPool:
    """The pool of one rank, the fullest of its engine.

    Args:
        block_bytes: Bytes of a block of the pool on the rank.
        groups: How many groups there are of each kind.
        ranks_of_a_sequence: Context-parallel ranks of decode, which share the tokens of a sequence.
        tokens_in_flight: Tokens of steps that are scheduled and not yet done.
    """

    block_bytes: int
    groups: Mapping[_Kind, int]
    ranks_of_a_sequence: int
    tokens_in_flight: int

    def blocks(self, tokens: int) -> int:
        """Return the blocks that one sequence of so many tokens may take at most."""
        return sum(count * self._blocks(kind, tokens) for kind, count in self.groups.items())

    def held_bytes(self, tokens: int) -> int:
        """Return what one sequence of so many tokens holds while it is answered: whole blocks of every group."""
        answered = replace(self, tokens_in_flight=1)
        return answered.blocks(tokens) * self.block_bytes

    def start_bytes(self, tokens: int) -> int:
        """Return the pool without which an engine for sequences of so many tokens does not start."""
        return (self.blocks(tokens) + 1) * self.block_bytes

    def _blocks(self, kind: _Kind, tokens: int) -> int:
        if kind.states:
            return kind.states
        if kind.window is not None:
            return -(-min(kind.window - 1 + self.tokens_in_flight, tokens) // kind.block_tokens) + 1
        on_a_rank = -(-tokens // self.ranks_of_a_sequence)
        return -(-on_a_rank // kind.block_tokens)


def block_pool(  # noqa: PLR0913 - the facts of an engine
    *,
    rank: RankModel,
    shape: EngineShape,
    formats: ServedFormats,
    settings: EngineSettings,
    block_tokens: int,
    scheduled_ahead: bool = True,
) -> BlockPool:
    """Return the pool of the fullest rank.

    Args:
        rank: What a rank of an engine without stages holds.
        shape: How the engine lies on its GPUs.
        formats: What the cache is held in.
        settings: What the engine is told.
        block_tokens: Tokens of a block.
        scheduled_ahead: A step is scheduled while the one before it runs.
    """
    layers = Counter[_Kind]()
    for layer in rank.layers:
        kind = _kind(layer, formats, block_tokens, prefix_caching=settings.prefix_caching)
        if kind is not None:
            layers[kind] += layer.count
    whole = len({(kind.window, kind.states) for kind in layers}) <= 1
    if whole and not any(kind.states for kind in layers):
        groups = Counter([next(iter(layers))] if layers else [])
        block_bytes = sum(-(-count // shape.pp) * kind.page_bytes for kind, count in layers.items())
    else:
        layers = _of_equal_pages(layers)
        groups, in_group = _groups(layers)
        block_bytes = -(-in_group // shape.pp) * max(kind.page_bytes for kind in layers)
    return BlockPool(
        block_bytes=block_bytes,
        groups=groups,
        ranks_of_a_sequence=shape.dcp,
        tokens_in_flight=(shape.pp + scheduled_ahead) * settings.max_num_batched_tokens,
    )


def _kind(layer: RankLayer, formats: ServedFormats, block_tokens: int, *, prefix_caching: bool) -> _Kind | None:
    """Return how a layer keeps its cache; None where it keeps none."""
    if layer.recurrence is not None:
        states = layer.recurrence.cached_states if prefix_caching else 1
        return _Kind(page_bytes=layer.recurrence.state_bytes, block_tokens=block_tokens, states=states)
    if layer.attention is None:
        return None
    token = layer.cache_elements * formats.cache_bytes + layer.attention.index_bytes
    return _Kind(page_bytes=round(token * block_tokens), block_tokens=block_tokens, window=layer.attention.kept_tokens)


def _of_equal_pages(layers: Counter[_Kind]) -> Counter[_Kind]:
    """Return the layers with pages of one size."""
    largest = max(kind.page_bytes for kind in layers)
    found = Counter[_Kind]()
    for kind, count in layers.items():
        times = 1 if kind.states or largest % kind.page_bytes else largest // kind.page_bytes
        found[
            _Kind(page_bytes=largest, block_tokens=kind.block_tokens * times, window=kind.window, states=kind.states)
        ] += count
    return found


def _groups(layers: Counter[_Kind]) -> tuple[Counter[_Kind], int]:
    """Return the number of groups of each kind, and the layers of the largest group."""
    least, most = min(layers.values()), max(layers.values())
    size = most if most < least * PADDING_BOUND else least
    groups = Counter({kind: -(-count // size) for kind, count in layers.items()})
    return groups, max(-(-count // groups[kind]) for kind, count in layers.items())
