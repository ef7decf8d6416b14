"""The store of `profile run` as tables of kernels: what `profiles.measured` prices by.

Kept points alone: a product or an attention forward, as kernels are benchmarked, and collectives of neighbours outside
of graphs, those that ran beside others of their shape left out. What a table has no column for is left out: windows,
keys of another width than values, queries that are fewer than keys, parts of a backward pass.
"""

from collections.abc import Mapping
from types import MappingProxyType

from profiles.judging import judge
from profiles.measure.points import Point
from profiles.profile import Origin, Profile, ProfileMetadata
from profiles.recorded import Recording
from profiles.tables import Implementation, Shape, TableKind, TableRow

FORMATS: Mapping[str, str] = MappingProxyType({"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8", "int8": "int8"})
"""Names of formats in tables by those of points."""


def profile_of(recording: Recording) -> Profile:
    """Return a recording as a profile of tables."""
    software = recording.newest.get("software")
    versions = {str(name): str(version) for name, version in software.items()} if isinstance(software, Mapping) else {}
    origin = Origin(framework="torch", version=versions.get("torch", ""), source=f"{recording.directory}, measured")
    rows: dict[TableKind, list[TableRow]] = {}
    for entry in judge(recording).kept:
        place = _place(entry.point)
        if place is None:
            continue
        kind, shape = place
        samples = entry.result.get("samples")
        rows.setdefault(kind, []).append(
            TableRow(
                shape=shape,
                latency_us=1e6 * float(str(entry.result["seconds"])),
                samples=samples if isinstance(samples, int) and samples > 0 else None,
                implementation=Implementation(framework=origin.framework, version=origin.version),
            )
        )
    metadata = ProfileMetadata(
        device=recording.device,
        gpus_per_node=recording.gpus_per_node,
        measured=str(recording.newest.get("date", "")),
        software=versions,
        origins={"measured": origin},
        rejected=(),
    )
    kept = {kind: tuple(of_kind) for kind, of_kind in rows.items()}
    return Profile(metadata=metadata, rows=lambda kind: kept.get(kind, ()), name=str(recording.directory))


def _place(point: Point) -> tuple[TableKind, Shape] | None:
    """Return the table and the shape of a point; None where no table has it."""
    match point.suite:
        case "collectives":
            return _collective(point)
        case "gemm" if point.word("dtype") in FORMATS:
            return _product(point)
        case "attention" if point.word("dtype") in FORMATS:
            return _attention(point)
    return None


def _collective(point: Point) -> tuple[TableKind, Shape] | None:
    size, stride, num_bytes = point.sizes
    if (point.word("mode"), point.word("beside"), stride) != ("eager", "alone", 1):
        return None
    return TableKind.COLLECTIVES, Shape(words=(point.word("kind"),), sizes=(size, num_bytes))


def _product(point: Point) -> tuple[TableKind, Shape] | None:
    batch, *sizes = point.sizes
    if batch != 1 or point.word("part") != "forward":
        return None
    return TableKind.GEMM, Shape(words=(FORMATS[point.word("dtype")],), sizes=tuple(sizes))


def _attention(point: Point) -> tuple[TableKind, Shape] | None:
    batch, query, keys, window, heads, kv_heads, qk, v = point.sizes
    dtype = FORMATS[point.word("dtype")]
    shape = Shape(words=(dtype, dtype), sizes=(batch, keys, heads, kv_heads, qk))
    of_phase = {
        ("decode", "full"): TableKind.ATTENTION_DECODE,
        ("forward", "causal"): TableKind.ATTENTION_PREFILL if query == keys else None,
    }
    kind = of_phase.get((point.word("phase"), point.word("mask")))
    return None if kind is None or window or qk != v else (kind, shape)
