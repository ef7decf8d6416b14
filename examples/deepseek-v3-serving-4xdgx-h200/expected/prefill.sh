#!/usr/bin/env bash
# Starts one engine of pool prefill of deepseek-ai/DeepSeek-V3. Written by shardwright.
# Target: vLLM 0.32.0. The pool is 2 x 8 h200.
# Role: prompts. Its caches go to the decode pool; a router sends each request here first.
# Run it on a node: bash prefill.sh

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# The address at which other nodes reach this one, for the transfer of caches.
: "${NODE_ADDR:?set it to the address of this node}"
export VLLM_NIXL_SIDE_CHANNEL_HOST="$NODE_ADDR"
export VLLM_NIXL_SIDE_CHANNEL_PORT="${VLLM_NIXL_SIDE_CHANNEL_PORT:-5600}"
# Recurrent states are passed on in this layout alone; models without any do not look at it.
export VLLM_SSM_CONV_STATE_LAYOUT=DS

NODE=()

exec vllm serve --config prefill.yaml \
    "${NODE[@]}" \
    --port "${PORT:-8000}" "$@"
