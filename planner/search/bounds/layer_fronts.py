"""The choices of layers that may be part of the fastest stage, whatever its memory: Pareto sets, in exact bytes.

Sets: the layers of a stage, and the options O of a layer. Backward starts with the last layer. A layer that keeps s of
its t saved bytes adds s to what each of the k micro-batches in flight keeps; while it is run again it needs
max(t - s - freed, 0) and its temporaries, `freed` being what the layers behind it kept. With K the bytes kept by all
layers, and W the largest of those needs, the stage fits if and only if

    k K + max(W, loss) <= room                                                                   (1)

Minimise the summed seconds subject to (1). From the last layer to the first, `_extended` keeps the states (K, W,
seconds) beside which no other is as good in all three (`_undominated`). A state that is dropped stays the worse one:
under the same option of the next layer, K and k K + W of the better one are at most those of the other, for every
k >= 1, as k s + max(t - s - freed, 0) never falls with s, nor, k `freed` counted, with `freed`. `Fronts.fastest` looks
for the least seconds under (1); k, the loss and the room are asked for there, so that all stages share the states.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.arrays import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerOptions:
    """What one layer may keep of its saved tensors.

    Args:
        seconds_O: Forward and backward under each option.
        kept_bytes_O: What one micro-batch keeps.
        all_saved_bytes: What it saves without recompute.
        transient_bytes: What its backward takes beside that.
    """

    seconds_O: FloatArray
    kept_bytes_O: IntArray
    all_saved_bytes: int
    transient_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _States:
    """Choices of the last layers of a stage that may be part of the best one.

    Args:
        kept_bytes: K, what one micro-batch keeps.
        working_bytes: W, the most that one of the layers needs beside that.
        seconds: Of the layers.
        origin: Option of the first of the layers times the states before, plus the state that it came from.
    """

    kept_bytes: IntArray
    working_bytes: IntArray
    seconds: FloatArray
    origin: NDArray[np.intp]


_NOTHING = _States(
    kept_bytes=np.zeros(1, np.int64),
    working_bytes=np.zeros(1, np.int64),
    seconds=np.zeros(1),
    origin=np.zeros(1, np.intp),
)


class Fronts:
    """States of runs of layers, each worked out once; runs with the same end share theirs.

    Args:
        options_D: The options of each kind of layer.
    """

    def __init__(self, options_D: Sequence[LayerOptions]) -> None:
        self._options_D = options_D
        self._behind: dict[tuple[int, ...], _States] = {(): _NOTHING}

    def fastest(
        self, kinds: tuple[int, ...], *, in_flight: int, room_bytes: int, loss_bytes: int
    ) -> tuple[int, ...] | None:
        """Return the option of each layer of a stage that together take least; None where none fit.

        Args:
            kinds: The kind of each layer, first to last.
            in_flight: Micro-batches whose tensors are kept.
            room_bytes: What kept tensors and the largest working set may take.
            loss_bytes: Working set of the loss; 0 without a head.
        """
        states = self._of(kinds)
        needed = in_flight * states.kept_bytes + np.maximum(states.working_bytes, loss_bytes)
        fitting = np.flatnonzero(needed <= room_bytes)
        if not len(fitting):
            return None
        state = int(fitting[np.lexsort((needed[fitting], states.seconds[fitting]))[0]])
        options: list[int] = []
        for behind in range(1, len(kinds) + 1):
            option, state = divmod(
                int(self._of(kinds[behind - 1 :]).origin[state]), len(self._of(kinds[behind:]).origin)
            )
            options.append(option)
        return tuple(options)

    def _of(self, kinds: tuple[int, ...]) -> _States:
        """Return the states of layers of these kinds."""
        begin = next(begin for begin in range(len(kinds) + 1) if kinds[begin:] in self._behind)
        states = self._behind[kinds[begin:]]
        for index in range(begin - 1, -1, -1):
            states = self._behind[kinds[index:]] = _extended(states, self._options_D[kinds[index]])
        return states


def _extended(states: _States, layer: LayerOptions) -> _States:
    """Return the states with one more layer in front."""
    kept_O = layer.kept_bytes_O[:, np.newaxis]
    kept = (kept_O + states.kept_bytes).ravel()
    again = np.maximum(layer.all_saved_bytes - kept_O - states.kept_bytes, 0) + layer.transient_bytes
    working = np.maximum(again, states.working_bytes).ravel()
    seconds = (layer.seconds_O[:, np.newaxis] + states.seconds).ravel()
    origin = _undominated(kept, working, seconds)
    return _States(kept_bytes=kept[origin], working_bytes=working[origin], seconds=seconds[origin], origin=origin)


def _undominated(kept: IntArray, working: IntArray, seconds: FloatArray) -> NDArray[np.intp]:
    """Return the states beside which no other is as good in all three; the first of equals."""
    order = np.lexsort((seconds, kept, working))
    chosen: list[NDArray[np.intp]] = []
    front_kept, front_seconds = np.zeros(0, np.int64), np.zeros(0)
    for same in np.split(order, np.flatnonzero(np.diff(working[order])) + 1):
        if not len(same):
            continue
        before = np.searchsorted(front_kept, kept[same], side="right") - 1
        known = np.append(front_seconds, np.inf)[before]  # nothing before: position -1, infinite
        better = same[seconds[same] < known]
        better = better[_falls(seconds[better])]
        chosen.append(better)
        merged_kept = np.concatenate([front_kept, kept[better]])
        merged_seconds = np.concatenate([front_seconds, seconds[better]])
        rising = np.lexsort((merged_seconds, merged_kept))
        rising = rising[_falls(merged_seconds[rising])]
        front_kept, front_seconds = merged_kept[rising], merged_seconds[rising]
    return np.concatenate([np.zeros(0, np.intp), *chosen])


def _falls(seconds: FloatArray) -> NDArray[np.bool_]:
    """Return which entries are less than every one before them."""
    less = np.ones(len(seconds), dtype=np.bool_)
    less[1:] = seconds[1:] < np.minimum.accumulate(seconds)[:-1]
    return less
