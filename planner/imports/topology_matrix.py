"""Reads what `nvidia-smi topo -m` prints: which GPUs NVLink joins, and which network cards are near one.

The matrix has a row and a column for each GPU and each card; a cell says what two are joined by: NV# (so many NVLinks),
PIX or PXB (PCIe switches), PHB, NODE or SYS (through a processor), X (itself). Cards stand as NIC0 or, by older
drivers, as mlx5_0. The first line may be underlined by terminal codes.

Cards that carry traffic between GPUs hang on a PCIe switch with one (PIX or PXB). Where no card does, all count.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from planner.errors import InputError, Location
from planner.imports.facts import Fact, Field, Said

TOLD = "nvidia-smi topo -m"
NEAR = ("PIX", "PXB")
_GPU = re.compile(r"GPU\d+")
_CELL = re.compile(r"X|NV\d+|PIX|PXB|PHB|NODE|SYS|SOC")
_CODES = re.compile(r"\x1b\[[0-9;]*m")

Matrix = Mapping[str, Mapping[str, str]]


def is_topology_matrix(text: str) -> bool:
    """Return whether a text is what `nvidia-smi topo -m` prints."""
    return any(_is_header(line) for line in _CODES.sub("", text).splitlines())


def _is_header(line: str) -> bool:
    cells = line.split()
    return bool(cells) and cells[0] == "GPU0" and "Affinity" in cells


def read_topology_matrix(text: str, *, file: str, given: Collection[Field] = ()) -> Said:
    """Return what a matrix says of one node, beside what is given.

    Raises:
        InputError: It is not whole, or not symmetric.
    """
    lines = _CODES.sub("", text).splitlines()
    start = next(number for number, line in enumerate(lines) if _is_header(line))
    place = Location(file=file, line=start + 1)
    header = lines[start].split()
    labels = header[: header.index("CPU")] if "CPU" in header else []
    gpus = [label for label in labels if _GPU.fullmatch(label)]
    if not gpus:
        raise InputError(
            "The header has no GPU in front of CPU Affinity.", location=place, hint="Give all that was printed."
        )
    matrix = _matrix(lines, labels, file)
    for label in gpus:
        if label not in matrix:
            raise InputError(f"There is no row of {label}.", location=place, hint="Give all that was printed.")
    facts = {Field.GPUS_PER_NODE: Fact(value=len(gpus), place=place, told=TOLD)}
    if Field.NVLINK_DOMAIN not in given:
        facts[Field.NVLINK_DOMAIN] = Fact(value=_domain(matrix, gpus, place), place=place, told=TOLD)
    cards = [label for label in labels if label not in gpus]
    if cards:
        near = [card for card in cards if any(matrix[gpu][card] in NEAR for gpu in gpus)]
        told = f"{TOLD}: {len(near)} of {len(cards)} cards are behind a PCIe switch with a GPU" if near else TOLD
        facts[Field.NICS] = Fact(value=len(near) or len(cards), place=place, told=told)
    return Said(facts=facts)


def _matrix(lines: Sequence[str], labels: Sequence[str], file: str) -> Matrix:
    """Return the rows of the labels.

    Raises:
        InputError: A row is cut off, or a cell is no path.
    """
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines, start=1):
        cells = line.split()
        if not cells or cells[0] not in labels or (len(cells) > 1 and cells[1] in labels):
            continue
        paths = cells[1 : len(labels) + 1]
        wrong = next((path for path in paths if not _CELL.fullmatch(path)), None)
        if wrong is not None or len(paths) < len(labels):
            what = f"{wrong!r} is no path" if wrong is not None else f"the row has {len(paths)} paths of {len(labels)}"
            raise InputError(
                f"{cells[0]}: {what}.", location=Location(file=file, line=number), hint="Give all that was printed."
            )
        found[cells[0]] = dict(zip(labels, paths, strict=True))
    return found


def _domain(matrix: Matrix, gpus: Sequence[str], place: Location) -> int:
    """Return how many GPUs NVLink joins: a group of which each reaches each; 1 where there is none.

    Raises:
        InputError: Groups are of several sizes, or not all of a group reach each other.
    """
    groups: set[frozenset[str]] = set()
    for gpu in gpus:
        linked = frozenset(other for other in gpus if other == gpu or matrix[gpu][other].startswith("NV"))
        groups.add(linked)
    sizes = {len(group) for group in groups}
    if len(sizes) > 1 or sum(map(len, groups)) != len(gpus):
        raise InputError(
            "NVLink joins some of these GPUs in groups that are not alike.",
            location=place,
            hint="Say with --nvlink-domain how many GPUs reach each other over NVLink, 1 for none.",
        )
    return sizes.pop()
