"""Answers to `--why-not tp=8,pp=2`: the best layout with these settings, or what stands against any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import InputError, NotExpressibleError
from planner.plans.plan import Plan
from solvers.errors import SolverError

if TYPE_CHECKING:
    from profiles.hardware import Cluster

SETTINGS_HINT = "Write settings of `constraints` with commas between them: --why-not tp=8,pp=2,recompute=full."


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one question.

    Args:
        question: The settings, as they were asked.
        plan: The best layout with them, or why none fits; None where the search did not begin or end.
        refusals: What stands against them where no search began or ended.
    """

    question: str
    plan: Plan | None
    refusals: tuple[str, ...] = ()


def settings_of(question: str) -> tuple[str, ...]:
    """Return the settings of a question.

    Raises:
        InputError: It is no list of settings.
    """
    settings = tuple(part.strip() for part in question.split(","))
    if not all("=" in setting and not setting.startswith("=") for setting in settings):
        raise InputError(f"--why-not {question}: this is no list of settings.", hint=SETTINGS_HINT)
    return settings


def answer(
    question: str,
    settings: Sequence[str],
    *,
    on: "Cluster",
    spec: Path,
    overrides: Sequence[str],
    options: Mapping[str, str],
) -> Answer:
    """Return the best layout under the settings of a question, or what stands against all of them.

    Args:
        question: The question, such as "tp=8,pp=2".
        settings: Its settings.
        on: What the plan is for: the spec's cluster, or as many of its nodes as were chosen.
        spec: The spec that was planned.
        overrides: What replaced fields of it.
        options: What options of the command replaced.

    Raises:
        InputError: The question names no setting, or one that there is not.
    """
    from planner.inputs.load import load_alternative
    from planner.search.search import search

    inputs, contradictions = load_alternative(spec, overrides, settings, options=options)
    if contradictions:
        return Answer(question=question, plan=None, refusals=tuple(error.message for error in contradictions))
    try:
        return Answer(question=question, plan=search(inputs.model, on, inputs.request, top=1))
    except NotExpressibleError as error:
        return Answer(question=question, plan=None, refusals=(error.message,))
    except SolverError as error:
        return Answer(question=question, plan=None, refusals=(f"{error}: this is no proof that none fits",))
