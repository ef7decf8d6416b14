"""The model cut into stages for a pipeline schedule that its layout was not planned for, and what each stage costs.

The cut is the layout's own where the schedule has as many stages in the same places, else one that evens out the ranks'
work, layer by layer.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

from planner.evaluation.pass_prices import StagePasses, stage_passes
from planner.evaluation.priced_step import stage_prices
from planner.layout import Schedule, Stage, stages_from_counts
from planner.ranks.communication import overlapped_transfer_seconds, transfer
from planner.ranks.placement import PlacedModel
from planner.schedule_views.offloaded_schedules import copy_seconds
from planner.schedules.cuts import even_work
from planner.schedules.offload_choice import Sizes
from planner.schedules.passes import PassOrder, PassTimes, peak_bytes_R
from profiles.estimate import CostModel


class NotPricedError(Exception):
    """A schedule cannot run at these degrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The model cut into stages for a schedule, and what each stage costs.

    Args:
        placed: The model under the stages in model order.
        ranks: The rank of each stage, in model order.
        passes: What each of them costs and keeps.
        transfer_seconds: From each stage to the next; the last entry is 0.
        slowdown_seconds: What transfers beside a pass add to it.
        copy_seconds: A copy of what a forward pass keeps to the host, or from it.
    """

    placed: PlacedModel
    ranks: tuple[int, ...]
    passes: tuple[StagePasses, ...]
    transfer_seconds: tuple[float, ...]
    slowdown_seconds: tuple[float, ...]
    copy_seconds: tuple[float, ...]

    @property
    def is_v(self) -> bool:
        """Return whether a rank has the first stage and the last."""
        return len(self.ranks) > self.placed.layout.pp and self.ranks[-1] == self.ranks[0]

    def times(self, chains: tuple[tuple[int, ...], ...]) -> PassTimes:
        """Return what the passes of all stages take, every copy of the model like the first."""
        found = [
            (self.passes[position], self.slowdown_seconds[position], self.transfer_seconds[position])
            for position in _positions(chains)
        ]
        return PassTimes(
            forward_seconds_V=tuple(stage.forward_seconds + slower for stage, slower, _ in found),
            input_gradient_seconds_V=tuple(stage.input_gradient_seconds + slower for stage, slower, _ in found),
            weight_gradient_seconds_V=tuple(stage.weight_gradient_seconds for stage, _, _ in found),
            transfer_seconds_V=tuple(seconds for _, _, seconds in found),
            backward_seconds_V=tuple(stage.backward_seconds + slower for stage, slower, _ in found),
            first_forward_extra_seconds_V=tuple(stage.first_forward_extra_seconds for stage, _, _ in found),
            last_gradient_extra_seconds_V=tuple(stage.last_gradient_extra_seconds for stage, _, _ in found),
        )

    def sizes(self, chains: tuple[tuple[int, ...], ...]) -> Sizes:
        """Return what the passes of all stages keep, every copy of the model like the first."""
        positions_V = _positions(chains)
        return Sizes(
            activation_bytes_V=tuple(self.passes[position].activation_bytes for position in positions_V),
            weight_gradient_bytes_V=tuple(self.passes[position].weight_gradient_bytes for position in positions_V),
            copy_seconds_V=tuple(self.copy_seconds[position] for position in positions_V),
        )

    def more_heads_bytes_R(self, order: PassOrder) -> tuple[int, ...]:
        """Return what each rank holds of the head's tensors beyond those of one micro-batch, which the ledger has."""
        last = {chain[-1] for chain in order.chains}
        heads_R = peak_bytes_R(
            order,
            activation_bytes_V=[int(stage in last) for stage in range(order.num_stages)],
            weight_gradient_bytes_V=[0] * order.num_stages,
        )
        head_bytes = self.placed.rank_model.head.all_saved_bytes
        return tuple(head_bytes * max(0, heads - 1) for heads in heads_R)


def _positions(chains: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Return where in its copy of the model each stage stands."""
    position_V = {stage: position for chain in chains for position, stage in enumerate(chain)}
    return tuple(position_V[stage] for stage in sorted(position_V))


class Cutter:
    """Cuts one layout.

    Args:
        placed: The layout.
        cost_model: Prices operations.
    """

    def __init__(self, placed: PlacedModel, cost_model: CostModel) -> None:
        self._placed = placed
        self._layout = placed.layout
        self._cost_model = cost_model
        self._cuts: dict[tuple[int, ...], Cut] = {}

    def cut(self, ranks: tuple[int, ...]) -> Cut:
        """Return the model cut into a stage for each entry of `ranks`, which says where it runs.

        Raises:
            NotPricedError: Its recomputation holds for its own stages alone.
            profiles.errors.CoverageError: Something has no cost.
        """
        found = self._cuts.get(ranks)
        if found is None:
            found = self._cuts[ranks] = self._new_cut(ranks)
        return found

    def _new_cut(self, ranks: tuple[int, ...]) -> Cut:
        own, pp = self._layout, self._layout.pp
        if own.recompute.num_layers is not None and len(ranks) != len(own.stages):
            raise NotPricedError("a number of recomputed layers is one of each stage, and it has other stages")
        same_places = ranks == tuple(index % pp for index in range(len(own.stages)))
        layout = replace(
            own,
            vpp=len(ranks) // pp,
            schedule=Schedule.INTERLEAVED if len(ranks) > pp else Schedule.ONE_F_ONE_B,
            overlap=replace(own.overlap, p2p=True),
            stages=own.stages if same_places else stages_from_counts(self._even_counts(ranks)),
        )
        placed = replace(self._placed, layout=layout)
        transfers = tuple(
            self._cost_model.collective(
                transfer(
                    layout,
                    pipeline_rank=min(here, there) if abs(here - there) == 1 else here,
                    stream_bytes=placed.rank_model.stream_bytes,
                    capabilities=placed.capabilities,
                )
            ).seconds
            if here != there
            else 0.0
            for here, there in pairwise(ranks)
        )
        passes = stage_passes(placed, self._cost_model)
        slowdown = self._cost_model.transfer_slowdown
        return Cut(
            placed=placed,
            ranks=ranks,
            passes=passes,
            transfer_seconds=(*transfers, 0.0),
            slowdown_seconds=tuple(
                overlapped_transfer_seconds(transfers, stage=index, layout=layout, slowdown=slowdown)
                for index in range(len(ranks))
            ),
            copy_seconds=tuple(copy_seconds(stage.activation_bytes, self._cost_model) for stage in passes),
        )

    def _even_counts(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Return layers for each stage that even out the work of the ranks."""
        kinds = self._placed.rank_model.chain.kinds
        distinct = sorted(set(kinds))
        alone = [
            Stage(first_layer=kinds.index(kind), num_layers=1, has_embedding=False, has_head=False) for kind in distinct
        ]
        ends = [
            Stage(first_layer=0, num_layers=0, has_embedding=True, has_head=False),
            Stage(first_layer=0, num_layers=0, has_embedding=False, has_head=True),
        ]
        stages = (*alone, *ends)
        layout = replace(self._layout, pp=1, vpp=len(stages), stages=stages)
        prices = stage_prices(replace(self._placed, layout=layout), self._cost_model)
        *seconds, embedding, head = [price.forward_seconds + price.backward_seconds for price in prices]
        by_kind = dict(zip(distinct, seconds, strict=True))
        return even_work(
            [by_kind[kind] for kind in kinds], ranks, first_stage_seconds=embedding, last_stage_seconds=head
        )
