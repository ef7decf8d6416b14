"""What an engine is told beside its shape: guesses of a draft, copies of experts, contexts that ranks share."""

import json
from dataclasses import replace

import numpy as np
import pytest

from planner.errors import InputError
from planner.models.bundled import load_bundled
from planner.schema.serve_plan_file import serve_plan_to_json
from planner.serving.simulate import simulate
from planner.serving.speculation import tokens_per_step
from planner.serving.steady import Load, at_concurrency
from planner.serving.traffic import closed_loop
from planner.serving_plans.layout import NIXL, EngineShape, Role
from planner.serving_search.candidates import Candidate
from planner.serving_search.field import field_of
from planner.serving_search.launch import serve_files
from planner.serving_search.passing import pair_refusal
from planner.serving_search.shapes import draft_refusal
from planner.serving_search.transfer import transfer_of
from tests.served import SMALL, serve_inputs, served
from tests.unit.planner.serving.engines_of import Served
from tests.unit.planner.serving.engines_of import served as engine

LATE = ("slo: {ttft_ms: 500, tpot_ms: 25}", "arrivals: closed-loop\n  concurrency: 8\n  slo: {ttft_ms: 2000}")
BIG = ("model: llama-3.1-8b", "model: llama-3.1-70b")
ALONE = ("workload:", "constraints: {split: never}\nworkload:")
LONG = """\
schema: 1
model: llama-3.1-70b
cluster: {preset: dgx-h100, nodes: 1}
speculative: {draft: llama-3.2-1b, acceptance: 0.7}
workload: {kind: serve, input: 1000, output: 1000, arrivals: closed-loop}
"""
LONG_CONTEXT = """arrivals: closed-loop
  input: 60000
  output: 2000
  quantization: fp8"""
MIXTURE = ("model: llama-3.1-8b", "model: qwen3-30b-a3b")


def drafted(acceptance: float, *pinned: str) -> tuple[tuple[str, str], ...]:
    """Return a large model with a draft."""
    constraints = ", ".join(("split: never", *pinned))
    words = f"speculative: {{draft: llama-3.2-1b, acceptance: {acceptance}}}"
    return (BIG, LATE, ("workload:", f"{words}\nconstraints: {{{constraints}}}\nworkload:"))


def test_guesses_give_what_a_geometric_series_says() -> None:
    assert tokens_per_step(0, 0.7) == 1.0
    assert tokens_per_step(3, 0.5) == pytest.approx((1 - 0.5**4) / (1 - 0.5))
    draws = np.random.default_rng(3).random((200_000, 4)) < 0.6
    taken = 1 + np.cumprod(draws, axis=1).sum(axis=1)
    assert tokens_per_step(4, 0.6) == pytest.approx(float(taken.mean()), rel=0.01)


def test_a_good_draft_is_used_and_a_poor_one_is_not() -> None:
    (good,) = served(*drafted(0.9)).pools
    (poor,) = served(*drafted(0.02)).pools
    assert good.pool.settings.draft is not None
    assert good.pool.settings.draft.tp == good.pool.shape.tp
    assert poor.pool.settings.draft is None
    without = served(BIG, LATE, ALONE)
    assert served(*drafted(0.02)).value == without.value
    assert (served(*drafted(0.9)).value or 0.0) > (without.value or 0.0)


def test_a_better_draft_never_bears_less_and_guesses_no_shorter() -> None:
    plans = [served(*drafted(acceptance)) for acceptance in (0.5, 0.7, 0.9)]
    values = [plan.value or 0.0 for plan in plans]
    assert values == sorted(values)
    guesses = [plan.pools[0].pool.settings.draft for plan in plans]
    numbers = [0 if draft is None else draft.num_tokens for draft in guesses]
    assert numbers == sorted(numbers)


def test_files_and_memory_hold_the_draft() -> None:
    plan = served(*drafted(0.8, "num_speculative_tokens: 5", "tp: 4"))
    (entry,) = plan.pools
    config = serve_files(plan)["server.yaml"]
    assert 'speculative-config:\n  method: "draft_model"\n  model: "meta-llama/Llama-3.2-1B"\n' in config
    assert "  num_speculative_tokens: 5\n  draft_tensor_parallel_size: 4\n" in config
    (draft,) = [item for item in entry.memory if item.name == "draft"]
    # 1,235,814,400 parameters of 2 bytes; embedding and head are one table, split like the rest; norms are whole.
    assert draft.num_bytes == pytest.approx(1_235_814_400 * 2 / 4, rel=0.01)
    assert json.dumps(serve_plan_to_json(plan)).count('"num_tokens": 5') == 1


def test_a_simulation_with_guesses_agrees_with_the_closed_form() -> None:
    inputs = serve_inputs(LONG)
    field = field_of(inputs.model, inputs.clusters, inputs.request)
    candidate = next(one for one in field.candidates if one.build.guesses == 3 and one.shape.tp == 4)
    requests = closed_loop(count=192, concurrency=16, prompt=1000, output=1000, spread=0.8)
    found = simulate(requests, costs=candidate.costs, seats=candidate.seats(16))
    steady = at_concurrency(candidate.costs, candidate.seats(16), Load(prompt=900, output=900), 16)
    assert float(np.nanmean(found.tpot_N)) == pytest.approx(steady.tpot_seconds, rel=0.04)
    assert not np.isnan(found.end_N).any()


def test_answers_that_are_put_back_end_all_the_same() -> None:
    inputs = serve_inputs(LONG)
    field = field_of(inputs.model, inputs.clusters, inputs.request)
    candidate = next(one for one in field.candidates if one.build.guesses == 4 and one.shape.tp == 8)
    seats = replace(candidate.seats(16), pool_bytes=6000 * candidate.seats(16).token_bytes)
    requests = closed_loop(count=64, concurrency=16, prompt=200, output=600)
    found = simulate(requests, costs=candidate.costs, seats=seats)
    assert found.preempted > 0
    assert not np.isnan(found.end_N).any()
    assert (found.tpot_N > 0).all()


STAGED = "draft: pipeline stages, of which vLLM makes the last one's part of it alone"


def test_a_draft_is_not_planned_where_it_cannot_stand() -> None:
    draft = load_bundled("llama-3.2-1b")
    assert draft_refusal(EngineShape(tp=8), draft) is None
    assert draft_refusal(EngineShape(tp=4, pp=2), draft) == STAGED
    assert draft_refusal(EngineShape(tp=64), draft) == (
        "draft: its heads, columns or experts do not divide over the ranks"
    )
    plan = served(*drafted(0.8), ("split: never", "split: allowed"))
    assert plan.search.pruned[STAGED] > 0


GUESSED = (
    ("model: llama-3.1-8b", "model: llama-3.1-70b"),
    ("workload:", "speculative: {draft: llama-3.1-8b, acceptance: 0.8}\nworkload:"),
    ("ttft_ms: 500, tpot_ms: 25", "ttft_ms: 2000, tpot_ms: 15"),
)


def test_a_split_plan_has_the_draft_in_both_pools_or_in_neither() -> None:
    plan = served(*GUESSED, ("workload:", "constraints: {split: only}\nworkload:"))
    drafts = {entry.pool.role: entry.pool.settings.draft for entry in plan.pools}
    prefill, decode = drafts[Role.PREFILL], drafts[Role.DECODE]
    assert prefill is not None
    assert decode is not None
    # Prompts need no guesses, and the fewest are quickest there.
    assert prefill.num_tokens == 1 < decode.num_tokens
    files = serve_files(plan)
    for entry in plan.pools:
        assert 'method: "draft_model"' in files[f"{entry.pool.name}.yaml"]
    without = served(GUESSED[0], GUESSED[2], ("workload:", "constraints: {split: only}\nworkload:"))
    assert (plan.value or 0.0) > (without.value or 0.0)


def test_caches_of_a_draft_are_passed_on_with_the_models() -> None:
    inputs = serve_inputs(SMALL, *GUESSED)
    candidates = field_of(inputs.model, inputs.clusters, inputs.request).candidates
    found = {one.build.guesses: one for one in candidates if one.shape == EngineShape(tp=4)}
    bare, guessed = found[0], found[2]
    assert pair_refusal(bare, guessed, NIXL) == (
        "a draft in one of two engines: both have the same layers, or the caches do not match"
    )
    assert pair_refusal(found[1], guessed, NIXL) is None
    alone, both = (transfer_of(one, one, one_node=True).num_bytes for one in (bare, guessed))
    # 32 layers of 8 heads beside 80 of as many; slots for guesses may need one more block.
    assert both / alone == pytest.approx(112 / 80, rel=0.02)
    eight = next(one for one in candidates if one.shape == EngineShape(tp=8) and one.build.guesses == 2)
    assert pair_refusal(guessed, eight, NIXL) is None


def test_a_drafts_experts_lie_over_all_ranks() -> None:
    text = SMALL.replace("llama-3.1-8b", "qwen3-235b-a22b").replace("dgx-h100", "dgx-h200")
    change = ("workload:", "speculative: {draft: qwen3-30b-a3b, acceptance: 0.8}\nworkload:")
    inputs = serve_inputs(text, change, ("tpot_ms: 25", "tpot_ms: 100"))
    candidates = field_of(inputs.model, inputs.clusters, inputs.request).candidates
    held = {}
    for shape in (EngineShape(tp=8), EngineShape(tp=8, expert_parallel=True)):
        candidate = next(one for one in candidates if one.shape == shape and one.build.guesses == 2)
        held[shape] = next(line.num_bytes for line in candidate.ledger(8).lines if line.name == "draft")
        # 30,532,122,624 parameters of 2 bytes; key and value heads have two copies.
        assert held[shape] == pytest.approx(30_532_122_624 * 2 / 8, rel=0.02)
        slower, faster = (one.costs.seconds(decodes=16, context=1000) for one in (candidate, _bare(candidates, shape)))
        assert slower > faster
    draft = load_bundled("qwen3-30b-a3b")
    uneven = EngineShape(tp=8, dp=12, expert_parallel=True)
    assert draft_refusal(uneven, draft) == "draft: its heads, columns or experts do not divide over the ranks"


def _bare(candidates: list[Candidate], shape: EngineShape) -> Candidate:
    return next(one for one in candidates if one.shape == shape and not one.build.guesses)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "{draft: qwen3-0.6b, acceptance: 0.7}",
            "qwen3-0.6b has 151,936 tokens in its vocabulary, llama-3.1-8b 128,256.",
        ),
        ("{draft: nemotron-h-56b, acceptance: 0.7}", "nemotron-h-56b has recurrent layers."),
        (
            "{draft: llama-3.2-1b, acceptance: 1.5}",
            "`acceptance` = 1.5 is out of range.\nGive a value of less than 1.0.",
        ),
        ("{draft: nothing-like-it, acceptance: 0.5}", "nothing-like-it"),
    ],
)
def test_a_draft_that_cannot_guess_is_refused(change: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        serve_inputs(SMALL, ("workload:", f"speculative: {change}\nworkload:"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("slo:", "routing: {}\n  slo:"),
            "Give a file of counts, or an assumption: zipf:1.0, lognormal:0.5 or uniform.",
        ),
        (
            ("workload:", "constraints: {redundant_experts: 8}\nworkload:"),
            "`redundant_experts` is constrained, and nothing says which experts tokens choose.",
        ),
        (
            ("workload:", "constraints: {num_speculative_tokens: 8}\nworkload:"),
            "`num_speculative_tokens` is constrained, and there is no draft.",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(change: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        serve_inputs(SMALL, change)
    assert message in str(caught.value)


DEALT = ("workload:", "constraints: {split: never, tp: 1, pp: 1, dp: 4, expert_parallel: true}\nworkload:")
UNEVEN = ("slo:", 'routing: {histogram: "zipf:1.0"}\n  slo:')
ALIKE = ("slo:", "routing: {histogram: uniform}\n  slo:")


def test_uneven_experts_take_longer_and_the_balancer_wins_back_most() -> None:
    balanced = served(MIXTURE, DEALT, UNEVEN)
    (entry,) = balanced.pools
    assert entry.pool.settings.redundant_experts is not None
    assert "enable-eplb: true\neplb-config:\n  num_redundant_experts:" in serve_files(balanced)["server.yaml"]
    assert entry.step_seconds["moves of experts"] > 0
    assert any(text.startswith("a balancer deals experts anew every 3,000 steps") for text in balanced.assumptions)
    even, *_ = [one for one in _candidates(MIXTURE, DEALT, ALIKE) if one.budget == 8192]
    in_order, *with_copies = [one for one in _candidates(MIXTURE, DEALT, UNEVEN) if one.budget == 8192]
    for answers in (64, 256, 1024):
        least, most = (one.costs.seconds(decodes=answers, context=1000) for one in (even, in_order))
        between = [one.costs.seconds(decodes=answers, context=1000) for one in with_copies]
        assert all(least * (1 - 1e-9) <= seconds for seconds in between)
        assert min(between) < least + 0.5 * (most - least)


def test_copies_take_memory_for_their_weights() -> None:
    found = _candidates(MIXTURE, DEALT, UNEVEN)
    weights = {
        one.build.balance.redundant: next(line.num_bytes for line in one.ledger(8).lines if line.name == "weights")
        for one in found
    }
    # 48 layers, three matrices of 2,048 x 768 an expert, 2 bytes; four ranks share 8 copies.
    assert weights[8] - weights[0] == 48 * 3 * 2048 * 768 * 2 * 8 / 4
    assert weights[0] == weights[None]


def _candidates(*changes: tuple[str, str]) -> list[Candidate]:
    inputs = serve_inputs(SMALL, *changes)
    return field_of(inputs.model, inputs.clusters, inputs.request).candidates


def _shared(dcp: int, model: str = "deepseek-v3", quantisation: str = "fp8_block") -> Served:
    return engine(model, preset="dgx-h200", quantisation=quantisation, shape=EngineShape(tp=8, dcp=dcp))


def test_a_shared_context_holds_more_and_pays_exchanges() -> None:
    whole, shared = _shared(1), _shared(8)
    assert shared.ledger().token_bytes == pytest.approx(whole.ledger().token_bytes / 8)
    terms = [one.costs.breakdown(decodes=64, context=8000) for one in (whole, shared)]
    assert terms[1]["collectives"] > terms[0]["collectives"]
    for one in (whole, shared):
        found = one.costs.breakdown(chunks=[(512.0, 2048.0)], decodes=64, context=8000, finished=1)
        assert sum(found.values()) == pytest.approx(
            one.costs.seconds(chunks=[(512.0, 2048.0)], decodes=64, context=8000, finished=1)
        )
    # Short contexts are not worth an exchange; of long ones each rank reads an eighth.
    assert shared.costs.seconds(decodes=8, context=200) > whole.costs.seconds(decodes=8, context=200)
    long = [one.costs.breakdown(decodes=8, context=500_000)["attention of answers"] for one in (whole, shared)]
    assert long[1] <= long[0]


def test_a_prompts_first_chunk_exchanges_nothing() -> None:
    whole, shared = _shared(1), _shared(4)
    first, later = [(2048.0, 0.0)], [(2048.0, 4096.0)]
    assert shared.costs.seconds(chunks=first) == whole.costs.seconds(chunks=first)
    assert shared.costs.seconds(chunks=later) > whole.costs.seconds(chunks=later)


def test_a_plan_shares_contexts_where_the_cache_is_short() -> None:
    plan = served(
        ("model: llama-3.1-8b", "model: deepseek-v3"),
        ("dgx-h100", "dgx-h200"),
        ("workload:", "constraints: {tp: 8, split: never}\nworkload:"),
        ("input: 1000\n  output: 200\n  slo: {ttft_ms: 500, tpot_ms: 25}", LONG_CONTEXT),
    )
    (entry,) = plan.pools
    assert entry.pool.shape.dcp > 1
    assert f"decode-context-parallel-size: {entry.pool.shape.dcp}" in serve_files(plan)["server.yaml"]
    assert any(point.words.startswith("tp8 dcp") for point in plan.pareto)
