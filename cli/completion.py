"""What a shell offers behind an option, by Typer's own mechanism (`--install-completion`).

A command whose words a parser of its own reads is shown to Typer with the same options, made from that parser, so that
both know the same ones.
"""

import argparse
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from cli.plain_parser import PlainParser

Offered = Callable[[], Sequence[str]]


def presets() -> Sequence[str]:
    """Return the names of cluster presets."""
    from profiles.package_data import Section, entry_names

    return entry_names(Section.CLUSTERS)


def framework_versions() -> Sequence[str]:
    """Return each framework with each of its versions, as `--against` takes them."""
    from planner.readers.flag_tables import Framework, versions

    return [f"{framework}=={version}" for framework in Framework for version in versions(framework)]


def rule_ids() -> Sequence[str]:
    """Return the ids of all rules."""
    from planner.rules.registry import all_rules

    return sorted(all_rules())


def completing(offered: Offered) -> Callable[[str], list[str]]:
    """Return what Typer asks for the words that a beginning may become."""

    def found(incomplete: str) -> list[str]:
        return [word for word in offered() if word.startswith(incomplete)]

    return found


def as_typer_command(parser: PlainParser, run: Callable[[Sequence[str]], None], offered: Mapping[str, Offered]) -> Any:
    """Return a function with the options of a parser, as Typer reads functions; it hands its words to the command.

    Args:
        parser: The parser.
        run: The command, which takes words.
        offered: What is offered behind an option, beside the choices that the parser knows, by the option.
    """

    def command(context: typer.Context, **given: Any) -> None:
        run([*(word for action in parser.taken for word in _words(action, given[action.dest])), *context.args])

    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    declared = [_parameter(action, offered) for action in parser.taken]
    command.__signature__ = inspect.Signature([context, *declared])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (context, *declared)}
    return command


def _parameter(action: argparse.Action, offered: Mapping[str, Offered]) -> inspect.Parameter:
    """Return an option or argument as Typer declares it."""
    names = action.option_strings
    words = offered.get(names[0] if names else action.dest)
    if words is None and action.choices is not None:
        choices = [str(choice) for choice in action.choices]
        words = lambda: choices  # noqa: E731 - one expression
    complete = None if words is None else completing(words)
    kind: Any = list[str] | None if action.nargs == "*" or action.default == [] else str | None
    if not names:
        declared: Any = typer.Argument(metavar=str(action.metavar), help=action.help, autocompletion=complete)
    else:
        kind = bool if action.nargs == 0 else kind
        declared = typer.Option(*names, help=action.help, autocompletion=complete, show_default=False)
    return inspect.Parameter(
        action.dest,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if kind is bool else None,
        annotation=Annotated[kind, declared],
    )


def _words(action: argparse.Action, value: object) -> Iterator[str]:
    """Yield what a command line says of an option or argument."""
    if value is True:
        yield action.option_strings[0]
    for one in value if isinstance(value, list) else [value] if isinstance(value, str) else []:
        yield from (action.option_strings[0], one) if action.option_strings else (one,)
