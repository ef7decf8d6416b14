"""The division of tokens on all pipeline ranks of a layout as a paced problem (`solvers.paced`).

Things are the kinds of layers of each rank, options their `TokenChoice`s in units of a `TOKEN_UNITS`th of a
micro-batch's tokens, phases the slots of each stage (`planner.token_swaps.token_slots`), one more phase a rank for
everything else that it runs.

Rooms
    GPU    of every rank, for every moment that holds most micro-batches: what is kept of each of them, and beside it
           the two buffers that layers take in turn (section 4.1 of arXiv 2407.12117), as large as what passes through
    host   of every node: what all its ranks copy, of the most micro-batches that each of them has in flight, chunk by
           chunk. Page-locked memory of its own, as MEMO allocates it once: nothing is rounded up

Copies of a slot run over the link of the GPU or as fast as the memory of its socket takes those of the GPUs of the same
pipeline rank, which run the same slots, whichever is slower. Sockets are `Link`s: in a period each takes what all its
GPUs copy there and back, of whatever rank. Where a profile says what passes lose to copies beside them, both lose it.

A stage that is not the first keeps the input of its first layer, which the schedule needs for its gradient.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from planner.layout import Layout
from planner.memory.host import ranks_of_node
from planner.schedules.orders import fullest_counts, operation_order, repeating_microbatches, turns_at_once
from planner.token_swaps.token_choices import COMPUTES_AGAIN, TokenChoice, TokenLayer
from planner.token_swaps.token_slots import STAYING_LAYERS, Slot, num_divided, slots
from profiles.hardware import Cluster
from profiles.host import sockets_of_node
from solvers.paced.problem import Link, PacedProblem
from solvers.shares.check import SLACK
from solvers.shares.problem import Chain, Room, SharesProblem

TOKEN_UNITS = 64
"""Parts of a micro-batch's tokens that have a choice each."""

CHOICES = tuple(TokenChoice)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStage:
    """One virtual stage, for one micro-batch.

    Args:
        rank: Its pipeline rank.
        chunk: Which of the rank's stages it is.
        kinds: Kind of each layer.
        other_seconds: What its passes take beside its layers.
        other_bytes: What it keeps beside what they save.
        keeps_input: It keeps the input of its first layer whatever becomes of that.
    """

    rank: int
    chunk: int
    kinds: tuple[int, ...]
    other_seconds: float
    other_bytes: int
    keeps_input: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCase:
    """What tokens are divided for.

    Args:
        layout: The layout.
        layers: Its kinds of layers.
        stages: Its virtual stages, in model order.
        cluster: Its nodes.
        room_bytes_R: What each rank's GPU has for saved tensors.
        host_room_bytes: What a node has for them.
        slowdown: Seconds that either loses for each second that a pass and a copy run beside one another.
    """

    layout: Layout
    layers: tuple[TokenLayer, ...]
    stages: tuple[TokenStage, ...]
    cluster: Cluster
    room_bytes_R: tuple[int, ...]
    host_room_bytes: int
    slowdown: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPhase:
    """A phase of the problem: a slot of a stage."""

    stage: int
    slot: Slot
    count: int


class TokenProblem:
    """The problem of a case, and what its answers mean.

    Args:
        case: The case.
    """

    def __init__(self, case: TokenCase) -> None:
        self.case = case
        layout = case.layout
        few = min(layout.num_microbatches, repeating_microbatches(layout.schedule, pp=layout.pp, vpp=layout.vpp))
        order = operation_order(layout.schedule, pp=layout.pp, vpp=layout.vpp, num_microbatches=few)
        self.turns_R = tuple(turns_at_once(order, rank) for rank in range(layout.pp))
        self.counts_R = tuple(fullest_counts(order, rank) for rank in range(layout.pp))
        self.divided_V = tuple(
            Counter(stage.kinds[: num_divided(len(stage.kinds), turns=self.turns_R[stage.rank])])
            for stage in case.stages
        )
        self.things = tuple(
            sorted(
                {
                    (stage.rank, kind)
                    for stage, divided in zip(case.stages, self.divided_V, strict=True)
                    for kind in divided
                }
            )
        )
        self.phases = tuple(
            SlotPhase(stage=index, slot=slot, count=count)
            for index, stage in enumerate(case.stages)
            for slot, count in slots(stage.kinds, turns=self.turns_R[stage.rank]).items()
        )
        self.sockets = tuple(
            sorted(
                {
                    ranks
                    for node in range(case.cluster.num_nodes)
                    for ranks in sockets_of(
                        ranks_of_node(layout, case.cluster.gpus_per_node, node), sockets_of_node(case.cluster)
                    )
                }
            )
        )
        self.nodes = tuple(
            sorted({ranks_of_node(layout, case.cluster.gpus_per_node, node) for node in range(case.cluster.num_nodes)})
        )

    def problem(self) -> PacedProblem:
        """Return the problem."""
        chains, weight_P, rank_P = self._phases()
        shares = SharesProblem(
            thing_O=tuple(thing for thing in range(len(self.things)) for _ in CHOICES),
            units_T=(TOKEN_UNITS,) * len(self.things),
            weight_P=weight_P,
            chains=chains,
            rooms=(*self._gpu_rooms(), *self._host_rooms()),
        )
        return PacedProblem(
            shares=shares,
            rank_P=rank_P,
            links=self._links(),
            periods=float(self.case.layout.num_microbatches - 1),
        )

    def share(self, share_O: Sequence[float], rank: int, kind: int, choice: TokenChoice) -> float:
        """Return what part of the tokens of a kind of layer on a rank has a choice, in an answer."""
        return share_O[len(CHOICES) * self.things.index((rank, kind)) + CHOICES.index(choice)]

    def device_bytes_R(self, share_O: tuple[float, ...]) -> tuple[int, ...]:
        """Return the most that saved tensors take of each rank's GPU, in an answer."""
        most_R = [0.0] * self.case.layout.pp
        for rank, fixed, use_O in self._gpu_needs():
            used = fixed + sum(use * share for use, share in zip(use_O, share_O, strict=True))
            most_R[rank] = max(most_R[rank], used)
        return tuple(-int(-used // 1) for used in most_R)

    def host_bytes(self, share_O: tuple[float, ...]) -> int:
        """Return what the node that holds most holds of them, in an answer."""
        used = [room.used(share_O) for room in self._host_rooms()]
        return -int(-max(used, default=0.0) // 1)

    def _row(self, values: dict[tuple[int, int, TokenChoice], float]) -> tuple[float, ...]:
        """Return a number for each option: those given, 0 for others."""
        return tuple(values.get((rank, kind, choice), 0.0) for rank, kind in self.things for choice in CHOICES)

    def _phases(self) -> tuple[tuple[Chain, ...], tuple[float, ...], tuple[int, ...]]:
        """Return the chains of all phases, how often each occurs in a period, and its rank."""
        chains: list[Chain] = []
        for index, phase in enumerate(self.phases):
            chains += self._slot_chains(index, phase)
        rank_P = [self.case.stages[phase.stage].rank for phase in self.phases]
        weight_P = [float(phase.count) for phase in self.phases]
        for stage in self.case.stages:
            nothing = self._row({})
            chains.append(Chain(name="other", phase=len(rank_P), fixed_seconds=stage.other_seconds, seconds_O=nothing))
            rank_P.append(stage.rank)
            weight_P.append(1.0)
        return tuple(chains), tuple(weight_P), tuple(rank_P)

    def _slot_chains(self, index: int, phase: SlotPhase) -> list[Chain]:
        """Return what a slot computes and what is copied beside it, each with what it loses to the others."""
        slot, rank = phase.slot, self.case.stages[phase.stage].rank
        computed = self._row(
            {
                (rank, slot.kind, choice): self.case.layers[slot.kind].again_seconds
                for choice in COMPUTES_AGAIN
                if slot.is_divided and slot.is_backward
            }
        )
        fixed = base_seconds(slot, self.case.layers)
        copied = [self._copied(rank, kind) for kind in (slot.leaving, slot.coming) if kind is not None]
        lost = self.case.slowdown
        beside = tuple(lost * sum(each) for each in zip(*copied, strict=True)) if copied else self._row({})
        found = [Chain(name="compute", phase=index, fixed_seconds=fixed, seconds_O=_plus(computed, beside))]
        for seconds_O in copied:
            slower = tuple(lost * each for each in computed)
            found.append(
                Chain(name="copies", phase=index, fixed_seconds=lost * fixed, seconds_O=_plus(seconds_O, slower))
            )
        return found

    def _copied(self, rank: int, kind: int) -> tuple[float, ...]:
        """Return how long a copy of a layer of one kind takes one way."""
        layer = self.case.layers[kind]
        beside = max((ranks.count(rank) for ranks in self.sockets), default=1)
        seconds = max(layer.link_seconds, layer.memory_seconds * beside / self._gpus_of_socket)
        return self._row({(rank, kind, choice): seconds * layer.copied_fraction(choice) for choice in CHOICES})

    @property
    def _gpus_of_socket(self) -> float:
        return self.case.cluster.gpus_per_node / sockets_of_node(self.case.cluster)

    def _links(self) -> tuple[Link, ...]:
        """Return the sockets, each with what its GPUs copy of a micro-batch there and back."""
        found = []
        for ranks in self.sockets:
            values: dict[tuple[int, int, TokenChoice], float] = {}
            for stage, divided in zip(self.case.stages, self.divided_V, strict=True):
                for kind, count in divided.items():
                    layer = self.case.layers[kind]
                    both = 2 * ranks.count(stage.rank) * count * layer.memory_seconds / self._gpus_of_socket
                    for choice in CHOICES:
                        key = (stage.rank, kind, choice)
                        values[key] = values.get(key, 0.0) + both * layer.copied_fraction(choice)
            found.append(Link(name=f"socket of ranks {', '.join(map(str, ranks))}", seconds_O=self._row(values)))
        return tuple(found)

    def _gpu_needs(self) -> list[tuple[int, float, tuple[float, ...]]]:
        """Return (rank, bytes whatever is chosen, bytes of each option) for every moment and size of its buffers."""
        found: list[tuple[int, float, tuple[float, ...]]] = []
        for rank, moments in enumerate(self.counts_R):
            stages = [
                (stage, self.divided_V[index]) for index, stage in enumerate(self.case.stages) if stage.rank == rank
            ]
            resting = max(
                (self.case.layers[kind].saved_bytes for stage, divided in stages for kind in _rest(stage, divided)),
                default=0,
            )
            for moment in moments:
                held: dict[tuple[int, int, TokenChoice], float] = {}
                fixed = 0.0
                for stage, divided in stages:
                    flying = moment[stage.chunk]
                    fixed += flying * stage.other_bytes
                    for choice in CHOICES:
                        for kind, count in divided.items():
                            key = (rank, kind, choice)
                            held[key] = held.get(key, 0.0) + flying * count * self.case.layers[kind].held_bytes(choice)
                        if stage.keeps_input and divided and not self.case.layers[stage.kinds[0]].held_bytes(choice):
                            held[rank, stage.kinds[0], choice] += flying * self.case.layers[stage.kinds[0]].input_bytes
                found.append((rank, fixed + STAYING_LAYERS * resting, self._row(held)))
                for kind in sorted({kind for _, divided in stages for kind in divided}):
                    passing = {
                        (rank, kind, choice): float(STAYING_LAYERS * self.case.layers[kind].passing_bytes(choice))
                        for choice in CHOICES
                    }
                    found.append((rank, fixed, _plus(self._row(held), self._row(passing))))
        return found

    def _gpu_rooms(self) -> tuple[Room, ...]:
        return tuple(
            Room(
                name=f"GPUs of pipeline rank {rank}",
                capacity=_within(self.case.room_bytes_R[rank]),
                fixed=fixed,
                use_O=use_O,
            )
            for rank, fixed, use_O in self._gpu_needs()
        )

    def _host_rooms(self) -> tuple[Room, ...]:
        found = []
        for ranks in self.nodes:
            values: dict[tuple[int, int, TokenChoice], float] = {}
            for stage, divided in zip(self.case.stages, self.divided_V, strict=True):
                flying = max(moment[stage.chunk] for moment in self.counts_R[stage.rank])
                for kind, count in divided.items():
                    for choice in CHOICES:
                        key = (stage.rank, kind, choice)
                        copied = ranks.count(stage.rank) * flying * count
                        values[key] = values.get(key, 0.0) + copied * self.case.layers[kind].copied_bytes(choice)
            found.append(
                Room(name="host", capacity=_within(self.case.host_room_bytes), fixed=0.0, use_O=self._row(values))
            )
        return tuple(found)


def base_seconds(slot: Slot, layers: Sequence[TokenLayer]) -> float:
    """Return what a slot takes where nothing is copied or computed again."""
    layer = layers[slot.kind]
    return layer.backward_seconds if slot.is_backward else layer.forward_seconds


def sockets_of(ranks: tuple[int, ...], num_sockets: int) -> tuple[tuple[int, ...], ...]:
    """Return the pipeline ranks of the GPUs of each socket of a node, whose GPUs are divided in their order."""
    each = -(-len(ranks) // num_sockets)
    return tuple(ranks[first : first + each] for first in range(0, len(ranks), each))


def _rest(stage: TokenStage, divided: Counter[int]) -> tuple[int, ...]:
    """Return the kinds of the layers of a stage that stay in the buffers."""
    return stage.kinds[divided.total() :]


def _plus(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(one + other for one, other in zip(first, second, strict=True))


def _within(num_bytes: int) -> float:
    """Return a capacity that shares do not exceed, though the checker lets them exceed what it is told a little."""
    return max(0.0, num_bytes * (1.0 - SLACK))
