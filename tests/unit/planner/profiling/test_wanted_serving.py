"""What a serving spec wants measured: every kernel that prices its engines, so that a plan stands on measurements."""

from dataclasses import replace
from pathlib import Path

import pytest

from planner.profiling.wanted_serving import wanted_serving_points
from planner.serving_search.search import plan_serving
from profiles.measure.points import Point
from profiles.measured_operations import operation_of
from profiles.recorded import read_recording
from profiles.served_kernels import unserved
from tests.served import SMALL, serve_inputs
from tests.written_profiles import write_profile

SMALL_SPACE = ("workload:", "constraints: {split: never, tp: {max: 2}, pp: 1}\nworkload:")


def test_a_plan_of_what_its_spec_wants_measured_stands_on_it(tmp_path: Path) -> None:
    inputs = serve_inputs(SMALL, SMALL_SPACE)
    (cluster,) = inputs.clusters
    wanted = [entry.point for entry in wanted_serving_points(inputs)]
    assert len(set(wanted)) == len(wanted)
    directory = write_profile(tmp_path, [entry for entry in wanted if operation_of(entry) is not None], cluster)
    measured = replace(cluster, profile=read_recording(directory).reference)
    plan = plan_serving(inputs.model, (measured,), inputs.request)
    for pool in plan.pools:
        assert pool.source_fractions is not None
        for of_step in pool.source_fractions.values():
            assert of_step["measured"] + of_step["interpolated"] > 0.6
            assert of_step["extrapolated"] < 0.1
            # What is left is the host's own time, which no profile measures.
            assert of_step["assumed"] == 0


def test_every_point_prices_a_server() -> None:
    points = [entry.point for entry in wanted_serving_points(serve_inputs())]
    assert not [entry.key for entry in points if unserved(entry) is not None]
    suites = {entry.suite for entry in points}
    assert suites == {"gemm", "attention", "elementwise", "collectives", "launch"}


def formats(points: list[Point]) -> set[str]:
    return {entry.word("dtype") for entry in points if entry.suite in ("gemm", "experts")}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [("bf16", {"bf16"}), ("fp8", {"bf16", "fp8"}), ("awq", {"bf16"}), ("int8", {"bf16", "int8"})],
)
def test_products_are_wanted_in_the_formats_that_are_multiplied(quantization: str, expected: set[str]) -> None:
    inputs = serve_inputs()
    workload = replace(inputs.request.workload, quantization=quantization)
    inputs = replace(inputs, request=replace(inputs.request, workload=workload))
    points = [entry.point for entry in wanted_serving_points(inputs)]
    assert formats(points) == expected
    if quantization == "awq":
        # Only the LM head is held as it is multiplied.
        assert {entry.size("k") for entry in points if entry.suite == "gemm"} == {4096}


def test_experts_are_wanted_as_they_are_grouped() -> None:
    inputs = serve_inputs(SMALL, ("llama-3.1-8b", "mixtral-8x7b"))
    points = [entry.point for entry in wanted_serving_points(inputs)]
    assert any(entry.suite == "experts" for entry in points)
