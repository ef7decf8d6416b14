"""What ranks send outside the layers, by hand."""

from dataclasses import replace

import pytest

from planner.frameworks.capabilities import DEEPSPEED
from planner.layout import REPLICAS_OUTERMOST, Layout, stages_from_counts
from planner.ranks.communication import (
    TimedTraffic,
    communicator_sizes,
    data_parallel_traffic,
    exposed_seconds,
    gradient_norm_reduction,
    grid_of,
    optimizer_traffic,
    overlapped_transfer_seconds,
    replica_groups,
    shard_ranks,
    slowdown_beside,
    tied_embedding_reduction,
    transfer,
)
from planner.ranks.pricing import added_seconds
from planner.ranks.shard import Elements
from planner.requests.workload import DType, Optimizer
from profiles.ops import Collective, CollectiveKind
from tests.builders import tiny_layout, tiny_workload

LAYOUT = replace(tiny_layout(), tp=2, pp=4, dp=8, stages=stages_from_counts((1, 1, 1, 1)))
RUN = tiny_workload()


def dense(num_elements: int) -> Elements:
    return Elements(dense=num_elements)


def collective(kind: CollectiveKind, buffer_bytes: int, size: int, stride: int) -> Collective:
    return Collective(kind=kind, buffer_bytes=buffer_bytes, size=size, stride=stride)


def test_without_a_sharded_optimizer_gradients_are_reduced_whole() -> None:
    traffic = data_parallel_traffic(dense(1000), replace(LAYOUT, zero_stage=0), RUN)
    assert traffic.reduce == (collective(CollectiveKind.ALL_REDUCE, 4000, 8, 2),)
    assert traffic.gather == traffic.gather_again == ()


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_sharded_optimizer_scatters_gradients_and_gathers_parameters(zero_stage: int) -> None:
    traffic = data_parallel_traffic(dense(1000), replace(LAYOUT, zero_stage=zero_stage), RUN)
    assert traffic.reduce == (collective(CollectiveKind.REDUCE_SCATTER, 4000, 8, 2),)
    assert traffic.gather == traffic.gather_again == (collective(CollectiveKind.ALL_GATHER, 2000, 8, 2),)
    (half,) = data_parallel_traffic(dense(1000), LAYOUT, replace(RUN, gradient_dtype=DType.BF16)).reduce
    assert half.buffer_bytes == 2000


def test_sharded_weights_are_gathered_whether_they_are_trained_or_not() -> None:
    sharded = replace(LAYOUT, zero_stage=3)
    traffic = data_parallel_traffic(dense(10), sharded, RUN, everything=dense(1000))
    assert traffic.reduce == (collective(CollectiveKind.REDUCE_SCATTER, 40, 8, 2),)
    assert traffic.gather == traffic.gather_again == (collective(CollectiveKind.ALL_GATHER, 2000, 8, 2),)
    whole = data_parallel_traffic(dense(10), replace(LAYOUT, zero_stage=1), RUN, everything=dense(1000))
    assert whole.gather == (collective(CollectiveKind.ALL_GATHER, 20, 8, 2),), "whole weights: only what was updated"


def test_deepspeed_reduces_gradients_whole_before_stage_2() -> None:
    for zero_stage, kind in ((1, CollectiveKind.ALL_REDUCE), (2, CollectiveKind.REDUCE_SCATTER)):
        layout = replace(LAYOUT, zero_stage=zero_stage)
        traffic = data_parallel_traffic(dense(1000), layout, RUN, capabilities=DEEPSPEED)
        assert traffic.reduce == (collective(kind, 4000, 8, 2),)


def test_ranks_that_split_sequences_hold_the_same_weights() -> None:
    traffic = data_parallel_traffic(dense(1000), replace(LAYOUT, cp=2, dp=4), RUN)
    assert traffic.reduce == (collective(CollectiveKind.REDUCE_SCATTER, 4000, 8, 2),)


def test_experts_are_reduced_over_the_ranks_that_hold_the_same_ones() -> None:
    # tp 2 x dp 8 = etp 1 x ep 4 x edp 4: the same experts are 4 ranks apart.
    experts = replace(LAYOUT, ep=4)
    traffic = data_parallel_traffic(Elements(dense=1000, expert=600), experts, RUN)
    assert traffic.reduce == (
        collective(CollectiveKind.REDUCE_SCATTER, 4000, 8, 2),
        collective(CollectiveKind.REDUCE_SCATTER, 2400, 4, 4),
    )
    assert traffic.gather[1] == collective(CollectiveKind.ALL_GATHER, 1200, 4, 4)
    assert traffic.num_buckets == 2
    whole = data_parallel_traffic(Elements(expert=600), replace(experts, zero_stage=0), RUN)
    assert whole.reduce == (collective(CollectiveKind.ALL_REDUCE, 2400, 4, 4),)


def test_hybrid_sharding_scatters_inside_a_group_and_sums_each_part_over_the_groups() -> None:
    traffic = data_parallel_traffic(
        Elements(dense=1000, expert=600), replace(LAYOUT, ep=4, zero_stage=3, state_replicas=2), RUN
    )
    assert traffic.reduce == (
        collective(CollectiveKind.REDUCE_SCATTER, 4000, 4, 2),
        collective(CollectiveKind.ALL_REDUCE, 1000, 2, 8),  # two groups of 4 ranks, 2 apart
        collective(CollectiveKind.REDUCE_SCATTER, 2400, 2, 4),
        collective(CollectiveKind.ALL_REDUCE, 1200, 2, 8),
    )
    assert traffic.gather[0] == collective(CollectiveKind.ALL_GATHER, 2000, 4, 2)


def test_backward_gathers_from_the_second_copy_of_the_weights() -> None:
    secondary = replace(LAYOUT, zero_stage=3, secondary_shard=4)
    traffic = data_parallel_traffic(Elements(dense=1000, expert=600), replace(secondary, ep=8), RUN)
    assert traffic.gather[0] == collective(CollectiveKind.ALL_GATHER, 2000, 8, 2)
    assert traffic.gather_again == (
        collective(CollectiveKind.ALL_GATHER, 2000, 4, 2),
        collective(CollectiveKind.ALL_GATHER, 1200, 2, 8),  # only two ranks hold the same experts
    )


@pytest.mark.parametrize(
    ("zero_stage", "ranks"), [(0, [(1, 1)] * 3), (1, [(8, 4), (1, 1), (1, 1)]), (3, [(8, 4), (8, 4), (8, 4)])]
)
def test_each_zero_stage_splits_over_the_ranks_of_each_grid(zero_stage: int, ranks: list[tuple[int, int]]) -> None:
    layout = replace(LAYOUT, cp=2, dp=4, ep=4, zero_stage=zero_stage)
    assert [shard_ranks(layout, zero_stage=stage) for stage in (1, 2, 3)] == ranks


@pytest.mark.parametrize(("elements", "dp", "buckets"), [(40_000_000, 8, 1), (40_000_001, 8, 2), (10**9, 64, 16)])
def test_a_bucket_holds_40_million_elements_or_a_million_a_rank(elements: int, dp: int, buckets: int) -> None:
    assert data_parallel_traffic(dense(elements), replace(LAYOUT, dp=dp), RUN).num_buckets == buckets


@pytest.mark.parametrize(
    ("beside", "overlapped", "exposed"),
    [(0.0, False, 8.0), (100.0, False, 8.0), (0.0, True, 8.0), (3.0, True, 5.0), (7.5, True, 2.0), (100.0, True, 2.0)],
)
def test_what_does_not_fit_beside_the_pass_and_at_least_a_bucket_is_exposed(
    beside: float, overlapped: bool, exposed: float
) -> None:
    traffic = TimedTraffic(seconds=8.0, num_buckets=4, slowdown=0.0)
    assert exposed_seconds(traffic, beside_seconds=beside, overlapped=overlapped) == exposed


def test_a_hidden_collective_still_slows_the_pass_down() -> None:
    traffic = TimedTraffic(seconds=8.0, num_buckets=100, slowdown=0.25)
    assert exposed_seconds(traffic, beside_seconds=100.0, overlapped=True) == 2.0
    assert added_seconds(8.0, 100.0, slowdown=0.25) == 2.0
    assert added_seconds(8.0, 7.0, slowdown=0.25) == 1.75  # 7 seconds hidden cost more than the one exposed
    assert added_seconds(8.0, 0.0, slowdown=0.25) == 8.0


@pytest.mark.parametrize(("rank", "first", "distance"), [(0, 0, 31), (1, 16, 31), (2, 32, 31), (3, 0, 63)])
def test_activations_reach_from_the_first_sender_to_the_last_receiver(rank: int, first: int, distance: int) -> None:
    assert transfer(LAYOUT, pipeline_rank=rank, stream_bytes=7) == Collective(
        kind=CollectiveKind.SEND_RECV, buffer_bytes=7, size=2, stride=distance, first_rank=first
    )


def test_with_replicas_outermost_stages_are_neighbours_and_replicas_far_apart() -> None:
    layout = replace(tiny_layout(), pp=4, stages=stages_from_counts((1, 1, 1, 1)), rank_order=REPLICAS_OUTERMOST)
    # Ranks of tp 2 and pp 4: a replica is 8 GPUs, a stage two of them.
    sent = transfer(layout, pipeline_rank=1, stream_bytes=100)
    assert (sent.first_rank, sent.stride) == (2, 3)
    assert [layout.first_global_rank(rank) for rank in range(4)] == [0, 2, 4, 6]
    dense_replicas, _ = replica_groups(layout)
    assert (dense_replicas.size, dense_replicas.stride) == (2, 8)
    tied = tied_embedding_reduction(1000, layout, tiny_workload())
    assert tied is not None
    assert tied.stride == 4  # both ends in one replica of 8


def test_a_tied_table_is_reduced_between_first_and_last_rank() -> None:
    assert tied_embedding_reduction(10, LAYOUT, RUN) == Collective(
        kind=CollectiveKind.ALL_REDUCE, buffer_bytes=40, size=2, stride=48
    )
    assert tied_embedding_reduction(0, LAYOUT, RUN) is None
    alone = replace(LAYOUT, pp=1, stages=stages_from_counts((4,)))
    assert tied_embedding_reduction(10, alone, RUN) is None


def test_the_gradient_norm_is_one_number_over_everyone() -> None:
    assert gradient_norm_reduction(LAYOUT) == Collective(
        kind=CollectiveKind.ALL_REDUCE, buffer_bytes=4, size=64, stride=1
    )


def test_the_optimizer_reads_and_writes_its_states() -> None:
    # Each of 100 updated elements: gradient 4 read twice, master and two moments 12 read and written, parameter 2
    # written; 800 gradients of 4 zeroed.
    assert optimizer_traffic(dense(800), LAYOUT, RUN).num_bytes == 100 * (8 + 24 + 2) + 800 * 4
    assert optimizer_traffic(dense(800), replace(LAYOUT, zero_stage=0), RUN).num_bytes == 800 * (8 + 24 + 2) + 800 * 4
    sgd = replace(RUN, optimizer=Optimizer.SGD)
    assert optimizer_traffic(dense(800), LAYOUT, sgd).num_bytes == 100 * (8 + 16 + 2) + 800 * 4
    # Experts are on 2 ranks only, each of which updates half of them.
    both = Elements(dense=800, expert=60)
    assert optimizer_traffic(both, replace(LAYOUT, ep=8), RUN).num_bytes == 130 * (8 + 24 + 2) + 860 * 4


def sizes(layout: Layout, *, tied_embedding: bool = False, has_experts: bool = False) -> tuple[int, ...]:
    sizes = communicator_sizes(grid_of(layout), tied_embedding=tied_embedding, has_experts=has_experts)
    return tuple(size for size in sizes if size > 1)


def test_communicators_of_one_rank() -> None:
    # All ranks, tp, dp, all ranks again for the norm over sharded states, pp.
    assert sizes(LAYOUT) == (64, 2, 8, 64, 4)
    assert sizes(LAYOUT, tied_embedding=True) == (64, 2, 8, 64, 4, 2)
    # Whole states: the norm is one replica's.
    assert sizes(replace(LAYOUT, zero_stage=0)) == (64, 2, 8, 8, 4)
    # Overlapped transfers open a pair with each neighbour.
    overlapped = replace(LAYOUT, overlap=replace(LAYOUT.overlap, p2p=True))
    assert sizes(overlapped) == (64, 2, 8, 64, 2, 2)
    alone = replace(LAYOUT, tp=1, pp=1, dp=1, stages=stages_from_counts((4,)))
    assert sizes(alone, tied_embedding=True) == ()


def test_communicators_of_context_experts_and_groups_of_shards() -> None:
    base = (64, 2, 8, 64)
    # Data parallelism is over dp and cp together; cp; where both kinds are used, each of them.
    assert sizes(replace(LAYOUT, cp=4, dp=2)) == (*base, 4, 4)
    assert sizes(replace(LAYOUT, cp=4, dp=2, ulysses=4)) == (*base, 4, 4)
    assert sizes(replace(LAYOUT, cp=4, dp=2, ulysses=2)) == (*base, 4, 2, 2, 4)
    # ep and edp; with etp that too, and both together, over which tokens are counted.
    assert sizes(replace(LAYOUT, ep=4), has_experts=True) == (*base, 4, 4, 4)
    assert sizes(replace(LAYOUT, ep=4, etp=2), has_experts=True) == (*base, 4, 2, 2, 8, 4)
    # The ranks that split states, and those that hold the same part.
    assert sizes(replace(LAYOUT, state_replicas=2)) == (*base, 4, 2, 4)


def test_overlapped_transfers_slow_down_the_passes_beside_them() -> None:
    overlapped = replace(LAYOUT, overlap=replace(LAYOUT.overlap, p2p=True))
    boundaries = (1.0, 2.0, 4.0)
    lost = [overlapped_transfer_seconds(boundaries, stage=stage, layout=overlapped, slowdown=0.5) for stage in range(4)]
    assert lost == [0.5, 1.5, 3.0, 2.0]
    assert overlapped_transfer_seconds(boundaries, stage=1, layout=LAYOUT, slowdown=0.5) == 0.0


def test_copies_slow_a_pass_down_as_far_as_it_is_known_and_collectives_as_before() -> None:
    def lost(collective_seconds: float, copied_seconds: float, copy_slowdown: float | None) -> float:
        return slowdown_beside(
            collective_seconds=collective_seconds,
            copied_seconds=copied_seconds,
            overlap_slowdown=0.2,
            copy_slowdown=copy_slowdown,
        )

    assert lost(3.0, 1.0, 0.4) == pytest.approx((3.0 * 0.2 + 1.0 * 0.4) / 4.0)
    assert lost(0.0, 1.0, 0.05) == 0.05
    assert lost(3.0, 1.0, None) == lost(3.0, 0.0, 0.4) == lost(0.0, 0.0, 0.4) == 0.2
