"""Verdicts that are cheap enough for hundreds of changed files: no process groups, no model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.frameworks.deepspeed_environment import run_beside_deepspeed
from tests.frameworks.megatron_environment import Job, Verdict, ask_megatron

ARGUMENTS = (
    *("--num-layers", "8", "--hidden-size", "1024", "--num-attention-heads", "16", "--vocab-size", "32000"),
    *("--seq-length", "2048", "--max-position-embeddings", "2048", "--tokenizer-type", "NullTokenizer", "--bf16"),
    *("--micro-batch-size", "1", "--global-batch-size", "64", "--train-iters", "10", "--lr", "1e-4"),
    *("--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"),
)
ACCEPTED = Job(
    arguments=ARGUMENTS,
    environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},
    world_size=8,
    gpus_per_node=8,
    capability=(9, 0),
    pipeline_ranks=(),
    last_level="microbatches",
)
HEADS = "assert args.hidden_size % args.num_attention_heads == 0"
REFUSED: dict[tuple[str, ...], tuple[str, str]] = {
    ("--tensor-model-parallel", "2"): ("parse", "unrecognized arguments: --tensor-model-parallel 2"),
    ("--num-layers", "x"): ("parse", "argument --num-layers: invalid int value: 'x'"),
    ("--hidden-size", "1001"): ("validate", HEADS),
}
CONFIG: Mapping[str, Any] = {"train_batch_size": 8, "zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
REFUSED_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "text for a number": ({"train_batch_size": "8"}, "TypeError: unsupported operand type(s) for //"),
    "unknown": ({"zero_optimization": {"reduce_bucket": 1}}, "Extra inputs are not permitted"),
    "removed": ({"elasticity": {}}, "DeepSpeedConfigError: Elastic training has been removed"),
    "a list for a section": ({"bf16": []}, "argument after ** must be a mapping, not list"),
}

pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def megatrons() -> dict[tuple[str, ...], Verdict]:
    jobs = {words: replace(ACCEPTED, arguments=(*ARGUMENTS, *words)) for words in [(), *REFUSED]}
    jobs[("parse",)] = replace(jobs["--hidden-size", "1001"], last_level="parse")
    return dict(zip(jobs, ask_megatron(list(jobs.values())), strict=True))


@pytest.fixture(scope="module")
def deepspeeds() -> dict[str, dict[str, Any]]:
    changes = {"none": {}, "ignored": {"zero_optimisation": {}}} | {name: row[0] for name, row in REFUSED_KEYS.items()}
    cases = [{"config": {**CONFIG, **change}, "dp": 8, "world": 8} for change in changes.values()]
    answers = run_beside_deepspeed("tests.frameworks.deepspeed_oracle", cases, jobs=len(cases))
    return dict(zip(changes, answers, strict=True))


@pytest.mark.parametrize("words", REFUSED)
def test_megatron_refuses_a_changed_flag(words: tuple[str, ...], megatrons: dict[tuple[str, ...], Verdict]) -> None:
    level, error = REFUSED[words]
    assert megatrons[words].failed_level == level
    assert error in megatrons[words].error


def test_megatron_stops_where_it_is_told(megatrons: dict[tuple[str, ...], Verdict]) -> None:
    assert (megatrons[()].failed_level, megatrons[()].num_microbatches) == ("", 32)
    assert (megatrons["parse",].failed_level, megatrons["parse",].data_parallel_size) == ("", 0)


@pytest.mark.parametrize("name", REFUSED_KEYS)
def test_deepspeed_refuses_a_changed_key(name: str, deepspeeds: dict[str, dict[str, Any]]) -> None:
    assert REFUSED_KEYS[name][1] in deepspeeds[name]["error"]


def test_deepspeed_says_nothing_of_a_misspelt_section(deepspeeds: dict[str, dict[str, Any]]) -> None:
    assert deepspeeds["none"]["ignored"] == []
    assert (deepspeeds["ignored"]["error"], deepspeeds["ignored"]["ignored"]) == ("", ["zero_optimisation"])
