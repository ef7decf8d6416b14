"""A cluster priced with its own profile: what was measured comes back, doubles, fades, and says where it comes from."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from planner.documents import load_document
from planner.evaluation.described import evaluation_of, given_layout
from planner.inputs.load import Inputs, load_inputs
from planner.plans.plan import PlannedLayout
from planner.schema.plan import plan_from_document, plan_to_text
from planner.search.search import search
from profiles.catalogue import load_preset
from profiles.errors import ProfileFileError
from profiles.estimate import Source
from profiles.hardware import Cluster
from profiles.measure.journal import Journal
from profiles.measure.points import Point, point
from profiles.ops import Collective, CollectiveKind, Gemm, HostPass, MemoryBound
from profiles.planned import cost_model_on
from profiles.profiled import ProfiledCostModel
from profiles.recorded import read_recording, recording_of
from profiles.schema import MixedClusterEntry
from profiles.unequal import UnequalCostModel
from tests.written_profiles import points_for, run_line, seconds_of, write_profile

SPEC = """\
schema: 1
model:
  architectures: [LlamaForCausalLM]
  model_type: llama
  hidden_size: 2048
  intermediate_size: 8192
  num_hidden_layers: 4
  num_attention_heads: 16
  num_key_value_heads: 4
  head_dim: 128
  vocab_size: 32000
  max_position_embeddings: 4096
  tie_word_embeddings: false
cluster: {preset: dgx-h100, gpus_per_node: 2, nodes: 1}
workload: {kind: train, seq_len: 4096, global_batch_size: 8, precision: bf16}
constraints: {cp: 1, micro_batch_size: 1}
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Return a small run on two GPUs."""
    path = tmp_path_factory.mktemp("spec") / "spec.yaml"
    path.write_text(SPEC)
    return load_inputs(path)


def measured(cluster: Cluster, directory: Path) -> Cluster:
    """Return a cluster with a profile."""
    return replace(cluster, profile=read_recording(directory).reference)


def is_product(entry: Point) -> bool:
    return entry.suite == "gemm"


def planned(inputs: Inputs, directory: Path) -> PlannedLayout:
    """Return the best layout with a profile."""
    return search(inputs.model, measured(inputs.cluster, directory), inputs.request, top=1).plans[0]


def seconds_of_term(layout: PlannedLayout, term: str) -> float:
    (found,) = (line.seconds for line in layout.time if line.term == term)
    return found


def test_doubled_products_double_in_the_step_and_nothing_else_does(inputs: Inputs, tmp_path: Path) -> None:
    points = points_for(inputs)
    once = write_profile(tmp_path / "once", points, inputs.cluster)
    twice = write_profile(
        tmp_path / "twice", points, inputs.cluster, factor=lambda entry: 2.0 if is_product(entry) else 1.0
    )
    before = planned(inputs, once)
    after = given_layout(before.layout, inputs.model, measured(inputs.cluster, twice), inputs.request)

    products = seconds_of_term(before, "linear layers")
    assert seconds_of_term(after, "linear layers") == pytest.approx(2 * products, rel=1e-9)
    for term in ("attention", "memory-bound kernels", "optimizer step"):
        assert seconds_of_term(after, term) == pytest.approx(seconds_of_term(before, term), rel=1e-9)
    assert after.step_seconds > before.step_seconds + 0.5 * products

    own, other = before.source_fractions, after.source_fractions
    assert own is not None
    assert other is not None
    assert sum(own.values()) == pytest.approx(1)
    assert sum(other.values()) == pytest.approx(1)
    # Every product of the layout was measured, so what they gain is gained by what is measured.
    assert own["measured"] > 0.7
    assert other["measured"] > own["measured"]
    text = next(line.source for line in after.time if line.term == "linear layers")
    assert text.startswith(f"measured: measured: torch 2.13.0 on h100-sxm-80gb, {twice}; x ")


def test_the_fractions_move_with_what_is_measured(inputs: Inputs, tmp_path: Path) -> None:
    points = points_for(inputs)
    whole = planned(inputs, write_profile(tmp_path / "whole", points, inputs.cluster))
    cluster = measured(
        inputs.cluster,
        write_profile(tmp_path / "half", [entry for entry in points if not is_product(entry)], inputs.cluster),
    )
    half = given_layout(whole.layout, inputs.model, cluster, inputs.request)
    assert whole.source_fractions is not None
    assert half.source_fractions is not None
    assert half.source_fractions["measured"] < whole.source_fractions["measured"] - 0.3
    without = given_layout(whole.layout, inputs.model, inputs.cluster, inputs.request)
    assert without.source_fractions is None
    assert seconds_of_term(half, "linear layers") == pytest.approx(seconds_of_term(without, "linear layers"), rel=1e-9)


def product(m: int, n: int, k: int) -> Point:
    return point("gemm", dtype="bf16", part="forward", batch=1, m=m, n=n, k=k)


GRID = [product(m, n, k) for m in (512, 4096) for n in (1024, 4096) for k in (1024, 4096, 16384)]


def gemm(m: int, n: int, k: int) -> Gemm:
    return Gemm(m=m, n=n, k=k, dtype="bf16", input_bytes_per_element=2, output_bytes_per_element=2)


@pytest.fixture
def model(tmp_path: Path) -> ProfiledCostModel:
    """Return a cost model with a few products, half again as slow as the analytic ones."""
    cluster = load_preset("dgx-h100").to_cluster()
    found = cost_model_on(measured(cluster, write_profile(tmp_path, GRID, cluster, factor=lambda _: 1.5)))
    assert isinstance(found, ProfiledCostModel)
    return found


def test_a_measured_shape_has_its_time(model: ProfiledCostModel) -> None:
    found = model.compute(gemm(512, 1024, 4096))
    assert found.source is Source.MEASURED
    kept = model.analytic.compute(gemm(512, 1024, 4096)).seconds / seconds_of(product(512, 1024, 4096), model.cluster)
    (entry,) = (entry for entry in model.recording.measured if entry.point.sizes == (1, 512, 1024, 4096))
    assert found.seconds == pytest.approx(float(str(entry.result["seconds"])) * kept, rel=1e-9)


def test_between_measured_shapes_the_residual_is_interpolated_and_beyond_it_fades(model: ProfiledCostModel) -> None:
    inside, outside = gemm(2048, 2048, 4096), gemm(1 << 20, 2048, 4096)
    found, beyond = model.compute(inside), model.compute(outside)
    assert (found.source, beyond.source) == (Source.INTERPOLATED, Source.EXTRAPOLATED)
    assert found.seconds / model.analytic.compute(inside).seconds == pytest.approx(1.5, rel=0.05)
    assert 1.0 < beyond.seconds / model.analytic.compute(outside).seconds < 1.5


def test_what_was_not_measured_is_priced_as_without(model: ProfiledCostModel) -> None:
    without = model.fallback
    for operation in (MemoryBound(name="norm", num_bytes=1 << 24, is_norm=True), HostPass(name="adam", num_bytes=99)):
        assert model.compute(operation) == without.compute(operation)
    reduction = Collective(kind=CollectiveKind.ALL_REDUCE, buffer_bytes=1 << 24, size=8, stride=1)
    assert model.collective(reduction) == without.collective(reduction)
    assert model.overlap_slowdown == without.overlap_slowdown


def test_another_generation_is_not_priced_with_it_and_another_memory_by_assumption(tmp_path: Path) -> None:
    cluster = load_preset("dgx-h100").to_cluster()
    write_profile(tmp_path, GRID, cluster)
    older, larger = (measured(load_preset(name).to_cluster(), tmp_path) for name in ("dgx-a100", "dgx-h200"))
    bare = cost_model_on(replace(older, profile=None))
    assert cost_model_on(older).compute(gemm(512, 1024, 4096)) == bare.compute(gemm(512, 1024, 4096))
    assert cost_model_on(larger).compute(gemm(512, 1024, 4096)).source is Source.ASSUMED


def test_measured_overlap_and_collectives_replace_the_analytic_ones(tmp_path: Path) -> None:
    cluster = load_preset("dgx-h100").to_cluster()
    reduction = point(
        "collectives", kind="all_reduce", mode="eager", beside="concurrent", size=8, stride=1, bytes=1 << 24
    )
    beside = point("overlap", dtype="bf16", beside="all_reduce", product=4096, bytes=1 << 24)
    with Journal(tmp_path, resume=False) as journal:
        journal.begin(run_line(cluster))
        journal.measured(reduction, {"seconds": 1e-3})
        journal.measured(beside, {"seconds": 1.3, "alone": 1.0, "beside": 1.3, "other_alone": 0.9, "other_beside": 1.2})
    model = cost_model_on(measured(cluster, tmp_path))
    assert model.overlap_slowdown == pytest.approx(0.3 / 1.2)
    operation = Collective(kind=CollectiveKind.ALL_REDUCE, buffer_bytes=1 << 24, size=8, stride=1)
    found = model.collective(operation)
    assert found.source is Source.MEASURED
    burst = seconds_of(reduction, cluster)
    bare = cost_model_on(cluster).collective(operation).seconds
    assert found.seconds == pytest.approx(1e-3 * bare / burst, rel=1e-9)


def test_where_nodes_differ_only_what_stays_inside_a_node_is_measured(tmp_path: Path) -> None:
    pair = load_preset("dgx-h100").model_copy(update={"nodes": 2}).to_cluster()
    groups = [{"preset": "dgx-h100", "nodes": 1}, {"preset": "dgx-a100", "nodes": 1}]
    mixed = MixedClusterEntry.model_validate({"groups": groups}).to_cluster()

    def gather(size: int) -> Collective:
        return Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=1 << 24, size=size, stride=1)

    points = [
        point("collectives", kind="all_gather", mode="eager", beside="concurrent", size=size, stride=1, bytes=1 << 24)
        for size in (8, 16)
    ]
    write_profile(tmp_path, points, pair, factor=lambda _: 1.5)
    equal, unequal = cost_model_on(measured(pair, tmp_path)), cost_model_on(measured(mixed, tmp_path))
    assert [equal.collective(gather(size)).source for size in (8, 16)] == [Source.MEASURED, Source.MEASURED]
    assert isinstance(unequal, UnequalCostModel)
    of_hopper = unequal.of_kind(0, unequal.nodes.best_bytes_per_second)
    bare = cost_model_on(mixed)
    assert isinstance(bare, UnequalCostModel)
    without = bare.of_kind(0, bare.nodes.best_bytes_per_second)
    assert of_hopper.collective(gather(8)).source is Source.MEASURED
    assert of_hopper.collective(gather(16)) == without.collective(gather(16))


def test_a_plan_that_was_priced_with_a_profile_is_evaluated_with_it_or_not_at_all(
    inputs: Inputs, tmp_path: Path
) -> None:
    directory = write_profile(tmp_path / "measured", points_for(inputs), inputs.cluster)
    plan = search(inputs.model, measured(inputs.cluster, directory), inputs.request, top=1)
    path = tmp_path / "plan.json"
    path.write_text(plan_to_text(plan))
    again = plan_from_document(load_document(path))
    assert again == plan
    assert evaluation_of(again, again.best.layout).step_seconds == plan.best.reevaluated_step_seconds
    recording_of.cache_clear()
    write_profile(directory, GRID, inputs.cluster)
    with pytest.raises(ProfileFileError, match="the profile has changed since the plan was made with it"):
        evaluation_of(again, again.best.layout)
    shutil.rmtree(directory)
    with pytest.raises(ProfileFileError, match="there is no such file"):
        evaluation_of(again, again.best.layout)
