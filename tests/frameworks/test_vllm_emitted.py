"""vLLM itself takes what is emitted for it: the words that bash starts on the first and the last node, and the YAML.

What Ray does with them is not seen: vLLM takes its cluster into account only once the workers start.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pytest

from planner.documents import load_document
from planner.emit.vllm import config_name, emit_vllm
from planner.errors import InputError
from planner.models.bundled import find_bundled
from planner.schema.serve_plan_file import serve_plan_from_document
from planner.schema.serving_layout import serving_layout_from_document
from planner.serving_plans.layout import EngineSettings, EngineShape, Executor, Pool, Role, ServingLayout, check_layout
from tests.corpora.vllm_bases import LAYOUT_FILE, ROOT
from tests.emitted.started_servers import started
from tests.frameworks.judge_vllm_corpus import models
from tests.frameworks.vllm_environment import Job, Verdict, ask_vllm
from tests.served import served

SEED = 20261122
DRAWN = 12
DRAWN_FOR_RAY = 8
DENSE, LATENT = "meta-llama/Llama-3.1-70B-Instruct", "deepseek-ai/DeepSeek-V3"
EXAMPLES = tuple(sorted(path.parent.name for path in ROOT.glob(f"examples/*/{LAYOUT_FILE}")))

pytestmark = pytest.mark.frameworks


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of an engine of a pool."""

    layout: ServingLayout
    pool: Pool
    rank: int


def drawn_layouts() -> Iterator[ServingLayout]:
    """Yield layouts without end that nodes can hold: every axis, alone or split into roles."""
    draw = random.Random(SEED)
    while True:
        model = draw.choice((DENSE, LATENT))
        roles = draw.choice(((Role.BOTH,), (Role.PREFILL, Role.DECODE)))
        pools = tuple(_pool(draw, role, model=model) for role in roles)
        connector = "NixlConnector" if len(roles) == 2 else None
        layout = ServingLayout(model=model, pools=pools, connector=connector)
        try:
            check_layout(layout)
        except InputError:
            continue
        yield layout


def _pool(draw: random.Random, role: Role, *, model: str) -> Pool:
    sparse = model == LATENT
    tp = draw.choice((1, 2, 4, 8, 16))
    expert_parallel = sparse and draw.random() < 0.7
    dp = draw.choice((1, 2, 4, 8, 16))
    redundant = draw.choice((None, 0, 32)) if expert_parallel and tp * dp > 1 else None
    length = draw.choice((4096, 32768, 131072))
    sequences = draw.choice((1, 64, 192, 1000))
    chunked = draw.random() < 0.7
    by_share = draw.random() < 0.5
    return Pool(
        name=role.value,
        role=role,
        replicas=1,
        shape=EngineShape(
            tp=tp,
            pp=draw.choice((1, 1, 2)),
            dp=dp,
            dcp=draw.choice((1, 2)) if sparse and tp > 1 else 1,
            expert_parallel=expert_parallel,
        ),
        settings=EngineSettings(
            max_num_seqs=sequences,
            max_num_batched_tokens=draw.choice((2048, 8192)) if chunked else length,
            max_model_len=length,
            gpu_memory_utilization=0.92 if by_share else None,
            kv_cache_memory_bytes=None if by_share else 20 << 30,
            block_size=draw.choice((None, 64)),
            kv_cache_dtype=draw.choice(("auto", "fp8")),
            dtype="bfloat16",
            chunked_prefill=chunked,
            prefix_caching=draw.random() < 0.5,
            redundant_experts=redundant,
        ),
        gpu="h100-sxm-80gb",
        gpus_per_node=8,
    )


CHOSEN = {
    "a draft": (
        ("model: llama-3.1-8b", "model: qwen3-32b\nspeculative: {draft: qwen3-0.6b, acceptance: 0.8}"),
        ("workload:", "constraints: {num_speculative_tokens: 4, tp: 4, split: never}\nworkload:"),
    ),
    "a shared context": (
        ("model: llama-3.1-8b", "model: deepseek-v3"),
        ("dgx-h100", "dgx-h200"),
        ("workload:", "constraints: {dcp: 8, tp: 8, split: never}\nworkload:"),
        ("slo: {ttft_ms: 500, tpot_ms: 25}", "slo: {ttft_ms: 5000, tpot_ms: 100}\n  quantization: fp8"),
    ),
    "copies of experts": (
        ("model: llama-3.1-8b", "model: qwen3-30b-a3b"),
        ("workload:", "constraints: {redundant_experts: [4, 8, 16], split: never}\nworkload:"),
        ("slo:", 'routing: {histogram: "zipf:1.0"}\n  slo:'),
    ),
}
"""Specs whose plans tell engines more than shapes and sizes."""


def planned_layouts() -> Iterator[tuple[str, ServingLayout]]:
    """Yield the layouts of the planned examples, by name."""
    for path in sorted(ROOT.glob("examples/*/serve.yaml")):
        plan = serve_plan_from_document(load_document(path.parent / "expected" / "plan.json"))
        for index, deployment in enumerate(plan.deployments):
            yield f"{path.parent.name} {index}", deployment.layout
    for name, changes in CHOSEN.items():
        (deployment,) = served(*changes).deployments
        yield name, deployment.layout


def nodes() -> dict[str, Node]:
    """Return the nodes of an engine that vLLM starts on, by name: of the pools of the examples and of drawn layouts.

    Multiprocessing starts it on every node, of which the first and the last are judged; Ray on the first alone.
    """
    files = {name: load_document(ROOT / "examples" / name / LAYOUT_FILE) for name in EXAMPLES}
    layouts = {name: serving_layout_from_document(file) for name, file in files.items()}
    layouts |= dict(planned_layouts())
    layouts |= {f"drawn {index}": layout for index, layout in zip(range(DRAWN), drawn_layouts(), strict=False)}
    return {
        f"{name}, {pool.name}, node {rank}": Node(layout=layout, pool=pool, rank=rank)
        for name, layout in layouts.items()
        for pool in layout.pools
        for rank in sorted({0, pool.nodes_per_replica - 1})
    } | {
        f"Ray {index}, {pool.name}": Node(layout=layout, pool=pool, rank=0)
        for index, (layout, pool) in enumerate(islice(drawn_for_ray(), DRAWN_FOR_RAY))
    }


def drawn_for_ray() -> Iterator[tuple[ServingLayout, Pool]]:
    """Yield drawn layouts whose engines Ray starts over several nodes, each with its last such pool."""
    for layout in drawn_layouts():
        pools = [pool for pool in layout.pools if pool.nodes_per_replica > 1]
        if pools:
            yield replace(layout, executor=Executor.RAY), pools[-1]


def bundled(served_model: str) -> str:
    """Return the name of the bundled model that engines load by a name."""
    found = find_bundled(served_model)
    assert found is not None, served_model
    return found.name


def job_of(folder: Path, node: Node) -> Job:
    """Return what vLLM is asked of a node."""
    words = started(
        folder, node.layout, node.pool, HEAD_ADDR="10.0.0.1", NODE_ADDR="10.0.0.1", NODE_RANK=str(node.rank)
    )
    draft = node.pool.settings.draft
    assert words[0] == "serve"
    assert words[-1].startswith("devices=")
    return Job(
        arguments=tuple(words[1:-1]),
        config_text=emit_vllm(node.layout)[config_name(node.pool)],
        model=models()[bundled(node.layout.model)],
        draft=None if draft is None else models()[bundled(draft.model)],
        gpus_per_node=node.pool.gpus_per_node,
        ray=node.layout.executor is Executor.RAY,
    )


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    jobs = {name: job_of(tmp_path_factory.mktemp("node"), node) for name, node in nodes().items()}
    return dict(zip(jobs, ask_vllm(list(jobs.values())), strict=True))


@pytest.mark.parametrize("name", nodes())
def test_vllm_takes_the_files_and_means_the_plan(name: str, verdicts: dict[str, Verdict]) -> None:
    verdict, pool = verdicts[name], nodes()[name].pool
    assert (verdict.failed_level, verdict.error) == ("", "")
    resolved = verdict.resolved
    assert resolved["max_num_seqs"] == pool.settings.max_num_seqs
    assert resolved["max_num_batched_tokens"] == pool.settings.max_num_batched_tokens
    assert resolved["max_model_len"] == pool.settings.max_model_len
    assert resolved["world_size"] == pool.shape.rank_gpus
    assert resolved["data_parallel_size"] == pool.shape.dp
    assert resolved["enable_expert_parallel"] == pool.shape.expert_parallel
    assert resolved["decode_context_parallel_size"] == pool.shape.dcp
    assert resolved["redundant_experts"] == pool.settings.redundant_experts
    draft = pool.settings.draft
    if draft is not None:
        assert resolved["draft_method"] == "draft_model"
        assert resolved["num_speculative_tokens"] == draft.num_tokens
        # What the draft's worker asks beside (`DraftModelProposer._raise_if_draft_tp_mismatch`).
        assert resolved["draft_tensor_parallel_size"] == draft.tp == pool.shape.tp
    if nodes()[name].layout.executor is Executor.RAY:
        assert resolved["distributed_executor_backend"] == "ray"
        assert resolved["data_parallel_backend"] == ("ray" if pool.shape.dp > 1 else "mp")
