"""Small profiles for tests, and their files as `profiles.store` reads them."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from profiles.profile import Origin, ProfileMetadata
from profiles.schema.profile import SCHEMA_VERSION
from profiles.store import METADATA as METADATA_FILE
from profiles.store import SAMPLES
from profiles.tables import SPECS, Implementation, Shape, TableKind, TableRow, TableSpec

OURS = Origin(framework="ours", version="1.0", kernel_source="bench", source="measured here")
THEIRS = Origin(framework="theirs", source="a published table", licence="Apache-2.0", host_floor_us=60.5)
METADATA = ProfileMetadata(
    device="h100-sxm-80gb",
    gpus_per_node=8,
    measured="medians of 20 launches, CUDA graphs",
    software={"driver": "550.54", "cuda": "12.4"},
    origins={"ours": OURS, "theirs": THEIRS},
    rejected=("gemm: 3 rows of theirs: host launch",),
)


def gemm_row(
    m: int, n: int, k: int, latency_us: float, *, samples: int | None = None, who: Implementation = OURS.implementation
) -> TableRow:
    return TableRow(
        shape=Shape(words=("bfloat16",), sizes=(m, n, k)), latency_us=latency_us, samples=samples, implementation=who
    )


TABLES = {
    TableKind.GEMM: (
        gemm_row(4096, 4096, 4096, 210.25),
        gemm_row(128, 256, 512, 3.0, samples=20),
        gemm_row(4096, 4096, 4096, 0.1 + 0.2, who=THEIRS.implementation),
    ),
    TableKind.COLLECTIVES: (
        TableRow(
            shape=Shape(words=("all_reduce",), sizes=(8, 1 << 30)),
            latency_us=4321.5,
            samples=None,
            implementation=OURS.implementation,
        ),
    ),
}


def write_profile(
    directory: Path, metadata: ProfileMetadata, tables: Mapping[TableKind, Iterable[TableRow]]
) -> tuple[Path, ...]:
    """Write a profile and return its files, the metadata last.

    Every file is written beside its place and moved there, so that none is ever half written.

    Raises:
        ValueError: A row's implementation is none of the origins.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = {origin.implementation: name for name, origin in sorted(metadata.origins.items(), reverse=True)}
    texts = {f"{kind.value}.csv": _table_text(SPECS[kind], tables[kind], names) for kind in TableKind if kind in tables}
    texts[METADATA_FILE] = _metadata_text(metadata)
    written = []
    for name, text in texts.items():
        path = directory / name
        beside = directory / f".{name}.{os.getpid()}"
        beside.write_text(text, encoding="utf-8", newline="")
        beside.replace(path)
        written.append(path)
    return tuple(written)


def _metadata_text(metadata: ProfileMetadata) -> str:
    content = {"schema_version": SCHEMA_VERSION, **asdict(metadata)}
    if metadata.gpus_per_node is None:
        del content["gpus_per_node"]
    content["origins"] = {
        name: {key: value for key, value in asdict(metadata.origins[name]).items() if value}
        for name in sorted(metadata.origins)
    }
    content["software"] = dict(sorted(metadata.software.items()))
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _table_text(spec: TableSpec, rows: Iterable[TableRow], names: Mapping[Implementation, str]) -> str:
    kept = list(rows)
    with_samples = any(row.samples is not None for row in kept)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = (*spec.words, *spec.sizes, "latency_us", "origin")
    writer.writerow((*head[:-1], SAMPLES, head[-1]) if with_samples else head)
    lines = []
    for row in kept:
        if row.implementation not in names:
            raise ValueError(f"{row.implementation.text} is none of the profile's origins")
        samples = ("" if row.samples is None else row.samples,) if with_samples else ()
        lines.append((row.shape.words, row.shape.sizes, names[row.implementation], row.latency_us, samples))
    for words, sizes, name, latency_us, samples in sorted(lines, key=lambda line: (*line[:4], str(line[4]))):
        number = repr(latency_us).removesuffix(".0")
        writer.writerow((*words, *sizes, number, *samples, name))
    return stream.getvalue()
