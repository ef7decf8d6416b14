"""How long attention takes in one step of an engine: prompts' chunks, and answers against their caches.

A chunk of a prompt sees what was computed before it and itself. Its blocks of queries are dealt to the compute units as
in `profiles.kernels.attention`; all chunks of a step run together, so the units are shared, and the step takes no less
than its longest chunk's last block.

Decode is `profiles.kernels.attention.decode_seconds` on a grid of batches and contexts, bilinear between its points:
linear as reading is.

Axes: B batches, K contexts.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence

from planner.serving.rank_model import PLAIN_BYTES, AttentionCore
from profiles.hardware import Device
from profiles.kernel_constants import ATTENTION_BLOCK_SECONDS, ATTENTION_START, PREFILL_PASSES
from profiles.kernels.attention import TILE, decode_seconds, pair_seconds
from profiles.kernels.operations import Decode
from profiles.kernels.rates import copied_bytes_per_second

BATCHES_B = tuple(2**power for power in range(13))
CONTEXTS_K = tuple(2**power for power in range(4, 22))


def _grid(core: AttentionCore, cache_bytes: float, device: Device) -> tuple[tuple[float, ...], ...]:
    """Return the seconds of one layer at every batch and context of the grid."""
    return tuple(
        tuple(one_decode_seconds(core, cache_bytes, device, batch=batch, context=context) for context in CONTEXTS_K)
        for batch in BATCHES_B
    )


def one_decode_seconds(core: AttentionCore, cache_bytes: float, device: Device, *, batch: int, context: int) -> float:
    """Return the seconds of one layer's decode attention of so many sequences, alone."""
    return decode_seconds(
        Decode(
            batch=batch,
            kv_tokens=context,
            num_heads=core.num_heads,
            num_kv_heads=core.num_kv_heads,
            qk_head_dim=core.decode_qk_dim,
            v_head_dim=core.decode_v_dim,
            rate="bf16",
            cache_elements=core.cache_elements,
            cache_bytes=cache_bytes,
        ),
        device,
    )


def place_between(axis: Sequence[float], value: float) -> tuple[int, float]:
    """Return the point of an axis below a value, and the share of the way to the next one; beyond the ends too."""
    index = bisect_right(axis, value, 1, len(axis) - 1) - 1
    return index, (value - axis[index]) / (axis[index + 1] - axis[index])


class DecodeTimes:
    """Decode attention of one layer of an engine's rank.

    Args:
        core: The attention.
        cache_bytes: Bytes of one cached number.
        device: The GPU.
        hidden_start: Part of a kernel's start that is hidden behind the kernel before it.
    """

    def __init__(self, core: AttentionCore, cache_bytes: float, device: Device, *, hidden_start: float) -> None:
        self._hidden = hidden_start * ATTENTION_START.value
        self._batches, self._contexts = BATCHES_B, CONTEXTS_K
        self._seconds_BK = _grid(core, cache_bytes, device)
        self._seen = core.seen_tokens
        self._index_seconds = core.index_bytes / copied_bytes_per_second(device)

    def seconds(self, batch: float, context: float) -> float:
        """Return the time of `batch` sequences that each see `context` tokens in the mean."""
        if batch <= 0:
            return 0.0
        seen = context if self._seen is None else min(context, self._seen)
        row, down = place_between(self._batches, max(batch, 1.0))
        column, right = place_between(self._contexts, max(seen, float(self._contexts[0])))
        above, below = self._seconds_BK[row], self._seconds_BK[row + 1]
        first = above[column] + right * (above[column + 1] - above[column])
        second = below[column] + right * (below[column + 1] - below[column])
        return first + down * (second - first) - self._hidden + batch * context * self._index_seconds


class PromptTimes:
    """Attention of prompts' chunks of one layer of an engine's rank.

    Args:
        core: The attention.
        device: The GPU.
        hidden_start: Part of a kernel's start that is hidden behind the kernel before it.
    """

    def __init__(self, core: AttentionCore, device: Device, *, hidden_start: float) -> None:
        self._start = (1 - hidden_start) * ATTENTION_START.value
        self._core = core
        units = device.num_compute_units
        widths = core.qk_head_dim + core.v_head_dim
        self._pair = pair_seconds(device, rate="bf16", widths=widths)
        self._tile = self._pair * units * TILE * TILE
        self._units = units
        moved = PLAIN_BYTES * (2 * core.num_heads + 2 * core.num_kv_heads) * widths / 2
        self._token = PREFILL_PASSES.value * moved / copied_bytes_per_second(device)
        self._block = ATTENTION_BLOCK_SECONDS.value
        self._seen = math.inf if core.seen_tokens is None else core.seen_tokens

    def pairs(self, tokens: float, past: float) -> float:
        """Return the query-key pairs of a chunk behind `past` tokens of its prompt, for each head."""
        seen = self._seen
        if past + tokens <= seen:
            return tokens * past + tokens * (tokens + 1) / 2
        inside = max(0.0, min(tokens, seen - past))
        return inside * past + inside * (inside + 1) / 2 + (tokens - inside) * seen

    def seconds(self, chunks: Sequence[tuple[float, float]]) -> float:
        """Return the time of a step's chunks, each its tokens and those before them."""
        work = blocks = moved = longest = 0.0
        for tokens, past in chunks:
            tiles = math.ceil(tokens / TILE)
            pairs = self.pairs(tokens, past)
            # The tiles of the diagonal are computed whole.
            work += self._core.num_heads * (pairs / (TILE * TILE) + tiles / 2)
            blocks += self._core.num_heads * tiles
            longest = max(longest, math.ceil(min(past + tokens, self._seen) / TILE))
            moved += tokens
        if not moved:
            return 0.0
        begun = max(1.0, blocks / self._units) * self._block
        return self._start + begun + max(longest, work / self._units) * self._tile + moved * self._token
