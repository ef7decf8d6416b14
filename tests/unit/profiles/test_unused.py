"""What of a profile prices nothing is said with the reason, and nothing that prices something is."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from profiles.catalogue import load_preset
from profiles.measure.journal import Journal
from profiles.measure.points import Point, allocator_sizes, point
from profiles.ops import HostCopy
from profiles.planned import cost_model_on
from profiles.profiled import ProfiledCostModel, used_copies
from profiles.recorded import Recording, read_recording
from profiles.unused import unused
from profiles.uses import Use
from tests.written_profiles import result_of, run_line

CLUSTER = load_preset("dgx-h100").to_cluster()
LAUNCH_SECONDS = 1e-5
GEMM = point("gemm", dtype="bf16", part="forward", batch=1, m=512, n=1024, k=1024)
SIZES = {"batch": 1, "tokens": 4096, "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "intermediate": 14336}
SEEN = {"batch": 1, "kv_len": 1024, "window": 0, "heads": 8, "kv_heads": 8, "qk_dim": 128, "v_dim": 128}


def copy(beside: str, direction: str = "to_host", num_bytes: int = 1 << 24) -> Point:
    return point("copies", direction=direction, memory="pinned", beside=beside, bytes=num_bytes)


def collective(beside: str, mode: str = "eager") -> Point:
    return point("collectives", kind="all_reduce", mode=mode, beside=beside, size=2, stride=1, bytes=1 << 20)


def overlap(beside: str) -> Point:
    return point("overlap", dtype="bf16", beside=beside, product=4096, bytes=1 << 24)


LAUNCH = point("launch", term="launch", kernels=100)
OVERLAP = {"alone": 1.0, "beside": 1.1, "other_alone": 1.0, "other_beside": 1.2, "seconds": 1.1}
FIGURES: Mapping[str, Mapping[str, object]] = {
    "memory": {"bytes": 1 << 28, "mode": "driver"},
    "overlap": OVERLAP,
}


def recorded(directory: Path, *points: Point, seconds: float = 1e-3, **changed: object) -> Recording:
    with Journal(directory, resume=True) as journal:
        journal.begin(run_line(CLUSTER, **changed))
        for entry in (GEMM, *points):
            journal.measured(entry, FIGURES.get(entry.suite, result_of(seconds)))
    return read_recording(directory)


def told(recording: Recording, use: Use = Use.TRAINING) -> tuple[str, ...]:
    return unused(recording, CLUSTER, launch_seconds=LAUNCH_SECONDS, lost_fraction=0.12, use=use)


CASES = {
    "whole layers are a check of the sum of their parts: `profile check` makes it": (
        point("layer", dtype="bf16", phase="forward", **SIZES),
    ),
    "training does not decode": (point("attention", dtype="bf16", phase="decode", mask="full", query_len=1, **SEEN),),
    "training does not multiply in int8": (
        point("gemm", dtype="int8", part="forward", batch=1, m=512, n=1024, k=1024),
    ),
    "training starts its collectives one by one, not out of graphs": (collective("alone", "graph"),),
    "made by one GPU alone: GPUs of a node copy at once": (copy("alone"),),
}


@pytest.mark.parametrize("why", CASES)
def test_each_reason_is_said_with_its_number(tmp_path: Path, why: str) -> None:
    points = CASES[why]
    assert told(recorded(tmp_path, *points)) == (f"not used: 1 point of {points[0].suite}: {why}",)


def test_what_prices_something_is_not_named(tmp_path: Path) -> None:
    context = point("memory", term="context", count=1)
    used = [collective("concurrent"), copy("concurrent"), overlap("all_reduce"), overlap("to_host"), context]
    assert told(recorded(tmp_path, *used, LAUNCH, seconds=2e-5)) == ()


def test_what_stands_back_behind_others_is_counted(tmp_path: Path) -> None:
    points = [copy("alone"), copy("alone", num_bytes=1 << 20), copy("socket"), copy("concurrent")]
    points += [collective("alone"), collective("concurrent")]
    assert told(recorded(tmp_path, *points)) == (
        "not used: 2 points of copies: made by one GPU alone: those with the node's GPUs all at once count",
        "not used: 1 point of copies: made of one socket at once: those with the node's GPUs all at once count",
        "not used: 1 point of collectives: measured beside others of their shape as well, which count",
    )


def test_a_profile_of_another_gpu_of_the_chip_keeps_its_kernels_alone(tmp_path: Path) -> None:
    points = [point("memory", term="context", count=1), overlap("all_reduce"), LAUNCH]
    assert told(recorded(tmp_path, *points, called="h200")) == (
        "not used: 1 point of memory: context and communicators are those of another GPU",
        "not used: 1 point of overlap: the slow-down is that of another GPU",
        "not used: 1 point of launch: launches of this GPU's host were not measured by it",
    )
    assert told(recorded(tmp_path / "other", *points, called="a100-sxm-80gb")) == (), "nothing of it is used at all"


def priced(recording: Recording) -> ProfiledCostModel:
    found = cost_model_on(replace(CLUSTER, profile=recording.reference))
    assert isinstance(found, ProfiledCostModel)
    return found


def test_a_bare_loop_bounds_a_launch_from_below(tmp_path: Path) -> None:
    usual = cost_model_on(CLUSTER).launch_seconds
    assert priced(recorded(tmp_path / "slow", LAUNCH, seconds=3e-5)).launch_seconds == 3e-5
    assert priced(recorded(tmp_path / "fast", LAUNCH, seconds=1e-6)).launch_seconds == usual
    assert priced(recorded(tmp_path / "cpu", LAUNCH, seconds=3e-5, kind="cpu")).launch_seconds == usual
    (said,) = told(recorded(tmp_path / "fast"))
    assert said == "not used: 1 point of launch: a framework's launches take 10 us each, a bare loop of one kernel less"


def test_copies_of_a_socket_stand_in_for_those_of_a_node(tmp_path: Path) -> None:
    operation = HostCopy(num_bytes=1 << 24, pinned=True)
    assert priced(recorded(tmp_path / "socket", copy("socket"), copy("alone"))).compute(
        operation
    ).seconds == pytest.approx(1e-3)
    analytic = cost_model_on(CLUSTER).compute(operation).seconds
    assert priced(recorded(tmp_path / "alone", copy("alone"))).compute(operation).seconds == analytic
    recorded(tmp_path / "both", copy("socket"), seconds=5e-3)
    both = recorded(tmp_path / "both", copy("concurrent"), seconds=2e-3)
    assert priced(both).compute(operation).seconds == pytest.approx(2e-3)


@pytest.mark.parametrize(("per_node", "used"), [(1, "alone"), (8, None)])
def test_a_copy_alone_is_that_of_a_node_with_one_gpu(tmp_path: Path, per_node: int, used: str | None) -> None:
    entries = [entry for entry in recorded(tmp_path, copy("alone")).measured if entry.point.suite == "copies"]
    assert used_copies(entries, per_node) == used


ROUNDED = point("memory", term="allocator", count=256)


def test_rounding_that_published_runs_exceed_is_named_with_its_part(tmp_path: Path) -> None:
    fresh = sum(allocator_sizes(256))
    for part, said in ((0.05, 1), (0.5, 0)):
        directory = tmp_path / str(part)
        with Journal(directory, resume=False) as journal:
            journal.begin(run_line(CLUSTER))
            journal.measured(GEMM, result_of(1e-3))
            journal.measured(ROUNDED, {"bytes": int(part * fresh), "mode": "driver"})
        found = told(read_recording(directory))
        assert len(found) == said
        assert all(
            text.startswith("not used: 1 point of memory: rounding takes 5 % of fresh tensors") for text in found
        )


DECODE = point("attention", dtype="bf16", phase="decode", mask="full", query_len=1, **SEEN)
BACKWARD = point("attention", dtype="bf16", phase="backward", mask="causal", query_len=1024, **SEEN)
OF_SERVERS: Mapping[str, tuple[Point, ...]] = {
    "attention: engines compute no gradients": (BACKWARD,),
    "elementwise: engines compute no gradients, no loss and no optimizer step": (
        point("elementwise", dtype="fp32", operation="adam", phase="forward", rows=1, features=1 << 20),
    ),
    "copies: engines keep everything on GPUs; `offload` reads copies": (copy("concurrent"),),
    "overlap: engines run nothing beside their kernels": (overlap("to_host"),),
    "launch: engines start nothing but graphs": (LAUNCH,),
    "collectives: measured as engines run it as well, which counts": (
        collective("alone", "graph"),
        collective("alone"),
    ),
}


@pytest.mark.parametrize("why", OF_SERVERS)
def test_servers_have_reasons_of_their_own(tmp_path: Path, why: str) -> None:
    suite, _, reason = why.partition(": ")
    assert told(recorded(tmp_path, *OF_SERVERS[why]), Use.SERVING) == (f"not used: 1 point of {suite}: {reason}",)


def test_what_prices_servers_is_not_named(tmp_path: Path) -> None:
    int8 = point("gemm", dtype="int8", part="forward", batch=1, m=512, n=1024, k=1024)
    graph = point("launch", term="graph", kernels=100)
    context = point("memory", term="context", count=1)
    points = [DECODE, int8, collective("alone", "graph"), context, graph]
    assert told(recorded(tmp_path, *points, seconds=2e-5), Use.SERVING) == ()


def test_what_prices_offloaded_inference_is_not_named(tmp_path: Path) -> None:
    sent = point("collectives", kind="send_recv", mode="eager", beside="concurrent", size=2, stride=1, bytes=1 << 20)
    points = [DECODE, copy("alone"), copy("alone", "to_drive"), copy("alone", "from_drive"), sent]
    assert told(recorded(tmp_path, *points), Use.OFFLOADING) == ()
    assert told(recorded(tmp_path, copy("concurrent")), Use.OFFLOADING) == (
        "not used: 1 point of copies: made all at once: those made by one GPU alone count",
    )
