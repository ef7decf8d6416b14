"""The planner's errors: what, where, why, and what to do.

Only three things can go wrong besides our own bugs: the input is bad (`InputError`), a cost that is needed has no
source (`profiles.errors.CoverageError`), or a solver stopped with nothing (`solvers.errors.SolverError`). That no
plan fits is an answer (`planner.plans.plan.Infeasible`), not an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A place in the user's input; line and column count from 1."""

    file: str
    line: int | None = None
    column: int | None = None
    path: str = ""

    def __str__(self) -> str:
        """Return `file:line:column: field.path`, leaving out what is not known."""
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return f"{place}: {self.path}" if self.path else place


class PlannerError(Exception):
    """Base of every error that the planner raises on purpose."""


class InputError(PlannerError):
    """The user's input cannot be used.

    The message says what is wrong, why, and what to do; `location` says where.

    Args:
        message: What is wrong and why, one sentence each.
        location: Where it stands.
        hint: What is allowed, or what to do next.
    """

    def __init__(self, message: str, *, location: Location | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.location = location
        self.hint = hint

    def __str__(self) -> str:
        """Return the message with its place in front and its hint behind."""
        text = f"{self.location}: {self.message}" if self.location else self.message
        return f"{text}\n{self.hint}" if self.hint else text


class CombinedInputError(InputError):
    """Several things are wrong with the input; the first one stands for all where only one can be shown.

    Args:
        errors: At least one, in the order of the input.
    """

    def __init__(self, errors: Sequence[InputError]) -> None:
        super().__init__(errors[0].message, location=errors[0].location, hint=errors[0].hint)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        """Return every error, one after the other."""
        return "\n".join(str(error) for error in self.errors)


class NotExpressibleError(PlannerError):
    """The target framework has no way to say what the plan says."""

    def __init__(self, message: str, *, target: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.target = target
        self.hint = hint

    def __str__(self) -> str:
        """Return the message with its target in front and its hint behind."""
        text = f"{self.target}: {self.message}"
        return f"{text}\n{self.hint}" if self.hint else text


class BrokenPromiseError(Exception):
    """The program contradicts itself: our bug, never the user's."""
