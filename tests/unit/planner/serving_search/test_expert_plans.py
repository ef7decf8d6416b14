"""Serving plans of experts whose routing is known: loads, copies, placements beside the plan."""

import json
from dataclasses import replace

import numpy as np
import pytest

from planner.documents import parse_document
from planner.errors import InputError
from planner.requests.request import Bounds
from planner.schema.serve_plan_file import serve_plan_from_document, serve_plan_to_text
from planner.serving.engines import calibration
from planner.serving_plans.plan import ServePlan
from planner.serving_search.expert_places import tried_copies
from planner.serving_search.field import field_of
from planner.serving_search.held import HeldEngine, held_engine
from planner.serving_search.launch import serve_files
from tests.served import serve_inputs, served

SPEC = """\
schema: 1
model: qwen3-30b-a3b
cluster: {preset: dgx-h100, nodes: 1}
workload:
  kind: serve
  input: 1000
  output: 200
  quantization: fp8
  slo: {ttft_ms: 500, tpot_ms: 25}
  routing: {histogram: "zipf:1.0"}
constraints: {redundant_experts: 8, expert_parallel: true, tp: 1, dp: 8, split: never, max_num_batched_tokens: 4096}
"""
FREE = ("redundant_experts: 8, ", "")
EVEN = ('"zipf:1.0"', "uniform")


def copied() -> ServePlan:
    return served(text=SPEC)


def damaged(old: str, new: str) -> str:
    text = serve_plan_to_text(copied())
    assert old in text, old
    with pytest.raises(InputError) as caught:
        serve_plan_from_document(parse_document(text.replace(old, new, 1), file="plan.json"))
    return caught.value.message


def test_copies_are_chosen_and_bear_about_what_even_routing_does() -> None:
    free, some, even = (served(*changes, text=SPEC) for changes in ((FREE,), (), (FREE, EVEN)))
    (pool,) = free.pools
    assert pool.pool.settings.redundant_experts in {8, 16, 32}
    assert free.requests_per_second >= some.requests_per_second
    # Where few tokens are under way, uneven ones reach fewer experts, whose weights are read.
    assert some.requests_per_second == pytest.approx(even.requests_per_second, rel=0.03)
    assert even.pools[0].pool.settings.redundant_experts in {None, 0}, "copies of even experts gain nothing"


def test_copies_take_memory_and_are_priced_by_their_own_busiest_rank() -> None:
    inputs = serve_inputs(SPEC, FREE)
    found = field_of(inputs.model, inputs.clusters, inputs.request).candidates
    assert [one.build.balance.redundant for one in found] == [None, 0, 8, 16, 32]
    in_order, alone, eight, *_ = (one.costs.seconds(decodes=512, context=1000) for one in found)
    # One expert has 18.4 % of the choices, and an eighth is even: no order mends that, a copy does.
    assert in_order > 1.05 * alone > 1.05 * 1.05 * eight
    weights = [next(line.num_bytes for line in one.ledger(8).lines if line.name == "weights") for one in found]
    one_expert = found[0].costs.rank.bytes_of_one_expert
    assert weights == pytest.approx([weights[0] + more * one_expert for more in (0, 0, 1, 2, 4)], abs=1)


def test_the_engine_is_told_of_its_copies_and_only_with_a_balancer() -> None:
    (pool,) = copied().pools
    assert pool.pool.settings.redundant_experts == 8
    files = serve_files(copied())
    assert "enable-eplb: true\neplb-config:\n  num_redundant_experts: 8" in files["server.yaml"]
    without = served(FREE, EVEN, text=SPEC)
    assert without.pools[0].pool.settings.redundant_experts is None
    assert without.pools[0].of_experts == (
        "load of the busiest of 8 ranks over the mean 1.000, 1.000 in layer 0; in their order",
    )
    assert without.pools[0].placement is None
    assert not [name for name in serve_files(without) if "location" in name]


def test_the_placement_beside_the_plan_has_every_expert_and_none_twice_on_a_gpu() -> None:
    found = json.loads(serve_files(copied())["server-expert-location.json"])["physical_to_logical_map"]
    assert len(found) == 48
    for row in found:
        ranks = np.array(row).reshape(8, 17)
        assert set(row) == set(range(128))
        assert all(len(set(rank)) == 17 for rank in ranks.tolist())


def test_the_plan_says_what_copies_gained_and_what_one_more_would() -> None:
    (pool,) = copied().pools
    assert pool.of_experts is not None
    load, more = pool.of_experts
    assert load.startswith("load of the busiest of 8 ranks over the mean 1.0")
    assert "with 8 copies a layer;" in load
    assert more.startswith("one more copy on every rank takes 0.21 GiB there and makes it 1.0")


def test_a_plan_reads_back_with_its_routing_and_placement() -> None:
    text = serve_plan_to_text(copied())
    assert serve_plan_from_document(parse_document(text, file="plan.json")) == copied()
    plain = served(FREE, ('  routing: {histogram: "zipf:1.0"}\n', ""), text=SPEC)
    assert "placement" not in serve_plan_to_text(plain)
    spread = calibration().kernels.routing_spread
    assert (
        "routing was not counted: the logarithm of an expert's part of all choices has a standard deviation of"
        f" {spread:.2f}, as fitted to runs of servers"
    ) in plain.assumptions


def test_a_placement_that_was_edited_is_refused() -> None:
    (pool,) = copied().pools
    assert pool.placement is not None
    row = pool.placement[0]
    first, second, rest = row.split(",", 2)
    said = "The placement of pool server "
    assert damaged(row, f"{first},{first},{rest}") == f"{said}holds an expert twice on a rank."
    assert damaged(row, f"128,{second},{rest}") == (
        f"{said}names experts that there are not: they are numbered 0 to 127."
    )
    assert damaged(row, f"{first},x,{rest}") == f"{said}is no rows of experts, as many on every rank."
    assert damaged('"redundant_experts": 8', '"redundant_experts": 16') == (
        f"{said}has 8 copies, and the engine is told of 16."
    )


@pytest.mark.parametrize(
    ("asked", "tried"),
    [
        (None, (0, 8, 16, 32)),
        (Bounds(allowed=(16, 20, 48)), (16, 48)),
        (Bounds(allowed=(0,)), (0,)),
        (Bounds(minimum=50), (56,)),
        (Bounds(minimum=9, maximum=30), (16, 24)),
        (Bounds(maximum=7), (0,)),
        (Bounds(allowed=(8 * 113,)), ()),
    ],
)
def test_copies_that_are_asked_for_are_tried(asked: Bounds | None, tried: tuple[int, ...]) -> None:
    assert tried_copies(128, 8, asked) == tried


def test_copies_that_no_rank_can_keep_leave_no_plan_and_say_so() -> None:
    odd = served(("redundant_experts: 8", "redundant_experts: 4"), text=SPEC)
    assert odd.infeasible is not None
    assert odd.infeasible.binding == (
        "no shape of an engine keeps the constraints and the rules of the target:"
        " `redundant_experts` allows no number that the ranks divide"
    )
    assert odd.search.pruned["`redundant_experts` allows no number that the ranks divide"] == 1
    whole = served(("expert_parallel: true, tp: 1, dp: 8", "tp: [1, 2], dp: 1"), text=SPEC)
    assert whole.search.pruned["`redundant_experts` is constrained, and experts are split"] == 7, (
        "pp 1, 2, 4, 8 and 1, 2, 4"
    )
    assert all(" ep" in engine.words for engine in whole.engines)


def test_the_memory_of_copies_that_are_asked_for_is_what_does_not_fit() -> None:
    large = served(
        ("model: qwen3-30b-a3b", "model: qwen3-235b-a22b"),
        ("redundant_experts: 8", "redundant_experts: 320"),
        text=SPEC,
    )
    assert large.infeasible is not None
    (move,) = large.infeasible.moves
    # 94 layers, three matrices of 4,096 x 1,536: 16 experts of each layer on a rank without copies, 56 with them.
    weights = 94 * 3 * 4096 * 1536 * 56
    assert move.needed is not None
    assert weights < move.needed < weights + 30e9
    assert large.infeasible.binding.startswith("memory: the weights,")


def test_an_engine_that_is_told_other_copies_is_held_to_their_memory_and_loads() -> None:
    (entry,) = copied().pools

    def held(copies: int | None) -> HeldEngine:
        settings = replace(entry.pool.settings, redundant_experts=copies)
        return held_engine(copied(), entry, entry.pool.shape, settings)

    def weights(copies: int | None) -> int:
        return next(line.num_bytes for line in held(copies).ledger.lines if line.name == "weights")

    planned = next(item.num_bytes for item in entry.memory if item.name == "weights")
    assert weights(8) == planned
    assert weights(16) - planned == pytest.approx(planned - weights(0), abs=1)
    assert weights(12) > planned, "copies that the ranks do not divide take memory all the same"
    assert held(8).keeps
    assert held(None).served is not None
    assert not held(None).keeps, "experts in order do not bear the load that copies were planned for"


def test_engines_that_split_experts_have_no_placement() -> None:
    plan = served(FREE, ("expert_parallel: true, tp: 1, dp: 8", "expert_parallel: false, tp: 1, dp: 1"), text=SPEC)
    assert plan.pools[0].placement is None
    assert plan.pools[0].of_experts is None


def test_a_histogram_of_another_model_is_refused_with_its_place() -> None:
    with pytest.raises(InputError) as caught:
        serve_inputs(SPEC, ("qwen3-30b-a3b", "llama-3.1-8b"), ("expert_parallel: true, ", ""))
    assert str(caught.value).startswith(
        "spec.yaml:10:24: workload.routing.histogram: llama-3.1-8b has no routed experts."
    )
    with pytest.raises(InputError) as caught:
        serve_inputs(SPEC, ('"zipf:1.0"', '"zipf:1.0", capacity_factor: 1.25'))
    assert "capacity_factor" in str(caught.value)
