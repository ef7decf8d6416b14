"""Which engine stands on which node, and a script that starts what belongs on one.

Engines over several nodes come first and take whole ones; the others follow by size, the largest first, each on the
first node with room. Sizes inside a node divide one another, so that each begins at a multiple of its size and none is
left without a place (`SLOT` counts these multiples).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.emit.shell import comment, quote
from planner.emit.vllm import PORT, SIDE_CHANNEL_PORT, script_name
from planner.errors import InputError
from planner.serving_plans.layout import Pool

START_FILE = "start.sh"
SIDE_CHANNEL_STEP = 100
"""Ports between two engines on a node: each rank of an engine takes one."""


WATCH = (
    "status=0",
    "while (( ${#engines[@]} )); do",
    '    for engine in "${!engines[@]}"; do',
    '        kill -0 "$engine" 2> /dev/null && continue',
    "        ended=0",
    '        wait "$engine" || ended=$?',
    "        if (( ended )); then",
    '            echo "${engines[$engine]} ended with status $ended" >&2',
    '            status="$ended"',
    "        fi",
    '        unset "engines[$engine]"',
    "    done",
    "    if (( ${#engines[@]} )); then wait -n || true; fi",
    "done",
    'exit "$status"',
)
"""Waits for every engine, and tells of one that ends badly at once, whichever it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A pool and where it stands.

    Args:
        pool: Equal engines.
        cluster: Name of the nodes.
        is_split: It makes or takes caches.
    """

    pool: Pool
    cluster: str
    is_split: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One engine, or a node's part of one, on a node.

    Args:
        standing: Which pool it is of.
        node: The node, of its cluster.
        slot: The multiple of its size at which its GPUs begin.
        head: The node where the engine begins.
        rank: Which of its nodes this is.
    """

    standing: Standing
    node: int
    slot: int = 0
    head: int
    rank: int = 0


def placed(standings: Sequence[Standing], num_nodes: dict[str, int]) -> tuple[Start, ...]:
    """Return what starts on which node.

    Args:
        standings: The pools.
        num_nodes: Nodes by cluster.

    Raises:
        InputError: The nodes do not hold the engines.
    """
    starts: list[Start] = []
    for cluster, count in num_nodes.items():
        used = [0] * count
        here = [entry for entry in standings if entry.cluster == cluster]
        for standing in sorted(here, key=lambda entry: (-entry.pool.shape.num_gpus, entry.pool.name)):
            for _ in range(standing.pool.replicas):
                starts += _one(standing, used)
    return tuple(sorted(starts, key=lambda start: (start.standing.cluster, start.node)))


def _one(standing: Standing, used: list[int]) -> list[Start]:
    pool = standing.pool
    size, nodes = pool.shape.num_gpus, pool.nodes_per_replica
    if nodes > 1:
        free = [node for node, gpus in enumerate(used) if not gpus][:nodes]
        if len(free) < nodes:
            raise _no_room(standing)
        for node in free:
            used[node] = pool.gpus_per_node
        return [Start(standing=standing, node=node, head=free[0], rank=rank) for rank, node in enumerate(free)]
    for node, gpus in enumerate(used):
        first = -(-gpus // size) * size
        if first + size <= pool.gpus_per_node:
            used[node] = first + size
            return [Start(standing=standing, node=node, slot=first // size, head=node)]
    raise _no_room(standing)


def _no_room(standing: Standing) -> InputError:
    return InputError(
        f"Pool {standing.pool.name}: the nodes of {standing.cluster} do not hold its {standing.pool.replicas} engines.",
        hint="Plan again from the spec instead of editing the plan.",
    )


def start_script(standings: Sequence[Standing], num_nodes: dict[str, int]) -> str:
    """Return a script that starts what belongs on one node."""
    starts = placed(standings, num_nodes)
    clusters = list(num_nodes)
    first = quote(clusters[0], what="the name of a cluster")
    lines = [
        "#!/usr/bin/env bash",
        comment("Starts every engine that belongs on one node. Written by shardwright."),
        comment('Usage on each node: CLUSTER=name NODE_INDEX=0 ADDRESSES="node-0 node-1 ..." bash start.sh'),
        comment("NODE_INDEX counts the nodes of the cluster from 0, and ADDRESSES names all of them in that order."),
        "",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        "",
        'read -r -a addresses <<< "${ADDRESSES:-127.0.0.1}"',
        "trap 'kill $(jobs -p) 2> /dev/null || true' INT TERM",
        "engines=()",
        f'case "${{CLUSTER:-{first}}} ${{NODE_INDEX:-0}}" in',
    ]
    for cluster in clusters:
        for node in range(num_nodes[cluster]):
            here = [start for start in starts if start.standing.cluster == cluster and start.node == node]
            lines.append(f"    {quote(f'{cluster} {node}', what='the name of a cluster')})")
            for index, start in enumerate(here):
                name = f"{start.standing.pool.name} on port {PORT + index}"
                lines += [
                    f"        {_line(start, index)}",
                    f"        engines[$!]={quote(name, what='the name of a pool')}",
                ]
            if not here:
                lines.append("        echo 'nothing starts on this node'")
            lines.append("        ;;")
    lines += [
        '    *) echo "no such node: ${CLUSTER:-} ${NODE_INDEX:-}" >&2; exit 2 ;;',
        "esac",
        *WATCH,
    ]
    return "\n".join(lines) + "\n"


def _line(start: Start, index: int) -> str:
    pool = start.standing.pool
    words = [f"PORT={PORT + index}"]
    if pool.nodes_per_replica > 1:
        words += [f'HEAD_ADDR="${{addresses[{start.head}]}}"', f"NODE_RANK={start.rank}"]
    elif pool.shape.num_gpus < pool.gpus_per_node:
        words.append(f"SLOT={start.slot}")
    if start.standing.is_split:
        words += [
            f'NODE_ADDR="${{addresses[{start.node}]}}"',
            f"VLLM_NIXL_SIDE_CHANNEL_PORT={SIDE_CHANNEL_PORT + SIDE_CHANNEL_STEP * index}",
        ]
    return f"{' '.join(words)} bash {quote(script_name(pool), what='the name of a pool')} &"
