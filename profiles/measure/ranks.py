"""The processes of a job: alone, or under torchrun or Slurm, which say by variables who is who.

Kernels and decisions are apart: every decision (which point is next, what it took) goes through a group of its own over
gloo, so that no figure of the network that is measured holds it.
"""

import datetime
import os
from typing import TypeVar

import torch
import torch.distributed as dist

from profiles.measure.timing import Machine

T = TypeVar("T")

MOST_GROUPS = 8
"""Shapes of groups kept open at once: each takes memory of every GPU."""

TIMEOUT = datetime.timedelta(minutes=10)


class Ranks:
    """The processes of a job.

    Args:
        machine: What this process runs kernels on.
        rank: Its number, from 0.
        world_size: How many there are.
        per_node: How many of them a node has.
    """

    def __init__(self, machine: Machine, *, rank: int, world_size: int, per_node: int) -> None:
        self.machine = machine
        self.rank = rank
        self.world_size = world_size
        self.per_node = per_node
        self.backend = "nccl" if machine.is_cuda else "gloo"
        self._control: dist.ProcessGroup | None = None
        self._groups: dict[tuple[int, int], dist.ProcessGroup] = {}
        if world_size > 1:
            dist.init_process_group(self.backend, rank=rank, world_size=world_size, timeout=TIMEOUT)
            self._control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        # On which socket of its node each rank's GPU hangs; None where that is not known.
        self.sockets: tuple[int | None, ...] = tuple(self.gathered(machine.socket))

    @property
    def leads(self) -> bool:
        """Return whether this process decides and writes."""
        return self.rank == 0

    def shared(self, value: T) -> T:
        """Return the first rank's value on every rank."""
        if self._control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """Return the values of all ranks, on every rank."""
        if self._control is None:
            return [value]
        boxes: list[T] = [value] * self.world_size
        dist.all_gather_object(boxes, value, group=self._control)
        return boxes

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._control is not None:
            dist.barrier(group=self._control)

    def group(self, size: int, stride: int) -> tuple[dist.ProcessGroup, tuple[int, ...]]:
        """Return this rank's group of so many members so far apart, and its members; all ranks ask for it together."""
        members = group_members(self.rank, size=size, stride=stride)
        shape = (size, stride)
        if shape not in self._groups:
            if len(self._groups) >= MOST_GROUPS:
                oldest = next(iter(self._groups))
                dist.destroy_process_group(self._groups.pop(oldest))
            self._groups[shape] = self.new_group(size, stride)
        return self._groups[shape], members

    def new_group(self, size: int, stride: int) -> dist.ProcessGroup:
        """Return this rank's group out of all groups of a shape, newly made on every rank."""
        own: dist.ProcessGroup | None = None
        for first in range(self.world_size):
            members = group_members(first, size=size, stride=stride)
            if members[0] != first or members[-1] >= self.world_size:
                continue
            group = dist.new_group(list(members), backend=self.backend, timeout=TIMEOUT)
            if self.rank in members:
                own = group
        assert own is not None, f"rank {self.rank} is in no group of {size} ranks {stride} apart"
        return own

    def close(self) -> None:
        """End the job's communication; all ranks meet once more."""
        if self.world_size > 1:
            self.barrier()
            dist.destroy_process_group()


def group_members(rank: int, *, size: int, stride: int) -> tuple[int, ...]:
    """Return the group of so many ranks so far apart that a rank belongs to."""
    span = size * stride
    first = rank // span * span + rank % stride
    return tuple(first + place * stride for place in range(size))


def gpu_index(local_rank: int, *, visible: int) -> int:
    """Return which of the GPUs that a process sees is its own.

    Slurm may show each process the one that is its own alone (`--gpus-per-task`, `--gpu-bind`).

    Args:
        local_rank: Its number on its node.
        visible: GPUs that it sees.

    Raises:
        ValueError: It sees several, and fewer than its number.
    """
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise ValueError(
            f"process {local_rank} of its node sees {visible} GPUs: start no more processes of a node than it shows"
        )
    return local_rank


def started(kind: str) -> Ranks:
    """Return the job that this process belongs to, by the variables of torchrun or, without these, of Slurm.

    Raises:
        ValueError: There is no GPU for it.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    slurm = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
    found = [os.environ.get(name) for name in names]
    if found[0] is None and "MASTER_ADDR" in os.environ:
        found = [os.environ.get(name) for name in slurm]
    rank, world_size, local_rank, per_node = (int(text) if text else None for text in found)
    world_size = world_size or 1
    index = gpu_index(local_rank or 0, visible=torch.cuda.device_count()) if kind == "cuda" else 0
    machine = Machine(kind, index)
    if not machine.is_cuda and world_size > 1:
        # Processes of one node share its CPUs; each would otherwise start a thread for every one of them.
        torch.set_num_threads(max(1, torch.get_num_threads() // (per_node or world_size)))
    return Ranks(machine, rank=rank or 0, world_size=world_size, per_node=per_node or world_size)
