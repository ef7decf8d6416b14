"""vLLM: whether an engine's weights, a step, its longest request and the states of its sequences fit into memory.

These rules look at a server whose memory was counted on a cluster (`planner.validation.serving`); without a cluster
they are not asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from planner.errors import Location
from planner.readers.flag_tables import Framework
from planner.rules.rule import Found, FoundAt, Rule, rule
from planner.units import GIB

if TYPE_CHECKING:
    from planner.serving.ledger import KvLedger

MOST_SHARE = 0.95
"""The largest `--gpu-memory-utilization` that is proposed; the driver and the display need the rest."""

SOURCE = "vllm/v1/core/kv_cache_utils.py: get_kv_cache_configs; the planner's serving ledger and pool of blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRun:
    """A server with the memory of its fullest GPU.

    Args:
        start: Where it is started.
        length_place: Where its longest request is said, or else its share of the memory.
        ledger: The memory.
        memory_bytes: Memory of a GPU.
        share: Part of it that the engine takes; None where the cache's bytes are given.
        cache_bytes: Bytes of cache on a GPU that are given.
        max_model_len: The longest request; None where the engine chooses the longest that fits.
        max_num_seqs: Sequences that it decodes at once.
        seqs_place: Where that is said, or else the engine's start.
        captures_decode: It captures graphs of steps that only decode, as it does where it is told nothing of graphs.
        fitting_tp: The next larger tensor-parallel degree within a node with which all fits.
    """

    start: Location
    length_place: Location
    ledger: "KvLedger"
    memory_bytes: int
    share: float | None
    cache_bytes: int | None
    max_model_len: int | None
    max_num_seqs: int
    seqs_place: Location
    captures_decode: bool
    fitting_tp: int | None

    @property
    def room_bytes(self) -> int:
        """Return what the engine may take beside the cache and for it."""
        return self.ledger.capacity_bytes - (self.cache_bytes or 0)

    @property
    def holds_the_rest(self) -> bool:
        """Return whether all but the cache fits, with some room for a cache where that is measured."""
        held, room = self.ledger.held_bytes, self.room_bytes
        return held < room if self.cache_bytes is None else held <= room

    @property
    def pool_bytes(self) -> int:
        """Return the bytes of the cache."""
        return self.ledger.pool_bytes if self.cache_bytes is None else self.cache_bytes

    @property
    def most_seats(self) -> int | None:
        """Return the sequences whose states the cache holds; None where layers keep none."""
        return replace(self.ledger, told_bytes=self.cache_bytes).most_seats

    @property
    def needed_bytes(self) -> int:
        """Return the cache that the longest request asks for; one of one token where the engine chooses its length."""
        return self.ledger.start_bytes(self.max_model_len or 1)

    @property
    def longest(self) -> int:
        """Return the longest request that the cache holds; 0 for none."""
        fits, too_long = 0, (self.max_model_len or 1) + 1
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self.ledger.start_bytes(middle) <= self.pool_bytes:
                fits = middle
            else:
                too_long = middle
        return fits

    @property
    def fitting_share(self) -> float | None:
        """Return the least share of the memory, in hundredths, with which all fits; None if none should be asked."""
        if self.share is None:
            return None
        hundredths = ceil(100 * (self.ledger.held_bytes + self.needed_bytes) / self.memory_bytes)
        return hundredths / 100 if hundredths <= 100 * MOST_SHARE else None


def _ways_out(run: ServedRun) -> Iterator[str]:
    """Yield what makes it fit, beside a shorter request."""
    if run.fitting_share is not None:
        yield f"--gpu-memory-utilization {run.fitting_share:g}"
    if run.fitting_tp is not None:
        yield f"--tensor-parallel-size {run.fitting_tp}"


@rule(
    id="MEM101",
    name="no-memory-for-cache",
    framework=Framework.VLLM,
    prevents="ValueError: No available memory for the cache blocks. (or torch.OutOfMemoryError as weights are loaded)",
    found_at=FoundAt.BUILD,
    source=SOURCE,
)
def no_memory_for_cache(run: ServedRun) -> Iterator[Found]:
    """Weights, a full step and captured graphs leave some of the engine's memory to its cache.

    The engine takes `--gpu-memory-utilization` of a GPU, loads its weights, measures a step of
    `--max-num-batched-tokens` tokens and its graphs, and gives what is left to the cache of keys and values. Where
    nothing is left it does not start. `--kv-cache-memory-bytes` has to fit beside the same.

    Weights are counted as vLLM allocates them. What a step needs at its peak and what graphs take, vLLM measures on the
    GPU; here it is assumed: four tensors as wide as the model and the widest layer at once, and 1 GiB of graphs.
    """
    if run.holds_the_rest:
        return
    largest = sorted(run.ledger.lines, key=lambda line: -line.num_bytes)[:3]
    words = ", ".join(f"{line.name} {line.num_bytes / GIB:.1f} GiB" for line in largest)
    ways = " or ".join(_ways_out(run)) or "more tensor or pipeline parallelism, or weights of fewer bytes"
    yield Found(
        place=run.start,
        message=f"A GPU needs {run.ledger.held_bytes / GIB:.1f} GiB beside the cache, and the engine has "
        f"{run.room_bytes / GIB:.1f} GiB for it.",
        hint=f"Largest: {words}. It fits with {ways}.",
    )


@rule(
    id="MEM102",
    name="request-exceeds-cache",
    framework=Framework.VLLM,
    prevents="ValueError: To serve at least one request with the model's max seq len (...), (... GiB KV cache is "
    "needed, which is larger than the available KV cache memory",
    found_at=FoundAt.BUILD,
    source=SOURCE,
)
def request_exceeds_cache(run: ServedRun) -> Iterator[Found]:
    """The cache of keys and values holds at least one request of `--max-model-len` tokens.

    The length is the model's own where it is not given. With `auto` the engine takes the longest that fits. Blocks are
    dealt as vLLM 0.32.0 deals them, windows with the steps in flight, and one block is never given out.
    """
    if not run.holds_the_rest or run.max_model_len is None or run.needed_bytes <= run.pool_bytes:
        return
    shorter = (f"--max-model-len {run.longest}",) if run.longest else ()
    ways = " or ".join((*shorter, *_ways_out(run))) or "more tensor or pipeline parallelism"
    yield Found(
        place=run.length_place,
        message=f"A request of {run.max_model_len:,} tokens needs {run.needed_bytes / GIB:.1f} GiB of cache on a GPU, "
        f"which has {run.pool_bytes / GIB:.1f} GiB.",
        hint=f"It fits with {ways}.",
    )


@rule(
    id="MEM103",
    name="sequences-exceed-states",
    framework=Framework.VLLM,
    prevents="ValueError: max_num_seqs (...) exceeds available Mamba cache blocks (...). Each decode sequence requires "
    "one Mamba cache block, so CUDA graph capture cannot proceed.",
    found_at=FoundAt.BUILD,
    source="vllm/config/compilation.py: CompilationConfig; the planner's pool of blocks",
    since="0.20.0",
)
def sequences_exceed_states(run: ServedRun) -> Iterator[Found]:
    """Where layers keep a state (Mamba, linear attention), the cache holds a block for each of `--max-num-seqs`.

    The engine checks that as it captures graphs of steps that only decode, which it does unless `--enforce-eager` or
    its compilation config says otherwise; with such a config nothing is said here. Servers on large GPUs take 1,024
    sequences where nothing is said. What the cache gets rests on an assumed peak of a step and size of graphs, which
    vLLM measures.
    """
    most = run.most_seats
    if most is None or run.max_num_seqs <= most or not run.captures_decode:
        return
    if run.holds_the_rest and run.needed_bytes <= run.pool_bytes:
        yield Found(
            place=run.seqs_place,
            message=f"{run.max_num_seqs:,} sequences need a block of states each, and the cache has {most:,}.",
            hint=f"Say --max-num-seqs {most} or fewer, or give the engine more of the memory.",
        )


RULES: tuple[Rule[ServedRun], ...] = (no_memory_for_cache, request_exceeds_cache, sequences_exceed_states)
