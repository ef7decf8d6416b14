"""The search over blocks: batch times number of batches, and a division of everything for each.

A block is `num_batches` batches of `batch_size` sequences that go through each layer one after the other, so that a
layer's weights are brought once for all of them (FlexGen, Sheng et al., arXiv 2303.06865, section 4.1). For each block
the division into places is a linear or mixed-integer programme (`solvers.shares`), priced by whoever asks.

Sets
    B   batch sizes of `BATCH_SIZES`
    N   numbers of batches, 1 and more

A larger block of the same batches takes no less time and no less memory with the same division; prices keep that. So
the best block of a to b batches makes at most b / seconds(a) of what one batch makes, and where a does not fit nothing
behind it does. For every batch size, intervals of N are split and searched in the order of that bound until none is
better than the best found by more than `CLOSE`: what is returned holds for every number of batches, not for those
looked at alone.

Blocks are searched with everything in any share; whoever takes one has it `settled`: divided in whole units where
things have units, and tidied. The bound stays that of any shares.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from solvers.errors import SolverError
from solvers.shares.problem import Shares, SharesLimits, SharesProblem
from solvers.shares.registry import divide
from solvers.shares.tidy import tidied
from solvers.solution import Status

BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sequences of one batch that are looked at."""

LONE_BATCHES = (*range(1, 64), *range(64, 512, 8), *range(512, 4097, 64))
"""Sequences of a batch that is a block by itself."""

MOST_SEQUENCES = 1 << 16
"""No block has more."""

CLOSE = 1e-3
"""Part by which a block that was not looked at may be better."""

MOST_PROGRAMMES = 4000
"""Divisions that a search solves before it stops with the bound that it has."""

ROUNDING = SharesLimits(max_nodes=500)
"""How far a division into whole units may go."""

Priced = Callable[[int, int], SharesProblem]
"""Batch size and number of batches to the problem of a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block and its division.

    Args:
        batch_size: Sequences of a batch.
        num_batches: Batches of the block.
        shares: What lies where.
    """

    batch_size: int
    num_batches: int
    shares: Shares

    @property
    def sequences(self) -> int:
        """Return the sequences of the block."""
        return self.batch_size * self.num_batches

    @property
    def seconds(self) -> float:
        """Return how long the block takes."""
        assert self.shares.objective is not None
        return self.shares.objective

    @property
    def rate(self) -> float:
        """Return its sequences a second."""
        return self.sequences / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What a search found.

    Args:
        of_sizes: Of each batch size the best block that was looked at, the best first; empty where not even one
            sequence fits. Only the first is known to be the best of its size, but for `CLOSE`.
        most_rate: No block of the batch sizes that were looked at makes more sequences a second; 0 without any.
        programmes: Divisions that were solved.
        stopped: It stopped at `MOST_PROGRAMMES`.
    """

    of_sizes: tuple[Block, ...]
    most_rate: float
    programmes: int
    stopped: bool

    @property
    def best(self) -> Block | None:
        """Return the best block; None without any."""
        return self.of_sizes[0] if self.of_sizes else None


class _Search:
    """The blocks of one question, each divided at most once."""

    def __init__(self, priced: Priced, *, solver: str) -> None:
        self._priced = priced
        self._solver = solver
        self.of_sizes: dict[int, Block] = {}
        self.best: Block | None = None
        self.programmes = 0

    def look_at(self, batch_size: int, num_batches: int) -> Block | None:
        """Return the best division of a block; None where it does not fit."""
        self.programmes += 1
        shares = divide(self._priced(batch_size, num_batches).relaxed, solver=self._solver)
        if shares.status is Status.INFEASIBLE:
            return None
        block = Block(batch_size=batch_size, num_batches=num_batches, shares=shares)
        if batch_size not in self.of_sizes or block.rate > self.of_sizes[batch_size].rate:
            self.of_sizes[batch_size] = block
        if self.best is None or block.rate > self.best.rate:
            self.best = block
        return block

    def target(self) -> float:
        """Return the rate that a block must beat to be looked for."""
        return 0.0 if self.best is None else self.best.rate * (1 + CLOSE)


def best_block(
    priced: Priced,
    *,
    most_batches: int | None = None,
    most_sequences: int | None = None,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    solver: str = "mathopt",
) -> Searched:
    """Return the block that makes most sequences a second, with what no block exceeds.

    Args:
        priced: Prices a block.
        most_batches: Batches of a block at most; None leaves it to memory.
        most_sequences: Sequences that there are; None for as many as one likes.
        batch_sizes: Batch sizes to look at, the smallest first.
        solver: A name in `solvers.shares.registry.SHARES_SOLVERS`.

    Raises:
        SolverError: A solver stopped with nothing.
    """
    search = _Search(priced, solver=solver)
    sequences = min(most_sequences or MOST_SEQUENCES, MOST_SEQUENCES)
    waiting: list[tuple[float, int, int, int, float]] = []

    def wait(batch_size: int, first: int, behind: int, least_seconds: float) -> None:
        """Keep the numbers of batches between two, of which the first was looked at and the second is too many."""
        if behind - first > 1:
            most = batch_size * (behind - 1) / least_seconds
            heapq.heappush(waiting, (-most, batch_size, first, behind, least_seconds))

    for batch_size in batch_sizes:
        if batch_size > sequences:
            break
        first = search.look_at(batch_size, 1)
        if first is None:
            break
        behind = min(sequences // batch_size, most_batches or sequences) + 1
        count, least = 1, first.seconds
        while count * 2 < behind:
            found = search.look_at(batch_size, count * 2)
            wait(batch_size, count, count * 2, least)
            if found is None:
                behind = count * 2
                break
            count, least = count * 2, max(least, found.seconds / (1 + 1e-9))
        else:
            wait(batch_size, count, behind, least)
    while waiting and -waiting[0][0] > search.target() and search.programmes < MOST_PROGRAMMES:
        _, batch_size, start, behind, least_seconds = heapq.heappop(waiting)
        middle = (start + behind) // 2
        found = search.look_at(batch_size, middle)
        wait(batch_size, start, middle, least_seconds)
        if found is not None:
            wait(batch_size, middle, behind, max(least_seconds, found.seconds / (1 + 1e-9)))
    reached = 0.0 if search.best is None else search.best.rate
    unseen = -waiting[0][0] if waiting else 0.0
    return Searched(
        of_sizes=tuple(sorted(search.of_sizes.values(), key=lambda block: (-block.rate, block.batch_size))),
        most_rate=max(reached, unseen),
        programmes=search.programmes,
        stopped=bool(waiting) and unseen > search.target(),
    )


def settled(priced: Priced, batch_size: int, num_batches: int, *, solver: str = "mathopt") -> Block | None:
    """Return a block in whole units and with nothing moved that need not be.

    Where no division into whole units is found, it has fewer batches; None where it does not fit at all.

    Args:
        priced: Prices a block.
        batch_size: Sequences of a batch.
        num_batches: Batches of the block.
        solver: A name in `solvers.shares.registry.SHARES_SOLVERS`.

    Raises:
        SolverError: A solver stopped with nothing, whatever the number of batches.
    """
    stopped: SolverError | None = None
    fewer = {num_batches, num_batches - 1, num_batches * 7 // 8, num_batches // 2, 1} - {0}
    for count in sorted(fewer, reverse=True):
        problem = priced(batch_size, count)
        try:
            shares = divide(problem, solver=solver, limits=ROUNDING)
        except SolverError as error:
            stopped = error
            continue
        if shares.status is not Status.INFEASIBLE:
            neat = tidied(problem, shares, solver=solver, limits=ROUNDING)
            return Block(batch_size=batch_size, num_batches=count, shares=neat)
    if stopped is not None:
        raise stopped
    return None
