"""What modules of measured stacks keep for backward where they differ from both graphs of `planner.models.layers`.

Each rewrites the saved tensors of a graph and leaves operators and weights as they are.
"""

from collections.abc import Callable
from dataclasses import replace

from planner.layout import Granularity, Recompute
from planner.models.blocks import DenseFeedForward, SelfAttention
from planner.models.graph import (
    CoreAttention,
    LayerGraph,
    Linear,
    ModelGraph,
    Module,
    Operator,
    Parallel,
    Pointwise,
    Region,
    Saved,
)
from planner.models.specs import ModelSpec
from planner.requests.workload import AttentionKernel, DType, TrainWorkload

EVERY_MODULE = Recompute(granularity=Granularity.SELECTIVE, modules=tuple(module.value for module in Module))
"""Under it a graph of `with_products_kept` drops whatever that checkpointing recomputes."""

HALF, WIDE = DType.BF16.num_bytes, DType.FP32.num_bytes


def with_composed_norms(graph: ModelGraph) -> ModelGraph:
    """Return the graph with root-mean-square norms that are written out in PyTorch operations.

    As Hugging Face's models write them: `x * rsqrt(x.float().pow(2).mean() + eps)`, cast to 16 bit, times the scale.
    The square keeps x in fp32, the product x in 16 bit, the scale the normalised x in 16 bit; a fused norm keeps x.
    """

    def composed(operator: Operator) -> Operator:
        work = operator.work
        if not (isinstance(work, Pointwise) and work.is_norm):
            return operator
        saved: list[Saved] = []
        for part in operator.saved:
            saved.append(part)
            if part.element_bytes == HALF:
                saved.append(replace(part, name=f"{part.name} in fp32", element_bytes=WIDE))
                saved.append(replace(part, name=f"{part.name} normalised"))
        return replace(operator, saved=tuple(saved))

    return _rewritten(graph, composed)


def with_copies(graph: ModelGraph, *, sequences: int, gathered: bool) -> ModelGraph:
    """Return the graph of plain modules with the copies and formats of a stack that lays tokens out by sequence.

    Unfused attention works in 16 bit. Its probabilities are taken to pass a dropout layer, which keeps a mask and its
    output (the 5 bytes a score of Korthikanti et al., arXiv 2205.05198): no published run says so. A fused core takes
    the tokens of all sequences in a row: with more than one sequence its output is transposed, and the projection
    keeps the copy. With sequence parallelism norms gather their output, and the projections behind them keep it whole
    (Megatron-LM's gather it again).

    Args:
        graph: The graph.
        sequences: Sequences of a micro-batch.
        gathered: There is sequence parallelism.
    """

    def copied(operator: Operator) -> Operator:
        work, saved = operator.work, list(operator.saved)
        if isinstance(work, CoreAttention):
            output = Saved(
                name="attention output as projected",
                features=work.num_heads * work.v_head_dim,
                element_bytes=HALF,
                region=Region.SHARDED,
                granule=work.v_head_dim,
            )
            if not work.fused:
                saved = [replace(part, element_bytes=HALF) if part.element_bytes == WIDE else part for part in saved]
                scores = next(part for part in saved if part.name == "softmax output")
                saved += [
                    replace(scores, name="attention dropout mask", element_bytes=1),
                    replace(scores, name="attention dropout output"),
                ]
            elif sequences > 1:
                saved.append(output)
        if gathered and isinstance(work, Linear) and work.parallel is Parallel.COLUMN:
            saved = [
                replace(part, region=Region.SHARDED, granule=part.features) if part.region is Region.RESIDUAL else part
                for part in saved
            ]
        return replace(operator, saved=tuple(saved))

    return _rewritten(graph, copied)


def with_products_kept(
    graph: ModelGraph, model: ModelSpec, workload: TrainWorkload, *, compiled: bool
) -> ModelGraph | None:
    """Return the graph under torchtitan's selective checkpointing of operations, or None for blocks that it lacks.

    Of each block are kept its input, the outputs of every second matrix product, in the order in which the modules run
    them, and what fused attention gives; everything else is recomputed (`_save_list` and `_custom_policy`). Compiled,
    a kept output that no backward formula reads is not kept after all: the last product's, which is only added to the
    residual stream.

    Args:
        graph: The graph of the model.
        model: The model.
        workload: The training run.
        compiled: Blocks are compiled.
    """
    blocks = {}
    for block, layer in graph.blocks.items():
        mixer, feed_forward = block.mixer, block.feed_forward
        if not isinstance(mixer, SelfAttention) or not isinstance(feed_forward, DenseFeedForward):
            return None
        heads, inner = mixer.head_dim, feed_forward.intermediate_size
        projections = [
            ("query product", mixer.query_size, Region.SHARDED, heads),
            ("key product", mixer.key_value_size, Region.SHARDED, heads),
            ("value product", mixer.key_value_size, Region.SHARDED, heads),
            ("output product", model.hidden_size, Region.RESIDUAL, 1),
            *([("gate product", inner, Region.SHARDED, 1)] if feed_forward.gated else []),
            ("up product", inner, Region.SHARDED, 1),
            ("down product", model.hidden_size, Region.RESIDUAL, 1),
        ]
        if compiled:
            projections.pop()
        every_second = [
            Saved(name=name, features=features, element_bytes=HALF, region=region, granule=granule)
            for name, features, region, granule in projections[::2]
        ]
        attention = {"log-sum-exp", "attention output"} if workload.attention_kernel is AttentionKernel.FLASH else set()
        kept = [*every_second, *([layer.layer_input] if layer.layer_input is not None else [])]
        operators = [_recomputed(operator, attention) for operator in layer.operators]
        operators[0] = replace(operators[0], saved=(*operators[0].saved, *kept))
        blocks[block] = replace(layer, operators=tuple(operators))
    return replace(graph, blocks=blocks)


def _recomputed(operator: Operator, kept: set[str]) -> Operator:
    """Return an operator whose saved tensors are produced again, but for those named in `kept`."""
    saved = tuple(replace(part, dropped_by=() if part.name in kept else tuple(Module)) for part in operator.saved)
    return replace(operator, saved=saved)


def _rewritten(graph: ModelGraph, of_operator: Callable[[Operator], Operator]) -> ModelGraph:
    def layer(found: LayerGraph) -> LayerGraph:
        return replace(found, operators=tuple(of_operator(operator) for operator in found.operators))

    return replace(
        graph,
        embedding=layer(graph.embedding),
        blocks={block: layer(found) for block, found in graph.blocks.items()},
        head=layer(graph.head),
    )
