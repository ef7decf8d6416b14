"""What is wrong with an option or argument, in the words of this project instead of a library's."""

import re

import typer
from typer.core import TyperCommand

WORDS = (
    (re.compile(r"^Value error, (.*)$", re.DOTALL), r"\1"),
    (re.compile(r"^Input should be a valid integer.*$", re.DOTALL), "It must be a whole number."),
    (re.compile(r"^Input should be a (?:valid|finite) number.*$", re.DOTALL), "It must be a number."),
    (re.compile(r"^Input should be greater than or equal to (\S+)$"), r"It must be at least \1."),
    (re.compile(r"^Input should be less than or equal to (\S+)$"), r"It must be at most \1."),
)
"""What the option parser says of a value, and what is said instead."""


class PlainCommand(TyperCommand):
    """A command whose usage errors are in plain words."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Return the arguments that are left; the value of every option is checked on the way."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = in_plain_words(error.message)
            raise


def in_plain_words(message: str) -> str:
    """Return what is wrong with a value as we would say it; what is not known stays as it is."""
    for pattern, replacement in WORDS:
        if pattern.match(message):
            return pattern.sub(replacement, message)
    return message
