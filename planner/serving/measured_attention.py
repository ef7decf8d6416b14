"""Attention of an engine on GPUs that were measured (`planner.serving.measured`).

A chunk of a prompt is priced in microseconds, thousands of times; so its factor is looked up on a grid of its tokens
and of those before them, bilinear in their logarithms. Lengths that were measured are among the grid's. A step's chunks
together have the mean of their factors, by their work.

Answers have a grid of batches and contexts without a profile too; measured ones are put in.

Axes: C tokens of a chunk, K tokens before it or of a context, B batches.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from planner.serving.attention_times import (
    BATCHES_B,
    CONTEXTS_K,
    DecodeTimes,
    PromptTimes,
    one_decode_seconds,
    place_between,
)
from planner.serving.measured import Asked, Measured
from planner.serving.rank_model import PLAIN_BYTES, AttentionCore
from profiles.hardware import Device
from profiles.measured_operations import place_of, seen_pairs
from profiles.ops import Attention
from profiles.served_kernels import ServedKernel
from profiles.tables import Shape

CHUNKS_C = tuple(2**power for power in range(4, 18))
PAST_K = (0, *(2**power for power in range(9, 21)))

MOST_LENGTHS = 48
"""Measured lengths that an axis takes in, so that a grid stays small."""

QUERY_LEN, KV_LEN, SEEN = 1, 2, 3
"""Places of sizes in a measured attention (`profiles.measured_operations.place_of`)."""

NEARLY_ALL = 0.98
"""A mask that lets through less of the causal pairs has a window."""


def _merged(axis: Sequence[int], measured: Iterable[int]) -> tuple[int, ...]:
    """Return an axis with the lengths that were measured, as many as an axis takes."""
    new = sorted({length for length in measured if axis[0] <= length <= axis[-1]} - set(axis))
    return tuple(sorted({*axis, *new[:: -(-len(new) // MOST_LENGTHS) or 1]}))


class MeasuredDecodeTimes(DecodeTimes):
    """Decode attention of one layer of an engine's rank, by a profile first.

    Args:
        core: The attention.
        cache_bytes: Bytes of one cached number; rows are of caches in 16 bit.
        device: The GPU.
        hidden_start: Part of a kernel's start that is hidden behind the kernel before it.
        measured: The profile.
    """

    def __init__(
        self, core: AttentionCore, cache_bytes: float, device: Device, *, hidden_start: float, measured: Measured
    ) -> None:
        super().__init__(core, cache_bytes, device, hidden_start=hidden_start)
        rows = measured.rows.of(ServedKernel.ANSWERS)
        self._batches = _merged(BATCHES_B, (shape.sizes[0] for shape in rows))
        self._contexts = _merged(CONTEXTS_K, (shape.sizes[SEEN] for shape in rows))
        places = [(batch, context) for batch in self._batches for context in self._contexts]
        own_P = np.array(
            [one_decode_seconds(core, cache_bytes, device, batch=batch, context=context) for batch, context in places]
        )
        counted_P = np.full_like(own_P, measured.rest)
        if cache_bytes == PLAIN_BYTES:
            asked = Asked(
                kernel=ServedKernel.ANSWERS,
                shapes=[_answer(core, batch, context) for batch, context in places],
                own_seconds_P=own_P,
                reference=lambda shape: _answer_seconds(shape, measured.rows.device),
            )
            counted_P = measured.factors(asked).counted_P
        # What is hidden of a start is the same part of a measured kernel.
        seconds_P = counted_P * (own_P - self._hidden)
        self._seconds_BK = tuple(tuple(row) for row in seconds_P.reshape(len(self._batches), -1).tolist())
        self._hidden = 0.0
        self._index_seconds *= measured.rest


def _answer(core: AttentionCore, batch: int, context: int) -> Shape:
    place = place_of(
        Attention(
            batch=batch,
            query_len=1,
            kv_len=context,
            pairs=context,
            num_heads=core.num_heads,
            num_kv_heads=core.num_kv_heads,
            qk_head_dim=core.decode_qk_dim,
            v_head_dim=core.decode_v_dim,
            dtype="bf16",
            bytes_per_element=PLAIN_BYTES,
            backward=False,
            fused=True,
        )
    )
    assert place is not None, "attention with values has a place"
    return place[1]


def _answer_seconds(shape: Shape, device: Device) -> float:
    """Return the seconds of a measured decode, which reads keys and values apart."""
    batch, _, _, seen, heads, kv_heads, qk_dim, v_dim = shape.sizes
    core = AttentionCore(
        num_heads=heads,
        num_kv_heads=kv_heads,
        qk_head_dim=qk_dim,
        v_head_dim=v_dim,
        decode_qk_dim=qk_dim,
        decode_v_dim=v_dim,
        cache_elements=kv_heads * (qk_dim + v_dim),
    )
    return one_decode_seconds(core, PLAIN_BYTES, device, batch=batch, context=seen)


class MeasuredPromptTimes(PromptTimes):
    """Attention of prompts' chunks of one layer of an engine's rank, by a profile first.

    Args:
        core: The attention.
        device: The GPU.
        hidden_start: Part of a kernel's start that is hidden behind the kernel before it.
        measured: The profile.
    """

    def __init__(self, core: AttentionCore, device: Device, *, hidden_start: float, measured: Measured) -> None:
        super().__init__(core, device, hidden_start=hidden_start)
        rows = measured.rows.of(ServedKernel.PROMPTS)
        self._chunks = _merged(CHUNKS_C, (shape.sizes[QUERY_LEN] for shape in rows))
        self._past = _merged(PAST_K, (shape.sizes[KV_LEN] - shape.sizes[QUERY_LEN] for shape in rows))
        alone = PromptTimes(core, device, hidden_start=0.0)
        places = [(tokens, past) for tokens in self._chunks for past in self._past]
        asked = Asked(
            kernel=ServedKernel.PROMPTS,
            shapes=[_prompt(core, tokens, past) for tokens, past in places],
            own_seconds_P=np.array([alone.seconds([(tokens, past)]) for tokens, past in places]),
            reference=lambda shape: _prompt_seconds(shape, measured.rows.device),
        )
        counted_P = measured.factors(asked).counted_P
        self._counted_CK = tuple(tuple(row) for row in counted_P.reshape(len(self._chunks), len(self._past)).tolist())
        self._log_chunks = tuple(math.log2(tokens) for tokens in self._chunks)
        self._log_past = tuple(math.log2(past + 1) for past in self._past)

    def seconds(self, chunks: Sequence[tuple[float, float]]) -> float:
        """Return the time of a step's chunks, each its tokens and those before them."""
        own = super().seconds(chunks)
        if not own:
            return own
        work = [(self.pairs(tokens, past) + tokens, self._counted(tokens, past)) for tokens, past in chunks]
        return own * sum(weight * factor for weight, factor in work) / sum(weight for weight, _ in work)

    def _counted(self, tokens: float, past: float) -> float:
        """Return the factor of one chunk; beyond the grid that of its edge."""
        row, down = place_between(self._log_chunks, math.log2(max(tokens, 1.0)))
        column, right = place_between(self._log_past, math.log2(past + 1))
        down, right = min(max(down, 0.0), 1.0), min(max(right, 0.0), 1.0)
        above, below = self._counted_CK[row], self._counted_CK[row + 1]
        first = above[column] + right * (above[column + 1] - above[column])
        second = below[column] + right * (below[column + 1] - below[column])
        return first + down * (second - first)


def _prompt(core: AttentionCore, tokens: int, past: int) -> Shape:
    window = 0 if core.seen_tokens is None else core.seen_tokens
    place = place_of(
        Attention(
            batch=1,
            query_len=tokens,
            kv_len=past + tokens,
            pairs=seen_pairs(tokens, past + tokens, causal=True, window=window),
            num_heads=core.num_heads,
            num_kv_heads=core.num_kv_heads if core.qk_head_dim == core.decode_qk_dim else core.num_heads,
            qk_head_dim=core.qk_head_dim,
            v_head_dim=core.v_head_dim,
            dtype="bf16",
            bytes_per_element=PLAIN_BYTES,
            backward=False,
            fused=True,
        )
    )
    assert place is not None, "attention with values has a place"
    return place[1]


def _prompt_seconds(shape: Shape, device: Device) -> float:
    """Return the seconds of the measured attention of equal prompts."""
    batch, query_len, kv_len, seen, heads, kv_heads, qk_dim, v_dim = shape.sizes
    past = max(0, kv_len - query_len)
    causal = seen_pairs(query_len, kv_len, causal=True, window=0) // query_len
    core = AttentionCore(
        num_heads=heads,
        num_kv_heads=kv_heads,
        qk_head_dim=qk_dim,
        v_head_dim=v_dim,
        decode_qk_dim=qk_dim,
        decode_v_dim=v_dim,
        cache_elements=kv_heads * (qk_dim + v_dim),
        seen_tokens=seen if seen < NEARLY_ALL * causal else None,
    )
    return PromptTimes(core, device, hidden_start=0.0).seconds([(query_len, past)] * batch)
