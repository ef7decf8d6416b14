"""On how many examples a law is tried: few in every run of the suite, many where there is time for them.

`.ci/run` sets the variable and runs the laws a second time.
"""

import os

VARIABLE = "SHARDWRIGHT_MANY_EXAMPLES"


def examples(*, few: int, many: int) -> int:
    """Return the number of examples of a law."""
    return many if VARIABLE in os.environ else few
