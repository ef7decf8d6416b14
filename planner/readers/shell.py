"""What a bash script says without being run: its commands, variables and exports, with the line and column of words.

Assignments `NAME=word`, `NAME=(words)` and `NAME+=(words)` are followed, and references replaced by what they stand
for. Unknown names stay in the text as they are written, and what stands inside `if`, loops and functions is left out,
because only a run could tell whether it happens. How text falls into words is said by `planner.readers.shell_words`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from planner.errors import InputError, Location
from planner.readers.shell_words import Piece, RawWord, behind, statements

OPENING = frozenset({"if", "for", "while", "until", "case", "select", "{"})
CLOSING = frozenset({"fi", "done", "esac", "}"})
CLAUSES = frozenset({"then", "do", "else", "elif", "in", "!", "time", "exec", "command"})

MAX_EXPANDED = 1 << 20
"""Most characters that the references of a script may stand for, all together; `A=$A$A` doubles them in every line."""

MAX_EXPANDED_WORDS = 1 << 16
"""Most words that they may stand for, likewise; a word takes longer to read than a character."""

MAX_SCRIPT_BYTES = 64 << 10
"""Largest script that is read; launch scripts have a few kilobytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word after expansion, with the place it was written at.

    Args:
        text: The word.
        line: Where it stands.
        column: Where it stands.
        file: The file that it stands in, where that is another than the script's.
        literal: It comes from where nothing is expanded, so a dollar sign in it is one.
    """

    text: str
    line: int
    column: int
    file: str = ""
    literal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A simple command.

    Args:
        words: Its words, references resolved.
        environment: Variables that are set for it alone, in front of it.
    """

    words: tuple[Word, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Script:
    """What a script says without being run.

    Args:
        commands: Simple commands in order, references resolved.
        exports: Variables that the script exports, by name; an unset variable is removed.
        comments: Comment lines with their line number, without the `#`.
        variables: What each variable holds at the end, an array word by word.
        file: What messages call the script.
    """

    file: str

    commands: list[Command] = field(default_factory=list)
    exports: dict[str, str] = field(default_factory=dict)
    comments: list[tuple[int, str]] = field(default_factory=list)
    variables: dict[str, tuple[Word, ...]] = field(default_factory=dict)
    _expanded: int = 0
    _expanded_words: int = 0

    def count_expanded(self, part: Word, *, words: int) -> None:
        """Count what a reference stands for.

        Args:
            part: The text.
            words: How many words it is split into.

        Raises:
            InputError: It is more than any launch script needs.
        """
        self._expanded += len(part.text) + 1
        self._expanded_words += words
        characters_full, words_full = self._expanded > MAX_EXPANDED, self._expanded_words > MAX_EXPANDED_WORDS
        if characters_full or words_full:
            most = f"{MAX_EXPANDED:,} characters" if characters_full else f"{MAX_EXPANDED_WORDS:,} words"
            raise InputError(
                f"The references of the script stand for more than {most}.",
                location=Location(file=self.file, line=part.line, column=part.column),
                hint="Check for a variable that is put into itself.",
            )


@lru_cache(maxsize=1)
def read_script(text: str, *, file: str) -> Script:
    """Return the commands, exports and comments of a bash script; nobody changes what is returned.

    The last one is kept: every framework's reader asks for it in turn.
    """
    script = Script(file=file)
    depth = 0
    for statement in statements(text, file=file, comments=script.comments):
        words = list(statement)
        while words and words[0].keyword in CLAUSES:
            words.pop(0)
        if not words:
            continue
        keyword = words[0].keyword
        if keyword in CLOSING:
            depth = max(0, depth - 1)
        elif keyword in OPENING or keyword == "function":
            depth += 1
        elif depth == 0:
            _run(words, script)
    return script


def _run(words: list[RawWord], script: Script) -> None:
    keyword, variables = words[0].keyword, script.variables
    if keyword in {"export", "declare", "readonly", "local"}:
        for word in words[1:]:
            match = word.assignment
            if match is not None:
                _assign(word, match, script)
            name = match.group(1) if match else word.keyword
            if keyword == "export" and name in variables:
                script.exports[name] = " ".join(element.text for element in variables[name])
        return
    if keyword == "unset":
        for word in words[1:]:
            script.exports.pop(word.keyword, None)
            variables.pop(word.keyword, None)
        return
    _run_command(words, script)


def _run_command(words: list[RawWord], script: Script) -> None:
    """Note a command with the variables that are set for it alone; assignments without a command stay."""
    before: dict[str, tuple[Word, ...] | None] = {}
    while words and (match := words[0].assignment) is not None:
        before.setdefault(match.group(1), script.variables.get(match.group(1)))
        _assign(words.pop(0), match, script)
    if not words:
        return
    environment = {name: " ".join(word.text for word in script.variables[name]) for name in before}
    for name, value in before.items():
        if value is None:
            script.variables.pop(name)
        else:
            script.variables[name] = value
    expanded = tuple(found for word in words for found in _expand(word, script))
    script.commands.append(Command(words=expanded, environment=environment))


def _assign(word: RawWord, match: re.Match[str], script: Script) -> None:
    name, append, variables = match.group(1), match.group(2) == "+", script.variables
    before = variables.get(name, ()) if append else ()
    if word.elements is not None:
        elements = tuple(found for element in word.elements for found in _expand(element, script))
        variables[name] = (*before, *elements)
        return
    first = word.pieces[0]
    rest = Piece(
        text=first.text[match.end() :], quoted=True, line=first.line, column=first.column + match.end(), name=None
    )
    kept = [rest, *word.pieces[1:]] if rest.text or len(word.pieces) == 1 else word.pieces[1:]
    quoted = [
        Piece(text=p.text, quoted=True, line=p.line, column=p.column, name=p.name, default=p.default) for p in kept
    ]
    found = (*before[:1], *_expand(RawWord(quoted), script))
    text = "".join(part.text for part in found)
    start = found[0] if found else Word(text="", line=rest.line, column=rest.column)
    variables[name] = (Word(text=text, line=start.line, column=start.column), *before[1:])


def _expand(word: RawWord, script: Script) -> list[Word]:
    """Return what a word becomes: references replaced, unquoted results split at white space."""
    fields: list[list[Word]] = [[]]
    for piece in word.pieces:
        for index, (part, splits) in enumerate(_parts(piece, script.variables)):
            found = _split(part) if splits else [part]
            if piece.name is not None:
                script.count_expanded(part, words=len(found))
            if index:
                fields.append([])
            for number, one in enumerate(found):
                if number:
                    fields.append([])
                fields[-1].append(one)
    return [_glued(parts) for parts in fields if parts]


def _glued(parts: Sequence[Word]) -> Word:
    """Return the word that parts without a blank between make; it stands where the first stands."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    text = "".join(part.text for part in parts)
    return Word(text=text, line=first.line, column=first.column, file=first.file, literal=first.literal)


def _parts(piece: Piece, variables: Mapping[str, tuple[Word, ...]]) -> Iterator[tuple[Word, bool]]:
    """Yield the words that a piece stands for, each with whether it is split again."""
    if piece.name is None:
        yield Word(text=piece.text, line=piece.line, column=piece.column), False
    elif piece.name in variables:
        for word in variables[piece.name]:
            yield word, not piece.quoted
    elif piece.default is not None:
        yield Word(text=piece.default, line=piece.line, column=piece.column), not piece.quoted
    elif piece.name not in {"@", "*"}:
        yield Word(text=piece.text, line=piece.line, column=piece.column), False


def _split(word: Word) -> list[Word]:
    """Return the fields of a value, placed as if the value were written where it starts."""
    found: list[Word] = []
    line, column = word.line, word.column
    for text in re.split(r"([ \t\n]+)", word.text):
        if text and not text.isspace():
            found.append(Word(text=text, line=line, column=column))
        line, column = behind(text, line=line, column=column)
    return found
