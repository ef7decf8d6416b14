import json
import os
import pickle
import random
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.plan_file import read_plan
from planner.errors import InputError
from planner.plans.plan import MemoryLine, Phase
from planner.reconcile.snapshots import Block, Snapshot, read_snapshot
from planner.reconcile.terms import OUTSIDE, Reconciled, reconciled, term_of
from tests.unit.planner.reconcile.snapshots import FRAMES, snapshot, traced

RUNNER = CliRunner()
MIB = 1 << 20
LEDGER = {
    "weights": 400 * MIB,
    "gradients": 800 * MIB,
    "master weights": 200 * MIB,
    "optimizer moments": 410 * MIB,
    "activations": 900 * MIB,
    "backward temporaries": 64 * MIB,
    "logits and loss": 128 * MIB,
    "workspaces": 96 * MIB,
    "fragmentation": 50 * MIB,
    "communicators": 700 * MIB,
    "context and libraries": 600 * MIB,
}
MEMORY = tuple(
    MemoryLine(rank=0, phase=Phase.FORWARD_BACKWARD, term=term, num_bytes=num_bytes, source="test")
    for term, num_bytes in LEDGER.items()
)
WITH_FRAMES = [(term, num_bytes) for term, num_bytes in LEDGER.items() if term in FRAMES]


def written(tmp_path: Path, data: object) -> Path:
    path = tmp_path / "snapshot.pickle"
    path.write_bytes(pickle.dumps(data))
    return path


def beside(found: Snapshot) -> Reconciled:
    return reconciled(found, MEMORY, rank=0, phase=Phase.FORWARD_BACKWARD)


@pytest.mark.parametrize("term", sorted(FRAMES))
def test_frames_name_each_term(term: str) -> None:
    assert term_of(Block(1, tuple(f"{file}:{name}" for file, name in FRAMES[term]))) == term


def test_a_snapshot_of_what_the_ledger_says_differs_nowhere(tmp_path: Path) -> None:
    blocks = [*WITH_FRAMES, ("gradients", LEDGER["gradients"])]
    found = beside(read_snapshot(written(tmp_path, snapshot(blocks, free=50 * MIB))))
    assert found.most_wrong == ""
    terms = {entry.term: entry for entry in found.terms}
    assert {entry.difference_bytes for term, entry in terms.items() if term not in (*OUTSIDE, "unassigned")} == {0}
    assert terms["unassigned"].found_bytes == 0
    assert [term for term, entry in terms.items() if entry.by_size] == ["gradients"]
    assert all(terms[term].found_bytes is None for term in OUTSIDE)


def test_every_live_byte_stands_in_one_term(tmp_path: Path) -> None:
    random_ = random.Random(1)
    blocks = [(random_.choice([*FRAMES, "?"]), random_.randrange(1, 1 << 24)) for _ in range(200)]
    found = read_snapshot(written(tmp_path, snapshot(blocks)))
    terms = beside(found).terms
    counted = sum(entry.found_bytes or 0 for entry in terms if entry.term != "fragmentation")
    assert counted == sum(num_bytes for _, num_bytes in blocks)
    assert sum(entry.num_blocks for entry in terms) == len(blocks)


def test_the_term_that_is_most_wrong_is_named(tmp_path: Path) -> None:
    blocks = [(term, num_bytes * (2 if term == "activations" else 1)) for term, num_bytes in WITH_FRAMES]
    blocks += [("gradients", LEDGER["gradients"]), ("?", 5000 * MIB)]
    assert beside(read_snapshot(written(tmp_path, snapshot(blocks, free=50 * MIB)))).most_wrong == "activations"


def test_a_size_that_could_be_two_terms_is_no_term(tmp_path: Path) -> None:
    memory = (*MEMORY, MemoryLine(rank=0, phase=Phase.FORWARD_BACKWARD, term="x", num_bytes=801 * MIB, source="test"))
    found = read_snapshot(written(tmp_path, snapshot([("?", 800 * MIB)])))
    terms = reconciled(found, memory, rank=0, phase=Phase.FORWARD_BACKWARD).terms
    assert terms[-1].found_bytes == 800 * MIB


def test_the_peak_is_replayed_from_the_history(tmp_path: Path) -> None:
    first, second, third = 0x7F0000000000, 0x7F1000000000, 0x7F2000000000
    history = [
        traced("alloc", second, 100, "activations"),
        traced("free_completed", third, 30),
        traced("alloc", third, 40, "backward temporaries"),
        traced("free_requested", second, 100),
        traced("free_completed", second, 100),
        traced("segment_alloc", second, 1 << 30),
        traced("free_completed", third, 40),
        traced("alloc", first, 10, "weights"),
    ]
    found = read_snapshot(written(tmp_path, snapshot([("weights", 10)], history=history)))
    assert found.at_peak
    sizes = {term_of(block): block.num_bytes for block in found.blocks}
    assert sizes == {"activations": 100, "backward temporaries": 40}
    history[1] = traced("free_completed", third, 90)
    found = read_snapshot(written(tmp_path, snapshot([("weights", 10)], history=history)))
    assert {term_of(block): block.num_bytes for block in found.blocks} == {"activations": 100, "": 90}


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_Evil(), "This is no snapshot: it wants to load posix.system, and a snapshot holds plain values."),
        ([1], "There is no list of segments."),
        ({"segments": []}, "It holds no memory."),
        ({"segments": [{"device": 0}]}, "The snapshot is damaged: 'total_size' is missing."),
        ({"segments": [{"total_size": -1, "blocks": []}]}, "The snapshot is damaged: '-1' is no number of bytes."),
        ({"segments": [{"total_size": 1, "blocks": 3}]}, "The snapshot is damaged: blocks is no list."),
        ({"segments": [7]}, "The snapshot is damaged: "),
    ],
)
def test_what_is_no_snapshot_is_refused(tmp_path: Path, data: object, message: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(InputError) as caught:
        read_snapshot(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_mutated_snapshot_is_read_or_refused(tmp_path: Path) -> None:
    random_ = random.Random(11)
    raw = pickle.dumps(snapshot(WITH_FRAMES, history=[traced("alloc", 1, 2, "weights")] * 3), protocol=2)
    path = tmp_path / "snapshot.pickle"
    for _ in range(300):
        cut = bytearray(raw)
        for _ in range(random_.randint(1, 5)):
            place = random_.randrange(len(cut))
            cut[place : place + random_.randint(0, 8)] = random_.choice(
                [b"", b"0", b"N", b"(", b"}", b"\x00", b"K\x07"]
            )
        path.write_bytes(cut)
        with suppress(InputError):
            beside(read_snapshot(path))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reconcile")
    (folder / "spec.yaml").write_text(
        "schema: 1\nmodel: llama-3.2-1b\ncluster: {preset: dgx-h100, nodes: 1}\n"
        "workload: {kind: train, seq_len: 4096, global_batch_size: 32, precision: bf16}\n"
        "constraints: {tp: 2, pp: 2, vpp: 1, cp: 1, micro_batch_size: 1}\n"
    )
    result = RUNNER.invoke(app, ["plan", str(folder / "spec.yaml"), "--out", str(folder / "run"), "--quiet"])
    assert result.exit_code == 0, result.stderr
    return folder / "run"


def test_the_command_lays_a_snapshot_beside_the_stage_of_its_rank(run: Path, tmp_path: Path) -> None:
    plan = read_plan(run)
    layout = plan.plans[0].layout
    last = layout.first_global_rank(1)
    weights = {line.rank: line.num_bytes for line in plan.plans[0].memory if line.term == "weights"}
    path = written(tmp_path, snapshot([("weights", weights[last] + 3 * MIB)]))
    words = ["reconcile", str(run), str(path), "--rank", str(last + 1)]
    result = RUNNER.invoke(app, [*words, "--format", "json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    (found,) = [entry for entry in document["terms"] if entry["term"] == "weights"]
    assert (document["rank"], document["phase"], found["difference_bytes"]) == (last, "optimizer-step", 3 * MIB)
    text = RUNNER.invoke(app, words)
    assert text.exit_code == 0
    assert f"Most wrong: {document['most_wrong']}." in text.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Which of the 2 pipeline stages the snapshot is of is not said."),
        (("--rank", "8"), "There is no rank 8."),
        (("--rank", "0", "--index", "77"), "The plan has no layout 77."),
    ],
)
def test_a_rank_or_a_layout_that_is_not_there(run: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    result = RUNNER.invoke(app, ["reconcile", str(run), str(written(tmp_path, snapshot([]))), *words])
    assert result.exit_code == 2
    assert message in result.stderr
