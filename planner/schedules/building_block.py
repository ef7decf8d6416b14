"""V-Half and V-Min: repeated building blocks over two stages a rank that make a V (Qi et al., arXiv 2405.15362).

A building block is the six passes of one micro-batch on every rank: forward, input gradient and weight gradient of the
stage r on the way down and of the stage 2 p - 1 - r on the way back up. Repeated every six passes it fills every rank,
if no two passes of a rank fall on the same time modulo six; what a rank then keeps alive is what its two stages' passes
lie apart. A block is given by four strides between neighbouring ranks (down, up, and the gradients of both) and by
the waits between them. All strides up to `MOST_STRIDE` and all waits are looked at, and the `MOST_SIMULATED` blocks
that keep least are simulated: of these V-Min is the one that keeps least, V-Half the fastest that keeps at most half of
the activations of 1F1B and one micro-batch more.

The block's times are of passes that are all alike; the order that they give is run with whatever times there are.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from planner.schedules.passes import Pass, PassKind, PassOrder, PassTimes, peak_bytes_R, run
from planner.schedules.published import v_shaped

MOST_STRIDE = 4
"""A choice: there are four strides, so the blocks to look at grow with its fourth power."""
PERIOD = 6
"""Passes of one micro-batch on one rank."""

MOST_RANKS = 16
"""More have no block: finding one takes longer than a schedule is worth."""

MOST_SIMULATED = 60
"""Blocks of which the span is simulated, those first that keep least. A choice."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Block:
    """When each pass of micro-batch 0 runs, in passes, on each rank.

    Args:
        lifetime: Passes that the two stages of the fullest rank lie between forward and weight gradient, together.
        starts: Down, up, gradient up, gradient down, weight gradient up, weight gradient down; each by rank.
    """

    lifetime: int
    starts: tuple[tuple[int, ...], ...]


def v_min(pp: int, num_microbatches: int) -> PassOrder:
    """Return the V-shaped order that keeps the fewest activations.

    Raises:
        ValueError: There are more than `MOST_RANKS` ranks.
    """
    return _order("V-Min", _chosen(pp)[0], pp, num_microbatches)


def v_half(pp: int, num_microbatches: int) -> PassOrder:
    """Return the fastest V-shaped order in half of the activations of 1F1B, and those of one micro-batch more.

    Raises:
        ValueError: There are more than `MOST_RANKS` ranks.
    """
    return _order("V-Half", _chosen(pp)[1], pp, num_microbatches)


@lru_cache(maxsize=64)
def _chosen(pp: int) -> tuple[Block, Block]:
    """Return the blocks of V-Min and V-Half."""
    if pp > MOST_RANKS:
        raise ValueError(f"V-Min and V-Half are made for at most {MOST_RANKS} ranks, not {pp}")
    blocks = sorted(_blocks(pp))
    times = PassTimes.uniform(2 * pp, forward=1.0, input_gradient=1.0, weight_gradient=1.0)
    within_half: list[tuple[float, Block]] = []
    least: list[tuple[int, float, Block]] = []
    for block in [entry for entry in blocks if entry.lifetime <= PERIOD * (pp + 2)][:MOST_SIMULATED]:
        order = _order("", block, pp, 2 * pp)
        span = run(order, times).span_seconds
        kept = max(peak_bytes_R(order, activation_bytes_V=[2] * 2 * pp, weight_gradient_bytes_V=[1] * 2 * pp))
        least.append((kept, span, block))
        if kept <= 4 * (pp / 2 + 1):  # two stages a rank of two units each
            within_half.append((span, block))
    return min(least)[2], min(within_half)[1]


@dataclass(frozen=True, slots=True)
class _Line:
    """Starts of one pass on all ranks: that on rank 0, and how much later on each rank behind."""

    first: int
    step: int

    def on(self, rank: int) -> int:
        """Return the start on one rank."""
        return self.first + self.step * rank


def _blocks(pp: int) -> list[Block]:
    """Return every building block without two passes at once."""
    last = pp - 1
    waits = range(1, PERIOD + 1)
    # Lines that lie so far apart on rank 0, and drift apart by so much from rank to rank, are at once on some rank.
    at_once = [
        [any((apart + drift * rank) % PERIOD == 0 for rank in range(pp)) for drift in range(PERIOD)]
        for apart in range(PERIOD)
    ]

    def meet(line: _Line, *others: _Line) -> bool:
        return any(at_once[(line.first - other.first) % PERIOD][(line.step - other.step) % PERIOD] for other in others)

    found: list[Block] = []
    for down_step, up_step, gradient_up, gradient_down in product(range(1, MOST_STRIDE + 1), repeat=4):
        down = _Line(0, down_step)
        for up_wait in waits:
            up = _Line(down.on(last) + up_wait + up_step * last, -up_step)
            if meet(up, down):
                continue
            for turn_wait in waits:
                up_again = _Line(up.first + turn_wait, gradient_up)
                if meet(up_again, down, up):
                    continue
                for down_wait in waits:
                    down_again = _Line(up_again.on(last) + down_wait + gradient_down * last, -gradient_down)
                    if not meet(down_again, down, up, up_again):
                        found.append(_with_weights(pp, down, up, up_again, down_again))
    return found


def _with_weights(pp: int, *lines: _Line) -> Block:
    """Return a block whose gradients of weights take the two times of a period that are left, the first one free."""
    weights: list[tuple[int, int]] = []
    lifetime = 0
    starts_R = [tuple(line.on(rank) for line in lines) for rank in range(pp)]
    for starts in starts_R:
        taken = {start % PERIOD for start in starts}
        down, up, gradient_up, gradient_down = starts
        weight_up = next(time for time in range(gradient_up + 1, gradient_up + PERIOD) if time % PERIOD not in taken)
        taken.add(weight_up % PERIOD)
        weight_down = next(
            time for time in range(gradient_down + 1, gradient_down + PERIOD + 1) if time % PERIOD not in taken
        )
        weights.append((weight_up, weight_down))
        lifetime = max(lifetime, weight_up - up + weight_down - down)
    return Block(lifetime=lifetime, starts=(*zip(*starts_R, strict=True), *zip(*weights, strict=True)))


def _order(name: str, block: Block, pp: int, num_microbatches: int) -> PassOrder:
    """Return a block repeated for every micro-batch, each rank's passes by their time."""
    kinds = (
        (PassKind.FORWARD, True),
        (PassKind.FORWARD, False),
        (PassKind.INPUT_GRADIENT, False),
        (PassKind.INPUT_GRADIENT, True),
        (PassKind.WEIGHT_GRADIENT, False),
        (PassKind.WEIGHT_GRADIENT, True),
    )
    passes: list[list[Pass]] = []
    for rank in range(pp):
        timed = [
            (starts[rank] + PERIOD * index, Pass(kind, rank if is_down else 2 * pp - 1 - rank, index))
            for (kind, is_down), starts in zip(kinds, block.starts, strict=True)
            for index in range(num_microbatches)
        ]
        passes.append([entry for _, entry in sorted(timed)])
    return v_shaped(name, tuple(passes), num_microbatches)
