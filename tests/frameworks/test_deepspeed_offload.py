"""DeepSpeed, with the keys that put states and weights on the host, takes the same steps as one process without."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from planner.layout import Offload
from planner.offloading.sub_groups import planned_dealing, tensor_elements
from tests.emitted.deepspeed_plans import FULL_RECOMPUTE, LLAMA, layout_with
from tests.frameworks.deepspeed_environment import Trained
from tests.frameworks.deepspeed_runs import ALONE, STEPS, TOLERANCE, halves, run_of, trained_runs

pytestmark = pytest.mark.frameworks

STATES = Offload(optimizer_fraction=1.0, overlapped=False)
BOTH = replace(STATES, parameters=True)
SHARDED = halves(zero_stage=3)
PART = ("exact", "part of the states")
LAYOUTS = {
    "states": replace(SHARDED, offload=STATES),
    "states and weights": replace(SHARDED, offload=BOTH),
    "states and weights, recomputed": replace(SHARDED, offload=BOTH, recompute=FULL_RECOMPUTE),
    PART[1]: replace(SHARDED, offload=replace(STATES, optimizer_fraction=0.5)),
    "states and weights of one process": replace(layout_with((4,), zero_stage=3), offload=BOTH),
}
RUNS = {
    ("exact", "alone"): run_of(LLAMA, ALONE),
    **{("exact", name): run_of(LLAMA, layout) for name, layout in LAYOUTS.items()},
    ("emitted", "states and weights"): run_of(LLAMA, LAYOUTS["states and weights"], exact=False),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Trained]:
    """Return what every run above printed."""
    return trained_runs(RUNS, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_steps_are_those_of_one_process(name: str, results: Mapping[tuple[str, str], Trained]) -> None:
    alone, found = results["exact", "alone"], results["exact", name]
    assert len(found.losses) == STEPS
    assert found.losses == pytest.approx(alone.losses, rel=TOLERANCE)
    assert found.norms == pytest.approx(alone.norms, rel=5 * TOLERANCE)
    assert max(alone.norms) > 1.04 * min(alone.norms)


def test_a_part_of_the_states_is_dealt_as_the_plan_says(results: Mapping[tuple[str, str], Trained]) -> None:
    part = planned_dealing(tensor_elements(LLAMA), ranks=2, fraction=0.5)
    assert {name: run.kept for name, run in results.items() if run.kept} == {PART: part.kept_elements}
    assert part.kept_elements == pytest.approx(part.elements / 2, rel=0.1)


def test_the_emitted_formats_train_as_fp32_does(results: Mapping[tuple[str, str], Trained]) -> None:
    exact, found = results["exact", "alone"], results["emitted", "states and weights"]
    assert found.losses == pytest.approx(exact.losses, rel=2e-4)
    assert found.norms == pytest.approx(exact.norms, rel=2e-2)
