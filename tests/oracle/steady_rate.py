"""The steady state of an engine at a given rate, by bisection over the answers that run.

The planner goes the other way, from a batch to the rate that keeps it running; this is what simulations are held
against.
"""

from planner.serving.simulate import Seats
from planner.serving.steady import Load, Steady, at_batch, at_concurrency, by_the_clock, most_running
from planner.serving.step_costs import StepCosts

BISECTIONS = 40


def at_rate(costs: StepCosts, seats: Seats, load: Load, requests_per_second: float) -> Steady:
    """Return the steady state with requests that come at a rate."""
    most = max(most_running(seats, load), 1e-9)

    def running(batch: float) -> float:
        tpot, prefill = at_batch(costs, seats, load, batch)
        return requests_per_second * (prefill + (load.output - 1) * tpot)

    if running(most) > most:
        full = at_concurrency(costs, seats, load, most)
        return Steady(
            batch=most,
            tpot_seconds=full.tpot_seconds,
            ttft_seconds=float("inf"),
            requests_per_second=full.requests_per_second,
            saturated=True,
        )
    low, high = 0.0, most
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if running(middle) > middle else (low, middle)
    return by_the_clock(costs, seats, load, high)
