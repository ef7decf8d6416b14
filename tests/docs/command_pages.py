"""The pages of `docs/commands/`, made from what the command line declares: no page is written by hand.

Commands are read as Typer is told them, from the signatures of their functions; how Typer or Click words its own help
differs from version to version and is left out. `validate`, whose words a parser of the standard library reads, is
read from that parser. Examples are those of `--help`, sessions those of the README, which a test runs.
"""

import argparse
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from cli.commands import validate
from cli.exits import MEANINGS
from cli.main import app
from cli.plain_parser import at_least_one
from tests.docs.markdown import MADE, code, fenced, number, plain, table
from tests.sessions import CONSOLE, LEFT_OUT, PROGRAM, copied_lines, steps

INDEX = "README.md"
HELP = ("-h", "--help")
MOST_SHOWN = 40
"""Lines of a session on a page; of a longer one the first are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """An option or an argument.

    Args:
        names: How it is written; of an argument the word that stands for it.
        value: The word that stands for an option's value; empty where it takes none.
        kind: What it takes, in Markdown.
        default: What it is unless given, in Markdown.
        text: What it does, as the command line says it.
        is_option: It is an option.
        is_required: It must be given.
    """

    names: tuple[str, ...]
    value: str
    kind: str
    default: str
    text: str
    is_option: bool
    is_required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, or a group of them.

    Args:
        words: Its words behind the name of the program.
        usage: How it is written.
        text: What it does, as the command line says it.
        parameters: Its options and arguments, in order.
        examples: Lines of its own help.
        parts: The commands of a group.
    """

    words: tuple[str, ...]
    usage: str
    text: str
    parameters: tuple[Parameter, ...]
    examples: tuple[str, ...]
    parts: "tuple[Command, ...]" = ()

    @property
    def page(self) -> str:
        """Return the name of its page."""
        return f"{'-'.join(self.words)}.md"

    @property
    def title(self) -> str:
        """Return it as it is typed."""
        return " ".join((PROGRAM, *self.words))

    @property
    def summary(self) -> str:
        """Return the first sentence of what it does."""
        return " ".join(self.text.split("\n\n")[0].split())


def commands(of: typer.Typer = app, before: tuple[str, ...] = ()) -> tuple[Command, ...]:
    """Return every command of the app, groups before their parts' own pages."""
    found = [_command(entry, before) for entry in of.registered_commands]
    for group in of.registered_groups:
        assert group.name is not None, "groups are added by name"
        assert group.typer_instance is not None, "a group holds commands"
        words = (*before, group.name)
        found.append(
            Command(
                words=words,
                usage=" ".join((PROGRAM, *words, "COMMAND [ARGS]...")),
                text=str(group.typer_instance.info.help),
                parameters=(),
                examples=(),
                parts=commands(group.typer_instance, words),
            )
        )
    return tuple(found)


def with_parts(found: Sequence[Command]) -> Iterator[Command]:
    """Yield commands with the parts of groups behind each group."""
    for command in found:
        yield command
        yield from with_parts(command.parts)


def pages(readme: str) -> dict[str, str]:
    """Return every page by its name.

    Args:
        readme: The text of the README, which sessions are taken from.
    """
    listed = tuple(with_parts(commands()))
    return {INDEX: _index(listed), **{command.page: _page(command, listed, readme) for command in listed}}


def _command(entry: Any, before: tuple[str, ...]) -> Command:
    words = (*before, str(entry.name))
    text = str(entry.help or inspect.getdoc(entry.callback))
    if words == (validate.parser({}).prog.partition(" ")[2],):
        parser = validate.parser({})
        parameters = tuple(_of_action(action) for action in parser.taken)
        usage = parser.format_usage().removeprefix("usage: ").strip()
        epilog = str(parser.epilog)
    else:
        parameters = tuple(_declared(entry.callback))
        usage = " ".join((PROGRAM, *words, "[OPTIONS]", *(one.names[0] for one in parameters if not one.is_option)))
        epilog = entry.epilog
    lines = epilog.partition("Examples:\n")[2].splitlines()
    return Command(
        words=words,
        usage=usage,
        text=text,
        parameters=parameters,
        examples=tuple(line.strip() for line in lines),
    )


def _declared(callback: Any) -> Iterator[Parameter]:
    """Yield the parameters of a command's function, as Typer reads them."""
    hints = get_type_hints(inspect.unwrap(callback), include_extras=True)
    for name, parameter in inspect.signature(callback).parameters.items():
        annotation, declared = get_args(hints[name])
        yield _of_declaration(name, annotation, declared, parameter.default)


def _of_declaration(name: str, annotation: Any, declared: ParameterInfo, default: object) -> Parameter:
    is_option = isinstance(declared, OptionInfo)
    assert is_option or isinstance(declared, ArgumentInfo)
    is_required = default is inspect.Parameter.empty
    many, base = _base(annotation)
    if is_option:
        # Typer takes the first name of an annotated option as its default.
        listed = (str(declared.default), *(declared.param_decls or ()))
        names = tuple(part for either in listed for part in either.split("/"))
    else:
        names = (declared.metavar or name.strip("_").upper(),)
    is_flag = base is bool
    kind = _kind(base, low=declared.min, high=declared.max)
    if many:
        kind += "; may be given again" if is_option else "; one or more" if is_required else "; any number"
    value = "" if is_flag or not is_option else declared.metavar or ("" if _choices(base) else _word(base))
    return Parameter(
        names=names,
        value=value,
        kind=kind,
        default=_default(None if is_required else default, declared, is_required=is_required, is_flag=is_flag),
        text=str(declared.help),
        is_option=is_option,
        is_required=is_required,
    )


def _default(value: object, declared: ParameterInfo, *, is_required: bool, is_flag: bool) -> str:
    variables = declared.envvar if isinstance(declared.envvar, list) else [declared.envvar] if declared.envvar else []
    said = " or ".join(f"the variable {code(name)}" for name in variables)
    if is_required:
        own = "required"
    elif is_flag:
        own = "on" if value else "off"
    elif isinstance(declared.show_default, str):
        own = declared.show_default
    elif value is None or value == "":
        own = ""
    elif isinstance(value, Enum):
        own = code(str(value.value))
    else:
        own = number(value) if isinstance(value, int | float) else code(str(value))
    return f"{said}, or {own}" if said and own else said or own


def _base(annotation: Any) -> tuple[bool, Any]:
    """Return whether a type holds several values, and the type of one."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is list:
        (part,) = get_args(annotation)
        return True, part
    return False, annotation


def _choices(base: Any) -> tuple[str, ...]:
    if get_origin(base) is Literal:
        return tuple(str(choice) for choice in get_args(base))
    return tuple(str(member.value) for member in base) if isinstance(base, type) and issubclass(base, Enum) else ()


_WORDS = {bool: "flag", int: "whole number", float: "number", str: "text", Path: "path"}


def _word(base: Any) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(base, "TEXT")


def _kind(base: Any, *, low: float | None, high: float | None) -> str:
    choices = _choices(base)
    if choices:
        return ", ".join(map(code, choices))
    word = _WORDS[base]
    if low is not None and high is not None:
        return f"{word}, {number(low)} to {number(high)}"
    return (
        f"{word} from {number(low)}" if low is not None else f"{word} to {number(high)}" if high is not None else word
    )


def _of_action(action: argparse.Action) -> Parameter:
    """Return an option or argument of a parser of the standard library."""
    is_flag, is_many = action.nargs == 0, action.nargs == "*" or action.default == []
    if is_flag:
        kind = "flag"
    elif action.choices is not None:
        kind = ", ".join(code(str(choice)) for choice in action.choices)
    elif action.type is at_least_one:
        kind = "whole number from 1"
    else:
        kind = "path" if action.type is Path else "text"
    if is_many:
        kind += "; may be given again" if action.option_strings else "; any number"
    own = "off" if is_flag else "" if not action.default else code(str(action.default))
    return Parameter(
        names=tuple(action.option_strings) or (f"[{action.metavar}]...",),
        value=str(action.metavar) if action.option_strings and not is_flag else "",
        kind=kind,
        default=own,
        text=str(action.help),
        is_option=bool(action.option_strings),
        is_required=False,
    )


def _written(option: Parameter) -> str:
    return ", ".join(code(f"{name} {option.value}".strip()) for name in option.names)


def _paragraphs(text: str) -> list[str]:
    """Return the lines of what a command says of itself, in Markdown."""
    return plain(text).splitlines()


def _page(command: Command, listed: Sequence[Command], readme: str) -> str:
    lines = [MADE, "", f"# {command.title}", "", *_paragraphs(command.text), "", *fenced("text", [command.usage]), ""]
    if command.parts:
        lines += [*table(("command", "what it does"), map(_entry, command.parts)), ""]
    arguments = [one for one in command.parameters if not one.is_option]
    options = [one for one in command.parameters if one.is_option]
    if arguments:
        rows = ((code(one.names[0]), one.kind, one.default, plain(one.text)) for one in arguments)
        lines += ["## Arguments", "", *table(("argument", "takes", "unless given", "what it is"), rows), ""]
    if options:
        rows = ((_written(one), one.kind, one.default, plain(one.text)) for one in options)
        lines += ["## Options", "", *table(("option", "takes", "unless given", "what it does"), rows), ""]
    lines += [f"{' or '.join(map(code, HELP))} shows all of this in short.", ""]
    if command.examples:
        lines += ["## Examples", "", *fenced("bash", command.examples), ""]
    lines += _from_readme(command, listed, readme)
    if not command.parts:
        codes = ((str(int(exit_code)), meaning) for exit_code, meaning in MEANINGS.items())
        lines += ["## Exit codes", "", *table(("exit code", "meaning"), codes), ""]
        lines += ["They are the same for every command; not every command has reason for each.", ""]
    return "\n".join([*lines, f"[All commands]({INDEX})", ""])


def _from_readme(command: Command, listed: Sequence[Command], readme: str) -> list[str]:
    """Return the README's first use of a command: a session with what it prints, or else all lines to copy."""
    sessions = [
        step for block in CONSOLE.findall(readme) for step in steps(block) if _is_of(step.command, command, listed)
    ]
    copied = [line for line in copied_lines(readme) if _is_of(line, command, listed)]
    if sessions:
        shown = sessions[0].shown[:MOST_SHOWN]
        left_out = (LEFT_OUT,) * (len(sessions[0].shown) > MOST_SHOWN)
        lines = fenced("console", [f"$ {sessions[0].command}", *shown, *left_out])
    elif copied:
        lines = fenced("bash", copied)
    else:
        return []
    return ["## From the README", "", *lines, ""]


def _is_of(line: str, command: Command, listed: Sequence[Command]) -> bool:
    """Return whether a line runs a command, and no part of it that is a command too."""
    words = tuple(line.split()[1:])
    of_line = [one.words for one in listed if words[: len(one.words)] == one.words]
    return bool(of_line) and max(of_line, key=len) == command.words


def _entry(command: Command) -> tuple[str, str]:
    return f"[{code(' '.join(command.words))}]({command.page})", plain(command.summary)


def _index(listed: Sequence[Command]) -> str:
    assert app.registered_callback is not None, "the program has options of its own"
    callback = app.registered_callback.callback
    lines = [MADE, "", f"# {PROGRAM}", "", *_paragraphs(str(inspect.getdoc(callback))), ""]
    lines += [*table(("command", "what it does"), map(_entry, listed)), ""]
    rows = ((_written(one), plain(one.text)) for one in _declared(callback))
    own = (
        (code("--install-completion"), "Install completion for the current shell."),
        (code("--show-completion"), "Show that completion, to copy it or to change the installation."),
    )
    lines += ["Options of the program itself:", "", *table(("option", "what it does"), (*rows, *own)), ""]
    return "\n".join(lines)
