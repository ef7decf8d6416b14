"""A parser of command lines for commands that start at once: the standard library's, with errors in our words.

Typer, which the other commands use, loads for longer than such a command takes.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from planner.errors import InputError


class PlainParser(argparse.ArgumentParser):
    """A parser that raises `InputError`, takes no abbreviations and shows examples below its help.

    Attributes:
        taken: Its options and arguments, help left out, in the order in which they were added.
    """

    taken: list[argparse.Action]

    def __init__(self, command: str, *, summary: str, usage: str, examples: Sequence[str]) -> None:
        super().__init__(
            prog=f"shardwright {command}",
            usage=f"shardwright {command} {usage}",
            description=summary,
            epilog="\n".join(["Examples:", *(f"  {line}" for line in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.taken = []

    def take(self, *names: str, **keywords: Any) -> None:
        """Add an option or an argument, as `add_argument` does."""
        self.taken.append(self.add_argument(*names, **keywords))

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the command line."""
        raise InputError(f"{message[0].upper()}{message[1:]}.", hint=f"Try '{self.prog} --help'.")


def at_least_one(text: str) -> int:
    """Return a whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or not text.isascii() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 999,999,999")
    return int(text)
