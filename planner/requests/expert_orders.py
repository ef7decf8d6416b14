"""The order in which a checkpoint's routed experts are written, so that the ranks of expert parallelism share its load.

Rank r of ep ranks has the experts at the positions r E / ep to (r + 1) E / ep - 1 of each layer (Megatron-LM at commit
d98e8a6, megatron/core/transformer/moe/moe_layer.py: `local_expert_indices`); no flag says otherwise. An order is a
permutation: position p holds the checkpoint's expert order[p], with its row of the router's weight and of its biases.
The layer then computes the same function, up to the order in which numbers are added and which of equal scores wins.

A router that first chooses groups of experts takes E / groups neighbouring positions for a group (moe_utils.py:
`group_limited_topk`). There the experts of a group stay a group: groups may change places, and experts within them.
"""

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertOrder:
    """The orders of all counted layers for one degree of expert parallelism.

    Args:
        ep: Ranks that the experts of a layer are spread over.
        rows: For each layer the expert at each position, as whole numbers between commas; empty where experts stand in
            the checkpoint's order.
        least_L: For each layer what the busiest rank gets over the mean at least, whatever the order.
    """

    ep: int
    rows: tuple[str, ...]
    least_L: tuple[float, ...]

    @property
    def reorders(self) -> bool:
        """Return whether some layer has another order than the checkpoint."""
        return any(self.rows)

    def order_LE(self, num_experts: int) -> tuple[tuple[int, ...], ...]:
        """Return the expert at each position of each layer."""
        return tuple(_order(row, num_experts) for row in self.rows)


def check_orders(orders: tuple[ExpertOrder, ...], *, num_layers: int, num_experts: int) -> None:
    """Raise for orders that are none.

    Raises:
        ValueError: A degree stands twice or does not divide the experts, or a row is no order of them.
    """
    degrees = [order.ep for order in orders]
    if degrees != sorted(set(degrees)) or any(ep < 2 or num_experts % ep for ep in degrees):
        raise ValueError("orders of experts are for degrees above 1 that divide them, which ascend")
    for order in orders:
        if len(order.rows) != num_layers or len(order.least_L) != num_layers:
            raise ValueError("an order of experts has a row and a bound for every counted layer")
        for order_E in order.order_LE(num_experts):
            error = order_error(order_E, num_experts=num_experts)
            if error:
                raise ValueError(f"an order of experts {error}")


def order_error(order_E: tuple[int, ...], *, num_experts: int, num_groups: int = 1) -> str:
    """Return what is wrong with the order of a layer's experts; empty where nothing is.

    Args:
        order_E: The expert at each position.
        num_experts: Experts of the layer.
        num_groups: Groups of neighbouring experts, of which a token chooses some; 1 where it may take any experts.
    """
    if sorted(order_E) != list(range(num_experts)):
        return f"does not hold each of the experts 0 to {num_experts - 1} once"
    size = num_experts // num_groups
    for first in range(0, num_experts, size):
        groups = {expert // size for expert in order_E[first : first + size]}
        if len(groups) > 1:
            named = " and ".join(map(str, sorted(groups)[:2]))
            return f"mixes experts of groups {named} at positions {first} to {first + size - 1}"
    return ""


@lru_cache(maxsize=4096)
def _order(row: str, num_experts: int) -> tuple[int, ...]:
    return tuple(int(cell) for cell in row.split(",")) if row else tuple(range(num_experts))
