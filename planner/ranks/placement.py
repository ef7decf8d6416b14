"""A model under a layout: one rank's share of every kind of layer, and what each pipeline rank holds of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from planner.frameworks.capabilities import Capabilities
from planner.layout import Layout, Stage
from planner.models.graph import Chain, LayerGraph, ModelGraph
from planner.models.specs import ModelSpec
from planner.ranks.shard import Elements, RankLayer, RankWeight, shard_layer
from planner.ranks.sharding import Sharding, sharding_of
from planner.requests.workload import TrainWorkload


class StageContents(NamedTuple):
    """What a virtual stage holds, wherever it stands: equal contents take equal time and bytes.

    Args:
        counts_D: Layers of each distinct block.
        has_embedding: It starts with the embedding.
        has_head: It ends with the head.
    """

    counts_D: tuple[int, ...]
    has_embedding: bool
    has_head: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class RankModel:
    """One rank's share of every kind of layer of a model.

    Args:
        embedding: The embedding's share.
        layers: The share of each distinct block.
        chain: Which of them each layer is.
        head: The head's share.
        stream_bytes: The residual stream of one micro-batch on this rank.
    """

    embedding: RankLayer
    layers: tuple[RankLayer, ...]
    chain: Chain
    head: RankLayer
    stream_bytes: int

    def stage_layers(self, stage: Stage) -> tuple[RankLayer, ...]:
        """Return the decoder layers of one virtual stage, in order."""
        return self._in_order[stage.first_layer : stage.first_layer + stage.num_layers]

    @cached_property
    def _in_order(self) -> tuple[RankLayer, ...]:
        return tuple(self.layers[kind] for kind in self.chain.kinds)

    def contents(self, stage: Stage) -> StageContents:
        """Return what one virtual stage holds."""
        return self._contents_of(stage)

    @cached_property
    def _contents_of(self) -> Callable[[Stage], StageContents]:
        """Return what says what a stage holds, each answer remembered."""
        return cache(self._count_contents)

    def _count_contents(self, stage: Stage) -> StageContents:
        counts_D = self.chain.counts(stage.first_layer, stage.num_layers)
        return StageContents(counts_D=counts_D, has_embedding=stage.has_embedding, has_head=stage.has_head)

    def stage_counts(self, stage: Stage) -> tuple[tuple[RankLayer, int], ...]:
        """Return each distinct layer of one virtual stage with how often it occurs."""
        return self._run_counts(stage.first_layer, stage.num_layers)

    def counts_from(self, stage: Stage, index: int) -> tuple[tuple[tuple[RankLayer, int], ...], ...]:
        """Return the distinct layers in front of a virtual stage's layer `index`, and those from there on."""
        before = min(index, stage.num_layers)
        first = self._run_counts(stage.first_layer, before)
        return first, self._run_counts(stage.first_layer + before, stage.num_layers - before)

    def _run_counts(self, first_layer: int, num_layers: int) -> tuple[tuple[RankLayer, int], ...]:
        counts = self.chain.counts(first_layer, num_layers)
        return tuple((layer, count) for layer, count in zip(self.layers, counts, strict=True) if count)

    def stage_elements(self, stage: Stage, *, pp: int, trainable: bool | None = None) -> Elements:
        """Return the weight elements that one virtual stage puts on a rank: all, trainable or frozen."""
        return self._elements_of(self.contents(stage), pp=pp, trainable=trainable)

    @cached_property
    def _elements_of(self) -> Callable[..., Elements]:
        """Return what sums up the elements of a stage, each answer remembered."""
        return cache(self._sum_elements)

    def _sum_elements(self, contents: StageContents, *, pp: int, trainable: bool | None) -> Elements:
        total = Elements()
        for layer, count in zip(self.layers, contents.counts_D, strict=True):
            total += layer.elements(trainable=trainable) * count
        if contents.has_embedding:
            total += self.embedding.elements(trainable=trainable)
        if contents.has_head:
            total += self.head_elements(pp=pp, trainable=trainable)
        return total

    def head_elements(self, *, pp: int, trainable: bool | None = None) -> Elements:
        """Return the head's weight elements; a tied table counts only where the embedding is on another rank."""
        trained, frozen, trained_expert, frozen_expert = self.head_counts(pp=pp)
        if trainable is None:
            return Elements(dense=trained + frozen, expert=trained_expert + frozen_expert)
        if trainable:
            return Elements(dense=trained, expert=trained_expert)
        return Elements(dense=frozen, expert=frozen_expert)

    def head_counts(self, *, pp: int) -> tuple[int, int, int, int]:
        """Return the head's elements likewise: trainable and frozen dense, trainable and frozen expert."""
        trained, frozen, trained_expert, frozen_expert = self.head.counts[:4]
        shared, frozen_shared = self.head.shared_elements if pp == 1 else (0, 0)
        return trained - shared, frozen - frozen_shared, trained_expert, frozen_expert

    @property
    def shared_table_elements(self) -> int:
        """Return the trainable elements of the embedding table's copy on the head's rank; 0 without one."""
        return self.head.shared_elements[0]


def shard_model(
    graph: ModelGraph, sharding: Sharding, *, cut: Callable[[LayerGraph, Sharding], RankLayer] = shard_layer
) -> RankModel:
    """Return one rank's share of every kind of layer, each cut by `cut`."""
    return RankModel(
        embedding=cut(graph.embedding, sharding),
        layers=tuple(cut(layer, sharding) for layer in graph.blocks.values()),
        chain=graph.chain,
        head=cut(graph.head, sharding),
        stream_bytes=sharding.residual_tokens * graph.hidden_size * graph.stream_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedModel:
    """A model under one layout: what the ledger is written from.

    Args:
        model: The model.
        rank_model: One rank's share of its layers under the layout's sharding.
        layout: The layout.
        workload: The training run.
        capabilities: What runs it.
    """

    model: ModelSpec
    rank_model: RankModel
    layout: Layout
    workload: TrainWorkload
    capabilities: Capabilities

    def elements(self, pipeline_rank: int, *, trainable: bool | None = None) -> Elements:
        """Return the weight elements on each GPU of one pipeline rank."""
        chunks, pp = self.layout.chunks(pipeline_rank), self.layout.pp
        parts = [self.rank_model.stage_elements(stage, pp=pp, trainable=trainable) for stage in chunks]
        return Elements(dense=sum(part.dense for part in parts), expert=sum(part.expert for part in parts))

    def layer_counts(self, pipeline_rank: int) -> tuple[tuple[RankLayer, int], ...]:
        """Return the distinct decoder layers of one pipeline rank, chunk by chunk, with how often they occur."""
        return tuple(
            part for stage in self.layout.chunks(pipeline_rank) for part in self.rank_model.stage_counts(stage)
        )

    def largest_tensor(self, pipeline_rank: int) -> int:
        """Return the elements of the largest trainable tensor on a pipeline rank, before it is split."""
        return max((part.num_elements for part, _ in self.trainable_tensors(pipeline_rank)), default=0)

    def trainable_tensors(self, pipeline_rank: int) -> tuple[tuple[RankWeight, int], ...]:
        """Return the trainable tensors on a pipeline rank, before they are split, with how often each occurs."""
        held = list(self.layer_counts(pipeline_rank))
        for stage in self.layout.chunks(pipeline_rank):
            held += [(self.rank_model.embedding, 1)] * stage.has_embedding + [
                (self.rank_model.head, 1)
            ] * stage.has_head
        return tuple((part, count) for layer, count in held for part in layer.weights if part.weight.trainable)


def place(
    model: ModelSpec, graph: ModelGraph, layout: Layout, workload: TrainWorkload, capabilities: Capabilities
) -> PlacedModel:
    """Return `model` under `layout`, as the framework of `capabilities` runs it."""
    sharding = sharding_of(layout, workload, vocab_divisor=capabilities.vocab_divisor)
    return PlacedModel(
        model=model,
        rank_model=shard_model(graph, sharding),
        layout=layout,
        workload=workload,
        capabilities=capabilities,
    )
