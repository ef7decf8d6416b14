"""What a micro-batch waits for copies of modules, as the search adds it up (simulated: `offloading.module_timeline`).

The groups of a stage are numbered in the order in which the GPU comes to them (`planner.offloading.modules`). Of group
k, S_k and P_k are the seconds of all passes up to its beginning and its end, c_k is its copy, and W_k what has been
waited for until then. In the forward pass, with D_k the end of its copy and j the group of the same module one layer
before:

    D_k = max(D_(k-1), P_k + W_k) + c_k    W_(k+1) = max(W_k, D_j - P_k)

In the backward pass the copy of group k is sent for when group k - n ends, with n the number of different modules:

    H_k = max(H_(k-1), P_(k-n) + W_(k-n)) + c_k    W_k = max(W_(k-1), H_k - S_k)

The first n are there. In a pipeline backward passes follow one another at the end of a step: there the wait is what a
second pass adds to that of a first.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Passed(NamedTuple):
    """One group as a pass comes to it.

    Args:
        module: Its name.
        before_seconds: All that runs between the group before it, or the beginning, and this one.
        own_seconds: Its own operators.
        copy_seconds: Its copy.
    """

    module: str
    before_seconds: float
    own_seconds: float
    copy_seconds: float


def forward_wait_seconds(groups: Sequence[Passed]) -> float:
    """Return what the forward pass of a micro-batch waits for copies to the host."""
    passed = waited = copied = 0.0
    last: dict[str, float] = {}
    for group in groups:
        passed += group.before_seconds + group.own_seconds
        copied = max(copied, passed + waited) + group.copy_seconds
        waited = max(waited, last.get(group.module, 0.0) - passed)
        last[group.module] = copied
    return waited


def backward_wait_seconds(groups: Sequence[Passed], *, behind_seconds: float, in_pipeline: bool) -> float:
    """Return what the backward pass waits for copies back.

    Args:
        groups: Its groups in the order in which it comes to them.
        behind_seconds: What runs behind the last of them.
        in_pipeline: It follows the backward pass of another micro-batch.
    """
    ahead = len({group.module for group in groups})
    passed = waited = fetched = of_first = 0.0
    ended: list[float] = []
    for index, group in enumerate((*groups, *groups) if in_pipeline else groups):
        if in_pipeline and index == len(groups):
            passed, of_first = passed + behind_seconds, waited
        passed += group.before_seconds
        if index >= ahead:
            fetched = max(fetched, ended[index - ahead]) + group.copy_seconds
            waited = max(waited, fetched - passed)
        passed += group.own_seconds
        ended.append(passed + waited)
    return waited - of_first
