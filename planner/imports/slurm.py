"""Reads Slurm's files: topology.conf, topology.yaml, and the nodes of slurm.conf.

topology.conf describes a tree (`SwitchName=leaf1 Nodes=node[01-16]`, `SwitchName=spine Switches=leaf[1-4]`) or blocks
(`BlockName=b1 Nodes=node[01-18]`, `BlockSizes=18,72`). topology.yaml holds several topologies, each a tree, blocks or
flat; the cluster's default one counts, else the first. Names of parameters are in any case (topology.conf(5),
topology.yaml(5)). The levels of a tree are called leaf, spine, core, level4 and so on; of blocks the larger ones of
`BlockSizes` are levels of their own.

slurm.conf's NodeName lines give nodes, their GPUs (`Gres=gpu:h100:8`) and memory (`RealMemory`, in MiB). GPUs may also
stand in gres.conf alone; then they are asked for.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.documents.document import Document
from planner.documents.nodes import Node
from planner.errors import InputError, Location
from planner.imports.facts import Fact, Field, Group, Level, Said, network_levels
from planner.imports.hostlist import hosts

TREE_NAMES = ("leaf", "spine", "core")
_PAIR = re.compile(r"(?P<key>[A-Za-z]+)=(?P<value>\"[^\"]*\"|\S+)")
_FIRST = re.compile(r"^\s*(SwitchName|BlockName|BlockSizes|NodeName)\s*=", re.IGNORECASE | re.MULTILINE)
_GRES = re.compile(r"gpu(?::(?P<type>[A-Za-z][\w.-]*))?:(?P<count>\d{1,4})(?:\(.*\))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Switch:
    """One switch of a tree."""

    name: str
    nodes: str
    switches: str
    place: Location


def is_slurm_conf(text: str) -> bool:
    """Return whether a text has lines of Slurm's about switches, blocks or nodes."""
    return _FIRST.search(text) is not None


def is_slurm_yaml(document: Document) -> bool:
    """Return whether a document is a topology.yaml."""
    entries = document.root.content
    return isinstance(entries, list) and bool(entries) and all(entry.child("topology") for entry in entries)


def read_slurm_conf(text: str, *, file: str) -> Said:
    """Return what a topology.conf or slurm.conf says.

    Raises:
        InputError: It contradicts itself.
    """
    lines = list(_lines(text, file))
    switches = [
        _Switch(name=pairs["switchname"], nodes=pairs.get("nodes", ""), switches=pairs.get("switches", ""), place=place)
        for pairs, place in lines
        if "switchname" in pairs
    ]
    blocks = [
        Group(name=pairs["blockname"], nodes=frozenset(hosts(pairs["nodes"], place)), place=place)
        for pairs, place in lines
        if "blockname" in pairs and "nodes" in pairs
    ]
    sizes = [(pairs["blocksizes"].split(","), place) for pairs, place in lines if "blocksizes" in pairs]
    if switches and blocks:
        raise InputError(
            "Switches and blocks stand in one file.", location=blocks[0].place, hint="Give the topology that is in use."
        )
    if switches:
        return _tree(switches)
    if blocks:
        return _blocks(blocks, sizes[0] if sizes else ([], blocks[0].place))
    return _nodes([(pairs, place) for pairs, place in lines if "nodename" in pairs])


def _lines(text: str, file: str) -> Iterator[tuple[Mapping[str, str], Location]]:
    """Yield the parameters of each line, their names in lower case; a line that ends in a backslash goes on."""
    begun: str = ""
    start = 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#", 1)[0].rstrip()
        start = start or number
        if line.endswith("\\"):
            begun += line[:-1] + " "
            continue
        pairs = {match["key"].lower(): match["value"].strip('"') for match in _PAIR.finditer(begun + line)}
        if pairs:
            yield pairs, Location(file=file, line=start)
        begun, start = "", 0


def _tree(switches: Sequence[_Switch]) -> Said:
    """Return what a tree of switches says."""
    named: dict[str, _Switch] = {}
    for switch in switches:
        if named.setdefault(switch.name, switch) is not switch:
            raise InputError(
                f"{switch.name} is described twice.", location=switch.place, hint="Give each switch one line."
            )
        if bool(switch.nodes) == bool(switch.switches):
            raise InputError(
                f"{switch.name} needs nodes or switches below it, one of both.",
                location=switch.place,
                hint="Write Nodes=... of a leaf, Switches=... of any other.",
            )
    below = {switch.name: hosts(switch.switches, switch.place) if switch.switches else () for switch in switches}
    for switch in switches:
        unknown = next((name for name in below[switch.name] if name not in named), None)
        if unknown is not None:
            raise InputError(
                f"{switch.name} stands above {unknown}, which is not described.",
                location=switch.place,
                hint="Add its line, or take it out.",
            )
    heights: dict[str, int] = {}
    members: dict[str, frozenset[str]] = {}
    pending = list(switches)
    while pending:
        ready = [switch for switch in pending if all(name in heights for name in below[switch.name])]
        if not ready:
            raise InputError(
                f"{pending[0].name} stands above itself.", location=pending[0].place, hint="Correct Switches=."
            )
        for switch in ready:
            inside = below[switch.name]
            heights[switch.name] = 1 + max((heights[name] for name in inside), default=-1)
            own = frozenset(hosts(switch.nodes, switch.place)) if switch.nodes else frozenset()
            members[switch.name] = own.union(*(members[name] for name in inside))
        pending = [switch for switch in pending if switch.name not in heights]
    named_levels = []
    for height in range(max(heights.values()) + 1):
        groups = [
            Group(name=switch.name, nodes=members[switch.name], place=switch.place)
            for switch in switches
            if heights[switch.name] == height
        ]
        name = TREE_NAMES[height] if height < len(TREE_NAMES) else f"level{height + 1}"
        named_levels.append((name, groups))
    return _said(network_levels(named_levels), frozenset().union(*members.values()), switches[0].place)


def _blocks(blocks: Sequence[Group], sizes: tuple[Sequence[str], Location]) -> Said:
    """Return what blocks say: each joins its nodes, and all of them hang together."""
    texts, place = sizes
    everything = frozenset().union(*(block.nodes for block in blocks))
    largest = max(len(block.nodes) for block in blocks)
    whole = Group(name="the network", nodes=everything, place=blocks[0].place)
    (*levels, last) = network_levels([("block", blocks), ("network", [whole])])
    for text in texts:
        if not text.strip().isascii() or not text.strip().isdigit() or not 0 < len(text.strip()) < 9:
            raise InputError(f"BlockSizes holds {text[:40]!r}.", location=place, hint="Write whole numbers of nodes.")
        size = int(text)
        if largest < size < len(everything):
            told = f"{place}: BlockSizes"
            levels.append(Level(name=f"blocks-of-{size}", nodes=size, told=told))
    return _said((*levels, last), everything, blocks[0].place)


def _said(levels: tuple[Level, ...], nodes: frozenset[str], place: Location) -> Said:
    facts = {Field.NODES: Fact(value=len(nodes), place=place, told="Slurm's topology")}
    return Said(facts=facts, levels=levels if len(levels) > 1 else (), place=place)


def _nodes(lines: Sequence[tuple[Mapping[str, str], Location]]) -> Said:
    """Return what the nodes of slurm.conf say: those with GPUs, or all where none is said to have any."""
    kept = [(pairs, place) for pairs, place in lines if pairs["nodename"].upper() != "DEFAULT"]
    default = {
        key: value for pairs, _ in lines if pairs["nodename"].upper() == "DEFAULT" for key, value in pairs.items()
    }
    rows = [({**default, **pairs}, place) for pairs, place in kept]
    with_gpus = [(pairs, place) for pairs, place in rows if _GRES.search(pairs.get("gres", ""))] or rows
    if not with_gpus:
        raise InputError("No line names a node.", hint="Give the slurm.conf with the NodeName lines.")
    names: set[str] = set()
    facts: dict[Field, Fact] = {}
    for pairs, place in with_gpus:
        names |= set(hosts(pairs["nodename"], place))
        gres = _GRES.search(pairs.get("gres", ""))
        if gres is not None:
            count = Fact(value=int(gres["count"]), place=place, told="Gres in slurm.conf")
            earlier = facts.setdefault(Field.GPUS_PER_NODE, count)
            if earlier.value != count.value:
                raise InputError(
                    f"These nodes have {count.value} GPUs, those of {earlier.place} {earlier.value}.",
                    location=place,
                    hint="Give a file with the nodes of one kind.",
                )
    memory = [_memory(pairs["realmemory"], place) for pairs, place in with_gpus if "realmemory" in pairs]
    if len(memory) == len(with_gpus):
        least, place = min(memory, key=lambda entry: entry[0])
        told = "RealMemory in slurm.conf, of the node that has least"
        facts[Field.HOST_RAM] = Fact(value=f"{least}MiB", place=place, told=told)
    facts[Field.NODES] = Fact(value=len(names), place=with_gpus[0][1], told="NodeName in slurm.conf")
    return Said(facts=facts)


def _memory(text: str, place: Location) -> tuple[int, Location]:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:13]) < 10**12:
        raise InputError(f"RealMemory is {text[:40]!r}.", location=place, hint="Write a whole number of MiB.")
    return int(text), place


def read_slurm_yaml(document: Document) -> Said:
    """Return what a topology.yaml says: its default topology, else its first.

    Raises:
        InputError: It is none, or says nothing of nodes.
    """
    entries = document.root.content
    assert isinstance(entries, list), "only such a document is a topology.yaml"
    chosen = next((entry for entry in entries if _content(entry, "cluster_default") is True), entries[0])
    switches, blocks = _at(chosen, "tree", "switches"), _at(chosen, "block", "blocks")
    if switches is not None:
        return _tree(
            [
                _Switch(
                    name=_text(entry, "switch", needed=True),
                    nodes=_text(entry, "nodes"),
                    switches=_text(entry, "children"),
                    place=entry.location,
                )
                for entry in _list(switches)
            ]
        )
    if blocks is not None:
        groups = [
            Group(
                name=_text(entry, "block", needed=True),
                nodes=frozenset(hosts(_text(entry, "nodes", needed=True), entry.location)),
                place=entry.location,
            )
            for entry in _list(blocks)
        ]
        sizes = _at(chosen, "block", "block_sizes")
        texts = [str(entry.content) for entry in _list(sizes)] if sizes is not None else []
        return _blocks(groups, (texts, blocks.location if sizes is None else sizes.location))
    raise InputError(
        "The topology names no switches and no blocks: a flat one says nothing of nodes.",
        location=chosen.location,
        hint="Leave the file out, and say --nodes.",
    )


def _content(entry: Node, key: str) -> object:
    child = entry.child(key)
    return None if child is None else child.content


def _at(entry: Node, *path: str) -> Node | None:
    found: Node | None = entry
    for key in path:
        found = None if found is None else found.child(key)
    return found


def _list(node: Node) -> list[Node]:
    if not isinstance(node.content, list) or not node.content:
        raise InputError("This is no list, or an empty one.", location=node.location, hint="See topology.yaml(5).")
    return node.content


def _text(entry: Node, key: str, *, needed: bool = False) -> str:
    child = entry.child(key)
    if child is None and not needed:
        return ""
    if child is None or not isinstance(child.content, str | int) or isinstance(child.content, bool):
        raise InputError(
            f"There is no {key} here, or it is no text.", location=entry.location, hint="See topology.yaml(5)."
        )
    return str(child.content)
