"""The rules of the space and the rules of a finished plan draw the same line for every model, dimension and target."""

import itertools
from collections import Counter
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.evaluation.validate import violations
from planner.frameworks.capabilities import CAPABILITIES
from planner.layout import IN_TURN, PIPELINED, Granularity, Layout, Recompute, even_counts, stages_from_counts
from planner.models.layers import build_graph
from planner.models.specs import BlockRun, ModelSpec
from planner.requests.request import Bounds, Constraints, Target
from planner.requests.workload import (
    AttentionKernel,
    DocumentLengths,
    DType,
    Lora,
    Optimizer,
    Packing,
    Precision,
    TrainMethod,
    TrainWorkload,
)
from planner.search.bounds.costs import CostTable
from planner.search.space.dimensions import divisors, interleaved_counts, partial_recompute_layers, recompute_choices
from planner.search.space.enumeration import enumerate_layouts
from planner.search.space.points import Points, Scope
from planner.search.space.space_rules import mesh_rules, recompute_rules, use_rules
from planner.search.splits.candidates import layout_at
from profiles.analytic import AnalyticCostModel
from tests.builders import tiny_dense_model, tiny_planned_layout, tiny_request, two_node_cluster
from tests.examples import examples
from tests.kinds import even_workload, handmade_models

TARGETS = (Target.MEGATRON, Target.DEEPSPEED, Target.ANY)
WORLD = 8
DRAWN_POINTS = 1500
POINTS_OF_EACH_KIND = 12


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Return a small model of any kind, with as many layers as stages or more."""
    model = draw(st.sampled_from((tiny_dense_model(), *handmade_models())))
    longer = draw(st.sampled_from((2, 3)))
    vocabulary = draw(st.sampled_from((500, 512)))
    runs = tuple(BlockRun(block=run.block, count=run.count * longer) for run in model.runs)
    return replace(model, runs=runs, vocab_size=vocabulary)


@st.composite
def workloads(draw: st.DrawFn) -> TrainWorkload:
    """Return a run that breaks some rule at some degrees of some target."""
    seq_len = draw(st.sampled_from((24, 64, 128, 1024)))
    lora = draw(st.sampled_from((None, None, Lora(rank=4, alpha=8.0, target_modules=("qkv",)))))
    documents = DocumentLengths(lengths=(8, 24), weights=(0.5, 0.5), packing=draw(st.sampled_from(Packing)))
    return replace(
        even_workload(seq_len=seq_len),
        global_batch_size=draw(st.sampled_from((4, 12, 16))),
        precision=draw(st.sampled_from((Precision.BF16, Precision.BF16, *Precision))),
        optimizer=draw(st.sampled_from((Optimizer.ADAM, Optimizer.ADAM, Optimizer.SGD))),
        moment_dtype=draw(st.sampled_from((DType.FP32, DType.FP32, DType.BF16))),
        attention_kernel=draw(st.sampled_from(AttentionKernel)),
        method=TrainMethod.PRETRAIN if lora is None else TrainMethod.LORA,
        lora=lora,
        documents=draw(st.sampled_from((None, documents))),
    )


@st.composite
def pins(draw: st.DrawFn) -> Constraints:
    """Return constraints; what the space searches in part only unless it is pinned is always among them."""
    bounds = st.sampled_from((Bounds(allowed=(1, 2)), Bounds(minimum=2), Bounds(maximum=1)))
    others = st.sampled_from(("pp", "vpp", "dp", "ep", "zero_stage", "micro_batch_size", "num_microbatches"))
    return Constraints(
        degrees={
            **{name: Bounds(minimum=1) for name in ("tp", "cp", "etp")},
            **draw(st.dictionaries(others, bounds, max_size=1)),
        },
        recompute=draw(st.sampled_from((None, None, ("none", "full"), ("selective",)))),
        sequence_parallel=draw(st.sampled_from((None, None, False, True))),
        cp_kind=draw(st.sampled_from((None, None, ("ring",), ("ulysses", "ulysses-ring")))),
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and a run on eight GPUs, for a target, under constraints."""

    model: ModelSpec
    workload: TrainWorkload
    constraints: Constraints
    target: Target

    def scope(self) -> Scope:
        """Return what the space would be enumerated for, if all GPUs reached one another without a network."""
        return Scope(
            model=self.model,
            graph=build_graph(self.model, self.workload),
            num_gpus=WORLD,
            fast_domain_size=WORLD,
            workload=self.workload,
            constraints=self.constraints,
            capabilities=CAPABILITIES[self.target],
        )


def cases() -> st.SearchStrategy[Case]:
    return st.builds(Case, model=models(), workload=workloads(), constraints=pins(), target=st.sampled_from(TARGETS))


def meshes() -> list[dict[str, int]]:
    """Return every way to cut the GPUs into the two grids."""
    return [
        {"tp": tp, "cp": cp, "ulysses": ulysses, "pp": pp, "dp": WORLD // (tp * cp * pp), "ep": ep, "etp": etp}
        for tp in divisors(WORLD)
        for cp in divisors(WORLD // tp)
        for pp in divisors(WORLD // (tp * cp))
        for ulysses in divisors(cp)
        for ep in divisors(WORLD // pp)
        for etp in divisors(WORLD // pp // ep)
    ]


def drawn_points(scope: Scope, generator: np.random.Generator) -> Points:
    """Return points of every dimension, most of them legal in none; what the rules never see is left out.

    That is: what no batch splits into, interleaving that does not come out even, more stages than layers, sharding
    that says the same thing twice, and kinds of sharding and recomputation that the target has not.
    """
    target, batch, layers = scope.capabilities, scope.workload.global_batch_size, scope.model.num_layers
    recomputes = recompute_choices(scope.graph, scope.workload, target)
    all_meshes = meshes()
    rows: list[dict[str, int]] = []
    while len(rows) < DRAWN_POINTS:
        row = dict(all_meshes[generator.integers(len(all_meshes))])
        dp, replicas = row["dp"], row["dp"] * row["cp"]
        edp = WORLD // row["pp"] // (row["ep"] * row["etp"])
        orders = (0, 1) if row["cp"] == 1 and min(row["pp"], dp) > 1 and _same_replicas(scope, row, edp) else (0,)
        row["replicas_outermost"] = int(generator.choice(orders))
        row["vpp"] = int(generator.choice((1, 1, 2))) if row["pp"] > 1 else 1
        if batch % dp or (row["vpp"] > 1 and interleaved_counts(layers, row["pp"] * row["vpp"]) is None):
            continue
        row["micro_batch_size"] = int(generator.choice(divisors(batch // dp)))
        row["num_microbatches"] = batch // dp // row["micro_batch_size"]
        row["sequence_parallel"] = int(generator.integers(2)) if row["tp"] > 1 else 0
        row["zero_stage"] = int(generator.integers(4))
        groups = [1]
        if target.hybrid_sharding and row["zero_stage"]:
            groups = [count for count in divisors(replicas) if edp % count == 0]
        row["state_replicas"] = int(generator.choice(groups))
        second = divisors(replicas) if target.secondary_shard and row["zero_stage"] == 3 else (1,)
        row["secondary_shard"] = int(generator.choice(second))
        partial = partial_recompute_layers(scope.model, num_stages=row["pp"] * row["vpp"])
        row["recompute"] = int(generator.integers(len(recomputes)))
        if recomputes[row["recompute"]].is_per_layer and (row["vpp"] > 1 or row["zero_stage"] == 3):
            row["recompute"] = 0
        row["recompute_layers"] = 0
        if partial and target.partial_recompute and generator.integers(3) == 0:
            row["recompute"], row["recompute_layers"] = 0, int(generator.choice(partial))
        parts = (0, 0, 0, 50, 100) if target.offload_zero_stages else (0,)
        row["optimizer_offload"] = row["least_offload"] = int(generator.choice(parts))
        row["parameter_offload"] = int(row["optimizer_offload"] > 0) * int(generator.integers(3))
        row["drive_offload"] = int(row["optimizer_offload"] > 0) * int(generator.choice((0, 0, IN_TURN, PIPELINED)))
        row["offloaded_layers"] = int(generator.choice((0, 0, 0, 1, layers - 1)))
        rows.append(row)
    names = [entry.name for entry in fields(Points)]
    return Points(**{name: np.array([row[name.removesuffix("_X")] for row in rows], dtype=np.int64) for name in names})


def _same_replicas(scope: Scope, row: dict[str, int], edp: int) -> bool:
    return not scope.graph.has_experts or edp == row["dp"]


def placed(points: Points, index: int, scope: Scope) -> Layout:
    """Return a point as a layout, its layers placed as evenly as they go."""
    table = CostTable(
        model=scope.model,
        graph=scope.graph,
        workload=scope.workload,
        cost_model=AnalyticCostModel(two_node_cluster()),
        recomputes=recompute_choices(scope.graph, scope.workload, scope.capabilities),
        capabilities=scope.capabilities,
    )
    layout = layout_at(points, index, table)
    layers = scope.model.num_layers
    if layout.recompute.is_per_layer:
        nothing = Recompute(granularity=Granularity.NONE)
        layout = replace(layout, recompute=replace(layout.recompute, layers=(nothing,) * layers))
    counts = interleaved_counts(layers, layout.pp * layout.vpp) if layout.vpp > 1 else even_counts(layers, layout.pp)
    assert counts is not None
    return replace(layout, stages=stages_from_counts(counts))


def findings(case: Case, layout: Layout) -> list[str]:
    """Return what the checker has against a layout whose price and memory, the hosts' too, are fine."""
    request = replace(tiny_request(), workload=case.workload, constraints=case.constraints, target=case.target)
    found = violations(replace(tiny_planned_layout(), layout=layout), case.model, two_node_cluster(), request)
    return [f"{entry.rule}: {entry.message}" for entry in found if entry.rule != "host-memory"]


def disagreements(case: Case, *, seed: int) -> tuple[list[str], Counter[bool]]:
    """Return the points on which the two disagree, and how many of those looked at were legal."""
    scope = case.scope()
    generator = np.random.default_rng(seed)
    points = drawn_points(scope, generator)
    recomputes = recompute_choices(scope.graph, scope.workload, scope.capabilities)
    broken = list(
        itertools.chain(
            mesh_rules(points, scope), use_rules(points, scope), recompute_rules(points, case.constraints, recomputes)
        )
    )
    if not scope.graph.has_experts:
        # The space has no points with an experts' grid for such a model.
        broken.append(("no experts", (points.ep_X > 1) | (points.etp_X > 1)))
    num_broken_X = np.sum([broken_X for _, broken_X in broken], axis=0)
    # Of the points looked at a third are legal and a third break one rule, where there are any.
    kinds = (np.flatnonzero(num_broken_X == 0), np.flatnonzero(num_broken_X == 1), np.arange(len(points)))
    chosen = [
        generator.choice(indices, size=min(len(indices), POINTS_OF_EACH_KIND), replace=False) for indices in kinds
    ]
    found: list[str] = []
    seen: Counter[bool] = Counter()
    for index in np.concatenate(chosen).tolist():
        layout = placed(points, index, scope)
        messages = findings(case, layout)
        reasons = [reason for reason, broken_X in broken if broken_X[index]]
        seen[not reasons] += 1
        if bool(messages) != bool(reasons):
            found.append(f"{case.target}, {layout}: the space says {reasons}, the checker {messages}")
    return found, seen


@settings(max_examples=examples(few=8, many=30), deadline=None)
@given(case=cases(), seed=st.integers(0, 1000))
def test_the_space_and_the_checker_rule_out_the_same_points_for_every_target(case: Case, seed: int) -> None:
    found, _ = disagreements(case, seed=seed)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", [tiny_dense_model(), *handmade_models()], ids=lambda model: model.name)
def test_among_the_points_compared_are_legal_and_illegal_ones_of_every_target(model: ModelSpec, target: Target) -> None:
    pinned = Constraints(degrees={name: Bounds(minimum=1) for name in ("tp", "cp", "etp")})
    case = Case(model=model, workload=even_workload(seq_len=1024), constraints=pinned, target=target)
    found, seen = disagreements(case, seed=0)
    assert not found, "\n".join(found)
    assert min(seen[False], seen[True]) > 0


@settings(max_examples=20, deadline=None)
@given(case=cases(), data=st.data())
def test_the_checker_has_nothing_against_any_point_of_the_space(case: Case, data: st.DataObject) -> None:
    scope = replace(case.scope(), fast_domain_size=two_node_cluster().fast_domain_size)
    points = enumerate_layouts(scope).points
    if not len(points):
        return
    for index in data.draw(st.lists(st.integers(0, len(points) - 1), min_size=10, max_size=20)):
        layout = placed(points, index, scope)
        assert findings(case, layout) == [], f"{case.target}, {layout}"
