"""How much of an engine's step is measured: of one that continues running answers, and of one with a prompt.

Each source's part is the step priced once more where only prices of that source count
(`planner.serving.prices.ServingPrices.counting`). What is left is analytic, the host's time among it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from planner.serving.step_costs import StepCosts
from planner.serving_layout import Role
from planner.serving_search.candidates import Candidate, Ground, costs_of
from profiles.estimate import Source

STEP, PROMPT = "step", "prompt"

COUNTED = tuple(source for source in Source if source is not Source.ANALYTIC)


def answers_step(candidate: Candidate, costs: StepCosts, *, running: float) -> dict[str, float]:
    """Return the seconds by term of a step that continues so many running answers."""
    mean = candidate.ground.mean
    return costs.breakdown(decodes=running, context=mean.prompt + mean.output / 2)


def prompt_step(candidate: Candidate, costs: StepCosts) -> dict[str, float]:
    """Return the seconds by term of a step with a prompt, or with as much of one as a step takes."""
    mean = candidate.ground.mean
    tokens = min(float(candidate.budget), mean.prompt - mean.cached)
    return costs.breakdown(chunks=[(tokens, mean.cached)], decodes=0, context=0.0, finished=1)


def source_fractions(candidate: Candidate, role: Role, *, running: float) -> Mapping[str, Mapping[str, float]] | None:
    """Return which part of an engine's steps comes from where; None where the GPU was not measured.

    Args:
        candidate: The engine.
        role: What it does with a request; steps that it does not run are left out.
        running: Running answers of a data-parallel rank.
    """
    if not candidate.ground.prices.is_measured:
        return None
    counting = {
        source: costs_of(_counting(candidate.ground, source), candidate.build) for source in COUNTED
    }
    found: dict[str, Mapping[str, float]] = {}
    for name, priced in _steps(candidate, role, {None: candidate.costs, **counting}, running=running):
        whole = priced.pop(None)
        parts = {source: min(max(seconds, 0.0) / whole, 1.0) for source, seconds in priced.items() if source}
        # Of experts with copies the slower of two prices counts, so that parts may come to a trifle more than all.
        total = max(sum(parts.values()), 1.0)
        parts = {source: part / total for source, part in parts.items()}
        parts[Source.ANALYTIC] = max(0.0, 1.0 - sum(parts.values()))
        found[name] = {source.value: parts[source] for source in Source}
    return found


def _steps(
    candidate: Candidate, role: Role, costs: Mapping[Source | None, StepCosts], *, running: float
) -> Iterator[tuple[str, dict[Source | None, float]]]:
    """Yield each kind of step that an engine runs, with its seconds by what counts; None is all."""
    if role is not Role.PREFILL:
        seconds = {of: sum(answers_step(candidate, priced, running=running).values()) for of, priced in costs.items()}
        yield STEP, seconds
    if role is not Role.DECODE:
        yield PROMPT, {of: sum(prompt_step(candidate, priced).values()) for of, priced in costs.items()}


def _counting(ground: Ground, source: Source) -> Ground:
    """Return a ground where prices of one source count."""
    draft = ground.draft
    if draft is not None:
        draft = replace(draft, prices=draft.prices.counting(source))
    return replace(ground, prices=ground.prices.counting(source), draft=draft)
