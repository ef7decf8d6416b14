"""Launch files for vLLM: of each pool a configuration file and a script that starts one engine, node by node.

The configuration holds what every node is told, the script what differs from node to node. An engine within a node
starts by itself; one over several nodes is started on each with NODE_RANK and the head's address, by vLLM's own
multiprocessing or by Ray (`vllm/entrypoints/cli/serve.py`, `vllm/engine/arg_utils.py` of 0.32.0):

- ranks within a node: data-parallel ranks count through the nodes, and all nodes but the head start without a door;
- ranks over nodes: `--nnodes` and `--node-rank`.
"""

import json
from collections.abc import Mapping

from planner.emit.shell import comment, quote
from planner.emit.vllm_arguments import Value, options
from planner.serving_plans.layout import Executor, Pool, Role, ServingLayout

VERSION = "0.32.0"
PORT = 8000
RPC_PORT = 13345
MASTER_PORT = 29501
RAY_PORT = 6379
SIDE_CHANNEL_PORT = 5600

ROLE_NOTES = {
    Role.BOTH: "",
    Role.PREFILL: "Role: prompts. Its caches go to the decode pool; a router sends each request here first.",
    Role.DECODE: "Role: answers. It goes on from caches of the prefill pool.",
}


def config_name(pool: Pool) -> str:
    """Return the name of a pool's configuration file."""
    return f"{pool.name}.yaml"


def script_name(pool: Pool) -> str:
    """Return the name of a pool's script."""
    return f"{pool.name}.sh"


def emit_vllm(layout: ServingLayout) -> Mapping[str, str]:
    """Return the text of every file that starts the pools, by name."""
    files: dict[str, str] = {}
    for pool in layout.pools:
        files[config_name(pool)] = _config(layout, pool)
        files[script_name(pool)] = _script(layout, pool)
    return files


def _config(layout: ServingLayout, pool: Pool) -> str:
    lines = [
        comment(f"{layout.model}: pool {pool.name}, {pool.replicas} x {pool.shape.num_gpus} {pool.gpu}."),
        comment(f"For vLLM {VERSION}: vllm serve --config {config_name(pool)}"),
        f"model: {_scalar(layout.model)}",
    ]
    for name, value in options(layout, pool).items():
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines.extend(f"  {key}: {_scalar(inner)}" for key, inner in value.items())
        else:
            lines.append(f"{name}: {_scalar(value)}")
    return "\n".join(lines) + "\n"


def _scalar(value: Value) -> str:
    """Return a value as YAML: JSON's way of writing a number, a truth value or a text is one of YAML's."""
    return json.dumps(value, ensure_ascii=False)


def _script(layout: ServingLayout, pool: Pool) -> str:
    nodes = pool.nodes_per_replica
    lines = [
        "#!/usr/bin/env bash",
        comment(f"Starts one engine of pool {pool.name} of {layout.model}. Written by shardwright."),
        comment(f"Target: vLLM {VERSION}. The pool is {pool.replicas} x {pool.shape.num_gpus} {pool.gpu}."),
    ]
    lines += [comment(note) for note in (ROLE_NOTES[pool.role],) if note]
    lines += [comment(note) for note in _usage(pool, nodes, alone=len(layout.pools) == 1)]
    lines += ["", "set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")"', ""]
    if layout.connector is not None:
        lines += [
            comment("The address at which other nodes reach this one, for the transfer of caches."),
            ': "${NODE_ADDR:?set it to the address of this node}"',
            'export VLLM_NIXL_SIDE_CHANNEL_HOST="$NODE_ADDR"',
            f'export VLLM_NIXL_SIDE_CHANNEL_PORT="${{VLLM_NIXL_SIDE_CHANNEL_PORT:-{SIDE_CHANNEL_PORT}}}"',
            comment("Recurrent states are passed on in this layout alone; models without any do not look at it."),
            "export VLLM_SSM_CONV_STATE_LAYOUT=DS",
            "",
        ]
    lines += _within_a_node(pool) if nodes == 1 else _over_nodes(layout, pool)
    lines += [
        "",
        f"exec vllm serve --config {quote(config_name(pool), what='the name of the configuration')} \\",
        '    "${NODE[@]}" \\',
        f'    --port "${{PORT:-{PORT}}}" "$@"',
    ]
    return "\n".join(lines) + "\n"


def _usage(pool: Pool, nodes: int, *, alone: bool) -> tuple[str, ...]:
    script = script_name(pool)
    if nodes > 1:
        return (
            f"Run it on each of the {nodes} nodes of an engine: HEAD_ADDR=first-node NODE_RANK=0 bash {script}",
            f"NODE_RANK counts from 0 to {nodes - 1}; requests go to the head.",
        )
    slots = pool.gpus_per_node // pool.shape.num_gpus
    if slots == 1:
        return (f"Run it on a node: bash {script}",)
    if pool.replicas > slots:
        times = f"{pool.replicas} times, {slots} on a node"
    else:
        times = f"{pool.replicas} times on a node" if pool.replicas > 1 else "on a node"
    shown = [f"SLOT={slot} PORT={PORT + slot} bash {script}" for slot in range(min(2, pool.replicas))]
    more = " ..." if pool.replicas > len(shown) else ""
    usage = f"Run it {times}: {', '.join(shown)}{more}"
    if alone:
        return (usage,)
    return (usage, f"A slot is {pool.shape.num_gpus} of a node's GPUs; engines of other pools there need their own.")


def _within_a_node(pool: Pool) -> list[str]:
    lines = ["NODE=()"]
    used = pool.shape.num_gpus
    if used < pool.gpus_per_node:
        lines += [
            f"first=$((${{SLOT:-0}} * {used}))",
            f'CUDA_VISIBLE_DEVICES="$(seq -s, "$first" "$((first + {used - 1}))")"',
            "export CUDA_VISIBLE_DEVICES",
        ]
    return lines


def _over_nodes(layout: ServingLayout, pool: Pool) -> list[str]:
    lines = [': "${HEAD_ADDR:?set it to the address of the first node of the engine}"', ""]
    if layout.executor is Executor.RAY:
        return [*lines, *_ray(pool)]
    if pool.ranks_per_node:
        local = pool.ranks_per_node
        return [
            *lines,
            "NODE=(",
            f"    --data-parallel-size-local {local}",
            '    --data-parallel-address "$HEAD_ADDR"',
            f"    --data-parallel-rpc-port {RPC_PORT}",
            ")",
            "if (( ${NODE_RANK:-0} > 0 )); then",
            f'    NODE+=(--headless --data-parallel-start-rank "$((${{NODE_RANK:-0}} * {local}))")',
            "fi",
        ]
    return [
        *lines,
        "NODE=(",
        f"    --nnodes {pool.nodes_per_replica}",
        '    --node-rank "${NODE_RANK:-0}"',
        '    --master-addr "$HEAD_ADDR"',
        f"    --master-port {MASTER_PORT}",
        ")",
        "if (( ${NODE_RANK:-0} > 0 )); then",
        "    NODE+=(--headless)",
        "fi",
    ]


def _ray(pool: Pool) -> list[str]:
    data_parallel = pool.shape.dp > 1
    lines = [
        comment("Ray joins the nodes; the engine starts on the head once all are there."),
        "if (( ${NODE_RANK:-0} > 0 )); then",
        f'    exec ray start --address "$HEAD_ADDR:{RAY_PORT}" --block',
        "fi",
        f"ray start --head --port {RAY_PORT}",
        "alive() { ray list nodes --filter state=ALIVE --format json | grep -c node_id; }",
        f"until (( $(alive) >= {pool.nodes_per_replica} )); do",
        "    sleep 2",
        "done",
        "NODE=(",
        "    --distributed-executor-backend ray",
    ]
    if data_parallel:
        lines.append("    --data-parallel-backend ray")
        if pool.ranks_per_node:
            lines += [
                f"    --data-parallel-size-local {pool.ranks_per_node}",
                '    --data-parallel-address "$HEAD_ADDR"',
            ]
    return [*lines, ")"]
