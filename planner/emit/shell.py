"""Text for bash that no user string can break out of.

Strings of the user (model and cluster names, data and tokenizer paths) reach a script in three places only: as a
quoted word, as a comment, as the name of a batch job. Each has its function here.
"""

import re
import shlex
from collections.abc import Iterable, Sequence

from planner.errors import InputError

INDENT = "    "


def quote(word: str, *, what: str) -> str:
    """Return `word` as one word of bash, whatever it holds.

    Args:
        word: The word; everything but a NUL character and lone surrogates can be passed to a program.
        what: What the word is, for the error message.
    """
    if "\0" in word:
        raise InputError(
            f"{what} holds a NUL character, which no program can be given as an argument.",
            hint="Remove it.",
        )
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is not valid text: {error.reason}.", hint="Write it in UTF-8.") from None
    return shlex.quote(word)


def comment(text: str) -> str:
    """Return `text` as one comment line; characters that could end the line are written as escapes."""
    visible = "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in text
    )
    return f"# {visible}".rstrip()


def job_name(text: str) -> str:
    """Return `text` with everything but ASCII letters, digits, dot, dash and underscore replaced by a dash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "job"


def array(name: str, sections: Iterable[tuple[str, Sequence[Sequence[str]]]]) -> list[str]:
    """Return the lines of a bash array.

    Args:
        name: Name of the array.
        sections: A comment, and rows of words; a row is one line.
    """
    lines = [f"{name}=("]
    for title, rows in sections:
        lines.append(INDENT + comment(title))
        for row in rows:
            first = row[0]
            lines.append(INDENT + " ".join(quote(word, what=f"the value of {first}") for word in row))
    lines.append(")")
    return lines
