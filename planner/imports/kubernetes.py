"""Reads `kubectl get nodes -o json` or `-o yaml`: GPUs, memory, and the network's levels by the labels of the nodes.

Labels of NVIDIA's GPU feature discovery (`nvidia.com/gpu.product`, `gpu.count`, `gpu.clique`) and AMD's
(`amd.com/gpu.product-name`); the capacity of the node where a count is missing. Levels of the network, from the inside
out: `network.topology.nvidia.com/` leaf, spine, core (topograph), AWS's `topology.k8s.aws/network-node-layer-3`, 2, 1,
and `topology.kubernetes.io/zone` where there are several. Nodes without GPUs are left out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.documents.document import Document
from planner.documents.nodes import Node
from planner.errors import InputError, Location
from planner.imports.facts import Fact, Field, Group, Level, Said, network_levels
from profiles.device_names import catalogue_name
from profiles.package_data import Section, entry_names

TOLD = "labels of Kubernetes nodes"
PRODUCTS = ("nvidia.com/gpu.product", "amd.com/gpu.product-name", "beta.amd.com/gpu.product-name")
COUNT = "nvidia.com/gpu.count"
RESOURCES = ("nvidia.com/gpu", "amd.com/gpu")
CLIQUE = "nvidia.com/gpu.clique"
LEVELS = (
    ("leaf", "network.topology.nvidia.com/leaf"),
    ("spine", "network.topology.nvidia.com/spine"),
    ("core", "network.topology.nvidia.com/core"),
    ("layer3", "topology.k8s.aws/network-node-layer-3"),
    ("layer2", "topology.k8s.aws/network-node-layer-2"),
    ("layer1", "topology.k8s.aws/network-node-layer-1"),
    ("zone", "topology.kubernetes.io/zone"),
)
_SUFFIXES = {
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _GpuNode:
    """One node with GPUs."""

    name: str
    labels: Mapping[str, str]
    gpus: int
    memory_bytes: int | None
    place: Location


def is_kubernetes(document: Document) -> bool:
    """Return whether a document is a list of nodes, or one."""
    kind = document.root.child("kind")
    return kind is not None and kind.content in ("List", "NodeList", "Node")


def read_kubernetes(document: Document) -> Said:
    """Return what nodes say of a cluster.

    Raises:
        InputError: No node has GPUs, or they are not alike.
    """
    root = document.root
    items = root.child("items")
    listed = items.content if items is not None else [root]
    if not isinstance(listed, list):
        raise InputError("items is no list.", location=root.location, hint="Give what kubectl printed.")
    found = [node for item in listed if (node := _gpu_node(item)) is not None]
    if not found:
        raise InputError(
            "No node has GPUs: there is neither a label nor a capacity of them.",
            location=root.location,
            hint="Give the output of kubectl get nodes -o json.",
        )
    names = Counter(node.name for node in found)
    twice = next((node for node in found if names[node.name] > 1), None)
    if twice is not None:
        raise InputError(f"{twice.name} is listed twice.", location=twice.place, hint="List each node once.")
    return _said(found)


def _said(nodes: Sequence[_GpuNode]) -> Said:
    first = nodes[0]
    for node in nodes:
        for what, here, there in (("GPUs", node.gpus, first.gpus), ("product", _product(node), _product(first))):
            if here != there:
                raise InputError(
                    f"{node.name} has {what} {here or 'unnamed'}, {first.name} {there or 'unnamed'}.",
                    location=node.place,
                    hint="List nodes of one kind: kubectl get nodes -l nvidia.com/gpu.product=...",
                )
    facts = {
        Field.NODES: Fact(value=len(nodes), place=first.place, told="Kubernetes nodes with GPUs"),
        Field.GPUS_PER_NODE: Fact(value=first.gpus, place=first.place, told=TOLD),
    }
    gpu = _catalogue_name(_product(first))
    if gpu is not None:
        facts[Field.GPU] = Fact(value=gpu, place=first.place, told=f"{TOLD}: {_product(first)}")
    memory = [(node.memory_bytes, node.place) for node in nodes if node.memory_bytes is not None]
    if len(memory) == len(nodes):
        least, place = min(memory, key=lambda entry: entry[0])
        told = "capacity of the Kubernetes node that has least"
        facts[Field.HOST_RAM] = Fact(value=f"{least >> 20}MiB", place=place, told=told)
    cliques = Counter(node.labels[CLIQUE] for node in nodes if CLIQUE in node.labels)
    if cliques and sum(cliques.values()) == len(nodes) and len(set(cliques.values())) == 1:
        domain = next(iter(cliques.values())) * first.gpus
        facts[Field.NVLINK_DOMAIN] = Fact(value=domain, place=first.place, told=f"{TOLD}: {CLIQUE}")
    levels = _levels(nodes)
    return Said(facts=facts, levels=levels, place=first.place)


def _levels(nodes: Sequence[_GpuNode]) -> tuple[Level, ...]:
    """Return the levels that labels of all nodes name; a network that joins them all is the last."""
    named: list[tuple[str, Sequence[Group]]] = []
    for name, label in LEVELS:
        if not all(node.labels.get(label) for node in nodes):
            continue
        members: dict[str, list[_GpuNode]] = {}
        for node in nodes:
            # A switch is told apart by those inside it too: numbers of leaves may begin anew below each spine.
            members.setdefault(node.labels[label], []).append(node)
        named.append(
            (
                name,
                [
                    Group(name=value, nodes=frozenset(node.name for node in group), place=group[0].place)
                    for value, group in sorted(members.items())
                ],
            )
        )
    if not named or (len(named) == 1 and len(named[0][1]) == 1):
        return ()
    whole = Group(name="the network", nodes=frozenset(node.name for node in nodes), place=nodes[0].place)
    levels = network_levels([*named, ("network", [whole])])
    return levels if len(levels) > 1 else ()


def _gpu_node(item: Node) -> _GpuNode | None:
    """Return one node; None for one without GPUs."""
    metadata, status = item.child("metadata"), item.child("status")
    name = metadata.child("name") if metadata is not None else None
    if metadata is None or name is None:
        raise InputError("This node has no metadata.name.", location=item.location, hint="Give what kubectl printed.")
    labels = _texts(metadata.child("labels"))
    capacity = _texts(status.child("capacity")) if status is not None else {}
    count = labels.get(COUNT) or next((capacity[key] for key in RESOURCES if key in capacity), "0")
    if not count.isascii() or not count.isdigit() or len(count) > 4:
        raise InputError(
            f"{name.content} has {count[:40]!r} GPUs.", location=item.location, hint="It is a whole number."
        )
    if int(count) == 0:
        return None
    return _GpuNode(
        name=str(name.content),
        labels=labels,
        gpus=int(count),
        memory_bytes=_bytes(capacity["memory"], item.location) if "memory" in capacity else None,
        place=item.location,
    )


def _texts(node: Node | None) -> dict[str, str]:
    """Return the scalars of a mapping as texts."""
    if node is None or not isinstance(node.content, dict):
        return {}
    return {key: str(child.content) for key, child in node.content.items() if isinstance(child.content, str | int)}


def _bytes(text: str, place: Location) -> int:
    """Return a quantity of memory as Kubernetes writes it."""
    digits = text.rstrip("KkMGTi")
    scale = _SUFFIXES.get(text[len(digits) :], 1 if digits == text else 0)
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18 or not scale:
        raise InputError(f"memory is {text[:40]!r}.", location=place, hint="It is written as in 2113481940Ki.")
    return int(digits) * scale


def _product(node: _GpuNode) -> str:
    return next((node.labels[key] for key in PRODUCTS if key in node.labels), "")


def _catalogue_name(product: str) -> str | None:
    """Return the catalogue's name of a product; labels have hyphens or underscores for the driver's spaces."""
    for spelt in (product, product.replace("-", " "), product.replace("_", " ")):
        found = catalogue_name(spelt)
        if found in entry_names(Section.DEVICES):
            return found
    return None
