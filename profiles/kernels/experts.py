"""How long the experts of the busiest rank take: two grouped products, and the kernels that sort and sum tokens.

Loads: all experts alike, or by a power law, p(x) ~ x^-a on [1, tokens], of which every expert gets one quantile; no
expert gets a token twice. The busiest rank holds the busiest expert and otherwise a random share of the others.
"""

from collections import Counter
from functools import lru_cache

import numpy as np

from profiles.gemm_surface import GemmSurface
from profiles.hardware import Device
from profiles.kernel_constants import EXPERTS_START
from profiles.kernels.operations import GroupedExperts
from profiles.kernels.rates import copied_bytes_per_second


@lru_cache(maxsize=4096)
def expert_loads(*, tokens: int, topk: int, experts: int, power: float) -> tuple[float, ...]:
    """Return the tokens of every expert, most first; they sum to `tokens` times `topk`.

    Args:
        tokens: Tokens.
        topk: Experts of one token.
        experts: Experts.
        power: Exponent of the power law; 0 where all get alike.
    """
    total = tokens * topk
    if power <= 0:
        each, more = divmod(total, experts)
        return tuple(float(each + (index < more)) for index in range(experts))
    quantiles_E = 1 - (np.arange(experts) + 0.5) / experts
    longest = max(2.0, float(tokens))
    if abs(power - 1) < 1e-9:
        shares_E = longest**quantiles_E
    else:
        slope = 1 - power
        shares_E = (1 + quantiles_E * (longest**slope - 1)) ** (1 / slope)
    loads_E = shares_E * total / shares_E.sum()
    for _ in range(experts):
        over_E = loads_E > tokens
        if not over_E.any():
            break
        free_E = loads_E < tokens
        excess = float((loads_E[over_E] - tokens).sum())
        loads_E[over_E] = tokens
        loads_E[free_E] += excess * loads_E[free_E] / loads_E[free_E].sum()
    return tuple(float(load) for load in loads_E)


def rank_loads(operation: GroupedExperts) -> Counter[int]:
    """Return how many experts of the busiest rank have how many tokens; those without a token are left out."""
    loads = expert_loads(tokens=operation.tokens, topk=operation.topk, experts=operation.experts, power=operation.power)
    others = loads[1:]
    count = operation.experts_on_rank - 1
    # Every k-th of the others: what a random share holds on average.
    share = [others[int((index + 0.5) * len(others) / count)] for index in range(count)] if count else []
    found: Counter[int] = Counter()
    # Loads below one are experts that some tokens go to and some do not: as many are active as tokens arrive.
    arriving = sum(load for load in share if load < 1)
    for load in (loads[0], *(load for load in share if load >= 1)):
        found[max(1, round(load))] += 1
    if round(arriving):
        found[1] += round(arriving)
    return found


def experts_seconds(operation: GroupedExperts, device: Device, surface: GemmSurface) -> float:
    """Return the time of the busiest rank's experts.

    Args:
        operation: The experts.
        device: The GPU.
        surface: Matrix products in the experts' format on that GPU.
    """
    loads = rank_loads(operation)
    rows_G = np.array(sorted(loads), dtype=np.float64)
    counts_G = np.array([loads[int(rows)] for rows in rows_G], dtype=np.float64)
    arriving = float(rows_G @ counts_G)
    active = float(counts_G.sum())
    inter, hidden, kind = operation.inter_on_rank, operation.hidden, operation.format
    seconds = EXPERTS_START.value
    for columns, depth in ((2 * inter, hidden), (hidden, inter)):
        weights = active * columns * depth * kind.weight_bytes
        tokens = arriving * (depth * kind.activation_bytes + 2 * columns)
        seconds += surface.grouped_seconds(rows_G, counts_G, columns, depth, num_bytes=weights + tokens)
    # Tokens are copied to their experts and back, activations are read and written.
    copied = 2.0 * (arriving * (3 * hidden + 3 * inter) + operation.tokens * hidden)
    return seconds + copied / copied_bytes_per_second(device)
