"""What offloaded inference is asked for, and what each runtime can express of an answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Thing(StrEnum):
    """What is divided into places."""

    WEIGHTS = "weights"
    """Of all layers but the routed experts; of a runtime that does not part them, with these."""
    EXPERTS = "experts"
    """Routed experts, in groups of equal popularity."""
    CACHE = "cache"
    """Keys and values."""
    ACTIVATIONS = "activations"
    """What goes from layer to layer."""


class Place(StrEnum):
    """Where something lies."""

    GPU = "gpu"
    PEER = "peer"
    """Memory of another GPU of the node, which does nothing else."""
    HOST = "host"
    DRIVE = "drive"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Use:
    """Where something lies, and who works on it while answers are generated; prompts are always the GPU's.

    Args:
        place: Where.
        on_cpu: The CPU works on it; else the GPU, to which it is brought.
    """

    place: Place
    on_cpu: bool = False

    @property
    def words(self) -> str:
        """Return "host, by the CPU"."""
        names = {Place.GPU: "GPU", Place.PEER: "peer GPUs", Place.HOST: "host", Place.DRIVE: "drive"}
        return f"{names[self.place]}, used by the CPU" if self.on_cpu else names[self.place]


GPU, PEER, HOST, DRIVE = (Use(place=place) for place in Place)
HOST_CPU, DRIVE_CPU = Use(place=Place.HOST, on_cpu=True), Use(place=Place.DRIVE, on_cpu=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to hold and use a thing.

    Args:
        thing: The thing.
        group: Which group of experts, the hottest first; 0 for other things.
        use: Where it lies and who works on it.
    """

    thing: Thing
    group: int
    use: Use


class Target(StrEnum):
    """Who runs the plan."""

    ANY = "any"
    """A runtime with everything that can be planned: FlexGen's blocks, HeteGen's shares, MoE-Gen's modules."""
    VLLM = "vllm"
    DEEPSPEED = "deepspeed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What a target can be told.

    Args:
        uses: For each thing where it may lie.
        parts_experts: Routed experts may lie elsewhere than the other weights.
        whole_layers: Weights lie in one place layer by layer.
        one_place: All weights lie in one place.
        most_batches: Batches of a block at most; None for any number.
        slice_tokens: Prompt tokens that are computed at once; None for those of a whole batch.
        streams_per_slice: Weights are brought again for every slice of the prompts.
        lacks: What it cannot be told, one phrase each.
    """

    uses: Mapping[Thing, tuple[Use, ...]]
    parts_experts: bool
    whole_layers: bool
    one_place: bool
    most_batches: int | None
    slice_tokens: int | None
    streams_per_slice: bool
    lacks: tuple[str, ...]


SLICE_TOKENS = 8192
"""Prompt tokens of one step: vLLM's default of `max_num_batched_tokens` for large GPUs."""

WORDS: Mapping[Target, Words] = MappingProxyType(
    {
        Target.ANY: Words(
            uses={
                Thing.WEIGHTS: (GPU, PEER, HOST, HOST_CPU, DRIVE),
                Thing.EXPERTS: (GPU, PEER, HOST, HOST_CPU, DRIVE),
                Thing.CACHE: (GPU, PEER, HOST, HOST_CPU, DRIVE, DRIVE_CPU),
                Thing.ACTIVATIONS: (GPU, HOST),
            },
            parts_experts=True,
            whole_layers=False,
            one_place=False,
            most_batches=None,
            slice_tokens=SLICE_TOKENS,
            streams_per_slice=False,
            lacks=(),
        ),
        # vLLM 0.32.0, `vllm/config/offload.py`: the backend "prefetch" brings whole layers of a group of layers.
        # `--kv-offloading-size` keeps caches of sequences that are not running; a running one's are on the GPU.
        Target.VLLM: Words(
            uses={Thing.WEIGHTS: (GPU, HOST), Thing.CACHE: (GPU,), Thing.ACTIVATIONS: (GPU,)},
            parts_experts=False,
            whole_layers=True,
            one_place=False,
            most_batches=1,
            slice_tokens=SLICE_TOKENS,
            streams_per_slice=True,
            lacks=(
                "caches of running sequences stay on the GPU",
                "the CPU computes nothing",
                "no weights on a drive or on other GPUs",
                "weights are brought for one batch alone",
            ),
        ),
        # DeepSpeed 0.19.8, `deepspeed/runtime/zero/offload_config.py`: `offload_param` has one device for all of them.
        Target.DEEPSPEED: Words(
            uses={Thing.WEIGHTS: (GPU, HOST, DRIVE), Thing.CACHE: (GPU,), Thing.ACTIVATIONS: (GPU,)},
            parts_experts=False,
            whole_layers=False,
            one_place=True,
            most_batches=1,
            slice_tokens=None,
            streams_per_slice=False,
            lacks=(
                "all weights lie in one place",
                "caches stay on the GPU",
                "the CPU computes nothing",
                "weights are brought for one batch alone",
            ),
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadRequest:
    """What is asked, beside the model and the node.

    Args:
        served_model: The model as an engine finds it.
        prompt_tokens: Tokens of each prompt; shorter ones count as long.
        output_tokens: Tokens generated for each.
        num_sequences: Sequences that there are; None for as many as one likes.
        peers: Other GPUs of the node whose memory may be used.
        cpu_flops_per_second: What products on the CPUs reach; None takes what is assumed of their generation.
        cpu_bytes_per_second: What attention and products on the CPUs read; None takes the host memory's bandwidth.
        weights_name: Format of the weights, in `planner.serving.formats`'s word.
        cache_name: Format of keys and values.
    """

    served_model: str
    prompt_tokens: int
    output_tokens: int
    num_sequences: int | None = None
    peers: int = 0
    cpu_flops_per_second: float | None = None
    cpu_bytes_per_second: float | None = None
    weights_name: str = "bf16"
    cache_name: str = "bfloat16"
