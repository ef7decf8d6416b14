#!/usr/bin/env bash
# Measures deepseek-ai/DeepSeek-V3 at the load that was planned, one address at a time. Written by shardwright.
# Usage: POOL=name HOST=address bash bench.sh; PORT where it is another

set -euo pipefail

case "${POOL:-split}" in
    split) LOAD=(--max-concurrency 729 --num-prompts 7290) DOOR=9000 ;;
    *) echo "no such pool: $POOL" >&2; exit 2 ;;
esac

exec vllm bench serve \
    --model deepseek-ai/DeepSeek-V3 \
    --host "${HOST:-127.0.0.1}" --port "${PORT:-$DOOR}" \
    --dataset-name random --ignore-eos \
    --random-input-len 4000 --random-output-len 1000 \
    --percentile-metrics ttft,tpot,itl,e2el \
    --metric-percentiles 50,90,99 \
    --goodput ttft:2000 tpot:40 \
    "${LOAD[@]}" "$@"
