"""Small profiles for tests."""

from profiles.profile import Origin, ProfileMetadata
from profiles.tables import Implementation, Shape, TableKind, TableRow

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
