"""How long the documents are that fill a run's sequences, as users write it.

```yaml
documents: {packing: packed, histogram: {512: 0.3, 4096: 0.7}}
documents: {packing: packed, distribution: lognormal, mean: 1200, sigma: 1.1}
documents: {packing: padded, distribution: uniform, min: 100, max: 4000}
documents: {packing: packed, file: lengths.csv}
```

Weights are shares of the documents and need not sum to 1. A file has one length a line, or a length and a count. At
most `MAX_LENGTHS` lengths are kept. What is described by more of them is put into that many bins, and each bin counts
as its mean length, so that the mean of all documents stays and the mean of their squares, which attention costs,
shrinks by less than 1 % for lengths between 1 and 2**24:

- A histogram or a file with more lengths: bins of equal width on a logarithmic scale, from the shortest to the longest.
- lognormal: `mean` is the mean length in tokens, `sigma` the standard deviation of the logarithm of the length. Bins of
  equal width on a logarithmic scale, inside 1 to `seq_len`, as far out as a length has any weight in the mean of the
  squares. Documents above `seq_len` are cut there, and count as documents of `seq_len` tokens.
- uniform: bins of equally many whole numbers from `min` to `max`.
"""

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Annotated

from pydantic import Field, model_validator

from planner.documents import Document
from planner.documents.nodes import check_text
from planner.errors import InputError, Location
from planner.requests.workload import MAX_LENGTH, DocumentLengths, Packing
from planner.schema.field_types import Length, Text
from planner.schema.strict import Closed
from planner.schema.translate import Path as FieldPath
from planner.schema.translate import all_of, complaint, shown

MAX_LENGTHS = 64
"""Most lengths of one distribution. A choice: neighbouring bins are 10 % apart where lengths span a factor of 500."""

MAX_FILE_BYTES = 64 << 20
"""Largest file of lengths; ten million of them."""

MAX_COUNT = 10**18
"""Largest weight of a length: sums of `MAX_LENGTHS` of them are far from any overflow."""

_SIGMAS = 4.0
"""How far out a normal distribution is split into bins; beyond on either side are 3e-5 of it."""

_WEIGHT_DIGITS = 12
"""Decimals of the weights of a distribution, so that they do not depend on the last bits of a library's functions."""

_NEED = {"lognormal": ("mean", "sigma"), "uniform": ("min", "max")}
_NEED_HINT = {
    "lognormal": "Give the mean length in tokens, and sigma, the standard deviation of the logarithm of the length.",
    "uniform": "Give the shortest and the longest length in tokens.",
}
_FORMS = ("histogram", "distribution", "file")
_HEADS = frozenset({("length",), ("length", "count")})
_TOO_LONG_HINT = "Raise seq_len, or give the lengths of the pieces that longer documents are cut into."
_LINE_HINT = f"Give a length from 1 to {MAX_LENGTH:,} on every line, or a length and a count such as 512,20."


class Distribution(StrEnum):
    """Distributions with a name."""

    LOGNORMAL = "lognormal"
    UNIFORM = "uniform"


class DocumentsFile(Closed):
    """Lengths of documents: a histogram, a distribution or a file."""

    packing: Packing = Packing.PACKED
    histogram: (
        Annotated[dict[str, Annotated[float, Field(strict=True, ge=0, le=MAX_COUNT)]], Field(min_length=1)] | None
    ) = None
    distribution: Distribution | None = None
    mean: Annotated[float, Field(strict=True, ge=1, le=MAX_LENGTH)] | None = None
    sigma: Annotated[float, Field(strict=True, gt=0, le=4)] | None = None
    min: Length | None = None
    max: Length | None = None
    file: Text | None = None

    @model_validator(mode="after")
    def _is_one_description(self) -> "DocumentsFile":
        given = [name for name in _FORMS if getattr(self, name) is not None]
        if not given:
            raise complaint(
                "`documents` does not say how long they are.",
                "Give a histogram such as {512: 0.3, 4096: 0.7}, a distribution, or a file of lengths.",
            )
        if len(given) > 1:
            raise complaint(
                f"`documents` gives lengths twice: as {' and as '.join(given)}.",
                "Give one of histogram, distribution and file.",
                field=given[1],
            )
        needed = _NEED.get(self.distribution or "", ())
        for name in (name for names in _NEED.values() for name in names):
            if name in needed and getattr(self, name) is None:
                raise complaint(
                    f"`distribution` = {self.distribution} needs `{name}`.",
                    _NEED_HINT[self.distribution or ""],
                    field="distribution",
                )
            if name not in needed and getattr(self, name) is not None:
                owner = next(distribution for distribution, names in _NEED.items() if name in names)
                raise complaint(
                    f"`{name}` belongs to `distribution` = {owner}.", f"Remove it, or give {owner}.", field=name
                )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise complaint(
                f"The range from `min` = {self.min} to `max` = {self.max} is empty.",
                "Give a min that is not above max.",
                field="min",
            )
        return self


def read_lengths(
    documents: DocumentsFile, *, seq_len: int, document: Document, path: FieldPath, base: Path
) -> DocumentLengths:
    """Return the lengths that a spec describes.

    Args:
        documents: The description.
        seq_len: Tokens of one sequence; no document is longer.
        document: The spec.
        path: Where the description stands in it.
        base: Directory that the file of lengths is relative to.
    """
    if documents.histogram is not None:
        shares = _histogram(documents.histogram, seq_len=seq_len, document=document, path=(*path, "histogram"))
    elif documents.file is not None:
        shares = _counts(documents.file, base=base, location=document.locate((*path, "file")), seq_len=seq_len)
    elif documents.mean is not None and documents.sigma is not None:
        location = document.locate((*path, "mean"))
        _require_within(documents.mean, seq_len, location=location, what="The mean of")
        shares = lognormal_shares(mean=documents.mean, sigma=documents.sigma, seq_len=seq_len)
    else:
        assert documents.min is not None
        assert documents.max is not None
        _require_within(documents.max, seq_len, location=document.locate((*path, "max")), what="The longest of")
        shares = uniform_shares(documents.min, documents.max)
    return _distribution(binned_shares(shares), documents.packing)


def binned_shares(shares: Mapping[int, float]) -> Mapping[int, float]:
    """Return shares by length with at most `MAX_LENGTHS` of them; see the module's docstring for the bins."""
    if len(shares) <= MAX_LENGTHS:
        return shares
    shortest = min(shares)
    width = math.log(max(shares) / shortest) / MAX_LENGTHS
    bins: dict[int, list[int]] = {}
    for length in sorted(shares):
        index = min(int(math.log(length / shortest) / width), MAX_LENGTHS - 1)
        bins.setdefault(index, []).append(length)
    binned: dict[int, float] = {}
    for lengths in bins.values():
        share = math.fsum(shares[length] for length in lengths)
        binned[round(math.fsum(length * shares[length] for length in lengths) / share)] = share
    return binned


def lognormal_shares(*, mean: float, sigma: float, seq_len: int) -> Mapping[int, float]:
    """Return the shares of documents by length, lognormally distributed and cut at `seq_len`.

    With F the normal distribution of the logarithm, the documents from a to b have the share F(ln b) - F(ln a), and
    mean (F(ln b - sigma**2) - F(ln a - sigma**2)) of the mean; the squares are centred at 2 sigma**2 above F's middle.

    Args:
        mean: Mean length in tokens, before anything is cut.
        sigma: Standard deviation of the logarithm of the length.
        seq_len: Longest length.
    """
    logarithm = NormalDist(math.log(mean) - sigma**2 / 2, sigma)
    first = max(0.0, logarithm.mean - _SIGMAS * sigma)
    last = min(math.log(seq_len), logarithm.mean + 2 * sigma**2 + _SIGMAS * sigma)
    num_bins = MAX_LENGTHS - 1
    edges = [first + (last - first) * index / num_bins for index in range(num_bins + 1)] if last > first else [last]
    shares: dict[int, float] = {}

    def add(length: float, share: float) -> None:
        whole = min(max(round(length), 1), seq_len)
        shares[whole] = shares.get(whole, 0.0) + share

    below, below_shifted = 0.0, 0.0
    for high in edges[1:]:
        up_to, up_to_shifted = logarithm.cdf(high), logarithm.cdf(high - sigma**2)
        share = up_to - below
        if share > 0:
            add(min(mean * (up_to_shifted - below_shifted) / share, math.exp(high)), share)
        below, below_shifted = up_to, up_to_shifted
    add(math.exp(edges[-1]), 1.0 - below)
    rounded = {length: round(share, _WEIGHT_DIGITS) for length, share in shares.items()}
    return {length: share for length, share in rounded.items() if share > 0}


def uniform_shares(shortest: int, longest: int) -> Mapping[int, float]:
    """Return the shares of documents by length, where every whole number from `shortest` to `longest` is as likely."""
    num_values = longest - shortest + 1
    num_bins = min(num_values, MAX_LENGTHS)
    edges = [shortest + num_values * index // num_bins for index in range(num_bins + 1)]
    # An even number of neighbours has no whole middle; the lower of the two is taken.
    return {(first + behind - 1) // 2: (behind - first) / num_values for first, behind in pairwise(edges)}


def _distribution(shares: Mapping[int, float], packing: Packing) -> DocumentLengths:
    total = math.fsum(shares.values())
    lengths = tuple(sorted(shares))
    return DocumentLengths(
        lengths=lengths, weights=tuple(shares[length] / total for length in lengths), packing=packing
    )


def _require_within(length: float, seq_len: int, *, location: Location, what: str) -> None:
    if length > seq_len:
        raise InputError(
            f"{what} the documents, {length:,} tokens, is longer than a sequence: `seq_len` = {seq_len}.",
            location=location,
            hint=_TOO_LONG_HINT,
        )


def _too_long(length: int, seq_len: int, location: Location) -> InputError:
    return InputError(
        f"A document of {length} tokens is longer than a sequence: `seq_len` = {seq_len}.",
        location=location,
        hint=_TOO_LONG_HINT,
    )


def _histogram(
    histogram: Mapping[str, float], *, seq_len: int, document: Document, path: FieldPath
) -> Mapping[int, float]:
    """Return the shares by length that a histogram gives; lengths without any documents are left out."""
    errors: list[InputError] = []
    shares: dict[int, float] = {}
    for key, weight in histogram.items():
        length = _whole(key, MAX_LENGTH)
        location = document.locate((*path, key), key=True)
        if length is None:
            errors.append(
                InputError(
                    f"{shown(key)} is not a length.",
                    location=location,
                    hint=f"Give whole numbers of tokens from 1 to {MAX_LENGTH:,}, each with its weight.",
                )
            )
        elif length > seq_len:
            errors.append(_too_long(length, seq_len, location))
        elif weight > 0:
            shares[length] = shares.get(length, 0.0) + weight
    if errors:
        raise all_of(errors)
    if not shares:
        raise InputError(
            "The histogram has no documents: every weight is 0.",
            location=document.locate(path),
            hint="Give at least one length a positive weight.",
        )
    return shares


def _counts(reference: str, *, base: Path, location: Location, seq_len: int) -> Mapping[int, float]:
    """Return the number of documents by length that a file lists."""
    file, text = _file_text(reference, base=base, location=location)
    counts: dict[int, int] = {}
    for number, cells in _rows(text):
        place = Location(file=file, line=number)
        if number == 1 and tuple(cell.lower() for cell in cells) in _HEADS:
            continue
        length = _whole(cells[0], MAX_LENGTH)
        count = _whole(cells[1], MAX_COUNT) if len(cells) == 2 else 1
        if length is None or count is None or len(cells) > 2:
            raise InputError(
                f"{shown(','.join(cells))} is neither a length nor a length and a count.",
                location=place,
                hint=_LINE_HINT,
            )
        if length > seq_len:
            raise _too_long(length, seq_len, place)
        counts[length] = counts.get(length, 0) + count
    if not counts:
        raise InputError("The file lists no document.", location=Location(file=file), hint=_LINE_HINT)
    return counts


def _rows(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Return the cells of every line that is not empty, with its number."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, tuple(cell.strip() for cell in line.split(","))


def _whole(text: str, largest: int) -> int | None:
    """Return the whole number from 1 to `largest` that `text` writes, if it writes one."""
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(largest)):
        return None
    return value if 1 <= (value := int(text)) <= largest else None


def _file_text(reference: str, *, base: Path, location: Location) -> tuple[str, str]:
    """Return the name and the text of a file of lengths."""
    hint = "Give the path of a file with one length a line, relative to the spec."
    try:
        path = base / Path(reference).expanduser()
        if not path.is_file():
            raise InputError(f"{shown(reference)} is not a file.", location=location, hint=hint)
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as error:  # too long, no home directory, not readable
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{shown(reference)} cannot be read: {reason}.", location=location, hint=hint) from None
    file = str(path)
    if len(raw) > MAX_FILE_BYTES:
        raise InputError(
            f"The file is larger than {MAX_FILE_BYTES >> 20} MiB.",
            location=Location(file=file),
            hint="Write each length once, with its count behind it.",
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("The file is not UTF-8 text.", location=Location(file=file), hint=_LINE_HINT) from None
    check_text(text, file=file)
    return file, text
