"""Damage inputs of every kind in seeded ways, give them to every command, and say which of them is taken badly.

    python -m benchmarks.hostile
    python -m benchmarks.hostile --cases 500 --workers 1
    python -m benchmarks.hostile --case 4711

It prints a line for every target: how many inputs were tried, what the commands ended with, and the processor seconds
of the slowest beside those of the undamaged one. It ends with 1 if anything is taken badly (`benchmarks.hostile.
attempts` says what that is).
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from benchmarks.hostile.attempts import INPUTS, Attempt, attempts, undamaged
from benchmarks.hostile.targets import TARGETS

BATCH = 500


def table(plain: Iterable[Attempt], tried: Sequence[Attempt]) -> list[str]:
    """Return a line for every target."""
    lines = [f"{'target':<42} {'tried':>6} {'slowest':>8} {'plain':>6}  ended with"]
    for sound in plain:
        of_target = [attempt for attempt in tried if attempt.target == sound.target]
        if not of_target:
            continue
        codes = Counter("hung" if attempt.code is None else str(attempt.code) for attempt in of_target)
        ends = ", ".join(f"{code} x{count}" for code, count in sorted(codes.items()))
        slowest = max(of_target, key=lambda attempt: attempt.cpu_seconds)
        lines.append(
            f"{sound.target:<42} {len(of_target):>6,} {slowest.cpu_seconds:>7.2f}s {sound.cpu_seconds:>5.2f}s  {ends}"
        )
    return lines


def faults(tried: Iterable[Attempt]) -> list[str]:
    """Return what was taken badly, in lines."""
    return [f"case {attempt.case} ({attempt.target}): {fault}" for attempt in tried for fault in attempt.faults]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=INPUTS, help="how many inputs are damaged")
    parser.add_argument("--case", type=int, help="one case alone, and its command line")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="lines, or one JSON document")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    if options.case is not None:
        (attempt,) = attempts([options.case])
        print(" ".join(attempt.words), f"-> {attempt.code}")
        print("\n".join(faults([attempt])) or "taken well")
        sys.exit(bool(attempt.faults))
    batches = [range(first, min(first + BATCH, options.cases)) for first in range(0, options.cases, BATCH)]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        shares = [range(first, len(TARGETS), options.workers) for first in range(options.workers)]
        plain = [sound for found in pool.map(undamaged, shares) for sound in found]
        tried = [attempt for found in pool.map(attempts, batches) for attempt in found]
    badly = faults([*plain, *tried])
    if options.format == "json":
        print(json.dumps({"inputs": len(tried), "taken_badly": badly}, indent=2))
        sys.exit(bool(badly))
    print("\n".join(table(plain, tried)))
    print("\n".join(badly[:200]))
    seconds = sum(attempt.cpu_seconds for attempt in tried)
    print(f"{len(tried):,} inputs in {seconds:,.0f} processor seconds, {len(badly)} taken badly")
    sys.exit(bool(badly))


if __name__ == "__main__":
    main()
