"""One rank's share of a layer: its operations forward and backward, its weights, its saved tensors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from operator import attrgetter
from typing import Any

from planner.layout import Granularity, Recompute
from planner.models.graph import (
    Combine,
    CoreAttention,
    Dispatch,
    ExpertLinear,
    LayerGraph,
    Mesh,
    Module,
    Operator,
    Pointwise,
    Region,
    Saved,
    StateScan,
    Weight,
)
from planner.ranks.sharding import Sharding, split_features
from planner.ranks.step import Step
from planner.ranks.steps import backward_steps, forward_steps, output_gradient_bytes, transient_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """Weight elements on one rank, by the grid that they are laid out on.

    Args:
        dense: Of everything but routed experts; equal on dp times cp ranks.
        expert: Of routed experts; equal on edp ranks.
    """

    dense: int = 0
    expert: int = 0

    def __add__(self, other: "Elements") -> "Elements":
        return Elements(dense=self.dense + other.dense, expert=self.expert + other.expert)

    def __mul__(self, count: int) -> "Elements":
        return Elements(dense=self.dense * count, expert=self.expert * count)

    @property
    def total(self) -> int:
        """Return the elements of both grids."""
        return self.dense + self.expert


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWeight:
    """One rank's part of a weight.

    Args:
        weight: The whole weight.
        num_elements: Elements on this rank, vocabulary padding included.
    """

    weight: Weight
    num_elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSaved:
    """One rank's part of a saved tensor, for one micro-batch."""

    saved: Saved
    num_bytes: int


def rank_weight(weight: Weight, sharding: Sharding) -> RankWeight:
    """Return one rank's part of `weight`.

    Raises:
        ValueError: A split dimension is not a multiple of its degree; legality rules keep such layouts out.
    """
    degree = sharding.tp if weight.mesh is Mesh.DENSE else sharding.etp
    total = 1
    for dim, size in enumerate(weight.shape):
        padded = sharding.padded_vocab_size(size) if dim == weight.vocab_dim else size
        ranks = (degree if dim == weight.split_dim else 1) * (sharding.ep if dim == weight.expert_dim else 1)
        if padded % ranks:
            raise ValueError(f"{weight.name}: dimension of {padded} cannot be split over {ranks} ranks")
        total *= padded // ranks
    return RankWeight(weight=weight, num_elements=total)


def rank_saved(saved: Saved, sharding: Sharding) -> RankSaved:
    """Return one rank's part of a saved tensor."""
    match saved.region:
        case Region.RESIDUAL:
            elements = sharding.residual_tokens * saved.features
        case Region.SHARDED:
            features = sharding.padded_vocab_size(saved.features) if saved.vocab_features else saved.features
            elements = sharding.tokens * split_features(features, sharding.tp, saved.granule)
        case Region.ROUTED:
            elements = sharding.peak_expert_rows(saved.visits) * saved.features
        case Region.EXPERT:
            elements = sharding.peak_expert_rows(saved.visits) * split_features(saved.features, sharding.etp)
    return RankSaved(saved=saved, num_bytes=elements * saved.element_bytes)


@dataclass(frozen=True, kw_only=True, eq=False)
class RankOperator:
    """One rank's share of one operator, for one micro-batch; worked out as it is asked for.

    Args:
        operator: The whole operator.
        sharding: How it is cut.
    """

    operator: Operator
    sharding: Sharding

    @cached_property
    def forward(self) -> tuple[Step, ...]:
        """Return the steps of the forward pass."""
        return tuple(forward_steps(self.operator, self.sharding))

    @cached_property
    def backward(self) -> tuple[Step, ...]:
        """Return the steps of the backward pass, recomputation not included."""
        return tuple(backward_steps(self.operator, self.sharding))

    @cached_property
    def weights(self) -> tuple[RankWeight, ...]:
        """Return this rank's weights."""
        return tuple(rank_weight(weight, self.sharding) for weight in self.operator.weights)

    @cached_property
    def saved(self) -> tuple[RankSaved, ...]:
        """Return the tensors kept for backward."""
        return tuple(rank_saved(saved, self.sharding) for saved in self.operator.saved)

    @cached_property
    def transient_bytes(self) -> int:
        """Return what lives only inside its backward pass."""
        return transient_bytes(self.operator, self.sharding)

    @property
    def weight_gradient_bytes(self) -> int:
        """Return what its gradients of weights read: inputs, kept or produced again, and its output's gradient."""
        inputs = sum(part.num_bytes for part in self.saved if part.saved.weight_input)
        return inputs + output_gradient_bytes(self.operator, self.sharding)


@dataclass(frozen=True, kw_only=True, eq=False)
class RankLayer:
    """One rank's share of one layer, for one micro-batch; worked out as it is asked for.

    Args:
        name: What kind of layer it is.
        operators: Its operators.
        layer_input_bytes: What full recompute keeps instead of saved tensors.
        parts: The same operators in groups that other layers share; their sums are then worked out once for all.
        alike: A part whose operators differ from these in names alone: these take as long and as much.
    """

    name: str
    operators: tuple[RankOperator, ...]
    layer_input_bytes: int
    parts: tuple["RankLayer", ...] = ()
    alike: "RankLayer | None" = None

    @cached_property
    def forward(self) -> tuple[Step, ...]:
        """Return the steps of the forward pass."""
        return tuple(step for operator in self.operators for step in operator.forward)

    @cached_property
    def backward(self) -> tuple[Step, ...]:
        """Return the steps of the backward pass, recomputation not included."""
        return tuple(step for operator in reversed(self.operators) for step in operator.backward)

    @cached_property
    def weights(self) -> tuple[RankWeight, ...]:
        """Return this rank's weights."""
        return tuple(part for operator in self.operators for part in operator.weights)

    @cached_property
    def saved(self) -> tuple[RankSaved, ...]:
        """Return the tensors kept for backward."""
        return tuple(part for operator in self.operators for part in operator.saved)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Return elements (trainable and frozen dense, trainable and frozen expert), operands and bytes saved.

        Behind them the elements, trainable and frozen, of a copy of the embedding's table. Of a layer in parts these
        are the sums over its parts.
        """
        if self.parts:
            return tuple(map(sum, zip(*(part.counts for part in self.parts), strict=True)))
        if self.alike is not None:
            return self.alike.counts
        trained = [part for part in self.weights if part.weight.trainable]
        frozen = [part for part in self.weights if not part.weight.trainable]
        operands = sum(part.num_elements for part in self.weights if part.weight.gemm_operand)
        saved = sum(part.num_bytes for part in self.saved)
        of_grids = (_elements(of, mesh) for mesh in (Mesh.DENSE, Mesh.EXPERT) for of in (trained, frozen))
        shared = ([part for part in of if part.weight.shared_with_embedding] for of in (trained, frozen))
        return *of_grids, operands, saved, *(sum(part.num_elements for part in of) for of in shared)

    @cached_property
    def trainable(self) -> Elements:
        """Return the weight elements that have a gradient."""
        return Elements(dense=self.counts[0], expert=self.counts[2])

    @cached_property
    def frozen(self) -> Elements:
        """Return the weight elements that have none."""
        return Elements(dense=self.counts[1], expert=self.counts[3])

    @property
    def gemm_operands(self) -> int:
        """Return the weight elements that linear layers multiply by."""
        return self.counts[4]

    @cached_property
    def transient_bytes(self) -> int:
        """Return the largest set of tensors that live only inside one operator's backward."""
        if self.alike is not None:
            return self.alike.transient_bytes
        return max((part.transient_bytes for part in self.parts or self.operators), default=0)

    @property
    def shared_elements(self) -> tuple[int, int]:
        """Return the (trainable, frozen) elements of a copy of the embedding's table."""
        return self.counts[6], self.counts[7]

    @property
    def all_saved_bytes(self) -> int:
        """Return the bytes that one micro-batch keeps without recompute."""
        return self.counts[5]

    def saved_bytes(self, recompute: Recompute) -> int:
        """Return the bytes that one micro-batch keeps under `recompute` (every layer recomputed if full)."""
        assert not recompute.is_per_layer, "each layer has a choice of its own"
        if recompute.granularity is Granularity.FULL:
            return self.layer_input_bytes
        return self._kept_bytes(recompute.modules)

    def saved_as(self, name: str) -> tuple[RankSaved, ...]:
        """Return the tensors kept for backward whose names end with `name`."""
        found = self._named.get(name)
        if found is None:
            if self.parts:
                found = tuple(saved for part in self.parts for saved in part.saved_as(name))
            else:
                found = tuple(part for part in self.saved if part.saved.name.endswith(name))
            self._named[name] = found
        return found

    @cached_property
    def _named(self) -> dict[str, tuple[RankSaved, ...]]:
        return {}

    @cached_property
    def _kept(self) -> dict[tuple[str, ...], int]:
        return {}

    def _kept_bytes(self, modules: tuple[str, ...]) -> int:
        """Return the bytes kept when `modules` are recomputed; each answer is remembered."""
        found = self._kept.get(modules)
        if found is None:
            if self.parts:
                found = sum(part._kept_bytes(modules) for part in self.parts)  # noqa: SLF001 - of its own kind
            elif self.alike is not None:
                found = self.alike._kept_bytes(modules)  # noqa: SLF001 - of its own kind
            else:
                found = sum(
                    part.num_bytes for part in self.saved if frozenset(modules).isdisjoint(part.saved.dropped_by)
                )
            self._kept[modules] = found
        return found

    def recomputed_operators(self, recompute: Recompute) -> tuple[RankOperator, ...]:
        """Return the operators whose forward pass backward runs again under `recompute`."""
        assert not recompute.is_per_layer, "each layer has a choice of its own"
        if recompute.granularity is Granularity.FULL:
            return self.operators
        again = frozenset(recompute.modules)
        return tuple(part for part in self.operators if not again.isdisjoint(part.operator.modules))

    def recomputed_steps(self, recompute: Recompute) -> tuple[Step, ...]:
        """Return the forward steps that backward runs again under `recompute`."""
        return tuple(step for operator in self.recomputed_operators(recompute) for step in operator.forward)

    def num_regions(self, recompute: Recompute) -> int:
        """Return how many times one backward pass stops to run something again: once a module, or norm, or layer."""
        assert not recompute.is_per_layer, "each layer has a choice of its own"
        if recompute.granularity is Granularity.FULL:
            return 1
        norms = self._num_norms if Module.LAYER_NORM in recompute.modules else 0
        return norms + len(self._modules.intersection(recompute.modules) - {Module.LAYER_NORM})

    @cached_property
    def _num_norms(self) -> int:
        """Return how many operators are layer norms that may be run again."""
        if self.parts:
            return sum(part._num_norms for part in self.parts)  # noqa: SLF001 - of its own kind
        return sum(Module.LAYER_NORM in part.operator.modules for part in self.operators)

    @cached_property
    def _modules(self) -> frozenset[Module]:
        """Return the modules that some operator belongs to."""
        if self.parts:
            return frozenset().union(*(part._modules for part in self.parts))  # noqa: SLF001 - of its own kind
        return frozenset(module for part in self.operators for module in part.operator.modules)

    @cached_property
    def weight_gradient_bytes(self) -> int:
        """Return what one micro-batch keeps from the gradients of inputs to those of weights, where these wait."""
        return sum(operator.weight_gradient_bytes for operator in self.operators)

    def elements(self, *, trainable: bool | None = None) -> Elements:
        """Return the weight elements on this rank by grid: all, those with a gradient, or those without."""
        if trainable is None:
            return self.trainable + self.frozen
        return self.trainable if trainable else self.frozen


def _elements(parts: Iterable[RankWeight], mesh: Mesh) -> int:
    """Return the elements of those weights that are laid out on one grid."""
    return sum(part.num_elements for part in parts if part.weight.mesh is mesh)


class Feels(StrEnum):
    """Which degrees an operator feels beside tp and the tokens of a rank."""

    NOTHING_ELSE = "nothing else, and of sequences and cp only the tokens that they leave a rank"
    CONTEXT = "how attention crosses cp"
    STATES = "how recurrences cross cp"
    EXPERTS = "the experts' grid"
    ROWS = "the experts' grid, and of everything else only the residual tokens"


EXPERT_REGIONS = frozenset({Region.ROUTED, Region.EXPERT})


def feels(operator: Operator) -> Feels:
    """Return what an operator feels, by its work and by what it owns and keeps."""
    work = operator.work
    if isinstance(work, CoreAttention):
        return Feels.CONTEXT
    if isinstance(work, StateScan):
        return Feels.STATES
    routed = (
        isinstance(work, ExpertLinear | Dispatch | Combine)
        or (isinstance(work, Pointwise) and work.region in EXPERT_REGIONS)
        or any(weight.mesh is Mesh.EXPERT for weight in operator.weights)
        or any(saved.region in EXPERT_REGIONS for saved in operator.saved)
    )
    if not routed:
        return Feels.NOTHING_ELSE
    beside = any(weight.mesh is Mesh.DENSE for weight in operator.weights)
    beside |= any(saved.region is Region.SHARDED for saved in operator.saved)
    return Feels.EXPERTS if beside else Feels.ROWS


_ALWAYS = ("tp", "sequence_parallel", "vocab_divisor")
_CONTEXT = (*_ALWAYS, "micro_batch_size", "seq_len", "cp")
_EXPERTS = ("ep", "etp", "routing_skew", "peak_skew", "moved_experts", "peak_moved_experts")
_FELT: Mapping[Feels, tuple[str, ...]] = {
    Feels.NOTHING_ELSE: (*_ALWAYS, "tokens"),
    Feels.CONTEXT: (*_CONTEXT, "ulysses"),
    Feels.STATES: (*_CONTEXT, "state_exchange"),
    Feels.EXPERTS: (*_ALWAYS, *_EXPERTS, "tokens"),
    Feels.ROWS: ("vocab_divisor", *_EXPERTS, "residual_tokens"),
}
"""What of a sharding each kind of operator feels, where it does not feel sequences one by one their tokens together."""

_FELT_OF = {kind: attrgetter(*names) for kind, names in _FELT.items()}


def reduced(kind: Feels, felt: tuple[Any, ...]) -> Sharding:
    """Return the sharding of which one kind of operator feels so much, and nothing else."""
    *names, last = _FELT[kind]
    names.append("seq_len" if last in ("tokens", "residual_tokens") else last)
    whole: dict[str, Any] = {"tp": 1, "sequence_parallel": False, "micro_batch_size": 1}
    return Sharding(**whole | dict(zip(names, felt, strict=True)))


class Sharder:
    """Cuts layers, and shares between shardings what they have in common.

    Most operators do not feel every degree: a dense layer is cut alike whatever ep is. Shardings are reduced to what an
    operator feels, and the operators of a layer that feel the same form a part; equal parts are one object, and so are
    layers of equal parts.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[int, Feels, tuple[Any, ...]], RankLayer] = {}
        self._numbers: dict[tuple[Operator, ...], int] = {}
        self._first: dict[tuple[int, tuple[Any, ...]], RankLayer] = {}
        self._layers: dict[tuple[int, int, tuple[RankLayer, ...]], RankLayer] = {}
        self._groups: dict[int, tuple[LayerGraph, Mapping[Feels, _Group]]] = {}

    def layer(self, layer: LayerGraph, sharding: Sharding) -> RankLayer:
        """Return one rank's share of `layer`, its operators part by part."""
        parts = tuple(self._part(layer, kind, _FELT_OF[kind](sharding)) for kind in self._groups_of(layer))
        kept = layer.layer_input
        input_bytes = 0 if kept is None else rank_saved(kept, sharding).num_bytes
        found = self._layers.get((id(layer), input_bytes, parts))
        if found is None:
            found = self._layers[id(layer), input_bytes, parts] = RankLayer(
                name=layer.name,
                operators=tuple(operator for part in parts for operator in part.operators),
                layer_input_bytes=input_bytes,
                parts=parts,
            )
        return found

    def _groups_of(self, layer: LayerGraph) -> Mapping[Feels, "_Group"]:
        # Layers are known by identity, far cheaper than equality; they are kept, so that the identity stays theirs.
        known = self._groups.get(id(layer))
        if known is None:
            groups: dict[Feels, list[Operator]] = {}
            for operator in layer.operators:
                groups.setdefault(feels(operator), []).append(operator)
            known = self._groups[id(layer)] = (layer, {kind: self._numbered(found) for kind, found in groups.items()})
        return known[1]

    def _numbered(self, operators: Iterable[Operator]) -> "_Group":
        """Return operators with a number that those share which differ in names alone."""
        found = tuple(operators)
        number = self._numbers.setdefault(tuple(map(_nameless, found)), len(self._numbers))
        return _Group(operators=found, number=number)

    def _part(self, layer: LayerGraph, kind: Feels, felt: tuple[Any, ...]) -> RankLayer:
        key = (id(layer), kind, felt)
        found = self._parts.get(key)
        if found is None:
            group, sharding = self._groups_of(layer)[kind], reduced(kind, felt)
            found = self._parts[key] = RankLayer(
                name=layer.name,
                operators=tuple(RankOperator(operator=operator, sharding=sharding) for operator in group.operators),
                layer_input_bytes=0,
                alike=self._first.get((group.number, felt)),
            )
            self._first.setdefault((group.number, felt), found)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Operators of a layer that feel the same; those of equal numbers differ in names alone."""

    operators: tuple[Operator, ...]
    number: int


def _nameless(operator: Operator) -> Operator:
    """Return an operator without its name and those of what it owns and keeps."""
    return replace(
        operator,
        name="",
        weights=tuple(replace(weight, name="") for weight in operator.weights),
        saved=tuple(replace(saved, name="") for saved in operator.saved),
    )


def shard_layer(layer: LayerGraph, sharding: Sharding) -> RankLayer:
    """Return one rank's share of `layer`, every operator cut by the whole of `sharding`."""
    kept = layer.layer_input
    return RankLayer(
        name=layer.name,
        operators=tuple(RankOperator(operator=operator, sharding=sharding) for operator in layer.operators),
        layer_input_bytes=0 if kept is None else rank_saved(kept, sharding).num_bytes,
    )
