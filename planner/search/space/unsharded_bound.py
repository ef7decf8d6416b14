"""What stands whole on a rank although it is sharded, as arrays over points: no exact ledger finds less.

Axes: X points, D distinct blocks, K kinds of elements (trainable and frozen dense, trainable and frozen expert).
"""

from copy import copy
from functools import cached_property

import numpy as np

from planner.arrays import FloatArray, IntArray
from planner.frameworks.capabilities import Capabilities
from planner.memory.state_bytes import StateBytes


class Unsharded:
    """What stands whole on a rank although it is sharded: weights gathered ahead, gradients that wait to be reduced.

    The ledger's `gathered parameters` and `gradients to reduce`: of all layers, but no more than a queue holds, or two
    layers. Both are the smaller of what grows with the layers and what does not, which makes four cases; the truth is
    the smallest, so a rank has room for what any of them leaves room for.

    Args:
        zero_stage_X: What is sharded.
        per_element: Bytes of an element.
        capabilities: What the target gathers and queues.
        lost: Factor of what the allocator loses.
    """

    def __init__(
        self, *, zero_stage_X: IntArray, per_element: StateBytes, capabilities: Capabilities, lost: float
    ) -> None:
        self.weight_X = np.where(zero_stage_X == 3, float(per_element.weight), 0.0)
        self.gradient_X = np.where(zero_stage_X >= 2, per_element.gradient * lost, 0.0)
        self.added_X = np.where(zero_stage_X >= 2, per_element.weight * lost, 0.0)
        self.prefetched, self.queued = float(capabilities.prefetched_weights), float(capabilities.queued_gradients)
        self.elements_DX: list[FloatArray] = []
        self.trainable_DX: list[FloatArray] = []
        self.one_layer_DX: list[FloatArray] = []

    def add_layer(self, elements_KX: FloatArray) -> None:
        """Add a kind of layer by its elements: trainable and frozen dense, trainable and frozen expert."""
        self.elements_DX.append(elements_KX.sum(axis=0))
        self.trainable_DX.append(elements_KX[0] + elements_KX[2])
        self.one_layer_DX.append(self.trainable_DX[-1] * self.added_X)

    def where(self, index_X: IntArray) -> "Unsharded":
        """Return it of the points at `index_X`."""
        chosen = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(chosen, name, value[index_X])
            elif isinstance(value, list):
                setattr(chosen, name, [part_X[index_X] for part_X in value])
        vars(chosen).pop("cases", None)  # they are of all points
        return chosen

    def end_X(self, elements_KX: FloatArray) -> FloatArray:
        """Return what embedding or head take: they are no part of what is queued, and stay whole."""
        whole_X: FloatArray = elements_KX.sum(axis=0) * self.weight_X
        return whole_X

    @cached_property
    def cases(self) -> tuple[tuple[list[FloatArray], list[FloatArray]], ...]:
        """Return what each kind of layer adds, and what stands once it is there, in each of the four cases."""
        found: list[tuple[list[FloatArray], list[FloatArray]]] = []
        pairs = list(zip(self.elements_DX, self.trainable_DX, strict=True))
        # Where nothing is sharded that would stand whole, one case is enough.
        for all_weights in (False, True) if self.weight_X.any() else (True,):
            for all_gradients in (False, True) if self.gradient_X.any() else (True,):
                growing_DX = [
                    all_weights * elements_X * self.weight_X + all_gradients * trainable_X * self.gradient_X
                    for elements_X, trainable_X in pairs
                ]
                fixed_DX = [
                    (not all_weights) * np.maximum(self.prefetched, 2 * elements_X) * self.weight_X
                    + (not all_gradients) * np.maximum(self.queued, 2 * trainable_X) * self.gradient_X
                    for elements_X, trainable_X in pairs
                ]
                found.append((growing_DX, fixed_DX))
        return tuple(found)

    def held_X(self, held_D: IntArray) -> FloatArray:
        """Return what a rank with these layers of each kind holds whole, beside what one layer's backward takes."""
        kinds = np.nonzero(held_D)[0]
        total_X: FloatArray = np.zeros(len(self.weight_X))
        for of_DX, queue, bytes_X in (
            (self.elements_DX, self.prefetched, self.weight_X),
            (self.trainable_DX, self.queued, self.gradient_X),
        ):
            layers_X = sum(held_D[kind] * of_DX[kind] for kind in kinds)
            largest_X = np.maximum.reduce([of_DX[kind] for kind in kinds])
            total_X = total_X + np.minimum(layers_X, np.maximum(queue, 2 * largest_X)) * bytes_X
        return total_X
