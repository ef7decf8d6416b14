"""vLLM's rules beside their first cases: other ways to break them, and what comes near and breaks nothing."""

import json
from pathlib import Path

import pytest

from planner.readers.flag_tables import Framework
from planner.validation.judge import Judged, judged_text
from planner.validation.source import Asked
from planner.validation.sources import read_source
from tests.unit.rules.vllm_cases import EXPERTS, LATENT, serve

PARTS = "export VLLM_PP_LAYER_PARTITION="
TRANSFER = "--kv-transfer-config.kv_connector {} --kv-transfer-config.kv_role {}"
BALANCER = "-tp 4 --enable-expert-parallel --enable-eplb --eplb-config '{}'"
DRAFT = """--speculative-config '{"num_speculative_tokens": 3, "model": "d"}'"""


def judged(text: str, *, version: str | None = None) -> Judged:
    """Return what is said of a text on nodes of 8 GPUs."""
    asked = Asked(versions={Framework.VLLM: version} if version else {}, gpus_per_node=8)
    return judged_text(text, read_source(text, file="serve.sh", asked=asked).runs, file="serve.sh")


BROKEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "a share that is no percentage either": (
        serve("-tp 8 --gpu-memory-utilization 900"),
        ("VLL802: --gpu-memory-utilization is 900.",),
    ),
    "experts of a dense model, balanced": (
        serve("-tp 8 --enable-expert-parallel --enable-eplb"),
        ("VLL304: --enable-expert-parallel for llama-3.1-70b, which has no experts.",),
    ),
    "sizes of the balancer that are not whole": (
        serve(BALANCER.format('{"window_size": 1.5, "step_interval": "x"}'), model=EXPERTS),
        (
            'VLL312: step_interval of --eplb-config is "x".',
            "VLL312: window_size of --eplb-config is 1.5.",
        ),
    ),
    "several ranks of a node behind an external balancer": (
        serve("-tp 4 -dp 2 -dpl 2 -dpn 0", model=EXPERTS),
        ("VLL134: --data-parallel-size-local 2 with a data-parallel rank of one's own.",),
    ),
    "layers for a stage that is not there": (
        serve("-tp 4 -pp 2", before=f"{PARTS}40,30,10"),
        ("VLL140: VLLM_PP_LAYER_PARTITION names 3 stages, pp is 2.",),
    ),
    "a role without a connector": (
        serve("-tp 8 --kv-transfer-config.kv_role kv_both"),
        ("VLL830: kv_role kv_both without kv_connector.",),
    ),
    "a role that is none": (
        serve(f"-tp 8 {TRANSFER.format('NixlConnector', 'both')}"),
        ("VLL830: kv_role is both.",),
    ),
    "contexts behind a connector that pushes": (
        serve(f"-tp 8 -dcp 8 {TRANSFER.format('NixlPushConnector', 'kv_both')}", model=LATENT),
        ("VLL834: dcp 8 with NixlPushConnector.",),
    ),
}
"""A script, and all that is found in it: rule and message."""


@pytest.mark.parametrize("name", BROKEN)
def test_another_way_to_break_a_rule(name: str) -> None:
    text, expected = BROKEN[name]
    assert tuple(sorted(f"{one.rule_id}: {one.found.message}" for one in judged(text).findings)) == expected


def test_copies_below_zero_are_told_with_numbers_that_fit() -> None:
    # 128 experts divide over 4 ranks without any copy.
    copies = '{"num_redundant_experts": -5}'
    found = {one.rule_id: one.found for one in judged(serve(BALANCER.format(copies), model=EXPERTS)).findings}
    assert found["VLL305"].message == "128 experts and -5 copies do not divide over 4 ranks."
    assert found["VLL305"].hint == "num_redundant_experts 0 or 4 would do."


SILENT: dict[str, str] = {
    "prompts that are long within the length": serve("-tp 8 --long-prefill-token-threshold 1024 --max-model-len 4096"),
    "guesses within the budget": serve(f"-tp 8 --enable-lora --max-num-seqs 256 --max-num-batched-tokens 2048 {DRAFT}"),
    "adapters and no guesses": serve("-tp 8 --enable-lora --max-num-seqs 256 --max-num-batched-tokens 2048"),
    "a balancer beside the model": serve(
        BALANCER.format('{"use_async": true, "communicator": "torch_gloo"}'), model=EXPERTS
    ),
    "sizes of the balancer as vLLM reads them": serve(
        BALANCER.format('{"window_size": 1000.0, "step_interval": "7"}'), model=EXPERTS
    ),
    "nodes in whole groups": serve("-tp 4 -dp 4 -dpl 2 --nnodes 2", model=EXPERTS),
    "every layer on a stage": serve("-tp 4 -pp 2", before=f"{PARTS}38,42"),
    "a latent in parts on all ranks": serve(
        f"-tp 8 -dcp 8 {TRANSFER.format('NixlConnector', 'kv_both')}", model=LATENT
    ),
    "a model by the flag of a module": (
        "python -m vllm.entrypoints.openai.api_server --model meta-llama/Llama-3.1-70B-Instruct -tp 8\n"
    ),
}
"""What comes near to breaking a rule."""


@pytest.mark.parametrize("name", SILENT)
def test_what_comes_near_breaks_nothing(name: str) -> None:
    found = judged(SILENT[name])
    assert (found.findings, found.undecided) == ((), ())


def test_a_version_without_a_flag_has_nothing_said_of_its_size() -> None:
    text = serve("-tp 8 --max-num-active-seqs 9 --max-num-seqs 8")
    assert [one.rule_id for one in judged(text).findings] == ["VLL812"]
    assert [one.rule_id for one in judged(text, version="0.11.0").findings] == ["S011"]


@pytest.mark.parametrize(
    ("text", "rule_id", "what"),
    [
        (
            serve("""-tp 8 --max-model-len 200000 --hf-overrides '{"a": 1}'"""),
            "VLL815",
            "what --hf-overrides makes of the model",
        ),
        (serve("-tp 4 -pp 2", before=f"{PARTS}40,$REST"), "VLL140", "VLLM_PP_LAYER_PARTITION"),
        (serve("-tp 4 -pp 2", before=f"{PARTS}40,x"), "VLL140", "VLLM_PP_LAYER_PARTITION"),
    ],
)
def test_what_only_a_run_could_tell_is_not_decided(text: str, rule_id: str, what: str) -> None:
    found = judged(text)
    assert found.findings == ()
    assert (rule_id, what) in {(one.rule_id, one.what) for one in found.undecided}


def test_heads_of_a_model_without_attention_are_not_decided(tmp_path: Path) -> None:
    lines = Path(__file__).parents[1] / "planner" / "published_configs.jsonl"
    configs = (json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines())
    config = next(one["config"] for one in configs if one["config"].get("model_type") == "nemotron_h")
    pattern = config["hybrid_override_pattern"].replace("*", "M")
    (tmp_path / "config.json").write_text(json.dumps({**config, "hybrid_override_pattern": pattern}))
    found = judged(serve("-tp 6", model=str(tmp_path)))
    whats = {one.rule_id: one.what for one in found.undecided}
    assert whats["VLL101"].startswith("attention heads of ")
