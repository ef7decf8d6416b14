"""What ranks send outside the layers, by hand."""

from dataclasses import replace

import pytest

from planner.communication import (
    TimedTraffic,
    communicator_sizes,
    data_parallel_traffic,
    exposed_seconds,
    gradient_norm_reduction,
    optimizer_traffic,
    overlapped_transfer_seconds,
    tied_embedding_reduction,
    transfer,
)
from planner.layout import stages_from_counts
from planner.pricing import added_seconds
from planner.workload import DType, Optimizer
from profiles.ops import Collective, CollectiveKind
from tests.builders import tiny_layout, tiny_workload

LAYOUT = replace(tiny_layout(), tp=2, pp=4, dp=8, stages=stages_from_counts((1, 1, 1, 1)))
RUN = tiny_workload()


def test_without_a_sharded_optimizer_gradients_are_reduced_whole() -> None:
    traffic = data_parallel_traffic(1000, replace(LAYOUT, zero_stage=0), RUN)
    assert traffic.reduce == Collective(kind=CollectiveKind.ALL_REDUCE, buffer_bytes=4000, size=8, stride=2)
    assert traffic.gather is None


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_sharded_optimizer_scatters_gradients_and_gathers_parameters(zero_stage: int) -> None:
    traffic = data_parallel_traffic(1000, replace(LAYOUT, zero_stage=zero_stage), RUN)
    assert traffic.reduce == Collective(kind=CollectiveKind.REDUCE_SCATTER, buffer_bytes=4000, size=8, stride=2)
    assert traffic.gather == Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=2000, size=8, stride=2)
    half = data_parallel_traffic(1000, LAYOUT, replace(RUN, gradient_dtype=DType.BF16))
    assert half.reduce.buffer_bytes == 2000


@pytest.mark.parametrize(("elements", "dp", "buckets"), [(40_000_000, 8, 1), (40_000_001, 8, 2), (10**9, 64, 16)])
def test_a_bucket_holds_40_million_elements_or_a_million_a_rank(elements: int, dp: int, buckets: int) -> None:
    assert data_parallel_traffic(elements, replace(LAYOUT, dp=dp), RUN).num_buckets == buckets


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
    assert optimizer_traffic(800, LAYOUT, RUN).num_bytes == 100 * (8 + 24 + 2) + 800 * 4
    assert optimizer_traffic(800, replace(LAYOUT, zero_stage=0), RUN).num_bytes == 800 * (8 + 24 + 2) + 800 * 4
    sgd = replace(RUN, optimizer=Optimizer.SGD)
    assert optimizer_traffic(800, LAYOUT, sgd).num_bytes == 100 * (8 + 16 + 2) + 800 * 4


def test_communicators_of_one_rank() -> None:
    # All ranks, tp, dp, all ranks again for the norm over sharded states, pp.
    assert communicator_sizes(LAYOUT, tied_embedding=False) == (64, 2, 8, 64, 4)
    assert communicator_sizes(LAYOUT, tied_embedding=True) == (64, 2, 8, 64, 4, 2)
    # Whole states: the norm is one replica's.
    assert communicator_sizes(replace(LAYOUT, zero_stage=0), tied_embedding=False) == (64, 2, 8, 8, 4)
    # Overlapped transfers open a pair with each neighbour.
    overlapped = replace(LAYOUT, overlap=replace(LAYOUT.overlap, p2p=True))
    assert communicator_sizes(overlapped, tied_embedding=False) == (64, 2, 8, 64, 2, 2)
    alone = replace(LAYOUT, tp=1, pp=1, dp=1, stages=stages_from_counts((4,)))
    assert communicator_sizes(alone, tied_embedding=True) == ()


def test_overlapped_transfers_slow_down_the_passes_beside_them() -> None:
    overlapped = replace(LAYOUT, overlap=replace(LAYOUT.overlap, p2p=True))
    boundaries = (1.0, 2.0, 4.0)
    lost = [overlapped_transfer_seconds(boundaries, stage=stage, layout=overlapped, slowdown=0.5) for stage in range(4)]
    assert lost == [0.5, 1.5, 3.0, 2.0]
    assert overlapped_transfer_seconds(boundaries, stage=1, layout=LAYOUT, slowdown=0.5) == 0.0
