"""Modules whose saved tensors wait in host memory between forward and backward pass: what moves, and what stays.

As Megatron-LM does it for `--fine-grained-activation-offloading` (`core/pipeline_parallel/
fine_grained_activation_offload.py` and `core/transformer/transformer_config.py` of core_v0.19.0; `attention.py`,
`multi_latent_attention.py` and `moe/experts.py` open a group around each module). Every module of `--offload-modules`
makes one group in each layer that has it, on every rank, in every micro-batch, with a pipeline and beside selective
recomputation alike:

- what autograd saves inside is copied to page-locked memory behind the module, on one stream for all copies there; the
  tensors that other code still points at are resized to nothing by name (`forced_released_tensors`);
- the copies back, on a stream of their own, keep one layer ahead: the last group of each name stays on the GPU, or was
  fetched as the micro-batch before it ended, and the end of each group's backward pass sends for one more
  (`post_warmup_callback`, `bulk_reload`). A group's backward pass waits for its own.

Plans pass `--fine-grained-offloading-max-inflight-offloads 1`: behind a group, the GPU waits until the group of the
same name in the layer before has left, so that copies to the host never pile up. So a rank has at most `NEAR_LAYERS`
layers' modules on its GPU beside what never moves: two on their way out as one micro-batch ends and another begins,
the one that runs, and the one that was fetched ahead. Megatron-LM counts what is under way for each virtual stage and
micro-batch anew, so of a stage with a single group of some module nothing is bounded, and the ledger counts what all
its micro-batches in flight save. Plans also pass `--min-offloaded-tensor-size 1`: tensors are
resized as a whole and copied in parts (a part for each expert), so every part must be copied, however small.

Norms that are layers of their own and fused experts stay: the group of a norm spans the module behind it, and fused
experts need another kernel.

What is copied and stays nevertheless: the attention's output, where `attn_proj` is not named; and the input of the
first layer of a later pipeline stage, which the schedule keeps for its gradient.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations

from planner.layout import OFFLOADABLE, Granularity, Layout, Recompute, Stage
from planner.models.graph import CoreAttention, ModelGraph, Module
from planner.ranks.shard import RankLayer, RankOperator, RankSaved
from planner.requests.workload import AttentionKernel, TrainWorkload
from profiles.ops import HostCopy, HostPass

QKV, CORE, PROJECTION, EXPERT_INPUT, EXPERT_ACTIVATION = OFFLOADABLE

LEAST_ELEMENTS = 1
MOST_UNDER_WAY = 1
"""What `--min-offloaded-tensor-size` and `--fine-grained-offloading-max-inflight-offloads` are set to."""

NEAR_LAYERS = 4
"""Layers whose modules are on a GPU at once, at most: two on their way out, the one that runs, one fetched ahead."""


_GRANULARITIES = (Granularity.NONE, Granularity.SELECTIVE)
_INPUT = "attention norm input"
_OUTPUT, _GATED = "attention output", "gated attention output"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Module:
    """One module: the operators that run in its group, and the tensors that leave the GPU with it."""

    operators: tuple[str, ...]
    leaving: tuple[str, ...]


_MODULES = {
    QKV: _Module(
        operators=("attention norm", "qkv", "qk norm"),
        leaving=(_INPUT, "attention norm output", "query norm input", "key norm input"),
    ),
    CORE: _Module(operators=("core attention",), leaving=("query", "key", "value", "log-sum-exp")),
    PROJECTION: _Module(operators=("proj",), leaving=(_OUTPUT, _GATED)),
    EXPERT_INPUT: _Module(operators=("expert fc1",), leaving=("expert input",)),
    EXPERT_ACTIVATION: _Module(
        operators=("expert fc2",), leaving=("expert activation input", "expert weights of rows")
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What one module of a layer copies for one micro-batch.

    Args:
        module: Its name.
        tensor_bytes: The tensors that are copied.
        leaving_bytes: What of them is gone from the GPU then.
        in_parts: Each is copied expert by expert, into buffers of their own.
        operators: What runs between its copies: its passes must end before, or begin behind them.
    """

    module: str
    tensor_bytes: tuple[int, ...]
    leaving_bytes: int
    in_parts: bool
    operators: tuple[RankOperator, ...]

    @property
    def num_bytes(self) -> int:
        """Return what is copied."""
        return sum(self.tensor_bytes)


@lru_cache(maxsize=2048)
def groups(layer: RankLayer, recompute: Recompute, modules: tuple[str, ...]) -> tuple[Group, ...]:
    """Return what the modules of a layer copy, in the order of its forward pass; those with nothing to copy left out.

    Args:
        layer: The layer; equal by identity.
        recompute: What is recomputed of it: tensors that are not kept are not copied.
        modules: Modules that are offloaded.
    """
    if recompute.granularity not in _GRANULARITIES:
        return ()
    again = frozenset(recompute.modules)
    kept = {part.saved.name: part for part in layer.saved if again.isdisjoint(part.saved.dropped_by)}
    found = (_group(module, layer, kept) for module in OFFLOADABLE if module in modules)
    return tuple(group for group in found if group.tensor_bytes)


def leaving_bytes(layer: RankLayer, recompute: Recompute, modules: tuple[str, ...]) -> int:
    """Return what of the saved tensors of a layer leaves the GPU, those of one micro-batch."""
    return sum(group.leaving_bytes for group in groups(layer, recompute, modules)) if modules else 0


def has_lone_groups(layers: Sequence[RankLayer], layout: Layout) -> bool:
    """Return whether a virtual stage of these layers has a single group of some module."""
    counted = Counter(
        group.module for layer in layers for group in groups(layer, layout.recompute, layout.offloaded_modules)
    )
    return 1 in counted.values()


def held_input_bytes(layer: RankLayer, stage: Stage, modules: tuple[str, ...]) -> int:
    """Return what of a stage's first layer stays because the schedule keeps it: the input that another rank sent."""
    if QKV not in modules or stage.has_embedding:
        return 0
    return sum(part.num_bytes for part in layer.saved if part.saved.name == _INPUT and _is_fused(layer))


def copy_of(num_bytes: int) -> tuple[HostCopy, HostPass]:
    """Return what a copy keeps busy: the link of its GPU, and the memory of a node whose GPUs copy both ways at once.

    It takes as long as the longer of both.
    """
    return (
        HostCopy(num_bytes=num_bytes, pinned=True),
        HostPass(name="copies of activations", num_bytes=2 * num_bytes),
    )


def module_choices(graph: ModelGraph, workload: TrainWorkload) -> tuple[tuple[str, ...], ...]:
    """Return the sets of modules worth searching, those that move less first.

    Attention goes with its projection, or its output is copied and stays; the experts' two go together.
    """
    present = present_modules(graph, workload)
    parts = ((QKV,), (CORE, PROJECTION), (EXPERT_INPUT, EXPERT_ACTIVATION))
    there = [part for part in parts if set(part) <= set(present)]
    chosen = chain.from_iterable(combinations(there, count) for count in range(1, len(there) + 1))
    return tuple(tuple(chain.from_iterable(parts)) for parts in chosen)


def present_modules(graph: ModelGraph, workload: TrainWorkload) -> tuple[str, ...]:
    """Return the modules of a model that can be offloaded: attention where its scores are never written."""
    names = {operator.name for layer in graph.blocks.values() for operator in layer.operators}
    fused = workload.attention_kernel is not AttentionKernel.UNFUSED
    softmax = any(
        isinstance(operator.work, CoreAttention) for layer in graph.blocks.values() for operator in layer.operators
    )
    there = {
        QKV: "qkv" in names,
        CORE: softmax and fused,
        PROJECTION: softmax and fused,
        EXPERT_INPUT: "expert fc1" in names,
        EXPERT_ACTIVATION: "expert fc1" in names,
    }
    return tuple(module for module in OFFLOADABLE if there[module])


def clashes(recompute: Recompute, modules: Iterable[str]) -> bool:
    """Return whether modules are offloaded whose tensors are not kept, or not each layer's in the same way."""
    named = set(modules)
    again = set(recompute.modules)
    if recompute.granularity not in _GRANULARITIES:
        return True
    if CORE in named and again & {Module.CORE_ATTENTION, Module.MLA_UP_PROJECTION}:
        return True
    return Module.MOE in again and bool(named & {EXPERT_INPUT, EXPERT_ACTIVATION})


def _group(module: str, layer: RankLayer, kept: dict[str, RankSaved]) -> Group:
    of_module = _MODULES[module]
    leaving = [name for name in of_module.leaving if name in kept]
    staying: list[str] = []
    if module == QKV and not _is_fused(layer):
        leaving = [name for name in leaving if name != _INPUT]
    if module == CORE and leaving:
        staying = [_OUTPUT] if _OUTPUT in kept else []
    if module == PROJECTION and _GATED in kept:
        leaving = [_GATED]  # the gate still points at the attention's output
    return Group(
        module=module,
        tensor_bytes=tuple(kept[name].num_bytes for name in (*leaving, *staying)),
        leaving_bytes=sum(kept[name].num_bytes for name in leaving),
        in_parts=module in (EXPERT_INPUT, EXPERT_ACTIVATION),
        operators=tuple(part for part in layer.operators if part.operator.name in of_module.operators),
    )


def _is_fused(layer: RankLayer) -> bool:
    """Return whether the norm in front of queries, keys and values is a part of their product."""
    norms = (part.operator for part in layer.operators if part.operator.name == "attention norm")
    return all(Module.LAYER_NORM not in norm.modules for norm in norms)
