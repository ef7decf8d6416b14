#!/usr/bin/env bash
# Starts every engine that belongs on one node. Written by shardwright.
# Usage on each node: CLUSTER=name NODE_INDEX=0 ADDRESSES="node-0 node-1 ..." bash start.sh
# NODE_INDEX counts the nodes of the cluster from 0, and ADDRESSES names all of them in that order.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

read -r -a addresses <<< "${ADDRESSES:-127.0.0.1}"
trap 'kill $(jobs -p) 2> /dev/null || true' INT TERM
engines=()
case "${CLUSTER:-dgx-h200} ${NODE_INDEX:-0}" in
    'dgx-h200 0')
        PORT=8000 HEAD_ADDR="${addresses[0]}" NODE_RANK=0 NODE_ADDR="${addresses[0]}" VLLM_NIXL_SIDE_CHANNEL_PORT=5600 bash decode.sh &
        engines[$!]='decode on port 8000'
        ;;
    'dgx-h200 1')
        PORT=8000 HEAD_ADDR="${addresses[0]}" NODE_RANK=1 NODE_ADDR="${addresses[1]}" VLLM_NIXL_SIDE_CHANNEL_PORT=5600 bash decode.sh &
        engines[$!]='decode on port 8000'
        ;;
    'dgx-h200 2')
        PORT=8000 NODE_ADDR="${addresses[2]}" VLLM_NIXL_SIDE_CHANNEL_PORT=5600 bash prefill.sh &
        engines[$!]='prefill on port 8000'
        ;;
    'dgx-h200 3')
        PORT=8000 NODE_ADDR="${addresses[3]}" VLLM_NIXL_SIDE_CHANNEL_PORT=5600 bash prefill.sh &
        engines[$!]='prefill on port 8000'
        ;;
    *) echo "no such node: ${CLUSTER:-} ${NODE_INDEX:-}" >&2; exit 2 ;;
esac
status=0
while (( ${#engines[@]} )); do
    for engine in "${!engines[@]}"; do
        kill -0 "$engine" 2> /dev/null && continue
        ended=0
        wait "$engine" || ended=$?
        if (( ended )); then
            echo "${engines[$engine]} ended with status $ended" >&2
            status="$ended"
        fi
        unset "engines[$engine]"
    done
    if (( ${#engines[@]} )); then wait -n || true; fi
done
exit "$status"
