"""What the placement of experts sends between nodes.

A token is sent to a node once, however many of its experts stand there, and is handed on within the node (DeepSeek-V3,
arXiv 2412.19437, section 3.2.2). Copies of an expert are taken evenly. Tokens start on all nodes alike.

From counts alone, with groups of experts of which a token chooses some, the number of nodes is an expectation:

    u[g]     share of tokens that choose group g: proportional to its load, at most 1, groups_per_token in all
    m[g]     experts that such a token takes in it: experts_per_token * load[g] / (load * u[g])
    f[g, n]  share of the group's load that node n carries
    P[n]     = 1 - prod over g of (1 - u[g] (1 - (1 - f[g, n])^m[g]))
    sends    = (1 - 1 / N) sum over n of P[n]

It takes groups, and experts within them, as drawn independently. Without groups there is one, that all tokens choose.

Of all placements whose heaviest GPU carries at most x times the mean, none sends less than follows. A node carries at
most x / N of the load. For f between 0 and 1, 1 - (1 - f)^m >= min(m, 1) f, and of numbers y[g] with a given sum the
product of 1 - y[g] is largest where all are equal. With w[g] = u[g] min(m[g], 1) and s[n] = sum over g of w[g] f[g, n],

    P[n] >= 1 - (1 - s[n] / G)^G,   sum over n of s[n] = sum of w,   s[n] <= x / N max of w[g] load / load[g]

which is concave in s[n], so that as many nodes as can be have the most and one the rest. With one group P[n] is
1 - (1 - f)^experts_per_token, and f is such a number itself. Of pairs that were counted an expert has at most as many
others beside it as its node has slots left.
"""

from dataclasses import dataclass

import numpy as np

from planner.experts.histogram import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterShape:
    """How many experts a token chooses.

    Args:
        experts_per_token: Routed experts of a token.
        num_groups: Groups of neighbouring experts of which a token first chooses some; 1 where there are none.
        groups_per_token: How many of them.
    """

    experts_per_token: int
    num_groups: int = 1
    groups_per_token: int = 1

    @property
    def limiting_groups(self) -> int:
        """Return the groups that keep tokens from some experts; 1 where a token may take any."""
        return self.num_groups if self.groups_per_token < self.num_groups else 1


def node_share_LEN(expert_LGS: Ints, *, num_experts: int, num_nodes: int) -> Floats:
    """Return the share of each expert's copies that stands in each node."""
    num_layers, num_gpus, _ = expert_LGS.shape
    node_G = np.arange(num_gpus) // (num_gpus // num_nodes)
    place = (np.arange(num_layers)[:, None, None] * num_experts + expert_LGS) * num_nodes + node_G[None, :, None]
    counts = np.bincount(place.ravel(), minlength=num_layers * num_experts * num_nodes)
    counts = counts.reshape(num_layers, num_experts, num_nodes)
    share: Floats = counts / counts.sum(axis=2, keepdims=True)
    return share


def sends_per_token_L(tokens_LE: Floats, expert_LGS: Ints, *, num_nodes: int, router: RouterShape) -> Floats:
    """Return how often a token is sent to another node in each layer, as the module's docstring says."""
    num_layers, num_experts = tokens_LE.shape
    share_LEN = node_share_LEN(expert_LGS, num_experts=num_experts, num_nodes=num_nodes)
    by_group = (num_layers, router.num_groups, num_experts // router.num_groups)
    load_LG = tokens_LE.reshape(by_group).sum(axis=2)
    carried_LGN = (tokens_LE[:, :, None] * share_LEN).reshape(*by_group, num_nodes).sum(axis=2)
    part_LGN = carried_LGN / np.maximum(load_LG, 1e-300)[:, :, None]
    chosen_LG = _chosen_groups(load_LG, router.groups_per_token)
    total = load_LG.sum(axis=1, keepdims=True)
    taken_LG = router.experts_per_token * load_LG / np.maximum(total * chosen_LG, 1e-300)
    visited_LGN = chosen_LG[:, :, None] * (1 - (1 - np.minimum(part_LGN, 1.0)) ** taken_LG[:, :, None])
    visits_LN = 1 - np.prod(1 - visited_LGN, axis=1)
    sends: Floats = (1 - 1 / num_nodes) * visits_LN.sum(axis=1)
    return sends


def least_sends_L(tokens_LE: Floats, imbalance_L: Floats, *, num_nodes: int, router: RouterShape) -> Floats:
    """Return how often a token is sent at least where no GPU carries more than `imbalance_L` times the mean."""
    num_layers, groups = tokens_LE.shape[0], router.num_groups
    if groups == 1:
        total_L, most_L, power = np.ones(num_layers), imbalance_L / num_nodes, router.experts_per_token
        width = 1
    else:
        load_LG = tokens_LE.reshape(num_layers, groups, -1).sum(axis=2)
        load_LG = load_LG / load_LG.sum(axis=1, keepdims=True)
        chosen_LG = _chosen_groups(load_LG, router.groups_per_token)
        taken_LG = router.experts_per_token * load_LG / np.maximum(chosen_LG, 1e-300)
        weight_LG = chosen_LG * np.minimum(taken_LG, 1.0)
        ratio_LG = np.divide(weight_LG, load_LG, out=np.zeros_like(load_LG), where=load_LG > 0)
        total_L, most_L = weight_LG.sum(axis=1), imbalance_L / num_nodes * ratio_LG.max(axis=1)
        power = width = groups
    most_L = np.minimum(most_L, total_L)
    full_L = np.minimum(np.floor(total_L / most_L + 1e-9), num_nodes)
    rest_L = np.maximum(total_L - full_L * most_L, 0.0)

    def visited_L(part_L: Floats) -> Floats:
        visits: Floats = 1 - (1 - np.minimum(part_L / width, 1.0)) ** power
        return visits

    sends: Floats = (1 - 1 / num_nodes) * (full_L * visited_L(most_L) + visited_L(rest_L))
    return sends


def least_split_L(coactivation_LEE: Floats, *, slots_per_node: int) -> Floats:
    """Return the share of pairs that stand in two nodes at least, whatever the placement."""
    beside = min(slots_per_node - 1, coactivation_LEE.shape[2])
    largest = np.sort(coactivation_LEE, axis=2)[:, :, coactivation_LEE.shape[2] - beside :]
    together, total = largest.sum(axis=(1, 2)), coactivation_LEE.sum(axis=(1, 2))
    split: Floats = 1 - np.divide(together, total, out=np.ones_like(total), where=total > 0)
    return split


def _chosen_groups(load_LG: Floats, groups_per_token: int) -> Floats:
    """Return the share of tokens that choose each group: by its load, at most 1, `groups_per_token` in all."""
    chosen = np.zeros_like(load_LG)
    for _ in range(load_LG.shape[1]):
        full = chosen >= 1.0
        left = groups_per_token - full.sum(axis=1, keepdims=True)
        rest = np.where(full, 0.0, load_LG)
        total = rest.sum(axis=1, keepdims=True)
        scaled = np.divide(left * rest, total, out=np.zeros_like(rest), where=total > 0)
        after = np.where(full, 1.0, np.minimum(scaled, 1.0))
        if np.array_equal(after, chosen):
            break
        chosen = after
    return chosen


def split_pairs_L(coactivation_LEE: Floats, expert_LGS: Ints, *, num_nodes: int) -> Floats:
    """Return the share of the pairs of a token's experts that stand in two nodes, copies taken evenly."""
    num_experts = coactivation_LEE.shape[1]
    share = node_share_LEN(expert_LGS, num_experts=num_experts, num_nodes=num_nodes)
    together = np.einsum("len,len->l", coactivation_LEE @ share, share)
    total = coactivation_LEE.sum(axis=(1, 2))
    split: Floats = 1 - np.divide(together, total, out=np.ones_like(total), where=total > 0)
    return split


def pairs_within_groups_LEE(tokens_LE: Floats, router: RouterShape) -> Floats:
    """Return how often a token takes two experts of one group, expected as the module's docstring says.

    Pairs of two groups are left out: what is sent is least where groups stay together.
    """
    num_layers, num_experts = tokens_LE.shape
    load_LG = tokens_LE.reshape(num_layers, router.num_groups, -1).sum(axis=2)
    chosen_LG = _chosen_groups(load_LG, router.groups_per_token)
    taken_LG = router.experts_per_token * load_LG / np.maximum(load_LG.sum(axis=1, keepdims=True) * chosen_LG, 1e-300)
    group_E = np.arange(num_experts) // (num_experts // router.num_groups)
    within_LE = tokens_LE / np.maximum(load_LG, 1e-300)[:, group_E]
    often_LE = (chosen_LG * taken_LG * np.maximum(taken_LG - 1, 0.0))[:, group_E]
    pairs: Floats = (often_LE * within_LE)[:, :, None] * within_LE[:, None, :]
    pairs[:, group_E[:, None] != group_E[None, :]] = 0.0
    pairs[:, np.arange(num_experts), np.arange(num_experts)] = 0.0
    return pairs
