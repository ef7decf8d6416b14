"""`plan --token-swaps`: what the target costs, in text, in the plan file, in `explain` and on the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.render_tokens import token_blocks, token_verdict_in_words, tokens_document
from planner.documents import parse_document
from planner.errors import InputError
from planner.plans.choices import RankTokens, SwappedTokens, TokenSwapping
from planner.plans.plan import Plan
from planner.requests.request import Target
from planner.schema.plan import plan_from_document, plan_to_text
from tests.builders import tiny_infeasible_plan, tiny_plan

RUNNER = CliRunner()

SPEC = """\
schema: 1
model: llama-3.1-8b
cluster: {preset: dgx-h100, nodes: 1}
workload: {kind: train, seq_len: 131072, global_batch_size: 8, precision: bf16}
constraints: {tp: 4, cp: 2, pp: 1}
"""


def entry(step_seconds: float, *, index: int = 0, gap: float = 0.0) -> SwappedTokens:
    tokens = RankTokens(kept_fraction=0.25, swapped_fraction=0.5, again_fraction=0.125, again_here_fraction=0.125)
    return SwappedTokens(
        index=index,
        step_seconds=step_seconds,
        gap=gap,
        peak_memory_bytes=2**30,
        host_memory_bytes=2**31,
        again_seconds=0.01,
        waiting_seconds=0.002,
        ranks=(tokens, tokens),
    )


def plan_with(*priced: SwappedTokens, left_out: dict[str, str] | None = None) -> Plan:
    return replace(
        tiny_plan(), token_swapping=TokenSwapping(priced=priced, left_out=left_out or {}, assumptions=("two sockets",))
    )


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def test_a_plan_says_what_its_target_costs_and_explain_says_it_again(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = RUNNER.invoke(app, ["plan", str(spec), "--token-swaps", "--out", str(out)])
    assert result.exit_code == 0
    section = result.stdout.partition("Tokens swapped or computed again (MEMO)\n")[2].partition("\n\n")[0]
    assert "Target megatron costs" in section
    stored = json.loads((out / "plan.json").read_text())
    first = stored["token_swaps"]["priced"][0]
    # The layout computes its feed-forwards again; with half of its tokens on the hosts it need not.
    assert first["step_seconds"] < stored["plans"][0]["step_seconds"]
    assert first["again_seconds"] == 0.0
    assert first["peak_memory_bytes"] <= stored["plans"][0]["memory_limit_bytes"]
    document = json.loads(RUNNER.invoke(app, ["explain", str(out), "--format", "json"]).stdout)["token_swaps"]
    assert document["priced"][0]["recomputed_seconds_before"] > 0.0
    assert document["priced"][0]["step_seconds"] == first["step_seconds"]
    text = RUNNER.invoke(app, ["explain", str(out)]).stdout
    assert "What becomes of their tokens\n" in text
    assert "  - sockets: 2 a node, " in text
    assert document["assumptions"] == stored["token_swaps"]["assumptions"]
    launched = (out / "launch.sh").read_text()
    assert "offload" not in launched
    page = tmp_path / "page.html"
    assert RUNNER.invoke(app, ["report", str(out), "--out", str(page)]).exit_code == 0
    assert "What becomes of their tokens" in page.read_text()


def test_a_plan_with_divided_tokens_to_json_and_back_is_the_same_plan() -> None:
    plan = plan_with(entry(0.2), entry(0.3, index=1, gap=1e-4), left_out={"0": "odd"})
    text = plan_to_text(plan)
    assert plan_from_document(parse_document(text, file="plan.json")) == plan
    data = json.loads(text)
    data["token_swaps"]["priced"][0]["index"] = 7
    with pytest.raises(InputError, match="`token_swaps` prices layout 7, but the file holds 2 plans"):
        plan_from_document(parse_document(json.dumps(data), file="plan.json"))
    assert "token_swaps" not in json.loads(plan_to_text(tiny_plan()))


def test_what_the_target_costs_in_words() -> None:
    cost = "Target megatron costs 20.0 %: with divided tokens layout 1 would take 200.0 ms."
    assert token_verdict_in_words(plan_with(entry(0.3), entry(0.2, index=1))) == cost
    nothing = "Target megatron costs nothing: no layout is faster with divided tokens."
    assert token_verdict_in_words(plan_with(entry(0.3))) == nothing
    anyone = replace(plan_with(entry(0.2)), target=Target.ANY)
    assert token_verdict_in_words(anyone).startswith("The search's own choices cost 20.0 %: ")


def test_what_is_shown() -> None:
    assert token_blocks(tiny_plan()) == ()
    assert token_blocks(tiny_infeasible_plan()) == ()
    assert tokens_document(tiny_plan()) is None
    shown = repr(token_blocks(plan_with(entry(0.2, gap=1.234e-4), left_out={"1": "odd"})))
    assert "layout 1 is not priced: odd" in shown
    assert "Another division of layout 0 may take less, but no more than 0.012 %." in shown
    assert "it needs" in shown
    assert "What becomes" not in shown
    every = repr(token_blocks(plan_with(entry(0.2)), every=True))
    assert "('0', '1', '25.0 %', '50.0 %', '12.5 %', '12.5 %')" in every
    assert "two sockets" in every
    assert "two sockets" not in shown
    alone = repr(token_blocks(plan_with(left_out={"0": "odd"})))
    assert "layout 0 is not priced: odd" in alone
    assert "costs" not in alone
