#!/usr/bin/env bash
# Starts one engine of pool decode of deepseek-ai/DeepSeek-V3. Written by shardwright.
# Target: vLLM 0.32.0. The pool is 1 x 16 h200.
# Role: answers. It goes on from caches of the prefill pool.
# Run it on each of the 2 nodes of an engine: HEAD_ADDR=first-node NODE_RANK=0 bash decode.sh
# NODE_RANK counts from 0 to 1; requests go to the head.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# The address at which other nodes reach this one, for the transfer of caches.
: "${NODE_ADDR:?set it to the address of this node}"
export VLLM_NIXL_SIDE_CHANNEL_HOST="$NODE_ADDR"
export VLLM_NIXL_SIDE_CHANNEL_PORT="${VLLM_NIXL_SIDE_CHANNEL_PORT:-5600}"
# Recurrent states are passed on in this layout alone; models without any do not look at it.
export VLLM_SSM_CONV_STATE_LAYOUT=DS

: "${HEAD_ADDR:?set it to the address of the first node of the engine}"

NODE=(
    --data-parallel-size-local 8
    --data-parallel-address "$HEAD_ADDR"
    --data-parallel-rpc-port 13345
)
if (( ${NODE_RANK:-0} > 0 )); then
    NODE+=(--headless --data-parallel-start-rank "$((${NODE_RANK:-0} * 8))")
fi

exec vllm serve --config decode.yaml \
    "${NODE[@]}" \
    --port "${PORT:-8000}" "$@"
