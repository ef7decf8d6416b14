"""Layouts that no search has chosen: drawn at random, or a move away from another one.

A drawn layout takes every degree, split and choice at random, narrower than what the target can run by no habit of the
search: tp beyond a node, experts on any grid, stages as uneven as they come, interleaved ones too. What is legal is the
checker's word (`planner.evaluation.validate`), and the target's own.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, lru_cache
from math import gcd
from random import Random

from benchmarks.brute_force import can_say
from benchmarks.meshes import Mesh, Run, divisors, kinds_of, splits_model, target_has_mesh
from benchmarks.points import Use, interleaved_split, is_legal_use, mesh_of, point, use_of, virtual_stages
from planner.evaluation.priced_step import LayerPrices, priced_step
from planner.evaluation.validate import layout_violations
from planner.frameworks.capabilities import CAPABILITIES
from planner.layout import Granularity, Layout, Recompute, stages_from_counts
from planner.memory.ledger import memory_limit_bytes
from planner.memory.state_bytes import split_bytes, state_bytes
from planner.models.blocks import MixtureOfExperts
from planner.models.graph import Module
from planner.models.layers import build_graph
from planner.ranks.communication import shard_ranks
from planner.ranks.placement import PlacedModel, RankModel, shard_model
from planner.ranks.shard import Elements
from planner.ranks.sharding import Sharding, sharding_of
from planner.search.splits.rank_peaks import RankPeaks
from profiles.planned import cost_model_on

FACTORS = (2, 3)
MOST_DRAWS = 2_000
"""Draws that give no legal layout before no more are made."""

SHARDINGS_KEPT = 512
"""Shardings of which a judge keeps the layers and their prices; less memory for more time."""


class Verdict(StrEnum):
    """What came of one layout."""

    ILLEGAL = "illegal"
    TOO_LARGE = "too large"
    SLOWER_BY_BOUND = "slower by bound"
    SIMULATED = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One layout's verdict, with the simulated time of its step where that was asked for."""

    verdict: Verdict
    step_seconds: float | None = None


class Judge:
    """Says of layouts whether each is legal and fits, and how long its step takes; nothing of the search is asked.

    One rank's share of the layers depends on a layout's sharding alone, and a layer's price on that and on its
    recompute choice, where nodes are alike: both are kept here for the next layout of the same sharding.

    Args:
        run: What is planned.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._capabilities = CAPABILITIES[run.request.target]
        self._graph = build_graph(run.model, run.workload, eager=self._capabilities.eager)
        self._cost_model = cost_model_on(run.cluster, self._capabilities.software)
        self._limit_bytes = memory_limit_bytes(run.cluster.device.memory_bytes, run.request.memory_headroom)
        self._of_sharding = lru_cache(maxsize=SHARDINGS_KEPT)(self._shared)
        self._elements = cache(self._whole_model)

    def judged(self, layout: Layout, *, ceiling_seconds: float = math.inf) -> Judged:
        """Return the verdict on a layout; a step that takes `ceiling_seconds` at least need not be simulated.

        The quick questions come first. Of several things against a layout the first one counts; whether there is one
        does not depend on their order.
        """
        run = self.run
        broken = layout_violations(layout, run.model, self._graph, run.cluster, run.request)
        if next(broken, None) is not None:
            return Judged(verdict=Verdict.ILLEGAL)
        if self._states_alone_are_too_large(layout):
            return Judged(verdict=Verdict.TOO_LARGE)
        placed, layers = self._placed(layout)
        if any(peak > self._limit_bytes for peak in RankPeaks().of_all(placed)):
            return Judged(verdict=Verdict.TOO_LARGE)
        if not can_say(layout, run):
            return Judged(verdict=Verdict.ILLEGAL)
        step = priced_step(placed, self._cost_model, layers)
        if step.least_seconds() >= ceiling_seconds:
            return Judged(verdict=Verdict.SLOWER_BY_BOUND)
        return Judged(verdict=Verdict.SIMULATED, step_seconds=step.simulated().step_seconds)

    def _states_alone_are_too_large(self, layout: Layout) -> bool:
        """Return whether weights, gradients and states of the whole model overfill the GPUs of all pipeline ranks.

        The heaviest rank holds at least the mean, and rounding up part by part only adds to it; elements do not depend
        on micro-batches or the context. So this says yes only where some rank's ledger does.
        """
        elements = self._elements(layout.tp, layout.ep, layout.etp, min(layout.pp, 2))
        per_element = state_bytes(self.run.workload)
        in_all = sum(
            split_bytes(elements, num_bytes, shard_ranks(layout, zero_stage=zero_stage))
            for zero_stage, num_bytes in (
                (3, per_element.weight),
                (2, per_element.gradient),
                (1, per_element.master + per_element.moments),
            )
        )
        return in_all > layout.pp * self._limit_bytes

    def _whole_model(self, tp: int, ep: int, etp: int, pp: int) -> Elements:
        """Return the elements that all pipeline ranks together hold of a share of the model; with one, no tied copy."""
        sharding = Sharding(
            tp=tp,
            sequence_parallel=False,
            micro_batch_size=1,
            seq_len=self.run.workload.seq_len,
            ep=ep,
            etp=etp,
            vocab_divisor=self._capabilities.vocab_divisor,
        )
        (stage,) = stages_from_counts((self.run.model.num_layers,))
        return shard_model(self._graph, sharding).stage_elements(stage, pp=pp, trainable=True)

    def _placed(self, layout: Layout) -> tuple[PlacedModel, LayerPrices]:
        """Return the model under a layout, and what is known of its layers' prices."""
        divisor = self._capabilities.vocab_divisor
        rank_model, layers = self._of_sharding(sharding_of(layout, self.run.workload, vocab_divisor=divisor))
        placed = PlacedModel(
            model=self.run.model,
            rank_model=rank_model,
            layout=layout,
            workload=self.run.workload,
            capabilities=self._capabilities,
        )
        return placed, layers

    def _shared(self, sharding: Sharding) -> tuple[RankModel, LayerPrices]:
        return shard_model(self._graph, sharding), {}


def random_layouts(run: Run, random: Random) -> Iterator[Layout]:
    """Yield random layouts that split the model and the batch, until `MOST_DRAWS` in a row do not give one."""
    draws = 0
    can_run = cache(lambda mesh: splits_model(mesh, run) and target_has_mesh(mesh, run))
    while draws < MOST_DRAWS:
        draws += 1
        mesh = _drawn_mesh(run, random)
        batch, rest = divmod(run.workload.global_batch_size, mesh.dp)
        if rest or mesh.pp > run.model.num_layers or not can_run(mesh):
            continue
        use = Use(
            vpp=1 if mesh.pp == 1 else random.choice((1, random.randint(1, max(run.model.num_layers // mesh.pp, 1)))),
            micro_batch_size=random.choice(divisors(batch)[:4]),
            sequence_parallel=mesh.tp > 1 and random.random() < 0.7,
            zero_stage=random.choice((0, 1, 1, 1, 2, 3)),
            state_replicas=random.choice((1, 1, 1, *divisors(gcd(mesh.dp * mesh.cp, mesh.edp)))),
            secondary_shard=1,
        )
        if is_legal_use(use, mesh, run):
            layout = point(mesh, use, Recompute(granularity=Granularity.NONE), run)
            counts = _drawn_counts(run.model.num_layers, len(layout.stages), random)
            recompute = _drawn_recompute(run, min(counts), random)
            draws = 0
            yield replace(layout, stages=stages_from_counts(counts), recompute=recompute)


def _drawn_mesh(run: Run, random: Random) -> Mesh:
    """Return a random mesh: every prime factor of the GPUs goes to some degree."""
    degrees = {"tp": 1, "cp": 1, "pp": 1, "dp": 1}
    weights = [random.random() for _ in degrees]
    left = run.cluster.world_size
    while left > 1:
        factor = divisors(left)[1]
        degrees[random.choices(list(degrees), weights)[0]] *= factor
        left //= factor
    ep = etp = 1
    if run.model.has_experts:
        ranks = degrees["tp"] * degrees["cp"] * degrees["dp"]
        experts = [block.feed_forward for block in kinds_of(run.model)]
        most = gcd(*(entry.num_experts for entry in experts if isinstance(entry, MixtureOfExperts)))
        ep = random.choice(divisors(gcd(ranks, most)))
        etp = random.choice((1, random.choice(divisors(ranks // ep))))
    return Mesh(
        **degrees,
        ulysses=random.choice(divisors(degrees["cp"])),
        ep=ep,
        etp=etp,
        replicas_outermost=random.random() < 0.2,
    )


def _drawn_counts(num_layers: int, num_stages: int, random: Random) -> tuple[int, ...]:
    """Return layers of each stage: as even as they come, a few moved about, or cut at random."""
    kind = random.random()
    if kind < 0.3 or num_stages == 1:
        return interleaved_split(num_layers, num_stages)
    if kind < 0.8:
        counts = list(interleaved_split(num_layers, num_stages))
        for _ in range(random.randint(1, 4)):
            giver, taker = random.randrange(num_stages), random.randrange(num_stages)
            if counts[giver] > 1:
                counts[giver] -= 1
                counts[taker] += 1
        return tuple(counts)
    cuts = sorted(random.sample(range(1, num_layers), num_stages - 1))
    ends = (0, *cuts, num_layers)
    return tuple(ends[stage + 1] - ends[stage] for stage in range(num_stages))


def _drawn_recompute(run: Run, fewest: int, random: Random) -> Recompute:
    kind = random.choice(("none", "none", "selective", "full", "partial"))
    target = CAPABILITIES[run.request.target]
    if kind == "selective" and target.selective_recompute:
        modules = random.sample([module.value for module in Module], random.randint(1, 2))
        return Recompute(granularity=Granularity.SELECTIVE, modules=tuple(modules))
    if kind == "partial" and target.partial_recompute and fewest:
        return Recompute(granularity=Granularity.FULL, num_layers=random.randint(1, fewest))
    return Recompute(granularity=Granularity.NONE if kind == "none" else Granularity.FULL)


def moves(layout: Layout, run: Run) -> Iterator[Layout]:
    """Yield every layout one move away; not all of them are legal."""
    yield from _moves_of_degrees(layout, run)
    yield from _moves_of_uses(layout, run)
    yield from _moves_of_recompute(layout, run)
    counts = tuple(stage.num_layers for stage in layout.stages)
    for stage in range(len(counts) - 1):
        for giver, taker in ((stage, stage + 1), (stage + 1, stage)):
            if counts[giver]:
                moved = list(counts)
                moved[giver] -= 1
                moved[taker] += 1
                yield replace(layout, stages=stages_from_counts(tuple(moved)))


def _changed(layout: Layout, run: Run, mesh: Mesh, use: Use) -> Iterator[Layout]:
    """Yield a layout with another mesh or use where these make sense; layers stay where they are, or come out even."""
    batch = run.workload.global_batch_size
    if batch % (mesh.dp * use.micro_batch_size) or mesh.cp % mesh.ulysses or mesh.pp * use.vpp > run.model.num_layers:
        return
    if mesh.tp * mesh.cp * mesh.dp % (mesh.ep * mesh.etp):
        return
    recompute = layout.recompute
    counts = tuple(stage.num_layers for stage in layout.stages)
    if mesh.pp * use.vpp != len(counts):
        counts = interleaved_split(run.model.num_layers, mesh.pp * use.vpp)
        if recompute.num_layers is not None and recompute.num_layers > min(counts):
            recompute = replace(recompute, num_layers=max(min(counts), 1))
    changed = point(mesh, replace(use, sequence_parallel=use.sequence_parallel and mesh.tp > 1), recompute, run)
    yield replace(changed, stages=stages_from_counts(counts))


def _moves_of_degrees(layout: Layout, run: Run) -> Iterator[Layout]:
    """Yield a degree times a factor with another by it, or one of the experts' degrees alone."""
    mesh, use = mesh_of(layout), use_of(layout)
    names = ("tp", "cp", "pp", "dp")
    yield from _changed(layout, run, replace(mesh, replicas_outermost=not mesh.replicas_outermost), use)
    for factor in FACTORS:
        for down in names:
            if getattr(mesh, down) % factor:
                continue
            for up in names:
                if up == down:
                    continue
                degrees = {up: getattr(mesh, up) * factor, down: getattr(mesh, down) // factor}
                cp = degrees.get("cp", mesh.cp)
                for ulysses in {gcd(mesh.ulysses, cp), gcd(mesh.ulysses * factor, cp)}:
                    yield from _changed(layout, run, replace(mesh, **degrees, ulysses=ulysses), use)
        for name in ("ep", "etp", "ulysses"):
            degree = getattr(mesh, name)
            yield from _changed(layout, run, replace(mesh, **{name: degree * factor}), use)
            if degree % factor == 0:
                yield from _changed(layout, run, replace(mesh, **{name: degree // factor}), use)
        if mesh.ep % factor == 0:
            yield from _changed(layout, run, replace(mesh, ep=mesh.ep // factor, etp=mesh.etp * factor), use)


def _moves_of_uses(layout: Layout, run: Run) -> Iterator[Layout]:
    mesh, use = mesh_of(layout), use_of(layout)
    for factor in FACTORS:
        yield from _changed(layout, run, mesh, replace(use, micro_batch_size=use.micro_batch_size * factor))
        if use.micro_batch_size % factor == 0:
            yield from _changed(layout, run, mesh, replace(use, micro_batch_size=use.micro_batch_size // factor))
    for vpp in (*virtual_stages(run.model.num_layers, mesh.pp), use.vpp - 1, use.vpp + 1):
        if 1 <= vpp != use.vpp and (mesh.pp > 1 or vpp == 1):
            yield from _changed(layout, run, mesh, replace(use, vpp=vpp))
    for zero_stage in range(4):
        if zero_stage != use.zero_stage:
            yield from _changed(layout, run, mesh, replace(use, zero_stage=zero_stage))
    for replicas in divisors(gcd(mesh.dp * mesh.cp, mesh.edp)):
        if replicas != use.state_replicas and use.zero_stage:
            yield from _changed(layout, run, mesh, replace(use, state_replicas=replicas))
    if mesh.tp > 1:
        yield from _changed(layout, run, mesh, replace(use, sequence_parallel=not use.sequence_parallel))


def _moves_of_recompute(layout: Layout, run: Run) -> Iterator[Layout]:
    target, fewest = CAPABILITIES[run.request.target], min(stage.num_layers for stage in layout.stages)
    choices = [Recompute(granularity=Granularity.NONE), Recompute(granularity=Granularity.FULL)]
    if target.selective_recompute:
        choices += [Recompute(granularity=Granularity.SELECTIVE, modules=(module.value,)) for module in Module]
    if target.partial_recompute:
        now = layout.recompute.num_layers
        near = (1, fewest) if now is None else (now - 1, now + 1)
        choices += [
            Recompute(granularity=Granularity.FULL, num_layers=layers) for layers in near if 1 <= layers <= fewest
        ]
    for choice in choices:
        if choice != layout.recompute:
            yield replace(layout, recompute=choice)
