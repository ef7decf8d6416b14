"""When nothing fits: what binds, how much is missing, and that every change that is offered really helps."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.frameworks.capabilities import MEGATRON
from planner.memory.ledger import memory_ledger, memory_limit_bytes, peak_memory_bytes
from planner.models.blocks import Activation, DenseFeedForward, MixtureOfExperts, Router
from planner.models.bundled import load_bundled
from planner.models.specs import BlockRun, ModelSpec
from planner.plans.plan import Infeasible, Plan, Relaxation, Status
from planner.requests.request import Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Precision, TrainWorkload
from planner.search.infeasible import with_nodes
from planner.search.search import search
from profiles.catalogue import load_device, load_preset
from profiles.hardware import Cluster
from tests.builders import tiny_dense_model, tiny_workload, two_node_cluster
from tests.examples import examples
from tests.small_runs import four_gpus
from tests.small_spaces import SmallSpace

GIB = 1 << 30


def asked(workload: TrainWorkload, constraints: Constraints | None = None, *, headroom: float = 0.05) -> PlanRequest:
    return PlanRequest(
        workload=workload,
        constraints=constraints or Constraints(),
        memory_headroom=headroom,
        target=Target.ANY,
        objective=Objective.STEP_TIME,
    )


def applied(relaxation: Relaxation, cluster: Cluster, request: PlanRequest) -> tuple[Cluster, PlanRequest]:
    """Return cluster and request with one change made, by the path that the user would set."""
    part, _, name = relaxation.path.partition(".")
    constraints = request.constraints
    match part, name:
        case "cluster", "nodes":
            return with_nodes(cluster, int(relaxation.value)), request
        case "cluster", "gpu":
            return replace(cluster, device=load_device(relaxation.value)), request
        case "memory_headroom", _:
            return cluster, replace(request, memory_headroom=float(relaxation.value))
        case "constraints", "recompute":
            return cluster, replace(request, constraints=replace(constraints, recompute=None))
        case "constraints", "sequence_parallel":
            return cluster, replace(request, constraints=replace(constraints, sequence_parallel=None))
    assert (part, relaxation.value) == ("constraints", "null")
    degrees = {key: bounds for key, bounds in constraints.degrees.items() if key != name}
    return cluster, replace(request, constraints=replace(constraints, degrees=degrees))


def reasons(plan: Plan) -> Infeasible:
    """Return why nothing fits, after checking what holds of any such answer."""
    assert plan.status is Status.INFEASIBLE
    assert not plan.plans
    assert plan.bound is None
    assert plan.baseline is None
    assert plan.infeasible is not None
    return plan.infeasible


@pytest.fixture(scope="module")
def plan_of_405b() -> Plan:
    workload = TrainWorkload(seq_len=4096, global_batch_size=128, precision=Precision.BF16)
    cluster = load_preset("dgx-h100").to_cluster()
    return search(load_bundled("llama-3.1-405b"), cluster, asked(workload))


@pytest.mark.slow
def test_405b_on_8_gpus_does_not_fit_and_says_by_how_much(plan_of_405b: Plan) -> None:
    found = reasons(plan_of_405b)
    assert found.nearest is not None
    limit = memory_limit_bytes(load_device("h100-sxm-80gb").memory_bytes, 0.05)
    assert found.shortfall_bytes == found.nearest.peak_memory_bytes - limit > 0
    # At least 2 + 4 bytes a parameter and of 4 + 8 what does not lie on the hosts, over 8 GPUs.
    of_parameter = 6 + 12 * (1.0 - found.nearest.layout.offloaded_fraction)
    assert found.nearest.peak_memory_bytes > 405_853_388_800 * of_parameter / 8
    assert found.binding == (
        "GPU memory: the layout that needs least, tp 8, pp 1, dp 1 with none recompute and activations of the first 125"
        " layers on the host, needs "
        f"{found.nearest.peak_memory_bytes / GIB:.2f} GiB a GPU; {limit / GIB:.2f} GiB may be used; tp 8, pp 1, dp 1"
        " would fit with 100 % of optimizer states and the weights on the host, where a node would need 12,413.54 GiB"
        " of its 2,048.00 GiB"
    )
    # Of a parameter 12 bytes of states, 8 and 2 to 4 page-locked of gradients, and 4 and 2 to 4 of 16-bit weights.
    assert 405_853_388_800 * 30 < 12_413.54 * GIB < 405_853_388_800 * 34 + (8 * 8 + 205) * GIB


@pytest.mark.slow
def test_405b_on_8_gpus_fits_on_the_nodes_that_are_offered_and_not_on_one_fewer(plan_of_405b: Plan) -> None:
    nodes = [change for change in reasons(plan_of_405b).relaxations if change.path == "cluster.nodes"]
    assert len(nodes) == 1
    assert nodes[0].change == f"{nodes[0].value} nodes instead of 1"
    count = int(nodes[0].value)
    # What fits within constraints fits without them; to find the best of all takes fifty times as long.
    pins = Constraints(degrees={"tp": Bounds(allowed=(8,))}, recompute=("full",))
    for number, request, fits in (
        (count, replace(plan_of_405b.request, constraints=pins), True),
        (count - 1, plan_of_405b.request, False),
    ):
        cluster = with_nodes(load_preset("dgx-h100").to_cluster(), number)
        assert bool(search(plan_of_405b.model, cluster, request, top=1).plans) == fits


def heavy_model() -> ModelSpec:
    """Return a model of some 0.9 GB of states a layer."""
    model = tiny_dense_model()
    block = model.runs[0].block
    assert isinstance(block.feed_forward, DenseFeedForward)
    wide = replace(block.feed_forward, intermediate_size=1 << 18)
    return replace(model, name="heavy", runs=(BlockRun(block=replace(block, feed_forward=wide), count=4),))


def heavy_experts() -> ModelSpec:
    """Return a model of 8 experts a layer that are a quarter as wide."""
    expert = DenseFeedForward(intermediate_size=1 << 16, gated=True, activation=Activation.SILU)
    experts = MixtureOfExperts(num_experts=8, experts_per_token=2, expert=expert, router=Router())
    block = replace(tiny_dense_model().runs[0].block, feed_forward=experts)
    return replace(tiny_dense_model(), name="heavy experts", runs=(BlockRun(block=block, count=2),))


def sized(memory_bytes: int, cluster: Cluster | None = None) -> Cluster:
    cluster = cluster or two_node_cluster()
    return replace(cluster, device=replace(cluster.device, memory_bytes=memory_bytes))


PINS = st.fixed_dictionaries(
    {},
    optional={
        "tp": st.sampled_from((Bounds(allowed=(1,)), Bounds(maximum=2))),
        "pp": st.sampled_from((Bounds(allowed=(1,)), Bounds(allowed=(2,)))),
        "micro_batch_size": st.just(Bounds(minimum=8)),
        "zero_stage": st.just(Bounds(allowed=(0,))),
    },
)


@settings(max_examples=examples(few=3, many=15), deadline=None, derandomize=True)
@given(
    memory_bytes=st.integers(1_000_000_000, 6_000_000_000),
    degrees=PINS,
    recompute=st.sampled_from((None, ("none",))),
    headroom=st.sampled_from((0.0, 0.3)),
)
def test_every_change_that_is_offered_fits_when_it_is_made(
    memory_bytes: int, degrees: dict[str, Bounds], recompute: tuple[str, ...] | None, headroom: float
) -> None:
    cluster = sized(memory_bytes, four_gpus(gpus_per_node=2))
    workload = replace(tiny_workload(), seq_len=512, global_batch_size=64)
    request = asked(workload, Constraints(degrees=degrees, recompute=recompute), headroom=headroom)
    plan = search(heavy_model(), cluster, request, top=1)
    assume(not plan.plans)
    found = reasons(plan)
    assert found.shortfall_bytes > 0
    assert found.nearest is not None
    assert found.nearest.peak_memory_bytes - found.nearest.memory_limit_bytes == found.shortfall_bytes
    for relaxation in found.relaxations:
        changed_cluster, changed = applied(relaxation, cluster, request)
        assert search(heavy_model(), changed_cluster, changed, top=1).plans, relaxation
    assert len({relaxation.path for relaxation in found.relaxations}) == len(found.relaxations)


@pytest.mark.parametrize(("missing_bytes", "offered"), [(0, True), (1, False)])
def test_the_headroom_is_offered_where_it_is_just_enough(missing_bytes: int, offered: bool) -> None:
    # Stage 3 gathers layers beside what it splits: only the exact ledger knows how much that is.
    pins = Constraints(degrees={name: Bounds(allowed=(1,)) for name in ("tp", "pp", "micro_batch_size")})
    pins = replace(pins, degrees={**pins.degrees, "zero_stage": Bounds(allowed=(3,))}, recompute=("full",))
    pins = replace(pins, optimizer_offload=(0.0,))
    ample = search(heavy_model(), sized(64 * GIB), asked(tiny_workload(), pins, headroom=0.0), top=100)
    needed = min(planned.peak_memory_bytes for planned in ample.plans)
    cluster = sized(needed - missing_bytes)
    tight = reasons(search(heavy_model(), cluster, asked(tiny_workload(), pins, headroom=0.5), top=1))
    headroom = [change for change in tight.relaxations if change.path == "memory_headroom"]
    expected = Relaxation(change="memory_headroom 0 instead of 0.5", path="memory_headroom", value="0")
    assert headroom == ([expected] if offered else [])


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(heavy_model(), id="heavy"),
        pytest.param(tiny_dense_model(), id="tiny"),
        pytest.param(heavy_experts(), id="heavy experts", marks=pytest.mark.slow),
    ],
)
def test_the_layout_that_is_named_needs_least_of_all(model: ModelSpec) -> None:
    workload = replace(tiny_workload(), seq_len=512, global_batch_size=4)
    cluster = sized(1 << 29, four_gpus(gpus_per_node=2))
    spaces = [
        SmallSpace(model, workload, cluster, constraints=Constraints(), offload_percent=part) for part in (0, 100)
    ]
    peaks = [
        peak_memory_bytes(memory_ledger(space.place(split)))
        for space in spaces
        for index in np.flatnonzero(space.points.micro_batch_size_X == 1).tolist()
        for split in space.splits(space.layout(index))
    ]
    found = reasons(search(model, cluster, asked(workload, headroom=0.0))).nearest
    assert found is not None
    assert min(peaks) <= found.peak_memory_bytes <= min(peaks) + GIB // 16  # how closely it is looked for


def test_without_a_legal_layout_the_rule_that_binds_is_named_and_memory_is_not_blamed() -> None:
    pins = Constraints(degrees={"tp": Bounds(allowed=(3,))})
    plan = search(tiny_dense_model(), two_node_cluster(), asked(tiny_workload(), pins))
    found = reasons(plan)
    assert found.nearest is None
    assert found.shortfall_bytes == 0
    considered = plan.search.considered
    assert found.binding == f"no layout of {considered:,} is legal; the last {considered:,} of them: constraints: tp"
    assert Relaxation(change="no constraint on tp", path="constraints.tp", value="null") in found.relaxations


def test_the_rule_that_is_named_is_the_one_that_ruled_out_what_the_others_left() -> None:
    pins = Constraints(degrees={"tp": Bounds(allowed=(2,)), "zero_stage": Bounds(allowed=(3,))})
    request = replace(asked(tiny_workload(), pins), target=Target.MEGATRON)
    model = replace(tiny_dense_model(), rope_scaling={})  # which Megatron-LM cannot say
    plan = search(model, two_node_cluster(), request)
    assert reasons(plan).binding.endswith(f"{MEGATRON.title}: zero_stage above 1 needs tp 1")


def test_the_rule_that_is_named_is_the_one_that_left_nothing() -> None:
    # Every layout without data parallelism breaks the first pin; of the few others none has so large a micro-batch.
    pins = Constraints(degrees={"dp": Bounds(minimum=2), "micro_batch_size": Bounds(minimum=16)})
    plan = search(tiny_dense_model(), two_node_cluster(), asked(tiny_workload(), pins))
    found = reasons(plan)
    first, last = (plan.search.pruned[f"constraints: {name}"] for name in ("dp", "micro_batch_size"))
    # Beside them only context parallelism of so short sequences is ruled out.
    (short,) = (count for rule, count in plan.search.pruned.items() if rule.startswith("cp leaves fewer than"))
    assert first + short + last == plan.search.considered
    assert found.binding.endswith(f"the last {last:,} of them: constraints: micro_batch_size")
    assert [change.path for change in found.relaxations] == ["constraints.dp", "constraints.micro_batch_size"]


def test_stretching_a_cluster_keeps_its_inner_levels() -> None:
    cluster = two_node_cluster()
    wider = with_nodes(cluster, 6)
    assert [level.num_gpus for level in wider.levels] == [4, 24]
    assert wider.world_size == 24
    assert with_nodes(cluster, 1).levels == cluster.levels
