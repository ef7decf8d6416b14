"""Commands that start a program with DeepSpeed, as far as a rule asks: which configuration, on how many GPUs.

Any program counts. A command is one of DeepSpeed's if a flag of it names a JSON file as a DeepSpeed configuration.
The deepspeed launcher: `deepspeed/launcher/runner.py`. torchrun starts one process a node where it is not told.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from planner.errors import Location
from planner.readers.launch_line import FLAG, batch_directives
from planner.readers.programs import DEEPSPEED_PROGRAM
from planner.readers.shell import Script, Word, read_script

CONFIG_FLAGS = ("deepspeed-config", "deepspeed", "ds-config", "ds-config-file", "deepspeed-config-file")
"""Flags of training programs that name the configuration; DeepSpeed's own is --deepspeed_config, Trainer's --deepspeed.
"""

PIPELINE_FLAGS = (
    "pipeline-model-parallel-size",
    "pipeline-parallel-size",
    "pipe-parallel-size",
    "pipeline-stages",
    "num-stages",
    "pp-size",
)
TENSOR_FLAGS = ("tensor-model-parallel-size", "tensor-parallel-size", "model-parallel-size", "mp-size", "tp-size")
"""Flags by which training programs are told degrees that DeepSpeed's JSON does not hold."""

DEEPSPEED = re.compile(r"(?:^|/)deepspeed(?:\.py)?$")
TORCHRUN = re.compile(r"(?:^|/)torchrun$|^torch\.distributed\.(?:run|launch)$")
TORCHRUN_TEXT = re.compile(r"\btorchrun\b|\btorch\.distributed\.(?:run|launch)\b|\bdeepspeed\b")
SRUN = re.compile(r"(?:^|/)srun$")
NUMBER = re.compile(r"[0-9]{1,7}", re.ASCII)
HOST = re.compile(r"\s*([^\s#]+)\s+slots=([0-9]{1,4})\s*(?:#.*)?", re.ASCII)

Flags = Mapping[str, tuple[Word, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeedLaunch:
    """A command that starts a program with a DeepSpeed configuration.

    Args:
        config: The word that names the configuration.
        start: Where the command stands.
        program: Flags of the program, without dashes in front, underscores written as dashes; the last use counts.
        trainer: Hugging Face's Trainer reads the configuration.
        ours: The program is the one that plans are emitted with.
        num_nodes: Nodes; None where only a run could tell.
        gpus_per_node: Processes of one node; None likewise.
        hostfile: The hostfile that the launcher is told of.
    """

    config: Word
    start: Location
    program: Flags
    trainer: bool
    ours: bool
    num_nodes: int | None
    gpus_per_node: int | None
    hostfile: str | None = None

    @property
    def config_name(self) -> str:
        """Return the name of the configuration's file."""
        return self.config.text.rsplit("/", 1)[-1]

    def integer(self, names: Sequence[str]) -> int | None:
        """Return the number that the first given of some flags gives; None where it is none or none is given."""
        words = next((self.program[name] for name in names if name in self.program), ())
        return int(words[0].text) if words and NUMBER.fullmatch(words[0].text) else None

    @property
    def pipeline_stages(self) -> int | None:
        """Return the pipeline stages that the program is told of; None where it is told of none."""
        layers = self.program.get("layers-per-stage")
        return len(layers[0].text.split(",")) if layers else self.integer(PIPELINE_FLAGS)


def read_deepspeed_launches(text: str, *, file: str) -> tuple[DeepSpeedLaunch, ...]:
    """Return the commands of a script that name a DeepSpeed configuration, in order.

    Raises:
        InputError: The script is damaged.
    """
    script = read_script(text, file=file)
    found = (_launch(script, command.words, file=file) for command in script.commands)
    return tuple(launch for launch in found if launch is not None)


def with_hosts(launch: DeepSpeedLaunch, hostfile: str) -> tuple[int | None, int | None]:
    """Return nodes and GPUs of a node that a hostfile leaves of what the launcher is told."""
    slots = [int(match.group(2)) for match in map(HOST.fullmatch, hostfile.splitlines()) if match is not None]
    used = slots[: launch.num_nodes]
    if not used:
        return launch.num_nodes, launch.gpus_per_node
    same = used[0] if len(set(used)) == 1 else None
    return len(used), launch.gpus_per_node or same


def _launch(script: Script, words: Sequence[Word], *, file: str) -> DeepSpeedLaunch | None:
    end = _program(words)
    program = _flags(words[end:])
    named = next(((name, program[name][0]) for name in CONFIG_FLAGS if _is_json(program.get(name, ()))), None)
    if named is None:
        return None
    nodes, per_node, hostfile = _sizes(script, (*words[:end], *_inner(words[:end], file=file)))
    return DeepSpeedLaunch(
        config=named[1],
        start=Location(file=file, line=words[0].line, column=words[0].column),
        program=program,
        trainer=named[0] == "deepspeed",
        ours=any(DEEPSPEED_PROGRAM.path.search(word.text) for word in words[:end]),
        num_nodes=nodes,
        gpus_per_node=per_node,
        hostfile=hostfile,
    )


def _inner(words: Sequence[Word], *, file: str) -> tuple[Word, ...]:
    """Return the words of the shell text that `bash -c` is handed, as srun needs it for a launcher on every node."""
    for word, following in pairwise(words):
        if word.text == "-c" and TORCHRUN_TEXT.search(following.text):
            commands = read_script(following.text, file=file).commands
            return tuple(found for command in commands for found in command.words)
    return ()


def _is_json(words: Sequence[Word]) -> bool:
    return bool(words) and words[0].text.lower().endswith(".json")


def _program(words: Sequence[Word]) -> int:
    """Return where the program's own words start: behind the first Python file, or behind `-m` and its module."""
    for index, word in enumerate(words):
        if word.text.endswith(".py") and not DEEPSPEED.search(word.text):
            return index + 1
    for index, word in enumerate(words):
        following = words[index + 1].text if index + 1 < len(words) else ""
        if word.text in {"-m", "--module"} and not TORCHRUN.search(following) and following:
            return index + 2
    return len(words)


def _flags(words: Sequence[Word]) -> dict[str, tuple[Word, ...]]:
    """Return the flags among words by name, each with the words behind it; `--flag=value` is taken apart."""
    found: dict[str, tuple[Word, ...]] = {}
    name = ""
    for word in words:
        if FLAG.match(word.text) or re.fullmatch(r"-[A-Za-z]", word.text):
            spelled, equals, value = word.text.partition("=")
            name = spelled.lstrip("-").replace("_", "-")
            inside = Word(text=value, line=word.line, column=word.column + len(spelled) + 1)
            found[name] = (inside,) if equals else ()
        elif name:
            found[name] = (*found[name], word)
    return found


def _sizes(script: Script, words: Sequence[Word]) -> tuple[int | None, int | None, str | None]:
    """Return nodes, GPUs of a node and the hostfile that the launcher's words and the batch system's say."""
    flags = _flags(words)
    batch = batch_directives(script)
    nodes, per_node = batch.get("nodes"), batch.get("gpus-per-node", batch.get("gres"))
    if any(DEEPSPEED.search(word.text) for word in words):
        nodes, per_node = _number(flags, ("num-nodes",), nodes), _number(flags, ("num-gpus", "num-accelerators"), None)
        hostfile = next((flags[name][0].text for name in ("hostfile", "H") if flags.get(name)), None)
        for name in ("include", "i"):
            if flags.get(name):
                nodes, per_node = _included(flags[name][0].text)
        alone = nodes is None and hostfile is None and per_node is not None and "num-nodes" not in flags
        return 1 if alone else nodes, per_node, hostfile
    if any(TORCHRUN.search(word.text) for word in words):
        nodes = _number(flags, ("nnodes",), nodes if nodes is not None else 1)
        return nodes, _number(flags, ("nproc-per-node",), 1), None
    if words and SRUN.search(words[0].text):
        nodes = _number(flags, ("nodes", "N"), nodes)
        return nodes, _number(flags, ("ntasks-per-node", "gpus-per-node"), per_node), None
    return None, None, None


def _number(flags: Flags, names: Sequence[str], absent: int | None) -> int | None:
    """Return the number that a flag gives; None for a text that is none."""
    words = next((flags[name] for name in names if name in flags), None)
    if words is None:
        return absent
    return int(words[0].text) if words and NUMBER.fullmatch(words[0].text) else None


def _included(text: str) -> tuple[int | None, int | None]:
    """Return nodes and GPUs of a node of `worker-0:0,1@worker-1:0,1`; a node without a list has all its GPUs."""
    counts = list(_counts(text.split("@")))
    return len(counts), counts[0] if len(set(counts)) == 1 else None


def _counts(hosts: Sequence[str]) -> Iterator[int | None]:
    for host in hosts:
        _, colon, slots = host.partition(":")
        yield len(slots.split(",")) if colon else None
