"""What of a layout decides one layer's operations on one rank, and how many tokens and features that leaves it."""

import math
from dataclasses import dataclass

from planner.layout import Layout
from planner.requests.workload import TrainWorkload

VOCAB_DIVISOR = 128
"""Megatron-LM's default `--make-vocab-size-divisible-by`; the table is padded to a multiple of this times tp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """What of a layout decides one layer's operations on one rank.

    Args:
        tp: Tensor-parallel degree.
        sequence_parallel: The residual region's tokens are split over tp.
        micro_batch_size: Sequences of one micro-batch.
        seq_len: Tokens of one sequence.
        cp: Context-parallel degree.
        ulysses: Part of cp that exchanges heads.
        state_exchange: Recurrences exchange states over cp, not heads.
        ep: Expert-parallel degree.
        etp: Tensor-parallel degree of the experts.
        routing_skew: Load of the busiest rank's experts over the mean, on average over the layers.
        peak_skew: The same in the worst layer, which memory is counted of.
        moved_experts: Experts whose weights some rank sends or gets because of rerouting, on average over the layers.
        peak_moved_experts: The same in the worst layer.
        vocab_divisor: The embedding table is padded to a multiple of this times tp.
    """

    tp: int
    sequence_parallel: bool
    micro_batch_size: int
    seq_len: int
    cp: int = 1
    ulysses: int = 1
    state_exchange: bool = False
    ep: int = 1
    etp: int = 1
    routing_skew: float = 1.0
    peak_skew: float = 1.0
    moved_experts: float = 0.0
    peak_moved_experts: int = 0
    vocab_divisor: int = VOCAB_DIVISOR

    @property
    def ring(self) -> int:
        """Return the part of cp that passes keys and values round."""
        return self.cp // self.ulysses

    @property
    def tokens(self) -> int:
        """Return the tokens of one micro-batch on one tp group."""
        return self.micro_batch_size * self.seq_len // self.cp

    @property
    def residual_tokens(self) -> int:
        """Return the tokens of one micro-batch that one rank holds in the residual region."""
        return self.tokens // self.tp if self.sequence_parallel else self.tokens

    def received_rows(self, visits: int) -> int:
        """Return the visits of tokens that the busiest rank receives: as many as a rank sends, times the skew."""
        return math.ceil(self.residual_tokens * visits * self.routing_skew)

    def expert_rows(self, visits: int) -> int:
        """Return the rows that the busiest rank's experts work on: what all its etp ranks received."""
        return self.received_rows(visits) * self.etp

    def peak_expert_rows(self, visits: int) -> int:
        """Return the rows of the busiest rank's experts in the layer where it gets the most."""
        return math.ceil(self.residual_tokens * visits * self.peak_skew) * self.etp

    def padded_vocab_size(self, vocab_size: int) -> int:
        """Return the rows of the embedding table, padding included."""
        return padded_vocab_size(vocab_size, self.tp, divisor=self.vocab_divisor)


def sharding_of(layout: Layout, workload: TrainWorkload, *, vocab_divisor: int = VOCAB_DIVISOR) -> Sharding:
    """Return the part of `layout` that shards a layer of `workload`."""
    busiest = workload.busiest_rank(layout.ep)
    return Sharding(
        tp=layout.tp,
        sequence_parallel=layout.sequence_parallel,
        micro_batch_size=layout.micro_batch_size,
        seq_len=workload.seq_len,
        cp=layout.cp,
        ulysses=layout.ulysses,
        state_exchange=layout.state_exchange,
        ep=layout.ep,
        etp=layout.etp,
        routing_skew=busiest.on_average,
        peak_skew=busiest.at_worst,
        moved_experts=busiest.moved,
        peak_moved_experts=busiest.moved_at_worst,
        vocab_divisor=vocab_divisor,
    )


def padded_vocab_size(vocab_size: int, tp: int, *, divisor: int = VOCAB_DIVISOR) -> int:
    """Return the vocabulary as it is padded for `tp` ranks."""
    multiple = divisor * tp
    return -(-vocab_size // multiple) * multiple


def split_features(features: int, ranks: int, granule: int = 1) -> int:
    """Return the features that one of `ranks` holds when whole granules are split, at least one each.

    Single features are rounded up: scales of blocks, where a rank's last block may be ragged.
    """
    if granule <= 1:
        return -(-features // ranks)
    return max(features // granule // ranks, 1) * granule
