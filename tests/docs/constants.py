"""The tables of `docs/constants.md`, made from the constants themselves and what their modules say of them.

A row is one `profiles.constants.Constant`: its name as `shardwright accuracy --constants` has it, its value, its range,
and its source. Numbers that are no `Constant` are listed by name in `FIXED`, with their docstrings. `SECTIONS` says
which table a name stands in and in which unit; a name that is in none fails a test.
"""

import ast
import importlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from planner.serving.engines import Engine, HostEra, KernelFactors, calibration
from planner.units import MIB
from profiles.constants import Constant
from tests.docs.markdown import code, number, plain, table

ROOT = Path(__file__).parents[2]
PACKAGES = ("planner", "profiles")
Row = tuple[str, Constant]
SHARED = 3
"""Rows from which on an end that their sources have in common is said once, below the table."""

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "matrix products": {
        "GEMM": "of the datasheet rate; of that burst",
        "TILES": "of the memory bandwidth; s",
        "FP8_START": "s",
        "GEMM_HALF_RATE_SIZE": "elements",
        "GEMM_PROLOGUE_STEPS": "steps",
        "GEMM_WHOLE_WAVE_FRACTION": "of a wave",
        "POWER_EXPONENT": "exponent",
    },
    "other kernels and the host": {
        "KERNEL_LAUNCH": "s",
        "ATTENTION_FRACTION": "of the datasheet rate",
        "OLDER_ATTENTION": "of the newer rate",
        "ATTENTION_RAMP": "tokens",
        "SCAN_FRACTION": "of the datasheet rate",
        "MEMORY_FRACTION": "of the memory bandwidth",
        "PLAIN_NORM_FACTOR": "times the bytes",
        "LAUNCH_SECONDS": "s",
        "RECOMPUTE_LAUNCHES": "launches",
        "ROUTING_KERNELS": "kernels",
    },
    "collectives": {
        "PEER_FRACTION": "of the link",
        "NETWORK_FRACTION": "of the link",
        "PCIE_FRACTION": "of the slot",
        "COLLECTIVES_IN_TRAINING": "of the bandwidth",
        "COLLECTIVE_WAIT": "s",
        "COLLECTIVE_START": "s",
        "PEER_HOP_FRACTION": "of a latency",
        "COLLECTIVE_RAMP": "s",
        "COLLECTIVE_RAMP_BYTES": "bytes",
        "RENDEZVOUS_SECONDS": "s",
        "RENDEZVOUS_BYTES": "bytes",
        "CHUNK_BYTES": "bytes",
        "EXCHANGE_FRACTION": "of the bandwidth",
        "COLLECTIVE_CHANNELS": "compute units",
        "P2P_CHANNELS": "compute units",
    },
    "hosts": {
        "HOST_BYTES_PER_SECOND": "bytes/s",
        "GRACE_BYTES_PER_SECOND": "bytes/s",
        "HOST_MEMORY_FRACTION": "of the bandwidth",
        "PAGEABLE_FRACTION": "of a pinned copy",
        "HOST_FLOPS_PER_SECOND": "flops/s",
        "HOST_COMPUTE_FRACTION": "of the rate",
    },
    "bands": {
        "TRAINING_BAND": "factor less one",
        "RATIO_BAND": "factor less one",
        "OPERATIONS_BAND": "factor less one",
    },
    "serving kernels": {
        "ATTENTION_BURST_FRACTION": "of the datasheet rate",
        "ATTENTION_START": "s",
        "ATTENTION_BLOCK_SECONDS": "s",
        "PREFILL_PASSES": "passes",
        "DECODE_MEMORY_FRACTION": "of the memory bandwidth",
        "EXPERTS_START": "s",
        "GROUPED": "of a dense product's rate; of its memory bandwidth; s",
        "_UNPACKED_BY": "of a dense product's rate; of its memory bandwidth; s",
        "START_PER_RANK": "s",
        "ONE_SHOT_FRACTION": "of the link",
        "BUS_FRACTION_TWO": "of the link",
        "BUS_FRACTION_EIGHT": "of the link",
        "RAMP": "s",
        "RAMP_BYTES": "bytes",
        "OWN_SUMS": "s",
        "HOST_LINK_START": "s",
        "HOST_LINK_FRACTION": "of the slot",
        "WAITED": "of the moves",
    },
    "serving memory": {"GRAPHS": "bytes", "STREAM_COPIES": "tensors", "LOGIT_BYTES": "bytes"},
}
"""Unit of each constant by its name, in the table that it stands in; several fields have several units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """A number that is no `Constant`.

    Args:
        module: Where it stands.
        name: What it is called there.
        unit: Its unit.
        scale: What it is divided by to be in that unit.
        source: Where its source stands in the same module; empty where it is its own docstring.
    """

    module: str
    name: str
    unit: str
    scale: int = 1
    source: str = ""


FIXED: Mapping[str, tuple[Fixed, ...]] = {
    "numbers of time": (
        Fixed(module="profiles.gemm_surface", name="_TILES", unit="rows and columns", source="__doc__"),
        Fixed(module="profiles.gemm_surface", name="_SPLITS", unit="parts", source="__doc__"),
        Fixed(module="profiles.gemm_surface", name="CACHE_OVER_MEMORY", unit="times"),
        Fixed(module="profiles.gemm_surface", name="SHARPNESS", unit="exponent"),
        Fixed(module="profiles.constants", name="REFERENCE_WATTS_PER_TERAFLOPS", unit="W s / Tflop"),
        Fixed(module="profiles.analytic", name="_SCORES_PASSES", unit="passes, by whether backward"),
        Fixed(module="profiles.analytic", name="_PLAIN_SCORES_PASSES", unit="passes, by whether backward"),
        Fixed(module="profiles.collectives", name="TREE_OVER_TWO_NODES", unit="architectures"),
        Fixed(module="planner.ranks.communication", name="BUCKET_ELEMENTS", unit="elements"),
        Fixed(module="planner.ranks.communication", name="BUCKET_ELEMENTS_OF_RANK", unit="elements"),
        Fixed(module="planner.ranks.sharding", name="VOCAB_DIVISOR", unit="rows"),
        Fixed(module="planner.offloading.states", name="ADAM_PASSES", unit="numbers"),
        Fixed(module="planner.requests.workload", name="DEFAULT_ROUTING_SKEW", unit="times the mean"),
        Fixed(module="profiles.kernels.attention", name="TILE", unit="tokens"),
        Fixed(module="profiles.kernels.attention", name="LEAST_ROWS", unit="rows"),
        Fixed(module="profiles.kernel_constants", name="FLOPS_PER_EXPONENTIAL", unit="flops"),
        Fixed(module="profiles.kernel_constants", name="FLOPS_PER_EXPONENTIAL_SINCE", unit="flops"),
        Fixed(module="planner.serving.balancer", name="STEP_INTERVAL", unit="steps"),
        Fixed(module="planner.serving.balancer", name="WINDOW", unit="steps"),
    ),
    "numbers of memory": (
        Fixed(
            module="planner.frameworks.overheads",
            name="CONTEXT_BYTES",
            unit="MiB",
            scale=MIB,
            source="CONTEXT_SOURCE",
        ),
        Fixed(
            module="planner.frameworks.overheads",
            name="PAIR_COMMUNICATOR_BYTES",
            unit="MiB",
            scale=MIB,
            source="COMMUNICATOR_SOURCE",
        ),
        Fixed(
            module="planner.frameworks.overheads",
            name="GROUP_COMMUNICATOR_BYTES",
            unit="MiB",
            scale=MIB,
            source="COMMUNICATOR_SOURCE",
        ),
        Fixed(
            module="planner.frameworks.overheads",
            name="FRAGMENTATION_FRACTION",
            unit="of working terms",
            source="FRAGMENTATION_SOURCE",
        ),
        Fixed(
            module="planner.memory.terms",
            name="WORKSPACE_BYTES",
            unit="MiB",
            scale=MIB,
            source="WORKSPACE_SOURCE",
        ),
        Fixed(
            module="planner.memory.terms",
            name="FIXED_SEGMENTS_FRACTION",
            unit="of working terms",
            source="FIXED_SEGMENTS_SOURCE",
        ),
        Fixed(
            module="planner.memory.state_bytes",
            name="FP8_COPY_BYTES",
            unit="bytes an element",
            source="FP8_COPY_SOURCE",
        ),
        Fixed(module="planner.requests.request", name="DEFAULT_MEMORY_HEADROOM", unit="of the GPU's memory"),
        Fixed(module="planner.offloading.states", name="SUB_GROUP_ELEMENTS", unit="elements"),
        Fixed(module="planner.offloading.states", name="PREFETCH_BUCKET_ELEMENTS", unit="elements"),
        Fixed(module="planner.offloading.modules", name="NEAR_LAYERS", unit="layers"),
        Fixed(module="planner.memory.host", name="PROCESS_BYTES", unit="MiB", scale=MIB, source="PROCESS_SOURCE"),
        Fixed(module="planner.memory.host", name="SYSTEM_FRACTION", unit="of a node's memory", source="SYSTEM_SOURCE"),
        Fixed(module="planner.memory.host", name="PINNED_ROUNDING", unit="times"),
    ),
}


@cache
def modules_with_constants() -> tuple[str, ...]:
    """Return the modules that make constants: those that import the class, or what makes one of it."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "profiles.constants" not in text:
                continue
            imported = {
                alias.name
                for node in ast.parse(text).body
                if isinstance(node, ast.ImportFrom) and node.module == "profiles.constants"
                for alias in node.names
            }
            if imported & {"Constant", "of_kernels"}:
                found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return ("profiles.constants", *found)


@cache
def constants() -> Mapping[str, Constant]:
    """Return every constant of the packages by its name, each once; private names only where nothing else has it."""
    found: dict[str, Constant] = {}
    seen: set[int] = set()
    modules = [importlib.import_module(name) for name in modules_with_constants()]
    named = [pair for module in modules for pair in vars(module).items() if pair[0].isupper()]
    for name, value in sorted(named, key=lambda pair: pair[0].startswith("_")):
        if id(value) in seen:  # imported from where it was made
            continue
        seen.add(id(value))
        for label, constant in _labelled(name, value):
            if name.startswith("_") and id(constant) in seen:
                continue
            assert label not in found, f"{label} is the name of two constants"
            seen.add(id(constant))
            found[label] = constant
    return found


def _labelled(label: str, value: object) -> Iterator[tuple[str, Constant]]:
    """Yield the constants of a value with their names, as `profiles.constants.named_constants` has them."""
    if isinstance(value, Constant):
        yield label, value
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from _labelled(f"{label}.{entry.name}", getattr(value, entry.name))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _labelled(f"{label}[{', '.join(key) if isinstance(key, tuple) else key}]", part)


def _base(label: str) -> str:
    return label.partition("[")[0].partition(".")[0]


@cache
def _docstrings(module: ModuleType) -> Mapping[str, str]:
    """Return what stands below each name of a module."""
    assert module.__file__ is not None, "modules of ours are files"
    body = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    found = {}
    for node, behind in pairwise(body):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
            found[target.id] = " ".join(str(behind.value.value).split())
    return found


def constants_table(section: str) -> list[str]:
    """Return the table of a section, what its sources have in common, and the docstrings of its names."""
    units = SECTIONS[section]
    rows = [(label, constant) for label, constant in constants().items() if _base(label) in units]
    order = list(units)
    rows.sort(key=lambda row: order.index(_base(row[0])))  # stable: within a name as it is declared
    notes = _shared_ends([constant.source for _, constant in rows])
    cells = (
        (
            code(_label([label for label, _ in group])),
            ", ".join(number(constant.value) for _, constant in group),
            ", ".join(dict.fromkeys(_unit(label, units) for label, _ in group)),
            ", ".join(dict.fromkeys(f"{number(one.low)} to {number(one.high)}" for _, one in group)),
            plain(f"{group[0][1].origin}: {_noted(group[0][1], notes)}"),
        )
        for group in _of_one_source(rows)
    )
    lines = table(("constant", "value", "unit", "range", "where it comes from"), cells)
    said = [f"- ({letter}) {plain(end)}" for end, letter in notes.items()]
    docs = [
        f"- {code(name)}: {plain(text)}"
        for name in units
        for module in modules_with_constants()
        if (text := _docstrings(importlib.import_module(module)).get(name))
    ]
    return [*lines, *([""] if said or docs else []), *said, *docs]


def _of_one_source(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows, the fields of one object together where all of them come from one place."""
    for _, fields_of in groupby(rows, key=lambda row: row[0].rpartition("].")[0] or row[0]):
        for _, same in groupby(fields_of, key=lambda row: (row[1].origin, row[1].source)):
            yield list(same)


def _label(labels: list[str]) -> str:
    """Return the names of the fields of one object, the object once."""
    return ", ".join([labels[0], *(label.rpartition("]")[2] for label in labels[1:])])


def _unit(label: str, units: Mapping[str, str]) -> str:
    """Return the unit of a constant; of several fields' that of its own."""
    found = units[_base(label)].split("; ")
    fields_of = list(dict.fromkeys(name.rpartition(".")[2] for name in constants() if _base(name) == _base(label)))
    return found[fields_of.index(label.rpartition(".")[2])] if len(found) > 1 else found[0]


def _shared_ends(sources: Sequence[str]) -> dict[str, str]:
    """Return the ends that several sources have in common, of each source the commonest, with a letter for each."""
    counted = Counter(end for source in sources for end in _ends(source))
    found: dict[str, str] = {}
    for source in sources:
        end = max(_ends(source), key=lambda one: (counted[one], len(one)), default="")
        if counted[end] >= SHARED and end not in found:
            found[end] = chr(ord("a") + len(found))
    return found


def _ends(source: str) -> list[str]:
    parts = source.split("; ")
    return ["; ".join(parts[index:]) for index in range(1, len(parts))]


def _noted(constant: Constant, notes: Mapping[str, str]) -> str:
    """Return a source with a letter for the end that others share; that it is assumed is said by its origin."""
    source = constant.source
    if constant.assumed:
        source = source.removeprefix("assumption: ").removeprefix("assumed: ")
    end = next((end for end in _ends(source) if end in notes), None)
    return source if end is None else f"{source.removesuffix(end).removesuffix('; ')} ({notes[end]})"


def fixed_table(section: str) -> list[str]:
    """Return the table of numbers that are no constants."""
    return table(
        ("number", "value", "unit", "where", "where it comes from"),
        ((code(one.name), _shown(one), one.unit, code(one.module), plain(_source(one))) for one in FIXED[section]),
    )


def _shown(one: Fixed) -> str:
    value: Any = getattr(importlib.import_module(one.module), one.name)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {number(part)}" for key, part in value.items())
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    if isinstance(value, tuple):
        return ", ".join(" x ".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value)
    return number(value / one.scale)


def _source(one: Fixed) -> str:
    module = importlib.import_module(one.module)
    if one.source == "__doc__":
        return "candidates that are tried; the fastest counts"
    return str(getattr(module, one.source)) if one.source else _docstrings(module)[one.name]


def engines_table() -> list[str]:
    """Return what is fitted of each serving engine, and of kernels inside them."""
    found = calibration()
    said = {**_arguments(Engine), **_arguments(KernelFactors), **_arguments(HostEra)}
    engines = list(found.engines)
    fitted = [name for name, value in _data()["engines"][engines[0]].items() if isinstance(value, int | float)]
    rows: list[tuple[str, ...]] = [
        (code(name), *(number(getattr(found.engines[engine], name)) for engine in engines), plain(said[name]))
        for name in fitted
    ]
    lines = table(("constant", *engines, "what it is (times in seconds)"), rows)
    kernels = [(code(name), number(value), plain(said[name])) for name, value in _data()["kernels"].items()]
    lines += ["", *table(("constant", "value", "what it is"), kernels)]
    eras = [
        f"- {engine} before {era.before}: `sequence_seconds` {number(era.sequence_seconds)}; {plain(era.source)}"
        for engine, listed in found.eras.items()
        for era in listed
    ]
    return [*lines, "", f"- all of them: {plain(found.source)}", *eras]


def _data() -> Any:
    return json.loads((ROOT / "planner" / "data" / "serving" / "constants.json").read_text(encoding="utf-8"))


def _arguments(of: type) -> dict[str, str]:
    """Return what the docstring of a class says of each argument."""
    found: dict[str, str] = {}
    name = ""
    for line in str(of.__doc__).partition("Args:\n")[2].splitlines():
        text = line.strip()
        first, colon, rest = text.partition(": ")
        if line.startswith(" " * 8) and not line.startswith(" " * 9) and colon and first.isidentifier():
            name = first
            found[name] = rest
        elif text and name:
            found[name] += f" {text}"
    return found


def tables() -> dict[str, list[str]]:
    """Return every table of the page by its name."""
    return {
        **{section: constants_table(section) for section in SECTIONS},
        **{section: fixed_table(section) for section in FIXED},
        "serving engines": engines_table(),
    }
