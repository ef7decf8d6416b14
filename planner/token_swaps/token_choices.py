"""What becomes of the tokens of a layer's saved tensors, as MEMO divides them: kept, swapped, or computed again.

MEMO (Zhao et al., SIGMOD 2025, arXiv 2407.12117) copies what layers save to page-locked memory while the next layer
computes, and back while the layer behind computes its gradients (section 4.1): of every token the layer's input and the
output of its attention, of a part alpha of the tokens everything. What the other tokens lack is computed again before
the layer's backward pass, all but the attention, which takes most of the time of a long sequence and saves little.

Here a token of a layer has one of four `TokenChoice`s: MEMO's two, and two that MEMO has no use for, as its sequences
fit in no other way: to keep all that it saves, and to keep on the GPU what MEMO always swaps. Whole layers of one kind
on one rank are divided alike.

Always swapped or kept is the layer's input, and what softmax attention keeps beside queries, keys and values (its
output and the log-sum-exp; with chosen keys all that choosing them keeps); of a recurrence all that it keeps.
Everything else is computed again: the operators in front of the last one that keeps anything, attention and recurrences
left out. That is taken to be linear in the tokens. Attention that writes its scores to memory keeps them for every
token: MEMO presumes that it does not (section 2.1.3), and so do plans with swapped tokens.
"""

from dataclasses import dataclass
from enum import StrEnum

from planner.models.graph import CoreAttention, ExpertLinear, Linear, StateScan
from planner.offloading.activations import BESIDE_VALUE, VALUE
from planner.ranks.pricing import launches_seconds, steps_seconds
from planner.ranks.shard import RankLayer
from planner.ranks.step import Step
from profiles.estimate import CostModel
from profiles.ops import HostCopy, HostPass


class TokenChoice(StrEnum):
    """What becomes of a token of a layer."""

    KEPT = "kept"
    SWAPPED = "swapped"
    AGAIN = "computed again, attention swapped"
    AGAIN_HERE = "computed again, attention kept"


COMPUTES_AGAIN = (TokenChoice.AGAIN, TokenChoice.AGAIN_HERE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLayer:
    """One kind of layer on one rank, all tokens of a micro-batch.

    Args:
        saved_bytes: What it saves.
        always_bytes: What of it is never computed again.
        input_bytes: Its input alone.
        forward_seconds: Its forward pass.
        backward_seconds: Its backward pass, nothing computed again.
        again_seconds: What it takes to compute again what is not always swapped.
        link_seconds: A copy of all that it saves over the GPU's own link.
        memory_seconds: What the host's memory takes for that copy, while every GPU of the node makes an equal one.
    """

    saved_bytes: int
    always_bytes: int
    input_bytes: int
    forward_seconds: float
    backward_seconds: float
    again_seconds: float
    link_seconds: float
    memory_seconds: float

    def held_bytes(self, choice: TokenChoice) -> int:
        """Return what stays on the GPU from the forward to the backward pass."""
        return {TokenChoice.KEPT: self.saved_bytes, TokenChoice.AGAIN_HERE: self.always_bytes}.get(choice, 0)

    def passing_bytes(self, choice: TokenChoice) -> int:
        """Return what is on the GPU only while the layer runs or copies."""
        return self.saved_bytes - self.held_bytes(choice)

    def copied_bytes(self, choice: TokenChoice) -> int:
        """Return what is copied to the host, and back."""
        return {TokenChoice.SWAPPED: self.saved_bytes, TokenChoice.AGAIN: self.always_bytes}.get(choice, 0)

    def copied_fraction(self, choice: TokenChoice) -> float:
        """Return what part of all that it saves that is."""
        return self.copied_bytes(choice) / self.saved_bytes if self.saved_bytes else 0.0


def writes_scores(layer: RankLayer) -> bool:
    """Return whether the attention of a layer writes its scores to memory."""
    works = (part.operator.work for part in layer.operators)
    return any(isinstance(work, CoreAttention) and not work.fused for work in works)


def always_bytes(layer: RankLayer) -> int:
    """Return what of a layer's saved tensors is never computed again."""
    found = layer.layer_input_bytes
    for operator in layer.operators:
        match operator.operator.work:
            case CoreAttention():
                found += sum(part.num_bytes for part in operator.saved if part.saved.name not in (VALUE, *BESIDE_VALUE))
            case StateScan():
                found += sum(part.num_bytes for part in operator.saved)
    return min(found, layer.all_saved_bytes)


def again_steps(layer: RankLayer) -> tuple[Step, ...]:
    """Return the forward steps that backward runs again for a token that is not kept.

    A product keeps what it multiplies; so the last product that keeps anything need not run.
    """
    keeping = [index for index, operator in enumerate(layer.operators) if operator.saved]
    if not keeping:
        return ()
    last = layer.operators[keeping[-1]]
    end = keeping[-1] + (not isinstance(last.operator.work, Linear | ExpertLinear))
    return tuple(
        step
        for operator in layer.operators[:end]
        if not isinstance(operator.operator.work, CoreAttention | StateScan)
        for step in operator.forward
    )


def token_layer(layer: RankLayer, cost_model: CostModel) -> TokenLayer:
    """Return what the tokens of a layer cost.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """

    def seconds(steps: tuple[Step, ...]) -> float:
        return max(steps_seconds(steps, cost_model), launches_seconds(steps, cost_model))

    num_bytes = layer.all_saved_bytes
    link, memory = copies_of(num_bytes)
    return TokenLayer(
        saved_bytes=num_bytes,
        always_bytes=always_bytes(layer),
        input_bytes=layer.layer_input_bytes,
        forward_seconds=seconds(layer.forward),
        backward_seconds=seconds(layer.backward),
        again_seconds=seconds(again_steps(layer)),
        link_seconds=cost_model.compute(link).seconds,
        memory_seconds=cost_model.compute(memory).seconds,
    )


def copies_of(num_bytes: int) -> tuple[HostCopy, HostPass]:
    """Return what bytes that leave a GPU, or come back, cost its link and its host's memory."""
    link = HostCopy(num_bytes=num_bytes, pinned=True)
    return link, HostPass(name="copies of activations", num_bytes=num_bytes)
