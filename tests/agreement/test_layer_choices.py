"""Recompute of each layer: fronts agree with exhaustive search, and so do the splits and choices of whole points.

The exhaustive side tries every split and every choice of every layer with the simulator and the exact ledger.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.evaluation.evaluate import simulated_step_seconds
from planner.layout import Granularity, Layout, Recompute, stages_from_counts
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.search.bounds.costs import CostTable
from planner.search.bounds.layer_fronts import Fronts, LayerOptions
from planner.search.splits.candidates import Candidate, PointBound, Pricer
from planner.search.splits.settle import settle
from profiles.analytic import AnalyticCostModel
from tests.builders import tiny_dense_model, tiny_workload, two_node_cluster
from tests.examples import examples
from tests.small_spaces import SmallSpace, mixed_models, models, splits_of, workloads

PER_LAYER = Recompute(granularity=Granularity.PER_LAYER)
NOTHING_KNOWN = PointBound(pipeline_seconds=0.0, tail_seconds=0.0)
ROUNDING = 1e-9


def needed_bytes(layers: list[LayerOptions], options: tuple[int, ...], *, in_flight: int, loss_bytes: int) -> int:
    """Return what a stage takes while its backward pass runs, layer by layer from the last one."""
    working, freed = loss_bytes, 0
    for layer, option in reversed(list(zip(layers, options, strict=True))):
        kept = int(layer.kept_bytes_O[option])
        working = max(working, max(layer.all_saved_bytes - kept - freed, 0) + layer.transient_bytes)
        freed += kept
    return in_flight * freed + working


@pytest.mark.parametrize("seed", range(60))
def test_the_fronts_agree_with_every_choice_of_every_layer(seed: int) -> None:
    generator = np.random.default_rng(seed)
    num_kinds, num_layers = int(generator.integers(1, 4)), int(generator.integers(1, 6))
    num_options = int(generator.integers(1, 5))
    options_D = []
    for _ in range(num_kinds):
        saved = int(generator.integers(10, 40))
        kept_O = generator.integers(1, saved + 1, num_options)
        kept_O[0] = saved
        seconds_O = generator.integers(1, 20, num_options).astype(np.float64)
        transient = int(generator.integers(0, 20))
        options_D.append(
            LayerOptions(seconds_O=seconds_O, kept_bytes_O=kept_O, all_saved_bytes=saved, transient_bytes=transient)
        )
    fronts = Fronts(options_D)
    found_some = found_none = 0
    for _ in range(8):
        kinds = tuple(generator.integers(0, num_kinds, num_layers).tolist())
        layers = [options_D[kind] for kind in kinds]
        in_flight, loss = int(generator.integers(1, 4)), int(generator.choice([0, 30]))
        priced = [
            (sum(float(layer.seconds_O[of]) for layer, of in zip(layers, options, strict=True)), need)
            for options in product(range(num_options), repeat=num_layers)
            for need in (needed_bytes(layers, options, in_flight=in_flight, loss_bytes=loss),)
        ]
        for room in sorted({need for _, need in priced})[:: max(len(priced) // 20, 1)]:
            for limit in (room, room - 1):
                best = min((seconds for seconds, need in priced if need <= limit), default=math.inf)
                found = fronts.fastest(kinds, in_flight=in_flight, room_bytes=limit, loss_bytes=loss)
                if found is None:
                    found_none += 1
                    assert math.isinf(best)
                    continue
                found_some += 1
                assert needed_bytes(layers, found, in_flight=in_flight, loss_bytes=loss) <= limit
                assert sum(float(layer.seconds_O[of]) for layer, of in zip(layers, found, strict=True)) == best
    assert found_some
    assert found_none


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """One layout by the simulator and the ledger."""

    layout: Layout
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mesh:
    """A plain pipeline of a small model: its table, with few recompute choices, and a point of it.

    Args:
        space: The space that it is of.
        table: Its costs.
        point: The point with a choice for each layer, its layers not placed.
    """

    space: SmallSpace
    table: CostTable
    point: Layout

    @classmethod
    def of(cls, space: SmallSpace, layout: Layout, *, most_choices: int) -> "Mesh":
        """Return the mesh of a layout, with as many recompute choices at most."""
        modules = [choice for choice in space.table.recomputes if choice.modules][: most_choices - 2]
        ends = [Recompute(granularity=granularity) for granularity in (Granularity.NONE, Granularity.FULL)]
        table = CostTable(
            model=space.model,
            graph=space.graph,
            workload=space.workload,
            cost_model=AnalyticCostModel(space.cluster),
            recomputes=(ends[0], *modules, PER_LAYER, ends[1]),
            capabilities=space.capabilities,
        )
        return cls(space=space, table=table, point=replace(layout, recompute=PER_LAYER))

    @property
    def choices(self) -> tuple[Recompute, ...]:
        """Return the choices of one layer."""
        return tuple(choice for choice in self.table.recomputes if not choice.is_per_layer)

    def every(self) -> Iterator[Priced]:
        """Yield every split with every choice of every layer."""
        num_layers = self.space.model.num_layers
        cost_model = AnalyticCostModel(two_node_cluster())
        placed = self.space.place(self.point)
        fewest = 1 if self.space.workload.lora is not None else 0
        for counts in splits_of(num_layers, self.point.pp):
            if self.point.pp > 1 and min(counts) < fewest:
                continue
            for layers in product(self.choices, repeat=num_layers):
                recompute = replace(PER_LAYER, layers=layers)
                layout = replace(self.point, stages=stages_from_counts(counts), recompute=recompute)
                one = replace(placed, layout=layout)
                yield Priced(
                    layout=layout,
                    seconds=simulated_step_seconds(one, cost_model),
                    peak_bytes=peak_memory_bytes(memory_ledger(one)),
                )

    def best(self, limit_bytes: int) -> Candidate | None:
        """Return the best split with the best choices, as the search finds it."""
        pricer = Pricer(self.table, limit_bytes=limit_bytes)
        outcome = pricer.price(self.point, bound=NOTHING_KNOWN, ceiling_seconds=math.inf)
        found = outcome if isinstance(outcome, Candidate) else None
        if self.point.pp == 1:
            return found
        seconds = math.inf if found is None else found.step_seconds
        settled = settle(pricer, self.point, bound=NOTHING_KNOWN, best_seconds=seconds)
        return settled.better or found


def plain_pipelines(space: SmallSpace) -> list[int]:
    """Return the points of a space with a choice for each layer, on at most two pipeline ranks."""
    per_layer_X = np.array([choice.is_per_layer for choice in space.table.recomputes])[space.points.recompute_X]
    return np.flatnonzero(per_layer_X & (space.points.pp_X <= 2)).tolist()


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    """Return a mesh of a model of three layers of any kinds, more often with two stages than with one."""
    model = draw(st.one_of(models(most_layers=3, kinds=1), mixed_models(most_layers=3)))
    space = SmallSpace(model, draw(workloads()), two_node_cluster())
    points = plain_pipelines(space)
    assume(points)
    return Mesh.of(space, space.layout(draw(st.sampled_from(points))), most_choices=3)


@settings(max_examples=examples(few=8, many=25), deadline=None, derandomize=True)
@given(mesh=meshes(), part=st.floats(0.0, 1.0))
def test_the_search_finds_the_best_of_every_split_and_every_choice(mesh: Mesh, part: float) -> None:
    every = list(mesh.every())
    peaks = sorted({entry.peak_bytes for entry in every})
    for limit in (peaks[0] - 1, peaks[0], peaks[int(part * (len(peaks) - 1))], peaks[-1]):
        best = min((entry.seconds for entry in every if entry.peak_bytes <= limit), default=None)
        found = mesh.best(limit)
        if best is None:
            assert found is None
            continue
        assert found is not None
        assert found.peak_memory_bytes <= limit
        assert math.isclose(found.step_seconds, best, rel_tol=ROUNDING), (found.layout, limit)


def mesh_of_tiny_layers(num_layers: int, pp: int) -> Mesh:
    """Return a pipeline of equal layers, no memory to spare needed."""
    space = SmallSpace(tiny_dense_model(num_layers=num_layers), tiny_workload(), two_node_cluster())
    points = space.points
    wanted = (points.pp_X == pp) & (points.vpp_X == 1) & (points.cp_X == 1) & (points.micro_batch_size_X == 1)
    return Mesh.of(space, space.layout(int(np.flatnonzero(wanted)[0])), most_choices=3)


def best_alike(mesh: Mesh, limit_bytes: int) -> float:
    """Return the step of the best split that recomputes all layers alike, or the first of each stage; else infinite."""
    pricer = Pricer(mesh.table, limit_bytes=limit_bytes)
    num_layers = mesh.space.model.num_layers
    partial = [Recompute(granularity=Granularity.FULL, num_layers=count) for count in range(1, num_layers)]
    best = math.inf
    for recompute in (*mesh.choices, *partial):
        for counts in splits_of(num_layers, mesh.point.pp):
            if min(counts) < (recompute.num_layers or 0):
                continue
            layout = replace(mesh.point, stages=stages_from_counts(counts), recompute=recompute)
            prices = pricer.prices(layout)
            if prices.peak_bytes(layout) <= limit_bytes:
                best = min(best, prices.step_seconds(layout))
    return best


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_layer_by_layer_is_never_worse_than_one_choice_and_better_where_memory_is_tight(pp: int) -> None:
    mesh = mesh_of_tiny_layers(6, pp)
    pricer = Pricer(mesh.table, limit_bytes=1)
    ends = [
        pricer.prices(layout).peak_bytes(layout)
        for granularity in (Granularity.NONE, Granularity.FULL)
        for layout in (
            replace(
                mesh.point,
                stages=stages_from_counts(tuple(6 // pp + (stage < 6 % pp) for stage in range(pp))),
                recompute=Recompute(granularity=granularity),
            ),
        )
    ]
    better = 0
    for limit in np.linspace(min(ends), max(ends), 12).astype(int).tolist():
        found, alike = mesh.best(limit), best_alike(mesh, limit)
        if found is None:
            assert math.isinf(alike)
            continue
        assert found.step_seconds <= alike * (1 + ROUNDING)
        better += found.step_seconds < alike * (1 - 1e-6)
    assert better
