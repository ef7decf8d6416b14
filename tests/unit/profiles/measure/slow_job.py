"""A run of the collector whose points take a moment each and need no torch, to be killed.

`python -m tests.unit.profiles.measure.slow_job DIR COUNT`: measures so many points into a directory, going on with what
is there.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from profiles.measure.journal import Journal
from profiles.measure.points import Point, Wanted, point
from profiles.measure.session import Result, Session

SECONDS = 0.002


def request(count: int) -> tuple[Wanted, ...]:
    """Return so many points."""
    return tuple(Wanted(point=point("launch", term="launch", kernels=kernels)) for kernels in range(1, count + 1))


class SlowJob:
    """Measures nothing, slowly; every tenth point fails."""

    leads = True

    def choice(self, index: int | None) -> int | None:
        return index

    def measure(self, point: Point) -> Result | str:
        time.sleep(SECONDS)
        kernels = point.size("kernels")
        return "it is a tenth" if kernels % 10 == 0 else {"seconds": 1e-6 * kernels}

    def is_lost(self) -> bool:
        return False

    def provenance(self) -> Mapping[str, object]:
        return {"device": "none", "called": ""}

    def conditions(self) -> Mapping[str, object]:
        return {"at": "now"}


if __name__ == "__main__":
    with Journal(Path(sys.argv[1]), resume=True) as journal:
        Session(request(int(sys.argv[2])), SlowJob()).run(journal)
