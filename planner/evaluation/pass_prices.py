"""What each pass of a virtual stage costs, and what it keeps: the evaluator's prices, for schedules that split passes.

A schedule that splits backward passes runs the gradient of a stage's input first and that of its weights later. Both
come from the steps that a whole backward pass is priced from (`planner.ranks.step.split_backward`):

    input gradient + weight gradient = backward pass + what only the whole pass hides

Nothing is hidden in a whole pass, so that the last term is 0, without tensor parallelism and where no layer waits for
the host. Otherwise collectives that run beside the other product of the same layer have nothing to run beside.

Embedding and head are not split: the gradient of the logits would have to wait with them, and the embedding's gradient
is one kernel. Recomputation, and what sharded gradients and weights exchange for every micro-batch, belong to the
gradient of the input.

From its input gradient to its weight gradient a layer keeps the inputs of its linear layers, those that were computed
again included, and the gradients of their outputs (Qi et al., arXiv 2401.10241, section 2.1, whose 32 of 34 s b h for
a GPT layer this gives; a test asserts it).
"""

from dataclasses import dataclass

from planner.evaluation.priced_step import stage_prices
from planner.layout import Recompute
from planner.memory.saved import chunk_activation_bytes
from planner.ranks.placement import PlacedModel
from planner.ranks.pricing import launches_seconds, restart_seconds, steps_seconds
from planner.ranks.shard import RankLayer
from planner.ranks.step import Step, split_backward
from profiles.estimate import CostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePasses:
    """One virtual stage, for one micro-batch.

    Args:
        forward_seconds: Forward pass.
        backward_seconds: Backward pass in one, recomputation included.
        input_gradient_seconds: The gradient of the input alone, recomputation included.
        weight_gradient_seconds: The gradient of the weights alone.
        first_forward_extra_seconds: Added to the first forward pass of a step.
        last_gradient_extra_seconds: What the last backward pass of a step leaves to reduce.
        activation_bytes: Kept from the forward pass to the backward pass.
        weight_gradient_bytes: Kept from the gradient of the input to that of the weights.
    """

    forward_seconds: float
    backward_seconds: float
    input_gradient_seconds: float
    weight_gradient_seconds: float
    first_forward_extra_seconds: float
    last_gradient_extra_seconds: float
    activation_bytes: int
    weight_gradient_bytes: int


def stage_passes(placed: PlacedModel, cost_model: CostModel) -> tuple[StagePasses, ...]:
    """Return the passes of each virtual stage of a layout.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    splitter = _Splitter(cost_model)
    found: list[StagePasses] = []
    for stage, price in zip(placed.layout.stages, stage_prices(placed, cost_model), strict=True):
        whole = inputs = weights = 0.0
        kept = 0
        layers = zip(placed.rank_model.stage_layers(stage), placed.layout.layer_recomputes(stage), strict=True)
        for layer, recompute in layers:
            split = splitter.split(layer, recompute)
            whole += split.whole_seconds
            inputs += split.input_seconds
            weights += split.weight_seconds
            kept += layer.weight_gradient_bytes
        found.append(
            StagePasses(
                forward_seconds=price.forward_seconds,
                backward_seconds=price.backward_seconds,
                input_gradient_seconds=price.backward_seconds - whole + inputs,
                weight_gradient_seconds=weights,
                first_forward_extra_seconds=price.first_forward_extra_seconds,
                last_gradient_extra_seconds=price.last_backward_extra_seconds,
                activation_bytes=chunk_activation_bytes(placed, stage),
                weight_gradient_bytes=kept,
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """The backward pass of one layer: whole, and its parts alone."""

    whole_seconds: float
    input_seconds: float
    weight_seconds: float


class _Splitter:
    """Prices the parts of layers, each once.

    Args:
        cost_model: Prices operations.
    """

    def __init__(self, cost_model: CostModel) -> None:
        self._cost_model = cost_model
        self._found: dict[tuple[int, Recompute], _Split] = {}

    def split(self, layer: RankLayer, recompute: Recompute) -> _Split:
        """Return the parts of one layer's backward pass; the same object again is looked up."""
        key = (id(layer), recompute)
        found = self._found.get(key)
        if found is None:
            inputs, weights = split_backward(layer.backward)
            again = layer.recomputed_steps(recompute)
            restarts = restart_seconds(layer.num_regions(recompute), self._cost_model)
            found = self._found[key] = _Split(
                whole_seconds=self._seconds(layer.backward, again, restarts),
                input_seconds=self._seconds(inputs, again, restarts),
                weight_seconds=self._seconds(weights, (), 0.0),
            )
        return found

    def _seconds(self, steps: tuple[Step, ...], again: tuple[Step, ...], restarts: float) -> float:
        """Return what a pass takes: its kernels, or the host's time for starting them if that is longer."""
        kernels = steps_seconds(steps, self._cost_model) + steps_seconds(again, self._cost_model)
        return max(kernels, launches_seconds((*steps, *again), self._cost_model) + restarts)
