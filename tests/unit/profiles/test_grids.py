"""Residual grids: what plans would read agrees with the tables, and costs no time."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from profiles.analytic import AnalyticCostModel
from profiles.catalogue import load_device, load_preset
from profiles.errors import ProfileFileError
from profiles.estimate import Source
from profiles.grids import GRIDS, GemmGrid, read_grids, shipped_grids
from profiles.hardware import Cluster
from profiles.measured import KernelCosts, measured_by
from profiles.ops import Collective, CollectiveKind, Gemm, MemoryBound
from profiles.planned import MeasuredCostModel, cost_model_on, with_residuals
from profiles.store import shipped_devices, shipped_directory, shipped_profile
from profiles.tables import Implementation, Shape, TableKind
from tests.unit.profiles.grid_maker import DIGITS, gemm_grids, grids_text

PRESETS = {"h100-sxm-80gb": "dgx-h100", "a100-sxm-80gb": "dgx-a100"}
GRID = GemmGrid(
    sizes=((1, 4), (16, 64), (256, 1024)), residuals=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), origin="a test"
)


def cluster_of(device: str) -> Cluster:
    return load_preset(PRESETS[device]).to_cluster()


@pytest.mark.parametrize(
    ("sizes", "residual"),
    [((1, 16, 256), 0.0), ((4, 64, 1024), 0.7), ((4, 16, 1024), 0.5), ((2, 32, 512), 0.35), ((2, 16, 256), 0.2)],
)
def test_a_grid_is_exact_on_its_points_and_linear_in_logarithms_between_them(
    sizes: tuple[int, int, int], residual: float
) -> None:
    factor, outside = GRID.factor(*sizes)
    assert outside == 0.0
    assert factor == pytest.approx(math.exp(residual))


def test_outside_a_grid_the_residual_of_its_edge_fades() -> None:
    factor, outside = GRID.factor(16, 256, 1024)
    assert outside == pytest.approx(4.0)
    assert factor == pytest.approx(math.exp(0.7 * 0.5 ** (4 / 4)))
    assert GRID.factor(1 << 40, 64, 1024)[0] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("sizes", "residuals"),
    [
        (((1, 4), (16, 64), (256, 1024)), (0.0,) * 7),
        (((1,), (16, 64), (256, 1024)), (0.0,) * 4),
        (((4, 1), (16, 64), (256, 1024)), (0.0,) * 8),
    ],
)
def test_a_grid_that_is_none_is_refused(
    sizes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], residuals: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="grid"):
        GemmGrid(sizes=sizes, residuals=residuals, origin="")


def test_grids_are_read_back_and_a_broken_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / GRIDS
    path.write_text(grids_text({"bf16": GRID}))
    assert read_grids(path) == {"bf16": GRID}
    path.write_text('{"bf16": {"m": [1, 2]}}')
    with pytest.raises(ProfileFileError, match="no grids can be read"):
        read_grids(path)


@pytest.mark.parametrize("device", shipped_devices())
def test_shipped_grids_are_those_of_the_shipped_tables(device: str, pytestconfig: pytest.Config) -> None:
    profile = shipped_profile(device)
    assert profile is not None
    costs = KernelCosts(cluster_of(device), measured_by(profile))
    made = gemm_grids(costs, profile.rows(TableKind.GEMM))
    if pytestconfig.getoption("--update-golden"):
        Path(str(shipped_directory() / device / GRIDS)).write_text(grids_text(made), encoding="utf-8")
    shipped = shipped_grids(device)
    assert list(made) == list(shipped) == (["bf16", "fp8"] if device.startswith("h100") else ["bf16"])
    for rate, grid in made.items():
        assert grid.sizes == shipped[rate].sizes
        assert grid.residuals == pytest.approx(shipped[rate].residuals, abs=0.6 * 10**-DIGITS)


@pytest.mark.parametrize("device", shipped_devices())
def test_grids_and_tables_agree_between_their_points_too(device: str) -> None:
    profile = shipped_profile(device)
    assert profile is not None
    costs = KernelCosts(cluster_of(device), measured_by(profile))
    who = Implementation(framework="vllm")
    sizes = [(m, n, k) for m in (3000, 6000, 12288) for n in (1536, 3072, 14336, 28672) for k in (1536, 3072, 12288)]
    shapes = [Shape(words=("bfloat16",), sizes=each) for each in sizes]
    queries = [costs.query(TableKind.GEMM, shape, who) for shape in shapes]
    grid = shipped_grids(device)["bf16"]
    apart = [
        abs(grid.factor(*each)[0] * query.analytic_seconds / found.seconds - 1)
        for each, query, found in zip(sizes, queries, costs.estimates(TableKind.GEMM, queries), strict=True)
    ]
    assert sorted(apart)[len(apart) // 2] < 0.02
    assert max(apart) < 0.12


def gemm(m: int, n: int, k: int, dtype: str = "bf16", batch: int = 1) -> Gemm:
    width = 1 if dtype == "fp8" else 2
    return Gemm(m=m, n=n, k=k, dtype=dtype, input_bytes_per_element=width, output_bytes_per_element=2, batch=batch)


def test_plans_read_the_tables_of_their_gpu() -> None:
    assert isinstance(cost_model_on(cluster_of("h100-sxm-80gb")), MeasuredCostModel)
    assert isinstance(cost_model_on(load_preset("mi300x-8").to_cluster()), AnalyticCostModel)


def test_products_are_multiplied_by_their_residual_and_nothing_else_changes() -> None:
    analytic = AnalyticCostModel(cluster_of("h100-sxm-80gb"))
    model = with_residuals(analytic)
    grid = shipped_grids("h100-sxm-80gb")
    for dtype in ("bf16", "fp8"):
        product = gemm(8192, 4096, 5120, dtype)
        factor, outside = grid[dtype].factor(8192, 4096, 5120)
        found = model.compute(product)
        assert (outside, found.source) == (0.0, Source.INTERPOLATED)
        assert found.seconds == pytest.approx(analytic.compute(product).seconds * factor)
        assert "residual of vllm" in found.note
    assert model.compute(gemm(1 << 20, 4096, 4096)).source is Source.EXTRAPOLATED
    for same in (gemm(64, 64, 64, batch=8), MemoryBound(name="x", num_bytes=1 << 20)):
        assert model.compute(same) == analytic.compute(same)
    reduce = Collective(kind=CollectiveKind.ALL_REDUCE, buffer_bytes=1 << 20, size=8, stride=1)
    assert model.collective(reduce) == analytic.collective(reduce)
    for name in ("launch_seconds", "tensor_parallel_overlap", "overlap_slowdown", "transfer_slowdown"):
        assert getattr(model, name) == getattr(analytic, name)


def test_a_gpu_with_the_same_chip_takes_the_residual_as_an_assumption() -> None:
    h200 = replace(cluster_of("h100-sxm-80gb"), device=load_device("h200"))
    assert with_residuals(AnalyticCostModel(h200)).compute(gemm(4096, 4096, 4096)).source is Source.ASSUMED
    b200 = AnalyticCostModel(load_preset("dgx-b200").to_cluster())
    assert with_residuals(b200) is b200
