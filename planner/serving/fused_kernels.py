"""Which element-wise kernels of a layer an engine does not run apart, but within another kernel or a collective.

The operator graph counts what a layer computes: a norm of queries, one of keys and their rotation are three kernels. In
a captured graph each costs its start, whatever it moves, so what an engine joins is counted here. Facts of the engines'
code, of TensorRT-LLM's PyTorch backend (`tensorrt_llm/_torch`, 1.0 and later):

- Norms of queries and keys and their rotation are one kernel (`modules/qk_norm_attention.py`, `QKNormRoPEAttention`).
- The norm behind a sum over tensor-parallel ranks is done inside that sum (`AllReduceFusionOp.RESIDUAL_RMS_NORM`),
  where attention is not data parallel: in layers with experts of the architectures below, the sum behind experts only
  where the model is not cut into stages (`models/modeling_deepseekv3.py`, `modeling_qwen3_moe.py`, `modeling_glm.py`);
  and in every layer of Llama's, but for widths up to 4,096 (`models/modeling_llama.py`). Dense Qwen3 has no such sums
  (`models/modeling_qwen3.py`).

What vLLM's compiler joins depends on its version and options, and what SGLang joins on its flags. Nothing is counted
for either: their `Engine.kernel_seconds` stands for what they do run.
"""

from planner.models.blocks import Block, MixtureOfExperts
from planner.models.graph import LayerGraph, Pointwise
from planner.models.specs import ModelSpec
from planner.serving_plans.layout import EngineShape

NORMED_BESIDE_EXPERTS = frozenset(
    {"DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "Glm4MoeForCausalLM", "Qwen3MoeForCausalLM"}
)
"""Architectures of which TensorRT-LLM norms inside the sums of layers with experts."""

NORMED_WHEN_WIDE = frozenset({"LlamaForCausalLM"})
"""Those of which it does in every layer, where the stream is wider than `NARROW`."""

NARROW = 4096
"""Widest stream of Llama's that is normed apart."""


def fused_kernels(engine: str, model: ModelSpec, block: Block, layer: LayerGraph, shape: EngineShape) -> int:
    """Return how many of a layer's element-wise kernels do not run apart on a rank of an engine.

    Args:
        engine: "vllm", "trtllm" or "sglang".
        model: The model.
        block: What the layer is.
        layer: Its operators.
        shape: How the engine lies on its GPUs.
    """
    if engine != "trtllm":
        return 0
    works = {operator.name: operator.work for operator in layer.operators}
    kernels = {name: work.num_kernels for name, work in works.items() if isinstance(work, Pointwise)}
    joined = kernels["qk norm"] if {"qk norm", "rotary"} <= kernels.keys() else 0
    if shape.tp == 1 or shape.dp > 1:
        return joined
    if model.architecture in NORMED_WHEN_WIDE and model.hidden_size > NARROW:
        return joined + 2
    if model.architecture in NORMED_BESIDE_EXPERTS and isinstance(block.feed_forward, MixtureOfExperts):
        return joined + (2 if shape.pp == 1 else 1)
    return joined
