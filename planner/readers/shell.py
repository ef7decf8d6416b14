"""The words of a bash script, with the line and column of each.

Understood: quoting, escapes, comments, continued lines, here-documents (skipped), assignments `NAME=word`, arrays
`NAME=(words)` and `NAME+=(words)`, and references `$NAME`, `${NAME}`, `${NAME:-word}`, `${NAME[@]}`. Nothing is run:
command substitutions, arithmetic and unknown names stay in the text as they are written, and what stands inside
`if`, loops and functions is left out, because only a run could tell whether it happens.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

from planner.errors import InputError, Location

OPENING = frozenset({"if", "for", "while", "until", "case", "select", "{"})
CLOSING = frozenset({"fi", "done", "esac", "}"})
CLAUSES = frozenset({"then", "do", "else", "elif", "in", "!", "time", "exec", "command"})
SEPARATOR = re.compile(r"&&|\|\||;;|[;&|\n()]")

ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=", re.ASCII)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
BRACED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\[[@*]\]|:?-(.*))?", re.ASCII | re.DOTALL)
PLAIN = re.compile(r"[^\s'\"$\\`()|&;<>]+")
REDIRECTION = re.compile(r"(?:[0-9]*(?:>>|>\||>&|<&|<<<|[<>](?!\())|&>>?)[ \t]*")
QUOTED = re.compile(r'[^"$\\]+')
HERE_DOCUMENT = re.compile(r"<<-?\s*(?:\\|(['\"])?)([A-Za-z_][A-Za-z0-9_]*)(?(1)\1)", re.ASCII)

MAX_EXPANDED = 1 << 20
"""Most characters that the references of a script may stand for, all together; `A=$A$A` doubles them in every line."""

MAX_EXPANDED_WORDS = 1 << 16
"""Most words that they may stand for, likewise; a word takes longer to read than a character."""

MAX_SCRIPT_BYTES = 64 << 10
"""Largest script that is read; launch scripts have a few kilobytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a word: literal text, or a reference to a variable.

    Args:
        text: The characters, or the whole reference as written.
        quoted: It stood inside quotes, so it is never split.
        line: Where it starts.
        column: Where it starts.
        name: Name of the variable, for references.
        default: What the reference stands for when the variable is unset.
    """

    text: str
    quoted: bool
    line: int
    column: int
    name: str | None = None
    default: str | None = None


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
class _Source:
    """A cursor over the text that knows its line and column."""

    text: str
    file: str
    position: int = 0
    line: int = 1
    column: int = 1

    def peek(self, count: int = 1) -> str:
        return self.text[self.position : self.position + count]

    def take(self, count: int = 1) -> str:
        taken = self.text[self.position : self.position + count]
        self.position += len(taken)
        self.line, self.column = _behind(taken, line=self.line, column=self.column)
        return taken

    def take_until(self, closing: str, *, opened: tuple[int, int]) -> str:
        end = self.text.find(closing, self.position)
        if end < 0:
            raise self.error(f"{closing} is missing", opened)
        return self.take(end - self.position + len(closing))[: -len(closing)]

    def error(self, message: str, place: tuple[int, int]) -> InputError:
        return InputError(
            f"{message}.",
            location=Location(file=self.file, line=place[0], column=place[1]),
            hint="Run `bash -n` on the file.",
        )


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


def _behind(text: str, *, line: int, column: int) -> tuple[int, int]:
    """Return line and column behind a text that starts at these."""
    newlines = text.count("\n")
    return (line + newlines, len(text) - text.rfind("\n")) if newlines else (line, column + len(text))


@lru_cache(maxsize=1)
def read_script(text: str, *, file: str) -> Script:
    """Return the commands, exports and comments of a bash script; nobody changes what is returned.

    The last one is kept: every framework's reader asks for it in turn.
    """
    script = Script(file=file)
    depth = 0
    for statement in _statements(_Source(text, file), script.comments):
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


@dataclass(slots=True)
class _RawWord:
    """A word before expansion; an array assignment carries its elements."""

    pieces: list[Piece]
    elements: "list[_RawWord] | None" = None

    @property
    def keyword(self) -> str:
        return self.pieces[0].text if len(self.pieces) == 1 and not self.pieces[0].quoted else ""

    @property
    def assignment(self) -> re.Match[str] | None:
        first = self.pieces[0]
        return None if first.quoted or first.name is not None else ASSIGNMENT.match(first.text)


def _run(words: list[_RawWord], script: Script) -> None:
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


def _run_command(words: list[_RawWord], script: Script) -> None:
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


def _assign(word: _RawWord, match: re.Match[str], script: Script) -> None:
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
    found = (*before[:1], *_expand(_RawWord(quoted), script))
    text = "".join(part.text for part in found)
    start = found[0] if found else Word(text="", line=rest.line, column=rest.column)
    variables[name] = (Word(text=text, line=start.line, column=start.column), *before[1:])


def _expand(word: _RawWord, script: Script) -> list[Word]:
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
        line, column = _behind(text, line=line, column=column)
    return found


def _statements(source: _Source, comments: list[tuple[int, str]]) -> Iterator[list[_RawWord]]:
    """Yield the words of each simple command."""
    words: list[_RawWord] = []
    here_documents: list[str] = []
    while source.peek():
        if _skip(source, comments, here_documents):
            continue
        separator = _separator(source)
        if separator is None:
            words.append(_word(source))
            continue
        source.take(len(separator))
        if words:
            yield words
            words = []
        if separator == "\n":
            _skip_here_documents(source, here_documents)
    if words:
        yield words


def _skip(source: _Source, comments: list[tuple[int, str]], here_documents: list[str]) -> bool:
    """Pass over blanks, a comment or a redirection, if one is next."""
    if source.peek() in {" ", "\t"}:
        source.take()
    elif source.peek(2) == "\\\n":
        source.take(2)
    elif source.peek() == "#":
        line = source.line
        comments.append((line, _rest_of_line(source)[1:]))
    elif (match := HERE_DOCUMENT.match(source.text, source.position)) is not None:
        here_documents.append(match.group(2))
        source.take(len(match.group()))
    elif (match := REDIRECTION.match(source.text, source.position)) is not None:
        source.take(len(match.group()))
        if source.peek() not in {"", "\n"}:
            _word(source)
    else:
        return False
    return True


def _separator(source: _Source) -> str | None:
    match = SEPARATOR.match(source.text, source.position)
    return match.group() if match else None


def _rest_of_line(source: _Source) -> str:
    end = source.text.find("\n", source.position)
    return source.take((len(source.text) if end < 0 else end) - source.position)


def _skip_here_documents(source: _Source, here_documents: list[str]) -> None:
    while here_documents:
        closing = here_documents.pop(0)
        while source.peek() and _rest_of_line(source).strip("\t") != closing:
            source.take()


def _word(source: _Source, *, array: str | None = None) -> _RawWord:
    """Return the next word; `array` is the one whose element it is."""
    pieces: list[Piece] = []
    start = (source.line, source.column)
    if source.peek(2) in {"<(", ">("}:
        arrow = source.take()
        return _RawWord([Piece(text=arrow + _parenthesised(source), quoted=True, line=start[0], column=start[1])])
    while source.peek() and source.peek() not in {" ", "\t", "<", ">"} and source.peek(2) != "\\\n":
        if source.peek() == "(" and pieces and (match := ASSIGNMENT.fullmatch(pieces[-1].text)) and len(pieces) == 1:
            if array is not None:
                raise source.error(f"( stands inside the array {array}", (source.line, source.column))
            return _RawWord(pieces, _array(source, name=match.group(1)))
        if _separator(source) is not None:
            break
        pieces.extend(_pieces(source))
    if not pieces:
        raise source.error(f"{source.peek()!r} is not understood here", start)
    return _RawWord(_joined(pieces))


def _array(source: _Source, *, name: str) -> list[_RawWord]:
    opened = (source.line, source.column)
    source.take()
    elements: list[_RawWord] = []
    while source.peek() != ")":
        if not source.peek():
            raise source.error(f"the array {name} is not closed", opened)
        if source.peek(2) == "\\\n":
            source.take(2)
        elif source.peek().isspace():
            source.take()
        elif source.peek() == "#":
            _rest_of_line(source)
        else:
            elements.append(_word(source, array=name))
    source.take()
    return elements


def _pieces(source: _Source) -> list[Piece]:
    """Return the next pieces of a word: one quoted string, one reference or one character."""
    line, column = source.line, source.column
    character = source.peek()
    if character == "'":
        source.take()
        text = source.take_until("'", opened=(line, column))
        return [Piece(text=text, quoted=True, line=line, column=column + 1)]
    if character == '"':
        return _double_quoted(source)
    if character == "$":
        return [_reference(source, quoted=False)]
    if character == "\\":
        source.take()
        return [Piece(text=source.take(), quoted=True, line=line, column=column)]
    if character == "`":
        source.take()
        text = source.take_until("`", opened=(line, column))
        return [Piece(text=f"`{text}`", quoted=True, line=line, column=column)]
    match = PLAIN.match(source.text, source.position)
    text = source.take(len(match.group()) if match else 1)
    return [Piece(text=text, quoted=False, line=line, column=column)]


def _double_quoted(source: _Source) -> list[Piece]:
    opened = (source.line, source.column)
    source.take()
    pieces = [Piece(text="", quoted=True, line=source.line, column=source.column)]
    while source.peek() != '"':
        line, column = source.line, source.column
        if not source.peek():
            raise source.error('" is missing', opened)
        if source.peek() == "$":
            pieces.append(_reference(source, quoted=True))
        elif source.peek(2) == "\\\n":
            source.take(2)
        elif source.peek() == "\\" and source.peek(2)[1:] in {"\\", '"', "$", "`"}:
            source.take()
            pieces.append(Piece(text=source.take(), quoted=True, line=line, column=column))
        else:
            match = QUOTED.match(source.text, source.position)
            text = source.take(len(match.group()) if match else 1)
            pieces.append(Piece(text=text, quoted=True, line=line, column=column))
    source.take()
    if len(pieces) > 1 and pieces[1].name is not None:
        pieces.pop(0)
    return pieces


def _reference(source: _Source, *, quoted: bool) -> Piece:
    """Return a reference; what is not a plain variable stays literal text."""
    line, column = source.line, source.column
    source.take()
    if source.peek() in {"@", "*"}:
        return Piece(text=f"${source.peek()}", quoted=quoted, line=line, column=column, name=source.take())
    if source.peek() == "{":
        source.take()
        inside = source.take_until("}", opened=(line, column))
        match = BRACED.fullmatch(inside)
        return Piece(
            text=f"${{{inside}}}",
            quoted=quoted,
            line=line,
            column=column,
            name=match.group(1) if match else None,
            default=_plain(match.group(2)) if match else None,
        )
    if source.peek() == "(":
        return Piece(text=f"${_parenthesised(source)}", quoted=True, line=line, column=column)
    match = NAME.match(source.text, source.position)
    if match is None:
        return Piece(text="$", quoted=True, line=line, column=column)
    source.take(len(match.group()))
    return Piece(text=f"${match.group()}", quoted=quoted, line=line, column=column, name=match.group())


def _plain(default: str | None) -> str | None:
    """Return a default value without its quotes."""
    if default is None:
        return None
    return default[1:-1] if len(default) > 1 and default[0] == default[-1] and default[0] in "'\"" else default


def _parenthesised(source: _Source) -> str:
    """Return `(...)` up to its closing parenthesis, quotes respected."""
    opened = (source.line, source.column)
    text, depth = "", 0
    while source.peek():
        character = source.take()
        text += character
        if character == "'":
            text += source.take_until("'", opened=opened) + "'"
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return text
    raise source.error("( is not closed", opened)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Return the pieces with neighbouring literals of one kind merged."""
    merged: list[Piece] = []
    for (is_reference, quoted), run in groupby(pieces, key=lambda piece: (piece.name is not None, piece.quoted)):
        same = list(run)
        if is_reference:
            merged.extend(same)
        else:
            text = "".join(piece.text for piece in same)
            merged.append(Piece(text=text, quoted=quoted, line=same[0].line, column=same[0].column))
    return merged
