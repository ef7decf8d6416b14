"""The catalogue: every figure has a source, figures agree with one another, names are found or explained."""

import pytest

from profiles import catalogue
from profiles.errors import CatalogueError
from profiles.hardware import PeerTopology

# Every GPU that the README promises, by the beginning of its name.
PROMISED = [
    *("v100-sxm-16gb", "v100-sxm-32gb", "a100-sxm-40gb", "a100-sxm-80gb", "a800"),
    *("h100-sxm-80gb", "h100-pcie", "h100-nvl", "h100-sxm-96gb", "h800", "h200", "gh200-96gb", "gh200-144gb"),
    *("b200", "b300", "gb200", "gb300", "l40s", "rtx-pro-6000", "mi250x", "mi300x", "mi325x", "mi355x"),
]
PRESETS = ["dgx-a100", "dgx-h100", "dgx-h200", "dgx-b200", "gb200-nvl72", "mi300x-8", "p4d", "p5", "l40s-pcie-4"]

# Dense tensor rates halve with each doubling of the width, within the rounding of the printed figures.
ROUNDING = 0.015


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_gpu_is_there(name: str) -> None:
    assert catalogue.load_device(name).name.startswith(name)


def test_every_promised_preset_is_there() -> None:
    assert set(PRESETS) <= set(catalogue.preset_names())


@pytest.mark.parametrize("name", catalogue.device_names())
def test_every_figure_of_a_gpu_has_a_source(name: str) -> None:
    device = catalogue.load_device(name)
    figures = {
        "num_compute_units",
        "memory_bytes",
        "memory_bytes_per_second",
        "host_bytes_per_second",
        "tdp_watts",
        *(f"dense_flops_per_second.{number_format}" for number_format in device.dense_flops_per_second),
    }
    if device.peer_bytes_per_second is not None:
        figures.add("peer_bytes_per_second")
    assert set(device.sources) == figures
    assert all(len(source) > 10 for source in device.sources.values())


@pytest.mark.parametrize("name", catalogue.device_names())
def test_narrower_formats_are_twice_as_fast(name: str) -> None:
    rates = catalogue.load_device(name).dense_flops_per_second
    assert rates["fp16"] == rates.get("bf16", rates["fp16"])
    if "fp8" in rates:
        assert rates["fp8"] == pytest.approx(2 * rates["bf16"], rel=ROUNDING)
    if "tf32" in rates:
        assert rates["tf32"] == pytest.approx(rates["bf16"] / 2, rel=0.025)  # B300's is printed with two digits
    if "fp4" in rates:
        assert rates["fp4"] >= 2 * rates["fp8"] * (1 - ROUNDING)
    assert max(rates["fp32"], rates.get("tf32", 0)) < rates["fp16"]


@pytest.mark.parametrize("name", catalogue.device_names())
def test_no_rate_is_a_sparse_one(name: str) -> None:
    """A sparse rate would take a clock of twice what such a GPU reaches.

    Dense 16-bit flops of one unit in one clock, from the architectures' white papers.
    """
    device = catalogue.load_device(name)
    flops_per_unit_and_clock = {
        "volta": 1024,
        "ampere": 2048,
        "ada": 1024,
        "hopper": 4096,
        "blackwell": 1024 if name == "rtx-pro-6000" else 8192,
        "cdna2": 1024,
        "cdna3": 2048,
        "cdna4": 4096,
    }[device.architecture]
    clock = device.dense_flops_per_second["fp16"] / device.num_compute_units / flops_per_unit_and_clock
    assert 1.3e9 < clock < 2.6e9


@pytest.mark.parametrize(
    ("name", "gibibytes", "peer", "host"),
    [
        ("h100-sxm-80gb", 79.11, 450e9, 64e9),
        ("h800", 79.11, 200e9, 64e9),
        ("a100-sxm-80gb", 79.14, 300e9, 32e9),
        ("a800", 79.14, 200e9, 32e9),
        ("b200", 178.35, 900e9, 64e9),
        ("gb200", 184.31, 900e9, 225e9),
        ("l40s", 44.39, None, 32e9),
        ("mi300x", 191.69, 448e9, 64e9),
    ],
)
def test_bandwidths_count_one_direction_and_memory_is_what_a_program_sees(
    name: str, gibibytes: float, peer: float | None, host: float
) -> None:
    device = catalogue.load_device(name)
    assert device.memory_bytes == int(gibibytes * 2**30)
    assert device.peer_bytes_per_second == peer
    assert device.host_bytes_per_second == host


def test_l40s_has_its_dense_rate() -> None:
    assert catalogue.load_device("l40s").dense_flops_per_second["bf16"] == 362.05e12


def test_mi250x_is_one_of_the_packages_two_dies() -> None:
    device = catalogue.load_device("mi250x")
    assert device.num_compute_units == 110
    assert device.memory_bytes < 64 * 2**30
    assert "one of the package's two dies" in device.sources["memory_bytes_per_second"]


@pytest.mark.parametrize("name", ["H100-SXM-80GB", "h100 sxm 80gb", "h100_sxm_80gb"])
def test_capitals_spaces_and_underscores_do_not_matter(name: str) -> None:
    assert catalogue.load_device(name).name == "h100-sxm-80gb"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "H100",
            (
                "GPU 'H100' could be any of h100-sxm-80gb, h100-sxm-96gb, h100-pcie-80gb, h100-nvl-94gb: "
                "write one of them."
            ),
        ),
        ("mi300", "GPU 'mi300' is not in the catalogue. Nearest: mi300x, b300, gb300."),
    ],
)
def test_an_unclear_gpu_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(CatalogueError) as caught:
        catalogue.load_device(name)
    assert str(caught.value) == message


def test_an_unclear_preset_name_is_explained() -> None:
    with pytest.raises(CatalogueError) as caught:
        catalogue.load_preset("xyzzy")
    assert str(caught.value) == (
        "cluster preset 'xyzzy' is not in the catalogue. Known: " + ", ".join(catalogue.preset_names()) + "."
    )


@pytest.mark.parametrize("name", ["", "-", "x" * 10_000])
def test_nonsense_names_are_refused_briefly(name: str) -> None:
    with pytest.raises(CatalogueError) as caught:
        catalogue.load_device(name)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("name", catalogue.preset_names())
def test_every_figure_of_a_preset_has_a_source(name: str) -> None:
    stated = {figure.field for figure in catalogue.preset_figures(name)}
    entry = catalogue.load_preset(name)
    given = {"nvlink_domain", "host_ram"} | {
        field for field in ("nics", "nvme", "watts_per_gpu") if getattr(entry, field) is not None
    }
    assert given <= stated
    assert entry.price_per_gpu_hour is None
    for figure in catalogue.preset_figures(name):
        assert "stated in the cluster file" not in figure.source


@pytest.mark.parametrize("name", catalogue.device_names())
def test_figures_are_listed_as_the_catalogue_writes_them(name: str) -> None:
    figures = {figure.field: figure for figure in catalogue.device_figures(name)}
    assert {"memory", "memory_bandwidth", "dense_flops.fp16", "num_compute_units", "host_bandwidth", "tdp"} <= set(
        figures
    )
    assert figures["memory"].value.endswith("GiB")
    assert all(figure.source for figure in figures.values())


@pytest.mark.parametrize("name", catalogue.device_names())
def test_amds_gpus_are_joined_pair_by_pair(name: str) -> None:
    device = catalogue.load_device(name)
    expected = PeerTopology.MESH if device.vendor == "amd" else PeerTopology.SWITCHED
    assert device.peer_topology is expected
    if name.startswith("v100"):
        assert "the hybrid cube mesh of DGX-1 is not modelled" in device.sources["peer_bytes_per_second"]


@pytest.mark.parametrize("name", ["p4d", "p5"])
def test_a_latency_that_nobody_measured_is_called_an_assumption(name: str) -> None:
    links = {figure.field: figure.source for figure in catalogue.preset_figures(name)}
    assert "latency: assumption: " in links["links.efa"]
