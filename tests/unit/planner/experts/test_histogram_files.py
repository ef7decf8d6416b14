"""Routing histograms: every form that is read gives the same counts, and what each refusal says."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.experts.assumed import TOKENS, assumed_histogram, is_assumption
from planner.experts.histogram_files import read_histogram
from tests.examples import examples

COUNTS = np.array([[5.0, 0.0, 1.0], [2.0, 2.0, 2.0]])


def write(path: Path, form: str) -> None:
    """Write the counts in one form."""
    listed = COUNTS.tolist()
    match form:
        case "list":
            path.write_text(json.dumps(listed))
        case "recording":
            path.write_text(json.dumps({"logical_count": [listed, np.zeros((2, 3)).tolist()], "rank": 0}))
        case "rows":
            path.write_text("5,0,1\n2,2,2\n")
        case "cells":
            path.write_text("layer,expert,count\n0,0,5\n0,2,1\n1,0,2\n1,1,2\n1,2,2\n")
        case "array":
            np.save(path, np.asfortranarray(COUNTS.astype(np.int32)))
        case "arrays":
            np.savez(path, logical_count=COUNTS)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.json", "list"),
        ("a.json", "recording"),
        ("a.csv", "rows"),
        ("a.csv", "cells"),
        ("a.npy", "array"),
        ("a.npz", "arrays"),
    ],
)
def test_every_form_gives_the_same_counts(tmp_path: Path, name: str, form: str) -> None:
    write(tmp_path / name, form)
    found = read_histogram(tmp_path / name)
    assert np.array_equal(found.tokens_LE, COUNTS)
    assert not found.assumed


def test_a_sample_of_tokens_gives_counts_pairs_and_transitions(tmp_path: Path) -> None:
    chosen = np.array([[[0, 1], [2, 1]], [[0, 2], [2, 0]]])
    np.savez(tmp_path / "a.npz", topk_ids=chosen, num_experts=3)
    found = read_histogram(tmp_path / "a.npz")
    assert found.tokens_LE.tolist() == [[2, 1, 1], [1, 1, 2]]
    assert found.coactivation_LEE is not None
    assert found.coactivation_LEE[0].tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert found.transitions_LEE is not None
    assert found.transitions_LEE.tolist() == [[[1, 1, 2], [0, 1, 1], [1, 0, 1]]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[[1, 2", "a.json:1:7: This is no JSON: Expecting ',' delimiter."),
        ("a.json", "{}", "a.json: There is no logical_count here."),
        ("a.json", "[[1, 2], [3]]", "a.json: [1]: Here is a list of 1, and in the rows before a list of 2."),
        ("a.json", "[[1, -2]]", "a.json: logical_count[0][1]: -2 is no count."),
        ("a.json", "[[1, NaN]]", "a.json: [0][1]: NaN is no count."),
        ("a.json", '[[1, "2"]]', 'a.json: [0][1]: "2" is no count.'),
        ("a.json", "[[1, true]]", "a.json: [0][1]: true is no count."),
        ("a.json", "[[1, [2]]]", "a.json: [0][1]: Here is a list of 1, and in the rows before a single number."),
        ("a.json", "[[1, 1e400]]", "a.json: [0][1]: Infinity is no count."),
        ("a.json", "[" * 200 + "]" * 200, "a.json: [0][0][0]: Lists stand deeper here than steps by layers by exp"),
        ("a.json", "[[0, 0]]", "a.json: No token was counted."),
        ("a.json", "[[[[1]]]]", "a.json: [0][0][0]: Lists stand deeper here than steps by layers by experts."),
        (
            "a.json",
            '{"logical_count": [[1, 2]], "coactivation": [[1]]}',
            "coactivation: The shape is (1, 1), not (1, 2, 2).",
        ),
        ("a.json", '{"logical_count": [[1, 2]], "coactivation": [[[0, 1], [2, 0]]]}', "are the same both ways."),
        ("a.csv", "layer,expert,count\n0,0,5\n0,0,6\n", "a.csv:3: Layer 0, expert 0 stands here twice."),
        ("a.csv", "layer,expert,count\n0,x,5\n", "a.csv:2: 'x' is no number of a layer or an expert."),
        ("a.csv", "1,2\n3,y\n", "a.csv:2: 'y' is no number."),
        ("a.csv", "1,2\n\n3\n", "a.csv:3: There are 1 cells, and 2 in the first row."),
        ("a.csv", "1,2\n\n3,-4\n", "a.csv:3: '-4' is no count."),
        ("a.csv", "layer,expert,count\n\n0,0,nan\n", "a.csv:3: 'nan' is no count."),
        ("a.csv", '1,2\n"3,4\n', "a.csv:2: This is no CSV: unexpected end of data."),
        ("a.csv", "", "a.csv: The file is empty."),
        ("a.npy", "no array", "a.npy: This is no .npy array: "),
        ("a.npz", "no archive", "a.npz: This is no .npz file: "),
        ("a.pt", "", "a.pt: This is a pickle, which is not read: it can run any code."),
        ("a.txt", "", "a.txt: Nothing is known of files of this name."),
    ],
)
def test_what_is_no_histogram_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as raised:
        read_histogram(tmp_path / name)
    assert message in str(raised.value)


def test_arrays_that_hold_objects_or_lie_about_their_length_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="The array holds object, not numbers"):
        read_histogram(path)
    np.save(path, COUNTS)
    path.write_bytes(path.read_bytes().replace(b"(2, 3)", b"(9, 9)"))
    with pytest.raises(InputError, match=r"The array of shape \(9, 9\) is cut off"):
        read_histogram(path)


def test_experts_of_a_sample_are_numbered(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", topk_ids=np.array([[[0, 3]]]), num_experts=3)
    with pytest.raises(InputError, match="Experts are numbered 0 to 2"):
        read_histogram(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", topk_ids=np.array([[[0, 3]]]))
    with pytest.raises(InputError, match="It must say how many experts there are"):
        read_histogram(tmp_path / "a.npz")


def test_an_assumption_is_the_same_for_the_same_seed_and_has_its_shape() -> None:
    first, second, other = (
        assumed_histogram("zipf:1.0", num_layers=2, num_experts=16, seed=seed) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.tokens_LE, second.tokens_LE)
    assert not np.array_equal(first.tokens_LE, other.tokens_LE)
    assert (first.tokens_LE.sum(axis=1) == TOKENS).all()
    ordered = -np.sort(-first.tokens_LE, axis=1)
    assert np.allclose(ordered[:, 0] / ordered[:, 3], 4, rtol=0.03)
    assert first.assumed
    assert not is_assumption("zipf")
    assert not is_assumption("counts.json")
    with pytest.raises(InputError, match=r"zipf:99: the parameter is above 10\."):
        assumed_histogram("zipf:99", num_layers=1, num_experts=2, seed=0)


def whole_files(folder: Path) -> dict[str, bytes]:
    """Return a sound file of each form."""
    np.save(folder / "a.npy", COUNTS)
    np.savez(folder / "a.npz", logical_count=COUNTS, coactivation=np.zeros((2, 3, 3)))
    np.savez(folder / "b.npz", topk_ids=np.array([[[0, 1], [1, 2]]]), num_experts=3)
    texts = {
        "a.json": json.dumps({"logical_count": [[[1, 2, 3], [4, 5, 6]]], "transitions": [[[1, 0, 0]] * 3]}),
        "a.csv": "layer,expert,count\n0,0,5\n0,2,1\n1,1,4\n",
        "b.csv": "1,2,3\n4,5,6\n",
    }
    binary = {name: (folder / name).read_bytes() for name in ("a.npy", "a.npz", "b.npz")}
    return {**binary, **{name: text.encode() for name, text in texts.items()}}


@settings(max_examples=examples(few=100, many=300), deadline=None, derandomize=True)
@given(name=st.sampled_from(("a.json", "a.csv", "b.csv", "a.npy", "a.npz", "b.npz")), data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(whole_files(folder)[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(("change", "cut", "insert", "remove"))):
            case "change":
                content[at] = data.draw(st.integers(0, 255))
            case "cut":
                del content[at + 1 :]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=3))
            case "remove":
                del content[at : at + max(1, len(content) // 20)]
        if not content:
            break
    (folder / name).write_bytes(bytes(content))
    with contextlib.suppress(InputError):
        found = read_histogram(folder / name)
        assert np.isfinite(found.tokens_LE).all()
        assert (found.tokens_LE >= 0).all()
        assert found.tokens_LE.sum() > 0
