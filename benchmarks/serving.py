"""Plan fixed serving cases, and set the plans beside another planner's.

    python -m benchmarks.serving
    python -m benchmarks.serving --only deepseek-v3-32xh200 --format json

Planning is the call of `planner.serving_search.search.plan_serving` alone, in a fresh process of each case's own; what
starting Python and reading the spec take comes before. The other planner's figures are its own predictions, printed by
it for the same model, GPUs, lengths and targets; none of either side is a measurement. Times gate nothing.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from planner.serve_inputs import load_serve_inputs
from planner.serving_search.search import plan_serving
from planner.serving_search.traffic import mean_of

SPECS = Path(__file__).resolve().parent / "serving_specs"
WANTED_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """What another planner says of a case.

    Args:
        tokens_per_second_per_gpu: Output tokens of its best plan; None without a plan.
        plan: The plan in its words.
        seconds: Wall time that it took, on two shared processor cores.
        source: Which planner, and how it was run.
    """

    tokens_per_second_per_gpu: float | None
    plan: str
    seconds: float
    source: str


SOURCE = (
    "aiconfigurator 0.12, its command line with backend vllm, run on two processor cores, November 2026; identical"
    " replicas, its own database of kernels"
)
OTHERS = {
    "llama-3.1-70b-8xh100": Other(tokens_per_second_per_gpu=257, plan="2 x tp4, batch 40", seconds=8.3, source=SOURCE),
    "llama-3.1-8b-8xh100": Other(tokens_per_second_per_gpu=5061, plan="8 x tp1, batch 96", seconds=12.8, source=SOURCE),
    "llama-3.1-70b-8xa100": Other(tokens_per_second_per_gpu=96, plan="1 x tp8, batch 48", seconds=5.7, source=SOURCE),
    "qwen3-30b-a3b-8xh200": Other(tokens_per_second_per_gpu=3350, plan="dp4, etp4", seconds=52.5, source=SOURCE),
    "qwen3-235b-a22b-fp8-16xh200": Other(tokens_per_second_per_gpu=317, plan="dp8 ep8", seconds=44.2, source=SOURCE),
    "deepseek-v3-32xh200": Other(
        tokens_per_second_per_gpu=400,
        plan="dp16 ep16",
        seconds=217.0,
        source=f"{SOURCE}, but backend sglang; by its own figures 24 GPUs split into prefill and decode beside 8"
        " aggregated ones give 474",
    ),
    "llama-3.1-70b-infeasible": Other(
        tokens_per_second_per_gpu=None, plan="none, without a reason", seconds=13.0, source=SOURCE
    ),
}


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
        other: What the other planner says.
    """

    name: str
    seconds: float
    cpu_seconds: float
    status: str
    tokens_per_second_per_gpu: float | None
    one_shape: float | None
    plan: str
    other: Other


def names() -> tuple[str, ...]:
    """Return the names of the cases."""
    return tuple(OTHERS)


def plan_case(name: str) -> Row:
    """Return a case, planned."""
    inputs = load_serve_inputs(SPECS / f"{name}.yaml")
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
        other=OTHERS[name],
    )


def in_a_fresh_process(name: str) -> Row:
    """Return a case, planned where nothing is cached."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
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
            f"  other  {_figure(other.tokens_per_second_per_gpu)} tok/s/GPU  {other.plan}",
            f"         {other.seconds:g} s",
        ]
    lines.append("Sources of the other planner's figures:")
    for source in dict.fromkeys(row.other.source for row in rows):
        lines.append(f"  {source}")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return f"{value:8,.0f}" if value is not None else "       -"


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan the cases and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="Plan fixed serving cases.")
    parser.add_argument("--only", action="append", choices=names(), help="one case; may be given again")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    asked = parser.parse_args(arguments)
    rows = [in_a_fresh_process(name) for name in asked.only or names()]
    print(table(rows) if asked.format == "text" else json.dumps([asdict(row) for row in rows], indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
