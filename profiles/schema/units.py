"""Quantities as users write them, "80GiB" or "400Gb/s", and the pydantic types that read them.

A quantity is a number with its unit in one string. Units are case-sensitive, because Gb/s (bits) and GB/s (bytes)
differ by eight. A bare number has no unit and is refused. Values leave here in base units: bytes, bytes per second,
seconds, operations per second, watts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Final

from pydantic import BeforeValidator, WithJsonSchema

from profiles.schema.finding import reject

_NUMBER_AND_UNIT: Final = re.compile(r"(?P<number>\d{1,15}(?:\.\d{1,15})?(?:[eE][+-]?\d{1,2})?) ?(?P<unit>[^\d\s.]\S*)")
_LONGEST: Final = 40
_LARGEST_ECHO: Final = 10**18

_DECIMAL: Final = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
_BYTES: Final = {"B": Fraction(1)} | {f"{prefix}B": Fraction(scale) for prefix, scale in (_DECIMAL | _BINARY).items()}
_BANDWIDTH: Final = (
    {f"{unit}/s": scale for unit, scale in _BYTES.items()}
    | {f"{prefix}b/s": Fraction(scale, 8) for prefix, scale in _DECIMAL.items()}
    | {f"{prefix}bps": Fraction(scale, 8) for prefix, scale in _DECIMAL.items()}
)
_SECONDS: Final = {
    "s": Fraction(1),
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
}
_FLOPS: Final = {f"{prefix}{name}": Fraction(_DECIMAL[prefix]) for prefix in "GTP" for name in ("FLOPS", "OPS")}
_WATTS: Final = {"W": Fraction(1), "kW": Fraction(1000)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """One kind of quantity.

    Args:
        noun: What it is, for messages.
        base_unit: Unit of the values that leave here.
        units: Unit to its size in base units.
        examples: How it is written, for messages.
        minimum: Smallest value allowed, in base units.
        maximum: Largest value allowed, in base units; nothing built reaches it.
    """

    noun: str
    base_unit: str
    units: Mapping[str, Fraction]
    examples: str
    minimum: float
    maximum: float


_SIZE: Final = _Kind(noun="size", base_unit="B", units=_BYTES, examples="80GiB, 2TB", minimum=1, maximum=2.0**60)
_RATE: Final = _Kind(
    noun="bandwidth",
    base_unit="B/s",
    units=_BANDWIDTH,
    examples="400Gb/s (bits), 50GB/s (bytes)",
    minimum=1e3,
    maximum=1e15,
)
_TIME: Final = _Kind(noun="time", base_unit="s", units=_SECONDS, examples="5us, 0.2ms", minimum=0, maximum=1)
_COMPUTE: Final = _Kind(
    noun="rate",
    base_unit="FLOPS",
    units=_FLOPS,
    examples="989.4TFLOPS, 2.25PFLOPS, 624TOPS",
    minimum=1e9,
    maximum=1e18,
)
_POWER: Final = _Kind(noun="power", base_unit="W", units=_WATTS, examples="700W, 1.2kW", minimum=1, maximum=1e6)


def _unit_hint(unit: str, kind: _Kind) -> str:
    """Return what to write instead of an unknown unit."""
    if kind is _RATE:
        same_letters = [known for known in kind.units if known.lower() == unit.lower()]
        if same_letters:
            return f"{unit} could be bits or bytes: write {' or '.join(sorted(same_letters))}"
        if unit in _BYTES:
            return f"{unit} is a size: write {unit}/s"
    if kind is _SIZE and unit.endswith(("b", "bit")):
        return f"{unit} counts bits: write bytes, for example {kind.examples}"
    near = [known for known in kind.units if known.lower() == unit.lower()]
    if near:
        return f"units are case-sensitive: write {' or '.join(near)}"
    return f"write for example {kind.examples}"


def _parse(value: object, kind: _Kind) -> Fraction:
    """Return `value` in base units, exactly.

    Raises:
        ValueError: It has no unit, another unit, or is out of range.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = f"{value:.6g}" if abs(value) < _LARGEST_ECHO else "the number"
        reject(f"{shown} has no unit: write for example {kind.examples}")
    if not isinstance(value, str):
        reject(f"a {kind.noun} is a number with its unit: write for example {kind.examples}")
    text = value.strip()
    if len(text) > _LONGEST:
        reject(f"{text[:_LONGEST]!r}... is too long for a {kind.noun}: write for example {kind.examples}")
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        reject(f"{text!r} is not a number with a unit: write for example {kind.examples}")
    scale = kind.units.get(match["unit"])
    if scale is None:
        reject(f"{text!r} is not a {kind.noun}: {_unit_hint(match['unit'], kind)}")
    amount = Fraction(match["number"]) * scale
    if not kind.minimum <= amount <= kind.maximum:
        reject(
            f"{text!r} is out of range: a {kind.noun} lies between {kind.minimum:g} and {kind.maximum:g} "
            f"{kind.base_unit}"
        )
    return amount


def parse_bytes(value: object) -> int:
    """Return a size such as "80GiB" (2**30 bytes each) or "2TB" (10**12) in bytes, rounded down."""
    return int(_parse(value, _SIZE))


def parse_bytes_per_second(value: object) -> float:
    """Return a bandwidth such as "400Gb/s" (bits) or "50GB/s" (bytes) in bytes per second."""
    return float(_parse(value, _RATE))


def parse_seconds(value: object) -> float:
    """Return a time such as "5us" in seconds."""
    return float(_parse(value, _TIME))


def parse_flops_per_second(value: object) -> float:
    """Return a rate such as "989.4TFLOPS" or "624TOPS" in operations per second; a multiply-add is two."""
    return float(_parse(value, _COMPUTE))


def parse_watts(value: object) -> float:
    """Return a power such as "700W" in watts."""
    return float(_parse(value, _POWER))


def _json_schema(kind: _Kind) -> WithJsonSchema:
    """Return what an editor is told of such a quantity."""
    return WithJsonSchema({"type": "string", "description": f"A {kind.noun}, for example {kind.examples}."})


Bytes = Annotated[int, BeforeValidator(parse_bytes), _json_schema(_SIZE)]
BytesPerSecond = Annotated[float, BeforeValidator(parse_bytes_per_second), _json_schema(_RATE)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), _json_schema(_TIME)]
FlopsPerSecond = Annotated[float, BeforeValidator(parse_flops_per_second), _json_schema(_COMPUTE)]
Watts = Annotated[float, BeforeValidator(parse_watts), _json_schema(_POWER)]
