"""Launchers for measuring where this program is not installed: a folder with the collector, the points and a script.

The scripts need Python, torch and numpy on every node, and the folder on a file system that all nodes share. Points are
appended to the folder's own store, and a script that is started again goes on where it was.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

REQUEST = "request.jsonl"
"""File of the points that are to be measured."""

SCRIPT = {"torchrun": "profile.sh", "slurm": "profile.sbatch"}

_HEAD = """\
#!/usr/bin/env bash
{directives}# Measures the points of {request} with {processes} processes on each of {nodes} into this folder.
# It may be stopped at any time: started again it goes on.
set -euo pipefail
"""

_SLURM_DIRECTIVES = """\
#SBATCH --job-name=shardwright-profile
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={processes}
#SBATCH --exclusive
"""

_MEASURE = """\
export PYTHONPATH="$folder/collector${{PYTHONPATH:+:$PYTHONPATH}}"
arguments=(--request "$folder/{request}" --out "$folder" --resume {words})
"""

_ALONE = """\
folder="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
{measure}exec python3 -m torch.distributed.run --standalone --nproc-per-node={processes} \\
    -m profiles.measure "${{arguments[@]}}"
"""

_NODES = """\
# Start it on every node: NODE_RANK is 0 to {last}, MASTER_ADDR the address of node 0.
folder="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
{measure}exec python3 -m torch.distributed.run --nnodes={nodes} --nproc-per-node={processes} \\
    --node-rank="${{NODE_RANK:?}}" --master-addr="${{MASTER_ADDR:?}}" --master-port="${{MASTER_PORT:-29500}}" \\
    -m profiles.measure "${{arguments[@]}}"
"""

_SLURM = """\
# Slurm runs a copy of this script; the folder is where it was submitted from, unless PROFILE_FOLDER says otherwise.
folder="$(cd "${{PROFILE_FOLDER:-$SLURM_SUBMIT_DIR}}" && pwd)"
{measure}export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_PORT="${{MASTER_PORT:-29500}}"
exec srun python3 -m torch.distributed.run --nnodes={nodes} --nproc-per-node={processes} \\
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" \\
    -m profiles.measure "${{arguments[@]}}"
"""


class Launcher(StrEnum):
    """What starts the processes."""

    TORCHRUN = "torchrun"
    SLURM = "slurm"


def launcher_text(launcher: Launcher, *, nodes: int, processes: int, words: str) -> str:
    """Return the script that measures.

    Args:
        launcher: What starts the processes.
        nodes: Nodes of the job.
        processes: Processes of one node.
        words: Further words of the collector's command line, quoted for bash.
    """
    directives = ""
    body = _ALONE if nodes == 1 else _NODES
    if launcher is Launcher.SLURM:
        directives, body = _SLURM_DIRECTIVES.format(nodes=nodes, processes=processes), _SLURM
    counted = "1 node" if nodes == 1 else f"{nodes} nodes"
    head = _HEAD.format(directives=directives, request=REQUEST, processes=processes, nodes=counted)
    measure = _MEASURE.format(request=REQUEST, words=words).replace(" )", ")")
    return head + body.format(measure=measure, nodes=nodes, processes=processes, last=nodes - 1)


def collector_files() -> Mapping[str, str]:
    """Return the collector's own code by its path in the folder."""
    package = Path(__file__).parents[1] / "profiles"
    paths = [package / "__init__.py", *sorted((package / "measure").rglob("*.py"))]
    return {
        f"collector/profiles/{path.relative_to(package).as_posix()}": path.read_text(encoding="utf-8") for path in paths
    }
