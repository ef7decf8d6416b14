"""A Megatron-LM run as the rules look at it: what its flags say, as the framework completes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from planner.errors import Location
from planner.readers.arguments import Arguments, NotSaidError, read_arguments
from planner.readers.flag_tables import Framework, flag_table
from planner.readers.launch_line import launch_lines
from planner.readers.programs import MEGATRON_PROGRAM
from planner.readers.shell import read_script


@dataclass(frozen=True)
class MegatronRun:
    """A training run that a file starts.

    Degrees and sizes raise `NotSaidError` where only a run of the script could tell them; a rule that asks for such a
    one is not decided.

    Args:
        arguments: The program's arguments.
        num_nodes: Nodes that the launcher is told of; None where it is left open.
        gpus_per_node: Processes of one node; None likewise.
        environment: Variables that the script exports.
    """

    arguments: Arguments
    num_nodes: int | None
    gpus_per_node: int | None
    environment: Mapping[str, str]

    @property
    def framework(self) -> Framework:
        """Return whose run it is."""
        return Framework.MEGATRON

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

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        if self.num_nodes is None or self.gpus_per_node is None:
            raise NotSaidError("the number of GPUs")
        return self.num_nodes * self.gpus_per_node

    def _degree(self, dest: str) -> int:
        value = self.arguments.integer(dest)
        if value < 1:
            raise NotSaidError(dest)
        return value

    @cached_property
    def tp(self) -> int:
        """Return the tensor-parallel degree."""
        return self._degree("tensor_model_parallel_size")

    @cached_property
    def pp(self) -> int:
        """Return the pipeline-parallel degree."""
        return self._degree("pipeline_model_parallel_size")

    @cached_property
    def cp(self) -> int:
        """Return the context-parallel degree."""
        return self._degree("context_parallel_size")

    @cached_property
    def ep(self) -> int:
        """Return the expert-parallel degree."""
        return self._degree("expert_model_parallel_size")

    @cached_property
    def etp(self) -> int:
        """Return the tensor-parallel degree of the experts, tp where it is not given."""
        given = self.arguments.optional_integer("expert_tensor_parallel_size")
        return self.tp if given is None else given

    @cached_property
    def dp(self) -> int:
        """Return the data-parallel degree, rounded down where the mesh does not fit."""
        return max(self.world_size // (self.tp * self.pp * self.cp), 1)

    @cached_property
    def num_experts(self) -> int | None:
        """Return the routed experts of a layer; None for a dense model."""
        return self.arguments.optional_integer("num_experts")

    @cached_property
    def num_attention_heads(self) -> int:
        """Return the query heads."""
        return self._degree("num_attention_heads")

    @cached_property
    def num_query_groups(self) -> int:
        """Return the key/value heads: as many as query heads without `--group-query-attention`."""
        if not self.arguments.is_on("group_query_attention"):
            return self.num_attention_heads
        return self._degree("num_query_groups")

    @cached_property
    def micro_batch_size(self) -> int:
        """Return the sequences of a micro-batch."""
        return self._degree("micro_batch_size")

    @cached_property
    def global_batch_size(self) -> int:
        """Return the sequences of a step: one micro-batch a replica where it is not given."""
        given = self.arguments.optional_integer("global_batch_size")
        return self.micro_batch_size * self.dp if given is None else given


def read_megatron_runs(
    text: str, *, file: str, version: str, num_gpus: int | None = None, gpus_per_node: int | None = None
) -> tuple[MegatronRun, ...]:
    """Return the training runs that a script starts.

    Args:
        text: The script.
        file: What messages call it.
        version: The version whose flags count.
        num_gpus: GPUs, where the script leaves them open.
        gpus_per_node: GPUs of a node, likewise.

    Raises:
        InputError: The script is damaged.
    """
    table = flag_table(Framework.MEGATRON, version)
    runs: list[MegatronRun] = []
    for line in launch_lines(read_script(text, file=file), file=file, kind=MEGATRON_PROGRAM):
        per_node = line.gpus_per_node or gpus_per_node or num_gpus
        nodes = line.num_nodes or (num_gpus // per_node if num_gpus and per_node else None)
        runs.append(
            MegatronRun(
                arguments=read_arguments(line.words, table, file=file, start=line.start),
                num_nodes=nodes,
                gpus_per_node=per_node,
                environment=line.environment,
            )
        )
    return tuple(runs)
