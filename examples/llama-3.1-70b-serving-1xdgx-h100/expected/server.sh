#!/usr/bin/env bash
# Starts one engine of pool server of meta-llama/Llama-3.1-70B-Instruct. Written by shardwright.
# Target: vLLM 0.32.0. The pool is 2 x 4 h100-sxm-80gb.
# Run it 2 times on a node: SLOT=0 PORT=8000 bash server.sh, SLOT=1 PORT=8001 bash server.sh

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

NODE=()
first=$((${SLOT:-0} * 4))
CUDA_VISIBLE_DEVICES="$(seq -s, "$first" "$((first + 3))")"
export CUDA_VISIBLE_DEVICES

exec vllm serve --config server.yaml \
    "${NODE[@]}" \
    --port "${PORT:-8000}" "$@"
