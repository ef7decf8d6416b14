"""Bytes and seconds of every kind of layer in one shape: what the tables of the search are made from.

A shape is one way to shard the layers. Its layers are sums of parts that other shapes share
(`planner.ranks.shard.Sharder`), so each part is priced and measured once, as a row of numbers, and a layer is the sum
of its parts' rows. Axes: D distinct blocks, R recompute choices.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.arrays import FloatArray
from planner.layout import Granularity, Recompute
from planner.offloading.modules import leaving_bytes
from planner.ranks.placement import RankModel
from planner.ranks.pricing import launches_seconds, restart_seconds, steps_seconds
from planner.ranks.shard import Elements, RankLayer
from planner.search.bounds.layer_fronts import Fronts, LayerOptions
from planner.search.bounds.memory_bound import memory_facts
from profiles.estimate import CostModel

_NOTHING, _WHOLE, _PER_LAYER = (
    Recompute(granularity=granularity) for granularity in (Granularity.NONE, Granularity.FULL, Granularity.PER_LAYER)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeconds:
    """Time of one layer for one micro-batch.

    Args:
        forward_seconds: Forward pass.
        backward_seconds_R: Backward pass under each recompute choice, recomputation included.
    """

    forward_seconds: float
    backward_seconds_R: tuple[float, ...]


class PartTable:
    """Rows of numbers of the parts of layers, each worked out once.

    Args:
        cost_model: Prices operations.
        recomputes: The recompute choices.
    """

    def __init__(self, cost_model: CostModel, recomputes: tuple[Recompute, ...]) -> None:
        self.cost_model = cost_model
        self.recomputes = recomputes
        # Where each layer has its own choice, it takes no less than without any recomputation.
        self._of_layers = tuple(_NOTHING if choice.is_per_layer else choice for choice in recomputes)
        self._seconds: dict[RankLayer, FloatArray] = {}
        self._bytes: dict[RankLayer, FloatArray] = {}
        self._layer_seconds: dict[tuple[RankLayer, bool], FloatArray] = {}

    def seconds(self, layer: RankLayer, *, recomputed: bool) -> FloatArray:
        """Return the seconds of a layer's forward pass, and of its backward pass under each choice.

        A pass takes as long as its kernels, or as the host takes to start them.

        Args:
            layer: The layer.
            recomputed: Backward runs again what each choice says; else nothing.
        """
        found = self._layer_seconds.get((layer, recomputed))
        if found is None:
            found = self._layer_seconds[layer, recomputed] = self._summed(layer, recomputed=recomputed)
        return found

    def _summed(self, layer: RankLayer, *, recomputed: bool) -> FloatArray:
        first, *rest = (self._seconds_of_part(part.alike or part) for part in layer.parts)
        rows = sum(rest, first)
        passes = rows[1:].copy()
        passes[0] = rows[0]
        passes[1:] = rows[1] + rows[2:] * recomputed
        if recomputed:
            regions = (layer.num_regions(choice) for choice in self._of_layers)
            passes[1:, 1] += [restart_seconds(number, self.cost_model) for number in regions]
        seconds: FloatArray = passes.max(axis=1)
        return seconds

    def _seconds_of_part(self, part: RankLayer) -> FloatArray:
        """Return rows of kernels' and of launches' seconds: forward, backward, and what each choice runs again."""
        found = self._seconds.get(part)
        if found is None:
            kernels = {operator: steps_seconds(operator.forward, self.cost_model) for operator in part.operators}
            launches = {operator: launches_seconds(operator.forward, self.cost_model) for operator in part.operators}
            rows = [
                (sum(kernels.values()), sum(launches.values())),
                (steps_seconds(part.backward, self.cost_model), launches_seconds(part.backward, self.cost_model)),
            ]
            for choice in self._of_layers:
                again = part.recomputed_operators(choice)
                rows.append((sum(map(kernels.__getitem__, again)), sum(map(launches.__getitem__, again))))
            found = self._seconds[part] = np.array(rows)
        return found

    def counts(self, layer: RankLayer) -> FloatArray:
        """Return `RankLayer.counts` of a layer, and the bytes it keeps of a micro-batch under each choice.

        Where each layer has its own choice, it keeps no less than under the most frugal one.
        """
        first, *rest = (self._counts_of_part(part.alike or part) for part in layer.parts)
        total: FloatArray = sum(rest, first)
        kept_R = total[-len(self.recomputes) :]
        kept_R[[choice.granularity is Granularity.FULL for choice in self.recomputes]] = layer.layer_input_bytes
        kept_R[[choice.is_per_layer for choice in self.recomputes]] = kept_R.min()
        return total

    def _counts_of_part(self, part: RankLayer) -> FloatArray:
        found = self._bytes.get(part)
        if found is None:
            kept = (part.saved_bytes(choice) for choice in self._of_layers)
            found = self._bytes[part] = np.array((*part.counts, *kept), dtype=np.float64)
        return found


class ShapeCosts:
    """Bytes and seconds of every kind of layer in one shape; seconds are priced on first use.

    Args:
        rank_model: One rank's share of the layers.
        counts_D: Layers of each distinct block in the model.
        parts: The rows of the layers' parts.
        modules: Modules of all layers whose saved tensors wait on the host.
    """

    def __init__(
        self, *, rank_model: RankModel, counts_D: tuple[int, ...], parts: PartTable, modules: tuple[str, ...] = ()
    ) -> None:
        self.rank_model = rank_model
        self.modules = modules
        self.counts_D = counts_D
        self.recomputes = parts.recomputes
        self._parts = parts

    @cached_property
    def _seconds_D(self) -> tuple[FloatArray, ...]:
        return tuple(self._parts.seconds(layer, recomputed=True) for layer in self.rank_model.layers)

    @cached_property
    def blocks_D(self) -> tuple[LayerSeconds, ...]:
        """Return the seconds of each distinct block."""
        return tuple(
            LayerSeconds(forward_seconds=float(row[0]), backward_seconds_R=tuple(row[1:].tolist()))
            for row in self._seconds_D
        )

    @cached_property
    def whole_layer_seconds(self) -> float:
        """Return what recomputing one layer whole adds to its backward pass, the least of all distinct blocks."""
        nothing = self.recomputes.index(_NOTHING)
        return float(min(row[1 + self.whole_choice] - row[1 + nothing] for row in self._seconds_D))

    @cached_property
    def whole_choice(self) -> int:
        """Return the recompute choice of layers that are recomputed whole."""
        return self.recomputes.index(_WHOLE)

    @cached_property
    def _counts_D(self) -> tuple[FloatArray, ...]:
        return tuple(self._parts.counts(layer) for layer in self.rank_model.layers)

    @cached_property
    def memory_facts(self) -> FloatArray:
        """Return what the memory bound reads of the shape."""
        return memory_facts(self.rank_model, self._counts_D)

    @cached_property
    def saved_bytes_DR(self) -> FloatArray:
        """Return what one micro-batch keeps of each distinct block under each recompute choice."""
        return np.stack([row[-len(self.recomputes) :] for row in self._counts_D])

    @cached_property
    def leaving_bytes_DR(self) -> FloatArray:
        """Return what of it waits on the host, where modules do."""
        if not self.modules:
            return np.zeros_like(self.saved_bytes_DR)
        rows = [[leaving_bytes(layer, of, self.modules) for of in self.recomputes] for layer in self.rank_model.layers]
        return np.array(rows, dtype=np.float64)

    @property
    def whole_layer_bytes(self) -> int:
        """Return what recomputing one layer whole frees of one micro-batch, the most of all distinct blocks."""
        return max(layer.all_saved_bytes - layer.layer_input_bytes for layer in self.rank_model.layers)

    def choice_of(self, recompute: Recompute) -> int:
        """Return the recompute choice of the layers that are not recomputed whole."""
        if recompute.num_layers is not None:
            recompute = _NOTHING
        elif recompute.is_per_layer:
            recompute = _PER_LAYER
        return self.recomputes.index(recompute)

    @cached_property
    def layer_choices(self) -> tuple[int, ...]:
        """Return the recompute choices that a layer can have of its own."""
        return tuple(index for index, choice in enumerate(self.recomputes) if not choice.is_per_layer)

    @cached_property
    def layer_options_D(self) -> tuple[LayerOptions, ...]:
        """Return what each distinct block keeps and takes under each of `layer_choices`."""
        choices = list(self.layer_choices)
        kept_O = [self.recomputes[choice] for choice in choices]
        return tuple(
            LayerOptions(
                seconds_O=self.layer_seconds_DR[kind, choices],
                kept_bytes_O=np.array([layer.saved_bytes(kept) for kept in kept_O], dtype=np.int64),
                all_saved_bytes=layer.all_saved_bytes,
                transient_bytes=layer.transient_bytes,
            )
            for kind, layer in enumerate(self.rank_model.layers)
        )

    @cached_property
    def layer_fronts(self) -> Fronts:
        """Return the choices of layers that may be part of the fastest stage."""
        return Fronts(self.layer_options_D)

    @cached_property
    def embedding(self) -> LayerSeconds:
        """Return the seconds of the embedding, which is never recomputed."""
        return self._of_end(self.rank_model.embedding)

    @cached_property
    def head(self) -> LayerSeconds:
        """Return the seconds of the head, which is never recomputed."""
        return self._of_end(self.rank_model.head)

    def _of_end(self, layer: RankLayer) -> LayerSeconds:
        forward, *backward_R = self._parts.seconds(layer, recomputed=False).tolist()
        return LayerSeconds(forward_seconds=forward, backward_seconds_R=tuple(backward_R))

    @cached_property
    def layer_seconds_DR(self) -> FloatArray:
        """Return the forward and backward seconds of each distinct block under each recompute choice."""
        return np.stack([row[0] + row[1:] for row in self._seconds_D])

    @cached_property
    def work_seconds_R(self) -> FloatArray:
        """Return the forward and backward seconds of one micro-batch through the whole model."""
        ends = sum(end.forward_seconds + end.backward_seconds_R[0] for end in (self.embedding, self.head))
        work_R: FloatArray = np.array(self.counts_D, dtype=np.float64) @ self.layer_seconds_DR + ends
        return work_R

    @cached_property
    def trainable(self) -> Elements:
        """Return the trainable elements of all layers together, on the ranks that share them; the ends left out."""
        total = Elements()
        for count, layer in zip(self.counts_D, self.rank_model.layers, strict=True):
            total += layer.trainable * count
        return total
