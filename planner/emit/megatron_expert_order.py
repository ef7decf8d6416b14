"""The order of a checkpoint's experts beside Megatron-LM's launch files, and what is to be done with it.

Megatron-LM has no flag for it (`planner.experts.emit`): the checkpoint is rewritten before the run loads it. A row of
the file is a layer of the model, 0 the first; position p of it is to hold the expert that the row names there, its
weights and, with optimizer states, those; and so is row p of the router's weight, of its bias, and of the bias that
balances loads. Everything else stays.
"""

from collections.abc import Mapping

import numpy as np

from planner.errors import BrokenPromiseError
from planner.experts.emit import MEGATRON_FILE, order_text, read_order
from planner.experts.of_model import routed_experts
from planner.layout import Layout
from planner.models.specs import ModelSpec
from planner.requests.workload import TrainWorkload

ORDER_NOTE = (
    f"Experts: {MEGATRON_FILE} beside this script says which expert of the checkpoint that was counted stands at each",
    "position of each layer. Rewrite the checkpoint so before it is loaded: the experts' weights, the rows of the",
    "router's weight and biases, and optimizer states alike; the model stays the same. Loaded as it is, the checkpoint",
    "trains slower than planned and may not fit. Weights that start at random have no order: say reorder: false.",
)


def names_order(workload: TrainWorkload) -> bool:
    """Return whether a run may come with an order of experts, whatever its layout."""
    routing = workload.routing
    return routing is not None and any(order.reorders for order in routing.orders or ())


def order_note(workload: TrainWorkload, layout: Layout) -> tuple[str, ...]:
    """Return what is said of the order in the scripts; nothing where experts stand in theirs."""
    routing = workload.routing
    return ORDER_NOTE if routing is not None and routing.reorders(layout.ep) else ()


def order_files(model: ModelSpec, workload: TrainWorkload, layout: Layout) -> Mapping[str, str]:
    """Return the file that says the order of the experts, read back; none where they stand in theirs.

    Raises:
        planner.errors.InputError: The order does not keep groups of experts together.
        BrokenPromiseError: The file says another order than the plan.
    """
    routing = workload.routing
    order = None if routing is None else routing.order(layout.ep)
    if routing is None or order is None or not order.reorders:
        return {}
    experts = routing.num_experts
    whole = np.broadcast_to(np.arange(experts), (model.num_layers, experts)).copy()
    whole[list(routing.layers)] = order.order_LE(experts)
    text = order_text(whole)
    said = read_order(
        text,
        file=MEGATRON_FILE,
        num_layers=model.num_layers,
        num_experts=experts,
        num_groups=routed_experts(model).router.limiting_groups,
    )
    if not np.array_equal(said, whole):
        raise BrokenPromiseError(f"{MEGATRON_FILE} says another order than the plan")
    return {MEGATRON_FILE: text}
