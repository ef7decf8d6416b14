"""Quantities: what is read, and what each refusal says."""

from collections.abc import Callable

import pytest
from pydantic_core import PydanticCustomError

from profiles.schema import units


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (units.parse_bytes, "80GiB", 80 * 2**30),
        (units.parse_bytes, "80 GiB", 80 * 2**30),
        (units.parse_bytes, "2TB", 2 * 10**12),
        (units.parse_bytes, "79.11GiB", 84_943_715_696),
        (units.parse_bytes, "1e3kB", 10**6),
        (units.parse_bytes_per_second, "400Gb/s", 50e9),
        (units.parse_bytes_per_second, "400Gbps", 50e9),
        (units.parse_bytes_per_second, "50GB/s", 50e9),
        (units.parse_bytes_per_second, "1GiB/s", 2.0**30),
        (units.parse_seconds, "5us", 5e-6),
        (units.parse_seconds, "5µs", 5e-6),
        (units.parse_seconds, "0ns", 0.0),
        (units.parse_flops_per_second, "66.9TFLOPS", 66.9e12),
        (units.parse_flops_per_second, "4.5POPS", 4.5e15),
        (units.parse_watts, "1.2kW", 1200.0),
    ],
)
def test_a_number_with_a_unit_is_read_exactly(parse: Callable[[object], float], text: str, expected: float) -> None:
    assert parse(text) == expected


def test_gigabits_are_an_eighth_of_gigabytes() -> None:
    assert units.parse_bytes_per_second("8Gb/s") == units.parse_bytes_per_second("1GB/s")


@pytest.mark.parametrize(
    ("parse", "value", "message"),
    [
        (units.parse_bytes, 80, "80 has no unit: write for example 80GiB, 2TB"),
        (units.parse_bytes, "80", "'80' is not a number with a unit: write for example 80GiB, 2TB"),
        (units.parse_bytes, True, "a size is a number with its unit: write for example 80GiB, 2TB"),
        (units.parse_bytes, None, "a size is a number with its unit: write for example 80GiB, 2TB"),
        (units.parse_bytes, "80Gb", "'80Gb' is not a size: Gb counts bits: write bytes, for example 80GiB, 2TB"),
        (units.parse_bytes, "80gib", "'80gib' is not a size: gib counts bits: write bytes, for example 80GiB, 2TB"),
        (units.parse_bytes, "80gb/s", "'80gb/s' is not a size: write for example 80GiB, 2TB"),
        (units.parse_bytes, "80GIB", "'80GIB' is not a size: units are case-sensitive: write GiB"),
        (units.parse_bytes, "0GiB", "'0GiB' is out of range: a size lies between 1 and 1.15292e+18 B"),
        (units.parse_bytes, "-1GiB", "'-1GiB' is not a number with a unit: write for example 80GiB, 2TB"),
        (
            units.parse_bytes_per_second,
            "400gb/s",
            "'400gb/s' is not a bandwidth: gb/s could be bits or bytes: write GB/s or Gb/s",
        ),
        (units.parse_bytes_per_second, "50GB", "'50GB' is not a bandwidth: GB is a size: write GB/s"),
        (
            units.parse_bytes_per_second,
            "0GB/s",
            "'0GB/s' is out of range: a bandwidth lies between 1000 and 1e+15 B/s",
        ),
        (
            units.parse_bytes_per_second,
            4e11,
            "4e+11 has no unit: write for example 400Gb/s (bits), 50GB/s (bytes)",
        ),
        (units.parse_seconds, "5US", "'5US' is not a time: units are case-sensitive: write us"),
        (units.parse_seconds, "5 parsecs", "'5 parsecs' is not a time: write for example 5us, 0.2ms"),
        (units.parse_seconds, "2s", "'2s' is out of range: a time lies between 0 and 1 s"),
        (
            units.parse_bytes,
            "9" * 50 + "GB",
            f"'{'9' * 40}'... is too long for a size: write for example 80GiB, 2TB",
        ),
    ],
)
def test_what_is_no_quantity_is_refused_with_what_to_write(
    parse: Callable[[object], float], value: object, message: str
) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        parse(value)
    assert caught.value.message() == message
