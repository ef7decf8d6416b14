"""The answer about offloaded inference: what lies where for each target, what that reaches, and why not more."""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.inference_offload.request import OffloadRequest, Option, Place, Target
from planner.models.specs import ModelSpec
from profiles.hardware import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One line of a plan.

    Args:
        option: What lies where.
        share: Which part of it.
        num_bytes: How much that is, at its longest.
    """

    option: Option
    share: float
    num_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """How long a part of the node is busy in one pass of a phase.

    Args:
        phase: "prompts" or "answers".
        part: Which part.
        seconds: How long.
    """

    phase: str
    part: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a place holds.

    Args:
        name: The place, with the phase where that matters.
        num_bytes: What lies there.
        room_bytes: What it has.
    """

    name: str
    num_bytes: float
    room_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What one GiB more of a place gains, with batches of about the same size and parts that never wait.

    Args:
        place: The place.
        tokens_per_second: Tokens a second that it adds.
    """

    place: Place
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPlan:
    """The best block of one target.

    Args:
        target: Who runs it.
        batch_size: Sequences of a batch.
        num_batches: Batches of the block.
        slice_tokens: Prompt tokens that are computed at once; None for those of a whole batch.
        tokens_per_second: Generated tokens a second, prompts' time included, as a runtime's order of work is simulated.
        unpaused_tokens_per_second: What it would be if the busiest part of the node never waited.
        most_tokens_per_second: No block of the batch sizes that were looked at generates more, in whatever order.
        prompt_seconds: Time of the prompts of a block, simulated.
        answer_seconds: Time of one pass for a token of each sequence, simulated.
        placed: What lies where.
        busy: How long each part works.
        held: What each place holds.
        gains: What one GiB more of each place gains.
        programmes: Programmes that were solved.
        stopped: The search stopped before its bound was close.
        source_fractions: What part of the GPU's time of a batch, by phase, is measured, interpolated and so on; None
            where the GPU was not measured.
    """

    target: Target
    batch_size: int
    num_batches: int
    slice_tokens: int | None
    tokens_per_second: float
    unpaused_tokens_per_second: float
    most_tokens_per_second: float
    prompt_seconds: float
    answer_seconds: float
    placed: tuple[Placed, ...]
    busy: tuple[Busy, ...]
    held: tuple[Held, ...]
    gains: tuple[Gain, ...]
    programmes: int
    stopped: bool
    source_fractions: Mapping[str, Mapping[str, float]] | None = None

    def longest(self, phase: str) -> Busy:
        """Return the part that a phase waits for."""
        return max((busy for busy in self.busy if busy.phase == phase), key=lambda busy: busy.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """How fast a runtime can be at most that brings all weights which the GPU does not hold once a pass.

    Args:
        tokens_per_second: Generated tokens a second.
        by_memory: The host's memory bounds it, through the sequences whose caches it holds; else the GPU's time.
    """

    tokens_per_second: float
    by_memory: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Sizes of the model that files need.

    Args:
        layer_elements: Weights of the heaviest layer.
        largest_tensor_elements: Weights of the largest matrix.
    """

    layer_elements: int
    largest_tensor_elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadPlan:
    """The whole answer.

    Args:
        model: What runs.
        cluster: Whose node.
        request: What was asked.
        facts: Sizes of the model.
        plans: The best block of each target that has one, the runtime with everything first.
        streaming: Bound of runtimes that stream; None where the caches of not even one sequence have room.
        least_bytes: What a single sequence takes beyond all places together; 0 where it fits.
        assumptions: What the figures rest on.
    """

    model: ModelSpec
    cluster: Cluster
    request: OffloadRequest
    facts: ModelFacts
    plans: tuple[TargetPlan, ...]
    streaming: Streaming | None
    least_bytes: float
    assumptions: tuple[str, ...]

    def of(self, target: Target) -> TargetPlan | None:
        """Return the plan of a target; None where nothing fits."""
        return next((plan for plan in self.plans if plan.target is target), None)
