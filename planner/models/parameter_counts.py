"""How many parameters a model has, and how many of them one token visits."""

from dataclasses import dataclass, replace

from planner.models.blocks import Block, MixtureOfExperts
from planner.models.graph import LayerGraph, ModelGraph
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.requests.workload import Precision, TrainWorkload


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Parameters of one model, unsharded and unpadded.

    Args:
        text: Of the text part, without multi-token prediction; a tied table once.
        active: Of the text part those that one token visits: of the routed experts only the chosen ones.
        prediction: Of multi-token prediction.
        vision: Of the vision tower, which is not planned.
    """

    text: int
    active: int
    prediction: int
    vision: int


def parameter_counts(model: ModelSpec) -> ParameterCounts:
    """Return how many parameters a model has, and how many of them one token visits."""
    plain = replace(model, mtp=None)
    graph = _any_graph(plain)
    text = graph_parameters(plain, graph)
    with_prediction = text if model.mtp is None else total_parameters(model)
    return ParameterCounts(
        text=text,
        active=text - sum(run.count * _idle(run.block, graph.blocks[run.block]) for run in model.runs),
        prediction=with_prediction - text,
        vision=0 if model.vision is None else model.vision.num_parameters,
    )


def total_parameters(model: ModelSpec) -> int:
    """Return the parameters of the text part, multi-token prediction included, unsharded and unpadded."""
    return graph_parameters(model, _any_graph(model))


def graph_parameters(model: ModelSpec, graph: ModelGraph) -> int:
    """Return the parameters of the text part, adapters and multi-token prediction included."""
    blocks = sum(run.count * layer_parameters(graph.blocks[run.block]) for run in model.runs)
    return layer_parameters(graph.embedding) + blocks + layer_parameters(graph.head)


def layer_parameters(layer: LayerGraph) -> int:
    """Return the unsharded, unpadded parameters of one layer, a tied table counted with the embedding only."""
    return sum(weight.num_elements for weight in layer.weights if not weight.shared_with_embedding)


def _any_graph(model: ModelSpec) -> ModelGraph:
    """Return the graph of a model under some workload: the shapes of its weights do not depend on which."""
    return build_graph(model, TrainWorkload(seq_len=1, global_batch_size=1, precision=Precision.BF16))


def _idle(block: Block, graph: LayerGraph) -> int:
    """Return the parameters of the routed experts that a token does not visit."""
    experts = block.feed_forward
    if not isinstance(experts, MixtureOfExperts):
        return 0
    routed = sum(weight.num_elements for weight in graph.weights if weight.expert_dim is not None)
    return routed // experts.num_experts * (experts.num_experts - experts.experts_per_token)
