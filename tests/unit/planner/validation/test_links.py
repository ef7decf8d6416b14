"""Where tensor-parallel groups may lie: within a node, or within what a named cluster's fast links join."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.validation.judge import Judged, judge
from planner.validation.pricing import Machine
from planner.validation.source import Asked
from tests.unit.rules.megatron_cases import script

RULES = {"MLM112", "DSP108", "VLL111"}
RACK = "gb200-nvl72"
"""Nodes of 4 GPUs, 72 of which NVLink joins."""


def judged(folder: Path, name: str, text: str, *, cluster: str | None) -> Judged:
    (folder / name).write_text(text)
    machine = None if cluster is None else Machine(cluster=cluster, spec=None, advice=False)
    return judge([str(folder / name)], Asked(versions={}, num_gpus=144, gpus_per_node=4), machine=machine)


def messages(found: Judged) -> list[str]:
    return [finding.found.message for finding in found.findings if finding.rule_id in RULES]


def megatron(tp: int) -> tuple[str, str]:
    sizes = ("--nnodes 2 --nproc-per-node 8", "--nnodes 36 --nproc-per-node 4")
    return "train.sh", script(tensor_model_parallel_size=str(tp)).replace(*sizes)


def deepspeed(tp: int) -> tuple[str, str]:
    return "ds.json", json.dumps({"train_batch_size": 144, "tensor_parallel": {"autotp_size": tp}})


def vllm(tp: int) -> tuple[str, str]:
    return "serve.sh", f"vllm serve meta-llama/Llama-3.1-70B-Instruct -tp {tp} --nnodes {tp // 4}\n"


@pytest.mark.parametrize(("framework", "within", "beyond"), [(megatron, 8, 16), (deepspeed, 8, 16), (vllm, 8, 80)])
def test_a_racks_links_reach_over_its_nodes(
    tmp_path: Path, framework: Callable[[int], tuple[str, str]], within: int, beyond: int
) -> None:
    (alone,) = messages(judged(tmp_path, *framework(within), cluster=None))
    assert "nodes of 4 GPUs" in alone
    assert messages(judged(tmp_path, *framework(within), cluster=RACK)) == []
    (further,) = messages(judged(tmp_path, *framework(beyond), cluster=RACK))
    assert "the 72 GPUs that fast links join" in further
