#!/usr/bin/env bash
# Starts one engine of pool server of deepseek-ai/DeepSeek-V3. Written by shardwright.
# Target: vLLM 0.32.0. The pool is 1 x 32 h200-sxm-141gb.
# Run it on each of the 4 nodes of an engine: HEAD_ADDR=first-node NODE_RANK=0 bash server.sh
# NODE_RANK counts from 0 to 3; requests go to the head.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

: "${HEAD_ADDR:?set it to the address of the first node of the engine}"

NODE=(
    --data-parallel-size-local 8
    --data-parallel-address "$HEAD_ADDR"
    --data-parallel-rpc-port 13345
)
if (( ${NODE_RANK:-0} > 0 )); then
    NODE+=(--headless --data-parallel-start-rank "$((${NODE_RANK:-0} * 8))")
fi

exec vllm serve --config server.yaml \
    "${NODE[@]}" \
    --port "${PORT:-8000}" "$@"
