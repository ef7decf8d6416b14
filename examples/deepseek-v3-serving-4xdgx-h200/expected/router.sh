#!/usr/bin/env bash
# Starts the router in front of the prefill and decode engines. Written by shardwright.
# Target: vllm-router 0.1.17 (pip install vllm-router).
# Usage, once the engines answer: ADDRESSES="dgx-h200-node-0 dgx-h200-node-1 ..." bash router.sh
# Addresses name all nodes of a cluster, in the order of their NODE_INDEX.

set -euo pipefail

read -r -a nodes_0 <<< "${ADDRESSES:-127.0.0.1}"

exec vllm-router --vllm-pd-disaggregation --kv-connector nixl \
    --prefill-policy round_robin \
    --prefill "http://${nodes_0[2]}:8000" \
    --prefill "http://${nodes_0[3]}:8000" \
    --decode-policy round_robin \
    --decode "http://${nodes_0[0]}:8000" \
    --host 0.0.0.0 --port "${PORT:-9000}" "$@"
