"""Published pipeline schedules, as orders of passes.

GPipe (Huang et al., arXiv 1811.06965) runs all forward passes, then all backward ones; breadth-first (Lamy-Poirier,
arXiv 2211.05953) does so chunk by chunk. 1F1B and interleaved 1F1B are those of `planner.schedules.orders`. Zero-bubble
schedules put the gradients of weights where a rank would wait: ZB-H1 in the memory of 1F1B, ZB-H2 in twice as much (Qi
et al., arXiv 2401.10241, section 2), ZB-V with two stages a rank that make a V, in the memory of 1F1B (Qi et al., arXiv
2405.15362, section 4). DualPipe runs two copies of the model in opposite directions and interweaves the forward
passes of one with the backward passes of the other (DeepSeek-V3, arXiv 2412.19437, section 3.2.1).

With stages all alike and free transfers, F, B and W the seconds of the three passes of one stage, p ranks and m
micro-batches, the bubbles on the longest span are

    GPipe, 1F1B      (p - 1) (F + B + W)
    interleaved      (p - 1) (F + B + W), F, B and W of one of v stages a rank; breadth-first the same
    ZB-H1            (p - 1) (F + B - W)
    ZB-H2            (p - 1) (F + B - 2 W), nothing where F = B = W
    ZB-V             nothing where F = B = W
    DualPipe         (p / 2 - 1) (F&B + B - 2 W), F&B both directions interwoven, B without W
"""

from planner.layout import Schedule
from planner.schedules.orders import operation_order
from planner.schedules.passes import Block, Pass, PassKind, PassOrder

_F, _BW, _B, _W = PassKind.FORWARD, PassKind.BACKWARD, PassKind.INPUT_GRADIENT, PassKind.WEIGHT_GRADIENT


def gpipe(pp: int, num_microbatches: int) -> PassOrder:
    """Return all forward passes, then all backward passes, the last micro-batch first."""
    every = range(num_microbatches)
    return _looped(
        "GPipe",
        tuple(
            (
                *((Pass(_F, rank, index),) for index in every),
                *((Pass(_BW, rank, index),) for index in reversed(every)),
            )
            for rank in range(pp)
        ),
        num_microbatches=num_microbatches,
    )


def breadth_first(pp: int, vpp: int, num_microbatches: int) -> PassOrder:
    """Return all micro-batches through a rank's first chunk, then its second and so on; backward in reverse."""
    every = range(num_microbatches)
    blocks = tuple(
        (
            *((Pass(_F, chunk * pp + rank, index),) for chunk in range(vpp) for index in every),
            *((Pass(_BW, chunk * pp + rank, index),) for chunk in reversed(range(vpp)) for index in every),
        )
        for rank in range(pp)
    )
    return _looped("breadth-first", blocks, num_microbatches=num_microbatches, vpp=vpp)


def one_f_one_b(pp: int, num_microbatches: int, *, vpp: int = 1) -> PassOrder:
    """Return Megatron-LM's 1F1B, interleaved where a rank has several chunks.

    Raises:
        ValueError: Megatron-LM does not run it at these degrees.
    """
    schedule = Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
    order = operation_order(schedule, pp=pp, vpp=vpp, num_microbatches=num_microbatches)
    blocks = tuple(
        tuple(
            (Pass(_BW if backward else _F, stage, index),)
            for backward, stage, index in zip(backwards, stages, indices, strict=True)
        )
        for backwards, stages, indices in zip(
            order.is_backward_RK.tolist(), order.stage_RK.tolist(), order.microbatch_RK.tolist(), strict=True
        )
    )
    name = "interleaved 1F1B" if vpp > 1 else "1F1B"
    return _looped(name, blocks, num_microbatches=num_microbatches, vpp=vpp)


def zb_h1(pp: int, num_microbatches: int) -> PassOrder:
    """Return 1F1B whose gradients of weights wait, on rank r for r micro-batches."""
    warmup = [pp - rank for rank in range(pp)]
    return _split("ZB-H1", warmup, list(range(pp)), num_microbatches)


def zb_h2(pp: int, num_microbatches: int) -> PassOrder:
    """Return ZB-H1 with enough forward passes ahead that no rank waits for the first gradient."""
    warmup = [2 * (pp - rank) - 1 for rank in range(pp)]
    return _split("ZB-H2", warmup, [2 * rank for rank in range(pp)], num_microbatches)


def _split(name: str, warmup_R: list[int], lag_R: list[int], num_microbatches: int) -> PassOrder:
    """Return forward passes ahead, then B, W and F in turn; W of the micro-batch `lag` before B's."""
    blocks: list[tuple[Block, ...]] = []
    for rank, (warmup, lag) in enumerate(zip(warmup_R, lag_R, strict=True)):
        passes = [Pass(_F, rank, index) for index in range(min(warmup, num_microbatches))]
        for index in range(num_microbatches):
            passes.append(Pass(_B, rank, index))
            if index >= lag:
                passes.append(Pass(_W, rank, index - lag))
            if warmup + index < num_microbatches:
                passes.append(Pass(_F, rank, warmup + index))
        passes += [Pass(_W, rank, index) for index in range(max(0, num_microbatches - lag), num_microbatches)]
        blocks.append(tuple((entry,) for entry in passes))
    return _looped(name, tuple(blocks), num_microbatches=num_microbatches)


def zb_v(pp: int, num_microbatches: int) -> PassOrder:
    """Return ZB-V; rank r runs the stages r and 2 pp - 1 - r.

    Raises:
        ValueError: There are fewer than 2 pp micro-batches, so that ranks have nothing to fill their waits with.
    """
    if num_microbatches < 2 * pp:
        raise ValueError(f"ZB-V needs at least 2 pp = {2 * pp} micro-batches, not {num_microbatches}")
    return v_shaped("ZB-V", tuple(_zb_v_passes(pp, num_microbatches, rank) for rank in range(pp)), num_microbatches)


class _Counted:
    """Passes of one rank, every kind and stage through its micro-batches in order."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self._done: dict[tuple[PassKind, int], int] = {}

    def add(self, *passes: tuple[PassKind, int]) -> None:
        """Add the next micro-batch of each of these."""
        for kind, stage in passes:
            self.passes.append(Pass(kind, stage, self.count(kind, stage)))
            self._done[kind, stage] = self.count(kind, stage) + 1

    def count(self, kind: PassKind, stage: int) -> int:
        """Return how many there are."""
        return self._done.get((kind, stage), 0)


def _zb_v_passes(pp: int, num_microbatches: int, rank: int) -> list[Pass]:
    """Return the passes of one rank: two ramps of forward passes, a steady part, and gradients that drain."""
    near, far = rank, 2 * pp - 1 - rank
    found = _Counted()
    found.add(*[(_F, near)] * (2 * (pp - rank) - 1))
    found.add(*[(_F, far), (_F, near)] * rank)
    found.add(*[(_F, far), (_B, far), (_W, far)] * (pp - rank))
    while found.count(_F, far) < num_microbatches:
        if found.count(_F, near) < num_microbatches:
            found.add((_F, near))
        found.add((_B, near), (_W, near), (_F, far), (_B, far), (_W, far))
    found.add(*[(_B, near), (_B, far)] * rank)
    found.add(*[(_B, near), (_W, near)] * (pp - rank))
    for stage in (far, near):
        found.add(*[(_W, stage)] * (num_microbatches - found.count(_W, stage)))
    return found.passes


def v_shaped(name: str, passes_R: tuple[list[Pass], ...], num_microbatches: int) -> PassOrder:
    """Return an order over 2 pp stages, of which rank r has r and 2 pp - 1 - r."""
    pp = len(passes_R)
    return PassOrder(
        name=name,
        rank_of_stage_V=(*range(pp), *reversed(range(pp))),
        chains=(tuple(range(2 * pp)),),
        microbatches_of_chain=(num_microbatches,),
        blocks_R=tuple(tuple((entry,) for entry in passes) for passes in passes_R),
    )


def dual_pipe(pp: int, num_microbatches: int) -> PassOrder:
    """Return DualPipe: stage r of one copy and stage pp - 1 - r of the other on rank r, half of the micro-batches each.

    Raises:
        ValueError: The ranks or the micro-batches are odd, or there are fewer than 2 pp micro-batches.
    """
    if pp % 2 or num_microbatches % 2 or num_microbatches < 2 * pp:
        raise ValueError(
            f"DualPipe needs even pp and micro-batches, at least 2 pp of them, not pp = {pp}, {num_microbatches}"
        )
    half = num_microbatches // 2
    return PassOrder(
        name="DualPipe",
        rank_of_stage_V=(*range(pp), *reversed(range(pp))),
        chains=(tuple(range(pp)), tuple(range(pp, 2 * pp))),
        microbatches_of_chain=(half, half),
        blocks_R=tuple(_DualPipeRank(pp, num_microbatches, rank).blocks() for rank in range(pp)),
    )


class _DualPipeRank:
    """One rank's blocks; its near direction is the one whose first stages lie on its half of the ranks.

    Args:
        pp: Ranks.
        num_microbatches: Micro-batches of both directions.
        rank: The rank.
    """

    def __init__(self, pp: int, num_microbatches: int, rank: int) -> None:
        self._half = num_microbatches // 2
        self._pp = pp
        first_half = rank < pp // 2
        self._depth = rank if first_half else pp - 1 - rank
        self._stages = (rank, 2 * pp - 1 - rank) if first_half else (2 * pp - 1 - rank, rank)
        self._done: dict[tuple[PassKind, int], int] = {}
        self._waiting: list[Pass] = []
        self._blocks: list[Block] = []

    def _next(self, kind: PassKind, direction: int) -> Pass:
        stage = self._stages[direction]
        index = self._done.get((kind, direction), 0)
        self._done[kind, direction] = index + 1
        first = self._half if stage >= self._pp else 0
        return Pass(kind, stage, first + index)

    def _forward(self, direction: int) -> None:
        self._blocks.append((self._next(_F, direction),))

    def _backward(self, direction: int, *, split: bool) -> None:
        found = self._next(_B, direction)
        if split:
            self._blocks.append((found,))
            self._waiting.append(Pass(_W, found.stage, found.microbatch))
        else:
            self._blocks.append((Pass(_BW, found.stage, found.microbatch),))

    def _weights(self) -> None:
        self._blocks.append((self._waiting.pop(0),))

    def _both(self, forward: int, backward: int) -> None:
        found = self._next(_B, backward)
        self._blocks.append((self._next(_F, forward), Pass(_BW, found.stage, found.microbatch)))

    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks, phase by phase."""
        behind = self._pp // 2 - 1 - self._depth  # ranks between this one and the middle
        ahead = self._depth + 1
        self._fill(behind, ahead)
        self._steady(self._half - self._pp + ahead, behind)
        self._drain(behind, ahead)
        return tuple(self._blocks)

    def _fill(self, behind: int, ahead: int) -> None:
        """Run ahead in the near direction, then in both, then with the first gradients of the far one."""
        for _ in range(2 * behind):
            self._forward(0)
        for _ in range(ahead):
            self._forward(0)
            self._forward(1)
        for _ in range(behind):
            self._backward(1, split=True)
            self._weights()
            self._forward(1)

    def _steady(self, num_pairs: int, behind: int) -> None:
        """Interweave the forward passes of either direction with the backward passes of the other."""
        for step in range(num_pairs):
            if step == 0 and behind == 0:
                # The two ranks in the middle have nothing yet to interweave this forward pass with.
                self._forward(0)
                self._backward(1, split=False)
            else:
                self._both(0, 1)
            self._both(1, 0)

    def _drain(self, behind: int, ahead: int) -> None:
        """Run the gradients that are left; in the second half those of weights wait for the end."""
        for _ in range(behind):
            self._backward(1, split=False)
            self._both(1, 0)
        split = False
        for step in range(ahead):
            is_middle = step == ahead // 2
            split = split or (is_middle and self._depth % 2 == 1)
            self._backward(1, split=split)
            split = split or is_middle
            self._backward(0, split=split)
        for _ in range(behind):
            self._weights()
            self._backward(0, split=True)
        while self._waiting:
            self._weights()


def _looped(name: str, blocks_R: tuple[tuple[Block, ...], ...], *, num_microbatches: int, vpp: int = 1) -> PassOrder:
    """Return an order over pp * vpp stages, of which rank r has r, pp + r and so on."""
    pp = len(blocks_R)
    return PassOrder(
        name=name,
        rank_of_stage_V=tuple(range(pp)) * vpp,
        chains=(tuple(range(pp * vpp)),),
        microbatches_of_chain=(num_microbatches,),
        blocks_R=blocks_R,
    )
