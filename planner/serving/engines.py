"""The engines that serve: how each schedules, and the few constants of each that no kernel table holds.

Constants with origin SERVED were fitted to published serving runs (`planner.accuracy.serving_fit`); none is of one
model. What a step costs beside its kernels is the host's part: a time for each step, for each running sequence, and for
each element-wise kernel of a layer, which in a captured graph is a start and an end of a small kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from planner.errors import InputError


class Scheduling(StrEnum):
    """How prompts and answers share steps."""

    MIXED = "mixed"
    """A step holds every running answer and, up to its token budget, chunks of prompts."""
    PREFILL_FIRST = "prefill-first"
    """A step is either chunks of prompts or all running answers; prompts go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One serving engine.

    Args:
        name: "vllm", "trtllm" or "sglang".
        scheduling: How prompts and answers share steps.
        reserved_fraction: Part of its answer that must be free, beside its prompt, before a request is taken in. Where
            it is below 1 answers may find no room later; the last one taken in is put back and computed again.
        default_batched_tokens: Tokens of a step unless told.
        default_num_seqs: Running sequences unless told.
        default_memory_fraction: Part of the GPU's memory that it takes unless told.
        block_size: Tokens of a block of the cache.
        step_seconds: Host time of a step.
        sequence_seconds: Host time of a step for each running sequence.
        kernel_seconds: Each element-wise kernel of a layer.
        experts_seconds: Sorting and starting routed experts, for each layer that has them, beside the kernels.
        compute_factor: Products and experts, over what kernels take in a burst.
        first_token_seconds: What the first token takes beside its steps: the server's door, tokenizer and back.
        source: Where the constants come from.
    """

    name: str
    scheduling: Scheduling
    reserved_fraction: float
    default_batched_tokens: int
    default_num_seqs: int
    default_memory_fraction: float
    block_size: int
    step_seconds: float
    sequence_seconds: float
    kernel_seconds: float
    experts_seconds: float
    compute_factor: float
    first_token_seconds: float
    source: str


_FIRST = "first values by hand, not fitted"

ENGINES: Mapping[str, Engine] = MappingProxyType(
    {
        engine.name: engine
        for engine in (
            Engine(
                name="vllm",
                scheduling=Scheduling.MIXED,
                reserved_fraction=0.0,
                default_batched_tokens=8192,
                default_num_seqs=1024,
                default_memory_fraction=0.92,
                block_size=16,
                step_seconds=1.0e-3,
                sequence_seconds=20e-6,
                kernel_seconds=2.5e-6,
                experts_seconds=10e-6,
                compute_factor=1.0,
                first_token_seconds=0.03,
                source=_FIRST,
            ),
            Engine(
                name="trtllm",
                scheduling=Scheduling.MIXED,
                reserved_fraction=1.0,
                default_batched_tokens=8192,
                default_num_seqs=2048,
                default_memory_fraction=0.9,
                block_size=32,
                step_seconds=0.9e-3,
                sequence_seconds=14e-6,
                kernel_seconds=2.5e-6,
                experts_seconds=5e-6,
                compute_factor=1.0,
                first_token_seconds=0.03,
                source=_FIRST,
            ),
            Engine(
                name="sglang",
                scheduling=Scheduling.PREFILL_FIRST,
                reserved_fraction=0.4,
                default_batched_tokens=8192,
                default_num_seqs=1024,
                default_memory_fraction=0.88,
                block_size=1,
                step_seconds=0.9e-3,
                sequence_seconds=20e-6,
                kernel_seconds=2.0e-6,
                experts_seconds=10e-6,
                compute_factor=1.0,
                first_token_seconds=0.06,
                source=_FIRST,
            ),
        )
    }
)
"""Engines by name."""

_ALIASES = {"tensorrt-llm": "trtllm", "trt-llm": "trtllm", "tensorrt_llm": "trtllm"}


def engine_named(name: str) -> Engine:
    """Return an engine by its name.

    Raises:
        InputError: There is none of that name.
    """
    word = name.strip().lower()
    word = _ALIASES.get(word, word)
    if word not in ENGINES:
        raise InputError(f"engine {name[:40]!r} is not known.", hint=f"Use one of {', '.join(ENGINES)}.")
    return ENGINES[word]
