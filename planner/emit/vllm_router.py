"""The command that puts one door in front of a split plan: each request goes to a prefill engine, then to a decode one.

It is vLLM's own router, a program beside vLLM (`pip install vllm-router`, 0.1.17; github.com/vllm-project/router,
docs/model-routing/pd-disaggregation.md and docs/cli_reference.md). Engines of one pool are dealt requests in turn.
Where the engines of a role differ, each request goes to the less busy of two that are drawn, because the router has no
shares.
"""

from collections.abc import Iterable, Sequence

from planner.emit.shell import comment
from planner.emit.vllm import PORT
from planner.emit.vllm_start import Standing, Start, placed
from planner.serving_plans.layout import Role

ROUTER_FILE = "router.sh"
ROUTER_VERSION = "0.1.17"
ROUTER_PORT = 9000

OPTIONS = {Role.PREFILL: "--prefill", Role.DECODE: "--decode"}


def router_script(standings: Sequence[Standing], num_nodes: dict[str, int]) -> str:
    """Return a script that starts the router of a split plan.

    Args:
        standings: All pools of the plan, those that do everything included.
        num_nodes: Nodes by cluster.
    """
    starts = placed(standings, num_nodes)
    used = [cluster for cluster in num_nodes if any(_is_behind(start) for start in _on(starts, cluster))]
    lines = [
        "#!/usr/bin/env bash",
        comment("Starts the router in front of the prefill and decode engines. Written by shardwright."),
        comment(f"Target: vllm-router {ROUTER_VERSION} (pip install vllm-router)."),
        comment(f"Usage, once the engines answer: {_usage(used)} bash {ROUTER_FILE}"),
        comment("Addresses name all nodes of a cluster, in the order of their NODE_INDEX."),
        "",
        "set -euo pipefail",
        "",
    ]
    names = {cluster: _variable(used, cluster) for cluster in used}
    lines += [f'read -r -a nodes_{index} <<< "${{{names[cluster]}:-127.0.0.1}}"' for index, cluster in enumerate(used)]
    lines += ["", "exec vllm-router --vllm-pd-disaggregation --kv-connector nixl \\"]
    for role, option in OPTIONS.items():
        pools = {start.standing.pool.name for start in starts if start.standing.pool.role is role}
        policy = "round_robin" if len(pools) == 1 else "power_of_two"
        lines.append(f"    {option}-policy {policy} \\")
        for index, cluster in enumerate(used):
            for start, port in _heads(_on(starts, cluster), role):
                lines.append(f'    {option} "http://${{nodes_{index}[{start.node}]}}:{port}" \\')
    lines.append(f'    --host 0.0.0.0 --port "${{PORT:-{ROUTER_PORT}}}" "$@"')
    return "\n".join(lines) + "\n"


def _on(starts: Iterable[Start], cluster: str) -> list[Start]:
    return [start for start in starts if start.standing.cluster == cluster]


def _is_behind(start: Start) -> bool:
    return start.standing.pool.role in OPTIONS


def _heads(starts: list[Start], role: Role) -> list[tuple[Start, int]]:
    """Return the parts of engines of a role that take requests, with their ports: as `start.sh` counts them."""
    found = []
    for node in sorted({start.node for start in starts}):
        here = [start for start in starts if start.node == node]
        found += [
            (start, PORT + index)
            for index, start in enumerate(here)
            if start.standing.pool.role is role and start.rank == 0
        ]
    return found


def _variable(used: Sequence[str], cluster: str) -> str:
    return "ADDRESSES" if len(used) == 1 else f"ADDRESSES_{used.index(cluster)}"


def _usage(used: Sequence[str]) -> str:
    words = [f'{_variable(used, cluster)}="{cluster}-node-0 {cluster}-node-1 ..."' for cluster in used]
    return " ".join(words)
