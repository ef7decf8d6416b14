"""Residuals of measured rows: exact on the rows, smooth between them, faded beyond them."""

import math

import pytest

from profiles.estimate import Source
from profiles.residuals import HALF_LIFE, Query, ResidualTable, nearest_implementation
from profiles.tables import SPECS, Implementation, Shape, TableKind, TableRow

SPEC = SPECS[TableKind.GEMM]
OURS = Implementation(framework="ours", version="1")
THEIRS = Implementation(framework="theirs", version="7", kernel_source="fast")


def analytic(shape: Shape) -> float:
    m, n, k = shape.sizes
    return 1e-6 + m * n * k * 1e-12


def shape(m: int, n: int, k: int, dtype: str = "bfloat16") -> Shape:
    return Shape(words=(dtype,), sizes=(m, n, k))


def rows(factor: float, who: Implementation) -> list[TableRow]:
    sizes = [1 << power for power in range(8, 15, 2)]
    shapes = [shape(m, n, k) for m in sizes for n in sizes for k in sizes]
    return [
        TableRow(shape=each, latency_us=analytic(each) * 1e6 * factor, samples=None, implementation=who)
        for each in shapes
    ]


TABLE = ResidualTable(SPEC, [*rows(1.25, OURS), *rows(2.0, THEIRS)], analytic, name="a table")


def ask(asked: Shape, who: Implementation = OURS, table: ResidualTable = TABLE) -> tuple[float, Source] | None:
    (found,) = table.estimates([Query(shape=asked, implementation=who, analytic_seconds=analytic(asked))])
    return None if found is None else (found.seconds / analytic(asked), found.source)


def test_a_measured_shape_returns_its_measured_time() -> None:
    every = [*rows(1.25, OURS), *rows(2.0, THEIRS)]
    queries = [
        Query(shape=row.shape, implementation=row.implementation, analytic_seconds=analytic(row.shape)) for row in every
    ]
    for row, found in zip(every, TABLE.estimates(queries), strict=True):
        assert found is not None
        assert (found.seconds, found.source) == (row.seconds, Source.MEASURED)


def test_between_measured_shapes_the_residual_is_theirs() -> None:
    for who, factor in ((OURS, 1.25), (THEIRS, 2.0)):
        found = ask(shape(1000, 5000, 777), who)
        assert found is not None
        assert found[0] == pytest.approx(factor, rel=1e-6)
        assert found[1] is Source.INTERPOLATED


def test_beyond_measured_shapes_the_residual_fades_to_the_analytic_price() -> None:
    factors = []
    for power in (15, 17, 20, 24, 30):
        found = ask(shape(1 << power, 4096, 4096))
        assert found is not None
        assert found[1] is Source.EXTRAPOLATED
        factors.append(found[0])
    assert factors == sorted(factors, reverse=True)
    assert 1.0 < factors[-1] < 1.05
    # A doubling of m is 0.3 weighted octaves; as many tiles were measured.
    assert math.log(factors[0]) == pytest.approx(math.log(1.25) * 0.5 ** (0.3 / HALF_LIFE))


def test_residuals_of_like_words_stand_in_and_are_assumed() -> None:
    half = ask(shape(256, 256, 256, "float16"))
    assert half is not None
    assert half[0] == pytest.approx(1.25)
    assert half[1] is Source.ASSUMED
    spec = SPECS[TableKind.MOE]
    shapes = {
        name: Shape(words=("fp8", name), sizes=(64, 64, 64, 2, 8, 1, 1)) for name in ("balanced", "power_law_1.2")
    }
    measured = [
        TableRow(shape=each, latency_us=latency_us, samples=None, implementation=OURS)
        for each, latency_us in zip(shapes.values(), (2.0, 3.0), strict=True)
    ]
    table = ResidualTable(spec, measured, lambda _: 1e-6, name="a table")
    for name, factor in (("power_law_0.1", 2.0), ("power_law_1.01", 3.0), ("power_law_2", 3.0)):
        asked = Shape(words=("fp8", name), sizes=(64, 64, 64, 2, 8, 1, 1))
        (found,) = table.estimates([Query(shape=asked, implementation=OURS, analytic_seconds=1.0)])
        assert found is not None
        assert found.seconds == pytest.approx(factor)
        assert found.source is Source.ASSUMED
    other = Shape(words=("bfloat16", "balanced"), sizes=(64, 64, 64, 2, 8, 1, 1))
    assert table.estimates([Query(shape=other, implementation=OURS, analytic_seconds=1.0)]) == (None,)


def test_a_format_that_was_not_measured_has_no_residual() -> None:
    assert ask(shape(256, 256, 256, "fp8")) is None


def test_a_table_of_another_gpu_gives_residuals_and_not_times() -> None:
    table = ResidualTable(SPEC, rows(1.25, OURS), analytic, name="a table", residuals_only=True)
    asked = shape(256, 256, 256)
    (found,) = table.estimates([Query(shape=asked, implementation=OURS, analytic_seconds=1.0)])
    assert found is not None
    assert found.seconds == pytest.approx(1.25)
    assert found.source is Source.INTERPOLATED


def test_of_repeated_rows_the_fastest_counts() -> None:
    slow, fast = rows(3.0, OURS)[0], rows(1.5, OURS)[0]
    table = ResidualTable(SPEC, [slow, fast, slow], analytic, name="a table")
    found = ask(fast.shape, table=table)
    assert found is not None
    assert found[0] == pytest.approx(1.5)


def test_the_implementation_that_is_most_alike_is_taken() -> None:
    one: dict[tuple[int, ...], float] = {(1, 1, 1): 1.0}
    many: dict[tuple[int, ...], float] = {(1, 1, 1): 1.0, (2, 2, 2): 1.0}
    old, new = Implementation(framework="a", version="1"), Implementation(framework="a", version="2")
    other = Implementation(framework="b", version="2", kernel_source="x")
    measured = {old: one, new: one, other: many}
    assert nearest_implementation(measured, new) == new
    assert nearest_implementation(measured, Implementation(framework="a", version="3")) == old
    assert nearest_implementation(measured, Implementation(framework="c", kernel_source="x")) == other
    assert nearest_implementation(measured, Implementation()) == other
