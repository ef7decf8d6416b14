"""What vLLM's balancer of experts takes beside what it gains: moves of experts, and memory to move them through.

Every `STEP_INTERVAL` steps it deals experts and copies to ranks anew, by the loads of the last `WINDOW` steps
(`vllm/distributed/eplb` of 0.32.0). It packs them by load, and looks for old places within a rank only
(`policy/default.py: preserve_intragpu_slots`), so that with loads that are never quite the same a slot keeps its expert
by chance: one in as many as there are ranks. Each rank reads the others layer by layer into a buffer of one layer
(`rebalance_execute.py`), and copies that over its experts between two steps. Seconds of one rearrangement, of s slots
of w bytes in L layers on each of G ranks, of which those inside the own domain share fast links:

    s w L (1 - 1/G) shared by links inside and the network, the slower of both, + 2 s w L (1 - 1/G) / memory bandwidth.

It moves in the background (`use_async`). What its reads take away from steps beside them nobody has published; they are
priced as if steps waited for them, which they do at most.
"""

import math

from planner.serving.exchange import ExchangeTimes
from planner.serving.rank_model import RankModel
from planner.serving_plans.layout import EngineShape
from profiles.constants import Constant, Origin
from profiles.kernels.rates import copied_bytes_per_second

STEP_INTERVAL = 3000
"""Steps between two rearrangements (`vllm/config/parallel.py: EPLBConfig.step_interval`)."""

WINDOW = 1000
"""Steps whose loads are kept (`EPLBConfig.window_size`)."""

COUNT_BYTES = 4
"""Bytes of one load (`eplb_state.py: expert_load_window`, int32)."""

WAITED = Constant(
    value=1.0,
    low=0.0,
    high=1.0,
    origin=Origin.ASSUMED,
    source="assumption: steps wait for all of a rearrangement; vLLM moves experts in the background",
)


def moved_fraction(ranks: int) -> float:
    """Return the part of a rank's slots that get an expert from another rank at each rearrangement."""
    return 1 - 1 / ranks


def moved_bytes(rank: RankModel, shape: EngineShape) -> float:
    """Return what one rank reads from others at each rearrangement, over the layers of its pipeline stage."""
    parts = [(layer.count, layer.experts) for layer in rank.layers if layer.experts is not None]
    held = sum(count * part.on_rank * part.parameters_of_one * part.format.weight_bytes for count, part in parts)
    return held / shape.pp * moved_fraction(shape.tp * shape.pcp * shape.dp)


def rearranging_seconds(rank: RankModel, shape: EngineShape, exchange: ExchangeTimes, *, copies: float = 1.0) -> float:
    """Return the time of one rearrangement.

    Args:
        rank: What one rank holds.
        shape: The engine's.
        exchange: Prices of the links.
        copies: 1 where copies inside a GPU's memory count, 0 where only what a profile prices does.
    """
    cluster, ranks = exchange.cluster, shape.tp * shape.pcp * shape.dp
    num_bytes = moved_bytes(rank, shape)
    if not num_bytes:
        return 0.0
    group = shape.tp * shape.pcp
    inside = min(ranks, group * max(1, cluster.largest_inside // shape.rank_gpus), cluster.largest_inside)
    near = num_bytes * (inside - 1) / (ranks - 1)
    links = [float(exchange.send_seconds_P(near, crosses_nodes=False))] if near else []
    if inside < ranks:
        links.append(float(exchange.send_seconds_P(num_bytes - near, crosses_nodes=True)))
    return max(links) + copies * 2 * num_bytes / copied_bytes_per_second(cluster.device)


def moves_seconds(rank: RankModel, shape: EngineShape, exchange: ExchangeTimes, *, copies: float = 1.0) -> float:
    """Return what rearrangements add to a step, in the mean; arguments as `rearranging_seconds` has them."""
    return WAITED.value * rearranging_seconds(rank, shape, exchange, copies=copies) / STEP_INTERVAL


def balancer_bytes(rank: RankModel) -> int:
    """Return what the balancer holds on a GPU: one layer's experts once more, and the loads of its window."""
    layers = [(layer.count, layer.experts) for layer in rank.layers if layer.experts is not None]
    buffers = (part.on_rank * part.parameters_of_one * part.format.weight_bytes for _, part in layers)
    window = sum(WINDOW * count * part.copies * COUNT_BYTES for count, part in layers)
    return math.ceil(max(buffers, default=0.0)) + window
