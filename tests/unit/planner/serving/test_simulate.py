"""The simulation of one engine: what goes in comes out, its limits are the closed form's, and it repeats itself."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from planner.serving.simulate import Simulation, simulate
from planner.serving.steady import Load, at_concurrency, most_running
from planner.serving.traffic import Requests, closed_loop
from planner.serving_plans.layout import EngineShape, Role
from tests.oracle.steady_rate import at_rate
from tests.unit.planner.serving.engines_of import served

ENGINES = ("vllm", "trtllm", "sglang")


def _requests(*, arrivals: list[float], prompts: list[int], outputs: list[int]) -> Requests:
    return Requests(
        arrivals_N=np.array(arrivals),
        prompts_N=np.array(prompts),
        outputs_N=np.array(outputs),
        cached_N=np.zeros(len(arrivals), dtype=np.int64),
    )


def poisson(*, count: int, per_second: float, prompt: int, output: int, spread: float = 1.0, seed: int = 0) -> Requests:
    """Return requests that come independently of one another, with the lengths of `closed_loop`."""
    arrivals_N = np.cumsum(np.random.default_rng((seed, 1)).exponential(1.0 / per_second, count))
    lengths = closed_loop(count=count, concurrency=1, prompt=prompt, output=output, spread=spread, seed=seed)
    return replace(lengths, arrivals_N=arrivals_N, concurrency=None)


def _is_whole(found: Simulation) -> bool:
    return bool(
        not np.isnan(found.end_N).any()
        and (found.first_token_N > found.arrival_N).all()
        and (found.end_N >= found.first_token_N).all()
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_every_request_ends_once_and_behind_its_first_token(engine: str) -> None:
    serving = served(engine=engine)
    found = simulate(
        poisson(count=400, per_second=6, prompt=2000, output=300, spread=0.1, seed=3),
        costs=serving.costs,
        seats=serving.seats(),
    )
    assert _is_whole(found)
    assert found.refused == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_full_cache_loses_nothing(engine: str) -> None:
    serving = served(engine=engine)
    seats = serving.seats(pool_bytes=20_000 * 131_072.0)
    found = simulate(
        closed_loop(count=300, concurrency=64, prompt=800, output=900, spread=0.5), costs=serving.costs, seats=seats
    )
    assert _is_whole(found)
    assert (found.preempted > 0) is (engine != "trtllm"), "only what reserves whole answers puts none back"


def test_one_request_is_its_steps_one_by_one() -> None:
    serving = served()
    costs = serving.costs
    found = simulate(_requests(arrivals=[0.0], prompts=[1000], outputs=[5]), costs=costs, seats=serving.seats())
    first = costs.seconds(chunks=[(1000, 0)], finished=1)
    assert found.ttft_N[0] == pytest.approx(first + costs.first_token_seconds)
    # Four more tokens, seeing 1,001 to 1,004.
    rest = sum(costs.seconds(decodes=1, context=1001 + step) for step in range(4))
    assert found.end_N[0] - found.first_token_N[0] == pytest.approx(rest, rel=1e-6)
    assert found.tpot_N[0] == pytest.approx(rest / 4, rel=1e-6)


def test_a_long_prompt_is_cut_to_the_budget() -> None:
    serving = served()
    costs = serving.costs
    found = simulate(_requests(arrivals=[0.0], prompts=[20_000], outputs=[1]), costs=costs, seats=serving.seats())
    chunks = [(8192.0, 0.0), (8192.0, 8192.0), (3616.0, 16_384.0)]
    expected = sum(costs.seconds(chunks=[chunk], finished=index == 2) for index, chunk in enumerate(chunks))
    assert found.steps == 3
    assert found.ttft_N[0] == pytest.approx(expected + costs.first_token_seconds)


def test_a_cached_beginning_is_not_computed() -> None:
    serving = served()
    fresh = _requests(arrivals=[0.0], prompts=[6000], outputs=[2])
    known = replace(fresh, cached_N=np.array([5000]))
    one, other = (simulate(found, costs=serving.costs, seats=serving.seats()) for found in (fresh, known))
    assert other.ttft_N[0] < 0.5 * one.ttft_N[0]


def test_the_same_requests_give_the_same_times() -> None:
    serving = served()
    one, other = (
        simulate(
            poisson(count=200, per_second=4, prompt=900, output=200, spread=0.2, seed=7),
            costs=serving.costs,
            seats=serving.seats(),
        )
        for _ in range(2)
    )
    assert one.end_N.tobytes() == other.end_N.tobytes()


def test_steps_taken_together_are_the_steps_one_by_one() -> None:
    # A second request that comes late only cuts the run of steps of the first in two.
    serving = served()
    alone = simulate(
        _requests(arrivals=[0.0], prompts=[500], outputs=[400]), costs=serving.costs, seats=serving.seats()
    )
    end = float(alone.end_N[0])
    both = simulate(
        _requests(arrivals=[0.0, end + 1.0], prompts=[500, 500], outputs=[400, 400]),
        costs=serving.costs,
        seats=serving.seats(),
    )
    assert both.end_N[0] == pytest.approx(end, rel=1e-9)
    assert both.end_N[1] - both.arrival_N[1] == pytest.approx(end, rel=1e-9)


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_a_closed_loop_runs_as_the_closed_form_says(engine: str, concurrency: int) -> None:
    serving = served(engine=engine)
    requests = closed_loop(count=12 * concurrency, concurrency=concurrency, prompt=1000, output=1000, spread=0.8)
    found = simulate(requests, costs=serving.costs, seats=serving.seats())
    steady = at_concurrency(serving.costs, serving.seats(), Load(prompt=900, output=900), concurrency)
    assert float(np.nanmean(found.tpot_N)) == pytest.approx(steady.tpot_seconds, rel=0.04)


@pytest.mark.parametrize("concurrency", [1, 2, 4])
def test_a_few_under_way_wait_for_the_prompts_of_the_others_alone(concurrency: int) -> None:
    # Of a long prompt and a short answer a life is mostly prompts: one too many would show.
    serving = served()
    requests = closed_loop(count=40 * concurrency, concurrency=concurrency, prompt=24_000, output=200)
    found = simulate(requests, costs=serving.costs, seats=serving.seats())
    steady = at_concurrency(serving.costs, serving.seats(), Load(prompt=24_000, output=200), concurrency)
    assert float(np.nanmean(found.tpot_N)) == pytest.approx(steady.tpot_seconds, rel=0.06)


def test_a_low_rate_is_answered_as_the_closed_form_says() -> None:
    serving = served()
    found = simulate(
        poisson(count=1500, per_second=3.0, prompt=1000, output=300, seed=5),
        costs=serving.costs,
        seats=serving.seats(),
    )
    steady = at_rate(serving.costs, serving.seats(), Load(prompt=1000, output=300), 3.0)
    assert not steady.saturated
    assert float(found.tpot_N.mean()) == pytest.approx(steady.tpot_seconds, rel=0.06)
    assert float(found.ttft_N.mean()) == pytest.approx(steady.ttft_seconds, rel=0.15)
    assert found.mean_batch == pytest.approx(steady.batch, rel=0.15)


def test_a_rate_above_the_capacity_saturates() -> None:
    serving = served()
    load = Load(prompt=1000, output=300)
    full = at_rate(serving.costs, serving.seats(), load, 1000.0)
    assert full.saturated
    assert full.requests_per_second < 1000.0
    below = at_rate(serving.costs, serving.seats(), load, 0.5 * full.requests_per_second)
    assert not below.saturated


def test_times_grow_with_the_rate() -> None:
    serving = served()
    load = Load(prompt=1000, output=300)
    found = [at_rate(serving.costs, serving.seats(), load, rate) for rate in (0.5, 1.0, 2.0, 4.0, 8.0)]
    assert all(
        one.tpot_seconds < other.tpot_seconds and one.ttft_seconds < other.ttft_seconds
        for one, other in pairwise(found)
    )


def test_seats_bound_what_runs() -> None:
    serving = served()
    found = simulate(
        closed_loop(count=64, concurrency=32, prompt=500, output=100),
        costs=serving.costs,
        seats=serving.seats(sequences=4),
    )
    assert found.mean_batch <= 4
    assert most_running(serving.seats(sequences=4), Load(prompt=500, output=100)) == 4


def test_a_request_larger_than_the_cache_is_refused_and_the_others_run() -> None:
    serving = served()
    seats = serving.seats(pool_bytes=3000 * 131_072.0)
    found = simulate(
        _requests(arrivals=[0.0, 0.0, 0.0], prompts=[1000, 5000, 1000], outputs=[10, 10, 10]),
        costs=serving.costs,
        seats=seats,
    )
    assert found.refused == 1
    assert np.isnan(found.end_N).tolist() == [False, True, False]


def test_prefill_and_decode_alone_are_the_two_halves() -> None:
    serving = served()
    requests = _requests(arrivals=[0.0], prompts=[3000], outputs=[50])
    both, prompts, answers = (
        simulate(requests, costs=serving.costs, seats=serving.seats(), role=role)
        for role in (Role.BOTH, Role.PREFILL, Role.DECODE)
    )
    assert prompts.ttft_N[0] == pytest.approx(both.ttft_N[0])
    assert prompts.end_N[0] == prompts.first_token_N[0]
    assert answers.tpot_N[0] == pytest.approx(both.tpot_N[0])


def test_prompts_first_pause_answers_and_mixed_steps_do_not() -> None:
    requests = _requests(arrivals=[0.0, 0.3], prompts=[500, 8000], outputs=[200, 2])
    mixed, paused = served(engine="vllm"), served(engine="sglang")
    quick = replace(paused.engine, scheduling=mixed.engine.scheduling)
    waits = simulate(requests, costs=paused.costs, seats=paused.seats())
    goes_on = simulate(requests, costs=replace(paused, engine=quick).costs, seats=paused.seats())
    assert waits.first_token_N[1] <= goes_on.first_token_N[1]
    assert waits.end_N[0] >= goes_on.end_N[0] - 0.05


def test_data_parallel_ranks_share_experts() -> None:
    alone, of_eight = (
        served("deepseek-v3", preset="dgx-h200", quantisation="fp8", shape=shape).costs.breakdown(
            decodes=16, context=1000
        )["experts"]
        for shape in (EngineShape(tp=8, expert_parallel=True), EngineShape(tp=1, dp=8, expert_parallel=True))
    )
    assert of_eight > alone, "eight ranks bring eight times the tokens to the same experts"


def test_lists_are_checked() -> None:
    with pytest.raises(ValueError, match="arrivals do not fall"):
        _requests(arrivals=[1.0, 0.0], prompts=[1, 1], outputs=[1, 1])
    with pytest.raises(ValueError, match="a prompt and an answer have a token at least"):
        _requests(arrivals=[0.0], prompts=[0], outputs=[1])
    with pytest.raises(ValueError, match="what is cached of a prompt is less than it"):
        replace(_requests(arrivals=[0.0], prompts=[5], outputs=[1]), cached_N=np.array([5]))
    with pytest.raises(ValueError, match="at least one request is under way"):
        closed_loop(count=4, concurrency=0, prompt=10, output=10)


def test_lengths_lie_evenly_in_their_spread() -> None:
    requests = closed_loop(count=101, concurrency=4, prompt=1000, output=500, spread=0.8)
    assert (requests.prompts_N.min(), requests.prompts_N.max()) == (800, 1000)
    assert requests.prompts_N.mean() == pytest.approx(900)
    assert (requests.outputs_N.min(), requests.outputs_N.max()) == (400, 500)


def test_a_prompt_alone_goes_through_all_stages_before_its_first_token() -> None:
    requests = closed_loop(count=1, concurrency=1, prompt=2000, output=1)
    whole, staged = (served("llama-3.1-8b", shape=EngineShape(tp=1, pp=pp)) for pp in (1, 2))
    found = {one.shape.pp: simulate(requests, costs=one.costs, seats=one.seats()) for one in (whole, staged)}
    assert whole.costs.filling_seconds(2000, budget=8192) == 0.0
    # Both stages do the work of one GPU, one behind the other; a step holds what keeps both busy.
    way = staged.costs.seconds(chunks=[(4000.0, 0.0)], finished=1)
    busy = staged.costs.seconds(chunks=[(2000.0, 0.0)], finished=1)
    door = staged.costs.first_token_seconds
    assert float(found[2].ttft_N[0]) == pytest.approx(door + busy + way / 2)
    assert float(found[2].ttft_N[0]) == pytest.approx(float(found[1].ttft_N[0]), rel=0.1)
    steady = at_concurrency(staged.costs, staged.seats(), Load(prompt=2000, output=1), 1)
    assert steady.ttft_seconds == pytest.approx(float(found[2].ttft_N[0]), rel=1e-6)
