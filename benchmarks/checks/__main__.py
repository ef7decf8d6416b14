"""Run the acceptance checks and print what was wanted beside what was found.

    python -m benchmarks.checks --measurements DATA
    python -m benchmarks.checks --only accuracy --only search.llama-3.1-70b-8xdgx-h100 --format json
    python -m benchmarks.checks --list

All of them take a day of two cores, most of it `search.random-layouts-*`. Checks run one after the other, in the order
of the list. Seconds are printed as measured, beside those of a fixed loop of Python just before; only what a check
names is held against a target. The exit code is 1 where a target is missed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.checks.catalogue import CHECKS
from benchmarks.checks.check import Check
from benchmarks.checks.running import Row, Settings, rows_of
from benchmarks.checks.table import Table, document_of, listed, summary_lines
from benchmarks.checks.targets import Verdict


def chosen(names: Sequence[str] | None) -> tuple[Check, ...]:
    """Return the checks of some areas and names, in the order of the list; all of them for None."""
    if names is None:
        return CHECKS
    return tuple(check for check in CHECKS if check.area in names or check.full_name in names)


def known_names() -> tuple[str, ...]:
    """Return what `--only` takes: every area, then every check."""
    return (*dict.fromkeys(check.area for check in CHECKS), *(check.full_name for check in CHECKS))


def run_all(checks: Sequence[Check], settings: Settings, *, as_text: bool) -> list[Row]:
    """Run checks; as text, each row is printed as soon as it is known."""
    table = Table(checks)
    rows: list[Row] = []
    if as_text:
        print(table.header, flush=True)
    for check in checks:
        found = rows_of(check, settings)
        rows += found
        if as_text:
            print("\n".join(table.lines_of(found)), flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; return 1 where one is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checks", description="Run the acceptance checks; see --list."
    )
    parser.add_argument("--only", metavar="NAME", action="append", help="an area or a check; may be given again")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument(
        "--measurements", metavar="FOLDER", type=Path, help="published measurements, training/*.csv and so on"
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="keep what the runs print there")
    parser.add_argument("--workers", type=int, default=2, help="processes that tests of several files are dealt to")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.only or () if name not in known_names()]
    if unknown:
        parser.error(f"--only {unknown[0]}: neither an area nor a check; --list names them all")
    if options.measurements is not None and not options.measurements.is_dir():
        parser.error(f"--measurements {options.measurements}: no such folder")
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: at least 1")
    checks = chosen(options.only)
    if options.list:
        print("\n".join(listed(checks)))
        return 0
    with TemporaryDirectory() as fleeting:
        logs = (options.out or Path(fleeting)).resolve()
        logs.mkdir(parents=True, exist_ok=True)
        measurements = None if options.measurements is None else options.measurements.resolve()
        settings = Settings(logs=logs, measurements=measurements, workers=options.workers)
        rows = run_all(checks, settings, as_text=options.format == "text")
    if options.format == "json":
        print(json.dumps(document_of(rows), indent=2))
    else:
        print("\n".join(summary_lines(rows)))
    return int(any(row.verdict is Verdict.MISSED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
