"""What becomes of a word behind a flag: the functions that the frameworks' parsers give to argparse as a type.

Each has the name under which the tables of flags know it. Those of Megatron-LM are read in
`megatron/training/arguments.py`; nothing is evaluated as Python here.
"""

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
    "moe_freq_type": FREQUENCY,
    "la_freq_type": FREQUENCY,
    "no_rope_freq_type": FREQUENCY,
    "tuple_type": Conversion(wanted="whole numbers with commas between", read=_numbers),
    "_parse_cuda_graph_modules_arg": Conversion(wanted=f"one of {', '.join(sorted(CAPTURED))}", read=_captured),
}
"""Conversions by the name of their type; a word of any other type stays text."""
