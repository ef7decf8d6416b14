"""How `launch.sh` and `job.sbatch` start torchrun on every node: what the files of all training frameworks share."""

from planner.emit.node_order import PLACES, SLURM, Rendezvous, batch_rendezvous, unequal_rendezvous
from planner.emit.shell import comment, job_name
from planner.layout import Layout
from profiles.hardware import Cluster

ONE_NODE = Rendezvous(
    note=("Run this on the node: bash launch.sh",),
    lines=(),
    node_rank="0",
    address="${MASTER_ADDR:-127.0.0.1}",
)


def launch_rendezvous(layout: Layout, cluster: Cluster) -> Rendezvous:
    """Return how a script that runs on every node finds the others."""
    if cluster.num_nodes == 1:
        return ONE_NODE
    if cluster.unequal is not None:
        return unequal_rendezvous(layout, cluster, cluster.unequal)
    return Rendezvous(
        note=(
            f"Run this on each of the {cluster.num_nodes} nodes, with NODE_RANK 0 to {cluster.num_nodes - 1} and",
            "MASTER_ADDR the name of node 0; or submit job.sbatch, which does the same under Slurm.",
        ),
        lines=(
            ': "${NODE_RANK:?set it to the number of this node, from 0}"',
            ': "${MASTER_ADDR:?set it to the host name of node 0}"',
            "",
        ),
        node_rank="$NODE_RANK",
        address="$MASTER_ADDR",
    )


def slurm_rendezvous(layout: Layout, cluster: Cluster) -> Rendezvous:
    """Return how the nodes of a Slurm job find one another."""
    return SLURM if cluster.unequal is None else batch_rendezvous(layout, cluster.unequal)


def torchrun_lines(cluster: Cluster, found: Rendezvous) -> tuple[str, ...]:
    """Return the command that starts the processes of this node, up to the program."""
    return (
        "exec torchrun \\",
        f"    --nnodes {cluster.num_nodes} \\",
        f"    --nproc-per-node {cluster.gpus_per_node} \\",
        f'    --node-rank "{found.node_rank}" \\',
        f'    --master-addr "{found.address}" \\',
        '    --master-port "${MASTER_PORT:-29500}" \\',
    )


def batch_directives(name: str, cluster: Cluster, found: Rendezvous) -> tuple[str, ...]:
    """Return what a job asks Slurm for: whole nodes, one task on each."""
    return (
        f"#SBATCH --job-name={job_name(name)}",
        f"#SBATCH --nodes={cluster.num_nodes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={cluster.gpus_per_node}",
        "#SBATCH --exclusive",
        "#SBATCH --mem=0",
        "#SBATCH --output=%x-%j.log",
        *found.directives,
    )


def master_lines(found: Rendezvous) -> tuple[str, ...]:
    """Return what tells every task where the first one listens."""
    return (*found.lines, "export MASTER_ADDR", 'export MASTER_PORT="${MASTER_PORT:-29500}"')


def srun_lines(cluster: Cluster, found: Rendezvous) -> tuple[str, ...]:
    """Return the command that starts torchrun on every node, up to the program."""
    inner = "" if cluster.unequal is None else PLACES
    return (
        comment("One torchrun a node; SLURM_NODEID is known only inside the task, hence the inner shell."),
        f"srun --kill-on-bad-exit=1 --cpu-bind=none bash -c '{inner}exec torchrun \\",
        f"    --nnodes {cluster.num_nodes} \\",
        f"    --nproc-per-node {cluster.gpus_per_node} \\",
        f'    --node-rank "{found.node_rank}" \\',
        '    --master-addr "$MASTER_ADDR" \\',
        '    --master-port "$MASTER_PORT" \\',
        '    "$@"\' \\',
    )
