"""Starts the collector, shows its progress, and says which points it is to measure.

The collector (`python -m profiles.measure`) is a process of its own, with an interpreter that has torch; several are
started by torchrun, which comes with it. It writes the store itself, so that whatever becomes of this process nothing
measured is lost.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from cli.named_model import read_named_model
from cli.output import note, wants_progress
from planner.errors import InputError
from planner.inputs.load import Inputs, load_inputs
from planner.serving_search.inputs import ServeInputs
from profiles.catalogue import load_preset
from profiles.errors import ProfileFileError
from profiles.measure.__main__ import LOST
from profiles.measure.grid import ON_CPU, default_points
from profiles.measure.journal import FILE
from profiles.measure.points import Point, Wanted
from profiles.recorded import read_recording

_Update = Callable[[int, int, str, str], None]

GRID_WEIGHT = 0.2
"""What a point of the grid weighs beside those of named models, which average to 1."""

WHOLE_WEIGHT = 5.0
"""What points weigh that stand for a whole (overlap, launches, memory, layers): there are few of them."""

WHOLE = ("overlap", "memory", "launch", "layer")

SPEC_OF_MODEL = """\
schema: 1
model: {model}
cluster: {{preset: {cluster}, nodes: {nodes}}}
workload: {{kind: train, seq_len: {seq_len}, global_batch_size: 128, precision: bf16}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How the collector is started.

    Args:
        python: Interpreter that has torch.
        processes: Processes of one node.
        words: Its command line.
    """

    python: str
    processes: int
    words: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """Return the whole command line."""
        if self.processes == 1:
            return [self.python, "-m", "profiles.measure", *self.words]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        return [self.python, *torchrun, "-m", "profiles.measure", *self.words]


def inputs_of_model(model: str, *, cluster: str, nodes: int, seq_len: int) -> Inputs:
    """Return the inputs of a spec that names a model and nothing else of its own.

    Raises:
        InputError: There is no such model.
        profiles.errors.CatalogueError: There is no such cluster.
    """
    read_named_model(model, where="--model")
    load_preset(cluster)
    reference = str(Path(model).absolute()) if Path(model).exists() else model
    values = {"model": json.dumps(reference), "cluster": json.dumps(cluster), "nodes": nodes, "seq_len": seq_len}
    with TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.yaml"
        spec.write_text(SPEC_OF_MODEL.format(**values), encoding="utf-8")
        return load_inputs(spec)


def priced_again(runs: Sequence[Inputs], directory: Path) -> tuple[Inputs, ...]:
    """Return the runs that a profile in work prices, with its prices; none where nothing is measured yet.

    Other prices lead a search to other layouts, whose shapes the published ones have not asked for.
    """
    if not (directory / FILE).is_file():
        return ()
    try:
        recording = read_recording(directory)
    except ProfileFileError:
        return ()  # nothing is measured yet; what else is wrong the collector says
    own = [run for run in runs if run.cluster.device.name == recording.device]
    return tuple(replace(run, cluster=replace(run.cluster, profile=recording.reference)) for run in own)


def request(
    runs: Sequence[Inputs],
    *,
    servers: Sequence[ServeInputs] = (),
    suites: Sequence[str],
    dtypes: Sequence[str],
    grid: bool,
    world_size: int,
    per_node: int,
    on_cpu: bool,
) -> tuple[Wanted, ...]:
    """Return what is to be measured: what the runs need and what the grid adds, in that order.

    Args:
        runs: What is to be trained; without it and without servers the grid is left alone.
        servers: What is to be served.
        suites: Which suites.
        dtypes: Formats of the grid's products.
        grid: The grid is added; else only what stands for a whole.
        world_size: Ranks of the job that measures.
        per_node: Ranks of one of its nodes.
        on_cpu: They have no GPUs.
    """
    from planner.profiling.wanted_points import wanted_points
    from planner.profiling.wanted_serving import wanted_serving_points

    weights: dict[Point, float] = {}
    trained = (wanted_points(run.model, run.cluster, run.request) for run in runs)
    for entry in chain.from_iterable((*trained, *map(wanted_serving_points, servers))):
        fits = entry.point.suite != "collectives" or _fits(entry.point, world_size)
        if entry.point.suite in suites and fits:
            weights[entry.point] = weights.get(entry.point, 0.0) + entry.weight
    grid_weight = GRID_WEIGHT if weights else 1.0
    shrink = ON_CPU if on_cpu else 1
    for point in default_points(suites, dtypes=dtypes, world_size=world_size, per_node=per_node, shrink=shrink):
        if grid or point.suite in WHOLE:
            weights.setdefault(point, WHOLE_WEIGHT if point.suite in WHOLE else grid_weight)
    return tuple(Wanted(point=point, weight=weight) for point, weight in weights.items())


def _fits(point: Point, world_size: int) -> bool:
    """Return whether a job of so many ranks has groups of a collective's shape."""
    size, stride = point.size("size"), point.size("stride")
    return size <= world_size and world_size % (size * stride) == 0


def collect_on(launch: Launch, directory: Path, *, budget_seconds: float | None, resume: bool, quiet: bool) -> int:
    """Run the collector to its end, and again behind each kernel that ends a process; return its exit code.

    A kernel whose error ends every later one of its process is written down with the reason and not tried again, so
    that a new process goes on behind it. Where `MOST_FRUITLESS` in a row measure nothing, the last ends it.

    Args:
        launch: The collector, without words for time and for going on.
        directory: Where it writes.
        budget_seconds: Points are begun for so long, over all processes; None for all of them.
        resume: Go on with what is in the directory.
        quiet: No progress and no notes.

    Raises:
        InputError: The interpreter cannot be started.
    """
    begun = time.monotonic()
    measured, fruitless = _measured_points(directory), 0
    while True:
        left = None if budget_seconds is None else budget_seconds - (time.monotonic() - begun)
        more = [] if left is None else ["--budget", f"{left:.1f}"]
        more += ["--resume"] if resume else []
        code = collect(replace(launch, words=(*launch.words, *more)), quiet=quiet)
        before, measured = measured, _measured_points(directory)
        fruitless = fruitless + 1 if measured == before else 0
        if code != LOST or fruitless == MOST_FRUITLESS:
            return code
        if budget_seconds is not None and budget_seconds - (time.monotonic() - begun) < LEAST_SECONDS:
            return 0
        if not quiet:
            note("A kernel ended the process; another one goes on behind it.")
        resume = True


def left_open(directory: Path, wanted: Sequence[Wanted]) -> int:
    """Return how many wanted points a directory holds nothing of: neither a measurement nor why there is none."""
    known = {entry.point for entry in read_recording(directory).content.entries}
    return sum(entry.point not in known for entry in wanted)


def _measured_points(directory: Path) -> int:
    """Return how many points a directory holds that were measured; none where it cannot be read yet."""
    try:
        return len(read_recording(directory).measured)
    except ProfileFileError:
        return 0  # nothing is measured yet; what else is wrong the collector says


MOST_FRUITLESS = 3
"""Processes in a row that are lost before they have measured anything: then it is not a kernel's fault."""

LEAST_SECONDS = 5.0
"""A process that would measure for less is not started again: torch alone takes as long to load."""


def collect(launch: Launch, *, quiet: bool) -> int:
    """Run the collector to its end and return its exit code.

    Its progress is a bar with the time left on a terminal, nothing in CI, in a pipe, or where quiet is asked for.

    Raises:
        InputError: The interpreter cannot be started.
    """
    root = Path(__file__).parents[1]
    search_path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": search_path}
    # Processes of one node share its CPUs; torchrun would otherwise leave each a single one, and say so.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // launch.processes)))
    try:
        process = subprocess.Popen(launch.command, stdout=subprocess.PIPE, text=True, env=environment)
    except OSError as error:
        raise InputError(
            f"{launch.python} cannot be started: {error.strerror}.", hint="Name an interpreter with --python."
        ) from None
    assert process.stdout is not None, "its output is a pipe"
    with process, _shown(show=wants_progress() and not quiet) as show:
        for line in process.stdout:
            show(line)
    return process.returncode


def require_torch(python: str) -> None:
    """Raise where an interpreter has no torch.

    Raises:
        InputError: It has not, or it cannot be started.
    """
    probe = [python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"]
    try:
        found = subprocess.run(probe, check=False, capture_output=True).returncode == 0
    except OSError as error:
        raise InputError(
            f"{python} cannot be started: {error.strerror}.", hint="Name an interpreter with --python."
        ) from None
    if not found:
        own = "This environment" if python == sys.executable else python
        raise InputError(
            f"{own} has no torch, which measuring needs.",
            hint="Install the extra `profile`, name an interpreter with --python, or write a launcher with --emit.",
        )


@contextmanager
def _shown(*, show: bool) -> Iterator["_Show"]:
    """Yield what takes the collector's lines of progress."""
    if not show:
        yield _Show()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    progress = Progress(
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        task = progress.add_task("", left="")

        def update(done: int, total: int, left: str, point: str) -> None:
            progress.update(task, completed=done, total=total, left=left, description=point)

        yield _Show(update)


class _Show:
    """Takes the collector's lines of progress.

    Args:
        update: Is told points done and in all, the time left in words, and the point in work.
    """

    def __init__(self, update: _Update | None = None) -> None:
        self._update = update

    def __call__(self, line: str) -> None:
        """Take one line; what is no progress is a library's own word."""
        if self._update is None:
            return
        try:
            data = json.loads(line)
            done, total, left = int(data["done"]), int(data["total"]), data["left_seconds"]
        except (ValueError, KeyError, TypeError):
            return
        self._update(done, total, "" if left is None else time_left(float(left)), str(data["point"])[:60])


def time_left(seconds: float) -> str:
    """Return "3 min left" or "40 s left"."""
    return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
