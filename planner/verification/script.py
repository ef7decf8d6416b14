"""Bash that makes runs one after the other on the same GPUs.

A run ends well, fails, or reaches its time limit; the next one starts in each case. A run that ended well or ran out of
memory is not made again. On several nodes without Slurm every node runs the same script in a folder that all of them
share: a node whose part was left alone by another's failure ends it, and the next run starts when all have ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.emit.node_order import node_list
from planner.emit.shell import array, comment, job_name, quote
from planner.plans.plan import Plan
from planner.verification.logs import OUT_OF_MEMORY

RUN_SCRIPT = "run.sh"
BATCH_SCRIPT = "job.sbatch"

KILL_AFTER_SECONDS = 120
"""From the request to end until the kill: torchrun gives its processes 30 seconds."""

GRACE_SECONDS = 20
"""A node whose neighbour failed may still print why it fails too."""

BARRIER_SECONDS = 300
"""How long beyond its time limit a run is waited for on other nodes."""

FINISHED = """\
# Whether a run is not made again: it ran out of memory, or ended well on every node.
finished() {
    grep -qE "$OUT_OF_MEMORY" "$1"/node-*.log 2>/dev/null && return 0
    local node
    for ((node = 0; node < NODES; node++)); do
        [[ -f "$1/node-$node.exit" && "$(<"$1/node-$node.exit")" == 0 ]] || return 1
    done
}
"""

SEVERAL = """\
# Whether a node has ended its part of a run since this script started here; with a third word, whether it failed.
touch "node-$NODE.start"
ended() {
    [[ "$1/node-$2.exit" -nt "node-$NODE.start" ]] && [[ -z "${3:-}" || "$(<"$1/node-$2.exit")" != 0 ]]
}

# Ends this node's part of a run soon after another node's has failed.
watch() {
    local node
    while sleep "$POLL_SECONDS"; do
        for ((node = 0; node < NODES; node++)); do
            if ((node != NODE)) && ended "$1" "$node" failed; then
                sleep "$GRACE_SECONDS"
                kill "$2"
                return
            fi
        done
    done
}

# Waits until every node has ended its part of a run.
wait_for_nodes() {
    local node deadline=$((SECONDS + $2))
    for ((node = 0; node < NODES; node++)); do
        until ((node == NODE)) || ended "$1" "$node" || ((SECONDS >= deadline)); do sleep "$POLL_SECONDS"; done
    done
}
"""

LOOP = """\
trap 'kill $(jobs -p) 2>/dev/null; wait; exit 130' INT TERM

for index in "${!RUNS[@]}"; do
    run="${RUNS[index]}"
    limit="${VERIFY_LIMIT_SECONDS:-${LIMITS_SECONDS[index]}}"
    if finished "$run"; then
        echo "$run: made before"
        continue
    fi
    rm -f "$run/node-$NODE.exit"
    echo "$run: started, at most $limit seconds"
    ENVIRONMENTtimeout --kill-after=KILL "$limit" bash "$run/SCRIPT" "$@" > "$run/node-$NODE.log" 2>&1 &
    pid=$!
WATCH    wait "$pid"
    code=$?
AFTER    echo "$code" > "$run/node-$NODE.exit"
    case "$code" in
        0) echo "$run: ended well" ;;
        124) echo "$run: ended by its time limit" ;;
        137) echo "$run: killed, by its time limit or for the host's memory" ;;
        *) echo "$run: failed with exit code $code, see $run/node-$NODE.log" ;;
    esac
WAITdone
echo "Read the logs with: shardwright collect ${PWD@Q}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRun:
    """One run.

    Args:
        folder: Its folder, beside the script.
        limit_seconds: When it is ended.
    """

    folder: str
    limit_seconds: int


def run_script(plan: Plan, runs: Sequence[TimedRun], *, launch_script: str, steps: int) -> str:
    """Return the script that a user starts on each node."""
    nodes, unequal = plan.cluster.num_nodes, plan.cluster.unequal
    how: tuple[str, ...] = ("Run this on the node: bash run.sh",)
    if nodes > 1:
        how = (
            f"Run this on each of the {nodes} nodes, in a folder that all of them share, with NODE_RANK 0 to",
            f"{nodes - 1} and MASTER_ADDR the name of node 0; or submit job.sbatch, which does the same under Slurm.",
        )
    if unequal is not None:
        hosts = "" if unequal.names else " and NODE_HOSTS the host names of all in that order"
        how = (
            f"Run this on each of the {nodes} nodes, in a folder that all of them share, with NODE_RANK the node's",
            f"number in the cluster file{hosts}; or submit job.sbatch.",
        )
    lines = [
        "#!/usr/bin/env bash",
        *_header(plan, runs, steps=steps, how=how),
        "set -uo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")" || exit',
        "",
        *(
            (
                ': "${NODE_RANK:?set it to the number of this node, from 0}"',
                *((': "${MASTER_ADDR:?set it to the host name of node 0}"',) if unequal is None else ()),
                'NODE="$NODE_RANK"',
                f"NODES={nodes}",
                'POLL_SECONDS="${VERIFY_POLL_SECONDS:-2}"',
                f'GRACE_SECONDS="${{VERIFY_GRACE_SECONDS:-{GRACE_SECONDS}}}"',
            )
            if nodes > 1
            else ("NODE=0", "NODES=1")
        ),
        *_runs(runs),
    ]
    return "\n".join(lines) + "\n" + FINISHED + "\n" + _loop(launch_script, several=nodes > 1)


def batch_script(plan: Plan, runs: Sequence[TimedRun], *, launch_script: str, steps: int) -> str:
    """Return the same as a Slurm job: one allocation for all runs, each of which starts its own `srun`."""
    minutes = -(-sum(run.limit_seconds + KILL_AFTER_SECONDS for run in runs) // 60)
    how = (
        "Submit from the folder that holds this file: sbatch job.sbatch, with --partition and --account as your site",
        f"wants them; --time={minutes} is enough for all runs to reach their time limits.",
    )
    lines = [
        "#!/usr/bin/env bash",
        f"#SBATCH --job-name={job_name(f'verify-{plan.model.name}')}",
        f"#SBATCH --nodes={plan.cluster.num_nodes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={plan.cluster.gpus_per_node}",
        "#SBATCH --exclusive",
        "#SBATCH --mem=0",
        "#SBATCH --output=%x-%j.log",
        *(node_list(plan.cluster.unequal) if plan.cluster.unequal is not None else ()),
        *_header(plan, runs, steps=steps, how=how),
        "set -uo pipefail",
        'cd "$SLURM_SUBMIT_DIR" || exit',
        "",
        comment("srun gathers what all nodes print, so that one log holds a run."),
        "NODE=0",
        "NODES=1",
        *_runs(runs),
    ]
    environment = 'SLURM_SUBMIT_DIR="$PWD/$run" '
    return "\n".join(lines) + "\n" + FINISHED + "\n" + _loop(launch_script, several=False, environment=environment)


def _header(plan: Plan, runs: Sequence[TimedRun], *, steps: int, how: Sequence[str]) -> list[str]:
    gpus = f"{plan.cluster.nodes_in_words}"
    count = "the best layout" if len(runs) == 1 else f"the best {len(runs)} layouts, one after the other"
    return [
        comment(line)
        for line in (
            f"{plan.model.name} on {plan.cluster.name} ({gpus}): {steps} steps of {count}.",
            "Written by shardwright.",
            "",
            "Each run has its folder, which holds its files and, after it, its log. What its launch.sh needs, this",
            "needs; further arguments go to every run. A failure stops nothing. A run that ended well or ran out of",
            "memory is not made again: remove its node-*.log and node-*.exit for that. VERIFY_LIMIT_SECONDS replaces",
            "the time limits.",
            *how,
            "Then, wherever shardwright is installed: shardwright collect DIR, with DIR this folder.",
        )
    ] + [""]


def _runs(runs: Sequence[TimedRun]) -> list[str]:
    return [
        f"OUT_OF_MEMORY={quote(OUT_OF_MEMORY, what='OUT_OF_MEMORY')}",
        *array("RUNS", [("Best first, by prediction", [(run.folder,) for run in runs])]),
        *array("LIMITS_SECONDS", [("Of each run", [(str(run.limit_seconds),) for run in runs])]),
        "",
    ]


def _loop(script: str, *, several: bool, environment: str = "") -> str:
    text = LOOP.replace("KILL", str(KILL_AFTER_SECONDS)).replace("SCRIPT", script).replace("ENVIRONMENT", environment)
    parts = {
        "WATCH": '    watch "$run" "$pid" &\n    watcher=$!\n',
        "AFTER": '    kill "$watcher" 2>/dev/null\n',
        "WAIT": f'    wait_for_nodes "$run" $((limit + {BARRIER_SECONDS}))\n',
    }
    for name, lines in parts.items():
        text = text.replace(name, lines if several else "")
    return f"{SEVERAL}\n{text}" if several else text
