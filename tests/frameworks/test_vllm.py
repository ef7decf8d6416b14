"""vLLM's own verdict on `vllm serve` commands, as if on a node of eight H100."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.experts.emit import VLLM_FILE, Target, emit_placement
from tests.frameworks.vllm_environment import Job, Verdict, ask_vllm

PUBLISHED = Path(__file__).parents[1] / "unit" / "planner" / "published_configs.jsonl"
DENSE, SPARSE = "llama-3.1-70b", "qwen3-30b-a3b"

GOOD: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "tensor parallel": (DENSE, ["-tp", "8"], {"world_size": 8, "kv_heads_of_a_rank": 1, "layers_of_a_rank": 80}),
    "two nodes": (DENSE, ["-tp", "8", "-pp", "2", "--nnodes", "2"], {"world_size": 16, "layers_of_a_rank": 40}),
    "underscores": (DENSE, ["--tensor_parallel_size", "4"], {"world_size": 4}),
    "abbreviation": (DENSE, ["--tensor-parallel", "4"], {"world_size": 4}),
    "human numbers": (DENSE, ["-tp", "8", "--max-model-len", "4k"], {"max_model_len": 4000}),
    "experts": (
        SPARSE,
        ["-tp", "4", "-dp", "2", "--enable-expert-parallel"],
        {"world_size": 4, "data_parallel_size": 2, "enable_expert_parallel": True},
    ),
    "fp8 weights and cache": (
        DENSE,
        ["-tp", "8", "-q", "fp8", "--kv-cache-dtype", "fp8"],
        {"kv_cache_dtype": "fp8"},
    ),
    "prefill context parallel": (DENSE, ["-tp", "4", "-pcp", "2"], {"world_size": 8}),
}

BAD: dict[str, tuple[str, list[str], str, str]] = {
    "misspelt": (DENSE, ["--tensor-paralel-size", "8"], "parse", "unrecognized arguments: --tensor-paralel-size 8"),
    "no number": (DENSE, ["--max-num-seqs", "lots"], "parse", "argument --max-num-seqs: invalid int value: 'lots'"),
    "no choice": (DENSE, ["--kv-cache-dtype", "fp9"], "parse", "argument --kv-cache-dtype: invalid choice: 'fp9'"),
    "heads": (
        DENSE,
        ["-tp", "3"],
        "engine_config",
        "Total number of attention heads (64) must be divisible by tensor parallel size (3).",
    ),
    "too few GPUs": (
        DENSE,
        ["-tp", "16"],
        "engine_config",
        "World size (16) is larger than the number of available GPUs (8) in this node.",
    ),
    "balancing without experts": (
        SPARSE,
        ["-tp", "8", "--enable-eplb"],
        "engine_config",
        "enable_expert_parallel must be True to use EPLB.",
    ),
    "decode context parallel": (
        SPARSE,
        ["-tp", "8", "-dcp", "4"],
        "engine_config",
        "`--decode-context-parallel-size` (4) exceeds the maximum supported value (2)",
    ),
    "fewer tokens than sequences": (
        DENSE,
        ["-tp", "8", "--max-num-batched-tokens", "100", "--max-num-seqs", "256"],
        "engine_config",
        "max_num_batched_tokens (100) must be greater than or equal to max_num_seqs (256).",
    ),
    "length": (
        DENSE,
        ["-tp", "8", "--max-model-len", "1000000"],
        "engine_config",
        "User-specified max_model_len (1000000) is greater than the derived max_model_len",
    ),
}

YAML = {
    "tensor-parallel-size: 8\nmax-num-seqs: 64\n": "",
    "tensor-parallell-size: 8\n": "unrecognized arguments: --tensor-parallell-size 8",
}

pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    models = {row["bundled"]: row["config"] for row in map(json.loads, PUBLISHED.read_text("utf-8").splitlines())}
    commands = {name: row[:2] for name, row in GOOD.items()} | {name: row[:2] for name, row in BAD.items()}
    jobs = {
        name: Job(arguments=(f"meta/{model}", *arguments), model=models[model])
        for name, (model, arguments) in commands.items()
    }
    arguments = (DENSE, "--config", "serve.yaml")
    jobs |= {text: Job(arguments=arguments, config_text=text, model=models[DENSE]) for text in YAML}
    jobs["ray"] = Job(arguments=(DENSE, "--distributed-executor-backend", "ray"), model=models[DENSE])
    ray = (DENSE, "-tp", "8", "-pp", "2", "--distributed-executor-backend", "ray")
    jobs["ray at hand"] = Job(arguments=ray, model=models[DENSE], ray=True)
    jobs["too many heads for ray"] = Job(arguments=(*ray, "-tp", "24"), model=models[DENSE], ray=True)
    jobs["parse alone"] = Job(arguments=(DENSE, "-tp", "3"), model=models[DENSE], last_level="parse")
    placed = emit_placement(Target.VLLM, np.arange(136).reshape(1, 8, 17) % 128)[VLLM_FILE]
    jobs["placed experts"] = Job(
        arguments=(SPARSE, "-tp", "8", "--config", "serve.yaml"), config_text=placed, model=models[SPARSE]
    )
    jobs["A100"] = Job(
        arguments=(DENSE, "-tp", "16", "-q", "fp8"),
        model=models[DENSE],
        gpus_per_node=16,
        gpu_name="NVIDIA A100-SXM4-40GB",
        capability=(8, 0),
        memory_bytes=40 << 30,
    )
    return dict(zip(jobs, ask_vllm(list(jobs.values())), strict=True))


@pytest.mark.parametrize("name", GOOD)
def test_a_good_command_is_resolved(name: str, verdicts: dict[str, Verdict]) -> None:
    assert (verdicts[name].failed_level, verdicts[name].error) == ("", "")
    assert GOOD[name][2].items() <= verdicts[name].resolved.items()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_command_is_refused_in_its_own_words(name: str, verdicts: dict[str, Verdict]) -> None:
    _, _, level, words = BAD[name]
    assert verdicts[name].failed_level == level
    assert words in verdicts[name].error


@pytest.mark.parametrize("text", YAML)
def test_a_configuration_file_is_read(text: str, verdicts: dict[str, Verdict]) -> None:
    assert YAML[text] in verdicts[text].error
    assert verdicts[text].failed_level == ("parse" if YAML[text] else "")
    assert YAML[text] or verdicts[text].resolved["max_num_seqs"] == 64


def test_what_wants_a_package_that_is_not_here_is_not_judged(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["ray"].failed_level == "not_judged"


def test_ray_may_take_more_gpus_than_a_node_has(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["ray at hand"]
    assert (verdict.failed_level, verdict.error) == ("", "")
    assert (verdict.resolved["distributed_executor_backend"], verdict.resolved["world_size"]) == ("ray", 16)
    wrong = verdicts["too many heads for ray"]
    assert wrong.failed_level == "engine_config"
    assert "Total number of attention heads (64) must be divisible by tensor parallel size (24)." in wrong.error


def test_a_parse_alone_says_nothing_of_heads(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["parse alone"] == Verdict(failed_level="", error="", resolved={})


def test_jobs_for_another_gpu_are_judged_on_it(verdicts: dict[str, Verdict]) -> None:
    """Smaller GPUs run fewer sequences at once by default."""
    assert verdicts["A100"].failed_level == ""
    assert verdicts["A100"].resolved["max_num_seqs"] < verdicts["tensor parallel"].resolved["max_num_seqs"]


def test_placed_experts_are_balanced_with_as_many_copies(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["placed experts"]
    assert (verdict.failed_level, verdict.error) == ("", "")
    assert (verdict.resolved["enable_expert_parallel"], verdict.resolved["redundant_experts"]) == (True, 8)
