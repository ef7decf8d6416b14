"""A DeepSpeed run as the rules look at it: its JSON with the place of every value, and the command that starts it.

The JSON alone says nothing of the number of GPUs, nor of degrees that the program is told: then rules that need them
are not decided. "auto" is completed by Hugging Face's Trainer and by nothing else; its values are not said.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from planner.documents.document import Document, parse_document
from planner.errors import Location
from planner.readers.arguments import NotSaidError
from planner.readers.deepspeed_launch import TENSOR_FLAGS, DeepSpeedLaunch, with_hosts
from planner.readers.flag_tables import Framework, raw_table, versions
from planner.readers.key_tables import TRUTHS, KeyTable, key_table, number_of

AUTO = "auto"
COMMENTS = re.compile(r'("(?:[^"\\\n]|\\.)*"?)|/\*.*?(?:\*/|\Z)|//[^\n]*|#[^\n]*', re.DOTALL)
LAST_COMMA = re.compile(r',(?=\s*[}\]])|"(?:[^"\\\n]|\\.)*"?')

Path = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class DeepSpeedRun:
    """A training run that a configuration describes, and a command starts if one is known.

    What is asked for and only a run could tell raises `NotSaidError`, and so does what is of a wrong kind, which rules
    of its own report.

    Args:
        document: The configuration.
        table: The keys of the version that it is judged for.
        launch: The command that starts the program; None where none is known.
        num_gpus: Processes; None where they are not said.
        node_gpus: Processes of one node; None likewise.
        domain_gpus: GPUs that fast links join, where the cluster is known; else those of a node are taken to be.
    """

    document: Document
    table: KeyTable
    launch: DeepSpeedLaunch | None
    num_gpus: int | None
    node_gpus: int | None
    domain_gpus: int | None = None

    @property
    def framework(self) -> Framework:
        """Return whose run it is."""
        return Framework.DEEPSPEED

    @property
    def arguments(self) -> None:
        """Return nothing: what is said is JSON, which has rules of its own for its keys."""

    @property
    def start(self) -> Location:
        """Return where it is started: its command, else its configuration."""
        return self.document.locate() if self.launch is None else self.launch.start

    @property
    def version(self) -> str:
        """Return the version that it is judged for."""
        return self.table.version

    def place(self, *path: str) -> Location:
        """Return where a key stands; where its section does, if it is absent."""
        name = self._name(path)
        return self.document.locate((*path[:-1], name or path[-1]) if path else (), key=True)

    def value_place(self, *path: str) -> Location:
        """Return where the value of a key stands."""
        return self.document.locate((*path[:-1], self._name(path) or path[-1]))

    def given(self, *path: str) -> bool:
        """Return whether a key is there, under any of its names, and is not null."""
        return self.content(*path) is not None

    def content(self, *path: str) -> object:
        """Return what a key holds, as it stands; None where it is absent."""
        name = self._name(path)
        node = None if name is None else self.document.node((*path[:-1], name))
        return None if node is None else node.data()

    def _name(self, path: Path) -> str | None:
        """Return the name under which a key is there."""
        if not path:
            return None
        parent = self.document.node(path[:-1])
        fields = parent.content if parent is not None else None
        if not isinstance(fields, dict):
            return None
        return next((name for name in self.table.names(path) if name in fields), None)

    def value(self, *path: str) -> object:
        """Return what a key says, or its default where it is absent.

        Raises:
            NotSaidError: It is "auto", or its section is no section.
        """
        for depth in range(1, len(path)):
            section = self.content(*path[:depth])
            if section is not None and not isinstance(section, dict):
                raise NotSaidError(".".join(path))
        content = self.content(*path)
        if content == AUTO:
            raise NotSaidError(".".join(path))
        spec = self.table.at(path)
        return content if content is not None else spec.default if spec is not None else None

    def integer(self, *path: str) -> int | None:
        """Return a whole number; None where there is none and no default.

        Raises:
            NotSaidError: It is not said, or is no whole number.
        """
        number = self.number(*path)
        if number is not None and number != int(number):
            raise NotSaidError(".".join(path))
        return None if number is None else int(number)

    def number(self, *path: str) -> float | None:
        """Return a number; None where there is none and no default.

        Raises:
            NotSaidError: It is not said, or is no number.
        """
        value = self.value(*path)
        number = number_of(value)
        if value is not None and number is None:
            raise NotSaidError(".".join(path))
        return number

    def degree(self, *path: str) -> int:
        """Return a degree of parallelism: 1 where none is said; DeepSpeed takes 0 for 1.

        Raises:
            NotSaidError: It is not said, or is no number.
        """
        found = self.integer(*path)
        if found is not None and found < 0:
            raise NotSaidError(".".join(path))
        return found or 1

    def is_on(self, *path: str) -> bool:
        """Return whether a switch is on, its default counted.

        Raises:
            NotSaidError: It is not said, or is no truth value.
        """
        value = self.value(*path)
        if isinstance(value, str) and value.lower() in TRUTHS:
            return value.lower() in {"1", "on", "t", "true", "y", "yes"}
        if value is not None and (isinstance(value, str) or number_of(value) not in {0, 1}):
            raise NotSaidError(".".join(path))
        return bool(value)

    def text(self, *path: str) -> str | None:
        """Return a text; None where there is none and no default.

        Raises:
            NotSaidError: It is not said, or is no text.
        """
        value = self.value(*path)
        if value is not None and not isinstance(value, str):
            raise NotSaidError(".".join(path))
        return value

    def keys(self, *path: str) -> tuple[str, ...]:
        """Return the keys of a section as they stand; nothing where it is none."""
        content = self.content(*path) if path else self.document.data
        return tuple(content) if isinstance(content, dict) else ()

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        if self.num_gpus is None:
            raise NotSaidError("the number of GPUs")
        return self.num_gpus

    @property
    def gpus_per_node(self) -> int:
        """Return the processes of one node."""
        if self.node_gpus is None:
            raise NotSaidError("the GPUs of a node")
        return self.node_gpus

    @cached_property
    def stage(self) -> int:
        """Return the ZeRO stage; `"zero_optimization": true` means 1 (`read_zero_config_deprecated`)."""
        whole = self.content("zero_optimization")
        return int(whole) if isinstance(whole, bool) else self.integer("zero_optimization", "stage") or 0

    def offload_device(self, section: str) -> str:
        """Return where `offload_optimizer` or `offload_param` moves its part: none, cpu or nvme."""
        old = {"offload_optimizer": "cpu_offload", "offload_param": "cpu_offload_param"}[section]
        if self.is_on("zero_optimization", old):
            return "cpu"
        return self.text("zero_optimization", section, "device") or "none"

    @cached_property
    def tp(self) -> int:
        """Return the degree of AutoTP."""
        return self.degree("tensor_parallel", "autotp_size")

    @cached_property
    def sp(self) -> int:
        """Return the degree of sequence parallelism (Ulysses); a number below 1, which DSP102 reports, counts as 1."""
        return max(self.integer("sequence_parallel_size") or 1, 1)

    @cached_property
    def program_tp(self) -> int:
        """Return the tensor-parallel degree that the program is told of, and hands to DeepSpeed as groups."""
        return (None if self.launch is None else self.launch.integer(TENSOR_FLAGS)) or 1

    @cached_property
    def pp(self) -> int:
        """Return the pipeline stages; only the program knows them.

        Raises:
            NotSaidError: There is a `pipeline` section, and no flag that is known says how many.
        """
        told = None if self.launch is None else self.launch.pipeline_stages
        if told is None and self.given("pipeline"):
            stages = self.content("pipeline", "stages")
            if not isinstance(stages, int) or isinstance(stages, bool):
                raise NotSaidError("the pipeline stages")
            told = stages
        return told or 1

    @property
    def has_pipeline(self) -> bool:
        """Return whether the program builds pipeline stages, as far as the section or a flag tells."""
        told = None if self.launch is None else self.launch.pipeline_stages
        return self.given("pipeline") if told is None else told > 1

    @property
    def makes_groups(self) -> bool:
        """Return whether the program hands DeepSpeed groups that split off the tensor-parallel ranks of AutoTP."""
        return self.launch is not None and self.launch.ours

    @cached_property
    def counted_replicas(self) -> float:
        """Return the data-parallel processes that DeepSpeed checks batches against.

        Without groups of the program's these are all processes, AutoTP's ranks too, and with sequence parallelism the
        quotient, a fraction where it does not divide. Pipeline stages bring groups of their own, which know nothing of
        sequence parallelism (`DeepSpeedConfig.__init__`).
        """
        split = self.pp * self.program_tp * (self.tp if self.makes_groups else 1)
        counted = self.world_size / (split * (self.sp if self.pp == 1 else 1))
        return int(counted) if counted == int(counted) else counted


def looks_like_deepspeed(content: object) -> bool:
    """Return whether a JSON value is a DeepSpeed configuration: a mapping most of whose keys are DeepSpeed's.

    A key that is all its own, such as `zero_optimization`, is enough beside others that are not known. Names of number
    formats alone are not: many a file has them.
    """
    if not isinstance(content, dict) or not content:
        return False
    known = known_keys()
    share = sum(key in known for key in content)
    telling = any(key in known and key not in FORMATS for key in content)
    return (telling and share * 2 > len(content)) or bool(content.keys() & DISTINCTIVE)


FORMATS = frozenset({"bf16", "bfloat16", "fp16"})
DISTINCTIVE = frozenset({"zero_optimization", "train_micro_batch_size_per_gpu"})


@cache
def known_keys() -> frozenset[str]:
    """Return the keys at the top that any version with a table has, the removed ones among them."""
    return frozenset(
        key
        for version in versions(Framework.DEEPSPEED)
        for key in _keys_of(raw_table(Framework.DEEPSPEED, version)["keys"])
    )


def _keys_of(keys: object) -> Iterator[str]:
    if isinstance(keys, Mapping):
        yield from keys


def read_deepspeed_runs(
    document: Document,
    launches: Sequence[tuple[DeepSpeedLaunch, str]],
    *,
    version: str,
    num_gpus: int | None = None,
    gpus_per_node: int | None = None,
) -> tuple[DeepSpeedRun, ...]:
    """Return the runs of a configuration: one for each command that names it, one without a command if none does.

    Args:
        document: The configuration.
        launches: The commands, each with the text of its hostfile; "" without one.
        version: The version whose keys count.
        num_gpus: GPUs, where the commands leave them open.
        gpus_per_node: GPUs of a node, likewise.
    """
    table = key_table(version)
    runs = []
    for launch, hosts in launches:
        nodes, per_node = with_hosts(launch, hosts)
        known = nodes * per_node if nodes is not None and per_node is not None else None
        runs.append(DeepSpeedRun(document, table, launch, known or num_gpus, per_node or gpus_per_node))
    return tuple(runs) or (DeepSpeedRun(document, table, None, num_gpus, gpus_per_node),)


def parse_deepspeed(text: str, *, file: str) -> Document:
    """Return a configuration that is written in JSON, or in what DeepSpeed's own reader (hjson) takes besides.

    Comments and commas behind the last element are read over; every place stays what it is.

    Raises:
        InputError: It is neither.
    """
    return parse_document(plain_json(text), file=file if file.lower().endswith(".json") else f"{file}.json")


def plain_json(text: str) -> str:
    """Return what DeepSpeed's own reader takes with blanks for what JSON itself does not have."""
    plain = COMMENTS.sub(lambda match: match.group(1) or re.sub(r"[^\n]", " ", match.group()), text)
    return LAST_COMMA.sub(lambda match: " " if match.group() == "," else match.group(), plain)
