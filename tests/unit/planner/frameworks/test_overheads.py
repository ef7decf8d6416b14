"""What GPUs hold beside tensors, measured: ledger and search take it, with its source, and nothing else moves."""

from dataclasses import replace
from pathlib import Path

import pytest

from planner.evaluation.described import given_layout
from planner.frameworks.overheads import PUBLISHED, overheads_on
from planner.inputs.load import Inputs, load_inputs
from planner.memory.ledger import WORKING_TERMS
from planner.memory.state_bytes import communicator_bytes
from planner.memory.terms import FRAGMENTATION, PERMANENT_DIFFERENCE
from planner.plans.plan import Phase, PlannedLayout
from planner.search.search import search
from profiles.hardware import Calibration, Cluster, MemoryCalibration
from profiles.measure.journal import Journal
from profiles.measure.points import allocator_sizes, point
from profiles.recorded import read_recording
from tests.unit.profiles.test_profiled import SPEC
from tests.written_profiles import result_of, run_line

MIB = 1 << 20
GEMM = point("gemm", dtype="bf16", part="forward", batch=1, m=512, n=1024, k=1024)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    path = tmp_path_factory.mktemp("spec") / "spec.yaml"
    path.write_text(SPEC.replace("gpus_per_node: 2", "gpus_per_node: 4"))
    return load_inputs(path)


def profiled(
    cluster: Cluster, directory: Path, figures: dict[tuple[str, int], int], *, mode: str = "driver", **changed: object
) -> Cluster:
    """Return a cluster with a profile that holds figures of memory."""
    with Journal(directory, resume=True) as journal:
        journal.begin(run_line(cluster, **changed))
        journal.measured(GEMM, result_of(1e-4))
        for (term, count), num_bytes in figures.items():
            journal.measured(point("memory", term=term, count=count), {"bytes": num_bytes, "mode": mode})
    return replace(cluster, profile=read_recording(directory).reference)


FIGURES = {("context", 1): 400 * MIB, ("communicator", 2): 90 * MIB, ("communicator", 4): 150 * MIB}


def terms(planned: PlannedLayout, phase: Phase = Phase.FORWARD_BACKWARD) -> dict[str, int]:
    return {line.term: line.num_bytes for line in planned.memory if line.rank == 0 and line.phase is phase}


def source(planned: PlannedLayout, term: str) -> str:
    (found,) = {line.source for line in planned.memory if line.term == term}
    return found


def test_measured_memory_is_the_ledgers_and_says_so(inputs: Inputs, tmp_path: Path) -> None:
    cluster = profiled(inputs.cluster, tmp_path, FIGURES)
    best = search(inputs.model, inputs.cluster, inputs.request, top=1).plans[0]
    before = given_layout(best.layout, inputs.model, inputs.cluster, inputs.request)
    after = given_layout(best.layout, inputs.model, cluster, inputs.request)
    old, new = terms(before), terms(after)
    assert new.pop("context and libraries") == 400 * MIB
    assert new.pop("communicators") == communicator_bytes(best.layout, inputs.model, overheads_on(cluster))
    assert old.pop("communicators") == communicator_bytes(best.layout, inputs.model, PUBLISHED)
    assert old.pop("context and libraries") == PUBLISHED.context_bytes
    assert new == old, "nothing else changes"
    name = f"h100-sxm-80gb, {tmp_path}"
    assert source(after, "context and libraries") == f"measured: a process that has run one product, {name}"
    assert (
        source(after, "communicators") == f"90 MiB for a pair, measured; 150 MiB for a larger group, measured ({name})"
    )
    assumed = [text for text in after.assumptions if text.startswith("memory, ")]
    assert [text.split(":")[0] for text in assumed] == ["memory, fragmentation"]


def test_search_and_ledger_agree_on_measured_memory(inputs: Inputs, tmp_path: Path) -> None:
    """A context that leaves less room changes what fits; the search stays with what the ledger says."""
    small = replace(inputs.cluster, device=replace(inputs.cluster.device, memory_bytes=26 << 30))
    roomy = search(inputs.model, small, inputs.request, top=1).plans[0]
    cluster = profiled(small, tmp_path, {**FIGURES, ("context", 1): 22 << 30})
    tight = search(inputs.model, cluster, inputs.request, top=1).plans[0]
    assert tight.peak_memory_bytes <= tight.memory_limit_bytes
    assert terms(tight)["context and libraries"] == 22 << 30
    assert tight.layout != roomy.layout
    assert (
        tight.peak_memory_bytes == given_layout(tight.layout, inputs.model, cluster, inputs.request).peak_memory_bytes
    )


def test_what_is_measured_in_part_is_assumed_in_part(inputs: Inputs, tmp_path: Path) -> None:
    found = overheads_on(profiled(inputs.cluster, tmp_path, {("communicator", 4): 150 * MIB}))
    assert (found.pair_communicator_bytes, found.group_communicator_bytes) == (544 * MIB, 150 * MIB)
    told = "544 MiB for a pair (not measured there: on A100, NVIDIA/nccl issue 964); 150 MiB for a larger group, "
    assert found.communicator_source.startswith(told)
    assert found.communicator_source in found.assumed
    assert found.context_bytes == PUBLISHED.context_bytes
    assert PUBLISHED.context_source in found.assumed


@pytest.mark.parametrize("what", ["resident", "foreign", "too large", "nothing"])
def test_figures_that_are_no_gpus_leave_the_published_ones(inputs: Inputs, tmp_path: Path, what: str) -> None:
    figures = dict.fromkeys(FIGURES, 90 << 30) if what == "too large" else FIGURES
    figures = {("context", 1): 0} if what == "nothing" else figures
    called = {"called": "h200"} if what == "foreign" else {}
    mode = "resident" if what == "resident" else "driver"
    found = overheads_on(profiled(inputs.cluster, tmp_path, figures, mode=mode, **called))
    assert found == PUBLISHED


@pytest.mark.parametrize("part", [0.05, 0.4])
def test_rounding_bounds_what_the_allocator_loses_from_below(inputs: Inputs, tmp_path: Path, part: float) -> None:
    num_bytes = int(part * sum(allocator_sizes(256)))
    cluster = profiled(inputs.cluster, tmp_path, {("allocator", 256): num_bytes})
    found = overheads_on(cluster)
    if part < PUBLISHED.lost_fraction:
        assert (found.lost_fraction, found.lost_source) == (PUBLISHED.lost_fraction, PUBLISHED.lost_source)
        assert PUBLISHED.lost_source in found.assumed
        return
    assert found.lost_fraction == pytest.approx(part)
    assert found.lost_source.startswith("measured: 40 % of fresh tensors lost to the caching allocator's rounding, ")
    assert found.lost_source not in found.assumed
    best = search(inputs.model, inputs.cluster, inputs.request, top=1).plans[0]
    before = given_layout(best.layout, inputs.model, inputs.cluster, inputs.request)
    after = given_layout(best.layout, inputs.model, cluster, inputs.request)
    lost = terms(after)[FRAGMENTATION] / terms(before)[FRAGMENTATION]
    assert lost == pytest.approx(found.lost_fraction / PUBLISHED.lost_fraction, rel=1e-6)
    assert source(after, FRAGMENTATION) == found.lost_source


def test_a_calibration_sets_what_is_lost_and_adds_what_stays(inputs: Inputs) -> None:
    best = search(inputs.model, inputs.cluster, inputs.request, top=1).plans[0]
    calibration = Calibration(
        factors=(), source="snapshot", memory=MemoryCalibration(lost_fraction=0.25, fixed_bytes=300 * MIB)
    )
    cluster = replace(inputs.cluster, calibration=calibration)
    after = given_layout(best.layout, inputs.model, cluster, inputs.request)
    assert after.step_seconds == best.step_seconds, "a snapshot says nothing of time"
    old, new = terms(best), terms(after)
    working = sum(num_bytes for term, num_bytes in old.items() if term in WORKING_TERMS)
    assert new.pop(PERMANENT_DIFFERENCE) == 300 * MIB
    assert (old.pop(FRAGMENTATION), new.pop(FRAGMENTATION)) == (round(0.12 * working), round(0.25 * working))
    assert new == old
    assert terms(after, Phase.INITIALISATION)[PERMANENT_DIFFERENCE] == 300 * MIB
    told = "calibrated by snapshot: 25 % lost beside activations and temporaries, 0.29 GiB beside what stays"
    assert told in after.assumptions
    searched = search(inputs.model, cluster, inputs.request, top=1).plans[0]
    assert PERMANENT_DIFFERENCE in terms(searched)
