"""Who may pass caches on to whom in a split plan: rules of vLLM's connectors, and plans that use what they allow."""

from dataclasses import replace
from functools import cache

import pytest

from planner.errors import InputError
from planner.models.blocks import LinearAttention, LinearRule, Mixer
from planner.serving.prices import ServingPrices
from planner.serving_plans.layout import NIXL, NIXL_PUSH, EngineShape, Role, check_layout
from planner.serving_search.candidates import Candidate
from planner.serving_search.field import field_of
from planner.serving_search.launch import serve_files
from planner.serving_search.passing import pair_refusal, pairings_of, split_refusal
from planner.serving_search.transfer import senders_of, transfer_of
from tests.served import SMALL, serve_inputs, served

SLOW = ("ttft_ms: 500, tpot_ms: 25", "ttft_ms: 5000, tpot_ms: 100")
HYBRID = "nemotron-h-56b"
LATENT = "deepseek-v3"

STAGES = (("dgx-h100", "dgx-a100"), ("workload:", "constraints: {split: only, tp: 1, pp: [1, 2]}\nworkload:"))


@cache
def engines(model: str = "llama-3.1-8b", preset: str = "dgx-h100") -> tuple[Candidate, ...]:
    """Return every engine of a model on a node."""
    inputs = serve_inputs(SMALL, ("model: llama-3.1-8b", f"model: {model}"), ("dgx-h100", preset), SLOW)
    request = inputs.request
    if model == LATENT:
        request = replace(request, workload=replace(request.workload, quantization="fp8"))
    return tuple(field_of(inputs.model, inputs.clusters, request).candidates)


def engine(shape: EngineShape, model: str = "llama-3.1-8b", preset: str = "dgx-h100") -> Candidate:
    """Return an engine of a shape."""
    return next(one for one in engines(model, preset) if one.shape == shape)


def latent(shape: EngineShape) -> Candidate:
    """Return an engine of a model with latent attention."""
    return engine(shape, LATENT, "dgx-h200")


def test_stages_make_caches_and_do_not_take_them() -> None:
    staged, whole = engine(EngineShape(tp=1, pp=2)), engine(EngineShape(tp=1))
    assert split_refusal(staged, Role.PREFILL) is None
    assert split_refusal(staged, Role.DECODE) == (
        "split: pipeline stages in decode, which no connector of vLLM writes into"
    )
    assert pair_refusal(staged, whole, NIXL_PUSH) is None
    assert pair_refusal(staged, whole, NIXL) == "NixlConnector pulls from one pipeline stage only"


def test_recurrent_states_go_between_equal_degrees_and_from_no_stages() -> None:
    four, eight = engine(EngineShape(tp=4), HYBRID), engine(EngineShape(tp=8), HYBRID)
    assert split_refusal(four, Role.PREFILL) is None
    assert split_refusal(four, Role.DECODE) is None
    assert pair_refusal(four, four, NIXL) is None
    assert pair_refusal(four, eight, NIXL) == "recurrent states go between equal tensor-parallel degrees"
    staged = engine(EngineShape(tp=4, pp=2), HYBRID)
    assert split_refusal(staged, Role.PREFILL) == (
        "split: pipeline stages beside recurrent states, which NixlPushConnector does not take"
    )


def test_states_of_lightning_attention_stay_where_they_are() -> None:
    candidate = engines("qwen3.5-35b-a3b")[0]
    assert split_refusal(candidate, Role.DECODE) is None
    model = candidate.ground.prices.model
    runs = tuple(replace(run, block=replace(run.block, mixer=_lightning(run.block.mixer))) for run in model.runs)
    prices = ServingPrices(replace(model, runs=runs), candidate.ground.prices.cluster)
    other = replace(candidate, ground=replace(candidate.ground, prices=prices))
    assert split_refusal(other, Role.DECODE) == (
        "split: NixlConnector passes on states of Mamba and of gated delta rules, not of lightning attention"
    )


def _lightning(mixer: Mixer | None) -> Mixer | None:
    return replace(mixer, rule=LinearRule.LIGHTNING) if isinstance(mixer, LinearAttention) else mixer


def test_contexts_are_shared_whole_and_of_latent_attention_alone() -> None:
    shared, part, whole = (latent(EngineShape(tp=8, dcp=dcp)) for dcp in (8, 2, 1))
    assert split_refusal(shared, Role.DECODE) is None
    assert split_refusal(part, Role.DECODE) == (
        "split: decode context parallelism over a part of tp: NixlConnector takes all of it or none"
    )
    assert pair_refusal(whole, shared, NIXL) is None
    assert pair_refusal(whole, shared, NIXL_PUSH) == "NixlPushConnector takes no decode context parallelism"
    heads = engine(EngineShape(tp=8, dcp=2), "qwen3-30b-a3b")
    assert split_refusal(heads, Role.DECODE) == (
        "split: decode context parallelism of heads: NixlConnector takes that of latent attention"
    )


def test_copies_of_heads_do_not_go_to_fewer_ranks() -> None:
    # Qwen3-30B-A3B has 4 key/value heads.
    eight, four, two = (engine(EngineShape(tp=tp), "qwen3-30b-a3b") for tp in (8, 4, 2))
    assert pair_refusal(four, two, NIXL) is None
    assert pair_refusal(two, eight, NIXL) is None
    assert pair_refusal(eight, four, NIXL) == "fewer decode than prefill ranks, which hold copies of key/value heads"


def test_every_pair_of_a_pairing_works_and_every_pair_that_works_is_in_one() -> None:
    shapes = [EngineShape(tp=8), EngineShape(tp=8, dcp=8), EngineShape(tp=4, pp=2), EngineShape(tp=8, pp=1, dcp=2)]
    chosen = [latent(shape) for shape in shapes]
    prefills = {index: one for index, one in enumerate(chosen) if split_refusal(one, Role.PREFILL) is None}
    decodes = {index + 10: one for index, one in enumerate(chosen) if split_refusal(one, Role.DECODE) is None}
    found = pairings_of(prefills, decodes)
    assert len(found) == 2
    for connector, pairing in zip((NIXL, NIXL_PUSH), sorted(found, key=lambda one: 2 in one), strict=True):
        for first in pairing & prefills.keys():
            for second in pairing & decodes.keys():
                assert pair_refusal(prefills[first], decodes[second], connector) is None
    pairs = {(first, second) for one in found for first in one & prefills.keys() for second in one & decodes.keys()}
    works = {
        (first, second)
        for first, one in prefills.items()
        for second, other in decodes.items()
        if any(pair_refusal(one, other, connector) is None for connector in (NIXL, NIXL_PUSH))
    }
    assert pairs == works


def test_a_receiver_gets_what_it_holds_and_senders_share_it() -> None:
    # 32 layers, 8 heads of 128 keys and values, 2 bytes, 1,008 tokens in blocks of 16.
    num_bytes = 32 * 8 * 2 * 128 * 2 * 1008
    one, two, eight = (engine(EngineShape(tp=tp)) for tp in (1, 2, 8))
    staged = engine(EngineShape(tp=1, pp=2))
    assert transfer_of(one, two, one_node=True).num_bytes == num_bytes
    assert transfer_of(staged, two, one_node=True).num_bytes == num_bytes
    assert [senders_of(first, two) for first in (one, two, eight, staged)] == [1, 2, 8, 2]
    assert transfer_of(staged, two, one_node=True).seconds < transfer_of(one, two, one_node=True).seconds
    # Each rank reads a latent whole, or its part of a shared context.
    whole, shared = latent(EngineShape(tp=8)), latent(EngineShape(tp=8, dcp=8))
    assert senders_of(whole, whole) == senders_of(whole, shared) == 8
    sent = [transfer_of(whole, second, one_node=True).num_bytes for second in (whole, shared)]
    assert sent[0] == pytest.approx(8 * sent[1], rel=0.05)


def test_a_prompts_transfer_holds_its_states() -> None:
    four = engine(EngineShape(tp=4), HYBRID)
    ledger = four.ledger(1)
    assert ledger.state_bytes > 0
    tokens_bytes = ledger.sequence_bytes(1000) - ledger.state_bytes
    assert transfer_of(four, four, one_node=True).num_bytes == pytest.approx(4 * (tokens_bytes + ledger.state_bytes))


def test_a_plan_with_stages_pushes_its_caches() -> None:
    plan = served(*STAGES)
    (deployment,) = plan.deployments
    assert {entry.pool.role: entry.pool.shape.pp for entry in plan.pools}[Role.DECODE] == 1
    assert any(entry.pool.shape.pp == 2 for entry in plan.pools)
    assert deployment.layout.connector == NIXL_PUSH
    files = serve_files(plan)
    for entry in plan.pools:
        assert f'kv_connector: "{NIXL_PUSH}"' in files[f"{entry.pool.name}.yaml"]
    with pytest.raises(InputError, match="which pulls from one stage only"):
        check_layout(replace(deployment.layout, connector=NIXL))


def test_a_plan_passes_states_on_in_the_layout_that_vllm_asks_for() -> None:
    plan = served(
        ("workload:", "constraints: {split: only}\nworkload:"), ("model: llama-3.1-8b", f"model: {HYBRID}"), SLOW
    )
    (deployment,) = plan.deployments
    assert deployment.layout.connector == NIXL
    assert len({entry.pool.shape.tp for entry in plan.pools}) == 1
    files = serve_files(plan)
    for entry in plan.pools:
        assert "export VLLM_SSM_CONV_STATE_LAYOUT=DS" in files[f"{entry.pool.name}.sh"].splitlines()


def test_a_plan_shares_contexts_behind_prefill_engines() -> None:
    plan = served(
        ("workload:", "constraints: {split: only, tp: 8, dcp: 8}\nworkload:"),
        ("model: llama-3.1-8b", f"model: {LATENT}"),
        ("dgx-h100, nodes: 1", "dgx-h200, nodes: 2"),
        ("slo:", "quantization: fp8\n  slo:"),
        SLOW,
    )
    assert {entry.pool.shape.dcp for entry in plan.pools} == {8}
    assert {entry.pool.role for entry in plan.pools} == {Role.PREFILL, Role.DECODE}
