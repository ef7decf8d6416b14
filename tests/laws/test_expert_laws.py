"""Laws of routed experts: what ep and etp save, what they send, and where the two grids meet."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.layout import Granularity, Layout, Recompute
from planner.models.graph import Combine, Dispatch, ExpertLinear, Mesh, Operator, Region, Work
from planner.ranks.communication import data_parallel_traffic, replica_groups, shard_ranks
from planner.ranks.shard import Elements, RankOperator, shard_layer
from planner.ranks.sharding import Sharding
from planner.ranks.step import Step
from planner.search.splits.formulate import skeleton
from profiles.ops import Collective, CollectiveKind, Gemm
from tests.kinds import MICRO_BATCH_SIZE, SEQ_LEN, even_workload, every_model, expert_grids_of, graph_of, unsharded

LAWS = settings(max_examples=60, deadline=None)
NAMES = tuple(model.name for model in every_model() if len(expert_grids_of(model.name)) > 1)


def operators_of(name: str, kind: type[Work] | tuple[type[Work], ...]) -> tuple[Operator, ...]:
    """Return the operators of a model whose work is of a kind."""
    operators = (operator for layer in graph_of(name).layers for operator in layer.operators)
    return tuple(operator for operator in operators if isinstance(operator.work, kind))


def routings(name: str) -> Iterator[tuple[Operator, Dispatch | Combine]]:
    """Yield the operators of a model that send tokens to experts and back, with what they do."""
    for operator in operators_of(name, (Dispatch, Combine)):
        assert isinstance(operator.work, Dispatch | Combine)
        yield operator, operator.work


def growing(name: str, *, etp: int) -> list[Sharding]:
    """Return a sharding for each legal ep, each a multiple of the one before."""
    degrees = sorted(ep for ep, other in expert_grids_of(name) if other == etp and ep & (ep - 1) == 0)
    return [replace(unsharded(), ep=ep, etp=etp) for ep in degrees]


def part_of(operator: Operator, sharding: Sharding) -> RankOperator:
    return RankOperator(operator=operator, sharding=sharding)


def products(steps: tuple[Step, ...]) -> list[Gemm]:
    return [step.compute for step in steps if isinstance(step.compute, Gemm)]


def collectives(operator: Operator, sharding: Sharding, kind: CollectiveKind) -> list[Collective]:
    part = part_of(operator, sharding)
    steps: tuple[Step, ...] = (*part.forward, *part.backward)
    return [step.collective for step in steps if step.collective is not None and step.collective.kind is kind]


@pytest.mark.parametrize("name", NAMES)
def test_more_expert_parallelism_never_costs_a_rank_memory_flops_or_traffic_of_experts(name: str) -> None:
    for etp in (1, 2):
        for fewer, more in pairwise(growing(name, etp=etp)):
            for operator in operators_of(name, (ExpertLinear, Dispatch, Combine)):
                before, after = part_of(operator, fewer), part_of(operator, more)
                held = [sum(part.num_elements for part in rank.weights) for rank in (before, after)]
                if isinstance(operator.work, ExpertLinear):
                    assert 2 * held[1] == held[0], f"{operator.name}: twice the ranks hold half the experts each"
                assert sum(part.num_bytes for part in after.saved) == sum(part.num_bytes for part in before.saved)
                if not isinstance(operator.work, ExpertLinear):
                    continue
                assert after.transient_bytes <= before.transient_bytes, operator.name
                # Fewer and taller products; how well they fill a GPU's units is the cost model's business.
                for few, many in ((after.forward, before.forward), (after.backward, before.backward)):
                    for product, larger in zip(products(few), products(many), strict=True):
                        assert 2 * product.batch == larger.batch
                        assert product.flops <= larger.flops, f"{operator.name}: more flops with ep {more.ep}"
                        assert product.num_bytes <= larger.num_bytes, f"{operator.name}: more traffic with ep {more.ep}"


@LAWS
@given(name=st.sampled_from(NAMES), skew=st.floats(1.0, 8.0), data=st.data())
def test_skew_is_felt_by_the_busiest_rank_where_experts_are_spread(name: str, skew: float, data: st.DataObject) -> None:
    ep, etp = data.draw(st.sampled_from(expert_grids_of(name)))
    even = replace(unsharded(), ep=ep, etp=etp)
    busiest = replace(even_workload(), routing_skew=skew).busiest_rank(ep)
    skewed = replace(even, routing_skew=busiest.on_average, peak_skew=busiest.at_worst)
    for visits in (1, 2, 8):
        rows = even.received_rows(visits)
        assert rows == even.residual_tokens * visits
        felt = skewed.received_rows(visits)
        assert (felt == rows) if ep == 1 else (rows * skew <= felt < rows * skew + 1), f"ep {ep}, skew {skew}"
        assert skewed.expert_rows(visits) == etp * felt
    for layer in graph_of(name).layers:
        for calm, busy in zip(shard_layer(layer, even).saved, shard_layer(layer, skewed).saved, strict=True):
            routed = calm.saved.region in (Region.ROUTED, Region.EXPERT)
            if ep == 1 or not routed:
                assert busy == calm, calm.saved.name
            else:
                assert busy.num_bytes >= calm.num_bytes * skew, calm.saved.name


@LAWS
@given(name=st.sampled_from(NAMES), etp=st.sampled_from((1, 2)))
def test_a_rank_sends_its_experts_the_same_bytes_whatever_ep_is(name: str, etp: int) -> None:
    for operator in operators_of(name, ExpertLinear):
        assert not collectives(operator, replace(unsharded(), ep=2, etp=etp), CollectiveKind.ALL_TO_ALL)
    for operator, work in routings(name):
        bytes_of_visits = MICRO_BATCH_SIZE * SEQ_LEN * work.visits * work.features * work.dtype.num_bytes
        for sharding in growing(name, etp=etp):
            exchanges = collectives(operator, sharding, CollectiveKind.ALL_TO_ALL)
            assert len(exchanges) == (2 if sharding.ep > 1 else 0), "once forward, once backward"
            for exchange in exchanges:
                assert exchange.buffer_bytes == bytes_of_visits
                assert (exchange.size, exchange.stride) == (sharding.ep, etp)


@pytest.mark.parametrize("name", NAMES)
def test_etp_gathers_what_its_ranks_received_and_scatters_it_back(name: str) -> None:
    for ep, etp in expert_grids_of(name):
        if etp == 1:
            continue
        sharding = replace(unsharded(), ep=ep, etp=etp)
        for operator, work in routings(name):
            received = sharding.received_rows(work.visits) * work.features * work.dtype.num_bytes
            gathers, scatters = (
                [part for part in collectives(operator, sharding, kind) if part.size == etp and part.stride == 1]
                for kind in (CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER)
            )
            rows = [part for part in gathers if part.buffer_bytes == etp * received]
            assert len(rows) == len(scatters) == 1, f"{operator.name}: gathered one way, scattered the other"
            assert scatters[0].buffer_bytes == etp * received


@st.composite
def grids(draw: st.DrawFn) -> Layout:
    """Return a layout whose two grids cover the same GPUs."""
    tp, cp, dp = (draw(st.sampled_from((1, 2, 3, 4, 8))) for _ in range(3))
    ranks = tp * cp * dp
    ep = draw(st.sampled_from([degree for degree in range(1, ranks + 1) if ranks % degree == 0]))
    etp = draw(st.sampled_from([degree for degree in range(1, ranks // ep + 1) if (ranks // ep) % degree == 0]))
    return skeleton(
        tp=tp,
        sequence_parallel=tp > 1,
        pp=1,
        vpp=1,
        dp=dp,
        cp=cp,
        ep=ep,
        etp=etp,
        zero_stage=draw(st.integers(0, 3)),
        micro_batch_size=1,
        num_microbatches=1,
        recompute=Recompute(granularity=Granularity.NONE),
    )


@LAWS
@given(layout=grids(), dense=st.integers(0, 10**9), expert=st.integers(0, 10**9))
def test_both_grids_cover_the_same_gpus_and_each_reduces_over_its_own_replicas(
    layout: Layout, dense: int, expert: int
) -> None:
    assert layout.tp * layout.cp * layout.dp == layout.etp * layout.ep * layout.edp
    of_dense, of_expert = replica_groups(layout)
    assert (of_dense.size, of_dense.stride) == (layout.dp * layout.cp, layout.tp)
    assert (of_expert.size, of_expert.stride) == (layout.edp, layout.etp * layout.ep)
    traffic = data_parallel_traffic(Elements(dense=dense, expert=expert), layout, even_workload())
    groups = [group for group, elements in ((of_dense, dense), (of_expert, expert)) if elements]
    for parts in (traffic.reduce, traffic.gather, traffic.gather_again):
        assert not parts or [(part.size, part.stride) for part in parts] == [(g.size, g.stride) for g in groups]
    assert [part.buffer_bytes for part in traffic.reduce] == [4 * count for count in (dense, expert) if count]
    split = (of_dense.size, of_expert.size)
    assert shard_ranks(layout, zero_stage=1) == (split if layout.zero_stage >= 1 else (1, 1))


@LAWS
@given(layout=grids())
def test_a_gpu_is_one_place_in_each_grid(layout: Layout) -> None:
    assume(layout.stage_ranks > 1)
    places = {
        (rank % layout.etp, rank // layout.etp % layout.ep, rank // (layout.etp * layout.ep))
        for rank in range(layout.stage_ranks)
    }
    assert len(places) == layout.stage_ranks
    _, expert = replica_groups(layout)
    for rank in range(expert.stride):
        # Ranks one stride apart hold the same experts, and there are as many of them as replicas.
        held = {
            (other % layout.etp, other // layout.etp % layout.ep)
            for other in range(rank, layout.stage_ranks, expert.stride)
        }
        assert len(held) == 1
        assert len(range(rank, layout.stage_ranks, expert.stride)) == layout.edp


def test_only_expert_weights_lie_on_the_experts_grid() -> None:
    for name in NAMES:
        for layer in graph_of(name).layers:
            rank = shard_layer(layer, unsharded())
            experts = sum(weight.num_elements for weight in layer.weights if weight.mesh is Mesh.EXPERT)
            assert (rank.trainable + rank.frozen).expert == experts
