"""The cluster file made of what files and options say; what neither says is asked for, never assumed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from planner.documents.document import parse_document
from planner.errors import InputError
from planner.imports.facts import MOST_NODES, Fact, Field, Level, Said
from planner.inputs.load import read_cluster

HEAD = "# Made by `shardwright cluster import`; `sources` says where each figure comes from.\n"

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9./-]*")

_ASKED: Mapping[Field, str] = {
    Field.GPU: "which GPU its nodes have: a name that `shardwright clusters` lists, as in --gpu h100-sxm-80gb",
    Field.GPUS_PER_NODE: "how many GPUs a node has, as in --gpus-per-node 8",
    Field.NODES: "how many nodes it has, as in --nodes 16",
    Field.HOST_RAM: "how much memory a node has, as in --host-ram 2TiB",
    Field.NICS: "how many network cards of a node carry the traffic between GPUs, as in --nics 8",
    Field.NIC_BANDWIDTH: "how fast one network card is, as in --nic-bandwidth 400Gb/s",
}
"""What is asked for where nothing says it."""


def cluster_text(said: Said, *, name: str, oversubscription: Mapping[str, float]) -> str:
    """Return the cluster file.

    Args:
        said: What files and options say.
        name: What the user calls the cluster; empty for nothing.
        oversubscription: By level, how many times less than its cards' share a GPU has across it.

    Raises:
        InputError: Something is missing, or the parts make no cluster.
    """
    needed = [Field.GPU, Field.GPUS_PER_NODE, Field.NODES, Field.HOST_RAM]
    nodes = said.facts.get(Field.NODES)
    if nodes is not None and nodes.value != 1:
        needed += [Field.NICS, Field.NIC_BANDWIDTH]
    missing = [_ASKED[field] for field in needed if field not in said.facts]
    levels = _levels_outside(said)
    missing += [
        f"how many times less a GPU has across {level.name} than inside it, as in"
        f" --oversubscription {level.name}=1 where nothing is lost"
        for level in levels[1:]
        if level.name not in oversubscription
    ]
    unknown = sorted(set(oversubscription) - {level.name for level in levels})
    if unknown:
        known = ", ".join(level.name for level in levels) or "none"
        raise InputError(f"There is no level {unknown[0]} to oversubscribe.", hint=f"The levels are: {known}.")
    if missing:
        raise InputError("No file says " + ";\n  nor ".join(missing) + ".", hint="Say it with the option.")
    text = _text(said, levels, name=name, oversubscription=oversubscription)
    _check(text)
    return text


def _levels_outside(said: Said) -> tuple[Level, ...]:
    """Return the levels that lie outside an NVLink domain; those that it spans itself are none."""
    facts = said.facts
    counts = {field: int(facts[field].value) for field in _COUNTS if field in facts}
    reached = 1.0
    if Field.NVLINK_DOMAIN in counts and Field.GPUS_PER_NODE in counts:
        reached = max(1.0, counts[Field.NVLINK_DOMAIN] / counts[Field.GPUS_PER_NODE])
    nodes = counts.get(Field.NODES)
    outside: list[Level] = []
    for level in said.levels:
        if nodes is not None and reached >= nodes:
            break
        if level.nodes is None or level.nodes > reached:
            outside.append(level)
            reached = level.nodes or MOST_NODES
    return tuple(outside)


_COUNTS = (Field.NVLINK_DOMAIN, Field.GPUS_PER_NODE, Field.NODES)


def _check(text: str) -> None:
    """Check that the file is a cluster.

    Raises:
        InputError: It is not; the message says which field.
    """
    try:
        read_cluster(parse_document(text, file="the imported cluster"))
    except InputError as error:
        place = None if error.location is None else replace(error.location, line=None, column=None)
        raise InputError(
            error.message, location=place, hint=f"{error.hint}\nAn option says it otherwise; see --help.".lstrip()
        ) from None


def _text(said: Said, levels: Sequence[Level], *, name: str, oversubscription: Mapping[str, float]) -> str:
    facts = said.facts
    lines = [f"name: {_scalar(name)}"] if name else []
    sources: dict[str, str] = {}

    def write(key: str, *fields: Field, value: str = "") -> None:
        lines.append(f"{key}: {value or _scalar(facts[fields[0]].value)}")
        sources[key] = "; ".join(dict.fromkeys(_source(facts[field]) for field in fields))

    write("gpu", Field.GPU)
    write("gpus_per_node", Field.GPUS_PER_NODE)
    write("nodes", Field.NODES)
    if Field.NVLINK_DOMAIN in facts:
        write("nvlink_domain", Field.NVLINK_DOMAIN)
    if Field.NICS in facts and Field.NIC_BANDWIDTH in facts:
        cards = f"{{count: {facts[Field.NICS].value}, bandwidth: {_scalar(facts[Field.NIC_BANDWIDTH].value)}}}"
        write("nics", Field.NICS, Field.NIC_BANDWIDTH, value=cards)
    if levels:
        lines.append("links:")
    for level in levels:
        parts = [f"name: {level.name}"]
        parts += [] if level.nodes is None else [f"nodes: {level.nodes}"]
        parts += [f"oversubscription: {oversubscription[level.name]:g}"] if level.name in oversubscription else []
        lines.append(f"  - {{{', '.join(parts)}, source: {_scalar(level.told)}}}")
    write("host_ram", Field.HOST_RAM)
    lines.append("sources:")
    lines += [f"  {key}: {_scalar(source)}" for key, source in sources.items()]
    return HEAD + "\n".join(lines) + "\n"


def _source(fact: Fact) -> str:
    return fact.told if str(fact.place).startswith("--") else f"{fact.told} ({fact.place})"


def _scalar(value: int | str) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
