"""Recorded requests: a CSV file with a header, or JSON Lines.

    arrival,input_tokens,output_tokens
    0.0,812,120

`arrival` is in seconds and may be left out everywhere. Arrivals are counted from the first one, and sorted. The names
that vLLM's and Mooncake's traces have are taken too: `timestamp` (milliseconds), `input_length`, `output_length`.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from planner.documents.nodes import check_text
from planner.errors import InputError, Location
from planner.requests.workload import MAX_LENGTH
from planner.schema.translate import shown
from planner.serving_plans.request import Trace

MAX_FILE_BYTES = 64 << 20
INPUT_NAMES = ("input_tokens", "input_length", "prompt_tokens")
OUTPUT_NAMES = ("output_tokens", "output_length", "completion_tokens")
SECONDS_NAMES = ("arrival", "arrival_seconds")
MILLISECONDS_NAMES = ("timestamp",)
_HINT = "Give the columns arrival (seconds), input_tokens and output_tokens."


def read_trace(reference: str, *, base: Path, location: Location) -> Trace:
    """Return the requests of a file.

    Args:
        reference: Its path.
        base: Directory that the path is relative to.
        location: Where it is named.

    Raises:
        InputError: There is no such file, or a line is no request.
    """
    path = base / reference
    if not path.is_file():
        raise InputError(f"{shown(reference)} is not a file.", location=location, hint="Give the path of a trace.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"The file is larger than {MAX_FILE_BYTES >> 20} MiB.", location=Location(file=str(path)))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("The file is not UTF-8 text.", location=Location(file=str(path)), hint=_HINT) from None
    check_text(text, file=str(path))
    rows = _json_rows(text, str(path)) if text.lstrip().startswith("{") else _csv_rows(text, str(path))
    found = [_request(row, Location(file=str(path), line=line)) for line, row in rows]
    if not found:
        raise InputError("The trace has no request.", location=Location(file=str(path)), hint=_HINT)
    with_arrivals = [entry for entry in found if entry[0] is not None]
    if with_arrivals and len(with_arrivals) < len(found):
        raise InputError("Some requests have an arrival, others none.", location=Location(file=str(path)), hint=_HINT)
    if with_arrivals:
        found.sort(key=lambda entry: entry[0] or 0.0)
    first = found[0][0] or 0.0
    arrivals = tuple((arrival or 0.0) - first for arrival, _, _ in found) if with_arrivals else ()
    if arrivals and arrivals[-1] == 0.0:
        raise InputError(
            "All requests arrive at once.", location=Location(file=str(path)), hint="Leave out the arrivals."
        )
    return Trace(
        file=reference,
        arrivals_N=arrivals,
        prompts_N=tuple(prompt for _, prompt, _ in found),
        outputs_N=tuple(output for _, _, output in found),
    )


def _csv_rows(text: str, file: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.DictReader(text.splitlines())
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        for what, known in (("prompts", INPUT_NAMES), ("answers", OUTPUT_NAMES)):
            if not set(names) & set(known):
                place = Location(file=file, line=1)
                raise InputError(f"The first line names no column of {what}.", location=place, hint=_HINT)
        reader.fieldnames = names
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if name is not None}
    except csv.Error as error:
        place = Location(file=file, line=reader.reader.line_num)
        raise InputError(f"This is not CSV: {error}.", location=place, hint=_HINT) from None


def _json_rows(text: str, file: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InputError("This line is no JSON object.", location=Location(file=file, line=number), hint=_HINT)
        yield number, row


def _request(row: Mapping[str, object], place: Location) -> tuple[float | None, int, int]:
    prompt = _length(_first(row, INPUT_NAMES), INPUT_NAMES[0], place)
    output = _length(_first(row, OUTPUT_NAMES), OUTPUT_NAMES[0], place)
    seconds, milliseconds = _first(row, SECONDS_NAMES), _first(row, MILLISECONDS_NAMES)
    if seconds is None and milliseconds is None:
        return None, prompt, output
    given = seconds if seconds is not None else milliseconds
    value = _number(given)
    if value is None or not math.isfinite(value) or value < 0:
        raise InputError(f"{shown(given)} is no time of arrival.", location=place, hint=_HINT)
    return value if seconds is not None else value / 1e3, prompt, output


def _first(row: Mapping[str, object], names: tuple[str, ...]) -> object:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _length(value: object, name: str, place: Location) -> int:
    if value is None:
        raise InputError(f"`{name}` is missing.", location=place, hint=_HINT)
    number = _number(value)
    if number is None or not number.is_integer() or not 1 <= number <= MAX_LENGTH:
        raise InputError(f"`{name}` = {shown(value)} is no number of tokens.", location=place, hint=_HINT)
    return int(number)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
