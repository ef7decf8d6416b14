"""No layout under any order of a checkpoint's experts is better than the plan, which looks at one order of each degree.

Every legal layout and every way to deal four experts to two ranks, of each layer by itself, is priced by the
independent evaluator; with four ranks of one expert each, and one of all, orders make no difference.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from benchmarks.brute_force import splits
from benchmarks.meshes import Run
from benchmarks.points import legal_points
from planner.evaluation.evaluate import simulated_step_seconds
from planner.experts.ordering import reordered
from planner.frameworks.capabilities import CAPABILITIES
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.models.blocks import Activation, DenseFeedForward, MixtureOfExperts, Router
from planner.models.layers import build_graph
from planner.models.specs import BlockRun
from planner.plans.plan import Status
from planner.ranks.placement import place
from planner.requests.expert_orders import ExpertOrder
from planner.requests.request import OFFLOADED_LAYERS, Bounds, Constraints, Target
from planner.requests.routing import Routing
from planner.requests.workload import Precision, TrainWorkload
from planner.search.search import search
from profiles.planned import cost_model_on
from tests.builders import tiny_dense_model, tiny_request
from tests.small_runs import four_gpus, with_memory

PAIRS = ("0,1,2,3", "0,2,1,3", "0,3,1,2")
"""Every way to deal four experts to two ranks."""
PINNED = {name: Bounds(allowed=(1,)) for name in ("tp", "cp", "etp", "vpp")}


def run_of(routing: Routing) -> Run:
    expert = DenseFeedForward(intermediate_size=2048, gated=True, activation=Activation.SILU)
    experts = MixtureOfExperts(num_experts=4, experts_per_token=2, expert=expert, router=Router())
    dense = tiny_dense_model(num_layers=2)
    block = replace(dense.runs[0].block, feed_forward=experts)
    return Run(
        model=replace(dense, runs=(BlockRun(block=block, count=2),)),
        cluster=four_gpus(gpus_per_node=4),
        request=replace(
            tiny_request(),
            workload=TrainWorkload(seq_len=4096, global_batch_size=2, precision=Precision.BF16, routing=routing),
            constraints=Constraints(),
            memory_headroom=0.0,
            target=Target.ANY,
        ),
    )


def priced(run: Run, *, only_ep: int | None) -> Iterator[tuple[int, int, float]]:
    """Yield ep, peak bytes and step seconds of every layout whose other degrees are pinned, of one ep or of all."""
    capabilities, workload = CAPABILITIES[run.request.target], run.workload
    graph = build_graph(run.model, workload, eager=capabilities.eager)
    cost_model = cost_model_on(run.cluster, capabilities.software)
    for layout in legal_points(run):
        if only_ep not in {None, layout.ep} or any(getattr(layout, name) != 1 for name in PINNED):
            continue
        placed = place(run.model, graph, layout, workload, capabilities)
        for split in splits(layout, run):
            under = replace(placed, layout=split)
            yield layout.ep, peak_memory_bytes(memory_ledger(under)), simulated_step_seconds(under, cost_model)


@pytest.mark.parametrize(("seed", "quarters"), [pytest.param(0, 4, marks=pytest.mark.slow), (1, 1)])
def test_no_layout_under_any_order_is_better_than_the_plan(seed: int, quarters: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, 30, (2, 4)).tolist()
    counts = tuple(",".join(map(str, row)) for row in drawn)
    natural = Routing(source="made up", layers=(0, 1), counts=counts)
    layouts: list[tuple[int, int, float]] = []
    for rows in product(PAIRS, repeat=2):
        order = ExpertOrder(ep=2, rows=rows, least_L=(1.0, 1.0))
        run = run_of(replace(natural, orders=(order,)))
        layouts += priced(run, only_ep=None if rows == (PAIRS[0],) * 2 else 2)
    peaks = sorted({peak for _, peak, _ in layouts})
    limit = peaks[(len(peaks) - 1) * quarters // 4]
    run = with_memory(run_of(reordered(natural)), limit)
    for degrees in ((1, 2, 4), (2,)):
        best = min(seconds for ep, peak, seconds in layouts if peak <= limit and ep in degrees)
        constraints = Constraints(
            optimizer_offload=(0.0,),
            degrees={**PINNED, OFFLOADED_LAYERS: Bounds(allowed=(0,)), "ep": Bounds(allowed=degrees)},
            offloaded_modules=(),
        )
        plan = search(run.model, run.cluster, replace(run.request, constraints=constraints))
        assert plan.status is Status.OPTIMAL
        assert plan.best.step_seconds == pytest.approx(best, rel=1e-9)
