"""Bash that starts each node at its place in the mesh, where nodes differ.

`NODE_ORDER` is the table: which node, as the cluster's description numbers them, stands at each place. torchrun numbers
ranks by `--node-rank`, so a node's rank is its place, and the node at place 0 holds the rendezvous. Under Slurm the
place follows from the node's host name, or without names from its position in the job's list of hosts, which
`SLURM_NODEID` counts too (sbatch(1), srun(1)).

DeepSpeed's own launcher starts all nodes from one, over ssh, and numbers ranks by the order of its hostfile
(`deepspeed/launcher/runner.py` and `launch.py`): where nodes have names, one is written with them in the order of their
places.
"""

from dataclasses import dataclass

from planner.emit.shell import quote
from planner.layout import Layout
from profiles.hardware import Cluster, UnequalNodes

NODE_ORDER = "NODE_ORDER"
HOSTFILE = "hostfile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """How the processes of a run find one another.

    Args:
        note: What a user is told.
        directives: Lines for the batch system.
        lines: Bash in front of the launch.
        node_rank: What torchrun is told.
        address: What torchrun is told.
    """

    note: tuple[str, ...]
    directives: tuple[str, ...] = ()
    lines: tuple[str, ...]
    node_rank: str
    address: str


def unequal_rendezvous(layout: Layout, cluster: Cluster, nodes: UnequalNodes) -> Rendezvous:
    """Return how a script that runs on every node puts it at its place."""
    if nodes.names:
        hosts = [_hosts(nodes)]
        address = "MASTER_ADDR is the host at place 0, and needs not be set."
    else:
        what = "set it to the host names of all nodes, in the order of the cluster file, separated by spaces"
        hosts = [f'read -ra HOSTS <<< "${{NODE_HOSTS:?{what}}}"']
        address = "Set NODE_HOSTS to the host names of all nodes in that order; MASTER_ADDR follows from it."
    return Rendezvous(
        note=(
            f"Run this on each of the {cluster.num_nodes} nodes, with NODE_RANK its number in the cluster file;",
            "NODE_ORDER says which of these nodes takes which place in the mesh.",
            address,
        ),
        lines=(
            ': "${NODE_RANK:?set it to the number of this node in the cluster file, from 0}"',
            *hosts,
            _order(layout, nodes),
            'for place in "${!NODE_ORDER[@]}"; do',
            "    PLACE_OF_NODE[NODE_ORDER[place]]=$place",
            "done",
            'PLACE="${PLACE_OF_NODE[NODE_RANK]:?there is no such node as NODE_RANK}"',
            'MASTER_ADDR="${HOSTS[NODE_ORDER[0]]:?NODE_HOSTS does not name every node}"',
            "",
        ),
        node_rank="$PLACE",
        address="$MASTER_ADDR",
    )


def batch_rendezvous(layout: Layout, nodes: UnequalNodes) -> Rendezvous:
    """Return how a Slurm job puts its nodes at their places."""
    note: tuple[str, ...] = ("NODE_ORDER says which node of HOSTS takes which place in the mesh.",)
    hosts = _hosts(nodes)
    if not nodes.names:
        note = (
            "NODE_ORDER says which node takes which place in the mesh. Nodes are numbered from 0 in the order of",
            "`scontrol show hostnames`, which must be the order of the cluster file: name the nodes there otherwise.",
        )
        hosts = 'HOSTS=("${ALLOCATED[@]}")'
    return Rendezvous(
        note=note,
        directives=node_list(nodes),
        lines=(
            'mapfile -t ALLOCATED < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
            hosts,
            _order(layout, nodes),
            "declare -A PLACE_OF_HOST",
            'for place in "${!NODE_ORDER[@]}"; do',
            '    PLACE_OF_HOST["${HOSTS[NODE_ORDER[place]]}"]=$place',
            "done",
            'NODE_PLACES=""',
            'for host in "${ALLOCATED[@]}"; do',
            '    NODE_PLACES+="${PLACE_OF_HOST["$host"]:?$host is no node of this plan} "',
            "done",
            "export NODE_PLACES",
            'MASTER_ADDR="${HOSTS[NODE_ORDER[0]]}"',
        ),
        node_rank="${PLACES[SLURM_NODEID]}",
        address="$MASTER_ADDR",
    )


SLURM = Rendezvous(
    note=(),
    lines=('read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',),
    node_rank="$SLURM_NODEID",
    address="$MASTER_ADDR",
)
"""How a Slurm job of equal nodes does it."""

PLACES = 'read -ra PLACES <<< "$NODE_PLACES"; '
"""What the inner shell of a Slurm job starts with: its place is that of its node."""


def node_list(nodes: UnequalNodes) -> tuple[str, ...]:
    """Return what asks Slurm for these very nodes; nothing where they have no names."""
    return (f"#SBATCH --nodelist={','.join(nodes.names)}",) if nodes.names else ()


def hostfile(layout: Layout, cluster: Cluster) -> str | None:
    """Return the nodes in the order of their places, as DeepSpeed's launcher reads them; None without names."""
    nodes = cluster.unequal
    if nodes is None or not nodes.names:
        return None
    order = layout.node_order or range(cluster.num_nodes)
    return "".join(f"{nodes.names[node]} slots={cluster.gpus_per_node}\n" for node in order)


def _hosts(nodes: UnequalNodes) -> str:
    return f"HOSTS=({' '.join(quote(name, what='a node name') for name in nodes.names)})"


def _order(layout: Layout, nodes: UnequalNodes) -> str:
    order = layout.node_order or range(len(nodes.kind_of_node_N))
    return f"{NODE_ORDER}=({' '.join(map(str, order))})"
