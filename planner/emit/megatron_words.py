"""The words of an argument list: flags in groups, and lists of zeros and ones in the notation of the flags."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

Flag = tuple[str, ...]
"""A flag followed by its values."""

Flags = tuple[Flag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Flags that belong together.

    Args:
        title: What they describe, for the comment above them.
        flags: The flags.
    """

    title: str
    flags: Flags


def when(condition: object, *flag: str) -> Flags:
    """Return the flag if the condition holds, else nothing."""
    return (flag,) if condition else ()


def pattern(layers: Sequence[bool]) -> str:
    """Return a list with one 1 or 0 a layer, as `moe_freq_type` and its like evaluate it.

    Runs are written `[0]*3+[1]*58`, and what repeats as a whole `([0]*1+[1]*1)*18`.
    """
    period = next(
        size for size in range(1, len(layers) + 1) if all(layers[i] == layers[i % size] for i in range(len(layers)))
    )
    times, rest = divmod(len(layers), period)
    if period == 1 or times < 2 or rest:
        return _runs(layers)
    return f"({_runs(layers[:period])})*{times}"


def _runs(layers: Sequence[bool]) -> str:
    return "+".join(f"[{int(value)}]*{len(tuple(run))}" for value, run in groupby(layers))
