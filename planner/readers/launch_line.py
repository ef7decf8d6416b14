"""The command that starts a training program: how many processes, and the program's arguments.

Understood: torchrun, `python -m torch.distributed.run` and the deepspeed launcher, by themselves or under srun, with
what the batch system is told for whatever the launcher leaves open.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.errors import InputError, Location
from planner.readers.shell import Command, Script, Word, read_script

FLAG = re.compile(r"--[A-Za-z]")
BATCH_DIRECTIVE = re.compile(r"SBATCH\s+--(nodes|gpus-per-node|gres)[=\s]\s*(?:gpu:)?(?:\w+:)?([0-9]+)\s*$")
NODES = ("--nnodes", "--num-nodes")
PROCESSES = ("--nproc-per-node", "--num-gpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument as it was given.

    Args:
        name: With its dashes.
        values: What follows it, up to the next argument.
        line: Where it stands; 1 is the first line.
        column: Where it stands; 1 is the first column.
    """

    name: str
    values: tuple[str, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchLine:
    """A training program as a script starts it.

    Args:
        file: The script, for messages.
        arguments: What the program is told, in order; a later argument overrides an earlier.
        num_nodes: Nodes that the launcher or Slurm is told of; None when the script leaves it open.
        gpus_per_node: Processes of one node; None when the script leaves it open.
    """

    file: str
    arguments: tuple[Argument, ...]
    num_nodes: int | None
    gpus_per_node: int | None

    def argument(self, name: str) -> Argument | None:
        """Return the last use of an argument, which is the one that counts."""
        return next((argument for argument in reversed(self.arguments) if argument.name == name), None)

    def text(self, name: str, default: str | None = None) -> str:
        """Return the value of an argument; without a default the argument is needed."""
        argument = self.argument(name)
        if argument is None:
            if default is None:
                raise InputError(
                    f"{name} is missing.", location=Location(file=self.file), hint="The program does not start without."
                )
            return default
        if len(argument.values) != 1:
            raise self.error(argument, f"takes one value, {len(argument.values)} are given", "Give it one value.")
        return argument.values[0]

    def number(self, name: str, default: float) -> float:
        """Return the number that an argument gives."""
        argument = self.argument(name)
        value = self.text(name, repr(default))
        try:
            return float(value)
        except ValueError:
            if argument is None:
                raise
            raise self.error(argument, f"takes a number, {value!r} is given", "Write a number.") from None

    def integer(self, name: str) -> int:
        """Return the whole number that an argument gives."""
        value = self.text(name)
        argument = self.argument(name)
        if argument is not None and not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII):
            raise self.error(argument, f"takes a whole number, {value!r} is given", "Write a number.")
        return int(value)

    def error(self, argument: Argument, problem: str, hint: str) -> InputError:
        """Return the error that points at an argument."""
        location = Location(file=self.file, line=argument.line, column=argument.column)
        return InputError(f"{argument.name} {problem}.", location=location, hint=hint)

    @property
    def world_size(self) -> int:
        """Return the number of processes that the script starts."""
        if not self.num_nodes or not self.gpus_per_node:
            raise InputError(
                "the script does not say how many GPUs it starts on.",
                location=Location(file=self.file),
                hint="Give torchrun --nnodes and --nproc-per-node as numbers, or deepspeed --num_nodes and --num_gpus.",
            )
        return self.num_nodes * self.gpus_per_node


def read_launch_line(text: str, *, file: str, program: re.Pattern[str]) -> LaunchLine:
    """Return the last command of a script that starts a program whose path matches.

    Args:
        text: The script.
        file: What messages call it.
        program: Found in the path of the training program.
    """
    script = read_script(text, file=file)
    for command in reversed(script.commands):
        index = next((index for index, word in enumerate(command.words) if program.search(word.text)), None)
        if index is not None:
            return _launch_line(script, command, index, file)
    raise InputError(
        "no command starts a training program.",
        location=Location(file=file),
        hint="Expected torchrun or deepspeed with the program and its arguments.",
    )


def _launch_line(script: Script, command: Command, program: int, file: str) -> LaunchLine:
    directives = _batch_directives(script)
    launcher = _arguments(command.words[:program])
    return LaunchLine(
        file=file,
        arguments=_arguments(command.words[program + 1 :]),
        num_nodes=_launcher_number(launcher, NODES, directives.get("nodes")),
        gpus_per_node=_launcher_number(launcher, PROCESSES, directives.get("gpus-per-node", directives.get("gres"))),
    )


def _batch_directives(script: Script) -> Mapping[str, int]:
    found = (BATCH_DIRECTIVE.match(comment) for _, comment in script.comments)
    return {match.group(1): int(match.group(2)) for match in found if match is not None}


def _launcher_number(launcher: Sequence[Argument], names: tuple[str, ...], directive: int | None) -> int | None:
    """Return what the launcher is told, dashes and underscores alike, else what the batch system is told."""
    for argument in reversed(launcher):
        values = argument.values
        if argument.name.replace("_", "-") in names and values and re.fullmatch(r"[0-9]{1,9}", values[0], re.ASCII):
            return int(values[0])
    return directive


def _arguments(words: Sequence[Word]) -> tuple[Argument, ...]:
    """Return the arguments among the words, each with the values behind it; `--name=value` is taken apart."""
    arguments: list[Argument] = []
    for word in words:
        if FLAG.match(word.text):
            name, equals, value = word.text.partition("=")
            arguments.append(Argument(name=name, values=(value,) if equals else (), line=word.line, column=word.column))
        elif arguments:
            last = arguments[-1]
            arguments[-1] = Argument(
                name=last.name, values=(*last.values, word.text), line=last.line, column=last.column
            )
    return tuple(arguments)
