"""What becomes of a word behind a flag: the functions that the frameworks' parsers give to argparse as a type.

Each has the name under which the tables of flags know it. Those of Megatron-LM are read in
`megatron/training/arguments.py`, those of vLLM in `vllm/utils`; nothing is evaluated as Python here.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planner.readers.megatron_patterns import parse_list

CAPTURED = frozenset({"attn", "mlp", "moe", "moe_router", "moe_preprocess", "mamba"})
"""Modules of `megatron/core/transformer/enums.py: CudaGraphModule`."""

CAPTURED_BEFORE = frozenset({"full", "full_iteration", "full_iteration_inference"})
"""Older words that are still taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """How a word becomes a value.

    Args:
        wanted: What the flag takes, for messages: "a whole number".
        read: Returns the value; raises ValueError for a word that is none.
    """

    wanted: str
    read: Callable[[str], object]


def _truth(text: str) -> bool:
    """Return what argparse makes of a word where `bool` converts it: anything that is not empty is true."""
    return bool(text)


DECIMAL_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY_SUFFIXES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _readable_number(text: str) -> int:
    """Return what vLLM makes of 4k (4,000), 4K (4,096) and 25.6k (`human_readable_int` of vllm/utils)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", text.strip())
    if match is None:
        return int(text)
    number, suffix = match.groups()
    if suffix in BINARY_SUFFIXES:
        return int(number) * BINARY_SUFFIXES[suffix]
    return int(float(number) * DECIMAL_SUFFIXES[suffix])


def _readable_number_or_auto(text: str) -> int:
    """Return the same, -1 for `auto`."""
    return -1 if text.strip().lower() in {"-1", "auto"} else _readable_number(text)


def _json(text: str) -> object:
    return json.loads(text)


def _frequency(text: str) -> int | list[int]:
    """Return every how many layers something comes, or a list with a number a layer."""
    return list(parse_list(text)) if "[" in text else int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.strip("()").split(","))


def _captured(text: str) -> str:
    if text not in CAPTURED | CAPTURED_BEFORE:
        raise ValueError(text)
    return text


FREQUENCY = Conversion(wanted="a whole number or a list such as ([0]*1+[1]*3)*8", read=_frequency)

CONVERSIONS: Mapping[str, Conversion] = {
    "int": Conversion(wanted="a whole number", read=int),
    "float": Conversion(wanted="a number", read=float),
    "bool": Conversion(wanted="a word", read=_truth),
    "human_readable_int": Conversion(wanted="a whole number such as 4096 or 4k", read=_readable_number),
    "human_readable_int_or_auto": Conversion(
        wanted="a whole number such as 4096 or 4k, or auto", read=_readable_number_or_auto
    ),
    "json": Conversion(wanted="JSON", read=_json),
    "moe_freq_type": FREQUENCY,
    "la_freq_type": FREQUENCY,
    "no_rope_freq_type": FREQUENCY,
    "tuple_type": Conversion(wanted="whole numbers with commas between", read=_numbers),
    "_parse_cuda_graph_modules_arg": Conversion(wanted=f"one of {', '.join(sorted(CAPTURED))}", read=_captured),
}
"""Conversions by the name of their type; a word of any other type stays text."""

OPTIONAL = "optional_"
"""Kinds that begin so also take "" and None, for a value that is not there (`optional_type` of vLLM)."""


def conversion_of(type_name: str) -> Conversion | None:
    """Return how a word of a type becomes a value; None where it stays text."""
    if not type_name.startswith(OPTIONAL):
        return CONVERSIONS.get(type_name)
    inner = conversion_of(type_name.removeprefix(OPTIONAL))

    def read(text: str) -> object:
        return "None" if text in {"", "None"} else inner.read(text) if inner else text

    return Conversion(wanted=inner.wanted if inner else "a word", read=read)
