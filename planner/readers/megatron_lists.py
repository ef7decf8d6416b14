"""Arguments of Megatron-LM that stand in no command: a text with a list of them, and YAML.

YAML is a mapping of flags (`--num-layers: 24`), of their names (`num_layers: 24`), or a list of words. As in the
configurations of Megatron-LM's own functional tests, the flags may stand below `MODEL_ARGS`, with `ENV_VARS` beside it;
true stands for a flag without a value, and false for no flag.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from planner.errors import Location
from planner.readers.argument_parser import read_arguments
from planner.readers.flag_tables import FlagKind, FlagTable, Framework, flag_table
from planner.readers.megatron_run import MegatronRun
from planner.readers.shell import Word, read_script

if TYPE_CHECKING:
    from planner.documents import Node

FEWEST_FLAGS = 3
"""Flags from which on something is taken for an argument list."""

ARGUMENTS, ENVIRONMENT = "MODEL_ARGS", "ENV_VARS"


def read_megatron_list(
    text: str, *, file: str, version: str, num_gpus: int | None, gpus_per_node: int | None
) -> tuple[MegatronRun, ...]:
    """Return the run that a text of flags is meant for; nothing for a text that is none.

    Raises:
        InputError: A quote in it is never closed.
    """
    table = flag_table(Framework.MEGATRON, version)
    commands = [command for command in read_script(text, file=file).commands if command.words]
    words = tuple(word for command in commands for word in command.words)
    flags = [word.text.partition("=")[0] for word in words if word.text.startswith("--")]
    starts = all(command.words[0].text.startswith("-") for command in commands)
    if not starts or not _are_megatron(flags, table):
        return ()
    return (_run(words, table, file=file, environment=None, sizes=(num_gpus, gpus_per_node)),)


def read_megatron_mapping(
    root: "Node", *, file: str, version: str, num_gpus: int | None, gpus_per_node: int | None
) -> tuple[MegatronRun, ...]:
    """Return the run that a YAML document is meant for; nothing for one that is none."""
    table = flag_table(Framework.MEGATRON, version)
    inner, variables = root.child(ARGUMENTS), root.child(ENVIRONMENT)
    words = tuple(_words(root if inner is None else inner, table))
    if not _are_megatron([word.text for word in words if word.text.startswith("--")], table):
        return ()
    environment = None
    if variables is not None and isinstance(variables.content, dict):
        environment = {name: _text(node.content) for name, node in variables.content.items()}
    return (_run(words, table, file=file, environment=environment, sizes=(num_gpus, gpus_per_node)),)


def _are_megatron(flags: Sequence[str], table: FlagTable) -> bool:
    """Return whether most flags are Megatron-LM's, and there are some."""
    known = sum(flag in table.by_name for flag in flags)
    return known >= FEWEST_FLAGS and 2 * known > len(flags)


def _run(
    words: Sequence[Word],
    table: FlagTable,
    *,
    file: str,
    environment: Mapping[str, str] | None,
    sizes: tuple[int | None, int | None],
) -> MegatronRun:
    """Return the run of words, on so many GPUs with so many in a node."""
    num_gpus, per_node = sizes[0], sizes[1] or sizes[0]
    start = Location(file=file, line=words[0].line, column=words[0].column)
    return MegatronRun(
        arguments=read_arguments(words, table, file=file, start=start),
        num_nodes=num_gpus // per_node if num_gpus and per_node else None,
        gpus_per_node=per_node,
        environment=environment,
    )


def _words(node: "Node", table: FlagTable) -> Iterator[Word]:
    """Yield the words that a mapping or a list stands for."""
    if isinstance(node.content, list):
        for item in node.content:
            if not isinstance(item.content, list | dict) and item.content is not None:
                yield from _split(item)
        return
    if not isinstance(node.content, dict):
        return
    for key, value in node.content.items():
        place = node.keys[key]
        flag = _flag(key, value.content, table)
        if flag is None:
            continue
        yield Word(text=flag, line=place.line or 1, column=place.column or 1)
        if isinstance(value.content, bool) or value.content is None:
            continue
        for item in value.content if isinstance(value.content, list) else [value]:
            if not isinstance(item.content, list | dict):
                yield from _split(item)


def _flag(key: str, value: object, table: FlagTable) -> str | None:
    """Return the flag that a key with a value stands for; None for one that stands for nothing."""
    if key.startswith("-"):
        return None if value is False else key
    flags = table.by_dest.get(key.replace("-", "_"))
    if flags is None or value is None:
        return f"--{key.replace('_', '-')}" if flags is None and value is not False else None
    if not isinstance(value, bool):
        return flags[0].name
    kind = FlagKind.TRUE if value else FlagKind.FALSE
    return next((flag.name for flag in flags if flag.kind in {kind, FlagKind.BOOLEAN_OPTIONAL}), None)


def _split(node: "Node") -> Iterator[Word]:
    """Yield the words of a value, split at blanks as the shell would."""
    line, column = node.location.line or 1, node.location.column or 1
    text = _text(node.content)
    if not isinstance(node.content, str) or " " not in text:
        yield Word(text=text, line=line, column=column)
        return
    for command in read_script(text, file=node.location.file).commands:
        for word in command.words:
            yield Word(text=word.text, line=line, column=column)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
