#!/usr/bin/env bash
# Starts one engine of pool prefill of meta-llama/Llama-3.1-70B-Instruct. Written by shardwright.
# Target: vLLM 0.32.0. The pool is 2 x 4 h100-sxm-80gb.
# Role: prompts. Its caches go to the decode pool; a router sends each request here first.
# Run it 2 times on a node: SLOT=0 PORT=8000 bash prefill.sh, SLOT=1 PORT=8001 bash prefill.sh
# A slot is 4 of a node's GPUs; engines of other pools there need their own.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# The address at which other nodes reach this one, for the transfer of caches.
: "${NODE_ADDR:?set it to the address of this node}"
export VLLM_NIXL_SIDE_CHANNEL_HOST="$NODE_ADDR"
export VLLM_NIXL_SIDE_CHANNEL_PORT="${VLLM_NIXL_SIDE_CHANNEL_PORT:-5600}"
# Recurrent states are passed on in this layout alone; models without any do not look at it.
export VLLM_SSM_CONV_STATE_LAYOUT=DS

NODE=()
first=$((${SLOT:-0} * 4))
CUDA_VISIBLE_DEVICES="$(seq -s, "$first" "$((first + 3))")"
export CUDA_VISIBLE_DEVICES

exec vllm serve --config prefill.yaml \
    "${NODE[@]}" \
    --port "${PORT:-8000}" "$@"
