"""Kernels of a layer that engines do not run apart, counted by hand."""

import pytest

from planner.serving_plans.layout import EngineShape
from tests.unit.planner.serving.engines_of import served


def num_kernels(engine: str, model: str, shape: EngineShape) -> int:
    return served(model, preset="dgx-h200", quantisation="fp8", shape=shape, engine=engine).costs.tables.num_kernels


@pytest.mark.parametrize(
    ("model", "shape", "fewer"),
    [
        pytest.param("qwen3-235b-a22b", EngineShape(tp=4), 94 * (2 + 2), id="norms of heads, and those behind sums"),
        pytest.param("qwen3-235b-a22b", EngineShape(tp=4, pp=2), 94 * (2 + 1), id="the next layer's, of stages"),
        pytest.param("qwen3-235b-a22b", EngineShape(tp=1), 94 * 2, id="nothing is summed"),
        pytest.param("qwen3-235b-a22b", EngineShape(tp=2, dp=4), 94 * 2, id="attention is data parallel"),
        pytest.param("qwen3-32b", EngineShape(tp=4), 64 * 2, id="dense Qwen3 norms apart"),
        pytest.param("deepseek-v3", EngineShape(tp=8), 58 * 2, id="layers without experts norm apart"),
        pytest.param("llama-3.1-70b", EngineShape(tp=4, pp=2), 80 * 2, id="wide Llama"),
        pytest.param("llama-3.1-8b", EngineShape(tp=4), 0, id="narrow Llama"),
    ],
)
def test_tensorrt_llm_joins_kernels(model: str, shape: EngineShape, fewer: int) -> None:
    apart = num_kernels("vllm", model, shape)
    assert num_kernels("trtllm", model, shape) == apart - fewer
    assert num_kernels("sglang", model, shape) == apart
