"""The two-level greedy placement of experts that serving engines run online, written from its description.

DeepSeek-AI's EPLB describes it so (github.com/deepseek-ai/EPLB, README): where nodes divide the groups, groups of
experts are packed onto nodes evenly by load, experts are copied within each node, and the copies are packed onto the
node's GPUs; else experts are copied over all GPUs whatever their groups. Packing: the heaviest first onto the lightest
pack that has room. Copying: one at a time, of the expert whose copies carry most. It keeps no two copies of an expert
off the same GPU.
"""

from collections.abc import Sequence


def packed(weights: Sequence[float], num_packs: int) -> list[list[int]]:
    """Return the items of each pack, as many in each."""
    size = len(weights) // num_packs
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    loads = [0.0] * num_packs
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        pack = min((pack for pack in range(num_packs) if len(packs[pack]) < size), key=lambda pack: loads[pack])
        packs[pack].append(item)
        loads[pack] += weights[item]
    return packs


def copied(weights: Sequence[float], num_slots: int) -> list[int]:
    """Return the item of each copy: every item once, then the one whose copies carry most."""
    copies, counts = list(range(len(weights))), [1] * len(weights)
    while len(copies) < num_slots:
        heaviest = max(range(len(weights)), key=lambda item: weights[item] / counts[item])
        counts[heaviest] += 1
        copies.append(heaviest)
    return copies


def two_level_greedy(
    weights: Sequence[float], *, num_slots: int, num_groups: int, num_nodes: int, num_gpus: int
) -> list[list[int]]:
    """Return the experts of each GPU of one layer; with one group and one node it is the global policy."""
    size = len(weights) // num_groups
    groups = [range(group * size, (group + 1) * size) for group in range(num_groups)]
    nodes = packed([sum(weights[expert] for expert in group) for group in groups], num_nodes)
    gpus: list[list[int]] = []
    for node in nodes:
        experts = [expert for group in node for expert in groups[group]]
        copies = [experts[item] for item in copied([weights[expert] for expert in experts], num_slots // num_nodes)]
        share = {expert: weights[expert] / copies.count(expert) for expert in experts}
        packs = packed([share[expert] for expert in copies], num_gpus // num_nodes)
        gpus.extend([copies[position] for position in pack] for pack in packs)
    return gpus
