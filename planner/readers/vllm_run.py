"""A server that vLLM starts, as the rules look at it: the words of `vllm serve`, a `--config` file among them.

What vLLM does to the words before its parser sees them (`FlexibleArgumentParser`, vllm/utils/argparse_utils.py): names
may be written with underscores, `--name.key value` sets one key of a JSON value, `-O3` is `--optimization-level 3`, and
the keys of a `--config` file stand before the words of the command, so that the command wins.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import InputError, Location
from planner.readers.argument_parser import read_arguments
from planner.readers.arguments import Arguments, NotSaidError
from planner.readers.flag_tables import Framework, flag_table
from planner.readers.named_files import MAX_YAML_BYTES, is_regular_file
from planner.readers.served_model import ServedModel, served_model
from planner.readers.shell import Command, Word, read_script

if TYPE_CHECKING:
    from planner.documents import Document

API_SERVER = re.compile(r"vllm\.entrypoints\.(?:openai|launchers)\.(?:api_server|cli_args)")
NAME = re.compile(r"--[^.=]*")
LEVEL = re.compile(r"-O=?(.+)")

MAX_LEVELS = 32
"""Points in a flag such as `--compilation-config.mode` up to which it is read as keys of a mapping."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class VllmRun:
    """A server that a command starts.

    Sizes raise `NotSaidError` where only a run could tell them; a rule that asks for such a one is not decided.

    Args:
        arguments: The words of the command and of its `--config` file.
        environment: Variables that the script exports, and those before the command.
        gpus_on_node: GPUs of a node, if that is known.
        is_serve: It is started by `vllm serve`, not by its module or from a file by itself.
        is_whole: It is a command, not a configuration file to which a command may add.
        domain_gpus: GPUs that fast links join, where the cluster is known; else those of a node are taken to be.
    """

    arguments: Arguments
    environment: Mapping[str, str]
    gpus_on_node: int | None
    is_serve: bool
    is_whole: bool
    domain_gpus: int | None = None

    @property
    def framework(self) -> Framework:
        """Return whose run it is."""
        return Framework.VLLM

    @property
    def version(self) -> str:
        """Return the version that it is judged for."""
        return self.arguments.table.version

    @property
    def start(self) -> Location:
        """Return where it is started."""
        return self.arguments.start

    def place(self, *dests: str) -> Location:
        """Return where the first given of some values stands; where the command starts, if none is given."""
        return self.arguments.place(*dests)

    def _degree(self, dest: str) -> int:
        if dest not in self.arguments.table.defaults:
            return 1  # a version without the axis
        value = self.arguments.integer(dest)
        if value < 1:
            raise NotSaidError(dest)
        return value

    @cached_property
    def tp(self) -> int:
        """Return the tensor-parallel degree."""
        return self._degree("tensor_parallel_size")

    @cached_property
    def pp(self) -> int:
        """Return the pipeline-parallel degree."""
        return self._degree("pipeline_parallel_size")

    @cached_property
    def pcp(self) -> int:
        """Return the context-parallel degree of prefill."""
        return self._degree("prefill_context_parallel_size")

    @cached_property
    def dcp(self) -> int:
        """Return the context-parallel degree of decode."""
        return self._degree("decode_context_parallel_size")

    @cached_property
    def dp(self) -> int:
        """Return the data-parallel degree."""
        return self._degree("data_parallel_size")

    @cached_property
    def nnodes(self) -> int:
        """Return the nodes that share the work through `--nnodes`."""
        return self._degree("nnodes")

    @property
    def is_external(self) -> bool:
        """Return whether a balancer outside chooses among data-parallel ranks, each of which is a server of its own.

        A rank of one's own says so, and so does the hybrid balancer of a node with one rank
        (`EngineArgs.create_engine_config`); a first rank says that it is the hybrid one.
        """
        arguments = self.arguments
        if arguments.is_on("data_parallel_external_lb") or arguments.is_given("data_parallel_rank"):
            return True
        first = arguments.is_given("data_parallel_start_rank") and not arguments.is_on("headless")
        hybrid = first or arguments.is_on("data_parallel_hybrid_lb")
        return hybrid and arguments.optional_integer("data_parallel_size_local") == 1

    @property
    def replica_size(self) -> int:
        """Return the GPUs of one data-parallel rank."""
        return self.tp * self.pp * self.pcp

    @property
    def gpus_per_node(self) -> int:
        """Return the GPUs of a node."""
        visible = self.environment.get("CUDA_VISIBLE_DEVICES", "")
        if re.fullmatch(r"\d+(,\d+)*", visible):
            return visible.count(",") + 1
        if self.gpus_on_node is None:
            raise NotSaidError("the GPUs of a node (--gpus-per-node)")
        return self.gpus_on_node

    @cached_property
    def model_name(self) -> str:
        """Return the model as it is named: the first word, or `--model`."""
        for dest in ("model_tag", "model"):
            name = self.arguments.text(dest) if self.arguments.is_given(dest) else None
            if name:
                return name
        raise NotSaidError("the model")

    @cached_property
    def model(self) -> ServedModel:
        """Return the facts of the model."""
        found = served_model(self.model_name, base=Path(self.arguments.file).parent)
        if found is None:
            raise NotSaidError(f"the model {self.model_name}, which is neither bundled nor a folder here")
        return found

    def section(self, dest: str) -> Mapping[str, object]:
        """Return a JSON value that is a mapping; empty where it is not given."""
        value = self.arguments.value(dest) if self.arguments.is_given(dest) else {}
        return value if isinstance(value, dict) else {}

    def require_whole(self) -> None:
        """Raise `NotSaidError` for a configuration file, as the command that it is given to may say more."""
        if not self.is_whole:
            raise NotSaidError("the command that the file is given to")


def read_vllm_runs(
    text: str, *, file: str, version: str, num_gpus: int | None = None, gpus_per_node: int | None = None
) -> tuple[VllmRun, ...]:
    """Return the servers that a script starts.

    Args:
        text: The script.
        file: What messages call it.
        version: The version whose flags count.
        num_gpus: GPUs in all, where nothing else says how many a node has.
        gpus_per_node: GPUs of a node.

    Raises:
        InputError: The script is damaged, or a `--config` file of it is.
    """
    script = read_script(text, file=file)
    runs: list[VllmRun] = []
    for command in script.commands:
        words = _served_words(command)
        if words is None:
            continue
        start = Location(file=file, line=command.words[0].line, column=command.words[0].column)
        runs.append(
            VllmRun(
                arguments=_arguments(words, file=file, start=start, version=version),
                environment={**script.exports, **_leading_variables(command)},
                gpus_on_node=gpus_per_node or num_gpus,
                is_serve=any(word.text == "serve" for word in command.words),
                is_whole=True,
            )
        )
    return tuple(runs)


def read_vllm_config(text: str, *, file: str, version: str, num_gpus: int | None, gpus_per_node: int | None) -> VllmRun:
    """Return the server that a `--config` file by itself describes.

    Raises:
        InputError: It is no YAML mapping.
    """
    from planner.documents import parse_document  # noqa: PLC0415 - only files that are YAML need its reader

    words = _config_words(parse_document(text, file=file), file=file)
    start = Location(file=file, line=1, column=1)
    return VllmRun(
        arguments=_arguments(words, file=file, start=start, version=version),
        environment={},
        gpus_on_node=gpus_per_node or num_gpus,
        is_serve=False,
        is_whole=False,
    )


def looks_like_config(keys: Sequence[str], version: str) -> bool:
    """Return whether the keys of a mapping are mostly flags of vLLM."""
    table = flag_table(Framework.VLLM, version)
    known = sum(f"--{key.replace('_', '-')}" in table.by_name for key in keys)
    return bool(keys) and known * 2 > len(keys)


def _served_words(command: Command) -> tuple[Word, ...] | None:
    """Return the words behind `vllm serve` or its module; None for another command."""
    texts = [word.text for word in command.words]
    for index, text in enumerate(texts):
        if re.search(r"(?:^|/)vllm$", text) and texts[index + 1 : index + 2] == ["serve"]:
            return command.words[index + 2 :]
        if API_SERVER.fullmatch(text) and index and texts[index - 1] == "-m":
            return command.words[index + 1 :]
    return None


def _leading_variables(command: Command) -> Mapping[str, str]:
    """Return what `env NAME=value` sets before the program."""
    pairs = (word.text.partition("=") for word in command.words if re.match(r"[A-Z_][A-Z0-9_]*=", word.text))
    return {name: value for name, _, value in pairs}


def _arguments(words: Sequence[Word], *, file: str, start: Location, version: str) -> Arguments:
    table = flag_table(Framework.VLLM, version)
    positional, rest = _model_word(words)
    merged = [*_with_config(rest, file=file)]
    named = [Word(text="--model", line=positional.line, column=positional.column), positional] if positional else []
    return read_arguments(tuple(_as_parsed([*named, *merged])), table, file=file, start=start)


def _model_word(words: Sequence[Word]) -> tuple[Word | None, Sequence[Word]]:
    """Return the model where it is the first word, and the others."""
    if words and not words[0].text.startswith("-"):
        return words[0], words[1:]
    return None, words


def _with_config(words: Sequence[Word], *, file: str) -> Iterator[Word]:
    """Yield the words of the `--config` file, then the command's own."""
    for index, word in enumerate(words):
        name, equals, value = word.text.partition("=")
        if name != "--config":
            continue
        given = Word(text=value, line=word.line, column=word.column) if equals else next(iter(words[index + 1 :]), None)
        if given is not None:
            path = Path(file).parent / given.text
            location = Location(file=file, line=given.line, column=given.column)
            if not is_regular_file(path):
                raise InputError(f"{given.text} is no file.", location=location, hint="Check the path.")
            if path.stat().st_size > MAX_YAML_BYTES:
                raise InputError(
                    f"{given.text} is larger than {MAX_YAML_BYTES >> 10} KiB.",
                    location=location,
                    hint="Check that it is a configuration.",
                )
            from planner.documents import load_document  # noqa: PLC0415 - only files that are YAML need its reader

            yield from _config_words(load_document(path), file=str(path))
        yield from words[:index]
        yield from words[index + (1 if equals else 2) :]
        return
    yield from words


def _config_words(document: "Document", *, file: str) -> tuple[Word, ...]:
    """Return what vLLM makes of a `--config` file: a flag a key, the model among them."""
    root = document.root
    if not isinstance(root.content, dict):
        raise InputError("This is no mapping of vLLM's options.", location=root.location, hint="Write `name: value`.")
    words: list[Word] = []
    for key, node in root.content.items():
        place = root.keys.get(key, node.location)
        value = node.data()
        flag = Word(text=f"--{key}", line=place.line or 1, column=place.column or 1, file=file, literal=True)
        at = node.location
        if isinstance(value, bool):
            name = f"--{key}" if value else f"--no-{key}"
            words.append(replace(flag, text=name))
            continue
        values = value if isinstance(value, list) else [value]
        texts = [json.dumps(one) if isinstance(one, dict) else str(one) for one in values]
        words.append(flag)
        words.extend(replace(flag, text=one, line=at.line or 1, column=at.column or 1) for one in texts)
    return tuple(words)


def _as_parsed(words: Sequence[Word]) -> Iterator[Word]:
    """Yield the words as vLLM's parser gets them: dashes for underscores, levels and single keys written out."""
    nested: dict[str, tuple[Word, dict[str, object]]] = {}
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        level = LEVEL.fullmatch(word.text)
        if level is not None:
            yield _again(word, "--optimization-level")
            yield _again(word, level[1])
            continue
        if not word.text.startswith("--"):
            yield word
            continue
        name, equals, value = word.text.partition("=")
        dashed = NAME.sub(lambda match: match[0].replace("_", "-"), name, count=1)
        if 0 < dashed.count(".") <= MAX_LEVELS:
            if not equals:
                value = words[index].text if index < len(words) else ""
                index += 1
            flag, *keys = dashed.split(".")
            _, merged = nested.setdefault(flag, (word, {}))
            _set(merged, keys, value)
            continue
        yield _again(word, f"{dashed}={value}" if equals else dashed)
    for flag, (word, merged) in nested.items():
        yield _again(word, flag)
        yield _again(word, json.dumps(merged))


def _again(word: Word, text: str) -> Word:
    return replace(word, text=text)


def _set(mapping: dict[str, object], keys: Sequence[str], text: str) -> None:
    """Set one key of a nested mapping, `key+` being a list."""
    value: object
    *outer, last = keys
    if last.endswith("+"):
        last, value = last[:-1], text.split(",")
    else:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
    for key in outer:
        inner = mapping.setdefault(key, {})
        mapping = inner if isinstance(inner, dict) else {}
    mapping[last] = value
