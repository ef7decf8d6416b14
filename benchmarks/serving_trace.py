"""How long a trace of many requests takes: to read, and to simulate on one engine.

One engine of a case of `benchmarks.serving` is given all requests of a made trace: Poisson arrivals at a part of what
it bears in closed form, lognormal lengths. Seconds are of a processor core. Machines differ and do other work besides,
so that the figure to compare is a ratio taken in the same run: over a loop of Python that adds one number for every
step of the engine, which is the least that a simulation of single steps could do.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.bare_loop import bare_loop
from planner.errors import Location
from planner.schema.serve_trace import read_trace
from planner.serving.simulate import simulate
from planner.serving.traffic import Requests
from planner.serving_search.closed_form import best_of_both
from planner.serving_search.field import field_of
from planner.serving_search.inputs import load_serve_inputs

NAME = "trace"
REQUESTS = 100_000
WANTED_SECONDS = 20.0
SPEC = Path(__file__).resolve().parent / "serving_specs" / "llama-3.1-8b-8xh100.yaml"
LOAD = 0.8
"""Part of what the engine bears in closed form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One trace.

    Args:
        name: Of the row.
        num_requests: Requests.
        read_seconds: Processor time of reading the file.
        simulated_seconds: Processor time of the simulation.
        loop_seconds: Processor time of a bare loop over as many steps.
        steps: Steps of the engine.
        hours: Time that passes in the simulation.
    """

    name: str
    num_requests: int
    read_seconds: float
    simulated_seconds: float
    loop_seconds: float
    steps: int
    hours: float

    @property
    def over_loop(self) -> float:
        """Return the simulation's time over that of the bare loop."""
        return self.simulated_seconds / self.loop_seconds


def trace_row(num_requests: int = REQUESTS) -> TraceRow:
    """Return how long a trace takes."""
    inputs = load_serve_inputs(SPEC)
    candidates = field_of(inputs.model, inputs.clusters, inputs.request).candidates
    one = next(candidate for candidate in candidates if (candidate.num_gpus, candidate.budget) == (1, 8192))
    point = best_of_both(one)
    assert point is not None, "the engine of the case keeps its targets"
    with tempfile.TemporaryDirectory() as folder:
        write_trace(Path(folder) / "trace.csv", num_requests, per_second=LOAD * point.requests_per_second)
        start = time.process_time()
        trace = read_trace("trace.csv", base=Path(folder), location=Location(file=str(SPEC)))
        read = time.process_time() - start
    requests = Requests(
        arrivals_N=np.array(trace.arrivals_N),
        prompts_N=np.array(trace.prompts_N),
        outputs_N=np.array(trace.outputs_N),
        cached_N=np.zeros(num_requests, dtype=np.int64),
    )
    start = time.process_time()
    found = simulate(requests, costs=one.costs, seats=one.seats(one.most_seqs))
    simulated = time.process_time() - start
    assert not found.refused, "every request fits the engine"
    start = time.process_time()
    bare_loop(found.steps)
    loop = time.process_time() - start
    return TraceRow(
        name=NAME,
        num_requests=num_requests,
        read_seconds=read,
        simulated_seconds=simulated,
        loop_seconds=loop,
        steps=found.steps,
        hours=found.seconds / 3600,
    )


def write_trace(path: Path, num_requests: int, *, per_second: float) -> None:
    """Write requests at a rate, their lengths lognormal around those of the case."""
    draws = np.random.default_rng(0)
    arrivals_N = np.cumsum(draws.exponential(1 / per_second, num_requests))
    prompts_N = np.clip(np.rint(draws.lognormal(np.log(800), 0.7, num_requests)), 1, 8000).astype(int)
    outputs_N = np.clip(np.rint(draws.lognormal(np.log(200), 0.7, num_requests)), 1, 2000).astype(int)
    lines = [f"{a:.6f},{p},{o}" for a, p, o in zip(arrivals_N, prompts_N, outputs_N, strict=True)]
    path.write_text("arrival,input_tokens,output_tokens\n" + "\n".join(lines) + "\n")


def trace_words(row: TraceRow) -> list[str]:
    """Return the row as lines."""
    late = "" if row.simulated_seconds <= WANTED_SECONDS else f" (wanted: {WANTED_SECONDS:g} s)"
    return [
        f"{row.name} of {row.num_requests:,} requests, on one engine",
        f"  {row.read_seconds:.2f} s of a core to read, {row.simulated_seconds:.2f} s{late} to simulate",
        f"  {row.steps:,} steps, {row.hours:.1f} hours",
        f"  {row.over_loop:.0f} times a bare loop over as many steps",
    ]
