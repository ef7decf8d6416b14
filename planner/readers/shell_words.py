"""The words of a bash script as they are written: text cut into simple commands, quoting kept, nothing expanded.

A word is a run of pieces: literal text, quoted or not, and references `$NAME`, `${NAME}`, `${NAME:-word}`,
`${NAME[@]}`. Understood besides: escapes, continued lines, arrays `NAME=(words)`. Comments are handed over;
here-documents and redirections are skipped; command substitutions and arithmetic stay in the text as they are written.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from planner.errors import InputError, Location

SEPARATOR = re.compile(r"&&|\|\||;;|[;&|\n()]")

ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=", re.ASCII)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
BRACED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\[[@*]\]|:?-(.*))?", re.ASCII | re.DOTALL)
PLAIN = re.compile(r"[^\s'\"$\\`()|&;<>]+")
REDIRECTION = re.compile(r"(?:[0-9]*(?:>>|>\||>&|<&|<<<|[<>](?!\())|&>>?)[ \t]*")
QUOTED = re.compile(r'[^"$\\]+')
HERE_DOCUMENT = re.compile(r"<<-?\s*(?:\\|(['\"])?)([A-Za-z_][A-Za-z0-9_]*)(?(1)\1)", re.ASCII)


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
        self.line, self.column = behind(taken, line=self.line, column=self.column)
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


def behind(text: str, *, line: int, column: int) -> tuple[int, int]:
    """Return line and column behind a text that starts at these."""
    newlines = text.count("\n")
    return (line + newlines, len(text) - text.rfind("\n")) if newlines else (line, column + len(text))


@dataclass(slots=True)
class RawWord:
    """A word before expansion; an array assignment carries its elements."""

    pieces: list[Piece]
    elements: "list[RawWord] | None" = None

    @property
    def keyword(self) -> str:
        """Return the text of a word that is unquoted text alone; else nothing."""
        return self.pieces[0].text if len(self.pieces) == 1 and not self.pieces[0].quoted else ""

    @property
    def assignment(self) -> re.Match[str] | None:
        """Return `NAME=` or `NAME+=`, where the word begins with one: its name, and the plus."""
        first = self.pieces[0]
        return None if first.quoted or first.name is not None else ASSIGNMENT.match(first.text)


def statements(text: str, *, file: str, comments: list[tuple[int, str]]) -> Iterator[list[RawWord]]:
    """Yield the words of each simple command.

    Args:
        text: The script.
        file: What messages call it.
        comments: Where its comments are put, each with its line, without the `#`.

    Raises:
        InputError: A quote or a parenthesis is not closed.
    """
    source = _Source(text, file)
    words: list[RawWord] = []
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


def _word(source: _Source, *, array: str | None = None) -> RawWord:
    """Return the next word; `array` is the one whose element it is."""
    pieces: list[Piece] = []
    start = (source.line, source.column)
    if source.peek(2) in {"<(", ">("}:
        arrow = source.take()
        return RawWord([Piece(text=arrow + _parenthesised(source), quoted=True, line=start[0], column=start[1])])
    while source.peek() and source.peek() not in {" ", "\t", "<", ">"} and source.peek(2) != "\\\n":
        if source.peek() == "(" and pieces and (match := ASSIGNMENT.fullmatch(pieces[-1].text)) and len(pieces) == 1:
            if array is not None:
                raise source.error(f"( stands inside the array {array}", (source.line, source.column))
            return RawWord(pieces, _array(source, name=match.group(1)))
        if _separator(source) is not None:
            break
        pieces.extend(_pieces(source))
    if not pieces:
        raise source.error(f"{source.peek()!r} is not understood here", start)
    return RawWord(_joined(pieces))


def _array(source: _Source, *, name: str) -> list[RawWord]:
    opened = (source.line, source.column)
    source.take()
    elements: list[RawWord] = []
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
