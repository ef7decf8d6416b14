"""Files of a folder that should be judged and cannot be read."""

from collections.abc import Iterator
from dataclasses import dataclass

from planner.errors import InputError, Location
from planner.readers.flag_tables import Framework
from planner.rules.rule import Found, FoundAt, Rule, rule


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadFile:
    """A file that could not be read, and that nobody named itself.

    Args:
        file: What messages call it.
        error: Why.
        text: What it holds, as far as that can be told.
    """

    file: str
    error: InputError
    text: str = ""

    @property
    def place(self) -> Location:
        """Return where it is damaged."""
        return self.error.location or Location(file=self.file)


@rule(
    id="FIL001",
    name="file-that-cannot-be-read",
    framework=tuple(Framework),
    prevents="a launch script or configuration that is taken for sound, because nobody looked at it",
    found_at=FoundAt.PARSE,
    source="planner/documents, planner/readers/shell_words.py",
)
def unread_file(file: UnreadFile) -> Iterator[Found]:
    """A file of a folder that starts a framework's program, or holds its options, can be read.

    It is damaged, too large or no UTF-8, so no other rule has looked at it. Files that name no framework are counted
    as not read, and nothing else is said of them; a file that is named itself ends the command with 2 instead.
    """
    yield Found(place=file.place, message=f"Not judged: {file.error.message}", hint=file.error.hint)


RULES: tuple[Rule[UnreadFile], ...] = (unread_file,)
