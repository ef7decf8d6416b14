"""Reads the XML that NCCL writes with NCCL_TOPO_DUMP_FILE: GPUs, what NVLink joins, network cards and their speed.

    <system> <cpu host_hash=..> <pci busid=.. device=..> <gpu dev=".."> <nvlink target=".." tclass=".."/> </gpu>
                                <pci ..> <nic> <net name=".." speed=".." gdr=".."/> </nic>

`speed` is in Mb/s (1e6 bits a second); a card listed under two processors is one card. The cards that count are those
that reach GPU memory (`gdr="1"`) where any does, and of these the fastest. NVLinks to a switch (`tclass` 0x068000) join
all GPUs that have one; links to GPUs join those.

The PCI device says which GPU it is, as the PCI ID Repository (pci.ids) lists them under NVIDIA, 10de.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from xml.parsers import expat

from planner.errors import InputError, Location
from planner.imports.facts import Fact, Field, Said

TOLD = "NCCL's topology dump"
SWITCH_CLASS = "0x068000"

GPUS: Mapping[str, str] = MappingProxyType(
    {
        "0x1db1": "v100-sxm-16gb",
        "0x1db5": "v100-sxm-32gb",
        "0x20b0": "a100-sxm-40gb",
        "0x20b2": "a100-sxm-80gb",
        "0x20b5": "a100-pcie-80gb",
        "0x2330": "h100-sxm-80gb",
        "0x2331": "h100-pcie-80gb",
        "0x2335": "h200",
        "0x26b9": "l40s",
        "0x2901": "b200",
    }
)
"""GPUs of the catalogue by PCI device."""


@dataclass(slots=True, kw_only=True)
class _Gpu:
    """One GPU of the dump."""

    line: int
    host: str
    bus: str
    device: str
    targets: list[str] = field(default_factory=list)
    switched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """One network card."""

    line: int
    speed: int
    reaches_gpus: bool


@dataclass(slots=True, kw_only=True)
class _Dump:
    """What has been read; `path` is the elements that are open, each with its attributes."""

    file: str
    path: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    gpus: list[_Gpu] = field(default_factory=list)
    cards: dict[str, _Card] = field(default_factory=dict)

    def open(self, name: str, attributes: Mapping[str, str], line: int) -> None:
        """Take one element.

        Raises:
            InputError: An attribute is missing, or no number.
        """
        self.path.append((name, attributes))
        if name == "gpu":
            pci = self._above("pci")
            host = self._above("cpu").get("host_hash", "")
            device = pci.get("device", "")
            self.gpus.append(_Gpu(line=line, host=host, bus=pci.get("busid", "").lower(), device=device))
        elif name == "nvlink" and self.gpus:
            self.gpus[-1].targets.append(attributes.get("target", "").lower())
            self.gpus[-1].switched |= attributes.get("tclass") == SWITCH_CLASS
        elif name == "net":
            speed = attributes.get("speed", "")
            if not speed.isascii() or not speed.isdigit() or not 0 < int(speed[:12]) < 10**9:
                raise InputError(
                    f"A network card has the speed {speed[:40]!r}.",
                    location=Location(file=self.file, line=line),
                    hint="It is a whole number of Mb/s; let NCCL write the file again.",
                )
            key = attributes.get("name") or f"{attributes.get('guid', '')} {attributes.get('port', '')}"
            host = self._above("cpu").get("host_hash", "")
            reaches = attributes.get("gdr") == "1"
            self.cards[f"{host} {key}"] = _Card(line=line, speed=int(speed), reaches_gpus=reaches)

    def _above(self, name: str) -> Mapping[str, str]:
        """Return the attributes of the nearest open element of a name."""
        return next((attributes for element, attributes in reversed(self.path) if element == name), {})


def is_nccl_topology(text: str) -> bool:
    """Return whether a text is such a dump."""
    return "<system" in text[:4096]


def read_nccl_topology(text: str, *, file: str, given: Collection[Field] = ()) -> Said:
    """Return what a dump says of one node, or of the nodes of one NVLink domain, beside what is given.

    Raises:
        InputError: It is no XML, holds no GPU, or contradicts itself.
    """
    dump = _parsed(text, file)
    if not dump.gpus:
        raise InputError("There is no GPU in this file.", location=Location(file=file), hint="Give NCCL's dump.")
    place = Location(file=file, line=dump.gpus[0].line)
    hosts = sorted({gpu.host for gpu in dump.gpus})
    counts = {host: len({(gpu.bus, gpu.line) for gpu in dump.gpus if gpu.host == host}) for host in hosts}
    if len(set(counts.values())) > 1:
        raise InputError(
            f"Nodes have {min(counts.values())} and {max(counts.values())} GPUs.",
            location=place,
            hint="Give the dump of nodes with equally many.",
        )
    facts = {Field.GPUS_PER_NODE: Fact(value=counts[hosts[0]], place=place, told=TOLD)}
    if Field.NVLINK_DOMAIN not in given:
        facts[Field.NVLINK_DOMAIN] = Fact(value=_domain(dump, file), place=place, told=TOLD)
    devices = {gpu.device for gpu in dump.gpus}
    if len(devices) == 1 and (device := devices.pop()) in GPUS:
        facts[Field.GPU] = Fact(value=GPUS[device], place=place, told=f"{TOLD}, PCI device {device}")
    return Said(facts=facts | ({} if Field.NICS in given else _cards(dump, file, len(hosts))))


def _parsed(text: str, file: str) -> _Dump:
    dump = _Dump(file=file)
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise InputError(
            "The file declares a document type, which NCCL never writes.",
            location=Location(file=file, line=parser.CurrentLineNumber),
            hint="Give the file as NCCL wrote it.",
        )

    def close(_: str) -> None:
        dump.path.pop()

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: dump.open(name, attributes, parser.CurrentLineNumber)
    parser.EndElementHandler = close
    try:
        parser.Parse(text.encode("utf-8", "replace"), bool(text))
    except expat.ExpatError as error:
        raise InputError(
            f"This is no XML: {expat.ErrorString(error.code)}.",
            location=Location(file=file, line=error.lineno, column=error.offset + 1),
            hint="Give the file as NCCL wrote it.",
        ) from None
    return dump


def _domain(dump: _Dump, file: str) -> int:
    """Return how many GPUs NVLink joins; 1 where it joins none.

    Raises:
        InputError: Some have links and others have none, or links form groups that are not alike.
    """
    linked = [gpu for gpu in dump.gpus if gpu.targets]
    if not linked:
        return 1
    without = next((gpu for gpu in dump.gpus if not gpu.targets), None)
    if without is not None:
        raise InputError(
            f"The GPU at {without.bus} has no NVLink, and {len(linked)} others have.",
            location=Location(file=file, line=without.line),
            hint="See what is wrong with it, or say --nvlink-domain.",
        )
    if all(gpu.switched for gpu in dump.gpus):
        return len(dump.gpus)
    groups = {frozenset([gpu.bus, *gpu.targets]) for gpu in dump.gpus}
    sizes = {len(group) for group in groups}
    if len(sizes) > 1 or sum(map(len, groups)) != len(dump.gpus):
        raise InputError(
            "NVLink joins these GPUs in groups that are not alike.",
            location=Location(file=file, line=dump.gpus[0].line),
            hint="Say with --nvlink-domain how many GPUs reach each other over NVLink, 1 for none.",
        )
    return sizes.pop()


def _cards(dump: _Dump, file: str, num_hosts: int) -> dict[Field, Fact]:
    """Return the number and speed of a node's cards; nothing where there are none."""
    near = [card for card in dump.cards.values() if card.reaches_gpus] or list(dump.cards.values())
    if not near:
        return {}
    speed = max(card.speed for card in near)
    fastest = [card for card in near if card.speed == speed]
    if len(fastest) % num_hosts:
        raise InputError(
            f"{num_hosts} nodes have {len(fastest)} network cards of {speed / 1000:g} Gb/s together.",
            location=Location(file=file, line=fastest[0].line),
            hint="Say how many a node has, with --nics.",
        )
    place = Location(file=file, line=fastest[0].line)
    told = f"{TOLD}: {len(fastest)} of {len(dump.cards)} cards"
    told += ", the fastest that reach GPU memory" if near[0].reaches_gpus else ", the fastest; none reaches GPU memory"
    return {
        Field.NICS: Fact(value=len(fastest) // num_hosts, place=place, told=told),
        Field.NIC_BANDWIDTH: Fact(value=f"{speed / 1000:g}Gb/s", place=place, told=TOLD),
    }
