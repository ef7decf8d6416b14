"""The way of a prompt's cache from the engine that makes it to the engine that goes on, and which pairs may do so.

Every GPU of the receiving rank reads its part over its own link, from the GPUs that hold it; the side whose GPUs hold
more of it each is the slower one. Which pairs work is what vLLM 0.32.0's NixlConnector checks
(`vllm/distributed/kv_transfer/kv_connector/v1/nixl/base_worker.py`, `utils.py: TransferTopology.tp_ratio`): one
tensor-parallel degree divides the other, and a pipeline only with conditions, so that none is planned here. Recurrent
states need another layout of theirs, which these files do not ask for.
"""

from planner.blocks import LinearAttention, StateSpace
from planner.serve_plan import Transfer
from planner.serving_search.candidates import Candidate, Ground
from planner.serving_search.shapes import nested_sizes
from planner.specs import ModelSpec
from profiles.hardware import LinkKind


def split_refusal(candidate: Candidate) -> str | None:
    """Return why an engine cannot be a part of a split plan; None where it can."""
    shape = candidate.shape
    if has_states(candidate.ground.prices.model):
        return "split: recurrent states are not passed on"
    if shape.pp > 1:
        return "split: no pipeline stages"
    if candidate.build.guesses:
        return "split: the cache of a draft is not passed on"
    if shape.dcp > 1:
        return "split: no decode context parallelism"
    if shape.tp not in nested_sizes(candidate.ground.prices.cluster.gpus_per_node):
        return "split: a tensor-parallel degree that others do not divide"
    return None


def has_states(model: ModelSpec) -> bool:
    """Return whether a model has recurrent layers."""
    return any(isinstance(block.mixer, StateSpace | LinearAttention) for block in model.distinct_blocks)


def transfer_of(first: Candidate, second: Candidate, *, one_node: bool) -> Transfer:
    """Return the transfer of a mean prompt's cache between two engines.

    Args:
        first: Makes it.
        second: Goes on.
        one_node: All pools stand on one node.
    """
    tokens = first.ground.mean.prompt
    held = [candidate.ledger(1).sequence_bytes(tokens) for candidate in (first, second)]
    seconds = max(
        _send_seconds(candidate.ground, num_bytes, one_node=one_node)
        for candidate, num_bytes in zip((first, second), held, strict=True)
    )
    over = "links inside the node" if one_node else "the network between nodes"
    return Transfer(num_bytes=round(held[1] * second.shape.tp), seconds=seconds, over=over)


def longest_transfer_seconds(ground: Ground, candidates: list[Candidate], *, one_node: bool) -> float:
    """Return the transfer of a mean prompt's cache through the GPU that holds most of it among these engines."""
    most = max(candidate.ledger(1).sequence_bytes(ground.mean.prompt) for candidate in candidates)
    return _send_seconds(ground, most, one_node=one_node)


def _send_seconds(ground: Ground, num_bytes: float, *, one_node: bool) -> float:
    cluster = ground.prices.cluster
    has_network = any(level.kind is LinkKind.NETWORK for level in cluster.levels)
    crosses = not one_node and has_network
    times = ground.prices.exchange(ground.engine)
    return float(times.send_seconds_P(num_bytes, crosses_nodes=crosses))
