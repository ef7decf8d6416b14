"""The flops that a model needs whatever runs it: the numerator of model flops utilisation (MFU)."""

from planner.models.graph import CoreAttention, ExpertLinear, LayerGraph, Linear, ModelGraph, StateScan, Work
from planner.models.specs import ModelSpec


def required_flops_per_sequence(model: ModelSpec, graph: ModelGraph, *, seq_len: int) -> int:
    """Return the flops that one sequence needs, forward and backward, without any recomputation.

    Products of linear layers (2 per weight and token forward, as much again for each gradient that is needed; of the
    routed experts those that a token visits) and the attention that the mask lets through: two products forward, four
    backward (Narayanan et al., arXiv 2104.04473, equation 3, with the causal half and the vocabulary as they are). A
    recurrence counts writing to its state and reading from it. This is the numerator of MFU.
    """
    total = layer_flops(graph.head, seq_len)
    for run in model.runs:
        total += run.count * layer_flops(graph.blocks[run.block], seq_len)
    return total


def layer_flops(layer: LayerGraph, seq_len: int) -> int:
    """Return the required flops of one layer for one sequence, forward and backward."""
    return sum(_required_flops(operator.work, seq_len) for operator in layer.operators)


def _required_flops(work: Work, seq_len: int) -> int:
    match work:
        case Linear():
            gradients = 1 + work.needs_input_gradient + work.trains_weight
            product = 2 * seq_len * work.in_features * work.out_features * gradients
            return product + 6 * seq_len * work.adapter_rank * (work.in_features + work.out_features)
        case ExpertLinear():
            rows = seq_len * work.visits
            return 2 * rows * work.in_features * work.out_features * (2 + work.trains_weight)
        case CoreAttention():
            return 3 * 2 * work.pairs * work.num_heads * (work.qk_head_dim + work.v_head_dim)
        case StateScan():
            return 3 * 2 * 2 * seq_len * work.num_heads * work.key_dim * work.value_dim
        case _:
            return 0
