"""How much of an engine's steps is measured: of one that continues running answers, and of one with a prompt."""

from collections.abc import Mapping
from dataclasses import replace

from planner.serving.source_fractions import COUNTED, fractions
from planner.serving.step_costs import StepCosts
from planner.serving_plans.layout import Role
from planner.serving_search.candidates import Candidate, Ground, costs_of
from profiles.estimate import Source

STEP, PROMPT = "step", "prompt"


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
    counting = {source: costs_of(_counting(candidate.ground, source), candidate.build) for source in COUNTED}
    found: dict[str, Mapping[str, float]] = {}
    if role is not Role.PREFILL:
        parts = {of: sum(answers_step(candidate, costs, running=running).values()) for of, costs in counting.items()}
        found[STEP] = fractions(sum(answers_step(candidate, candidate.costs, running=running).values()), parts)
    if role is not Role.DECODE:
        parts = {of: sum(prompt_step(candidate, costs).values()) for of, costs in counting.items()}
        found[PROMPT] = fractions(sum(prompt_step(candidate, candidate.costs).values()), parts)
    return found


def _counting(ground: Ground, source: Source) -> Ground:
    """Return a ground where prices of one source count."""
    draft = ground.draft
    if draft is not None:
        draft = replace(draft, prices=draft.prices.counting(source))
    return replace(ground, prices=ground.prices.counting(source), draft=draft)
