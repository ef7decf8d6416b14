"""Runs any order of forward, input-gradient and weight-gradient passes, over stages placed on ranks in any way.

A stage's backward pass is one pass, or two: the gradient of its input, which the stage before it waits for, and that of
its weights, which nothing waits for (Qi et al., Zero Bubble Pipeline Parallelism, arXiv 2401.10241). A rank runs its
blocks one after the other, each as soon as all that it needs has arrived; a block is one pass, or several that are
interwoven and end together. Arrays name their axes:

    R  pipeline ranks
    V  stages; every chain of stages is one copy of the model, and several stages may share a rank
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from math import inf
from typing import NamedTuple, Protocol


class PassKind(StrEnum):
    """What a pass computes; the value is how schedules are drawn."""

    FORWARD = "F"
    BACKWARD = "BW"
    """The gradients of input and weights in one."""
    INPUT_GRADIENT = "B"
    WEIGHT_GRADIENT = "W"


class Pass(NamedTuple):
    """One pass of one micro-batch through one stage."""

    kind: PassKind
    stage: int
    microbatch: int


Block = tuple[Pass, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class PassOrder:
    """What every rank runs, one block after the other.

    Args:
        name: What the schedule is called.
        rank_of_stage_V: The rank of each stage.
        chains: Stages of each copy of the model, in model order.
        microbatches_of_chain: Micro-batches of each copy.
        blocks_R: What each rank runs.
    """

    name: str
    rank_of_stage_V: tuple[int, ...]
    chains: tuple[tuple[int, ...], ...]
    microbatches_of_chain: tuple[int, ...]
    blocks_R: tuple[tuple[Block, ...], ...]

    @property
    def pp(self) -> int:
        """Return the number of ranks."""
        return len(self.blocks_R)

    @property
    def num_stages(self) -> int:
        """Return the number of stages of all copies."""
        return len(self.rank_of_stage_V)

    @property
    def num_microbatches(self) -> int:
        """Return the micro-batches of one step, over all copies of the model."""
        return sum(self.microbatches_of_chain)

    @cached_property
    def before_V(self) -> tuple[int | None, ...]:
        """Return the stage before each stage in its chain."""
        found: dict[int, int | None] = {}
        for chain in self.chains:
            found |= zip(chain, (None, *chain[:-1]), strict=True)
        return tuple(found[stage] for stage in range(self.num_stages))

    @cached_property
    def behind_V(self) -> tuple[int | None, ...]:
        """Return the stage behind each stage in its chain."""
        found: dict[int, int | None] = {}
        for chain in self.chains:
            found |= zip(chain, (*chain[1:], None), strict=True)
        return tuple(found[stage] for stage in range(self.num_stages))

    def passes(self, rank: int) -> Iterator[Pass]:
        """Yield the passes of one rank, in order."""
        for block in self.blocks_R[rank]:
            yield from block

    def text(self, rank: int) -> str:
        """Return a rank's order as text; `B2.7`: input gradient of micro-batch 7 on stage 2; `+` joins a block."""
        return " ".join(
            "+".join(f"{entry.kind}{entry.stage}.{entry.microbatch}" for entry in block)
            for block in self.blocks_R[rank]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """What one micro-batch costs on each stage.

    Args:
        forward_seconds_V: Forward pass.
        input_gradient_seconds_V: Gradient of the input, recomputation included.
        weight_gradient_seconds_V: Gradient of the weights.
        transfer_seconds_V: From each stage to the one behind it, and back; of no account inside a rank.
        joint_fraction: What a block of several passes takes of the sum of them.
        backward_seconds_V: Both gradients in one pass. Empty: the sum of those apart.
        first_forward_extra_seconds_V: Added to the first forward pass of a stage. Empty: nothing.
        last_gradient_extra_seconds_V: Keeps the rank busy after the last gradient of a stage's weights; what the stage
            before waits for leaves ahead of it. Empty: nothing.
    """

    forward_seconds_V: tuple[float, ...]
    input_gradient_seconds_V: tuple[float, ...]
    weight_gradient_seconds_V: tuple[float, ...]
    transfer_seconds_V: tuple[float, ...]
    joint_fraction: float = 1.0
    backward_seconds_V: tuple[float, ...] = ()
    first_forward_extra_seconds_V: tuple[float, ...] = ()
    last_gradient_extra_seconds_V: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check lengths and signs."""
        optional = (
            self.backward_seconds_V,
            self.first_forward_extra_seconds_V,
            self.last_gradient_extra_seconds_V,
        )
        columns = (
            self.forward_seconds_V,
            self.input_gradient_seconds_V,
            self.weight_gradient_seconds_V,
            self.transfer_seconds_V,
            *(column for column in optional if column),
        )
        if len({len(column) for column in columns}) != 1:
            raise ValueError("the times are not all for as many stages")
        if not all(0.0 <= seconds < float("inf") for column in columns for seconds in column):
            raise ValueError("a time is negative or not finite")

    @classmethod
    def uniform(
        cls, num_stages: int, *, forward: float, input_gradient: float, weight_gradient: float, transfer: float = 0.0
    ) -> "PassTimes":
        """Return the times of stages that are all alike, in seconds."""
        return cls(
            forward_seconds_V=(forward,) * num_stages,
            input_gradient_seconds_V=(input_gradient,) * num_stages,
            weight_gradient_seconds_V=(weight_gradient,) * num_stages,
            transfer_seconds_V=(transfer,) * num_stages,
        )

    def seconds(self, entry: Pass) -> float:
        """Return how long a pass takes."""
        stage = entry.stage
        match entry.kind:
            case PassKind.FORWARD:
                return self.forward_seconds_V[stage]
            case PassKind.INPUT_GRADIENT:
                return self.input_gradient_seconds_V[stage]
            case PassKind.WEIGHT_GRADIENT:
                return self.weight_gradient_seconds_V[stage]
            case PassKind.BACKWARD:
                if self.backward_seconds_V:
                    return self.backward_seconds_V[stage]
                return self.input_gradient_seconds_V[stage] + self.weight_gradient_seconds_V[stage]

    def block_seconds(self, block: Block) -> float:
        """Return how long a block takes."""
        seconds = sum(self.seconds(entry) for entry in block)
        return seconds * self.joint_fraction if len(block) > 1 else seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimeline:
    """When every block of a step ran.

    Args:
        order: What the ranks ran.
        start_seconds_R: Starts of each rank's blocks.
        end_seconds_R: Their ends.
        rank_end_seconds_R: When each rank has run its last block and what keeps it busy after that.
    """

    order: PassOrder
    start_seconds_R: tuple[tuple[float, ...], ...]
    end_seconds_R: tuple[tuple[float, ...], ...]
    rank_end_seconds_R: tuple[float, ...]

    @property
    def span_seconds_R(self) -> tuple[float, ...]:
        """Return the time between each rank's first start and its last end."""
        return tuple(end - starts[0] for starts, end in zip(self.start_seconds_R, self.rank_end_seconds_R, strict=True))

    @property
    def span_seconds(self) -> float:
        """Return the longest span of any rank: what a step takes where ranks do not wait for one another behind it."""
        return max(self.span_seconds_R)

    @property
    def end_seconds(self) -> float:
        """Return when the last rank is done."""
        return max(self.rank_end_seconds_R)

    @property
    def busy_seconds_R(self) -> tuple[float, ...]:
        """Return the time in which each rank computes."""
        return tuple(
            sum(end - start for start, end in zip(starts, ends, strict=True))
            for starts, ends in zip(self.start_seconds_R, self.end_seconds_R, strict=True)
        )

    @property
    def bubble_fraction(self) -> float:
        """Return the share of the longest span in which that rank computes nothing."""
        spans = self.span_seconds_R
        rank = spans.index(max(spans))
        return 1.0 - self.busy_seconds_R[rank] / spans[rank]


class Streams(Protocol):
    """What runs beside a rank's blocks, follows them, and may keep them waiting."""

    def start_seconds(self, rank: int, position: int, *, earliest_seconds: float, lasting_seconds: float) -> float:
        """Return when a block starts, no earlier than given; called once for each, in the order of its rank."""
        ...


def run(order: PassOrder, times: PassTimes, streams: Streams | None = None) -> PassTimeline:
    """Return when every block runs: as early as its rank and its inputs allow.

    Args:
        order: What the ranks run.
        times: How long passes and transfers take.
        streams: What runs beside them; None for nothing.

    Raises:
        ValueError: The times are for another number of stages, or the ranks wait for one another for ever.
    """
    if len(times.forward_seconds_V) != order.num_stages:
        raise ValueError(f"times for {len(times.forward_seconds_V)} stages given, the order has {order.num_stages}")
    extras = [_extras(order, times, rank) for rank in range(order.pp)]
    programs = _Programs(order, times)
    program_R = [programs.of_rank(rank) for rank in range(order.pp)]
    ended = programs.not_ended()
    starts: list[list[float]] = [[] for _ in range(order.pp)]
    ends: list[list[float]] = [[] for _ in range(order.pp)]
    free = [0.0] * order.pp
    remaining = sum(len(program) for program in program_R)
    while remaining:
        before = remaining
        for rank, program in enumerate(program_R):
            rank_starts, rank_ends, now = starts[rank], ends[rank], free[rank]
            while len(rank_ends) < len(program):
                seconds, inputs, outputs = program[len(rank_ends)]
                start = now
                for source, delay in inputs:
                    arrival = ended[source] + delay
                    start = max(start, arrival)
                if start == inf:
                    break
                longer, later = extras[rank].get(len(rank_ends), (0.0, 0.0)) if extras[rank] else (0.0, 0.0)
                if streams is not None:
                    start = streams.start_seconds(
                        rank, len(rank_ends), earliest_seconds=start, lasting_seconds=seconds + longer
                    )
                end = start + seconds + longer
                rank_starts.append(start)
                rank_ends.append(end)
                for output in outputs:
                    ended[output] = end
                now = end + later
                remaining -= 1
            free[rank] = now
        if remaining == before:
            raise ValueError(f"the ranks of {order.name} wait for one another")
    return PassTimeline(
        order=order,
        start_seconds_R=tuple(map(tuple, starts)),
        end_seconds_R=tuple(map(tuple, ends)),
        rank_end_seconds_R=tuple(free),
    )


def _extras(order: PassOrder, times: PassTimes, rank: int) -> dict[int, tuple[float, float]]:
    """Return by how much blocks of a rank are longer, and how long it is busy after them, where there is any of it."""
    if not times.first_forward_extra_seconds_V and not times.last_gradient_extra_seconds_V:
        return {}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, block in enumerate(order.blocks_R[rank]):
        for entry in block:
            if entry.kind is PassKind.FORWARD:
                first.setdefault(entry.stage, position)
            elif entry.kind is not PassKind.INPUT_GRADIENT:
                last[entry.stage] = position
    found: dict[int, tuple[float, float]] = {}
    for positions, seconds_V, is_later in (
        (first, times.first_forward_extra_seconds_V, False),
        (last, times.last_gradient_extra_seconds_V, True),
    ):
        for stage, position in positions.items() if seconds_V else ():
            longer, later = found.get(position, (0.0, 0.0))
            seconds = seconds_V[stage]
            found[position] = (longer, later + seconds) if is_later else (longer + seconds, later)
    return found


_Step = tuple[float, tuple[tuple[int, float], ...], tuple[int, ...]]
"""A block: its seconds; the results that it needs, each with the time that it travels; the results that it gives."""


class _Programs:
    """What ranks run, with numbers for results: forward passes by stage and micro-batch, gradients of inputs behind.

    Args:
        order: What the ranks run.
        times: How long passes and transfers take.
    """

    def __init__(self, order: PassOrder, times: PassTimes) -> None:
        self._order = order
        self._times = times
        self._num_microbatches = order.num_microbatches
        self._num_results = order.num_stages * order.num_microbatches
        ranks, seconds = order.rank_of_stage_V, times.transfer_seconds_V
        self._out_V = [
            0.0 if behind is None or ranks[behind] == ranks[stage] else seconds[stage]
            for stage, behind in enumerate(order.behind_V)
        ]

    def not_ended(self) -> list[float]:
        """Return for each result that it never ends."""
        return [inf] * (2 * self._num_results)

    def of_rank(self, rank: int) -> list[_Step]:
        """Return the blocks of one rank."""
        return [self._step(block) for block in self._order.blocks_R[rank]]

    def _step(self, block: Block) -> _Step:
        inputs: list[tuple[int, float]] = []
        outputs: list[int] = []
        for kind, stage, microbatch in block:
            forward = stage * self._num_microbatches + microbatch
            gradient = forward + self._num_results
            if kind is PassKind.FORWARD:
                before = self._order.before_V[stage]
                if before is not None:
                    inputs.append((before * self._num_microbatches + microbatch, self._out_V[before]))
                outputs.append(forward)
            elif kind is PassKind.WEIGHT_GRADIENT:
                inputs.append((gradient, 0.0))
            else:
                inputs.append((forward, 0.0))
                behind = self._order.behind_V[stage]
                if behind is not None:
                    source = behind * self._num_microbatches + microbatch + self._num_results
                    inputs.append((source, self._out_V[stage]))
                outputs.append(gradient)
        return self._times.block_seconds(block), tuple(inputs), tuple(outputs)


def peak_bytes_R(
    order: PassOrder, *, activation_bytes_V: Sequence[int], weight_gradient_bytes_V: Sequence[int]
) -> tuple[int, ...]:
    """Return the most bytes of saved activations that each rank holds at once.

    A forward pass adds its stage's activations. The gradient of the input frees all but what that of the weights needs,
    which frees the rest; a backward pass in one frees everything as it ends. In a block forward passes come first.

    Args:
        order: What the ranks run.
        activation_bytes_V: Activations of one micro-batch.
        weight_gradient_bytes_V: What of them the gradient of the weights needs.
    """
    peaks: list[int] = []
    for rank in range(order.pp):
        alive = peak = 0
        for block in order.blocks_R[rank]:
            for entry in sorted(block, key=lambda entry: entry.kind is not PassKind.FORWARD):
                alive += change_bytes(entry, activation_bytes_V, weight_gradient_bytes_V)
                peak = max(peak, alive)
        peaks.append(peak)
    return tuple(peaks)


def change_bytes(entry: Pass, activation_bytes_V: Sequence[int], weight_gradient_bytes_V: Sequence[int]) -> int:
    """Return the bytes that a pass adds, or frees."""
    whole, kept = activation_bytes_V[entry.stage], weight_gradient_bytes_V[entry.stage]
    match entry.kind:
        case PassKind.FORWARD:
            return whole
        case PassKind.BACKWARD:
            return -whole
        case PassKind.INPUT_GRADIENT:
            return kept - whole
        case PassKind.WEIGHT_GRADIENT:
            return -kept


def joined(order: PassOrder) -> PassOrder:
    """Return an order in which both gradients that a rank runs one after the other are one backward pass.

    That keeps no more, hides what a whole backward pass hides, and sends the gradient of the input later.
    """
    blocks_R: list[tuple[Block, ...]] = []
    for blocks in order.blocks_R:
        found: list[Block] = []
        for block in blocks:
            kind, stage, microbatch = block[0]
            before = (Pass(PassKind.INPUT_GRADIENT, stage, microbatch),)
            if len(block) == 1 and kind is PassKind.WEIGHT_GRADIENT and found and found[-1] == before:
                found[-1] = (Pass(PassKind.BACKWARD, stage, microbatch),)
            else:
                found.append(block)
        blocks_R.append(tuple(found))
    return replace(order, blocks_R=tuple(blocks_R))
