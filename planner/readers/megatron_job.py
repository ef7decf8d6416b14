"""Megatron-LM launch scripts, read back: the training program with every flag and its place."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from planner.errors import InputError, Location
from planner.readers.megatron_patterns import PatternError, parse_list
from planner.readers.shell import Command, Script, Word, read_script

PROGRAM = re.compile(r"(?:^|/)(?:pretrain_\w+|lora_gpt)\.py$")
FLAG = re.compile(r"--[A-Za-z]")
BATCH_DIRECTIVE = re.compile(r"SBATCH\s+--(nodes|gpus-per-node|gres)[=\s]\s*(?:gpu:)?(?:\w+:)?([0-9]+)\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag as it was given.

    Args:
        name: The flag, with its dashes.
        values: What follows it, up to the next flag.
        line: Where it stands; 1 is the first line.
        column: Where it stands; 1 is the first column.
    """

    name: str
    values: tuple[str, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronJob:
    """A training run as its launch script starts it.

    Args:
        file: The script, for messages.
        program: The training program that is started.
        flags: The flags of the training program, in order; a later one overrides an earlier.
        num_nodes: Nodes that torchrun or Slurm is told of; None when the script leaves it open.
        gpus_per_node: Processes of one node; None when the script leaves it open.
        environment: Variables that the script exports.
    """

    file: str
    program: str
    flags: tuple[Flag, ...]
    num_nodes: int | None
    gpus_per_node: int | None
    environment: Mapping[str, str]

    def flag(self, name: str) -> Flag | None:
        """Return the last use of a flag, which is the one that counts."""
        return next((flag for flag in reversed(self.flags) if flag.name == name), None)

    def has(self, name: str) -> bool:
        """Return whether a flag is given."""
        return self.flag(name) is not None

    def text(self, name: str, default: str) -> str:
        """Return the value of a flag, or what Megatron assumes without it."""
        flag = self.flag(name)
        if flag is None:
            return default
        if len(flag.values) != 1:
            raise self.error(flag, f"takes one value, {len(flag.values)} are given", "Give it one value.")
        return flag.values[0]

    def integer(self, name: str, default: int | None = None) -> int:
        """Return the whole number that a flag gives; without a default the flag is needed."""
        flag = self.flag(name)
        if flag is None:
            if default is None:
                raise InputError(
                    f"{name} is missing.", location=Location(file=self.file), hint="Megatron-LM does not start without."
                )
            return default
        value = self.text(name, "")
        if not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII):
            raise self.error(flag, f"takes a whole number, {value!r} is given", "Write a number.")
        return int(value)

    def positive(self, name: str, default: int | None = None) -> int:
        """Return the whole number, at least 1, that a flag gives; without a default the flag is needed."""
        value = self.integer(name, default)
        flag = self.flag(name)
        if value < 1 and flag is not None:
            raise self.error(flag, "is 0", "Write a positive number.")
        return value

    def number(self, name: str, default: float) -> float:
        """Return the number that a flag gives, or what Megatron assumes without it."""
        value = self.text(name, repr(default))
        try:
            return float(value)
        except ValueError:
            flag = self.flag(name)
            if flag is None:
                raise
            raise self.error(flag, f"takes a number, {value!r} is given", "Write a number.") from None

    def choice(self, name: str, default: str, choices: Collection[str]) -> str:
        """Return the value of a flag that takes one of a few words."""
        value = self.text(name, default)
        flag = self.flag(name)
        if value not in choices and flag is not None:
            raise self.error(flag, f"is {value!r}", f"Plans know {', '.join(choices)}.")
        return value

    def layers(self, name: str, num_layers: int) -> tuple[int, ...] | int | None:
        """Return what a flag says of each layer: a list, or the period that a single number stands for."""
        flag = self.flag(name)
        if flag is None:
            return None
        value = self.text(name, "")
        if "[" not in value:
            number = self.integer(name)
            if number < 1:
                raise self.error(flag, "takes a list or a positive number", "Write one.")
            return number
        try:
            numbers = parse_list(value)
        except PatternError as error:
            raise self.error(flag, f"is no list: {error}", "Write, for example, [0]*3+[1]*58.") from None
        if len(numbers) != num_layers or set(numbers) - {0, 1}:
            raise self.error(
                flag, f"is a list of {len(numbers)}, the model has {num_layers} layers", "Write a 0 or 1 a layer."
            )
        return numbers

    def error(self, flag: Flag, problem: str, hint: str) -> InputError:
        """Return the error that points at a flag."""
        return InputError(f"{flag.name} {problem}.", location=self.location(flag), hint=hint)

    def location(self, flag: Flag | None) -> Location:
        """Return where a flag stands; the file, if it is absent."""
        if flag is None:
            return Location(file=self.file)
        return Location(file=self.file, line=flag.line, column=flag.column)

    @property
    def world_size(self) -> int:
        """Return the number of processes that the script starts."""
        if self.num_nodes is None or self.gpus_per_node is None:
            raise InputError(
                "the script does not say how many GPUs it starts on.",
                location=Location(file=self.file),
                hint="Give torchrun --nnodes and --nproc-per-node as numbers.",
            )
        return self.num_nodes * self.gpus_per_node


def read_megatron(text: str, *, file: str) -> MegatronJob:
    """Return the training run that a torchrun script or a Slurm batch script starts."""
    script = read_script(text, file=file)
    for command in reversed(script.commands):
        program = next((index for index, word in enumerate(command.words) if PROGRAM.search(word.text)), None)
        if program is not None:
            return _job(script, command, program, file)
    raise InputError(
        "no command starts a Megatron-LM training program.",
        location=Location(file=file),
        hint="Expected torchrun with .../pretrain_gpt.py and its arguments.",
    )


def _job(script: Script, command: Command, program: int, file: str) -> MegatronJob:
    directives = _batch_directives(script)
    launcher = _flags(command.words[:program])
    return MegatronJob(
        file=file,
        program=command.words[program].text,
        flags=_flags(command.words[program + 1 :]),
        num_nodes=_launcher_number(launcher, "--nnodes", directives.get("nodes")),
        gpus_per_node=_launcher_number(
            launcher, "--nproc-per-node", directives.get("gpus-per-node", directives.get("gres"))
        ),
        environment=dict(script.exports),
    )


def _batch_directives(script: Script) -> dict[str, int]:
    found = (BATCH_DIRECTIVE.match(comment) for _, comment in script.comments)
    return {match.group(1): int(match.group(2)) for match in found if match is not None}


def _launcher_number(launcher: tuple[Flag, ...], name: str, directive: int | None) -> int | None:
    """Return what torchrun is told, dashes and underscores alike, else what the batch system is told."""
    for flag in reversed(launcher):
        if flag.name.replace("_", "-") == name and flag.values and flag.values[0].isdecimal():
            return int(flag.values[0])
    return directive


def _flags(words: tuple[Word, ...]) -> tuple[Flag, ...]:
    """Return the flags among the words, each with the values behind it; `--flag=value` is taken apart."""
    flags: list[Flag] = []
    for word in words:
        if FLAG.match(word.text):
            name, equals, value = word.text.partition("=")
            flags.append(
                Flag(name=name, values=(value,) if equals else (), line=word.line, column=word.column),
            )
        elif flags:
            last = flags[-1]
            flags[-1] = Flag(name=last.name, values=(*last.values, word.text), line=last.line, column=last.column)
    return tuple(flags)
