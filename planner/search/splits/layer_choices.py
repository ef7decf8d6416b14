"""What is recomputed of each layer of a split: the least seconds within each rank's memory, in exact bytes.

Only backward passes depend on it, and a simulated step never falls when one gets longer: a reduction beside a pass
leaves behind what the pass does not hide, at most as much less as the pass is longer (of two collectives, as with
zero_stage 3, that could be twice as much; no point has that with a choice for each layer). So the stages of a split
are looked at one by one (`planner.search.bounds.layer_fronts`), and the fastest choice of each makes the fastest step.
"""

from dataclasses import replace

from planner.layout import Granularity, Layout, Recompute
from planner.memory.ledger import room_bytes
from planner.memory.saved import head_peak_bytes
from planner.search.splits.point_prices import PointPrices


class LayerChooser:
    """Gives every layer of a split its recompute choice.

    Args:
        prices: Prices splits of the point, which has a choice for each layer.
        limit_bytes: What each GPU may use.
    """

    def __init__(self, prices: PointPrices, *, limit_bytes: int) -> None:
        self._prices = prices
        self._limit_bytes = limit_bytes
        self._found: dict[tuple[object, ...], tuple[int, ...] | None] = {}

    def chosen(self, split: Layout) -> Layout | None:
        """Return a split with the choices that take least time within memory; None where none fit."""
        costs = self._prices.costs
        layers: list[Recompute] = []
        for rank in range(split.pp):
            options = self._of_stage(split, rank)
            if options is None:
                return None
            layers += [costs.recomputes[option] for option in options]
        return replace(split, recompute=Recompute(granularity=Granularity.PER_LAYER, layers=tuple(layers)))

    def _of_stage(self, split: Layout, rank: int) -> tuple[int, ...] | None:
        """Return the recompute choice of each layer of one pipeline rank."""
        stage, costs = split.stages[rank], self._prices.costs
        rank_model = costs.rank_model
        kinds = rank_model.chain.kinds[stage.first_layer : stage.first_layer + stage.num_layers]
        in_flight = min(split.num_microbatches, split.pp - rank)
        key = (kinds, in_flight, rank == 0, rank == split.pp - 1)
        if key not in self._found:
            plain = replace(split, recompute=Recompute(granularity=Granularity.NONE))
            room = room_bytes(self._prices.place(plain), rank, limit_bytes=self._limit_bytes)
            if stage.has_embedding:
                room -= in_flight * rank_model.embedding.all_saved_bytes
            found = costs.layer_fronts.fastest(
                kinds,
                in_flight=in_flight,
                room_bytes=room,
                loss_bytes=head_peak_bytes(rank_model) if stage.has_head else 0,
            )
            self._found[key] = None if found is None else self._in_runs(kinds, found)
        return self._found[key]

    def _in_runs(self, kinds: tuple[int, ...], options: tuple[int, ...]) -> tuple[int, ...]:
        """Return the recompute choices of a stage, of equal layers those that keep least first.

        No layer needs more then: the one that changes places with a later, more frugal one is run again behind it.
        """
        costs = self._prices.costs
        ordered = list(options)
        for kind in set(kinds):
            where = [index for index, of in enumerate(kinds) if of == kind]
            kept_O = costs.layer_options_D[kind].kept_bytes_O
            least_first = sorted((options[index] for index in where), key=lambda option: (int(kept_O[option]), option))
            for index, option in zip(where, least_first, strict=True):
                ordered[index] = option
        return tuple(costs.layer_choices[option] for option in ordered)
