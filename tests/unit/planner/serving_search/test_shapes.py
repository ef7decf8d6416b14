"""Shapes of engines: each rule leaves out what breaks it, and vLLM's rules find no fault with the rest."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.models.bundled import load_bundled
from planner.requests.request import Bounds
from planner.rules.rule import Severity
from planner.serving.files import serving_files
from planner.serving.formats import formats_of
from planner.serving_plans.layout import EngineSettings, EngineShape, Pool, Role, ServingLayout
from planner.serving_plans.request import ServeConstraints
from planner.serving_search.shapes import ShapeSpace, engine_shapes, nested_sizes, shape_words
from planner.validation.judge import judge
from planner.validation.source import Asked
from profiles.catalogue import load_preset
from profiles.hardware import Cluster
from profiles.schema import ClusterEntry

MODELS = ("llama-3.1-70b", "qwen3-30b-a3b", "deepseek-v3", "qwen3-32b")


def nodes(count: int, preset: str = "dgx-h200") -> Cluster:
    return ClusterEntry.model_validate({"preset": preset, "nodes": count}).to_cluster()


def space(model: str, cluster: Cluster, quantisation: str = "bf16", **pinned: Any) -> ShapeSpace:
    spec = load_bundled(model)
    constraints = replace(ServeConstraints(), **pinned)
    return engine_shapes(spec, cluster, formats_of(quantisation, spec), constraints)


@pytest.mark.parametrize("model", MODELS)
def test_every_shape_is_kept_or_has_a_reason(model: str) -> None:
    found = space(model, nodes(2))
    assert found.considered == len(found.shapes) + found.pruned.total()
    assert len(set(found.shapes)) == len(found.shapes)
    assert found.shapes
    assert found.pruned


def test_shapes_of_a_dense_model_on_a_node() -> None:
    found = space("llama-3.1-70b", load_preset("dgx-h100").to_cluster())
    assert [shape_words(shape) for shape in found.shapes] == [
        "tp1",
        "tp2",
        "tp1 pp2",
        "tp4",
        "tp2 pp2",
        "tp1 pp4",
        "tp8",
        "tp4 pp2",
        "tp2 pp4",
        "tp1 pp8",
    ]


@pytest.mark.parametrize(
    ("shape", "model", "quantisation", "reason"),
    [
        (EngineShape(tp=16), "llama-3.1-70b", "bf16", "tensor parallelism leaves the fast links"),
        (EngineShape(tp=1, dp=2), "llama-3.1-70b", "bf16", "data parallelism of a dense model: replicas do the same"),
        (EngineShape(tp=1, expert_parallel=True), "qwen3-30b-a3b", "bf16", "expert parallelism on one rank"),
        (EngineShape(tp=1, dp=16), "qwen3-30b-a3b", "fp8_block", "a rank's columns are not whole blocks of 128"),
        (EngineShape(tp=8, dcp=2), "gpt-oss-20b", "bf16", "decode context parallelism of windows"),
        (
            EngineShape(tp=8, dcp=8),
            "deepseek-v3.2",
            "fp8_block",
            "decode context parallelism of indexed attention",
        ),
    ],
)
def test_a_shape_that_breaks_a_rule_is_left_out(shape: EngineShape, model: str, quantisation: str, reason: str) -> None:
    found = space(model, nodes(2), quantisation)
    assert shape not in found.shapes
    assert found.pruned[reason] > 0


def test_contexts_are_shared_among_copies_of_a_head() -> None:
    found = {(shape.tp, shape.dcp) for shape in space("qwen3-30b-a3b", nodes(1)).shapes if shape.dcp > 1}
    # Four key/value heads on eight ranks are two copies of each.
    assert found == {(8, 2)}


def test_a_pinned_degree_of_shared_contexts_is_kept() -> None:
    pinned: dict[str, Any] = {"degrees": {"dcp": Bounds(allowed=(4,)), "tp": Bounds(allowed=(8,))}}
    found = space("deepseek-v3", nodes(1), "fp8_block", **pinned)
    assert {(shape.tp, shape.dcp) for shape in found.shapes} == {(8, 4)}
    # Eight key/value heads on eight ranks have no copies to share out.
    assert not space("llama-3.1-70b", nodes(1), **pinned).shapes


def test_what_is_pinned_is_all_there_is() -> None:
    found = space("qwen3-30b-a3b", nodes(2), degrees={"tp": Bounds(allowed=(2,))}, expert_parallel=True)
    assert {(shape.tp, shape.expert_parallel) for shape in found.shapes} == {(2, True)}


@pytest.mark.parametrize(("node", "sizes"), [(8, (1, 2, 4, 8)), (6, (1, 2, 6)), (1, (1,)), (12, (1, 2, 4, 12))])
def test_sizes_inside_a_node_divide_one_another(node: int, sizes: tuple[int, ...]) -> None:
    assert nested_sizes(node) == sizes


def test_experts_are_dealt_evenly_over_three_nodes_or_not_at_all() -> None:
    found = space("deepseek-v3", nodes(3), "fp8_block")
    assert not [shape for shape in found.shapes if shape.expert_parallel and 256 % (shape.tp * shape.dp)]
    assert found.pruned["the experts do not divide over the ranks"] > 0


def shapes_to_judge() -> Iterator[tuple[str, EngineShape]]:
    for model, quantisation in (
        ("llama-3.1-70b", "bf16"),
        ("qwen3-30b-a3b", "fp8_block"),
        ("deepseek-v3", "fp8_block"),
    ):
        for shape in space(model, nodes(2), quantisation).shapes:
            yield model, shape


def test_no_rule_of_vllm_finds_fault_with_a_shape(tmp_path: Path) -> None:
    shapes = list(shapes_to_judge())
    for index, (model, shape) in enumerate(shapes):
        pool = Pool(
            name="server",
            role=Role.BOTH,
            replicas=1,
            shape=shape,
            settings=EngineSettings(
                max_num_seqs=64, max_num_batched_tokens=8192, max_model_len=8192, gpu_memory_utilization=0.9
            ),
            gpu="h200",
            gpus_per_node=8,
        )
        folder = tmp_path / str(index)
        folder.mkdir()
        for name, text in serving_files(ServingLayout(model=model, pools=(pool,))).items():
            (folder / name).write_text(text, encoding="utf-8")
    judged = judge([str(tmp_path)], Asked(versions={}, gpus_per_node=8))
    assert len(judged.files) >= len(shapes)
    assert [found for found in judged.findings if found.severity is Severity.ERROR] == []
