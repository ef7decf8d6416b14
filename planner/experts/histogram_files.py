"""Reads routing histograms: JSON, CSV, and NumPy's .npy and .npz, never with pickle.

What is understood:

- JSON: a list of layers, each a list of counts; or an object with `logical_count`, which SGLang's recorder of expert
  distributions writes (layers by experts, or steps by layers by experts), and optionally `coactivation` (layers by
  experts by experts) and `transitions` (one layer less).
- CSV: the columns layer, expert and count under such a header; or counts alone, a row for each layer.
- .npy: the counts, in two dimensions, or in three with steps first.
- .npz: arrays of the same names as in JSON; or `topk_ids`, tokens by layers by the experts that each token chose, with
  `num_experts`.
"""

import csv
import json
import math
import struct
import tokenize
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError, Location
from planner.experts.histogram import Floats, RoutingHistogram, from_choices

MOST_BYTES = 1 << 30
"""Bytes of a file, and of an array within one."""
MOST_AXES = 3
LARGEST_COUNT = 10**18
MOST_EXPERTS = 4096
MOST_LAYERS = 4096
COUNTS, PAIRS, FOLLOWS, CHOICES = "logical_count", "coactivation", "transitions", "topk_ids"
HEADER = ["layer", "expert", "count"]
TORCH_HINT = (
    'Write it as JSON first: python -c "import json, sys, torch; d = torch.load(sys.argv[1], weights_only=True); '
    "json.dump({'logical_count': d['logical_count'].tolist()}, open('counts.json', 'w'))\" FILE.pt"
)
Numbers = NDArray[np.generic]


def read_histogram(path: Path) -> RoutingHistogram:
    """Return the histogram of a file.

    Raises:
        InputError: The file cannot be read, or is no histogram.
    """
    raw = _bytes(path)
    match path.suffix.lower():
        case ".json":
            return _from_arrays(path, _json_arrays(path, raw))
        case ".csv":
            return _from_arrays(path, {COUNTS: _csv_counts(path, raw)})
        case ".npy":
            return _from_arrays(path, {COUNTS: _npy(path, raw, "")})
        case ".npz":
            return _from_arrays(path, _npz_arrays(path, raw))
        case ".pt" | ".pth" | ".pkl":
            raise _wrong(path, "This is a pickle, which is not read: it can run any code.", hint=TORCH_HINT)
    raise _wrong(path, "Nothing is known of files of this name.", hint="Give a .json, .csv, .npy or .npz file.")


def _wrong(path: Path, message: str, *, where: str = "", line: int | None = None, hint: str = "") -> InputError:
    return InputError(message, location=Location(file=str(path), line=line, path=where), hint=hint)


def _bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise _wrong(path, "This is a directory.", hint="Name a file.")
        if path.stat().st_size > MOST_BYTES:
            raise _wrong(path, f"The file is larger than {MOST_BYTES:,} bytes.", hint="Sum its steps first.")
        return path.read_bytes()
    except OSError as error:
        hint = "Give a file of counts, or an assumption: zipf:1.0, lognormal:0.5 or uniform." if not path.suffix else ""
        raise _wrong(path, f"The file cannot be read: {error.strerror or error}.", hint=hint) from error


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        InputError: It cannot be read.
    """
    return _json(path, _bytes(path))


def _json(path: Path, raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        raise InputError(
            f"This is no JSON: {error.msg}.", location=Location(file=str(path), line=error.lineno, column=error.colno)
        ) from error
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"This is no JSON that can be read: {error}.") from error


def _json_arrays(path: Path, raw: bytes) -> Mapping[str, Numbers]:
    found = _json(path, raw)
    if isinstance(found, list):
        return {COUNTS: _array(path, found, "")}
    if not isinstance(found, dict) or COUNTS not in found:
        raise _wrong(
            path,
            f"There is no {COUNTS} here.",
            hint=f'Give a list of layers, each a list of counts, or an object {{"{COUNTS}": [...]}}.',
        )
    return {name: _array(path, found[name], name) for name in (COUNTS, PAIRS, FOLLOWS) if name in found}


def _array(path: Path, values: object, where: str) -> Numbers:
    fault = _fault(values, where)
    if fault is not None:
        raise _wrong(path, fault[1], where=fault[0])
    return np.array(values, dtype=np.float64)


def _fault(values: object, where: str) -> tuple[str, str] | None:
    """Return where lists hold what is no number, or differ in length, and what it is; None where they do not."""
    if not isinstance(values, list):
        if isinstance(values, int | float) and not isinstance(values, bool) and abs(values) <= LARGEST_COUNT:
            return None
        return where, f"{json.dumps(values)[:40]} is no count."
    if where.count("[") == MOST_AXES:
        return where, "Lists stand deeper here than steps by layers by experts."
    for index, value in enumerate(values):
        place = f"{where}[{index}]"
        if (fault := _fault(value, place)) is not None:
            return fault
        length, first = (len(row) if isinstance(row, list) else None for row in (value, values[0]))
        if length != first:
            return place, f"Here is {_items(length)}, and in the rows before {_items(first)}."
    return None


def _items(length: int | None) -> str:
    return "a single number" if length is None else f"a list of {length:,}"


def _csv_counts(path: Path, raw: bytes) -> Numbers:
    try:
        reader = csv.reader(raw.decode("utf-8-sig").splitlines(), strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise _wrong(path, f"This is no CSV: {error}.") from error
    except csv.Error as error:
        raise _wrong(path, f"This is no CSV: {error}.", line=reader.line_num) from error
    if not rows:
        raise _wrong(path, "The file is empty.")
    if [cell.strip().lower() for cell in rows[0][1]] == HEADER:
        return _listed_counts(path, rows[1:])
    for line, row in rows:
        if len(row) != len(rows[0][1]):
            raise _wrong(
                path,
                f"There are {len(row)} cells, and {len(rows[0][1])} in the first row.",
                line=line,
                hint="Give a row of counts for each layer, or layer,expert,count.",
            )
    return np.array([[_number(path, cell, line) for cell in row] for line, row in rows])


def _listed_counts(path: Path, rows: Sequence[tuple[int, Sequence[str]]]) -> Numbers:
    found: dict[tuple[int, int], float] = {}
    for line, row in rows:
        if len(row) != len(HEADER):
            raise _wrong(path, f"There are {len(row)} cells, not 3.", line=line)
        layer, expert = (_index(path, cell, line) for cell in row[:2])
        if (layer, expert) in found:
            raise _wrong(path, f"Layer {layer}, expert {expert} stands here twice.", line=line)
        found[layer, expert] = _number(path, row[2], line)
    if not found:
        raise _wrong(path, "There are no counts below the header.")
    counts = np.zeros((1 + max(layer for layer, _ in found), 1 + max(expert for _, expert in found)))
    for (layer, expert), number in found.items():
        counts[layer, expert] = number
    return counts


def _number(path: Path, cell: str, line: int) -> float:
    try:
        number = float(cell)
    except ValueError:
        raise _wrong(path, f"{cell[:40]!r} is no number.", line=line) from None
    if not 0 <= number <= LARGEST_COUNT:
        raise _wrong(path, f"{cell[:40]!r} is no count.", line=line)
    return number


def _index(path: Path, cell: str, line: int) -> int:
    text = cell.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text) < max(MOST_LAYERS, MOST_EXPERTS)):
        raise _wrong(path, f"{cell[:40]!r} is no number of a layer or an expert.", line=line)
    return int(text)


def _npz_arrays(path: Path, raw: bytes) -> Mapping[str, Numbers]:
    found: dict[str, Numbers] = {}
    try:
        with ZipFile(BytesIO(raw)) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name not in {COUNTS, PAIRS, FOLLOWS, CHOICES, "num_experts"}:
                    continue
                if entry.file_size > MOST_BYTES:
                    raise _wrong(path, f"The array is larger than {MOST_BYTES:,} bytes.", where=name)
                found[name] = _npy(path, archive.read(entry), name)
    # What zipfile and zlib raise where a directory or an entry is damaged, such as a seek before the file's start.
    except (BadZipFile, ValueError, OSError, RuntimeError, EOFError, zlib.error, struct.error) as error:
        raise _wrong(path, f"This is no .npz file: {error}.") from error
    if COUNTS not in found and CHOICES not in found:
        raise _wrong(
            path, f"There is neither {COUNTS} nor {CHOICES} here.", hint="numpy.savez(path, logical_count=...)"
        )
    return found


def _npy(path: Path, raw: bytes, where: str) -> Numbers:
    stream = BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise _wrong(path, f"Version {version} of .npy is not read.", where=where)
    # NumPy evaluates the header as a Python literal, after its tokens where that fails.
    except (ValueError, TypeError, EOFError, SyntaxError, RecursionError, tokenize.TokenError) as error:
        raise _wrong(path, f"This is no .npy array: {error}.", where=where) from error
    if dtype.kind not in "iuf":
        raise _wrong(path, f"The array holds {dtype}, not numbers.", where=where)
    body = raw[stream.tell() :]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(body):
        raise _wrong(path, f"The array of shape {shape} is cut off.", where=where)
    flat: Numbers = np.frombuffer(body, dtype=dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _from_arrays(path: Path, arrays: Mapping[str, Numbers]) -> RoutingHistogram:
    if CHOICES in arrays:
        return _from_choices(path, arrays)
    counts = _counts_of(path, arrays[COUNTS].astype(np.float64))
    shape = (*counts.shape, counts.shape[1])
    shapes = {PAIRS: shape, FOLLOWS: (shape[0] - 1, *shape[1:])}
    kept: dict[str, Floats] = {}
    for name, wanted in shapes.items():
        if name not in arrays:
            continue
        kept[name] = arrays[name].astype(np.float64)
        if kept[name].shape != wanted:
            raise _wrong(path, f"The shape is {kept[name].shape}, not {wanted}.", where=name)
        _check_counts(path, kept[name], name)
    if PAIRS in kept:
        kept[PAIRS] = _symmetric(path, kept[PAIRS])
    return RoutingHistogram(
        source=str(path), tokens_LE=counts, coactivation_LEE=kept.get(PAIRS), transitions_LEE=kept.get(FOLLOWS)
    )


def _counts_of(path: Path, counts: Floats) -> Floats:
    """Return counts of layers by experts, steps added up."""
    if counts.ndim == 1:
        counts = counts[None, :]
    if counts.ndim == 3:
        _check_counts(path, counts, COUNTS)
        counts = counts.sum(axis=0)
    if counts.ndim != 2 or not counts.size:
        raise _wrong(path, f"Counts of shape {counts.shape} are neither layers by experts nor steps by those.")
    _check_counts(path, counts, COUNTS)
    num_layers, num_experts = counts.shape
    if num_layers > MOST_LAYERS or num_experts > MOST_EXPERTS:
        raise _wrong(path, f"{num_layers} layers of {num_experts} experts are more than 4,096 of either.")
    if not counts.sum():
        raise _wrong(path, "No token was counted.")
    return counts


def _symmetric(path: Path, pairs: Floats) -> Floats:
    if not np.allclose(pairs, pairs.transpose(0, 2, 1)):
        raise _wrong(path, "Tokens that chose both of two experts are the same both ways.", where=PAIRS)
    pairs = pairs.copy()
    diagonal = np.arange(pairs.shape[1])
    pairs[:, diagonal, diagonal] = 0.0
    return pairs


def _check_counts(path: Path, counts: Floats, where: str) -> None:
    wrong = np.argwhere(~((counts >= 0) & (counts <= LARGEST_COUNT)))
    if wrong.size:
        place = "".join(f"[{index}]" for index in wrong[0].tolist())
        raise _wrong(path, f"{counts[tuple(wrong[0])]:g} is no count.", where=f"{where}{place}")


def _from_choices(path: Path, arrays: Mapping[str, Numbers]) -> RoutingHistogram:
    chosen = arrays[CHOICES]
    if chosen.ndim != 3 or not chosen.size or chosen.dtype.kind not in "iu":
        raise _wrong(path, "These are no whole numbers of tokens by layers by chosen experts.", where=CHOICES)
    number = arrays.get("num_experts")
    if number is None or number.size != 1 or not 1 <= float(number.reshape(-1)[0]) <= MOST_EXPERTS:
        raise _wrong(path, "It must say how many experts there are, 1 to 4,096.", where="num_experts")
    num_experts = int(number.reshape(-1)[0])
    if int(chosen.min()) < 0 or int(chosen.max()) >= num_experts:
        raise _wrong(path, f"Experts are numbered 0 to {num_experts - 1}.", where=CHOICES)
    num_tokens, num_layers, _ = chosen.shape
    if num_tokens * num_layers * num_experts * 4 > MOST_BYTES:
        raise _wrong(path, "The sample is too large.", where=CHOICES, hint="Give fewer tokens, or counts.")
    return from_choices(str(path), chosen.astype(np.int64), num_experts)
