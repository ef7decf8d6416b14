"""The operators of each kind of layer: one builder for each kind of mixer, of feed-forward, and for the ends.

Traffic of element-wise kernels is counted in passes over their tensors, each read or written once. What is saved for
backward follows the fused kernels of Megatron-LM (core 0.19) with Transformer Engine; see `planner.models.graph`. Asked
for plain PyTorch modules, it follows `planner.models.layers.eager`.
"""

from planner.models.layers.model import build_graph

__all__ = ["build_graph"]
