"""Clusters as users write them: presets and inline, the levels that follow, and what each refusal says."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from profiles import catalogue
from profiles.hardware import Cluster, PeerTopology
from profiles.schema import ClusterEntry
from tests.examples import examples

INLINE: dict[str, Any] = {
    "gpu": "h100-sxm-80gb",
    "gpus_per_node": 8,
    "nodes": 64,
    "nics": {"count": 8, "bandwidth": "400Gb/s"},
    "links": [{"name": "leaf", "nodes": 32}, {"name": "spine", "oversubscription": 2, "latency": "6us"}],
    "host_ram": "2TiB",
    "nvme": {"count": 2, "capacity": "4TB", "bandwidth": "7GB/s"},
    "price_per_gpu_hour": 2.5,
    "watts_per_gpu": 1275,
}
OWN_GPU: dict[str, Any] = {
    "name": "own",
    "vendor": "nvidia",
    "architecture": "hopper",
    "num_compute_units": 78,
    "memory": "95GiB",
    "memory_bandwidth": {"value": "4TB/s", "document": "our measurement", "note": "stream copy"},
    "dense_flops": {"bf16": "148TFLOPS", "fp8": "296TFLOPS"},
    "peer_bandwidth": "450GB/s",
    "host_link": "pcie5",
    "tdp": "400W",
}


def cluster(**fields: object) -> Cluster:
    """Return the cluster that `fields` describe."""
    return ClusterEntry.model_validate(fields).to_cluster()


def spans(built: Cluster) -> list[tuple[str, int]]:
    """Return the levels of a cluster by name and size."""
    return [(level.name, level.num_gpus) for level in built.levels]


def findings(fields: object) -> list[tuple[tuple[int | str, ...], str]]:
    """Return what is said of bad input, by place."""
    with pytest.raises(ValidationError) as caught:
        ClusterEntry.model_validate(fields)
    return [(error["loc"], error["msg"]) for error in caught.value.errors()]


def test_an_inline_cluster_has_every_figure() -> None:
    built = cluster(**INLINE)
    assert spans(built) == [("nvlink", 8), ("leaf", 256), ("spine", 512)]
    assert [level.bytes_per_second for level in built.levels] == [450e9, 50e9, 25e9]
    assert [level.latency_seconds for level in built.levels] == [1.9e-6, 4e-6, 6e-6]
    assert built.name == "64 x 8 h100-sxm-80gb"
    assert built.host_memory_bytes == 2 * 2**40
    assert (built.nvme_bytes, built.nvme_bytes_per_second) == (8 * 10**12, 14e9)
    assert built.nvme_write_bytes_per_second is None
    drives = {"count": 2, "capacity": "4TB", "bandwidth": "7GB/s", "write_bandwidth": "3GB/s"}
    assert cluster(**{**INLINE, "nvme": drives}).nvme_write_bytes_per_second == 6e9
    assert (built.price_per_gpu_hour, built.watts_per_gpu) == (2.5, 1275)
    assert built.levels[2].source == (
        "bandwidth: 8 network cards for 8 GPUs, oversubscription 2 (stated in the cluster file); "
        "latency: stated in the cluster file"
    )


@pytest.mark.parametrize("name", catalogue.preset_names())
def test_a_preset_is_one_node_or_rack(name: str) -> None:
    built = catalogue.load_preset(name).to_cluster()
    assert built.name == name
    assert len(built.levels) == 1
    assert built.fast_domain_size == built.world_size


@pytest.mark.parametrize("name", catalogue.preset_names())
@pytest.mark.parametrize("nodes", [1, 2, 3, 18, 31, 33, 100, 2048])
def test_levels_of_a_preset_nest_and_span_it(name: str, nodes: int) -> None:
    built = cluster(preset=name, nodes=nodes)
    sizes = [level.num_gpus for level in built.levels]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == built.world_size
    outside = [level.bytes_per_second for level in built.levels[1:]]
    assert outside == sorted(outside, reverse=True)
    assert all(level.latency_seconds > 0 and level.source for level in built.levels)


@pytest.mark.parametrize(
    ("name", "nodes", "expected"),
    [
        ("dgx-h100", 1, [("nvlink", 8, 450e9)]),
        ("dgx-h100", 8, [("nvlink", 8, 450e9), ("rail", 64, 50e9)]),
        ("dgx-h100", 128, [("nvlink", 8, 450e9), ("rail", 256, 50e9), ("spine", 1024, 50e9)]),
        ("dgx-a100", 8, [("nvlink", 8, 300e9), ("rail", 64, 25e9)]),
        ("h800-8", 2, [("nvlink", 8, 200e9), ("rail", 16, 50e9)]),
        ("gb200-nvl72", 9, [("nvlink", 36, 900e9)]),
        ("gb200-nvl72", 36, [("nvlink", 72, 900e9), ("rail", 144, 50e9)]),
        ("gb300-nvl72", 36, [("nvlink", 72, 900e9), ("rail", 144, 100e9)]),
        ("mi300x-8", 1, [("infinity-fabric", 8, 448e9)]),
        ("p4d", 4, [("nvlink", 8, 300e9), ("efa", 32, 6.25e9)]),
        ("p5", 4, [("nvlink", 8, 450e9), ("efa", 32, 50e9)]),
        ("l40s-pcie-4", 1, [("pcie", 4, 32e9)]),
        ("l40s-pcie-4", 2, [("pcie", 4, 32e9), ("network", 8, 12.5e9)]),
    ],
)
def test_bandwidth_of_each_level_is_one_gpus_in_one_direction(
    name: str, nodes: int, expected: list[tuple[str, int, float]]
) -> None:
    built = cluster(preset=name, nodes=nodes)
    assert [(level.name, level.num_gpus, level.bytes_per_second) for level in built.levels] == expected


def test_a_given_field_replaces_the_presets() -> None:
    built = cluster(
        preset="dgx-h100",
        nodes=4,
        name="ours",
        gpu="h200",
        nics={"count": 4, "bandwidth": "400Gb/s"},
        host_ram="1TB",
        price_per_gpu_hour=3,
        host_link="pcie4",
    )
    assert built.name == "ours"
    assert built.device.name == "h200"
    assert built.levels[1].bytes_per_second == 25e9
    assert "NVIDIA DGX H100/H200 User Guide" not in built.levels[1].source
    assert built.host_memory_bytes == 10**12
    assert built.device.host_bytes_per_second == 32e9
    assert built.device.sources["host_bytes_per_second"] == "pcie4 x16 slots, stated in the cluster file"


@pytest.mark.parametrize(
    ("fields", "kinds", "fast"),
    [
        ({"preset": "dgx-h100", "nodes": 64}, ["peer", "network", "network"], 8),
        ({"preset": "gb200-nvl72", "nodes": 36}, ["peer", "network"], 72),
        ({"preset": "l40s-pcie-4", "nodes": 2}, ["host", "network"], 4),
        ({**INLINE, "gpu": "h100-nvl-94gb", "nvlink_domain": 2}, ["peer", "host", "network", "network"], 2),
        ({**INLINE, "gpus_per_node": 1}, ["network", "network"], 1),
        ({**INLINE, "gpus_per_node": 1, "nodes": 1}, [], 1),
    ],
)
def test_the_fast_domain_never_reaches_across_the_network(fields: Any, kinds: list[str], fast: int) -> None:
    built = cluster(**fields)
    assert [level.kind for level in built.levels] == kinds
    assert built.fast_domain_size == fast


def test_bridged_pairs_get_a_pcie_level_around_them() -> None:
    built = cluster(gpu="h100-nvl-94gb", gpus_per_node=8, nodes=1, nvlink_domain=2, host_ram="1TiB")
    assert spans(built) == [("nvlink", 2), ("pcie", 8)]
    assert [level.bytes_per_second for level in built.levels] == [300e9, 64e9]


def test_an_optional_bridge_is_not_assumed() -> None:
    assert spans(cluster(gpu="h100-nvl-94gb", gpus_per_node=8, nodes=1, host_ram="1TiB")) == [("pcie", 8)]


def test_rack_scale_gpus_are_joined_across_nodes_without_saying_so() -> None:
    nics = {"count": 4, "bandwidth": "400Gb/s"}
    built = cluster(gpu="gb200", gpus_per_node=4, nodes=36, host_ram="960GB", nics=nics)
    assert spans(built) == [("nvlink", 72), ("network", 144)]


def test_a_single_gpu_needs_no_level() -> None:
    assert cluster(gpu="l40s", gpus_per_node=1, nodes=1, host_ram="64GB").levels == ()


def test_a_gpu_of_ones_own_is_taken_with_its_sources() -> None:
    device = cluster(gpu=OWN_GPU, gpus_per_node=8, nodes=1, nvlink_domain=8, host_ram="1TiB").device
    assert device.memory_bytes == 95 * 2**30
    assert device.sources["memory_bytes"] == "stated in the cluster file"
    assert device.sources["memory_bytes_per_second"] == "our measurement: stream copy"
    assert device.host_bytes_per_second == 64e9


def test_inner_links_can_be_given_their_own_figures() -> None:
    built = cluster(
        gpu="l40s",
        gpus_per_node=4,
        nodes=1,
        nvlink_domain=2,
        host_ram="1TiB",
        links=[
            {"name": "nvlink", "bandwidth": "100GB/s", "latency": "1us"},
            {"name": "pcie", "bandwidth": "25GB/s", "source": "p2pBandwidthLatencyTest"},
        ],
    )
    assert [(level.num_gpus, level.bytes_per_second) for level in built.levels] == [(2, 100e9), (4, 25e9)]
    assert built.levels[1].source.startswith("bandwidth: p2pBandwidthLatencyTest; latency: hardware latency")


BAD: list[tuple[dict[str, Any], tuple[int | str, ...], str]] = [
    ({"nodes": 0}, ("nodes",), "Input should be greater than or equal to 1"),
    ({"nodes": -3}, ("nodes",), "Input should be greater than or equal to 1"),
    ({"nodes": 10**9}, ("nodes",), "Input should be less than or equal to 131072"),
    ({"nodes": "8"}, ("nodes",), "Input should be a valid integer"),
    ({"nodes": 8.0}, ("nodes",), "Input should be a valid integer"),
    ({"nodes": True}, ("nodes",), "Input should be a valid integer"),
    (
        {"nodes": 131072, "gpus_per_node": 1024, "nvlink_domain": 8},
        ("nodes",),
        "131072 nodes of 1024 GPUs are more than 1,048,576 GPUs",
    ),
    ({"gpus_per_nod": 8}, ("gpus_per_nod",), "Extra inputs are not permitted"),
    ({"gpu": 100}, ("gpu",), "a GPU is a name of the catalogue, or a mapping that describes one"),
    ({"gpu": "h1000"}, ("gpu",), "GPU 'h1000' is not in the catalogue. Nearest: h200."),
    (
        {"gpu": OWN_GPU | {"memory": "95Gb"}},
        ("gpu", "memory", "value"),
        "'95Gb' is not a size: Gb counts bits: write bytes, for example 80GiB, 2TB",
    ),
    (
        {"gpu": OWN_GPU | {"host_link": "c2c"}},
        ("gpu", "host_bandwidth"),
        "host_bandwidth is needed with host_link c2c: write for example 450GB/s",
    ),
    (
        {"nvlink_domain": 3},
        ("nvlink_domain",),
        "nvlink_domain = 3 is neither a multiple nor a divisor of gpus_per_node = 8",
    ),
    (
        {"gpu": "l40s", "nvlink_domain": 8},
        ("nvlink_domain",),
        (
            "l40s has no NVLink in the catalogue: write nvlink_domain: 1, or give its bandwidth as links: "
            "[{name: nvlink, bandwidth: 100GB/s}]"
        ),
    ),
    ({"nics": {"count": 0, "bandwidth": "400Gb/s"}}, ("nics", "count"), "Input should be greater than or equal to 1"),
    (
        {"nics": {"count": 8, "bandwidth": "0Gb/s"}},
        ("nics", "bandwidth"),
        "'0Gb/s' is out of range: a bandwidth lies between 1000 and 1e+15 B/s",
    ),
    (
        {"nics": None, "links": []},
        ("nics",),
        "nics are needed to join 64 nodes: write for example {count: 8, bandwidth: 400Gb/s}",
    ),
    (
        {"nics": None},
        ("links", 0, "bandwidth"),
        "leaf has no bandwidth: give it, or nics such as {count: 8, bandwidth: 400Gb/s}",
    ),
    (
        {"links": [{"name": "leaf", "gpus": 4}, {"name": "spine"}]},
        ("links", 0, "gpus"),
        "leaf joins 4 GPUs, less than one node of 8",
    ),
    (
        {"links": [{"name": "leaf", "gpus": 0}, {"name": "spine"}]},
        ("links", 0, "gpus"),
        "Input should be greater than or equal to 1",
    ),
    (
        {"links": [{"name": "leaf", "gpus": 20}, {"name": "spine"}]},
        ("links", 0, "gpus"),
        "leaf joins 20 GPUs: it must be a larger multiple of the 8 GPUs inside it",
    ),
    (
        {"links": [{"name": "leaf", "nodes": 32}, {"name": "pod", "nodes": 16}, {"name": "spine"}]},
        ("links", 1, "nodes"),
        "pod joins 128 GPUs: it must be a larger multiple of the 256 GPUs inside it",
    ),
    (
        {"links": [{"name": "leaf"}, {"name": "spine"}]},
        ("links", 0, "nodes"),
        "leaf needs its size as nodes or gpus: only the last level joins all",
    ),
    (
        {"links": [{"name": "leaf", "nodes": 32}]},
        ("links", 0, "nodes"),
        (
            "leaf is the last level and joins 256 of 512 GPUs: leave nodes out, or add a level outside it such as "
            "{name: spine}"
        ),
    ),
    (
        {"links": [{"name": "leaf", "nodes": 32, "gpus": 256}, {"name": "spine"}]},
        ("links", 0, "gpus"),
        "leaf: give its size as nodes or as gpus, not both",
    ),
    (
        {"links": [{"name": "leaf", "nodes": 32, "oversubscription": 2}, {"name": "spine"}]},
        ("links", 1, "oversubscription"),
        "spine is faster than leaf inside it: a message across spine crosses both",
    ),
    (
        {"links": [{"name": "spine", "bandwidth": "50GB/s", "oversubscription": 2}]},
        ("links", 0, "oversubscription"),
        "spine: give bandwidth, or oversubscription of the network cards, not both",
    ),
    (
        {"links": [{"name": "spine", "oversubscription": 0.5}]},
        ("links", 0, "oversubscription"),
        "Input should be greater than or equal to 1",
    ),
    (
        {"links": [{"name": "leaf", "nodes": 32}, {"name": "leaf"}]},
        ("links", 1, "name"),
        "level leaf is listed twice",
    ),
    (
        {"links": [{"name": "leaf", "nodes": 32}, {"name": "nvlink"}]},
        ("links", 1, "name"),
        "nvlink lies inside leaf: list levels from the inside out",
    ),
    (
        {"links": [{"name": "nvlink", "nodes": 2}, {"name": "spine"}]},
        ("links", 0, "nodes"),
        "nvlink has no nodes: its size is the cluster's nvlink_domain",
    ),
    (
        {"links": [{"name": "pcie", "bandwidth": "20GB/s"}, {"name": "spine"}]},
        ("links", 0, "name"),
        "there is no pcie level: nvlink_domain = 8 joins all 8 GPUs of a node",
    ),
    (
        {"nvlink_domain": 1, "links": [{"name": "nvlink"}, {"name": "spine"}]},
        ("links", 0, "name"),
        "there is no nvlink level with nvlink_domain = 1",
    ),
    (
        {"links": [{"name": "nvlink"}, {"name": "infinity-fabric"}, {"name": "spine"}]},
        ("links", 1, "name"),
        "nvlink and infinity-fabric are names of the same level: list one",
    ),
    ({"host_ram": 2048}, ("host_ram",), "2048 has no unit: write for example 80GiB, 2TB"),
    ({"host_ram": 10**5000}, ("host_ram",), "the number has no unit: write for example 80GiB, 2TB"),
    ({"links": {"name": "spine"}}, ("links",), "Input should be a valid list"),
    ({"price_per_gpu_hour": -1}, ("price_per_gpu_hour",), "Input should be greater than or equal to 0"),
    ({"price_per_gpu_hour": float("nan")}, ("price_per_gpu_hour",), "Input should be a finite number"),
    ({"watts_per_gpu": "700W"}, ("watts_per_gpu",), "Input should be a valid number"),
    ({"host_link": "pcie9"}, ("host_link",), "Input should be 'pcie3', 'pcie4', 'pcie5' or 'pcie6'"),
    (
        {"preset": "dgx-h10"},
        ("preset",),
        (
            "cluster preset 'dgx-h10' is not in the catalogue. Nearest: dgx-h100, dgx-h200, dgx-a100, dgx-b200, "
            "dgx-a100-40."
        ),
    ),
    ({"preset": 7}, ("preset",), "preset is the name of a ready-made cluster: write for example dgx-h100"),
]


@pytest.mark.parametrize(("change", "place", "message"), BAD, ids=[f"{place} {text}"[:60] for _, place, text in BAD])
def test_bad_input_is_refused_once_and_at_its_place(
    change: dict[str, Any], place: tuple[int | str, ...], message: str
) -> None:
    assert findings(INLINE | change) == [(place, message)]


@pytest.mark.parametrize("field", ["gpu", "gpus_per_node", "nodes", "host_ram"])
def test_what_an_inline_cluster_needs_is_named(field: str) -> None:
    assert findings({key: value for key, value in INLINE.items() if key != field}) == [((field,), "Field required")]


def test_the_json_schema_lets_editors_know_of_strings_with_units() -> None:
    schema = ClusterEntry.model_json_schema()
    assert schema["properties"]["host_ram"]["type"] == "string"
    assert {"type": "string"} in schema["properties"]["gpu"]["anyOf"]
    assert schema["additionalProperties"] is False


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.sampled_from([10**30, 10**400, -(10**400)])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["h100-sxm-80gb", "l40s", "gb200", "mi250x", "dgx-h100", "gb200-nvl72", "node", "nvlink", "pcie"])
    | st.sampled_from(["80GiB", "400Gb/s", "50GB/s", "5us", "0s", "700W", "1e99PB/s", "1TFLOPS", "pcie4", "c2c"])
)
keys = st.sampled_from(
    [
        *ClusterEntry.model_fields,
        *("count", "bandwidth", "capacity", "name", "gpus", "oversubscription", "latency", "source"),
        *OWN_GPU,
        *("value", "document", "note", "bf16"),
    ]
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6), max_leaves=12
)
changes = st.dictionaries(st.sampled_from(list(ClusterEntry.model_fields)) | st.text(max_size=5), values, max_size=4)
small_changes = st.fixed_dictionaries(
    {},
    optional={
        "nodes": st.integers(-1, 300),
        "gpus_per_node": st.integers(0, 20),
        "nvlink_domain": st.integers(0, 80),
        "gpu": st.sampled_from(catalogue.device_names()),
        "links": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["nvlink", "infinity-fabric", "pcie", "leaf", "spine", "pod"])},
                optional={
                    "nodes": st.integers(0, 64),
                    "gpus": st.integers(0, 512),
                    "bandwidth": st.sampled_from(["50GB/s", "100Gb/s"]),
                    "oversubscription": st.floats(0.5, 8),
                },
            ),
            max_size=4,
        ),
    },
)


@settings(max_examples=examples(few=60, many=150), deadline=None)
@given(base=st.sampled_from([INLINE, {"preset": "dgx-h100", "nodes": 8}, INLINE | {"gpu": OWN_GPU}]), change=changes)
def test_any_change_of_a_field_is_taken_or_refused_but_never_breaks(
    base: dict[str, Any], change: dict[str, Any]
) -> None:
    try:
        entry = ClusterEntry.model_validate(base | change)
    except ValidationError:
        return
    assert entry.to_cluster().world_size >= 1


@settings(max_examples=examples(few=100, many=300), deadline=None)
@given(base=st.sampled_from([INLINE, {"preset": "gb200-nvl72"}, {"preset": "l40s-pcie-4"}]), change=small_changes)
def test_whatever_sizes_are_taken_give_levels_that_nest(base: dict[str, Any], change: dict[str, Any]) -> None:
    try:
        entry = ClusterEntry.model_validate(base | change)
    except ValidationError:
        return
    built = entry.to_cluster()
    sizes = [level.num_gpus for level in built.levels]
    assert sizes == sorted(set(sizes))
    assert built.world_size == (sizes[-1] if sizes else 1)
    assert all(level.bytes_per_second > 0 for level in built.levels)


def test_a_gpu_of_ones_own_is_switched_unless_it_says_mesh() -> None:
    base = {"gpus_per_node": 8, "nodes": 1, "nvlink_domain": 8, "host_ram": "1TiB"}
    assert cluster(gpu=OWN_GPU, **base).device.peer_topology is PeerTopology.SWITCHED
    assert cluster(gpu={**OWN_GPU, "peer_topology": "mesh"}, **base).device.peer_topology is PeerTopology.MESH
