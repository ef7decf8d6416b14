"""Lengths of documents in every form that a spec may give them."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.documents import parse_document
from planner.errors import InputError
from planner.requests.workload import MAX_LENGTH, DocumentLengths, Packing
from planner.schema.document_lengths import (
    MAX_FILE_BYTES,
    MAX_LENGTHS,
    binned_shares,
    lognormal_shares,
    uniform_shares,
)
from planner.schema.spec import read_request

TOO_LONG = "Raise seq_len, or give the lengths of the pieces that longer documents are cut into."
LINE_HINT = "Give a length from 1 to 16,777,216 on every line, or a length and a count such as 512,20."


def spec(documents: str, *, seq_len: int = 4096) -> str:
    return (
        "schema: 1\nmodel: x\ncluster: y\nworkload:\n"
        f"  {{kind: train, seq_len: {seq_len}, global_batch_size: 8, precision: bf16,\n"
        f"   documents: {documents}}}\n"
    )


def read(documents: str, *, seq_len: int = 4096, base: Path = Path("/nonexistent")) -> DocumentLengths:
    document = parse_document(spec(documents, seq_len=seq_len), file="spec.yaml")
    lengths = read_request(document, base=base).workload.documents
    assert lengths is not None
    return lengths


def error_of(documents: str, *, base: Path = Path("/nonexistent")) -> str:
    with pytest.raises(InputError) as caught:
        read(documents, base=base)
    return str(caught.value).replace(f"{base}/", "")


@pytest.mark.parametrize("histogram", ["{512: 0.3, 4096: 0.7}", "{'4096': 7, 512: 3, 64: 0}"])
def test_a_histogram_is_normalised_and_ordered(histogram: str) -> None:
    found = read(f"{{packing: padded, histogram: {histogram}}}")
    assert (found.lengths, found.packing) == ((512, 4096), Packing.PADDED)
    assert found.weights == pytest.approx((0.3, 0.7))


def test_documents_are_packed_unless_told() -> None:
    assert read("{histogram: {1: 1}}") == DocumentLengths(lengths=(1,), weights=(1.0,), packing=Packing.PACKED)


def test_no_documents_mean_whole_sequences() -> None:
    text = spec("{}").replace(",\n   documents: {}", "")
    assert read_request(parse_document(text, file="spec.yaml"), base=Path()).workload.documents is None


@pytest.mark.parametrize(
    ("text", "lengths", "weights"),
    [
        ("512\n4096\n4096\n512\n", (512, 4096), (0.5, 0.5)),
        ("length\n7\n", (7,), (1.0,)),
        ("Length,Count\r\n512, 3\r\n\r\n64,1\r\n512,4", (64, 512), (0.125, 0.875)),
        ("\ufeff4096,1000000000000000000\n", (4096,), (1.0,)),
    ],
)
def test_a_file_lists_lengths_or_lengths_and_counts(
    tmp_path: Path, text: str, lengths: tuple[int, ...], weights: tuple[float, ...]
) -> None:
    (tmp_path / "lengths.csv").write_text(text, encoding="utf-8", newline="")
    found = read("{packing: packed, file: lengths.csv}", base=tmp_path)
    assert (found.lengths, found.weights) == (lengths, weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"lengths.csv: The file lists no document.\n{LINE_HINT}"),
        ("length\n", f"lengths.csv: The file lists no document.\n{LINE_HINT}"),
        ("512\n12x\n", f'lengths.csv:2: "12x" is neither a length nor a length and a count.\n{LINE_HINT}'),
        ("512\nlength\n", f'lengths.csv:2: "length" is neither a length nor a length and a count.\n{LINE_HINT}'),
        ("0\n", f'lengths.csv:1: "0" is neither a length nor a length and a count.\n{LINE_HINT}'),
        ("5,0\n", f'lengths.csv:1: "5,0" is neither a length nor a length and a count.\n{LINE_HINT}'),
        ("5,1,2\n", f'lengths.csv:1: "5,1,2" is neither a length nor a length and a count.\n{LINE_HINT}'),
        ("4096\n4097\n", "lengths.csv:2: A document of 4097 tokens is longer than a sequence: `seq_len` = 4096.\n"),
        ("1\x1b[2J\n", "lengths.csv:1:2: The text holds the unprintable character U+001B.\n"),
        ("\udcff", f"lengths.csv: The file is not UTF-8 text.\n{LINE_HINT}"),
    ],
)
def test_a_wrong_line_of_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "lengths.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert error_of("{file: lengths.csv}", base=tmp_path).startswith(message)


@pytest.mark.parametrize("name", ["none.csv", ".", "/dev/zero"])
def test_what_is_no_file_is_said(tmp_path: Path, name: str) -> None:
    assert error_of(f"{{file: {name}}}", base=tmp_path) == (
        f'spec.yaml:6:22: workload.documents.file: "{name}" is not a file.\n'
        "Give the path of a file with one length a line, relative to the spec."
    )


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "lengths.csv").open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    assert error_of("{file: lengths.csv}", base=tmp_path) == (
        "lengths.csv: The file is larger than 64 MiB.\nWrite each length once, with its count behind it."
    )


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            "{packing: packed}",
            (
                ":6:15: workload.documents: `documents` does not say how long they are.\n"
                "Give a histogram such as {512: 0.3, 4096: 0.7}, a distribution, or a file of lengths."
            ),
        ),
        (
            "{histogram: {1: 1}, file: x}",
            (
                ":6:41: workload.documents.file: `documents` gives lengths twice: as histogram and as file.\n"
                "Give one of histogram, distribution and file."
            ),
        ),
        (
            "{packing: boxed, histogram: {1: 1}}",
            ':6:25: workload.documents.packing: `packing` = "boxed" is not a known value.\nAllowed: packed, padded.',
        ),
        (
            "{histogram: {}}",
            ":6:27: workload.documents.histogram: `histogram` is too short.\nGive at least 1.",
        ),
        (
            "{histogram: {512: 0}}",
            (
                ":6:27: workload.documents.histogram: The histogram has no documents: every weight is 0.\n"
                "Give at least one length a positive weight."
            ),
        ),
        (
            "{histogram: {512: -1}}",
            ":6:33: workload.documents.histogram.512: `512` = -1 is out of range.\nGive a value of at least 0.0.",
        ),
        (
            "{histogram: {512: x}}",
            ':6:33: workload.documents.histogram.512: `512` = "x" is not a number.\nGive a number.',
        ),
        (
            "{histogram: {short: 1}}",
            (
                ':6:28: workload.documents.histogram.short: "short" is not a length.\n'
                "Give whole numbers of tokens from 1 to 16,777,216, each with its weight."
            ),
        ),
        (
            "{histogram: {4096: 1, 4097: 1}}",
            (
                ":6:37: workload.documents.histogram.4097: A document of 4097 tokens is longer than a sequence: "
                f"`seq_len` = 4096.\n{TOO_LONG}"
            ),
        ),
        (
            "{distribution: normal}",
            (
                ':6:30: workload.documents.distribution: `distribution` = "normal" is not a known value.\n'
                "Did you mean `lognormal`? Allowed: lognormal, uniform."
            ),
        ),
        (
            "{distribution: lognormal, mean: 100}",
            (
                ":6:30: workload.documents.distribution: `distribution` = lognormal needs `sigma`.\n"
                "Give the mean length in tokens, and sigma, the standard deviation of the logarithm of the length."
            ),
        ),
        (
            "{distribution: uniform, min: 1}",
            (
                ":6:30: workload.documents.distribution: `distribution` = uniform needs `max`.\n"
                "Give the shortest and the longest length in tokens."
            ),
        ),
        (
            "{distribution: uniform, min: 1, max: 2, sigma: 1}",
            (
                ":6:62: workload.documents.sigma: `sigma` belongs to `distribution` = lognormal.\n"
                "Remove it, or give lognormal."
            ),
        ),
        (
            "{histogram: {1: 1}, max: 7}",
            ":6:40: workload.documents.max: `max` belongs to `distribution` = uniform.\nRemove it, or give uniform.",
        ),
        (
            "{distribution: uniform, min: 9, max: 8}",
            (
                ":6:44: workload.documents.min: The range from `min` = 9 to `max` = 8 is empty.\n"
                "Give a min that is not above max."
            ),
        ),
        (
            "{distribution: uniform, min: 1, max: 4097}",
            (
                ":6:52: workload.documents.max: The longest of the documents, 4,097 tokens, is longer than a sequence: "
                f"`seq_len` = 4096.\n{TOO_LONG}"
            ),
        ),
        (
            "{distribution: lognormal, mean: 4096.5, sigma: 1}",
            (
                ":6:47: workload.documents.mean: The mean of the documents, 4,096.5 tokens, is longer than a sequence: "
                f"`seq_len` = 4096.\n{TOO_LONG}"
            ),
        ),
        (
            "{distribution: lognormal, mean: 100, sigma: 0}",
            ":6:59: workload.documents.sigma: `sigma` = 0 is out of range.\nGive a value of more than 0.0.",
        ),
        (
            "{distribution: lognormal, mean: 100, sigma: 4.5}",
            ":6:59: workload.documents.sigma: `sigma` = 4.5 is out of range.\nGive a value of at most 4.0.",
        ),
    ],
)
def test_a_wrong_description_is_named_with_its_place(documents: str, message: str) -> None:
    assert error_of(documents) == f"spec.yaml{message}"


def moment(shares: dict[int, float] | DocumentLengths, power: int) -> float:
    if isinstance(shares, DocumentLengths):
        return shares.mean(lambda length: float(length**power))
    total = math.fsum(shares.values())
    return math.fsum(share * length**power for length, share in shares.items()) / total


@pytest.mark.parametrize(("mean", "sigma"), [(1200, 1.1), (3000, 0.1), (300.5, 0.7), (2000, 1.5)])
def test_a_lognormal_distribution_keeps_its_mean_and_mean_square(mean: float, sigma: float) -> None:
    found = read(f"{{distribution: lognormal, mean: {mean}, sigma: {sigma}}}", seq_len=MAX_LENGTH)
    assert len(found.lengths) <= MAX_LENGTHS
    assert moment(found, 1) == pytest.approx(mean, rel=1e-3)
    assert moment(found, 2) == pytest.approx(mean**2 * math.exp(sigma**2), rel=1e-2)


def test_documents_of_a_distribution_above_a_sequence_are_cut_to_it() -> None:
    cut = read("{distribution: lognormal, mean: 4096, sigma: 1}", seq_len=4096)
    # Half a sigma above the middle of the logarithm: 31 % of the documents are longer than the mean.
    assert cut.lengths[-1] == 4096
    assert cut.weights[-1] == pytest.approx(0.5 * math.erfc(0.5 / math.sqrt(2)), rel=0.1)


def test_a_uniform_distribution_of_few_lengths_has_them_all() -> None:
    found = read("{distribution: uniform, min: 7, max: 10}")
    assert (found.lengths, found.weights) == ((7, 8, 9, 10), (0.25,) * 4)


def test_a_uniform_distribution_of_many_lengths_keeps_its_mean_and_mean_square() -> None:
    found = read("{distribution: uniform, min: 100, max: 4096}")
    assert len(found.lengths) == MAX_LENGTHS
    assert moment(found, 1) == pytest.approx((100 + 4096) / 2, abs=0.5)
    exact = sum(length**2 for length in range(100, 4097)) / 3997
    assert moment(found, 2) == pytest.approx(exact, rel=1e-3)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.dictionaries(st.integers(1, MAX_LENGTH), st.integers(1, 1000), min_size=1, max_size=300))
def test_many_lengths_become_few_that_cost_nearly_the_same(counts: dict[int, int]) -> None:
    binned = dict(binned_shares(counts))
    assert len(binned) <= MAX_LENGTHS
    assert math.fsum(binned.values()) == sum(counts.values())
    assert moment(binned, 1) == pytest.approx(moment(dict(counts), 1), rel=0.01, abs=0.5)
    assert moment(binned, 2) == pytest.approx(moment(dict(counts), 2), rel=0.02, abs=0.5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seq_len=st.integers(1, MAX_LENGTH), part=st.floats(0, 1), sigma=st.floats(1e-6, 4))
def test_any_distribution_is_one(seq_len: int, part: float, sigma: float) -> None:
    mean = 1 + part * (seq_len - 1)
    for shares in (
        lognormal_shares(mean=mean, sigma=sigma, seq_len=seq_len),
        uniform_shares(max(1, int(mean)), seq_len),
    ):
        assert 1 <= len(shares) <= MAX_LENGTHS
        assert min(shares) >= 1
        assert max(shares) <= seq_len
        assert min(shares.values()) > 0
        assert math.fsum(shares.values()) == pytest.approx(1.0, abs=1e-9)
