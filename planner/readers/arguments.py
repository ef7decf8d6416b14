"""What an argument list says: every use of a flag with its value and its place, and every mistake.

`planner.readers.argument_parser` takes the words apart.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite

from planner.errors import Location
from planner.readers.flag_tables import FlagSpec, FlagTable

UNRESOLVED = re.compile(r"\$|`")
"""What is left of a reference that only a run could resolve."""


class NotSaidError(Exception):
    """A value that is asked for is not said, or only a run could tell it.

    Args:
        what: The value.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class MistakeKind(StrEnum):
    """Why the framework's parser would stop, or would better be written otherwise."""

    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"
    ABBREVIATED = "abbreviated"
    MISSING_VALUE = "missing-value"
    EXTRA_VALUE = "extra-value"
    WRONG_TYPE = "wrong-type"
    NO_CHOICE = "no-choice"
    REPEATED = "repeated"
    DEPRECATED = "deprecated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One thing that is wrong with the words.

    Args:
        kind: What it is.
        word: The word, as written.
        location: Where it stands.
        message: What is wrong.
        nearest: What may have been meant, best first.
        flag: The flag that it is about, if that is known.
    """

    kind: MistakeKind
    word: str
    location: Location
    message: str
    nearest: tuple[str, ...] = ()
    flag: FlagSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One use of a flag.

    Args:
        flag: The flag.
        spelled: How it was written, without its value.
        value: What the framework makes of it; None where it could not be told.
        texts: Its words.
        location: Where the flag stands.
        value_location: Where its first word stands; the flag's own place without one.
    """

    flag: FlagSpec
    spelled: str
    value: object
    texts: tuple[str, ...]
    location: Location
    value_location: Location


def whole_number(value: object, dest: str) -> int | None:
    """Return a value that is a whole number, or None as it is.

    Raises:
        NotSaidError: It is something else, so that only a run could tell what `dest` is.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise NotSaidError(dest)


def words_of(value: object) -> tuple[str, ...]:
    """Return the parts of a list, or the one word; nothing of None."""
    if isinstance(value, list | tuple):
        return tuple(str(part) for part in value)
    return () if value is None else (str(value),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What an argument list says.

    Args:
        table: The flags that there are.
        file: Where the words stand, for messages.
        given: Every use of a flag, in order; a later one overrides an earlier.
        mistakes: Everything that is wrong, in order.
        start: Where the command stands, for what is missing.
        unread: Words where a flag may stand that only a run could tell.
    """

    table: FlagTable
    file: str
    given: tuple[Given, ...]
    mistakes: tuple[Mistake, ...]
    start: Location
    unread: tuple[str, ...] = ()
    _last: dict[str, Given] = field(default_factory=dict)

    def use(self, dest: str) -> Given | None:
        """Return the use that counts of the flags that write a value."""
        if not self._last:
            self._last.update({given.flag.dest: given for given in self.given})
        return self._last.get(dest)

    def is_given(self, dest: str) -> bool:
        """Return whether a flag that writes a value is used."""
        return self.use(dest) is not None

    def value(self, dest: str) -> object:
        """Return a value, or what the framework takes where it is not given.

        Raises:
            NotSaidError: It is given, but only a run could tell what it is; or there is no such flag.
        """
        use = self.use(dest)
        if use is None:
            if dest not in self.table.defaults:
                raise NotSaidError(dest)
            return self.table.defaults[dest]
        if use.value is None or (isinstance(use.value, list) and None in use.value):
            raise NotSaidError(dest)
        return use.value

    def integer(self, dest: str) -> int:
        """Return a whole number.

        Raises:
            NotSaidError: It is not said.
        """
        value = self.optional_integer(dest)
        if value is None:
            raise NotSaidError(dest)
        return value

    def optional_integer(self, dest: str) -> int | None:
        """Return a whole number, or None where it is not given and has no default.

        Raises:
            NotSaidError: It is given, but only a run could tell what it is.
        """
        return whole_number(self.value(dest), dest)

    def number(self, dest: str) -> float | None:
        """Return a number, or None where it is not given and has no default.

        Raises:
            NotSaidError: It is given, but only a run could tell what it is.
        """
        value = self.value(dest)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
            return float(value)
        raise NotSaidError(dest)

    def is_on(self, dest: str) -> bool:
        """Return whether a switch is on; a flag that this version does not have is off."""
        return dest in self.table.defaults and self.value(dest) is True

    def text(self, dest: str) -> str | None:
        """Return a text, or None where it is not given and has no default.

        Raises:
            NotSaidError: It is given, but only a run could tell what it is.
        """
        value = self.value(dest)
        return None if value is None else str(value)

    def texts(self, dest: str) -> tuple[str, ...]:
        """Return the words of a list; nothing where it is not given.

        Raises:
            NotSaidError: It is given, but only a run could tell what it is.
        """
        return words_of(self.value(dest))

    def place(self, *dests: str) -> Location:
        """Return where the first given of some values stands; where the command starts, if none is given."""
        for dest in dests:
            use = self.use(dest)
            if use is not None:
                return use.location
        return self.start
