"""Layouts that no search has chosen: drawn at random, or a move away from another one.

A drawn layout takes every degree, split and choice at random, narrower than what the target can run by no habit of the
search: tp beyond a node, experts on any grid, stages as uneven as they come, interleaved ones too. What is legal is the
checker's word (`planner.validate`), and the target's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from random import Random

from benchmarks.brute_force import can_say
from benchmarks.points import (
    Mesh,
    Run,
    Use,
    divisors,
    interleaved_split,
    is_legal_use,
    kinds_of,
    mesh_of,
    point,
    splits_model,
    target_has_mesh,
    use_of,
    virtual_stages,
)
from planner.blocks import MixtureOfExperts
from planner.capabilities import CAPABILITIES
from planner.evaluate import simulated_step_seconds
from planner.graph import ModelGraph, Module
from planner.layers import build_graph
from planner.layout import Granularity, Layout, Recompute, stages_from_counts
from planner.memory import memory_ledger, memory_limit_bytes, peak_memory_bytes
from planner.placement import place
from planner.plan import PlannedLayout
from planner.validate import violations
from profiles.estimate import CostModel
from profiles.planned import cost_model_on

FACTORS = (2, 3)
MOST_DRAWS = 200
"""Draws for one legal layout before none is given."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Says of one layout whether it is legal and fits, and how long its step takes; nothing of the search is asked."""

    run: Run

    @cached_property
    def graph(self) -> ModelGraph:
        """Return the model's operators."""
        return build_graph(self.run.model, self.run.workload, eager=CAPABILITIES[self.run.request.target].eager)

    @cached_property
    def cost_model(self) -> CostModel:
        """Return what prices operations."""
        return cost_model_on(self.run.cluster, CAPABILITIES[self.run.request.target].software)

    @cached_property
    def limit_bytes(self) -> int:
        """Return what each GPU may use."""
        return memory_limit_bytes(self.run.cluster.device.memory_bytes, self.run.request.memory_headroom)

    def is_legal(self, layout: Layout) -> bool:
        """Return whether the checker and the target have nothing against a layout but perhaps its memory."""
        unpriced = PlannedLayout(
            layout=layout,
            step_seconds=0.0,
            reevaluated_step_seconds=0.0,
            tokens_per_second_per_gpu=0.0,
            mfu=0.0,
            peak_memory_bytes=0,
            memory_limit_bytes=0,
            memory=(),
            time=(),
            assumptions=(),
            lower_bound_seconds=0.0,
        )
        run = self.run
        return not violations(unpriced, run.model, run.cluster, run.request) and can_say(layout, run)

    def step_seconds(self, layout: Layout) -> float | None:
        """Return the simulated time of a legal layout's step; None where it does not fit into memory."""
        run = self.run
        placed = place(run.model, self.graph, layout, run.workload, CAPABILITIES[run.request.target])
        if peak_memory_bytes(memory_ledger(placed)) > self.limit_bytes:
            return None
        return simulated_step_seconds(placed, self.cost_model)


def drawn_layout(run: Run, random: Random) -> Layout | None:
    """Return a random layout that splits the model and the batch; None where `MOST_DRAWS` did not give one."""
    for _ in range(MOST_DRAWS):
        mesh = _drawn_mesh(run, random)
        batch, rest = divmod(run.workload.global_batch_size, mesh.dp)
        if rest or mesh.pp > run.model.num_layers or not splits_model(mesh, run) or not target_has_mesh(mesh, run):
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
            return replace(layout, stages=stages_from_counts(counts), recompute=recompute)
    return None


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
