#!/usr/bin/env bash
# Starts one engine of pool decode of meta-llama/Llama-3.1-70B-Instruct. Written by shardwright.
# Target: vLLM 0.32.0. The pool is 2 x 8 h100-sxm-80gb.
# Role: answers. It goes on from caches of the prefill pool.
# Run it on a node: bash decode.sh

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# The address at which other nodes reach this one, for the transfer of caches.
: "${NODE_ADDR:?set it to the address of this node}"
export VLLM_NIXL_SIDE_CHANNEL_HOST="$NODE_ADDR"
export VLLM_NIXL_SIDE_CHANNEL_PORT="${VLLM_NIXL_SIDE_CHANNEL_PORT:-5600}"
# Recurrent states are passed on in this layout alone; models without any do not look at it.
export VLLM_SSM_CONV_STATE_LAYOUT=DS

NODE=()

exec vllm serve --config decode.yaml \
    "${NODE[@]}" \
    --port "${PORT:-8000}" "$@"
