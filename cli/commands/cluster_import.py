"""`shardwright cluster import`: a cluster file from what nvidia-smi, NCCL, Slurm or Kubernetes say."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.profile_import import read_text
from cli.options import ForceOption, FormatOption
from cli.output import Format, note, print_json, print_text, write_file
from planner.errors import InputError, Location

if TYPE_CHECKING:
    from planner.imports.facts import Fact, Field, Said

SUMMARY = "Make cluster files."

EXAMPLES = (
    "shardwright cluster import topo.txt slurm.conf --gpu h100-sxm-80gb --nic-bandwidth 400Gb/s -o cluster.yaml",
    "shardwright cluster import nccl.xml nodes.json -o cluster.yaml",
)

FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="Output of nvidia-smi topo -m, NCCL's topology dump, Slurm's topology.conf, topology.yaml or slurm.conf,"
        " or kubectl get nodes -o json.",
        show_default=False,
    ),
]
OutFile = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="Write into this file instead.", show_default=False),
]
NameOption = Annotated[str, typer.Option("--name", help="What the cluster is called.")]
GpuOption = Annotated[str | None, typer.Option("--gpu", help="The GPU, by its catalogue name.", show_default=False)]
PerNodeOption = Annotated[
    int | None, typer.Option("--gpus-per-node", min=1, max=1024, help="GPUs of a node.", show_default=False)
]
NodesOption = Annotated[int | None, typer.Option("--nodes", min=1, max=131072, help="Nodes.", show_default=False)]
DomainOption = Annotated[
    int | None,
    typer.Option("--nvlink-domain", min=1, max=1024, help="GPUs that NVLink joins, 1 for none.", show_default=False),
]
NicsOption = Annotated[
    int | None,
    typer.Option("--nics", min=1, max=256, help="Network cards of a node between GPUs.", show_default=False),
]
NicBandwidthOption = Annotated[
    str | None, typer.Option("--nic-bandwidth", help="Of one card, as in 400Gb/s.", show_default=False)
]
HostRamOption = Annotated[
    str | None, typer.Option("--host-ram", help="Memory of a node, as in 2TiB.", show_default=False)
]
OversubscriptionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--oversubscription",
        metavar="LEVEL=TIMES",
        help="How many times less than its share of the cards a GPU has across a level; may be given again.",
        show_default=False,
    ),
]


def import_(
    files: FilesArgument,
    *,
    out: OutFile = None,
    name: NameOption = "",
    gpu: GpuOption = None,
    gpus_per_node: PerNodeOption = None,
    nodes: NodesOption = None,
    nvlink_domain: DomainOption = None,
    nics: NicsOption = None,
    nic_bandwidth: NicBandwidthOption = None,
    host_ram: HostRamOption = None,
    oversubscription: OversubscriptionOption = None,
    force: ForceOption = False,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Make a cluster file for specs; options come before what files say.

    What a plan needs and nobody says is asked for, never assumed.
    """
    from planner.documents.document import parse_document
    from planner.imports.cluster_file import cluster_text
    from planner.imports.facts import Fact, Field, Said, merged

    given = {
        Field.GPU: gpu,
        Field.GPUS_PER_NODE: gpus_per_node,
        Field.NODES: nodes,
        Field.NVLINK_DOMAIN: nvlink_domain,
        Field.NICS: nics,
        Field.NIC_BANDWIDTH: nic_bandwidth,
        Field.HOST_RAM: host_ram,
    }
    options = {
        field: Fact(value=value, place=Location(file=field.value), told=field.value)
        for field, value in given.items()
        if value is not None
    }
    read = [_without(_read(path, options), options) for path in files]
    said = merged([*read, Said(facts=options)])
    text = cluster_text(said, name=name, oversubscription=_oversubscription(oversubscription or []))
    if out is not None:
        write_file(out, text, force=force)
        note(f"{out} written. Name it in a spec: cluster: {out.name}")
    if format_ is Format.JSON:
        print_json(parse_document(text, file=str(out or "cluster")).data)
    elif out is None:
        print_text(text)


def _without(said: "Said", options: "dict[Field, Fact]") -> "Said":
    """Return what a file says beside the options."""
    from dataclasses import replace

    return replace(said, facts={field: fact for field, fact in said.facts.items() if field not in options})


def _read(path: Path, options: "dict[Field, Fact]") -> "Said":
    """Return what one file says.

    Raises:
        InputError: It is of no kind that is known, or wrong.
    """
    from planner.documents.document import load_document
    from planner.imports.kubernetes import is_kubernetes, read_kubernetes
    from planner.imports.nccl_topology import is_nccl_topology, read_nccl_topology
    from planner.imports.slurm import is_slurm_conf, is_slurm_yaml, read_slurm_conf, read_slurm_yaml
    from planner.imports.topology_matrix import is_topology_matrix, read_topology_matrix

    text, file = read_text(path), str(path)
    if is_nccl_topology(text):
        return read_nccl_topology(text, file=file, given=options)
    if is_topology_matrix(text):
        return read_topology_matrix(text, file=file, given=options)
    if is_slurm_conf(text):
        return read_slurm_conf(text, file=file)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        document = load_document(path)
        if is_slurm_yaml(document):
            return read_slurm_yaml(document)
        if is_kubernetes(document):
            return read_kubernetes(document)
    raise InputError(
        "This describes no cluster that is known.",
        location=Location(file=file),
        hint="Give the output of nvidia-smi topo -m, NCCL's topology dump, Slurm's topology.conf, topology.yaml or\n"
        "slurm.conf, or kubectl get nodes -o json; the last and topology.yaml keep their endings.",
    )


def _oversubscription(texts: list[str]) -> dict[str, float]:
    """Return how much levels are oversubscribed.

    Raises:
        InputError: One is not written as a level and a number.
    """
    found = {}
    for text in texts:
        level, separator, times = text.partition("=")
        try:
            value = float(times)
        except ValueError:
            value = 0.0
        if not separator or not level or not 1 <= value <= 1000:
            raise InputError(
                f"--oversubscription {text[:60]} is no level with its number, from 1.", hint="Write spine=2."
            )
        found[level] = value
    return found
