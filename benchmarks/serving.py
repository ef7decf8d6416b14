"""Plan fixed serving cases, and set the plans beside another planner's.

    python -m benchmarks.serving
    python -m benchmarks.serving --only deepseek-v3-32xh200 --format json
    python -m benchmarks.serving --only trace

Planning is the call of `planner.serving_search.search.plan_serving` alone, in a fresh process of each case's own; what
starting Python, importing the solver and reading the spec take comes before. The other planner's figures are its own
predictions, printed by it for the same model, GPUs, lengths and targets; none of either side is a measurement. Times
gate nothing.

The difference is taken apart. Its plan is priced here, at its batch where it prints one, else at the largest that keeps
the targets here: what that differs by is prices. Between its shape and the best equal engines lies the choice of a
shape and a batch, and between these and the plan what mixed shapes and a split into prefill and decode bring. The three
factors multiply to the whole. Behind the cases stands how long a trace takes (`benchmarks.serving_trace`).
"""

import argparse
import gc
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

from benchmarks.serving_trace import NAME as TRACE
from benchmarks.serving_trace import trace_row, trace_words
from cli.start import GARBAGE_THRESHOLD
from planner.serving_plans.layout import EngineShape
from planner.serving_plans.plan import ServePlan
from planner.serving_search.closed_form import best_of_both, both_at
from planner.serving_search.compose import DEFAULT_SOLVER
from planner.serving_search.field import field_of
from planner.serving_search.inputs import ServeInputs, load_serve_inputs
from planner.serving_search.search import plan_serving
from planner.serving_search.simulated import keeps, served_at, stated_seconds
from planner.serving_search.traffic import mean_of
from solvers.fleet_registry import FLEET_SOLVERS

SPECS = Path(__file__).resolve().parent / "serving_specs"
WANTED_SECONDS = 3.0
USUAL_BUDGET = 8192
"""Tokens of a step that the other planner's engines are priced with: vLLM's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """What another planner says of a case.

    Args:
        tokens_per_second_per_gpu: Output tokens of its best plan; None without a plan.
        plan: The plan in its words.
        seconds: Wall time that it took, on two shared processor cores.
        source: Which planner, and how it was run.
        shape: How one of its engines lies on its GPUs; None without a plan.
        batch: Running answers of a data-parallel rank, where it prints them.
        tpot_ms: Time between tokens that it predicts, where it prints it.
        note: What else its figure rests on.
    """

    tokens_per_second_per_gpu: float | None
    plan: str
    seconds: float
    source: str
    shape: EngineShape | None = None
    batch: int | None = None
    tpot_ms: float | None = None
    note: str = ""


SOURCE = (
    "aiconfigurator 0.12, its command line with backend vllm, run on two processor cores, November 2026; identical"
    " replicas, its own database of kernels"
)
OTHERS = {
    "llama-3.1-70b-8xh100": Other(
        tokens_per_second_per_gpu=257,
        plan="2 x tp4, batch 40",
        seconds=8.3,
        source=SOURCE,
        shape=EngineShape(tp=4),
        batch=40,
        tpot_ms=37.6,
    ),
    "llama-3.1-8b-8xh100": Other(
        tokens_per_second_per_gpu=5061,
        plan="8 x tp1, batch 96",
        seconds=12.8,
        source=SOURCE,
        shape=EngineShape(tp=1),
        batch=96,
        tpot_ms=18.6,
    ),
    "llama-3.1-70b-8xa100": Other(
        tokens_per_second_per_gpu=96,
        plan="1 x tp8, batch 48",
        seconds=5.7,
        source=SOURCE,
        shape=EngineShape(tp=8),
        batch=48,
    ),
    "qwen3-30b-a3b-8xh200": Other(
        tokens_per_second_per_gpu=3350,
        plan="dp4, etp4",
        seconds=52.5,
        source=SOURCE,
        shape=EngineShape(tp=1, dp=4),
    ),
    "qwen3-235b-a22b-fp8-16xh200": Other(
        tokens_per_second_per_gpu=317,
        plan="dp8 ep8",
        seconds=44.2,
        source=SOURCE,
        shape=EngineShape(tp=1, dp=8, expert_parallel=True),
        note="its tables have fp8 4.2 times slower than bf16 on vLLM",
    ),
    "deepseek-v3-32xh200": Other(
        tokens_per_second_per_gpu=400,
        plan="dp16 ep16",
        seconds=217.0,
        source=f"{SOURCE}, but backend sglang; by its own figures 24 GPUs split into prefill and decode beside 8"
        " aggregated ones give 474",
        shape=EngineShape(tp=1, dp=16, expert_parallel=True),
        note="its figure is of SGLang, with SGLang's kernels and steps; plans here are of vLLM",
    ),
    "llama-3.1-70b-infeasible": Other(
        tokens_per_second_per_gpu=None, plan="none, without a reason", seconds=13.0, source=SOURCE
    ),
}

WORTH_A_LINE = 0.005

TERMS = ("prices", "shape and batch", "mixed shapes and split")


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """The other planner's engines, priced here.

    Args:
        batch: Running answers of a data-parallel rank.
        tokens_per_second_per_gpu: Output tokens.
        ttft_ms: Mean time to the first token.
        tpot_ms: Mean time between tokens.
        keeps: Both keep their targets.
    """

    batch: int
    tokens_per_second_per_gpu: float
    ttft_ms: float
    tpot_ms: float
    keeps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case.

    Args:
        name: Its name.
        seconds: Wall time of planning.
        cpu_seconds: Processor time of it.
        status: What the plan claims.
        tokens_per_second_per_gpu: Output tokens over all GPUs; None without a plan.
        one_shape: The same of the best plan with equal engines that do everything.
        plan: The plan in words, or what is in the way.
        over_targets: What the simulated requests take of the target that they come nearest to; None without a plan.
        other: What the other planner says.
        priced: Its plan, priced here; None without one, or where its engine does not fit here.
    """

    name: str
    seconds: float
    cpu_seconds: float
    status: str
    tokens_per_second_per_gpu: float | None
    one_shape: float | None
    plan: str
    over_targets: float | None
    other: Other
    priced: Priced | None = None

    @property
    def factors(self) -> dict[str, float]:
        """Return what the figure here is over the other planner's, taken apart; empty where one has no plan."""
        figures = (
            self.other.tokens_per_second_per_gpu,
            None if self.priced is None else self.priced.tokens_per_second_per_gpu,
            self.one_shape,
            self.tokens_per_second_per_gpu,
        )
        known = [figure for figure in figures if figure is not None]
        if len(known) < len(figures):
            return {}
        return {name: after / before for name, (before, after) in zip(TERMS, pairwise(known), strict=True)}


def names() -> tuple[str, ...]:
    """Return the names of the cases."""
    return tuple(OTHERS)


def plan_case(name: str) -> Row:
    """Return a case, planned."""
    inputs = load_serve_inputs(SPECS / f"{name}.yaml")
    import_module(FLEET_SOLVERS[DEFAULT_SOLVER])
    start, cpu = time.perf_counter(), time.process_time()
    plan = plan_serving(inputs.model, inputs.clusters, inputs.request)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    output = mean_of(inputs.request.workload).output
    gpus = sum(cluster.world_size for cluster in inputs.clusters)
    rates = {way.name: way.requests_per_second * output / gpus for way in plan.compositions}
    words = next((way.words for way in plan.compositions if way.name == "the plan"), "")
    return Row(
        name=name,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        status=plan.status.value,
        tokens_per_second_per_gpu=rates.get("the plan"),
        one_shape=rates.get("one shape"),
        plan=words if plan.infeasible is None else f"nearest: {plan.infeasible.nearest}",
        over_targets=over_targets(plan),
        other=OTHERS[name],
        priced=priced_here(inputs, OTHERS[name]),
    )


def over_targets(plan: ServePlan) -> float | None:
    """Return the largest simulated time over its target, both as the targets speak of them; None without a plan."""
    return max(
        (
            stated_seconds(served)[metric] / seconds
            for deployment in plan.deployments
            for served in deployment.served
            for metric, seconds in plan.request.workload.targets.given.items()
        ),
        default=None,
    )


def priced_here(inputs: ServeInputs, other: Other) -> Priced | None:
    """Return the other planner's engines, simulated here at their batch."""
    if other.shape is None:
        return None
    field = field_of(inputs.model, inputs.clusters, inputs.request)
    able = [one for one in field.candidates if one.shape == other.shape and one.budget == USUAL_BUDGET]
    if not able:
        return None
    (candidate,) = able
    point = best_of_both(candidate) if other.batch is None else both_at(candidate, float(other.batch))
    if point is None:
        return None
    served = served_at(point)
    return Priced(
        batch=round(point.batch),
        tokens_per_second_per_gpu=served.requests_per_second * candidate.ground.mean.output / candidate.num_gpus,
        ttft_ms=served.ttft.mean * 1e3,
        tpot_ms=served.tpot.mean * 1e3,
        keeps=keeps(served, inputs.request.workload.targets),
    )


def in_a_fresh_process(name: str) -> Row:
    """Return a case, planned where nothing is cached, with garbage collected as seldom as the command line does."""
    start = partial(gc.set_threshold, GARBAGE_THRESHOLD)
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), initializer=start) as pool:
        return pool.submit(plan_case, name).result()


def table(rows: Sequence[Row]) -> str:
    """Return the cases as text."""
    lines: list[str] = []
    for row in rows:
        other = row.other
        late = "" if row.seconds <= WANTED_SECONDS else f" (wanted: {WANTED_SECONDS:g} s)"
        lines += [
            row.name,
            f"  here   {_figure(row.tokens_per_second_per_gpu)} tok/s/GPU  {row.plan}",
            f"         {_figure(row.one_shape)} tok/s/GPU  with equal engines that do everything",
            f"         {row.seconds:.2f} s{late}, {row.cpu_seconds:.2f} s of a core, {row.status}",
            *_kept(row.over_targets),
            f"  other  {_figure(other.tokens_per_second_per_gpu)} tok/s/GPU  {other.plan}",
            f"         {other.seconds:g} s",
            *_difference(row),
        ]
    lines.append("Sources of the other planner's figures:")
    for source in dict.fromkeys(row.other.source for row in rows):
        lines.append(f"  {source}")
    return "\n".join(lines) + "\n"


def _difference(row: Row) -> list[str]:
    """Return what makes the difference, line by line."""
    other, priced = row.other, row.priced
    if other.tokens_per_second_per_gpu is None:
        return ["  why    both find no plan; here the nearest one is named, and how far each target must move"]
    if priced is None:
        return ["  why    its engine does not fit here"]
    whole = (row.tokens_per_second_per_gpu or 0.0) / other.tokens_per_second_per_gpu - 1
    said = "" if other.tpot_ms is None else f" (it says {other.tpot_ms:g})"
    kept = "keeps the targets" if priced.keeps else "misses a target"
    why = {
        "prices": f"its engines at batch {priced.batch} priced here: {priced.tokens_per_second_per_gpu:,.0f} tok/s/GPU,"
        f" TTFT {priced.ttft_ms:,.0f} ms, TPOT {priced.tpot_ms:.1f} ms{said}, {kept}",
        "shape and batch": "the best equal engines here, at the largest batch that keeps the targets by simulation",
        "mixed shapes and split": "engines of several shapes, or of their own for prompts and answers",
    }
    lines = [f"  why    {whole:+.0%}:"]
    for name, factor in row.factors.items():
        if abs(factor - 1) >= WORTH_A_LINE:
            lines.append(f"         {factor - 1:+4.0%} {name}: {why[name]}")
    return [*lines, *([f"         {other.note}"] if other.note else [])]


def _kept(over_targets: float | None) -> list[str]:
    return [] if over_targets is None else [f"         {over_targets:.1%} of the target that is nearest, by simulation"]


def _figure(value: float | None) -> str:
    return f"{value:8,.0f}" if value is not None else "       -"


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan the cases and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="Plan fixed serving cases.")
    choices = (*names(), TRACE)
    parser.add_argument("--only", action="append", choices=choices, help="one case; may be given again")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    asked = parser.parse_args(arguments)
    wanted = asked.only or choices
    rows = [in_a_fresh_process(name) for name in wanted if name != TRACE]
    traces = [trace_row()] if TRACE in wanted else []
    if asked.format == "json":
        print(json.dumps([*map(asdict, rows), *map(asdict, traces)], indent=2))
    else:
        lines = [line for row in traces for line in trace_words(row)]
        print((table(rows) if rows else "") + "".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
