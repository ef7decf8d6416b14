"""All frameworks: flags that their parser does not take, and values that it cannot read.

The mistakes come from `planner.readers.argument_parser`; here each kind has its rule, so that it can be looked up and
suppressed by itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from planner.readers.arguments import Arguments, Mistake, MistakeKind
from planner.readers.flag_tables import Framework, version_key, versions_with
from planner.rules.rule import Fix, Found, FoundAt, Rule, Severity, rule

COMMAND_LINES = (Framework.MEGATRON, Framework.VLLM)
ARGPARSE = "Lib/argparse.py of CPython, on the flags of the framework's own parser"

Check = Callable[[Arguments], Iterator[Found]]


def _found(arguments: Arguments, kind: MistakeKind, hint: Callable[[Mistake], str]) -> Iterator[Found]:
    """Yield the mistakes of a kind."""
    for mistake in arguments.mistakes:
        if mistake.kind is kind:
            yield _about(mistake, hint(mistake))


def _about(mistake: Mistake, hint: str) -> Found:
    """Return one mistake; where one spelling is meant, with the change that mends it."""
    certain = mistake.kind in {MistakeKind.UNKNOWN, MistakeKind.ABBREVIATED} and len(mistake.nearest) == 1
    fix = Fix(location=mistake.location, old=mistake.word, new=mistake.nearest[0]) if certain else None
    return Found(place=mistake.location, message=f"{mistake.message.rstrip('.')}.", hint=hint, fix=fix)


def _meant(mistake: Mistake) -> str:
    return f"Did you mean {' or '.join(mistake.nearest)}?" if mistake.nearest else ""


@rule(
    id="S001",
    name="unknown-flag",
    framework=COMMAND_LINES,
    prevents="error: unrecognized arguments: ...",
    found_at=FoundAt.PARSE,
    source=ARGPARSE,
)
def unknown_flag(arguments: Arguments) -> Iterator[Found]:
    """The framework's parser has no such flag at any version that is known: misspelt, or of another program."""
    for found, elsewhere in _unknown(arguments):
        if not elsewhere:
            yield found


@rule(
    id="S011",
    name="flag-of-another-version",
    framework=COMMAND_LINES,
    prevents="error: unrecognized arguments: ...",
    found_at=FoundAt.PARSE,
    source=ARGPARSE,
)
def flag_of_another_version(arguments: Arguments) -> Iterator[Found]:
    """The framework's parser at this version has no such flag, but at another version it has.

    The flag was removed, or is not there yet. `--against NAME==VERSION` says which version a file is for.
    """
    framework, version = arguments.table.framework, arguments.table.version
    for found, elsewhere in _unknown(arguments):
        if not elsewhere:
            continue
        older = [other for other in elsewhere if version_key(other) < version_key(version)]
        told = f"It is gone since {older[0]}." if older else f"It comes with {elsewhere[-1]}."
        hint = f"{told} {found.hint} For that version: --against {framework}=={(older or elsewhere)[0]}."
        yield replace(found, message=f"{found.message[:-1]}; {' and '.join(elsewhere)} has it.", hint=hint, fix=None)


def _unknown(arguments: Arguments) -> Iterator[tuple[Found, tuple[str, ...]]]:
    """Yield what is found of each unknown flag, with the versions that have it."""
    for mistake in arguments.mistakes:
        if mistake.kind is MistakeKind.UNKNOWN:
            found = _about(mistake, _meant(mistake) or "Remove it.")
            yield found, versions_with(arguments.table.framework, mistake.word)


@rule(
    id="S002",
    name="ambiguous-flag",
    framework=COMMAND_LINES,
    prevents="error: ambiguous option: ... could match ...",
    found_at=FoundAt.PARSE,
    source=ARGPARSE,
)
def ambiguous_flag(arguments: Arguments) -> Iterator[Found]:
    """The parser takes the beginning of a flag for the flag, but several begin like this."""
    yield from _found(arguments, MistakeKind.AMBIGUOUS, _meant)


@rule(
    id="S003",
    name="abbreviated-flag",
    framework=COMMAND_LINES,
    severity=Severity.WARNING,
    prevents="error: ambiguous option, once a later version has a second flag with this beginning",
    found_at=FoundAt.LATER,
    source=ARGPARSE,
)
def abbreviated_flag(arguments: Arguments) -> Iterator[Found]:
    """Flags are written whole.

    The parser takes the beginning of a flag for the flag. The next version may have a second flag that begins so, and
    then the command no longer starts.
    """
    yield from _found(arguments, MistakeKind.ABBREVIATED, lambda mistake: f"Write {mistake.nearest[0]}.")


@rule(
    id="S004",
    name="missing-value",
    framework=COMMAND_LINES,
    prevents="error: argument ...: expected one argument",
    found_at=FoundAt.PARSE,
    source=ARGPARSE,
)
def missing_value(arguments: Arguments) -> Iterator[Found]:
    """A flag that takes a value has one.

    A value that begins with a dash is taken for a flag; write it with `=`.
    """
    yield from _found(arguments, MistakeKind.MISSING_VALUE, lambda _: "Write the value behind the flag.")


@rule(
    id="S005",
    name="extra-value",
    framework=COMMAND_LINES,
    prevents="error: unrecognized arguments: ...",
    found_at=FoundAt.PARSE,
    source=ARGPARSE,
)
def extra_value(arguments: Arguments) -> Iterator[Found]:
    """A word follows a flag that takes none, or no more, and the program takes no such word by itself."""
    yield from _found(arguments, MistakeKind.EXTRA_VALUE, lambda _: "Remove it, or quote what belongs together.")


@rule(
    id="S006",
    name="wrong-kind",
    framework=COMMAND_LINES,
    prevents="error: argument ...: invalid int value: ...",
    found_at=FoundAt.PARSE,
    source=ARGPARSE,
)
def wrong_kind(arguments: Arguments) -> Iterator[Found]:
    """The flag takes a number, and the word is none (a whole number is written without a point or an exponent)."""
    yield from _found(arguments, MistakeKind.WRONG_TYPE, lambda _: "Write a number as the flag takes it.")


@rule(
    id="S007",
    name="no-choice",
    framework=COMMAND_LINES,
    prevents="error: argument ...: invalid choice: ...",
    found_at=FoundAt.PARSE,
    source=ARGPARSE,
)
def no_choice(arguments: Arguments) -> Iterator[Found]:
    """The flag takes one of a few words at this version, and the word is none of them."""
    yield from _found(arguments, MistakeKind.NO_CHOICE, _meant)


@rule(
    id="S008",
    name="overridden",
    framework=COMMAND_LINES,
    severity=Severity.WARNING,
    prevents="nothing is said: the last use counts",
    found_at=FoundAt.NEVER,
    source=ARGPARSE,
)
def overridden(arguments: Arguments) -> Iterator[Found]:
    """The same value is given twice, differently. The last one counts, without a word."""
    yield from _found(arguments, MistakeKind.REPEATED, lambda _: "Remove one of the two.")


@rule(
    id="S009",
    name="deprecated-flag",
    framework=COMMAND_LINES,
    severity=Severity.WARNING,
    prevents="error: unrecognized arguments, in a later version",
    found_at=FoundAt.LATER,
    source=ARGPARSE,
)
def deprecated_flag(arguments: Arguments) -> Iterator[Found]:
    """The parser still takes the flag and says that it will go."""
    yield from _found(arguments, MistakeKind.DEPRECATED, lambda _: "Use what the message names instead.")


RULES: tuple[Rule[Arguments], ...] = (
    unknown_flag,
    flag_of_another_version,
    ambiguous_flag,
    abbreviated_flag,
    missing_value,
    extra_value,
    wrong_kind,
    no_choice,
    overridden,
    deprecated_flag,
)
