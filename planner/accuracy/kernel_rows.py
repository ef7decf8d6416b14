"""Rows of kernel benchmarks as the shapes that profiles price: whose columns are missing, what they then say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from planner.accuracy.machines import cluster_named
from planner.accuracy.measurements import Kind, Row
from profiles.hardware import Cluster
from profiles.tables import SPECS, Implementation, Shape, TableKind

TABLES: Final[Mapping[Kind, TableKind]] = {
    Kind.GEMM: TableKind.GEMM,
    Kind.ATTENTION_PREFILL: TableKind.ATTENTION_PREFILL,
    Kind.ATTENTION_DECODE: TableKind.ATTENTION_DECODE,
    Kind.MLA: TableKind.MLA,
    Kind.MOE: TableKind.MOE,
    Kind.COLLECTIVES: TableKind.COLLECTIVES,
}
"""Table of each kind of file."""

_FORMATS: Final[Mapping[str, str]] = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "float8": "fp8",
    "e4m3": "fp8",
}
"""Other names of formats."""

_WORDS: Final[Mapping[str, Callable[[Row], str]]] = {
    "kv_cache_dtype": lambda row: row.text("attn_dtype") or row.text("mla_dtype"),
    "phase": lambda row: "generation" if (row.count("isl") or 1) == 1 and (row.count("kv_len") or 1) > 1 else "context",
    "distribution": lambda _: "balanced",
}
"""What a column of words says where it is empty."""

_SIZES: Final[Mapping[str, Callable[[Row], int]]] = {
    "num_kv_heads": lambda row: row.needed("num_heads"),
    "head_dim": lambda _: 128,
    "isl": lambda _: 1,
    "kv_len": lambda row: row.needed("isl") + int(row.number("step") or 0),
    "moe_tp_size": lambda _: 1,
    "moe_ep_size": lambda _: 1,
}
"""What a column of sizes says where it is empty: as many key heads as heads, the usual width, nothing split."""

COLLECTIVES: Final[Mapping[str, str]] = {"alltoall": "all_to_all", "allreduce": "all_reduce"}
"""Other names of collectives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """One row as a profile prices it.

    Args:
        cluster: The GPU, and for collectives the nodes around it.
        table: Which table it belongs to.
        shape: What was run.
        implementation: Who ran it, as far as the row says.
    """

    cluster: Cluster
    table: TableKind
    shape: Shape
    implementation: Implementation

    @property
    def system(self) -> tuple[str, str, int]:
        """Return what rows share that ran on the same GPUs in the same nodes, of whatever number."""
        return self.cluster.name, self.cluster.device.name, self.cluster.gpus_per_node


def kernel_row(kind: Kind, row: Row) -> KernelRow:
    """Return a row of a benchmark of kernels on one GPU as a profile prices it.

    Raises:
        ValueError: A cell cannot be used, or no GPU has such a name.
    """
    table = TABLES[kind]
    spec = SPECS[table]
    cluster, _ = cluster_named(row.text("system"), 1)
    return KernelRow(
        cluster=cluster,
        table=table,
        shape=Shape(
            words=tuple(_word(row, column) for column in spec.words),
            sizes=tuple(_size(row, column) for column in spec.sizes),
        ),
        implementation=Implementation(
            framework=row.text("framework"), version=row.text("version"), kernel_source=row.text("kernel_source")
        ),
    )


def _word(row: Row, column: str) -> str:
    text = row.text(column)
    if not text and column in _WORDS:
        text = _WORDS[column](row)
    if not text:
        raise ValueError(f"{column} is empty")
    return _FORMATS.get(text, text)


def _size(row: Row, column: str) -> int:
    found = row.count(column)
    return _SIZES[column](row) if found is None and column in _SIZES else row.needed(column)
