"""On how many examples a law is tried: few in every run of the suite, many where there is time for them.

`.ci/run` sets the variable and runs the laws a second time.
"""

import os

from benchmarks.checks.running import MANY_EXAMPLES


def examples(*, few: int, many: int) -> int:
    """Return the number of examples of a law."""
    return many if MANY_EXAMPLES in os.environ else few
