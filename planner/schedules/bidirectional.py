"""Bidirectional interleaved: two copies of the model in opposite directions, each with two chunks a rank in a V.

Half of the micro-batches enter at rank 0 and go down and up again through one copy, the others enter at the last rank
and go up and down through the other (Wu et al., BitPipe, arXiv 2410.19367; with one chunk in each direction it is
Chimera, Li and Hoefler, arXiv 2107.06925). Rank r has the stages r and 2 p - 1 - r of one copy, p - 1 - r and p + r of
the other.

The order is that of slots in which every rank runs one pass of those that are ready, all passes alike: backward passes
before forward ones, older micro-batches first, forward passes nearer to the end of the model first. Of each direction
p / 2 micro-batches are on their way at most. A rank keeps the activations of p micro-batches, as with 1F1B. With free
transfers, F and B the seconds of a rank's forward and backward passes of one micro-batch, the bubble is

    (p / 2 - 1) (F + B) / 2                    where B = F
    (p - 2) F + (m / p - 1) (p / 2 - 1) F      where B = 2 F

These are this order's own closed forms, read off its simulation at even p from 2 to 16; the paper's were not compared.
From one group of p micro-batches to the next, the slots do not fit together where backward passes are longer.
"""

from planner.schedules.passes import Pass, PassKind, PassOrder

NAME = "bidirectional interleaved"


def bidirectional_interleaved(pp: int, num_microbatches: int) -> PassOrder:
    """Return both directions interwoven.

    Raises:
        ValueError: The ranks are odd, or the micro-batches no multiple of them.
    """
    if pp % 2 or num_microbatches % pp:
        raise ValueError(
            f"the {NAME} schedule needs even pp and a multiple of it as micro-batches, not pp = {pp},"
            f" {num_microbatches}"
        )
    slots = _Slots(pp, num_microbatches // 2)
    slots.run()
    return PassOrder(
        name=NAME,
        rank_of_stage_V=slots.rank_of_stage_V,
        chains=slots.chains,
        microbatches_of_chain=(num_microbatches // 2,) * 2,
        blocks_R=tuple(tuple((entry,) for entry in passes) for passes in slots.passes_R),
    )


class _Slots:
    """Fills slots, one pass of every rank that has one ready.

    Args:
        pp: Ranks.
        half: Micro-batches of each direction.
    """

    def __init__(self, pp: int, half: int) -> None:
        down = (*range(pp), *reversed(range(pp)))
        self.rank_of_stage_V = (*down, *(pp - 1 - rank for rank in down))
        self.chains = (tuple(range(2 * pp)), tuple(range(2 * pp, 4 * pp)))
        self.passes_R: list[list[Pass]] = [[] for _ in range(pp)]
        self._half = half
        self._most = pp // 2
        self._last = 2 * pp - 1
        self._stages_R = [
            [stage for stage, rank in enumerate(self.rank_of_stage_V) if rank == wanted] for wanted in range(pp)
        ]
        # Passes of each stage that have run before this slot; what runs in it counts from the next one on.
        self._forwards = [0] * len(self.rank_of_stage_V)
        self._backwards = [0] * len(self.rank_of_stage_V)

    def run(self) -> None:
        """Run every pass."""
        remaining = 2 * len(self.rank_of_stage_V) * self._half
        while remaining:
            chosen = [self._chosen(stages) for stages in self._stages_R]
            for rank, entry in enumerate(chosen):
                if entry is None:
                    continue
                remaining -= 1
                self.passes_R[rank].append(entry)
                done = self._forwards if entry.kind is PassKind.FORWARD else self._backwards
                done[entry.stage] += 1

    def _chosen(self, stages: list[int]) -> Pass | None:
        """Return what a rank runs next, if anything is ready."""
        ready: list[tuple[bool, int, int, Pass]] = []
        for stage in stages:
            direction, position = divmod(stage, self._last + 1)
            first_microbatch = direction * self._half
            index = self._backwards[stage]
            done = self._forwards if position == self._last else self._backwards
            source = stage if position == self._last else stage + 1
            if index < min(self._half, done[source]):
                ready.append((False, index, position, Pass(PassKind.BACKWARD, stage, first_microbatch + index)))
            index = self._forwards[stage]
            arrived = self._forwards[stage - 1] if position else self._backwards[stage] + self._most
            if index < min(self._half, arrived):
                ready.append((True, index, -position, Pass(PassKind.FORWARD, stage, first_microbatch + index)))
        return min(ready)[3] if ready else None
