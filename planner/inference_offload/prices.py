"""The division of one block under shardwright's own prices: a problem of shares.

A block of B sequences in batches of b goes through every layer batch by batch (FlexGen, arXiv 2303.06865, 4.1): its
prompts once, then one pass for each token but the first. Everything is summed over the layers of a pass, with the
context of the middle pass, s + n / 2 of s prompt and n generated tokens. What different parts of the node do overlaps;
each part does one thing at a time. So a pass lasts as long as its busiest part:

    up, down        the link to the host, each way: weights and caches that the GPU uses; new keys and values, and what
                    the CPU works on or has worked on
    peers           the link from other GPUs
    drive           reading and writing
    GPU             kernels, as `planner.inference_offload.work` prices them
    CPU             attention over caches (FlexGen, MoE-Lens, arXiv 2504.09345) and a share of the products (HeteGen,
                    arXiv 2403.01164), each by the slower of its bytes and its flops
    host memory     all bytes that pass it
    GPU, then CPU   attention of a lone batch: the GPU waits for the CPU, where other batches would fill the time

Prompts are computed by the GPU alone, in slices of `SLICE_TOKENS`; their weights are brought once a block.

Routed experts take the tokens of the whole block at once while answers are generated (MoE-Gen, arXiv 2503.09716): an
expert that lies outside is brought once a pass, where the pass reaches it at all.

Memory is held against what each place has, by phase: what lies there, two layers of what is brought and used up, or
two experts of each group, and what is computed with. Embedding and LM head stay on the GPU.
"""

import math
from dataclasses import dataclass

from planner.inference_offload.machine import Machine
from planner.inference_offload.request import OffloadRequest, Option, Place, Thing, Use, Words
from planner.inference_offload.work import PHASES, GpuSeconds, ModelWork
from solvers.shares.problem import Chain, Room, SharesProblem

PROMPTS, ANSWERS = 0, 1

IN_FLIGHT = 2
"""Layers, experts, or batches' caches that are brought: one in use and one on its way."""


class Part:
    """Names of what a pass may be bound by."""

    UP = "link, host to GPU"
    DOWN = "link, GPU to host"
    PEERS = "link from peer GPUs"
    DRIVE = "drive"
    GPU = "GPU"
    CPU = "CPU"
    HOST_MEMORY = "host memory"
    IN_TURN = "GPU, then CPU"


def options_of(work: ModelWork, machine: Machine, words: Words) -> tuple[Option, ...]:
    """Return the options that a target has on a node, thing by thing."""
    found = []
    for thing in Thing:
        groups = len(work.groups) if thing is Thing.EXPERTS else 1
        if thing is Thing.EXPERTS and not words.parts_experts:
            continue
        found += [
            Option(thing=thing, group=group, use=use)
            for group in range(groups)
            for use in words.uses[thing]
            if use.place in machine.room_bytes
        ]
    return tuple(found)


class BlockPrices:
    """Prices the blocks of one model on one node for one target.

    Args:
        work: The model.
        machine: The node.
        request: Lengths.
        words: What the target can express.
    """

    def __init__(self, work: ModelWork, machine: Machine, request: OffloadRequest, words: Words) -> None:
        self.options = options_of(work, machine, words)
        self._work = work
        self._machine = machine
        self._words = words
        self._s, self._n = request.prompt_tokens, request.output_tokens
        self._context = self._s + self._n / 2
        self._prompt_times: dict[int, GpuSeconds] = {}
        self._answer_times: dict[int, GpuSeconds] = {}

    def problem(self, batch_size: int, num_batches: int) -> SharesProblem:
        """Return the division of a block; its objective is the block's time."""
        block = _Block(batch_size=batch_size, num_batches=num_batches)
        things = [(option.thing, option.group) for option in self.options]
        order = sorted(set(things), key=things.index)
        return SharesProblem(
            thing_O=tuple(order.index(thing) for thing in things),
            units_T=tuple(self._units(*thing) for thing in order),
            weight_P=(1.0, float(self._n - 1)),
            chains=(*self._chains(PROMPTS, block), *self._chains(ANSWERS, block)),
            rooms=self._rooms(block),
        )

    def _units(self, thing: Thing, group: int) -> int:
        if thing is Thing.EXPERTS:
            return self._work.groups[group].experts * self._work.expert_layers
        if thing is not Thing.WEIGHTS:
            return 0
        if self._words.one_place:
            return 1
        return self._work.num_layers if self._words.whole_layers else 0

    def held_bytes(self, option: Option, *, batch_size: int, num_batches: int) -> float:
        """Return what a thing takes where it lies, as a whole and at its longest."""
        block = _Block(batch_size=batch_size, num_batches=num_batches)
        return self._use(option, option.use.place, PROMPTS, block)

    # Time

    def _chains(self, phase: int, block: "_Block") -> tuple[Chain, ...]:
        loads = [self._load(option, phase, block) for option in self.options]
        fixed = self._fixed_gpu(phase, block)
        rows: list[tuple[str, float, list[float]]] = [
            (Part.UP, 0.0, [load.up / self._machine.link_bytes_per_second for load in loads]),
            (Part.DOWN, 0.0, [load.down / self._machine.link_bytes_per_second for load in loads]),
            (
                Part.HOST_MEMORY,
                0.0,
                [load.through_host / self._machine.host_bytes_per_second for load in loads],
            ),
            (Part.GPU, fixed, [load.gpu for load in loads]),
            (Part.CPU, 0.0, [load.cpu for load in loads]),
        ]
        if block.num_batches == 1:
            in_turn = [
                load.gpu + (load.cpu if option.thing is Thing.CACHE else 0.0)
                for option, load in zip(self.options, loads, strict=True)
            ]
            rows.append((Part.IN_TURN, fixed, in_turn))
        if Place.PEER in self._machine.room_bytes:
            rows.append((Part.PEERS, 0.0, [load.peer / self._machine.peer_bytes_per_second for load in loads]))
        if Place.DRIVE in self._machine.room_bytes:
            read, written = self._machine.drive_bytes_per_second, self._machine.drive_write_bytes_per_second
            rows.append((Part.DRIVE, 0.0, [load.drive / read + load.written / written for load in loads]))
        return tuple(
            Chain(name=name, phase=phase, fixed_seconds=base, seconds_O=tuple(seconds_O))
            for name, base, seconds_O in rows
        )

    def _fixed_gpu(self, phase: int, block: "_Block") -> float:
        """Return the GPU's time that no choice changes."""
        if phase == PROMPTS:
            return self._prompt_seconds(block)
        times = self._answers(block.batch_size)
        merged = 0.0 if self._words.parts_experts else times.experts
        return block.num_batches * (times.rest + merged)

    def _prompt_seconds(self, block: "_Block") -> float:
        """Return the GPU's time of all prompts, slice by slice."""
        whole, rest = divmod(block.batch_size, self._slice(block))
        seconds = whole * self._prompts(self._slice(block)).total
        return block.num_batches * (seconds + (self._prompts(rest).total if rest else 0.0))

    def _slice(self, block: "_Block") -> int:
        """Return the prompts that are computed at once."""
        most = self._words.slice_tokens
        return block.batch_size if most is None else min(block.batch_size, max(1, most // self._s))

    def _prompts(self, sequences: int) -> GpuSeconds:
        if sequences not in self._prompt_times:
            self._prompt_times[sequences] = self._work.prompts(sequences, self._s)
        return self._prompt_times[sequences]

    def _answers(self, sequences: int) -> GpuSeconds:
        if sequences not in self._answer_times:
            self._answer_times[sequences] = self._work.answers(sequences, self._context)
        return self._answer_times[sequences]

    def _load(self, option: Option, phase: int, block: "_Block") -> "_Load":
        match option.thing:
            case Thing.WEIGHTS:
                return self._load_of_weights(option.use, phase, block)
            case Thing.EXPERTS:
                return self._load_of_experts(option, phase, block)
            case Thing.CACHE:
                return self._load_of_cache(option.use, phase, block)
            case Thing.ACTIVATIONS:
                return self._load_of_activations(option.use, phase, block)

    def _weight_bytes(self) -> float:
        merged = 0.0 if self._words.parts_experts else self._work.routed_bytes
        return self._work.dense_bytes + merged

    def _load_of_weights(self, use: Use, phase: int, block: "_Block") -> "_Load":
        num_bytes = self._weight_bytes()
        if phase == PROMPTS:
            slices = math.ceil(block.batch_size / self._slice(block)) if self._words.streams_per_slice else 1
            return _brought(use, num_bytes * slices)
        if not use.on_cpu:
            return _brought(use, num_bytes, gpu=block.num_batches * self._answers(block.batch_size).products)
        work, machine = self._work, self._machine
        flops = work.product_flops * block.batch_size / machine.cpu_flops_per_second
        read = num_bytes / machine.cpu_bytes_per_second
        return _Load(
            up=work.product_outputs_bytes * block.sequences,
            down=work.product_inputs_bytes * block.sequences,
            cpu=block.num_batches * max(flops, read),
            host=num_bytes * block.num_batches,
        )

    def _load_of_experts(self, option: Option, phase: int, block: "_Block") -> "_Load":
        work, machine = self._work, self._machine
        assert work.expert is not None, "only a mixture of experts has groups"
        group = work.groups[option.group]
        tokens = float(block.sequences * (self._s if phase == PROMPTS else 1))
        num_bytes = group.experts * work.expert_layers * work.expert_bytes * group.reached(tokens)
        if phase == PROMPTS:
            return _brought(option.use, num_bytes)
        if not option.use.on_cpu:
            reached = sum(other.experts * other.reached(tokens) for other in work.groups)
            part = group.experts * group.reached(tokens) / reached
            return _brought(option.use, num_bytes, gpu=part * self._answers(block.sequences).experts)
        rows = tokens * work.expert.topk * group.share * work.expert_layers
        flops = rows * work.expert_flops / machine.cpu_flops_per_second
        moved = rows * work.expert_token_bytes
        read = num_bytes / machine.cpu_bytes_per_second
        return _Load(up=moved, down=moved, cpu=max(flops, read), host=num_bytes)

    def _load_of_cache(self, use: Use, phase: int, block: "_Block") -> "_Load":
        work, machine = self._work, self._machine
        if phase == PROMPTS:
            return _sent(use, work.cache_bytes(self._s) * block.sequences)
        new = work.cache_bytes(1) * block.sequences
        seen = work.read_cache_bytes(self._context) * block.sequences
        sent = _sent(use, new)
        if not use.on_cpu:
            gpu = block.num_batches * self._answers(block.batch_size).attention
            return sent.plus(_brought(use, seen, gpu=gpu))
        flops = work.attention_flops(self._context) * block.sequences / machine.cpu_flops_per_second
        return sent.plus(
            _Load(
                up=work.attended_bytes * block.sequences,
                down=work.query_bytes * block.sequences,
                cpu=max(flops, seen / machine.cpu_bytes_per_second),
                host=seen,
                drive=seen if use.place is Place.DRIVE else 0.0,
            )
        )

    def _load_of_activations(self, use: Use, phase: int, block: "_Block") -> "_Load":
        if use.place is Place.GPU:
            return _Load()
        tokens = self._s if phase == PROMPTS else 1
        num_bytes = float(self._work.num_layers * self._work.hidden_bytes * tokens * block.sequences)
        return _Load(up=num_bytes, down=num_bytes)

    # Memory

    def _rooms(self, block: "_Block") -> tuple[Room, ...]:
        rooms = []
        for phase, name in enumerate(PHASES):
            for place, capacity in self._machine.room_bytes.items():
                if place is not Place.GPU and phase == PROMPTS:
                    continue  # other places hold no less while answers are generated, but for activations
                rooms.append(
                    Room(
                        name=f"{place}, {name}" if place is Place.GPU else str(place),
                        capacity=float(capacity),
                        fixed=self._fixed_bytes(phase, block) if place is Place.GPU else 0.0,
                        use_O=tuple(self._use(option, place, phase, block) for option in self.options),
                    )
                )
        return tuple(rooms)

    def _fixed_bytes(self, phase: int, block: "_Block") -> float:
        if phase == PROMPTS:
            sequences = self._slice(block)
            return self._work.end_bytes + self._work.working_bytes(sequences * self._s, sequences)
        together = block.sequences if self._work.groups and self._words.parts_experts else block.batch_size
        return self._work.end_bytes + self._work.working_bytes(together, block.batch_size)

    def _use(self, option: Option, place: Place, phase: int, block: "_Block") -> float:
        """Return what an option takes of a place."""
        lies = option.use.place is place
        match option.thing:
            case Thing.WEIGHTS | Thing.EXPERTS:
                whole, piece = self._held(option)
                if lies:
                    return whole
                passes = place is Place.GPU or (place is Place.HOST and option.use.place is Place.DRIVE)
                return IN_FLIGHT * piece if passes else 0.0
            case Thing.CACHE:
                tokens = self._s + self._n
                if lies:
                    return self._work.cache_bytes(tokens) * block.sequences
                passes = place is Place.GPU or (place is Place.HOST and option.use.place is Place.DRIVE)
                return IN_FLIGHT * self._work.layer_cache_bytes(tokens) * block.batch_size if passes else 0.0
            case Thing.ACTIVATIONS:
                # Other places have one room for both phases, so that the longer one counts there.
                tokens = self._s if phase == PROMPTS or place is not Place.GPU else 1
                each = float(tokens * self._work.hidden_bytes)
                if lies:
                    return each * block.sequences
                return IN_FLIGHT * each * block.batch_size if place is Place.GPU else 0.0

    def _held(self, option: Option) -> tuple[float, float]:
        """Return the bytes of a thing, and of what is brought of it at once: a layer, or one expert."""
        work = self._work
        if option.thing is Thing.EXPERTS:
            return work.groups[option.group].experts * work.expert_layers * work.expert_bytes, work.expert_bytes
        return self._weight_bytes(), work.layer_bytes(with_experts=not self._words.parts_experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    batch_size: int
    num_batches: int

    @property
    def sequences(self) -> int:
        return self.batch_size * self.num_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """What an option asks of the node in one pass: bytes of links, drive and host memory, seconds of GPU and CPU.

    `drive` is read there and `written` written. `host` is what the CPU itself reads; what links and drives move passes
    the host's memory as well.
    """

    up: float = 0.0
    down: float = 0.0
    peer: float = 0.0
    drive: float = 0.0
    written: float = 0.0
    host: float = 0.0
    gpu: float = 0.0
    cpu: float = 0.0

    @property
    def through_host(self) -> float:
        return self.up + self.down + self.drive + self.written + self.host

    def plus(self, other: "_Load") -> "_Load":
        return _Load(
            up=self.up + other.up,
            down=self.down + other.down,
            peer=self.peer + other.peer,
            drive=self.drive + other.drive,
            written=self.written + other.written,
            host=self.host + other.host,
            gpu=self.gpu + other.gpu,
            cpu=self.cpu + other.cpu,
        )


def _brought(use: Use, num_bytes: float, *, gpu: float = 0.0) -> _Load:
    """Return what it takes that something which lies elsewhere is used by the GPU."""
    match use.place:
        case Place.GPU:
            return _Load(gpu=gpu)
        case Place.PEER:
            return _Load(peer=num_bytes, gpu=gpu)
        case Place.HOST:
            return _Load(up=num_bytes, gpu=gpu)
        case Place.DRIVE:
            return _Load(up=num_bytes, drive=num_bytes, gpu=gpu)


def _sent(use: Use, num_bytes: float) -> _Load:
    """Return what it takes that the GPU puts something elsewhere."""
    match use.place:
        case Place.GPU:
            return _Load()
        case Place.PEER:
            return _Load(peer=num_bytes)
        case Place.HOST:
            return _Load(down=num_bytes)
        case Place.DRIVE:
            return _Load(down=num_bytes, written=num_bytes)
