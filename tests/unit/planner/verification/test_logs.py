"""The reader of logs takes what training programs print, and nothing else."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.units import GIB, MIB
from planner.verification.logs import OUT_OF_MEMORY, merged, read_log
from tests.unit.planner.verification import printed


def test_every_step_of_megatron_and_the_largest_peak_are_read() -> None:
    log = read_log(printed.megatron_log(14000.0))
    assert list(log.step_seconds) == list(range(1, 11))
    assert log.step_seconds[4] == pytest.approx(14.001)
    assert log.step_seconds[1] == pytest.approx(126.001)
    assert log.peak_bytes == 71680 * MIB
    assert (log.out_of_memory, log.num_skipped) == (False, 0)
    assert log.last_line.startswith("[2026-11-21 10:00:10.104317] iteration       10/")


def test_the_shipped_program_counts_by_its_own_lines() -> None:
    log = read_log(printed.deepspeed_log(7.25))
    assert list(log.step_seconds.values()) == [16.25, *[7.25] * 9]
    assert log.peak_bytes == round(61.5 * GIB)


def test_lines_that_two_ranks_wrote_into_one_are_both_read() -> None:
    text = printed.megatron_step(3, 100.0).rstrip("\n") + printed.megatron_memory(2, rank=4, peak_mib=9000).rstrip("\n")
    log = read_log(text + printed.megatron_memory(2, rank=0, peak_mib=9500) + printed.megatron_step(4, 90.0))
    assert log.step_seconds == {3: 0.1, 4: 0.09}
    assert log.peak_bytes == 9500 * MIB


@given(st.integers(min_value=0, max_value=len(printed.megatron_step(7, 61234.5)) - 1))
def test_a_megatron_line_that_was_cut_off_gives_its_whole_time_or_none(length: int) -> None:
    assert read_log(printed.megatron_step(7, 61234.5)[:length]).step_seconds in ({}, {7: 61.2345})


@given(st.integers(min_value=0, max_value=len(printed.deepspeed_log(7.25, steps=1))))
def test_a_line_of_the_shipped_program_that_was_cut_off_gives_whole_numbers_or_none(length: int) -> None:
    log = read_log(printed.deepspeed_log(7.25, steps=1)[:length])
    assert log.step_seconds in ({}, {1: 16.25})
    assert log.peak_bytes in (None, round(60.5 * GIB))


def test_steps_that_the_loss_scaler_skipped_do_not_count() -> None:
    text = printed.megatron_step(1, 100.0, skipped=1) + printed.megatron_step(2, 101.0)
    log = read_log(text)
    assert log.step_seconds == {2: 0.101}
    assert log.num_skipped == 1


@pytest.mark.parametrize(
    "line",
    [
        printed.OUT_OF_MEMORY,
        "RuntimeError: CUDA error: out of memory",
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 512.00 MiB.",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "node-a:71:201 [0] include/alloc.h:228 NCCL WARN Cuda failure 2 'out of memory'",
        "node-a:71:201 [0] include/alloc.h:228 NCCL WARN Cuda failure 'out of memory'",
    ],
)
def test_memory_that_ran_out_is_seen_whoever_says_it(line: str) -> None:
    assert read_log(f"{printed.megatron_step(1, 5.0)}{line}\n").out_of_memory


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom-kill event(s) in step 71.0 cgroup",
        "torch.distributed.DistBackendError: NCCL error: remote process exited",
        " [x] iteration        1/      10 | out of memory: no",
    ],
)
def test_other_failures_are_no_lack_of_gpu_memory(line: str) -> None:
    assert not read_log(line).out_of_memory


def test_the_expression_is_one_of_grep_too() -> None:
    assert re.search(r"\\|\(\?", OUT_OF_MEMORY) is None


@pytest.mark.parametrize("time", ["nan", "inf", "-5.0", "0.0", "1e3"])
def test_times_that_are_none_do_not_count(time: str) -> None:
    line = printed.megatron_step(5, 1000.0).replace("1000.0 |", f"{time} |", 1)
    assert read_log(line).step_seconds == {}


@given(st.text())
def test_any_text_is_a_log(text: str) -> None:
    log = read_log(text)
    assert log.step_seconds == {}
    assert log.peak_bytes is None


def test_the_logs_of_several_nodes_are_one_run() -> None:
    last = read_log(printed.megatron_log(50.0, peak_mib=8000))
    first = read_log(printed.megatron_memory(2, rank=0, peak_mib=9000) + printed.OUT_OF_MEMORY)
    log = merged([first, last])
    assert log.step_seconds == last.step_seconds
    assert log.peak_bytes == 9000 * MIB
    assert log.out_of_memory
    assert merged([]).step_seconds == {}
