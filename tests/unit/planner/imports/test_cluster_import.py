import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from planner.documents.document import load_document, parse_document
from planner.errors import InputError
from planner.imports.facts import Field, Said
from planner.imports.kubernetes import read_kubernetes
from planner.imports.nccl_topology import read_nccl_topology
from planner.imports.slurm import read_slurm_conf, read_slurm_yaml
from planner.imports.topology_matrix import read_topology_matrix
from planner.inputs.load import read_cluster
from profiles.hardware import Cluster
from tests.unit.planner.imports.descriptions import (
    SLURM_BLOCKS,
    SLURM_CONF,
    SLURM_TREE,
    SLURM_YAML,
    SLURM_YAML_BLOCKS,
    kubernetes_nodes,
    nccl_topology,
    topology_matrix,
)

RUNNER = CliRunner()
GPU = ("--gpu", "h100-sxm-80gb")
CARDS = ("--nic-bandwidth", "400Gb/s")
RAM = ("--host-ram", "2TiB")


def values(said: Said) -> dict[str, int | str]:
    return {field.value.removeprefix("--"): fact.value for field, fact in said.facts.items()}


def levels(said: Said) -> list[tuple[str, int | None]]:
    return [(level.name, level.nodes) for level in said.levels]


def of_yaml(text: str) -> Said:
    return read_slurm_yaml(parse_document(text, file="topology.yaml"))


def of_nodes(text: str) -> Said:
    return read_kubernetes(parse_document(text, file="nodes.json"))


def test_a_matrix_says_what_nvlink_joins_and_which_cards_are_near() -> None:
    said = read_topology_matrix(topology_matrix(), file="topo")
    assert values(said) == {"gpus-per-node": 8, "nvlink-domain": 8, "nics": 8}
    assert said.facts[Field.NICS].told == "nvidia-smi topo -m: 8 of 10 cards are behind a PCIe switch with a GPU"
    plain = read_topology_matrix(topology_matrix(4, 2, 0, link="PHB", underlined=False), file="topo")
    assert values(plain) == {"gpus-per-node": 4, "nvlink-domain": 1, "nics": 2}
    assert values(read_topology_matrix(topology_matrix(2, 0), file="topo")) == {"gpus-per-node": 2, "nvlink-domain": 2}


def test_a_dump_says_the_gpu_and_the_speed_of_the_cards() -> None:
    said = read_nccl_topology(nccl_topology(), file="xml")
    expected = {"gpus-per-node": 8, "nvlink-domain": 8, "gpu": "h100-sxm-80gb", "nics": 8, "nic-bandwidth": "400Gb/s"}
    assert values(said) == expected
    assert values(read_nccl_topology(nccl_topology(4, hosts=3, device="0x2941"), file="xml")) == {
        "gpus-per-node": 4,
        "nvlink-domain": 12,
        "nics": 4,
        "nic-bandwidth": "400Gb/s",
    }
    assert values(read_nccl_topology(nccl_topology(4, switched=False), file="xml"))["nvlink-domain"] == 4


def test_slurm_says_nodes_and_levels() -> None:
    tree = read_slurm_conf(SLURM_TREE, file="topology.conf")
    assert (values(tree), levels(tree)) == ({"nodes": 60}, [("leaf", 16), ("spine", 32), ("core", None)])
    blocks = read_slurm_conf(SLURM_BLOCKS, file="topology.conf")
    assert (values(blocks), levels(blocks)) == (
        {"nodes": 72},
        [("block", 18), ("blocks-of-36", 36), ("network", None)],
    )
    assert values(read_slurm_conf(SLURM_CONF, file="slurm.conf")) == {
        "nodes": 64,
        "gpus-per-node": 8,
        "host-ram": "1900000MiB",
    }
    assert levels(of_yaml(SLURM_YAML)) == [("leaf", 4), ("spine", None)]
    assert levels(of_yaml(SLURM_YAML_BLOCKS)) == [("block", 2), ("blocks-of-4", 4), ("network", None)]


def test_several_cores_above_the_same_leaves_are_one_level() -> None:
    leaves = "SwitchName=l1 Nodes=n[1-4]\nSwitchName=l2 Nodes=n[5-8]\n"
    text = f"{leaves}SwitchName=c1 Switches=l[1-2]\nSwitchName=c2 Switches=l[1-2]\n"
    assert levels(read_slurm_conf(text, file="f")) == [("leaf", 4), ("spine", None)]


def test_kubernetes_says_gpus_memory_and_leaves() -> None:
    said = of_nodes(kubernetes_nodes())
    assert values(said) == {"nodes": 8, "gpus-per-node": 8, "gpu": "h100-sxm-80gb", "host-ram": "2063947MiB"}
    assert levels(said) == [("leaf", 4), ("zone", None)]
    cliques = of_nodes(kubernetes_nodes(labels={"nvidia.com/gpu.clique": "c.1"}))
    assert values(cliques)["nvlink-domain"] == 64
    assert levels(of_nodes(kubernetes_nodes(per_leaf=8))) == []
    amd = kubernetes_nodes(product="AMD_Instinct_MI300X_OAM").replace("nvidia.com/gpu", "amd.com/gpu")
    assert values(of_nodes(amd.replace("gpu.product", "gpu.product-name")))["gpu"] == "mi300x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SwitchName=a Nodes=n[1-2]\nSwitchName=a Nodes=n3\n", "f:2: a is described twice."),
        ("SwitchName=a Nodes=n1 Switches=b\n", "f:1: a needs nodes or switches below it, one of both."),
        ("SwitchName=a Nodes=n1\nSwitchName=b Switches=c\n", "f:2: b stands above c, which is not described."),
        ("SwitchName=a Switches=b\nSwitchName=b Switches=a\n", "f:1: a stands above itself."),
        ("SwitchName=a Nodes=n[1-2]\nSwitchName=b Nodes=n[2-3]\n", "f:2: n2 is in b and in a."),
        (
            "SwitchName=a Nodes=n[1-2]\nSwitchName=b Nodes=n[3-4]\n",
            "f:2: Nothing joins all 4 nodes: there are 2 of leaf",
        ),
        (
            "SwitchName=a Nodes=n[1-4]\nSwitchName=b Nodes=n[5-6]\nSwitchName=c Nodes=n[7-8]\n",
            "f:2: b joins 2 nodes, another leaf 4: a level has one size.",
        ),
        ("SwitchName=a Nodes=n[3-1]\n", "f:1: 'n[3-1]' is no list of hosts."),
        ("SwitchName=a Nodes=n[1-999999999]\n", "f:1: The list names more than 131,072 hosts."),
        ("SwitchName=a Nodes=n[[1]\n", "f:1: 'n[[1]' is no list of hosts."),
        ("SwitchName=a Nodes=n1\nBlockName=b Nodes=n1\n", "f:2: Switches and blocks stand in one file."),
        ("BlockName=b Nodes=n1\nBlockSizes=x\n", "f:2: BlockSizes holds 'x'."),
        ("NodeName=a Gres=gpu:8\nNodeName=b Gres=gpu:4\n", "f:2: These nodes have 4 GPUs, those of f:1 8."),
        ("NodeName=a Gres=gpu:8 RealMemory=much\n", "f:1: RealMemory is 'much'."),
    ],
)
def test_what_is_wrong_with_slurm_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_slurm_conf(text, file="f")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            topology_matrix(underlined=False).replace("GPU5\t", "GPX5\t", 2).replace("GPX5", "GPU5", 1),
            "f:1: There is no row of GPU5.",
        ),
        (topology_matrix().replace("PXB", "???", 1), "f:2: GPU0: '???' is no path."),
        (
            topology_matrix(underlined=False).replace("CPU Affinity", "Affinity"),
            "f:1: The header has no GPU in front of CPU Affinity.",
        ),
        (topology_matrix().replace("NV18", "SYS", 1), "f:1: NVLink joins some of these GPUs in groups that are not"),
    ],
)
def test_what_is_wrong_with_a_matrix_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_topology_matrix(text, file="f")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nccl_topology()[:-12], "f:68:3: This is no XML: "),
        ('<!DOCTYPE x [<!ENTITY a "b">]>\n' + nccl_topology(), "f:1: The file declares a document type"),
        (nccl_topology(0), "f: There is no GPU in this file."),
        (
            nccl_topology().replace(
                '          <nvlink target="fffffff:ff:ff.0" count="18" tclass="0x068000"/>\n', "", 1
            ),
            "f:5: The GPU at 0000:10:00.0 has no NVLink, and 7 others have.",
        ),
        (nccl_topology(speed=-1), "f:9: A network card has the speed '-1'."),
    ],
)
def test_what_is_wrong_with_a_dump_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_nccl_topology(text, file="f")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (kubernetes_nodes(0), "nodes.json:1:1: No node has GPUs: there is neither a label nor a capacity of them."),
        (kubernetes_nodes().replace('"8"', '"4"', 1), "nodes.json:60:3: node-1 has GPUs 8, node-0 4."),
        (kubernetes_nodes().replace("node-1", "node-0"), "nodes.json:38:3: node-0 is listed twice."),
        (kubernetes_nodes().replace("2113481941Ki", "lots"), "nodes.json:60:3: memory is 'lots'."),
        (
            kubernetes_nodes().replace('"name": "node-1"', '"nom": "x"'),
            "nodes.json:60:3: This node has no metadata.name.",
        ),
    ],
)
def test_what_is_wrong_with_nodes_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        of_nodes(text)
    told = str(caught.value)
    assert told.split(": ", 1)[1].startswith(message.split(": ", 1)[1])
    assert told.startswith("nodes.json:")


def imported(tmp_path: Path, files: dict[str, str], *options: str) -> tuple[int, str, Cluster | None]:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    out = tmp_path / "cluster.yaml"
    result = RUNNER.invoke(
        app, ["cluster", "import", *(str(tmp_path / name) for name in files), "-o", str(out), *options]
    )
    cluster = read_cluster(load_document(out)) if out.exists() else None
    return result.exit_code, result.stderr, cluster


def test_files_together_make_a_cluster(tmp_path: Path) -> None:
    files = {"topo.txt": topology_matrix(), "topology.conf": SLURM_TREE, "slurm.conf": SLURM_CONF.replace("064", "060")}
    code, told, cluster = imported(
        tmp_path, files, *GPU, *CARDS, "--oversubscription", "spine=1", "--oversubscription", "core=2"
    )
    assert code == 0, told
    assert cluster is not None
    assert [(level.name, level.num_gpus, level.bytes_per_second) for level in cluster.levels] == [
        ("nvlink", 8, 450e9),
        ("leaf", 128, 50e9),
        ("spine", 256, 50e9),
        ("core", 480, 25e9),
    ]
    assert (cluster.num_nodes, cluster.host_memory_bytes) == (60, 1900000 << 20)
    assert "topology.conf:2: 4 of leaf" in cluster.levels[1].source


def test_a_dump_and_nodes_make_a_cluster(tmp_path: Path) -> None:
    code, told, cluster = imported(
        tmp_path, {"x.xml": nccl_topology(), "nodes.json": kubernetes_nodes()}, "--oversubscription", "zone=1"
    )
    assert code == 0, told
    assert cluster is not None
    assert [(level.name, level.num_gpus) for level in cluster.levels] == [("nvlink", 8), ("leaf", 32), ("zone", 64)]


def test_what_nobody_says_is_asked_for_by_its_option(tmp_path: Path) -> None:
    code, told, cluster = imported(tmp_path, {"topo.txt": topology_matrix(), "topology.conf": SLURM_TREE})
    assert (code, cluster) == (2, None)
    for option in (
        "--gpu ",
        "--host-ram ",
        "--nic-bandwidth ",
        "--oversubscription spine=1",
        "--oversubscription core=1",
    ):
        assert option in told
    assert "--nics" not in told
    assert "--gpus-per-node" not in told


def test_files_that_contradict_each_other_need_a_word(tmp_path: Path) -> None:
    files = {"topo.txt": topology_matrix(4, 4, 4), "x.xml": nccl_topology()}
    code, told, _ = imported(tmp_path, files, "--nodes", "1", *RAM)
    assert code == 2
    assert "gpus per node is 8 here, and 4 by " in told
    assert "Say which holds with --gpus-per-node." in told
    said = ("--nodes", "1", *RAM, "--gpus-per-node", "8", "--nvlink-domain", "8", "--nics", "8")
    code, told, cluster = imported(tmp_path, files, *said)
    assert code == 0, told
    assert cluster is not None
    assert cluster.gpus_per_node == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--oversubscription", "spine"), "--oversubscription spine is no level with its number, from 1."),
        (("--oversubscription", "rail=2"), "There is no level rail to oversubscribe."),
        (("--gpu", "h1000"), "the imported cluster: gpu: "),
        (("--host-ram", "lots"), "the imported cluster: host_ram: "),
    ],
)
def test_options_that_are_wrong(tmp_path: Path, options: tuple[str, str], message: str) -> None:
    given = (*GPU, *CARDS, *RAM, "--nodes", "2")
    code, told, cluster = imported(tmp_path, {"topo.txt": topology_matrix()}, *given, *options)
    assert (code, cluster) == (2, None)
    assert message in told


def test_a_file_of_no_known_kind(tmp_path: Path) -> None:
    code, told, _ = imported(tmp_path, {"a.txt": "hello\n"})
    assert code == 2
    assert "a.txt: This describes no cluster that is known." in told


@pytest.mark.parametrize("seed", [3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (4, 5))])
def test_mutated_files_give_a_cluster_or_a_message(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    texts = {
        "t.txt": topology_matrix(),
        "x.xml": nccl_topology(),
        "a.conf": SLURM_TREE,
        "b.conf": SLURM_CONF,
        "c.yaml": SLURM_YAML,
        "d.json": kubernetes_nodes(2, 1),
    }
    options = (*GPU, *CARDS, *RAM, "--nics", "8", "--gpus-per-node", "8", "--nodes", "64", "--force")
    for _ in range(50):
        name = random_.choice(sorted(texts))
        cut = list(texts[name])
        for _ in range(random_.randint(1, 4)):
            place = random_.randrange(len(cut))
            cut[place : place + random_.randint(0, 20)] = random_.choice(
                ["", "9", "[", "\n", " ", "x", '"', "\x00", "<"]
            )
        code, told, _ = imported(tmp_path, {name: "".join(cut)}, *options)
        assert code in (0, 2), told
