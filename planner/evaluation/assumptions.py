"""What the price of a layout takes for granted, in words."""

from collections.abc import Iterator

from planner.frameworks.capabilities import DEEPSPEED
from planner.layout import Granularity, Layout
from planner.models.graph import CoreAttention
from planner.ranks.placement import PlacedModel
from planner.requests.workload import TrainWorkload

SKEWED_ROUTING = (
    "routing: the busiest rank's experts get {skew} times the mean load, in every layer, and share it evenly"
)
COUNTED_ROUTING = (
    "routing: {source}; experts stand in their order. The busiest of {ranks} ranks gets {mean:.3f} times the mean load"
    " on average over the layers, which times are of, and {worst:.3f} in layer {layer}, which memory is of in every"
    " layer; its experts share it evenly, and every micro-batch is routed alike"
)
REORDERED_ROUTING = (
    "routing: {source}; the experts of each layer stand in another order, so that its busiest of {ranks} ranks gets"
    " {mean:.3f} times the mean load on average over the layers, which times are of, and {worst:.3f} in layer {layer},"
    " which memory is of in every layer; its experts share it evenly, and every micro-batch is routed alike. The run"
    " starts from the checkpoint that was counted, written in that order, and is routed as the counts say"
)
REROUTED = (
    "routing: {source}; least-loaded rerouting (arXiv 2601.17111) leaves every rank the mean load, and results as they"
    " are. Of a layer some rank sends or gets the weights of {mean:.1f} experts on average, {worst} at most, in 16 bit,"
    " in each forward pass, and again in backward with their gradients; nothing hides it"
)
DROPPED_TOKENS = (
    "routing: a capacity factor of {capacity:g} drops {dropped:.1f} % of the choices of experts, which changes results;"
    " every rank's tokens are routed alike"
)
PREDICTION_KEPT = "multi-token prediction: its modules are not recomputed, whatever the layers are"
PREDICTION_HERE = (
    "multi-token prediction: what its modules save is counted as staying on the GPU, and their copies as hidden"
)
SPLIT_INDEXER = "sparse attention: the indexer's work is split over tp; a framework may repeat it on every rank"
EVEN_ROUTING = "routing: every expert of a rank gets the same number of tokens"
LONG_SEQUENCES = (
    "positions: sequences of {seq_len} tokens in a model made for {longest}; its rotation is written as it stands, and"
    " another base or scaling costs nothing"
)
PACKED_CONTEXT = "context parallelism: documents are cut so that attention is even over the ranks"
DEEPSPEED_KERNELS = "DeepSpeed: layers are the shipped model's plain PyTorch modules; a model of your own may keep more"
UNEQUAL_NODES = (
    "nodes that differ: rings and trees go from place to place and as fast as the slowest link between them; pipeline"
    " ranks go as fast as the slowest of their GPUs"
)
FP8_ASSUMPTION = "linear layers: every fp8 recipe costs the same; what scaling per block adds is not known"


def layout_assumptions(placed: PlacedModel) -> Iterator[str]:
    """Yield what is assumed of data and framework, whatever the figures."""
    layout, workload = placed.layout, placed.workload
    if placed.model.has_experts:
        yield from _routing_assumptions(layout, workload)
    if workload.seq_len > placed.model.max_position_embeddings:
        yield LONG_SEQUENCES.format(seq_len=workload.seq_len, longest=placed.model.max_position_embeddings)
    if placed.model.mtp is not None and layout.recompute.granularity is not Granularity.NONE:
        yield PREDICTION_KEPT
    if placed.model.mtp is not None and layout.offloaded_modules:
        yield PREDICTION_HERE
    works = (part.operator.work for layer in placed.rank_model.layers for part in layer.operators)
    if layout.tp > 1 and any(isinstance(work, CoreAttention) and work.chosen for work in works):
        yield SPLIT_INDEXER
    if layout.cp > 1 and workload.documents is not None:
        yield PACKED_CONTEXT
    if placed.capabilities.title == DEEPSPEED.title:
        yield DEEPSPEED_KERNELS


def _routing_assumptions(layout: Layout, workload: TrainWorkload) -> Iterator[str]:
    """Yield what is assumed of the tokens that experts get."""
    routing = workload.routing
    if routing is None:
        yield EVEN_ROUTING if layout.ep == 1 else SKEWED_ROUTING.format(skew=workload.routing_skew)
        return
    loads = routing.loads(layout.ep)
    if routing.reroutes and layout.ep > 1:
        moved = workload.busiest_rank(layout.ep)
        yield REROUTED.format(source=routing.source, mean=moved.moved, worst=moved.moved_at_worst)
    elif layout.ep == 1 and routing.capacity_factor is None:
        yield EVEN_ROUTING
    else:
        text = REORDERED_ROUTING if routing.reorders(layout.ep) else COUNTED_ROUTING
        yield text.format(
            source=routing.source, mean=loads.mean, worst=loads.worst, layer=loads.worst_layer, ranks=layout.ep
        )
    if routing.capacity_factor is not None:
        yield DROPPED_TOKENS.format(capacity=routing.capacity_factor, dropped=routing.dropped_fraction * 100)
