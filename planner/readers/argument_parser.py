"""An argument list, taken apart as the framework's own argparse would, without the framework.

The flags come from a table (`planner.readers.flag_tables`). argparse itself stops at its first mistake and forgets
where a word stood; here every mistake is returned, and every value knows its line and column. The rules are those of
CPython's `Lib/argparse.py` (3.11 and 3.12): what looks like a flag, how many words a flag takes, abbreviations, how a
word becomes a value.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.errors import InputError, Location
from planner.readers.arguments import UNRESOLVED, Arguments, Given, Mistake, MistakeKind
from planner.readers.flag_tables import ABBREVIATES, TITLES, FlagKind, FlagSpec, FlagTable
from planner.readers.flag_values import conversion_of
from planner.readers.shell import Word

NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")

MAX_INTEGER = 2**63 - 1
"""Largest number that the frameworks can hand on to torch."""

MAX_PROPOSALS = 100
"""Mistakes for which similar flags are looked for; a script with more of them is something else."""

MAX_MISTAKES = 1000
"""Mistakes of one command after which it is taken for no command of the framework."""

SWITCHES = {FlagKind.TRUE: True, FlagKind.FALSE: False, FlagKind.CONST: True}


def read_arguments(words: Sequence[Word], table: FlagTable, *, file: str, start: Location) -> Arguments:
    """Return what the words of a program say.

    Args:
        words: The program's words, without the program.
        table: The flags that it takes.
        file: Where the words stand, for messages.
        start: Where the command stands.

    Raises:
        InputError: So much is wrong that this is something else.
    """
    given: list[Given] = []
    mistakes: list[Mistake] = []
    unread: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        place = _place(word, file)
        if len(mistakes) > MAX_MISTAKES:
            raise InputError(
                f"{TITLES[table.framework]} would not take more than {MAX_MISTAKES:,} words of this command.",
                location=place,
                hint="Check that it is a command of this framework.",
            )
        match = _option(word.text, table)
        if match is None:
            index += 1
            if _is_unresolved(word):
                unread.append(word.text)
            else:
                message = f"`{word.text}` follows no flag that takes it"
                mistakes.append(Mistake(kind=MistakeKind.EXTRA_VALUE, word=word.text, location=place, message=message))
            continue
        following = _following(words, index + 1, table)
        if isinstance(match, _NoFlag):
            mistakes.append(_unknown(match, place, table, propose=len(mistakes) < MAX_PROPOSALS))
            index += 1 + len(following)
            continue
        if match.abbreviated:
            message = f"`{match.spelled}` is taken for {match.flag.name}"
            mistakes.append(
                Mistake(
                    kind=MistakeKind.ABBREVIATED,
                    word=match.spelled,
                    location=place,
                    message=message,
                    nearest=(match.flag.name,),
                    flag=match.flag,
                )
            )
        if match.flag.deprecated:
            mistakes.append(_about(match, place, MistakeKind.DEPRECATED, f"is deprecated: {match.flag.deprecated}"))
        taken, use, found = _use(match, word, following, file=file)
        given.append(use)
        mistakes.extend(found)
        index += 1 + taken
    mistakes.extend(_repeated(given))
    return Arguments(
        table=table,
        file=file,
        given=tuple(given),
        mistakes=tuple(sorted(mistakes, key=lambda mistake: _order(mistake.location))),
        start=start,
        unread=tuple(unread),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """A word that is a flag.

    Args:
        flag: The flag.
        spelled: How it was written.
        explicit: What stands behind `=`.
        abbreviated: Only its beginning was written.
    """

    flag: FlagSpec
    spelled: str
    explicit: str | None
    abbreviated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _NoFlag:
    """A word that looks like a flag and is none.

    Args:
        spelled: The word, without what stands behind `=`.
        candidates: The flags that begin so, if there are several.
    """

    spelled: str
    candidates: tuple[str, ...] = ()


def _option(text: str, table: FlagTable) -> _Match | _NoFlag | None:
    """Return the flag that a word is; None for a word that is a value (argparse's `_parse_optional`)."""
    if not text.startswith("-") or text in {"-", "--"}:
        return None
    if text in table.by_name:
        return _Match(flag=table.by_name[text], spelled=text, explicit=None)
    spelled, equals, explicit = text.partition("=")
    if equals and spelled in table.by_name:
        return _Match(flag=table.by_name[spelled], spelled=spelled, explicit=explicit)
    found = _begun(spelled, table)
    if len({id(table.by_name[name]) for name in found}) == 1:
        flag = table.by_name[found[0]]
        return _Match(flag=flag, spelled=spelled, explicit=explicit if equals else None, abbreviated=True)
    is_value = not found and (NEGATIVE_NUMBER.fullmatch(text) is not None or " " in text)
    return None if is_value else _NoFlag(spelled=spelled, candidates=found)


def _begun(spelled: str, table: FlagTable) -> tuple[str, ...]:
    """Return the flags that begin with a word, where the framework takes beginnings."""
    if not ABBREVIATES.get(table.framework, False):
        return ()
    return tuple(sorted(name for name in table.by_name if name.startswith(spelled)))


def _following(words: Sequence[Word], index: int, table: FlagTable) -> Sequence[Word]:
    """Return the values that stand between one flag and the next."""
    end = index
    while end < len(words) and _option(words[end].text, table) is None:
        end += 1
    return words[index:end]


def _unknown(match: _NoFlag, place: Location, table: FlagTable, *, propose: bool) -> Mistake:
    if match.candidates:
        return Mistake(
            kind=MistakeKind.AMBIGUOUS,
            word=match.spelled,
            location=place,
            message=f"`{match.spelled}` begins several flags",
            nearest=match.candidates[:3],
        )
    wanted = match.spelled.replace("_", "-")
    exact = table.by_folded_name.get(wanted.lower(), ())
    similar = _similar(wanted, tuple(table.by_name), most=3, cutoff=0.8) if propose else ()
    return Mistake(
        kind=MistakeKind.UNKNOWN,
        word=match.spelled,
        location=place,
        message=f"{TITLES[table.framework]} {table.version} has no flag `{match.spelled}`",
        nearest=exact[:1] or similar,
    )


def _similar(word: str, known: tuple[str, ...], *, most: int, cutoff: float) -> tuple[str, ...]:
    """Return the words most like one."""
    from difflib import get_close_matches  # noqa: PLC0415 - most words are right

    return tuple(get_close_matches(word, known, n=most, cutoff=cutoff))


def _use(match: _Match, word: Word, following: Sequence[Word], *, file: str) -> tuple[int, Given, tuple[Mistake, ...]]:
    """Return how many words behind a flag are its own, what it says, and what is wrong with it."""
    flag, place = match.flag, _place(word, file)
    least, most = _number_of_values(flag)
    mistakes: list[Mistake] = []
    taken: Sequence[Word]
    values: Sequence[Word]
    if match.explicit is not None:
        taken, values = (), (replace(word, text=match.explicit),)
        if most == 0:
            mistakes.append(_about(match, place, MistakeKind.EXTRA_VALUE, "takes no value"))
    else:
        taken = values = following if most is None else following[:most]
    texts = tuple(value.text for value in values)
    value_place = _place(taken[0], file) if taken else place
    value: object = SWITCHES.get(flag.kind)
    if flag.kind is FlagKind.BOOLEAN_OPTIONAL:
        value = not match.spelled.startswith("--no-") or f"--no-{match.spelled[5:]}" not in flag.names
    if most != 0:
        if len(texts) < least:
            wanted = "a value" if least == 1 else f"{least} values"
            mistakes.append(_about(match, place, MistakeKind.MISSING_VALUE, f"needs {wanted}"))
        else:
            value, found = _values(match, values, value_place)
            mistakes.extend(found)
    use = Given(flag=flag, spelled=match.spelled, value=value, texts=texts, location=place, value_location=value_place)
    return len(taken), use, tuple(mistakes)


def _number_of_values(flag: FlagSpec) -> tuple[int, int | None]:
    """Return the fewest and the most values of a flag; None for any number."""
    if flag.kind in SWITCHES or flag.kind is FlagKind.BOOLEAN_OPTIONAL:
        return 0, 0
    if isinstance(flag.nargs, int):
        return flag.nargs, flag.nargs
    limits: Mapping[str | None, tuple[int, int | None]] = {None: (1, 1), "?": (0, 1), "*": (0, None), "+": (1, None)}
    return limits[flag.nargs]


def _values(match: _Match, words: Sequence[Word], place: Location) -> tuple[object, tuple[Mistake, ...]]:
    """Return what the words of a flag become, and those that become nothing."""
    flag = match.flag
    values: list[object] = []
    mistakes: list[Mistake] = []
    conversion = conversion_of(flag.type_name)
    for word in words:
        text = word.text
        if _is_unresolved(word):
            values.append(None)
            continue
        try:
            value = conversion.read(text) if conversion else text
        except (ValueError, OverflowError, RecursionError):
            problem = f"takes {conversion.wanted if conversion else 'a word'}, `{text}` is given"
            mistakes.append(_about(match, place, MistakeKind.WRONG_TYPE, problem))
            values.append(None)
            continue
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            problem = f"takes a whole number, one of {len(text)} digits is given"
            mistakes.append(_about(match, place, MistakeKind.WRONG_TYPE, problem))
            values.append(None)
            continue
        told = text.lower().replace("-", "_") if flag.type_name == "folded_str" else str(value)
        choices = [choice.lower().replace("-", "_") for choice in flag.choices or ()]
        if flag.choices is not None and told not in (choices if flag.type_name == "folded_str" else flag.choices):
            mistakes.append(
                _about(
                    match,
                    place,
                    MistakeKind.NO_CHOICE,
                    f"takes {_listed(flag.choices)}; `{text}` is given",
                    nearest=_similar(text, flag.choices, most=2, cutoff=0.5) or flag.choices[:1],
                )
            )
            value = None
        values.append(value)
    if flag.nargs is None or flag.nargs == "?":
        return values[0] if values else flag.default, tuple(mistakes)
    return values, tuple(mistakes)


def _is_unresolved(word: Word) -> bool:
    """Return whether only a run could tell what a word is."""
    return not word.literal and UNRESOLVED.search(word.text) is not None


def _about(
    match: _Match, place: Location, kind: MistakeKind, problem: str, *, nearest: tuple[str, ...] = ()
) -> Mistake:
    return Mistake(
        kind=kind,
        word=match.spelled,
        location=place,
        message=f"{match.spelled} {problem}",
        nearest=nearest,
        flag=match.flag,
    )


def _listed(choices: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(choices[:most])
    return f"one of {shown}{', ...' if len(choices) > most else ''}"


def _repeated(given: Sequence[Given]) -> Iterator[Mistake]:
    """Yield uses of a flag that a later use with another value overrides."""
    last: dict[str, Given] = {}
    for use in given:
        before = last.get(use.flag.dest)
        if before is not None and before.value != use.value and use.flag.kind is not FlagKind.APPEND:
            where = f"line {use.location.line}"
            yield Mistake(
                kind=MistakeKind.REPEATED,
                word=before.spelled,
                location=before.location,
                message=f"{before.spelled} counts for nothing, because {use.spelled} in {where} says otherwise",
                flag=before.flag,
            )
        last[use.flag.dest] = use


def _place(word: Word, file: str) -> Location:
    return Location(file=word.file or file, line=word.line, column=word.column)


def _order(location: Location) -> tuple[int, int]:
    return location.line or 0, location.column or 0
