"""For bundled models on a few clusters: is a random layout, or one a move or two from the plan, better than the plan?

    python -m benchmarks.random_layouts --layouts 2000 --out layouts.jsonl
    python -m benchmarks.random_layouts --model llama-3.1-8b --cluster dgx-h100-1

Each case is planned once; then random legal layouts that fit, every layout a move from the plan and random ones two
moves from it are priced by the independent evaluator (`benchmarks.layouts`). A better one of those for which the search
proves its answer is a bug of the search or of the evaluator; a better one of the others (uneven interleaved stages, tp
beyond a node, ...) shows what is not searched, or not to the end. Where nothing fits, no layout that is looked at may
fit. The exit code is 1 where some layout is better.

No layout is judged by less than the whole evaluator would say. A layout is too large where one pipeline rank's ledger
is, or where weights and states of the whole model overfill all ranks together; a step need not be simulated where the
evaluator's own bound on it (`PricedStep.least_seconds`) reaches the plan's. Such layouts are counted as priced, and
apart as slower by bound.

Equal seeds give equal lines, one JSON object a case; with --out, cases whose line the file has are not run again.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random

from benchmarks.brute_force import can_say_model
from benchmarks.layouts import Judge, Verdict, moves, random_layouts
from benchmarks.meshes import Run
from benchmarks.points import is_proved
from planner.layout import Layout
from planner.models.bundled import load_bundled, model_names
from planner.plans.plan import Plan
from planner.requests.request import DEFAULT_MEMORY_HEADROOM, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Precision, TrainWorkload
from planner.search.search import search
from profiles.catalogue import load_preset

CLUSTERS = {
    "dgx-h100-1": ("dgx-h100", 1),
    "dgx-h100-8": ("dgx-h100", 8),
    "dgx-a100-8": ("dgx-a100", 8),
    "dgx-h100-128": ("dgx-h100", 128),
}
"""Presets with how many nodes: 8, 64, 64 and 1,024 GPUs."""

LAYOUTS = 2000
DRAWS_PER_LAYOUT = 10
"""Random layouts that are looked at for each one that is wanted; large models on few GPUs rarely fit."""

SECOND_MOVES = 40
"""Layouts behind each first move that are looked at."""

SEQ_LEN = 4096
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Better:
    """A layout that is better than the plan.

    Args:
        kind: How it was found.
        is_proved: It is one of those for which the search proves its answer.
        step_seconds: Its step.
        times: The plan's step over its own.
        layout: The layout, the layers of its stages as counts.
    """

    kind: str
    is_proved: bool
    step_seconds: float
    times: float
    layout: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What came of one model on one cluster.

    Args:
        model: Its name.
        cluster: Its name here.
        target: What was planned for.
        status: The plan's.
        step_seconds: Of the plan; None where nothing fits.
        seed: Of the random numbers.
        wanted: Random layouts that were wanted.
        priced: Layouts that were legal and fit, by how they were found.
        slower_by_bound: Those of them that are no better by a bound of the evaluator's own, and were not simulated.
        too_large: Legal ones that do not fit.
        illegal: Those that break a rule or that the target has no words for.
        better: Layouts better than the plan, the best of each kind.
    """

    model: str
    cluster: str
    target: str
    status: str
    step_seconds: float | None
    seed: int
    wanted: int
    priced: dict[str, int]
    slower_by_bound: int
    too_large: int
    illegal: int
    better: tuple[Better, ...]


def run_of(model: str, cluster: str) -> Run:
    """Return what is planned: two sequences a GPU or 64, in bf16, for the first framework that takes the model."""
    preset, nodes = CLUSTERS[cluster]
    machine = load_preset(preset).model_copy(update={"nodes": nodes}).to_cluster()
    spec = load_bundled(model)
    runs = [
        Run(
            model=spec,
            cluster=machine,
            request=PlanRequest(
                workload=TrainWorkload(
                    seq_len=min(SEQ_LEN, spec.max_position_embeddings),
                    global_batch_size=max(64, 2 * machine.world_size),
                    precision=Precision.BF16,
                ),
                constraints=Constraints(),
                memory_headroom=DEFAULT_MEMORY_HEADROOM,
                target=target,
                objective=Objective.STEP_TIME,
            ),
        )
        for target in (Target.MEGATRON, Target.DEEPSPEED, Target.ANY)
    ]
    return next(run for run in runs if can_say_model(run))


def two_moves(start: Layout, run: Run, random: Random) -> Iterator[Layout]:
    """Yield random layouts two moves from one, a few behind each first move, until all first moves were taken."""
    first = list(moves(start, run))
    random.shuffle(first)
    for layout in first:
        second = list(moves(layout, run))
        yield from random.sample(second, min(SECOND_MOVES, len(second)))


class _Trial:
    """Holds layouts against a plan and keeps count."""

    def __init__(self, run: Run, plan: Plan) -> None:
        self.judge = Judge(run=run)
        self.best = plan.best.step_seconds if plan.plans else None
        self.seen: set[Layout] = set()
        self.priced: dict[str, int] = {}
        self.verdicts = dict.fromkeys(Verdict, 0)
        self.better: dict[tuple[str, bool], Better] = {}

    def look(self, layouts: Iterator[Layout], *, kind: str, at_most: int | None = None) -> None:
        """Price layouts; stop when so many were priced."""
        self.priced[kind] = 0
        for layout in layouts:
            if self.priced[kind] == at_most:
                return
            if layout in self.seen:
                continue
            self.seen.add(layout)
            judged = self.judge.judged(layout, ceiling_seconds=math.inf if self.best is None else self.best)
            self.verdicts[judged.verdict] += 1
            if judged.verdict in (Verdict.ILLEGAL, Verdict.TOO_LARGE):
                continue
            self.priced[kind] += 1
            seconds = judged.step_seconds
            if seconds is not None and (self.best is None or seconds < self.best * (1 - ROUNDING)):
                self._keep(kind, layout, seconds)

    def _keep(self, kind: str, layout: Layout, seconds: float) -> None:
        proved = is_proved(layout, self.judge.run)
        known = self.better.get((kind, proved))
        if known is None or seconds < known.step_seconds:
            self.better[kind, proved] = Better(
                kind=kind,
                is_proved=proved,
                step_seconds=seconds,
                times=math.inf if self.best is None else self.best / seconds,
                layout={**asdict(layout), "stages": [stage.num_layers for stage in layout.stages]},
            )


def try_case(model: str, cluster: str, *, layouts: int, seed: int) -> Case:
    """Return what comes of one model on one cluster."""
    run = run_of(model, cluster)
    random = Random(f"{seed}/{model}/{cluster}")
    plan = search(run.model, run.cluster, run.request)
    trial = _Trial(run, plan)
    drawn = islice(random_layouts(run, random), DRAWS_PER_LAYOUT * layouts)
    trial.look(drawn, kind="random", at_most=layouts)
    if plan.plans:
        start = plan.best.layout
        trial.look(moves(start, run), kind="one move")
        trial.look(two_moves(start, run, random), kind="two moves", at_most=layouts)
    return Case(
        model=model,
        cluster=cluster,
        target=run.request.target.value,
        status=plan.status.value,
        step_seconds=trial.best,
        seed=seed,
        wanted=layouts,
        priced=trial.priced,
        slower_by_bound=trial.verdicts[Verdict.SLOWER_BY_BOUND],
        too_large=trial.verdicts[Verdict.TOO_LARGE],
        illegal=trial.verdicts[Verdict.ILLEGAL],
        better=tuple(trial.better.values()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; return 1 where some layout is better than a plan."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_layouts")
    parser.add_argument("--model", metavar="NAME", action="append", choices=model_names(), help="of the bundled ones")
    parser.add_argument("--cluster", metavar="NAME", action="append", choices=CLUSTERS, help=", ".join(CLUSTERS))
    parser.add_argument(
        "--layouts", type=int, default=LAYOUTS, help="random layouts, and at most as many two moves away"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON Lines file, continued where it has lines")
    options = parser.parse_args(arguments)
    known: list[dict[str, object]] = []
    if options.out is not None and options.out.exists():
        known = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
    done = {(case["model"], case["cluster"]) for case in known}
    found = any(case["better"] for case in known)
    for model in options.model or model_names():
        for cluster in options.cluster or CLUSTERS:
            if (model, cluster) in done:
                continue
            case = try_case(model, cluster, layouts=options.layouts, seed=options.seed)
            found |= bool(case.better)
            line = json.dumps(asdict(case))
            if options.out is None:
                print(line, flush=True)
            else:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
