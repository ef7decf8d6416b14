"""The way of a prompt's cache from the engine that makes it to the engine that goes on.

Every GPU of the receiving engine's rank gets what it holds of the prompt, states and copies of heads included, over its
own link, from the GPUs that hold it; the slower side counts. Senders share what is got: with latent attention each
receiving rank reads a whole copy, from as many ranks as there are on either side at most; of grouped heads one of
several copies is read (vLLM 0.32.0, `vllm/distributed/kv_transfer/kv_connector/v1/nixl/tp_mapping.py`); pipeline stages
each send their layers.
"""

from collections.abc import Iterable

from planner.serving_plans.layout import NIXL, NIXL_PUSH
from planner.serving_plans.plan import Transfer
from planner.serving_search.candidates import Candidate, Ground
from planner.serving_search.passing import is_latent, key_value_heads, pair_refusal
from profiles.hardware import LinkKind


def transfer_of(first: Candidate, second: Candidate, *, one_node: bool) -> Transfer:
    """Return the transfer of a mean prompt's cache between two engines.

    Args:
        first: Makes it.
        second: Goes on.
        one_node: All pools stand on one node.
    """
    held = _held_bytes(second)
    over = "links inside the node" if one_node else "the network between nodes"
    return Transfer(
        num_bytes=round(held * second.shape.tp),
        seconds=_seconds(first, second, held=held, one_node=one_node),
        over=over,
    )


def longest_transfer_seconds(prefills: Iterable[Candidate], decodes: Iterable[Candidate], *, one_node: bool) -> float:
    """Return the longest transfer of a mean prompt's cache between engines of which one may pass caches to the other.

    Engines of one shape differ in nothing that is passed on; without any pair it is 0.
    """
    firsts, seconds = _one_of_each_shape(prefills), _one_of_each_shape(decodes)
    held = {id(second): _held_bytes(second) for second in seconds}
    return max(
        (
            _seconds(first, second, held=held[id(second)], one_node=one_node)
            for first in firsts
            for second in seconds
            if any(pair_refusal(first, second, connector) is None for connector in (NIXL, NIXL_PUSH))
        ),
        default=0.0,
    )


def _one_of_each_shape(candidates: Iterable[Candidate]) -> list[Candidate]:
    found = {
        (one.ground.index, one.shape.tp, one.shape.pp, one.shape.dcp, one.build.guesses > 0): one for one in candidates
    }
    return list(found.values())


def _held_bytes(candidate: Candidate) -> float:
    """Return the cache of a mean prompt on one GPU."""
    return candidate.ledger(1).sequence_bytes(candidate.ground.mean.prompt)


def _seconds(first: Candidate, second: Candidate, *, held: float, one_node: bool) -> float:
    sent = held * second.shape.tp / senders_of(first, second)
    return max(
        _send_seconds(candidate.ground, num_bytes, one_node=one_node)
        for candidate, num_bytes in ((first, sent), (second, held))
    )


def senders_of(first: Candidate, second: Candidate) -> int:
    """Return the GPUs of the sending rank that the receiving one reads from."""
    one, other = first.shape, second.shape
    if one.dcp > 1:
        return one.tp
    if is_latent(first.ground.prices.model):
        return min(one.tp, other.tp) * one.pp
    return min(one.tp, max(key_value_heads(first.ground.prices.model), other.tp)) * one.pp


def _send_seconds(ground: Ground, num_bytes: float, *, one_node: bool) -> float:
    cluster = ground.prices.cluster
    has_network = any(level.kind is LinkKind.NETWORK for level in cluster.levels)
    crosses = not one_node and has_network
    times = ground.prices.exchange(ground.engine)
    return float(times.send_seconds_P(num_bytes, crosses_nodes=crosses))
