#!/usr/bin/env bash
# Starts every engine that belongs on one node. Written by shardwright.
# Usage on each node: CLUSTER=name NODE_INDEX=0 ADDRESSES="node-0 node-1 ..." bash start.sh
# NODE_INDEX counts the nodes of the cluster from 0, and ADDRESSES names all of them in that order.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

read -r -a addresses <<< "${ADDRESSES:-127.0.0.1}"
trap 'kill $(jobs -p) 2> /dev/null || true' INT TERM
engines=()
case "${CLUSTER:-dgx-h100} ${NODE_INDEX:-0}" in
    'dgx-h100 0')
        PORT=8000 SLOT=0 bash server.sh &
        engines[$!]='server on port 8000'
        PORT=8001 SLOT=1 bash server.sh &
        engines[$!]='server on port 8001'
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
