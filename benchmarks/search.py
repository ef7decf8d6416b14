"""Plan fixed instances, and say what that took and whether independent counts and exhaustive search agree.

    python -m benchmarks.search
    python -m benchmarks.search --only llama-3.1-70b-8xdgx-h100 --format json
    python -m benchmarks.search --profile deepseek-v3-2048xh100

Solving is the call of `planner.search.search.search` alone, in a fresh process of each instance's own, so with empty
caches; starting Python, imports, reading the spec and the shipped tables come before. Garbage is collected as seldom as
by the command line. Peak memory is that of the whole process up to then. Afterwards the points are counted by
`benchmarks.points`, and where there are few layouts every one of them is priced (`benchmarks.brute_force`): both must
say what the search says, or the exit code is 1. Times gate nothing.
"""

import argparse
import cProfile
import gc
import json
import pstats
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import isclose
from multiprocessing import get_context
from textwrap import wrap

from benchmarks.brute_force import Exhausted, brute_force, count_layouts
from benchmarks.instances import WANTED_PEAK_RSS_BYTES, Instance, Wanted, instances
from benchmarks.meshes import NotStated, Run
from benchmarks.points import count_considered, count_legal, is_proved
from cli.start import GARBAGE_THRESHOLD
from planner.frameworks.capabilities import CAPABILITIES
from planner.plans.plan import Plan
from planner.search.search import search
from planner.search.space.enumeration import UNSIMULATED
from profiles.planned import cost_model_on

MOST_LAYOUTS = 100_000
"""Layouts that are looked at one by one, a millisecond or two each."""

MIB = 1 << 20
PRICE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """One instance, solved.

    Args:
        seconds: Wall time of the search.
        cpu_seconds: Processor time of it.
        peak_rss_bytes: Largest resident set of the process by its end.
        status: What the plan claims.
        gap: How far its bound is; None without a plan.
        step_seconds: The best layout's step; None likewise.
        is_proved: The best layout is one of those for which the search proves its answer, not a split found by moves.
        considered: Points before any rule, by the search.
        legal: Points that break no rule, by the search.
        too_long: Legal points that are too long to simulate, by the search.
        simulated: Points that were simulated.
        dimensions: What was searched.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    status: str
    gap: float | None
    step_seconds: float | None
    is_proved: bool
    considered: int
    legal: int
    too_long: int
    simulated: int
    dimensions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The points of one instance, counted again.

    Args:
        considered: Before any rule, mesh by mesh; None where the rules are not stated a second time.
        legal: One by one; None likewise.
        refusal: Why there is no count.
        seconds: What counting took.
    """

    considered: int | None
    legal: int | None
    refusal: str | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is known of one instance; `exhausted` where every layout was looked at."""

    name: str
    wanted: Wanted | None
    solved: Solved
    counted: Counted
    exhausted: Exhausted | None

    @property
    def times_faster(self) -> float | None:
        """Return how many times as long exhaustive search takes."""
        return None if self.exhausted is None else self.exhausted.seconds / self.solved.seconds

    @property
    def disagreements(self) -> tuple[str, ...]:
        """Return where search, counts and exhaustive search differ."""
        solved, counted, exhausted = self.solved, self.counted, self.exhausted
        found: list[str] = []
        if counted.considered not in (None, solved.considered):
            found.append(f"{solved.considered} points considered, {counted.considered} counted")
        if counted.legal not in (None, solved.legal + solved.too_long):
            found.append(f"{solved.legal} + {solved.too_long} legal points, {counted.legal} counted")
        if exhausted is not None and not self._is_as_good(exhausted.step_seconds):
            found.append(f"best step {solved.step_seconds} s, exhaustively {exhausted.step_seconds} s")
        return tuple(found)

    def _is_as_good(self, exhausted_seconds: float | None) -> bool:
        """Return whether the plan is as good as the best layout that was looked at; an uneven one may be better."""
        seconds = self.solved.step_seconds
        if seconds is None or exhausted_seconds is None:
            return seconds is exhausted_seconds
        better = seconds < exhausted_seconds and not self.solved.is_proved
        return better or isclose(seconds, exhausted_seconds, rel_tol=PRICE_TOLERANCE)


def _prepared(instance: Instance) -> Run:
    """Return an instance's inputs, the shipped tables of its GPU read."""
    run = instance.run()
    cost_model_on(run.cluster, CAPABILITIES[run.request.target].software)
    return run


def _planned(run: Run) -> Plan:
    return search(run.model, run.cluster, run.request)


def measure(instance: Instance) -> Row:
    """Return one instance's row; meant for a process of its own."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    run = _prepared(instance)
    began, cpu_began = time.perf_counter(), time.process_time()
    plan = _planned(run)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    account = plan.search
    solved = Solved(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_rss_bytes=peak if sys.platform == "darwin" else 1024 * peak,
        status=plan.status.value,
        gap=plan.gap,
        step_seconds=plan.best.step_seconds if plan.plans else None,
        is_proved=bool(plan.plans) and is_proved(plan.best.layout, run),
        considered=account.considered,
        legal=account.legal,
        too_long=account.pruned.get(UNSIMULATED, 0),
        simulated=account.simulated,
        dimensions=account.dimensions,
    )
    counted = _counted(run)
    exhausted = None
    if counted.refusal is None and count_layouts(run, at_most=MOST_LAYOUTS) is not None:
        exhausted = brute_force(run)
    return Row(
        name=instance.name,
        wanted=instance.wanted,
        solved=solved,
        counted=counted,
        exhausted=exhausted,
    )


def _counted(run: Run) -> Counted:
    began = time.perf_counter()
    try:
        legal, too_long = count_legal(run)
        considered = count_considered(run)
    except NotStated as refusal:
        return Counted(considered=None, legal=None, refusal=str(refusal), seconds=time.perf_counter() - began)
    return Counted(considered=considered, legal=legal + too_long, refusal=None, seconds=time.perf_counter() - began)


def _wanted(value: float, at_most: float, unit: str) -> str:
    return f" (wanted {at_most:g} {unit}{', missed' if value > at_most else ''})"


def lines_of(row: Row) -> list[str]:
    """Return what the table says of one instance."""
    solved, counted, exhausted = row.solved, row.counted, row.exhausted
    wanted = "" if row.wanted is None else _wanted(solved.seconds, row.wanted.seconds, "s")
    large = ", wanted 1 GB, missed" if solved.peak_rss_bytes > WANTED_PEAK_RSS_BYTES else ""
    gap = "no plan" if solved.gap is None else f"gap {solved.gap:.3%}"
    if solved.gap is not None and row.wanted is not None and row.wanted.gap is not None:
        gap += _wanted(100 * solved.gap, 100 * row.wanted.gap, "%")
    too_long = f" and {solved.too_long:,} too long to simulate" if solved.too_long else ""
    lines = [
        row.name,
        f"  solved      {solved.seconds:.2f} s{wanted}, {solved.cpu_seconds:.2f} s of processor",
        f"  peak RSS    {solved.peak_rss_bytes / MIB:,.0f} MiB{large}",
        f"  status      {solved.status}, {gap}, {solved.simulated:,} points simulated",
        f"  considered  {solved.considered:,}; legal {solved.legal:,}{too_long}",
        *wrap(", ".join(solved.dimensions), initial_indent="  dimensions  ", subsequent_indent=14 * " "),
    ]
    if counted.refusal is None:
        lines.append(f"  counted     {counted.considered:,}; legal {counted.legal:,}; in {counted.seconds:.1f} s")
    else:
        lines.append(f"  counted     not: no second statement of the rules for {counted.refusal}")
    if exhausted is None:
        lines.append(f"  exhaustive  not: more than {MOST_LAYOUTS:,} layouts")
    else:
        lines.append(
            f"  exhaustive  {exhausted.num_layouts:,} layouts, {exhausted.num_fitting:,} fit;"
            f" {exhausted.seconds:.1f} s, {row.times_faster:,.0f} times the search"
        )
    return [*lines, *(f"  DISAGREES   {finding}" for finding in row.disagreements)]


def _profiled(instance: Instance) -> None:
    """Print where the search's time goes."""
    run = _prepared(instance)
    profile = cProfile.Profile()
    profile.runcall(_planned, run)
    stats = pstats.Stats(profile).strip_dirs()
    stats.sort_stats("cumulative").print_stats(60)
    stats.sort_stats("tottime").print_stats(20)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 where something disagrees."""
    known = {instance.name: instance for instance in instances()}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", metavar="NAME", action="append", choices=sorted(known), help="one of the instances")
    parser.add_argument("--profile", metavar="NAME", choices=sorted(known), help="say where its time goes")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(arguments)
    if options.profile is not None:
        _profiled(known[options.profile])
        return 0
    rows: list[Row] = []
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for row in pool.map(measure, [known[name] for name in options.only or known]):
            rows.append(row)
            if options.format == "text":
                print("\n".join(lines_of(row)), flush=True)
    if options.format == "json":
        document = [
            {**asdict(row), "times_faster": row.times_faster, "disagreements": row.disagreements} for row in rows
        ]
        print(json.dumps(document, indent=2))
    return int(any(row.disagreements for row in rows))


if __name__ == "__main__":
    sys.exit(main())
