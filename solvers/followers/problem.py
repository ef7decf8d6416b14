"""The follower placement problem: items of successive layers onto bins, so that what follows one another stays there.

Sets
    L   layers, one after the other
    I   items of each layer
    B   bins, which hold as many items of each layer each

Variables
    bin[l, i]   bin of each item of each layer

Objective
    minimise what leaves its bin,
        sum over l, i, j of flow[l, i, j] where bin[l, i] is not bin[l + 1, j]

Constraints
    (1)  a bin holds I / B items of each layer
    (2)  an item stands on a bin that it may stand on

This is the objective of ExFlow (Yao et al., "Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts
Model Inference", arXiv 2401.08383), where flow is how many tokens go from one expert to another.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerProblem:
    """One follower placement problem.

    Args:
        flow_KII: What goes from each item of a layer to each of the next; K is one less than the layers.
        num_bins: Bins.
        allowed_LIB: Bins that each item may stand on; None for all.
    """

    flow_KII: Floats
    num_bins: int
    allowed_LIB: Bools | None = None

    def __post_init__(self) -> None:
        """Check shapes."""
        flow = self.flow_KII
        if flow.ndim != 3 or flow.shape[1] != flow.shape[2] or not flow.size or (flow < 0).any():
            raise ValueError(
                "flow_KII must hold what goes from each item to each of the next layer, none of it negative"
            )
        if self.num_bins < 1 or self.num_items % self.num_bins:
            raise ValueError("bins divide the items of a layer")
        shape = (self.num_layers, self.num_items, self.num_bins)
        if self.allowed_LIB is not None and self.allowed_LIB.shape != shape:
            raise ValueError("allowed_LIB must say for each item of each layer which bins it may stand on")

    @property
    def num_layers(self) -> int:
        """Return the layers."""
        return int(self.flow_KII.shape[0]) + 1

    @property
    def num_items(self) -> int:
        """Return the items of a layer."""
        return int(self.flow_KII.shape[1])

    def may_stand(self, layer: int, item: int, bin_: int) -> bool:
        """Return whether an item may stand on a bin."""
        return self.allowed_LIB is None or bool(self.allowed_LIB[layer, item, bin_])


@dataclass(frozen=True, slots=True, kw_only=True)
class Followers:
    """A placement.

    Args:
        bin_LI: Bin of each item of each layer.
        leaving: What leaves its bin.
        bound: No placement has less that leaves.
    """

    bin_LI: Ints
    leaving: float
    bound: float
