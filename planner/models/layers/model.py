"""The graph of a whole model: embedding, each distinct block, head."""

from planner.models.graph import Chain, ModelGraph
from planner.models.layers.block import build_block
from planner.models.layers.builder import Builder
from planner.models.layers.ends import build_embedding, build_head
from planner.models.layers.prediction import prediction_modules
from planner.models.specs import ModelSpec
from planner.requests.workload import TrainWorkload


def build_graph(model: ModelSpec, workload: TrainWorkload, *, eager: bool = False) -> ModelGraph:
    """Return the operators of every kind of layer of `model` under `workload`.

    Args:
        model: The model.
        workload: The training run.
        eager: Layers are plain PyTorch modules; else they have the fused kernels of Megatron-LM.
    """
    builder = Builder(model, workload, eager=eager)
    return ModelGraph(
        embedding=build_embedding(builder),
        blocks={block: build_block(builder, block) for block in model.distinct_blocks},
        chain=_chain(model),
        head=build_head(builder, prediction_modules(builder)),
        hidden_size=model.hidden_size,
        stream_bytes=builder.width,
    )


def _chain(model: ModelSpec) -> Chain:
    kinds = {block: kind for kind, block in enumerate(model.distinct_blocks)}
    return Chain(
        kinds=tuple(kind for run in model.runs for kind in [kinds[run.block]] * run.count), num_kinds=len(kinds)
    )
