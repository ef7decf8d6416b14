"""How much of a step is measured, interpolated and so on.

Each source's part is the step priced once more where only prices of that source count
(`planner.serving.prices.ServingPrices.counting`). What is left is analytic, the host's time among it.
"""

from collections.abc import Mapping

from profiles.estimate import Source

COUNTED: tuple[Source, ...] = tuple(source for source in Source if source is not Source.ANALYTIC)
"""Sources of which a step is priced once more."""


def fractions(whole_seconds: float, part_seconds: Mapping[Source, float]) -> Mapping[str, float]:
    """Return which part of a step comes from where; the parts add up to 1.

    Args:
        whole_seconds: The step.
        part_seconds: The same where only prices of one source count, for each of `COUNTED`.
    """
    parts = {source: max(part_seconds[source], 0.0) / whole_seconds for source in COUNTED}
    # Of experts with copies the slower of two prices counts, so that parts may come to a trifle more than all.
    most = max(sum(parts.values()), 1.0)
    parts = {source: part / most for source, part in parts.items()}
    parts[Source.ANALYTIC] = max(0.0, 1.0 - sum(parts.values()))
    return {source.value: parts[source] for source in Source}
