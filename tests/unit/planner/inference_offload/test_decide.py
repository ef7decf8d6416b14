"""Questions that contradict themselves, what nothing fits means, and figures that can be told by hand."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cli.render import Facts
from cli.render_offload import offload_blocks, offload_document
from planner.errors import InputError
from planner.frameworks.overheads import CONTEXT_BYTES
from planner.inference_offload.decide import plan_offload, streaming_bound
from planner.inference_offload.machine import machine_of
from planner.inference_offload.plan import OffloadPlan
from planner.inference_offload.prices import BlockPrices
from planner.inference_offload.request import HOST_CPU, WORDS, OffloadRequest, Place, Target, Thing, Use
from planner.inference_offload.work import ModelWork
from planner.units import GIB
from profiles.errors import CoverageError
from profiles.hardware import Cluster
from profiles.host_compute import host_compute_rate
from profiles.measure.journal import Journal
from profiles.measure.points import Point, point
from profiles.recorded import read_recording
from tests.offloaded import DENSE, LARGE, MIXTURE, histogram_of, offload_inputs, offloaded, priced, request_of
from tests.written_profiles import run_line


def asked(request: OffloadRequest, case: tuple[str, str, int] = DENSE) -> OffloadPlan:
    inputs = offload_inputs(*case)
    return plan_offload(inputs.model, inputs.clusters[0], request)


def test_bytes_are_those_of_the_model() -> None:
    work, machine, _ = priced("dense")
    assert work.dense_bytes + work.end_bytes == pytest.approx(2 * 29_974_540_288, rel=2e-3)
    assert work.cache_bytes(1) == 2 * 2 * 48 * 7168
    assert work.attention_flops(100.0) == 4 * 48 * 7168 * 100
    assert work.product_flops == pytest.approx(2 * 48 * 12 * 7168**2)
    assert machine.room_bytes[Place.HOST] == 200 * GIB - 8 * GIB - 20 * GIB
    assert machine.room_bytes[Place.DRIVE] == 2 * 10**12
    assert machine.drive_bytes_per_second == 3e9
    assert machine.peer_bytes_per_second == 0


def test_experts_are_counted_apart() -> None:
    work, _, _ = priced("mixture")
    assert work.expert_bytes == 2 * 3 * 4096 * 14336
    assert work.routed_bytes == 32 * 8 * work.expert_bytes
    assert work.dense_bytes + work.routed_bytes + work.end_bytes == pytest.approx(2 * 46_702_792_704, rel=2e-3)
    assert [group.experts for group in work.groups] == [1] * 8


def test_peers_lend_what_their_own_context_leaves() -> None:
    _, machine, _ = priced("large", peers=3)
    assert machine.room_bytes[Place.PEER] == 3 * (39.5 * GIB - CONTEXT_BYTES)
    assert 50e9 < machine.peer_bytes_per_second < 300e9


def test_the_cpu_works_where_the_link_is_slow() -> None:
    plan = offloaded("dense").of(Target.ANY)
    assert plan is not None
    assert any(placed.option.use == HOST_CPU and placed.option.thing is Thing.CACHE for placed in plan.placed)


def test_gains_name_every_place_and_are_never_negative() -> None:
    plan = offloaded("large").of(Target.ANY)
    assert plan is not None
    assert [gain.place for gain in plan.gains] == [Place.GPU, Place.HOST, Place.DRIVE]
    assert all(gain.tokens_per_second >= 0 for gain in plan.gains)
    assert plan.gains[0].tokens_per_second > 0


def test_streaming_is_bound_by_the_caches_that_the_host_holds() -> None:
    work, machine, request = priced("mixture")
    found = streaming_bound(work, machine, request)
    assert found is not None
    assert found.by_memory
    streamed = work.dense_bytes + work.routed_bytes + work.end_bytes - machine.room_bytes[Place.GPU]
    sequences = (machine.room_bytes[Place.HOST] - streamed) / work.cache_bytes(528)
    assert found.tokens_per_second == pytest.approx(sequences * machine.link_bytes_per_second / streamed)
    fast = streaming_bound(work, replace(machine, link_bytes_per_second=1e15), request)
    assert fast is not None
    assert not fast.by_memory
    small = replace(machine, room_bytes={**machine.room_bytes, Place.HOST: int(streamed)})
    assert streaming_bound(work, small, request) is None


def test_a_model_that_fits_nowhere_says_how_much_is_missing() -> None:
    inputs = offload_inputs("llama-3.1-405b", "l40s", 64)
    cluster = replace(inputs.clusters[0], nvme_bytes=None)
    plan = plan_offload(inputs.model, cluster, request_of())
    assert plan.plans == ()
    assert 650 * GIB < plan.least_bytes < 710 * GIB


def test_drives_of_unknown_speed_are_said_to_be_left_alone() -> None:
    inputs = offload_inputs(*DENSE)
    machine = machine_of(replace(inputs.clusters[0], nvme_bytes_per_second=None), request_of())
    assert Place.DRIVE not in machine.room_bytes
    assert "drives: not used, because neither the cluster nor a profile says their bandwidth" in machine.notes


@pytest.mark.parametrize(
    ("request_", "case", "message"),
    [
        (request_of(peers=4), DENSE, r"4 GPUs beside the one that computes, and a node of .* has 4\."),
        (replace(request_of(), output_tokens=1), DENSE, r"Answers of one token leave nothing to plan\."),
        (request_of(), ("nemotron-h-56b", "l40s", 64), r"nemotron-h-56b has layers with recurrent states"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused(
    request_: OffloadRequest, case: tuple[str, str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        asked(request_, case)


def test_a_histogram_needs_experts() -> None:
    inputs, mixture = offload_inputs(*DENSE), offload_inputs(*MIXTURE)
    with pytest.raises(InputError, match=r"opt-30b has no routed experts\."):
        ModelWork(inputs.model, inputs.clusters[0], request_of(), histogram_of(mixture.model))


def test_the_cpus_of_unknown_slots_have_no_rate() -> None:
    device = offload_inputs(*DENSE).clusters[0].device
    assert host_compute_rate(device)[0] == 0.5 * 2 * 64 * 2.25e9 * 32
    with pytest.raises(CoverageError, match="no rate is known for hosts whose GPUs hang on 'agp'"):
        host_compute_rate(replace(device, host_link="agp"))


def test_a_model_that_fits_on_the_gpu_stays_there() -> None:
    """Work that the CPU could take would make the GPU wait in a lone batch."""
    plan = asked(request_of(num_sequences=7), ("llama-3.1-8b", "l40s", 64))
    whole, vllm = plan.of(Target.ANY), plan.of(Target.VLLM)
    assert whole is not None
    assert vllm is not None
    assert whole.tokens_per_second == pytest.approx(vllm.tokens_per_second, rel=1e-3)
    assert whole.batch_size * whole.num_batches == 7
    assert all(placed.option.use.place is Place.GPU for placed in whole.placed)


def measured(directory: Path, figures: Mapping[Point, Mapping[str, object]], *, kind: str = "cuda") -> Cluster:
    """Return the large case's node with a profile of these figures."""
    cluster = offload_inputs(*LARGE).clusters[0]
    gemm = point("gemm", dtype="bf16", part="forward", batch=1, m=512, n=1024, k=1024)
    with Journal(directory, resume=False) as journal:
        journal.begin(run_line(cluster, kind=kind))
        for entry, result in {gemm: {"seconds": 1e-5}, **figures}.items():
            journal.measured(entry, result)
    return replace(cluster, profile=read_recording(directory).reference)


def copied(direction: str, *, beside: str = "alone", memory: str = "pinned", num_bytes: int = 1 << 28) -> Point:
    return point("copies", direction=direction, memory=memory, beside=beside, bytes=num_bytes)


def test_a_profile_says_how_fast_drives_and_link_are(tmp_path: Path) -> None:
    drives = {
        copied("from_drive", memory="pageable"): {"seconds": (1 << 28) / 6e9},
        copied("to_drive", memory="pageable"): {"seconds": (1 << 28) / 2e9},
    }
    links = {
        copied("to_host"): {"seconds": (1 << 28) / 20e9},
        copied("to_host", beside="concurrent"): {"seconds": (1 << 28) / 5e9},
    }
    request = request_of()
    machine = machine_of(measured(tmp_path / "both", {**drives, **links}), request)
    assert machine.drive_bytes_per_second == pytest.approx(6e9)
    assert machine.drive_write_bytes_per_second == pytest.approx(2e9)
    assert machine.link_bytes_per_second == pytest.approx(20e9), "one GPU computes, so copies alone count"
    assert any(text.startswith("drives: measured: one file, written and synchronised, ") for text in machine.notes)
    bare = machine_of(offload_inputs(*LARGE).clusters[0], request)
    one_way = machine_of(measured(tmp_path / "one way", dict([*drives.items()][:1])), request)
    assert (one_way.drive_bytes_per_second, one_way.drive_write_bytes_per_second) == (3e9, 3e9)
    assert one_way.link_bytes_per_second == bare.link_bytes_per_second
    assert bare.drive_write_bytes_per_second == bare.drive_bytes_per_second == 3e9


def test_slow_writes_take_longer_and_reads_do_not() -> None:
    work, machine, request = priced("large")
    slow = replace(machine, drive_write_bytes_per_second=machine.drive_write_bytes_per_second / 4)
    drive, disk = [], Use(place=Place.DRIVE)
    for node in (machine, slow):
        prices = BlockPrices(work, node, request, WORDS[Target.ANY])
        options = {(option.thing, option.use): index for index, option in enumerate(prices.options)}
        chains = {chain.phase: chain for chain in prices.problem(4, 2).chains if chain.name == "drive"}
        drive.append(
            (chains[0].seconds_O[options[Thing.CACHE, disk]], chains[0].seconds_O[options[Thing.WEIGHTS, disk]])
        )
    (cache, weights), (slow_cache, slow_weights) = drive
    assert slow_cache == pytest.approx(4 * cache)
    assert slow_weights == weights > 0


def test_a_plan_says_how_much_of_the_gpus_time_is_measured(tmp_path: Path) -> None:
    inputs = offload_inputs(*LARGE)
    plan = plan_offload(inputs.model, measured(tmp_path, {}), request_of(num_sequences=8))
    for found in plan.plans:
        assert found.source_fractions is not None
        assert list(found.source_fractions) == ["prompts", "answers"]
        for parts in found.source_fractions.values():
            assert sum(parts.values()) == pytest.approx(1.0)
            assert parts["extrapolated"] > 0.3, "one product was measured, far from the model's"
    assert all(found.source_fractions is None for found in offloaded("large").plans)
    document = offload_document(plan)
    assert isinstance(document["plans"], dict)
    assert document["plans"]["any"]["source_fractions"] == plan.plans[0].source_fractions
    pairs = [pair for block in offload_blocks(plan, Target.ANY) if isinstance(block, Facts) for pair in block.pairs]
    assert [name for name, _ in pairs if name.startswith("GPU, ")] == ["GPU, prompts", "GPU, answers"]


@pytest.mark.slow
def test_the_search_goes_on_in_every_size_that_comes_near_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    request, case = replace(request_of(prompt=1000), output_tokens=200), ("llama-3.1-405b", "h100-sxm-80gb", 2048)
    near = asked(request, case).of(Target.ANY)
    monkeypatch.setattr("planner.inference_offload.decide.NEAR", 1.0)
    fastest = asked(request, case).of(Target.ANY)
    assert near is not None
    assert fastest is not None
    assert near.tokens_per_second > fastest.tokens_per_second
    assert near.batch_size != fastest.batch_size
