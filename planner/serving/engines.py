"""The engines that serve: how each schedules, and the few constants of each that no kernel table holds.

The constants stand in `planner/data/serving/constants.json`, fitted together to published serving runs
(`planner.accuracy.serving_fit`, `shardwright accuracy --refit`); none is of one model. What a step costs beside its
kernels is a time for each step, for each running sequence, and for each element-wise kernel of a layer, which in a
captured graph is a start and an end of a small kernel. What kernel tables hold is not fitted: an engine's own
all-reduce starts in the time that its timings on H100 show.

What the host does for a step depends on the version too. vLLM schedules a step while the one before it runs since
0.14.0 (release notes of v0.14.0, pull request 27614), which hides most of what each running sequence takes; runs of
earlier versions have a constant of their own (`HostEra`). SGLang's scheduler overlaps steps since 0.4
(https://lmsys.org/blog/2024-12-04-sglang-v0-4) and TensorRT-LLM's since its PyTorch backend is the default, 1.0: all
runs here are later, and one value for all their versions is an assumption.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, partial
from importlib import resources
from types import MappingProxyType

from planner.errors import InputError
from planner.serving.exchange import OWN_SUMS, OwnSums


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
        fraction_of_free: That part is one of what weights and a step leave, and is all cache; else one of the whole.
        block_size: Tokens of a block of the cache.
        sums: What its own all-reduce kernels take beside their traffic.
        step_seconds: Host time of a step.
        sequence_seconds: Host time of a step for each running sequence.
        kernel_seconds: Each element-wise kernel of a layer.
        experts_seconds: Sorting and starting routed experts, for each layer that has them, beside the kernels.
        latent_seconds: The further small kernels of latent attention or a recurrence, for each layer that has it.
        compute_factor: Products and experts, over what kernels take in a burst.
        first_token_seconds: What the first token takes beside its steps: the server's door, tokenizer and back.
        first_token_experts_seconds: The same, beside it, of a model with routed experts.
    """

    name: str
    scheduling: Scheduling
    reserved_fraction: float
    default_batched_tokens: int
    default_num_seqs: int
    default_memory_fraction: float
    fraction_of_free: bool
    block_size: int
    sums: OwnSums
    step_seconds: float
    sequence_seconds: float
    kernel_seconds: float
    experts_seconds: float
    latent_seconds: float
    compute_factor: float
    first_token_seconds: float
    first_token_experts_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEra:
    """Versions of an engine whose host does more for a step than the newest one's.

    Args:
        before: The first version that does less.
        released: When that came out, as 2026-01-20: runs that name a day and no version are told apart by it.
        sequence_seconds: Host time of a step for each running sequence.
        source: What that version changed.
    """

    before: str
    released: str
    sequence_seconds: float
    source: str

    def holds(self, version: str, day: str) -> bool:
        """Return whether a run is of these versions, by its version or else by its day; one without either is not."""
        number = _NUMBERS.match(version)
        if number is not None:
            return _parts(number.group()) < _parts(self.before)
        return bool(day) and day < self.released


_NUMBERS = re.compile(r"\d+(\.\d+)+")


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFactors:
    """What kernels inside a running engine reach of what the kernel models say, and how uneven their work is.

    The models are fitted on H100 and A100 (`profiles.kernels`); other chips scale with their datasheets.

    Args:
        blackwell_fp8: Rate of fp8 products on Blackwell.
        blackwell_fp4: Rate of fp4 products on Blackwell.
        blackwell_memory: Memory bandwidth of products on Blackwell.
        experts_memory: Memory bandwidth of routed experts.
        hidden_start: Part of a kernel's start that is hidden behind the kernel before it.
        fp4_experts_share: Part of `Engine.experts_seconds` that fp4 experts take: their kernels route and quantise too.
        fp4_start_seconds: What an fp4 product starts later than an fp8 one: its operand's scales are laid out first.
        routing_spread: Standard deviation of the logarithm of an expert's part of all choices, where none were counted.
    """

    blackwell_fp8: float
    blackwell_fp4: float
    blackwell_memory: float
    experts_memory: float
    hidden_start: float
    fp4_experts_share: float
    fp4_start_seconds: float
    routing_spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Everything that is fitted to serving runs.

    Args:
        engines: Engines by name.
        kernels: What kernels reach inside them.
        source: What the constants were fitted to.
        eras: By engine earlier versions of it, the oldest first; engines are of their newest version.
    """

    engines: Mapping[str, Engine]
    kernels: KernelFactors
    source: str = field(compare=False)
    eras: Mapping[str, tuple[HostEra, ...]] = field(default_factory=dict)

    def era_of(self, engine: str, *, version: str, day: str) -> HostEra | None:
        """Return the earlier versions that a run of an engine is of; None for the newest ones."""
        return next((era for era in self.eras.get(engine, ()) if era.holds(version, day)), None)


_POLICIES: Mapping[str, partial[Engine]] = MappingProxyType(
    {
        # vLLM's defaults for a server on GPUs of 70 GiB and more (`vllm/engine/arg_utils.py`).
        "vllm": partial(
            Engine,
            name="vllm",
            sums=OWN_SUMS["vllm"],
            scheduling=Scheduling.MIXED,
            reserved_fraction=0.0,
            default_batched_tokens=8192,
            default_num_seqs=1024,
            default_memory_fraction=0.92,
            fraction_of_free=False,
            block_size=16,
        ),
        # TensorRT-LLM's `GUARANTEED_NO_EVICT` policy, and `trtllm-serve`'s defaults (`free_gpu_memory_fraction`).
        "trtllm": partial(
            Engine,
            name="trtllm",
            sums=OWN_SUMS["trtllm"],
            scheduling=Scheduling.MIXED,
            reserved_fraction=1.0,
            default_batched_tokens=8192,
            default_num_seqs=2048,
            default_memory_fraction=0.9,
            fraction_of_free=True,
            block_size=32,
        ),
        # SGLang's `chunked_prefill_size` and `mem_fraction_static` on large GPUs; it reserves a part of each answer
        # that falls as answers run (`new_token_ratio`): 0.4 is assumed.
        "sglang": partial(
            Engine,
            name="sglang",
            sums=OWN_SUMS["sglang"],
            scheduling=Scheduling.PREFILL_FIRST,
            reserved_fraction=0.4,
            default_batched_tokens=8192,
            default_num_seqs=1024,
            default_memory_fraction=0.88,
            fraction_of_free=False,
            block_size=1,
        ),
    }
)
"""What each engine is by itself; the constants beside it are fitted."""


@cache
def calibration() -> Calibration:
    """Return the constants that come with the package."""
    file = resources.files("planner") / "data" / "serving" / "constants.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    engines = {name: policy(**content["engines"][name]) for name, policy in _POLICIES.items()}
    eras = {name: tuple(HostEra(**era) for era in listed) for name, listed in content["eras"].items()}
    return Calibration(
        engines=MappingProxyType(engines),
        kernels=KernelFactors(**content["kernels"]),
        source=content["source"],
        eras=MappingProxyType(eras),
    )


_ALIASES = {"tensorrt-llm": "trtllm", "trt-llm": "trtllm", "tensorrt_llm": "trtllm"}


def engine_named(name: str) -> Engine:
    """Return an engine by its name.

    Raises:
        InputError: There is none of that name.
    """
    word = name.strip().lower()
    word = _ALIASES.get(word, word)
    if word not in _POLICIES:
        raise InputError(f"engine {name[:40]!r} is not known.", hint=f"Use one of {', '.join(_POLICIES)}.")
    return calibration().engines[word]
