"""What files say about a cluster, one fact a field, each with its place; options of the user come before files.

Two files that say unlike things of one field contradict each other: neither is taken.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from planner.errors import InputError, Location

MOST_NODES = 131072


class Field(StrEnum):
    """What can be said of a cluster; the value is the option that says it."""

    GPU = "--gpu"
    GPUS_PER_NODE = "--gpus-per-node"
    NODES = "--nodes"
    NVLINK_DOMAIN = "--nvlink-domain"
    NICS = "--nics"
    NIC_BANDWIDTH = "--nic-bandwidth"
    HOST_RAM = "--host-ram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is said.

    Args:
        value: A whole number, or a name or quantity as a cluster file has it.
        place: Where.
        told: By what, for the cluster file's `sources`.
    """

    value: int | str
    place: Location
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of the network, from the inside out.

    Args:
        name: What it is called.
        nodes: Nodes that it joins; None for all.
        told: By what.
    """

    name: str
    nodes: int | None
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one file says.

    Args:
        facts: By field.
        levels: Levels of the network; empty where it says nothing of them.
        place: Where the levels stand.
    """

    facts: Mapping[Field, Fact]
    levels: tuple[Level, ...] = ()
    place: Location | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Nodes behind one switch, or in one block.

    Args:
        name: Its name.
        nodes: Names of the nodes.
        place: Where it is described.
    """

    name: str
    nodes: frozenset[str]
    place: Location


def merged(said: Sequence[Said]) -> Said:
    """Return what several files say together.

    Raises:
        InputError: Two contradict each other.
    """
    facts: dict[Field, Fact] = {}
    levels: Said | None = None
    for part in said:
        for field, fact in part.facts.items():
            earlier = facts.setdefault(field, fact)
            if earlier.value != fact.value:
                raise InputError(
                    f"{_noun(field)} is {fact.value} here, and {earlier.value} by {earlier.place}.",
                    location=fact.place,
                    hint=f"Say which holds with {field.value}.",
                )
        if part.levels:
            if levels is not None and levels.levels != part.levels:
                raise InputError(
                    f"The levels of the network are unlike those of {levels.place}.",
                    location=part.place,
                    hint="Give one file that describes the network.",
                )
            levels = part
    return Said(facts=facts, levels=levels.levels if levels else (), place=levels.place if levels else None)


def _noun(field: Field) -> str:
    return field.value.removeprefix("--").replace("-", " ")


def network_levels(named: Sequence[tuple[str, Sequence[Group]]]) -> tuple[Level, ...]:
    """Return the levels of a network from its groups of nodes, level by level from the inside out.

    A level has one size: all its groups join equally many nodes, but for one that may be smaller. A level whose groups
    join one node each, or the same as the level inside it, is none.

    Raises:
        InputError: Groups are of several sizes, overlap, or nothing joins all nodes.
    """
    everything = frozenset().union(*(group.nodes for _, groups in named for group in groups))
    levels: list[Level] = []
    inner = 1
    outermost: tuple[str, int, Location | None] = ("", 0, None)
    for name, listed in named:
        # Several switches may stand above the same nodes: for bandwidth they are one.
        groups = tuple({group.nodes: group for group in reversed(listed)}.values())[::-1]
        _check_apart(groups)
        outermost = (name, len(groups), groups[-1].place)
        sizes = sorted((len(group.nodes) for group in groups), reverse=True)
        size = sizes[0]
        told = f"{groups[0].place}: {len(groups)} of {name}"
        if size == len(everything):
            levels.append(Level(name=name, nodes=None, told=told))
            break
        odd = [group for group in groups if len(group.nodes) != size]
        if len(odd) > 1:
            raise InputError(
                f"{odd[0].name} joins {len(odd[0].nodes)} nodes, another {name} {size}: a level has one size.",
                location=odd[0].place,
                hint="Leave out nodes until all but one join equally many, or describe the cluster by hand.",
            )
        if size % inner:
            raise InputError(
                f"A {name} joins {size} nodes, no multiple of the {inner} inside it.",
                location=groups[0].place,
                hint="Leave out nodes until they nest, or describe the cluster by hand.",
            )
        if size > inner:
            levels.append(Level(name=name, nodes=size, told=told))
            inner = size
    else:
        name, count, place = outermost
        raise InputError(
            f"Nothing joins all {len(everything)} nodes: there are {count} of {name} with no level above.",
            location=place,
            hint="Give nodes that reach one another, or add the level that joins them to the file.",
        )
    return tuple(levels)


def _check_apart(groups: Iterable[Group]) -> None:
    """Check that no node is in two groups of one level."""
    owner: dict[str, Group] = {}
    for group in groups:
        for node in sorted(group.nodes):
            earlier = owner.setdefault(node, group)
            if earlier is not group:
                raise InputError(
                    f"{node} is in {group.name} and in {earlier.name}.",
                    location=group.place,
                    hint="Each node belongs to one of a level; correct the file.",
                )
