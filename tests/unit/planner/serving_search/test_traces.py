"""Recorded requests: what ranks are dealt of them, and what engines bear of bursts."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from planner.emit.vllm_bench import BENCH_FILE
from planner.serving.traffic import Requests
from planner.serving_plans.plan import ServeStatus
from planner.serving_search.closed_form import best_of_both
from planner.serving_search.field import field_of
from planner.serving_search.inputs import ServeInputs, load_serve_inputs
from planner.serving_search.launch import serve_files
from planner.serving_search.search import plan_serving
from planner.serving_search.simulated import bearing
from planner.serving_search.traffic import mean_of, requests_of_trace
from tests.served import SMALL

REQUESTS = 1500


def recorded(folder: Path, gaps_N: np.ndarray, *, more: str = "") -> ServeInputs:
    """Return a spec with a trace of requests of different lengths, with these seconds between them."""
    lengths = np.random.default_rng(7)
    rows = [
        f"{arrival:.6f},{prompt},{output}"
        for arrival, prompt, output in zip(
            np.cumsum(gaps_N) - gaps_N[0],
            lengths.integers(100, 2000, len(gaps_N)),
            lengths.integers(2, 300, len(gaps_N)),
            strict=True,
        )
    ]
    (folder / "trace.csv").write_text("arrival,input_tokens,output_tokens\n" + "\n".join(rows))
    text = SMALL.replace("input: 1000", "trace: trace.csv\n  arrivals: trace").replace("  output: 200\n", "")
    (folder / "spec.yaml").write_text(text + more)
    return load_serve_inputs(folder / "spec.yaml")


def poisson_gaps() -> np.ndarray:
    return np.random.default_rng(3).exponential(0.25, REQUESTS)


def bursts() -> np.ndarray:
    """Return gaps with the same mean: tenths of the trace in turn eight times as fast as the others."""
    gaps_N = poisson_gaps()
    fast_N = (np.arange(REQUESTS) // (REQUESTS // 10)) % 2 == 0
    burst_N: np.ndarray = np.where(fast_N, gaps_N / 8, gaps_N)
    burst_N *= gaps_N.sum() / burst_N.sum()
    return burst_N


def requests_in(lists: tuple[Requests, ...]) -> Counter[tuple[float, int, int]]:
    """Return the requests of lists, with how often each is there."""
    return Counter(
        request
        for one in lists
        for request in zip(one.arrivals_N.tolist(), one.prompts_N.tolist(), one.outputs_N.tolist(), strict=True)
    )


def test_every_request_goes_to_one_rank_at_the_time_at_which_it_was_recorded(tmp_path: Path) -> None:
    request = recorded(tmp_path, poisson_gaps()).request
    trace = request.workload.trace
    assert trace is not None
    lists = requests_of_trace(request, count=REQUESTS, per_second=trace.requests_per_second / 4)
    assert len(lists) == 4
    assert requests_in(lists) == Counter(zip(trace.arrivals_N, trace.prompts_N, trace.outputs_N, strict=True))
    for one in lists:
        assert one.count == pytest.approx(REQUESTS / 4, rel=0.15)


def test_a_rank_with_more_of_the_load_has_what_it_had_with_less(tmp_path: Path) -> None:
    request = recorded(tmp_path, poisson_gaps()).request
    (few,) = requests_of_trace(request, count=1, per_second=0.5)
    (more,) = requests_of_trace(request, count=1, per_second=0.8)
    assert requests_in((few,)) < requests_in((more,))


def test_independent_arrivals_stay_independent(tmp_path: Path) -> None:
    # Every tenth request of a Poisson process would come almost by the beat.
    request = recorded(tmp_path, poisson_gaps()).request
    (dealt,) = requests_of_trace(request, count=1, per_second=0.4)
    gaps_N = np.diff(dealt.arrivals_N)
    assert float(gaps_N.std() / gaps_N.mean()) == pytest.approx(1.0, abs=0.2)


def test_more_than_all_requests_come_faster(tmp_path: Path) -> None:
    request = recorded(tmp_path, poisson_gaps()).request
    trace = request.workload.trace
    assert trace is not None
    (faster,) = requests_of_trace(request, count=1, per_second=trace.requests_per_second * 5)
    assert faster.arrivals_N.tolist() == pytest.approx([arrival / 5 for arrival in trace.arrivals_N])


def test_a_part_of_a_trace_is_its_fastest(tmp_path: Path) -> None:
    request = recorded(tmp_path, bursts()).request
    trace = request.workload.trace
    assert trace is not None
    (part,) = requests_of_trace(request, count=1, per_second=trace.requests_per_second, most=100)
    spans = [trace.arrivals_N[first + 99] - trace.arrivals_N[first] for first in range(REQUESTS - 99)]
    assert part.count == 100
    assert part.arrivals_N[-1] == pytest.approx(min(spans))


def test_means_are_those_of_all_requests(tmp_path: Path) -> None:
    workload = recorded(tmp_path, poisson_gaps()).request.workload
    assert workload.trace is not None
    assert mean_of(workload).prompt == pytest.approx(sum(workload.trace.prompts_N) / REQUESTS)
    assert mean_of(workload).output == pytest.approx(sum(workload.trace.outputs_N) / REQUESTS)


def test_an_engine_bears_less_of_bursts(tmp_path: Path) -> None:
    def bears(gaps_N: np.ndarray) -> float:
        inputs = recorded(tmp_path, gaps_N)
        (one,) = (
            candidate
            for candidate in field_of(inputs.model, inputs.clusters, inputs.request).candidates
            if (candidate.shape.num_gpus, candidate.budget) == (1, 8192)
        )
        point = best_of_both(one)
        assert point is not None
        return bearing(point)[0].requests_per_second

    # A fast tenth has 8 x 5 requests in the time of 9 x 5: nearly twice the mean.
    assert bears(bursts()) < 0.7 * bears(poisson_gaps())


def test_a_plan_speaks_of_the_whole_trace(tmp_path: Path) -> None:
    inputs = recorded(tmp_path, bursts(), more="objective: fewest-gpus\nconstraints: {split: never}\n")
    plan = plan_serving(inputs.model, inputs.clusters, inputs.request)
    trace = inputs.request.workload.trace
    assert trace is not None
    assert plan.status is ServeStatus.OPTIMAL
    assert plan.requests_per_second == pytest.approx(trace.requests_per_second)
    (served,) = plan.deployments[0].served
    ranks = sum(entry.pool.replicas * entry.pool.shape.dp for entry in plan.pools)
    # All that one rank is dealt, less the running ones of the start and of the end.
    assert served.num_requests == pytest.approx(REQUESTS / ranks, rel=0.1)
    targets = inputs.request.workload.targets
    assert served.ttft.stated <= (targets.ttft_seconds or 0)
    assert served.tpot.stated <= (targets.tpot_seconds or 0)
    assert any(text.startswith("recorded arrivals keep their clock") for text in plan.assumptions)
    bench = serve_files(plan)[BENCH_FILE].splitlines()
    assert "# Lengths are the means of trace.csv: random prompts have no recorded lengths." in bench
    assert "# Requests come at the trace's mean rate, independently: its bursts are not measured." in bench
