"""Laws of the price of a layout: search and check agree, terms add up, faster hardware never costs more."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.evaluation.evaluate import evaluate
from planner.evaluation.priced_step import BUBBLE, DATA_PARALLEL
from planner.layout import Layout
from profiles.analytic import AnalyticCostModel
from profiles.hardware import Cluster
from tests.builders import two_node_cluster
from tests.examples import examples
from tests.small_spaces import SmallSpace, placed_layouts

LAWS = settings(max_examples=examples(few=15, many=40), deadline=None, derandomize=True)


@LAWS
@given(placed=placed_layouts())
def test_the_searchs_price_equals_the_independent_one(placed: tuple[SmallSpace, Layout]) -> None:
    space, layout = placed
    searched = space.pricer().prices(layout).step_seconds(layout)
    checked = evaluate(space.place(layout), AnalyticCostModel(space.cluster)).step_seconds
    assert abs(searched - checked) <= 1e-9 * checked


@LAWS
@given(placed=placed_layouts())
def test_the_terms_add_up_to_the_step_and_none_is_negative(placed: tuple[SmallSpace, Layout]) -> None:
    space, layout = placed
    evaluation = evaluate(space.place(layout), space.table.cost_model)
    assert abs(sum(line.seconds for line in evaluation.time) - evaluation.step_seconds) <= (
        1e-8 * evaluation.step_seconds
    )
    assert all(line.seconds > 0 for line in evaluation.time)
    assert all(line.source for line in evaluation.time if line.term != BUBBLE or layout.pp > 1)


@LAWS
@given(placed=placed_layouts())
def test_a_lone_gpu_has_no_communication_and_no_bubble(placed: tuple[SmallSpace, Layout]) -> None:
    space, layout = placed
    terms = {line.term for line in evaluate(space.place(layout), space.table.cost_model).time}
    if layout.tp == 1:
        assert "tensor-parallel collectives" not in terms
    if layout.pp == 1:
        assert BUBBLE not in terms
    assert layout.dp == 1 or DATA_PARALLEL in terms


def improved(cluster: Cluster, what: str, factor: float) -> Cluster:
    """Return `cluster` with one figure of its hardware `factor` times as good."""
    device = cluster.device
    match what:
        case "matrix units":
            rates = {name: rate * factor for name, rate in device.dense_flops_per_second.items()}
            return replace(cluster, device=replace(device, dense_flops_per_second=rates))
        case "memory":
            faster = device.memory_bytes_per_second * factor
            return replace(cluster, device=replace(device, memory_bytes_per_second=faster))
        case _:
            index = int(what == "rail")
            levels = list(cluster.levels)
            level = levels[index]
            levels[index] = replace(
                level,
                bytes_per_second=level.bytes_per_second * factor,
                latency_seconds=level.latency_seconds / factor,
            )
            return replace(cluster, levels=tuple(levels))


@LAWS
@given(
    placed=placed_layouts(),
    what=st.sampled_from(("nvlink", "rail", "memory", "matrix units")),
    factor=st.floats(1.0, 8.0),
)
def test_faster_hardware_never_costs_more(placed: tuple[SmallSpace, Layout], what: str, factor: float) -> None:
    space, layout = placed
    held = space.place(layout)
    before = evaluate(held, AnalyticCostModel(space.cluster)).step_seconds
    after = evaluate(held, AnalyticCostModel(improved(space.cluster, what, factor))).step_seconds
    assert after <= before * (1 + 1e-12)


def test_the_improvements_are_felt() -> None:
    cluster = two_node_cluster()
    for what in ("nvlink", "rail", "memory", "matrix units"):
        assert improved(cluster, what, 2.0) != cluster
