"""Rows that are no kernel times are turned away, with the reason."""

from dataclasses import replace

from profiles.gates import gated
from profiles.tables import SPECS, Implementation, Shape, TableKind, TableRow

SPEC = SPECS[TableKind.GEMM]
WHO = Implementation(framework="ours")
SIZES = [1 << power for power in range(7, 14)]


def analytic(shape: Shape) -> float:
    m, n, k = shape.sizes
    return 3e-6 + 2 * m * n * k / 600e12


def rows(floor_us: float) -> list[TableRow]:
    shapes = [Shape(words=("bfloat16",), sizes=(m, n, k)) for m in SIZES for n in SIZES for k in SIZES]
    return [
        TableRow(shape=shape, latency_us=max(floor_us, analytic(shape) * 1e6), samples=None, implementation=WHO)
        for shape in shapes
    ]


def test_kernels_pass() -> None:
    found = gated(SPEC, rows(0.0), analytic)
    assert (len(found.kept), found.rejected, found.floors_us) == (len(SIZES) ** 3, (), {})


def test_a_plateau_far_above_what_kernels_need_is_the_host() -> None:
    found = gated(SPEC, rows(80.0), analytic)
    assert found.floors_us == {WHO: 80.0}
    assert {reason for _, reason in found.rejected} == {"host launch: no ours row is below 80 us, whatever its size"}
    assert all(analytic(row.shape) * 1e6 < 40 for row, _ in found.rejected)
    assert all(analytic(row.shape) * 1e6 >= 40 for row in found.kept)
    assert found.kept


def test_a_row_far_above_every_shape_around_it_is_interference() -> None:
    clean = rows(0.0)
    at = len(clean) // 2
    spiked = [*clean[:at], replace(clean[at], latency_us=9 * clean[at].latency_us), *clean[at + 1 :]]
    found = gated(SPEC, spiked, analytic)
    assert [(row.shape, reason) for row, reason in found.rejected] == [
        (clean[at].shape, "interference: 9 times every shape around it")
    ]
