"""Histograms that are assumed where none was recorded: tokens drawn by shuffled Zipf or lognormal weights, or even."""

import re

import numpy as np

from planner.errors import InputError
from planner.experts.histogram import Floats, RoutingHistogram

NAMED = re.compile(r"(zipf|lognormal):([0-9]+(?:\.[0-9]+)?)", re.ASCII)
UNIFORM = "uniform"
LARGEST_PARAMETER = 10.0
"""Far above published fits, which lie below 2."""

TOKENS = 1_000_000
"""Choices drawn for each layer."""


def is_assumption(name: str) -> bool:
    """Return whether a name stands for an assumed histogram: "zipf:1.0", "lognormal:0.5", "uniform"."""
    return name == UNIFORM or NAMED.fullmatch(name) is not None


def assumed_histogram(name: str, *, num_layers: int, num_experts: int, seed: int) -> RoutingHistogram:
    """Return the histogram that a name stands for.

    Zipf: the weight of the i-th expert is 1 / i^a. Lognormal: weights are exp(sigma z), z normal. In each layer the
    experts are shuffled, and `TOKENS` choices are drawn from the weights. Uniform: all counts are equal.

    Raises:
        InputError: The parameter is beyond what can be drawn from.
    """
    if name == UNIFORM:
        even = np.ones((num_layers, num_experts))
        source = f"assumed: uniform, {num_layers} layers of {num_experts} experts"
        return RoutingHistogram(source=source, tokens_LE=even, assumed=True)
    found = NAMED.fullmatch(name)
    assert found is not None, name
    kind, parameter = found[1], float(found[2])
    if parameter > LARGEST_PARAMETER:
        raise InputError(f"{name}: the parameter is above {LARGEST_PARAMETER:g}.", hint="Published fits lie below 2.")
    generator = np.random.default_rng(seed)
    counts = np.stack([_counts(kind, parameter, num_experts, generator) for _ in range(num_layers)])
    source = f"assumed: {kind} {parameter:g}, {num_layers} layers of {num_experts} experts, seed {seed}"
    return RoutingHistogram(source=source, tokens_LE=counts, assumed=True)


def _counts(kind: str, parameter: float, num_experts: int, generator: np.random.Generator) -> Floats:
    if kind == "zipf":
        weights = 1.0 / np.arange(1, num_experts + 1) ** parameter
    else:
        weights = generator.lognormal(0.0, parameter, num_experts)
    weights = generator.permutation(weights)
    return generator.multinomial(TOKENS, weights / weights.sum()).astype(np.float64)
