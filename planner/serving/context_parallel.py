"""What it takes to share the context of answers out over ranks (decode context parallelism).

Each of dcp neighbouring tensor-parallel ranks keeps every dcp-th part of a sequence's cache, and attends with the
query heads of all of them to its part. As vLLM 0.32.0 does it by default (`ag_rs`; `vllm/v1/attention/ops/dcp.py:
cp_lse_ag_out_rs`), every layer gathers the queries, gathers the sums of exponentials in fp32, and scatters the sums of
the corrected outputs. A prompt's chunk behind others of its prompt does the same with grouped heads; with latent
attention it gathers the cache before it instead (`vllm/model_executor/layers/attention/mla_attention.py`). Exchanges
take what gathers in captured graphs take (`planner.serving.exchange`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.arrays import FloatArray
from planner.serving.exchange import ExchangeTimes
from planner.serving.rank_model import PLAIN_BYTES, AttentionCore, RankModel
from planner.serving.step_tables import GRID_T, at_tokens
from planner.serving_plans.layout import EngineShape

SUM_BYTES = 4
"""Bytes of a head's sum of exponentials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextExchange:
    """Seconds of all layers by tokens, on the grid of `planner.serving.step_tables`.

    Args:
        answers_T: By tokens of running answers.
        chunks_T: By tokens of prompts' chunks that have others before them.
        past_T: By tokens before a chunk.
    """

    answers_T: Sequence[float]
    chunks_T: Sequence[float]
    past_T: Sequence[float]

    def seconds(self, chunks: Sequence[tuple[float, float]], answers: float) -> float:
        """Return the time of a step's exchanges.

        Args:
            chunks: Of each prompt in the step its tokens and those before them.
            answers: Tokens of running answers.
        """
        behind = [(tokens, past) for tokens, past in chunks if past > 0]
        total = at_tokens(self.answers_T, answers)
        if behind:
            total += at_tokens(self.chunks_T, sum(tokens for tokens, _ in behind))
            total += at_tokens(self.past_T, sum(past for _, past in behind))
        return total


def context_exchange(
    rank: RankModel, shape: EngineShape, exchange: ExchangeTimes, *, cache_bytes: float
) -> ContextExchange | None:
    """Return what sharing out takes; None where each rank keeps whole sequences.

    Args:
        rank: What a rank runs.
        shape: How the engine lies on its GPUs.
        exchange: Prices collectives.
        cache_bytes: Bytes of one cached number.
    """
    if shape.dcp == 1:
        return None
    tokens_T = np.maximum(GRID_T / shape.pp, 1.0)
    answers_T, chunks_T, past_T = (np.zeros_like(GRID_T) for _ in range(3))
    for layer in rank.layers:
        if layer.attention is None:
            continue
        heads_T = layer.count * _heads_T(layer.attention, shape.dcp, exchange, tokens_T)
        answers_T += heads_T
        if layer.is_latent:
            whole_T = GRID_T * layer.attention.cache_elements * cache_bytes
            past_T += layer.count * exchange.gather_seconds_P(whole_T, shape.dcp)
        else:
            chunks_T += heads_T
    return ContextExchange(answers_T=answers_T.tolist(), chunks_T=chunks_T.tolist(), past_T=past_T.tolist())


def _heads_T(core: AttentionCore, dcp: int, exchange: ExchangeTimes, tokens_T: FloatArray) -> FloatArray:
    """Return the seconds of one layer's exchange of queries, sums and outputs."""
    heads = core.num_heads * dcp
    queries_T = PLAIN_BYTES * tokens_T * heads * core.decode_qk_dim
    sums_T = SUM_BYTES * tokens_T * heads * dcp
    outputs_T = PLAIN_BYTES * tokens_T * heads * core.decode_v_dim
    return sum(
        (exchange.gather_seconds_P(whole_T, dcp) for whole_T in (queries_T, sums_T, outputs_T)),
        np.zeros_like(tokens_T),
    )
