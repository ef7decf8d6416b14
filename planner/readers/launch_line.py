"""The command that starts a training program: how many processes, and the program's flags.

Understood: torchrun, `python -m torch.distributed.run` and the deepspeed launcher, by themselves or under srun, and a
program that srun starts once a GPU; with what the batch system is told for whatever the launcher leaves open.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from planner.errors import InputError, Location
from planner.readers.shell import Command, Script, Word, read_script

FLAG = re.compile(r"--[A-Za-z]")
BATCH_DIRECTIVE = re.compile(
    r"SBATCH\s+(?:--(nodes|gpus-per-node|gres|ntasks-per-node)[=\s]|-(N)\s?)\s*(?:gpu:)?(?:\w+:)?([0-9]+)\s*(?:#.*)?$"
)
NODE_ORDER = "NODE_ORDER"
"""Array of the node at each place of the mesh, where nodes differ."""
NODES = ("--nnodes", "--num-nodes", "--nodes")
PROCESSES = ("--nproc-per-node", "--num-gpus")
TASKS = ("--ntasks-per-node",)
LAUNCHERS = re.compile(r"(?:^|/)(?:torchrun|deepspeed|accelerate)$|^torch\.distributed\.(?:run|launch)$")
"""Programs that start a process a GPU; without one the batch system does."""

VARIABLE = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)", re.ASCII | re.DOTALL)
EXPORT = "--export="


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramKind:
    """The training programs that a reader understands, and how messages speak of them.

    Args:
        title: With its article, "a training program".
        path: Found in the path of such a program.
        command: The command that is expected, for hints.
        sizes: Where a script says how many GPUs it starts on, for hints.
    """

    title: str
    path: re.Pattern[str]
    command: str
    sizes: str


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
class LaunchLine:
    """A training program as a script starts it.

    Args:
        file: The script, for messages.
        kind: What was looked for.
        program: The training program that is started.
        flags: The flags of the training program, in order; a later one overrides an earlier.
        num_nodes: Nodes that the launcher or Slurm is told of; None when the script leaves it open.
        gpus_per_node: Processes of one node; None when the script leaves it open.
        words: The words behind the program, each with its place.
        start: Where the command stands.
        environment: Variables that the script exports, or sets for the command.
        node_order: The node at each place of the mesh, where the script says so and it is not the order of the nodes.
    """

    file: str
    kind: ProgramKind
    program: str
    flags: tuple[Flag, ...]
    num_nodes: int | None
    gpus_per_node: int | None
    words: tuple[Word, ...]
    start: Location
    environment: Mapping[str, str]
    node_order: tuple[int, ...]

    def flag(self, name: str) -> Flag | None:
        """Return the last use of a flag, which is the one that counts."""
        return next((flag for flag in reversed(self.flags) if flag.name == name), None)

    def has(self, name: str) -> bool:
        """Return whether a flag is given."""
        return self.flag(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        """Return the value of a flag, or what the program assumes; without a default the flag is needed."""
        flag = self.flag(name)
        if flag is None:
            if default is None:
                raise InputError(
                    f"{name} is missing.", location=Location(file=self.file), hint="The program does not start without."
                )
            return default
        if len(flag.values) != 1:
            raise self.error(flag, f"takes one value, {len(flag.values)} are given", "Give it one value.")
        return flag.values[0]

    def integer(self, name: str, default: int | None = None) -> int:
        """Return the whole number that a flag gives; without a default the flag is needed."""
        value = self.text(name, None if default is None else str(default))
        flag = self.flag(name)
        if flag is not None and not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII):
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
        """Return the number that a flag gives, or what the program assumes without it."""
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
        if not self.num_nodes or not self.gpus_per_node:
            raise InputError(
                "the script does not say how many GPUs it starts on.",
                location=Location(file=self.file),
                hint=f"Give {self.kind.sizes} as numbers.",
            )
        return self.num_nodes * self.gpus_per_node


def read_launch_line(text: str, *, file: str, kind: ProgramKind) -> LaunchLine:
    """Return the last command of a script that starts a program of a kind.

    Args:
        text: The script.
        file: What messages call it.
        kind: What to look for.
    """
    found = launch_lines(read_script(text, file=file), file=file, kind=kind)
    if not found:
        raise InputError(
            f"no command starts {kind.title}.", location=Location(file=file), hint=f"Expected {kind.command}."
        )
    return found[-1]


def launch_lines(script: Script, *, file: str, kind: ProgramKind) -> tuple[LaunchLine, ...]:
    """Return every command of a script that starts a program of a kind, in order."""
    found: list[LaunchLine] = []
    for command in script.commands:
        index = next((index for index, word in enumerate(command.words) if kind.path.search(word.text)), None)
        if index is not None:
            found.append(_launch_line(script, command, index, file=file, kind=kind))
    return tuple(found)


def _launch_line(script: Script, command: Command, program: int, *, file: str, kind: ProgramKind) -> LaunchLine:
    directives = batch_directives(script)
    before = command.words[:program]
    launcher = _flags(before)
    processes = _launcher_number(launcher, PROCESSES, None)
    if not any(LAUNCHERS.search(word.text) for word in before) and any(word.text == "srun" for word in before):
        processes = _launcher_number(launcher, TASKS, directives.get("ntasks-per-node"))
    return LaunchLine(
        file=file,
        kind=kind,
        program=command.words[program].text,
        flags=_flags(command.words[program + 1 :]),
        num_nodes=_launcher_number(launcher, NODES, directives.get("nodes")),
        gpus_per_node=processes or directives.get("gpus-per-node", directives.get("gres")),
        words=command.words[program + 1 :],
        start=Location(file=file, line=command.words[0].line, column=command.words[0].column),
        environment={**script.exports, **command.environment, **_set_on_the_way(before)},
        node_order=_node_order(script, file=file),
    )


def _node_order(script: Script, *, file: str) -> tuple[int, ...]:
    """Return the node at each place of the mesh; nothing where the nodes stand as they are numbered.

    Raises:
        InputError: The table does not hold the numbers of all nodes.
    """
    words = script.variables.get(NODE_ORDER, ())
    numbers = [int(word.text) for word in words if re.fullmatch(r"[0-9]{1,6}", word.text, re.ASCII)]
    if len(numbers) < len(words) or sorted(numbers) != list(range(len(words))):
        raise InputError(
            f"{NODE_ORDER} does not hold each of the numbers 0 to {len(words) - 1} once.",
            location=Location(file=file, line=words[0].line, column=words[0].column),
            hint="Give the number of the node at each place of the mesh.",
        )
    return () if numbers == sorted(numbers) else tuple(numbers)


def batch_directives(script: Script) -> Mapping[str, int]:
    """Return the sizes that a script tells Slurm in its comments."""
    found = (BATCH_DIRECTIVE.match(comment) for _, comment in script.comments)
    return {match.group(1) or "nodes": int(match.group(3)) for match in found if match is not None}


def _set_on_the_way(words: Sequence[Word]) -> Mapping[str, str]:
    """Return the variables that the words before a program set: `env NAME=VALUE`, `srun --export=ALL,NAME=VALUE`."""
    texts = [word.text for word in words if not word.text.startswith(EXPORT)]
    for word in words:
        if word.text.startswith(EXPORT):
            texts.extend(word.text.removeprefix(EXPORT).split(","))
    found = (VARIABLE.fullmatch(text) for text in texts)
    return {match.group(1): match.group(2) for match in found if match is not None}


def _launcher_number(launcher: Sequence[Flag], names: tuple[str, ...], directive: int | None) -> int | None:
    """Return what the launcher is told, dashes and underscores alike, else what the batch system is told."""
    for flag in reversed(launcher):
        values = flag.values
        if flag.name.replace("_", "-") in names and values and re.fullmatch(r"[0-9]{1,9}", values[0], re.ASCII):
            return int(values[0])
    return directive


def _flags(words: Sequence[Word]) -> tuple[Flag, ...]:
    """Return the flags among the words, each with the values behind it; `--flag=value` is taken apart."""
    flags: list[Flag] = []
    for word in words:
        if FLAG.match(word.text):
            name, equals, value = word.text.partition("=")
            flags.append(Flag(name=name, values=(value,) if equals else (), line=word.line, column=word.column))
        elif flags:
            last = flags[-1]
            flags[-1] = Flag(name=last.name, values=(*last.values, word.text), line=last.line, column=last.column)
    return tuple(flags)
