#!/usr/bin/env bash
# Measures meta-llama/Llama-3.1-70B-Instruct at the load that was planned, one address at a time. Written by shardwright.
# Usage: POOL=name HOST=address bash bench.sh; PORT where it is another
# The input has its mean length: random prompts have no lognormal lengths.

set -euo pipefail

case "${POOL:-server}" in
    server) LOAD=(--request-rate 6.509 --num-prompts 560) DOOR=8000 ;;
    *) echo "no such pool: $POOL" >&2; exit 2 ;;
esac

exec vllm bench serve \
    --model meta-llama/Llama-3.1-70B-Instruct \
    --host "${HOST:-127.0.0.1}" --port "${PORT:-$DOOR}" \
    --dataset-name random --ignore-eos \
    --random-input-len 1200 --random-output-len 275 \
    --random-range-ratio '{"input": 0, "output": 0.8182}' \
    --percentile-metrics ttft,tpot,itl,e2el \
    --metric-percentiles 50,90,99 \
    --goodput ttft:1000 tpot:50 \
    "${LOAD[@]}" "$@"
