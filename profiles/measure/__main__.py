"""`python -m profiles.measure`: measures points into a directory, alone or under torchrun or Slurm."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.measure.grid import ON_CPU, default_points
from profiles.measure.journal import Journal, JournalError
from profiles.measure.points import COLUMNS, Wanted, read_request
from profiles.measure.session import Progress, Session

if TYPE_CHECKING:
    from profiles.measure.ranks import Ranks

BAD_INPUT = 2
LOST = 3
"""Exit code where a kernel's error ended every later one; the next start goes on behind it."""

_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(text: str) -> float:
    """Return the seconds of "480", "8m", "90s" or "1h".

    Raises:
        ValueError: It is none of these.
    """
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _UNITS else (text, "s")
    value = float(number) * _UNITS[unit]
    if not 0 < value < 1e9:
        raise ValueError(f"{text!r} is no time above 0")
    return value


def parser() -> argparse.ArgumentParser:
    """Return the words of the command line."""
    made = argparse.ArgumentParser(prog="python -m profiles.measure", description=__doc__)
    made.add_argument("--out", type=Path, required=True, help="directory of the profile; made if it is not there")
    made.add_argument("--request", type=Path, help="file of points to measure, as `shardwright profile` writes it")
    made.add_argument("--suite", action="append", choices=list(COLUMNS), help="only this suite; may be given again")
    made.add_argument("--dtype", action="append", help="format of the grid's products; may be given again")
    made.add_argument("--budget", type=seconds_of, help="stop beginning points after so long: 480, 8m, 1h")
    made.add_argument("--resume", action="store_true", help="go on with what is in the directory")
    made.add_argument("--device", choices=("cuda", "cpu"), help="left out, a GPU if there is one")
    made.add_argument("--called", default="", help="name of the GPU in the catalogue or in a cluster file")
    made.add_argument("--scratch", type=Path, help="directory on the drive to measure; left out, --out")
    made.add_argument("--seconds", type=seconds_of, default=0.25, help="time that one point's samples take")
    made.add_argument("--progress", choices=("lines", "json", "none"), default="lines")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and return the exit code."""
    asked = parser().parse_args(words)
    try:
        wanted = None if asked.request is None else read_request(asked.request.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{asked.request}: {error}", file=sys.stderr)
        return BAD_INPUT
    # What is wrong with the words is said before torch takes its seconds to load.
    import torch

    from profiles.measure.ranks import started

    kind = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        ranks = started(kind)
    except ValueError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    # An error that nobody foresaw ends this process at once: a last meeting would wait for ranks that are elsewhere.
    code = _measured(asked, wanted, ranks)
    ranks.close()
    return code


def _measured(asked: argparse.Namespace, wanted: "tuple[Wanted, ...] | None", ranks: "Ranks") -> int:
    """Measure on all ranks, and return the exit code."""
    from profiles.measure.job import TorchJob
    from profiles.measure.timing import Effort

    kind = "cuda" if ranks.machine.is_cuda else "cpu"
    try:
        if wanted is None:
            formats = asked.dtype or (["bf16", "fp8"] if kind == "cuda" else ["bf16", "fp32"])
            grid = default_points(
                asked.suite or list(COLUMNS),
                dtypes=formats,
                world_size=ranks.world_size,
                per_node=ranks.per_node,
                shrink=ON_CPU if kind == "cpu" else 1,
            )
            wanted = tuple(Wanted(point=point) for point in grid)
        elif asked.suite:
            wanted = tuple(entry for entry in wanted if entry.point.suite in asked.suite)
        wanted = ranks.shared(wanted)
        job = TorchJob(
            ranks, effort=Effort(seconds=asked.seconds), scratch=asked.scratch or asked.out, called=asked.called
        )
        session = Session(wanted, job, budget_seconds=asked.budget, told=TELLERS[asked.progress])
        journal, problem = _opened(asked) if ranks.leads else (None, "")
        problem = ranks.shared(problem)
        if problem:
            if ranks.leads:
                print(problem, file=sys.stderr)
            return BAD_INPUT
        with nullcontext() if journal is None else journal:
            summary = session.run(journal)
        if summary.lost:
            print("the device takes no more work; start again with --resume", file=sys.stderr)
            return LOST
    except JournalError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    return 0


def _opened(asked: argparse.Namespace) -> tuple[Journal | None, str]:
    """Return the journal, or why it cannot be had."""
    try:
        return Journal(asked.out, resume=asked.resume), ""
    except JournalError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{asked.out}: {error.strerror}"


def _in_lines(progress: Progress) -> None:
    left = "" if progress.left_seconds is None else f", {progress.left_seconds:.0f} s left"
    text = f"{progress.done}/{progress.total}{left}: {progress.key or 'done'}"
    print(text, file=sys.stderr, flush=True)


def _in_json(progress: Progress) -> None:
    data = {
        "done": progress.done,
        "total": progress.total,
        "elapsed_seconds": progress.elapsed_seconds,
        "left_seconds": progress.left_seconds,
        "point": progress.key,
    }
    print(json.dumps(data), flush=True)


def _not_at_all(_progress: Progress) -> None:
    """Say nothing."""


TELLERS = {"lines": _in_lines, "json": _in_json, "none": _not_at_all}


if __name__ == "__main__":
    sys.exit(main())
