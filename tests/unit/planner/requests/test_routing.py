"""Loads of ranks from counts of experts, and what a run makes of them."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.documents import parse_document
from planner.errors import InputError, NotExpressibleError
from planner.evaluation.described import evaluation_of
from planner.evaluation.validate import violations
from planner.inputs.load import load_inputs
from planner.models.blocks import MixtureOfExperts
from planner.plans.plan import ExpertsInOrder, Plan
from planner.plans.workload_words import experts_in_words
from planner.ranks.sharding import Sharding, sharding_of
from planner.readers.megatron import read_megatron
from planner.requests.request import PlanRequest
from planner.requests.routing import Routing
from planner.schema.plan import plan_from_document, plan_to_text
from planner.search.search import search
from planner.targets.launch import launch_file_names, launch_files

FOUR = Routing(source="counts.json", layers=(3, 4), counts=("6,2,1,3", "1,1,1,1"))
HEAD = (
    "schema: 1\nmodel: mixtral-8x7b\ncluster: {preset: dgx-h100, nodes: 2}\n"
    "workload: {kind: train, seq_len: 4096, global_batch_size: 64, precision: bf16, routing: "
)


def routed(counts: Sequence[Sequence[int]], capacity: float | None = None) -> Routing:
    rows = tuple(",".join(map(str, row)) for row in counts)
    return Routing(source="made up", layers=tuple(range(len(rows))), counts=rows, capacity_factor=capacity)


def asked(folder: Path, routing: str) -> PlanRequest:
    spec = folder / "spec.yaml"
    spec.write_text(f"{HEAD}{routing}}}\nconstraints: {{ep: 4}}\n")
    return load_inputs(spec).request


def refused(folder: Path, routing: str) -> str:
    with pytest.raises(InputError) as caught:
        asked(folder, routing)
    return str(caught.value).replace(f"{folder}/", "")


def test_the_busiest_rank_of_each_layer_is_counted_with_neighbours_together() -> None:
    loads = FOUR.loads(2)
    assert loads.factor_L == (round(8 / 6, 6), 1.0)
    assert (loads.worst, loads.worst_layer) == (round(8 / 6, 6), 3)
    assert loads.mean == pytest.approx((8 / 6 + 1) / 2, abs=1e-6)
    assert FOUR.loads(4).factor_L == (2.0, 1.0)
    assert FOUR.loads(1).factor_L == (1.0, 1.0)


def test_a_capacity_drops_what_is_beyond_it_and_padding_fills_up_to_it() -> None:
    capped = Routing(source="", layers=(3, 4), counts=FOUR.counts, capacity_factor=1.0)
    # The mean is 3: experts keep 3, 2, 1 and 3 of 12 in the first layer, all of the second.
    assert capped.loads(2).factor_L == (round(5 / 6, 6), 1.0)
    assert capped.dropped_fraction == pytest.approx((3 / 12 + 0) / 2)
    padded = Routing(source="", layers=(3, 4), counts=FOUR.counts, capacity_factor=1.5, pads_to_capacity=True)
    assert padded.loads(1).factor_L == padded.loads(4).factor_L == (1.5, 1.5)


COUNTS = st.lists(st.lists(st.integers(0, 50), min_size=8, max_size=8).filter(any), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(counts=COUNTS, capacity=st.none() | st.floats(0.2, 8))
def test_loads_are_those_that_numpy_counts_and_grow_with_ranks(counts: list[list[int]], capacity: float | None) -> None:
    routing = routed(counts, capacity)
    tokens_LE = np.array(counts, dtype=np.float64)
    mean_L = tokens_LE.mean(axis=1, keepdims=True)
    kept_LE = tokens_LE if capacity is None else np.minimum(tokens_LE, capacity * mean_L)
    last = 0.0
    for ep in (1, 2, 4, 8):
        of_rank_LR = kept_LE.reshape(len(counts), ep, -1).sum(axis=2) / (mean_L * 8 / ep)
        np.testing.assert_allclose(routing.loads(ep).factor_L, of_rank_LR.max(axis=1), atol=1e-6)
        assert routing.loads(ep).mean >= last - 1e-6, "halves of a rank's experts are not busier than the busier half"
        last = routing.loads(ep).mean
    np.testing.assert_allclose(
        routing.dropped_fraction, 1 - (kept_LE.sum(axis=1) / (8 * mean_L[:, 0])).mean(), atol=2e-6
    )


def test_a_looser_capacity_drops_no_more_and_a_wide_one_nothing() -> None:
    counts = [[40, 1, 2, 9, 0, 3, 5, 4]]
    dropped = [routed(counts, capacity).dropped_fraction for capacity in (0.5, 1.0, 2.0, 6.0)]
    assert dropped == sorted(dropped, reverse=True)
    assert dropped[-1] == 0.0
    assert routed(counts, 8.0).loads(4) == routed(counts).loads(4)


def test_times_are_of_the_mean_layer_and_memory_of_the_worst(tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text(json.dumps([[8, 1, 1, 1, 1, 1, 1, 2]] + 31 * [[1] * 8]))
    workload = asked(tmp_path, "{histogram: counts.json}").workload
    busiest = workload.busiest_rank(4)
    assert busiest == pytest.approx(((9 / 4 + 31) / 32, 9 / 4, 0, 0), abs=1e-6)
    sharding = Sharding(
        tp=1,
        sequence_parallel=False,
        micro_batch_size=1,
        seq_len=4096,
        ep=4,
        routing_skew=busiest.on_average,
        peak_skew=busiest.at_worst,
    )
    assert sharding.expert_rows(2) == math.ceil(8192 * busiest.on_average)
    assert sharding.peak_expert_rows(2) == 8192 * 9 // 4


def test_the_plan_of_a_run_says_its_loads_and_its_files_the_capacity(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "{histogram: zipf:1.0, capacity_factor: 1.25, pad_to_capacity: true}")
    routing = plan.request.workload.routing
    assert routing is not None
    assert sharding_of(plan.best.layout, plan.request.workload).routing_skew == 1.25
    dropped = f"{routing.dropped_fraction * 100:.1f}"
    assert (
        f"routing: a capacity factor of 1.25 drops {dropped} % of the choices of experts, which changes results;"
        " every rank's tokens are routed alike"
    ) in plan.best.assumptions
    job = read_megatron(launch_files(plan)["launch.sh"], file="launch.sh")
    assert job.number("--moe-expert-capacity-factor", 0.0) == 1.25
    assert job.has("--moe-pad-expert-input-to-capacity")


def test_a_run_without_a_capacity_tells_megatron_of_none(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "{histogram: uniform}")
    assert "--moe-expert-capacity-factor" not in launch_files(plan)["launch.sh"]


def plan_of(folder: Path, routing: str) -> Plan:
    asked(folder, routing)
    inputs = load_inputs(folder / "spec.yaml")
    return search(inputs.model, inputs.cluster, inputs.request)


def test_deepspeed_drops_no_tokens(tmp_path: Path) -> None:
    asked(tmp_path, "{histogram: uniform, capacity_factor: 2.0}")
    inputs = load_inputs(tmp_path / "spec.yaml", ["target=deepspeed", "constraints={}"])
    with pytest.raises(NotExpressibleError) as caught:
        search(inputs.model, inputs.cluster, inputs.request)
    assert "capacity_factor 2: the training program drops no tokens." in str(caught.value)


@pytest.mark.parametrize("target", ["megatron", "deepspeed"])
def test_no_target_reroutes(tmp_path: Path, target: str) -> None:
    asked(tmp_path, "{histogram: zipf:1.0, reroute: least-loaded}")
    inputs = load_inputs(tmp_path / "spec.yaml", [f"target={target}", "constraints={}"])
    with pytest.raises(NotExpressibleError, match="reroute least-loaded"):
        search(inputs.model, inputs.cluster, inputs.request)


def test_rerouting_is_priced_for_any_target_and_beats_what_it_evens_out(tmp_path: Path) -> None:
    plans = []
    for written in ("{histogram: zipf:1.0}", "{histogram: zipf:1.0, reroute: least-loaded}", "{histogram: uniform}"):
        asked(tmp_path, written)
        inputs = load_inputs(tmp_path / "spec.yaml", ["target=any", "constraints={ep: 4, tp: 1, micro_batch_size: 1}"])
        plans.append(search(inputs.model, inputs.cluster, inputs.request))
    uneven, rerouted, even = (plan.best.step_seconds for plan in plans)
    assert even < rerouted < uneven
    routing = plans[1].request.workload.routing
    assert routing is not None
    assert routing.loads(4).worst == 1.0
    moved = routing.moved_L(4)
    words = (
        f"Of a layer some rank sends or gets the weights of {sum(moved) / len(moved):.1f} experts on average, "
        f"{max(moved)} at most"
    )
    assert any(words in text for text in plans[1].best.assumptions)


def test_weights_go_where_tokens_go_and_nothing_moves_where_loads_are_even() -> None:
    def moved(*rows: str, ep: int) -> tuple[int, ...]:
        return Routing(source="", layers=tuple(range(len(rows))), counts=rows, reroutes=True).moved_L(ep)

    assert moved("1,1,1,1", ep=4) == (0,)
    # The mean is 3: the first rank gives 5 of its 8 away, 2 each to two ranks and 1 to the last.
    assert moved("8,1,1,2", ep=4) == (3,)
    assert moved("8,1,1,2", "3,3,3,3", ep=1) == (0, 0)
    # Two experts on a rank of 7, the mean 4.5: the larger one goes in part to the other rank.
    assert moved("5,2,1,1", ep=2) == (1,)


@settings(max_examples=100, deadline=None)
@given(counts=COUNTS, ep=st.sampled_from((2, 4, 8)))
def test_no_rank_moves_more_experts_than_it_needs_to(counts: list[list[int]], ep: int) -> None:
    rows = tuple(",".join(map(str, row)) for row in counts)
    routing = Routing(source="", layers=tuple(range(len(rows))), counts=rows, reroutes=True)
    loads = Routing(source="", layers=routing.layers, counts=rows).loads(ep)
    for moved, factor in zip(routing.moved_L(ep), loads.factor_L, strict=True):
        assert (moved == 0) == (factor <= 1.0)
        assert moved <= 8 + ep, "every transfer empties an expert or fills a rank"


def test_even_routing_costs_what_no_skew_does(tmp_path: Path) -> None:
    even = asked(tmp_path, "{histogram: uniform}").workload
    for ep in (1, 2, 8):
        assert even.busiest_rank(ep) == (1.0, 1.0, 0, 0)


def test_rows_are_of_the_layers_with_experts_and_layers_without_tokens_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "counts.csv").write_text("\n".join(["0,0,0,0,0,0,0,0"] + 31 * ["1,2,3,4,5,6,7,8"]))
    routing = asked(tmp_path, "{histogram: counts.csv}").workload.routing
    assert routing is not None
    assert routing.layers == tuple(range(1, 32))
    assert routing.source.endswith("counts.csv")


def test_parts_of_one_are_kept_as_whole_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "counts.npy", np.full((32, 8), 1 / 8))
    routing = asked(tmp_path, "{histogram: counts.npy}").workload.routing
    assert routing is not None
    assert routing.tokens_LE[0] == (125_000_000,) * 8


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        (
            "{histogram: zipf:1.0, pad_to_capacity: true}",
            (
                "spec.yaml:4:128: workload.routing.pad_to_capacity: `pad_to_capacity` is given without a capacity.\n"
                "Add capacity_factor: 1.25."
            ),
        ),
        (
            "{histogram: zipf:1.0}, routing_skew: 1.5",
            (
                "spec.yaml:4:126: workload.routing_skew: `routing_skew` is given beside `routing`, which says the load "
                "of every rank.\nGive one of the two."
            ),
        ),
        (
            "{histogram: zipf:1.0, reroute: least-loaded, capacity_factor: 2}",
            (
                "spec.yaml:4:120: workload.routing.reroute: `reroute` and `capacity_factor` both say what becomes of "
                "tokens beyond a rank's share.\nGive one of the two."
            ),
        ),
        (
            "{histogram: zipf:1.0, reorder: true, reroute: least-loaded}",
            (
                "spec.yaml:4:120: workload.routing.reorder: `reorder` moves experts between ranks that all get the "
                "same.\nRemove it, or pad_to_capacity and reroute."
            ),
        ),
        (
            "{histogram: zipf:99}",
            (
                "spec.yaml:4:101: workload.routing.histogram: zipf:99: the parameter is above 10.\n"
                "Published fits lie below 2."
            ),
        ),
        (
            "{histogram: nowhere.json}",
            "nowhere.json: The file cannot be read: No such file or directory.",
        ),
        (
            "{histogram: few.json}",
            (
                "spec.yaml:4:101: workload.routing.histogram: few.json counts 4 experts; mixtral-8x7b has 8.\n"
                "Give the counts of this model."
            ),
        ),
        (
            "{histogram: short.json}",
            (
                "spec.yaml:4:101: workload.routing.histogram: short.json counts 2 layers; mixtral-8x7b has 32, 32 of "
                "them with experts.\nGive a row for each layer, or for each that has experts."
            ),
        ),
    ],
)
def test_a_routing_that_is_none_is_refused_with_its_place(tmp_path: Path, routing: str, message: str) -> None:
    (tmp_path / "few.json").write_text("[[1, 2, 3, 4]]")
    (tmp_path / "short.json").write_text("[[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]]")
    assert refused(tmp_path, routing) == message


def test_a_model_without_experts_has_no_routing(tmp_path: Path) -> None:
    asked(tmp_path, "{histogram: zipf:1.0}")
    with pytest.raises(InputError) as caught:
        load_inputs(tmp_path / "spec.yaml", ["model=llama-3.1-8b", "constraints={}"])
    assert caught.value.message == "llama-3.1-8b has no routed experts."


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"counts": ()}, "every counted layer has a row of counts, and there is at least one"),
        ({"counts": ("1,2", "1,2,3")}, "every layer has as many experts"),
        ({"counts": ("1,2", "0,0")}, "counts are not negative, and some token was counted in every layer"),
        ({"counts": ("1,2", "a,b")}, "invalid literal for int"),
        ({"pads_to_capacity": True}, "without a capacity factor there is no capacity to pad to"),
        ({"reroutes": True, "capacity_factor": 2.0}, "tokens beyond a capacity are dropped or rerouted, not both"),
        ({"capacity_factor": 0.0}, "a capacity factor is above 0"),
    ],
)
def test_what_is_no_routing_is_refused(fields: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"source": "", "layers": (0, 1), "counts": ("1,2", "3,4"), **fields}
    with pytest.raises(ValueError, match=message):
        Routing(**given)  # type: ignore[arg-type]


UNEVEN = [[[8, 8, 1, 1, 1, 1, 1, 1], [1] * 8, [2, 9, 4, 9, 1, 1, 3, 3]][layer % 3] for layer in range(32)]
"""Of each three layers, two whose busiest of four ranks gets less in another order."""


def counted(folder: Path, options: str = "") -> Plan:
    """Return the plan of a run that is routed as `UNEVEN`."""
    (folder / "counts.json").write_text(json.dumps(UNEVEN))
    return plan_of(folder, f"{{histogram: counts.json{options}}}")


@pytest.fixture(scope="module")
def reordered_plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return counted(tmp_path_factory.mktemp("reordered"))


def test_a_plan_reorders_the_experts_of_layers_that_gain_and_says_what_it_was_before(
    reordered_plan: Plan, tmp_path: Path
) -> None:
    routing = reordered_plan.request.workload.routing
    assert routing is not None
    order, before = routing.order(4), routing.in_order.loads(4)
    assert order is not None
    # 8 beside 1, whatever else: 9 of 22 on one of four ranks. The third: 9 beside 1 at best.
    assert routing.loads(4).factor_L[:3] == (round(36 / 22, 6), 1.0, round(40 / 32, 6))
    assert before.factor_L[:3] == (round(64 / 22, 6), 1.0, round(52 / 32, 6))
    assert [bool(row) for row in order.rows[:3]] == [True, False, True]
    assert order.least_L == pytest.approx(routing.loads(4).factor_L, abs=1e-6)
    planned = reordered_plan.best
    assert planned.experts_in_order is not None
    kept = counted(tmp_path, ", reorder: false")
    assert kept.request.workload.routing == routing.in_order
    assert kept.best.experts_in_order is None
    assert kept.best.step_seconds > planned.step_seconds
    natural = evaluation_of(kept, planned.layout)
    assert planned.experts_in_order == ExpertsInOrder(
        step_seconds=natural.step_seconds, peak_memory_bytes=natural.peak_memory_bytes
    )
    assert planned.step_seconds < natural.step_seconds
    assert any("the experts of each layer stand in another order" in text for text in planned.assumptions)
    assert f"{routing.loads(4).mean:.2f}" in experts_in_words(planned.layout, reordered_plan.request.workload)


def test_the_order_is_written_beside_the_scripts_and_says_the_loads_of_the_plan(reordered_plan: Plan) -> None:
    files = launch_files(reordered_plan)
    names = launch_file_names(reordered_plan.request.workload, reordered_plan.cluster)
    assert set(files) == set(names) == {"launch.sh", "job.sbatch", "expert-order.json"}
    assert all("expert-order.json" in files[name] for name in ("launch.sh", "job.sbatch"))
    order_LE = np.array(json.loads(files["expert-order.json"])["order"])
    assert order_LE.shape == (32, 8)
    carried = np.take_along_axis(np.array(UNEVEN), order_LE, axis=1).reshape(32, 4, 2).sum(axis=2)
    routing = reordered_plan.request.workload.routing
    assert routing is not None
    np.testing.assert_allclose(
        carried.max(axis=1) / carried.mean(axis=1), routing.loads(reordered_plan.best.layout.ep).factor_L, atol=1e-6
    )


def test_a_plan_of_reordered_experts_reads_back_and_an_edited_one_does_not(reordered_plan: Plan) -> None:
    text = plan_to_text(reordered_plan)
    assert plan_from_document(parse_document(text, file="plan.json")) == reordered_plan
    best = json.loads(text)["plans"][0]
    assert set(best["experts_in_order"]) == {"step_seconds", "peak_memory_bytes"}
    assert best["expert_loads"] != best["expert_loads_in_order"]
    for path, message in (
        (("experts_in_order",), "`experts_in_order` is there exactly where experts are reordered."),
        (("least_expert_loads",), "`least_expert_loads` does not follow from the routing and ep."),
        (("expert_loads_in_order",), "`expert_loads_in_order` does not follow from the routing and ep."),
    ):
        document = json.loads(text)
        del document["plans"][0][path[0]]
        with pytest.raises(InputError) as caught:
            plan_from_document(parse_document(json.dumps(document), file="plan.json"))
        assert message in str(caught.value)


def test_an_order_that_tears_groups_apart_breaks_a_rule_and_is_not_written(reordered_plan: Plan) -> None:
    (run,) = reordered_plan.model.runs
    experts = run.block.feed_forward
    assert isinstance(experts, MixtureOfExperts)
    grouped = replace(experts, router=replace(experts.router, num_groups=2, groups_per_token=1))
    model = replace(reordered_plan.model, runs=(replace(run, block=replace(run.block, feed_forward=grouped)),))
    broken = violations(reordered_plan.best, model, reordered_plan.cluster, reordered_plan.request)
    assert {entry.rule for entry in broken} == {"expert-order"}
    assert "mixes experts of groups 0 and 1 at positions 0 to 3" in broken[0].message
    with pytest.raises(InputError, match="mixes experts of groups"):
        launch_files(replace(reordered_plan, model=model))


def test_an_assumption_reorders_only_where_it_is_asked_to(tmp_path: Path) -> None:
    assumed = asked(tmp_path, "{histogram: zipf:1.0}").workload.routing
    reordered = asked(tmp_path, "{histogram: zipf:1.0, reorder: true}").workload.routing
    assert assumed is not None
    assert reordered is not None
    assert assumed.orders is None
    assert reordered.in_order == assumed
    assert reordered.loads(4).mean < assumed.loads(4).mean


def test_a_load_below_what_any_order_has_breaks_a_rule(reordered_plan: Plan) -> None:
    request, routing = reordered_plan.request, reordered_plan.request.workload.routing
    assert routing is not None
    assert violations(reordered_plan.best, reordered_plan.model, reordered_plan.cluster, request) == ()
    orders = tuple(replace(order, least_L=(2.5, *order.least_L[1:])) for order in routing.orders or ())
    workload = replace(request.workload, routing=replace(routing, orders=orders))
    (broken,) = violations(
        reordered_plan.best, reordered_plan.model, reordered_plan.cluster, replace(request, workload=workload)
    )
    assert (broken.rule, broken.message) == ("expert-order", "layer 0 has a load of 1.636364, below 2.5 at least")
