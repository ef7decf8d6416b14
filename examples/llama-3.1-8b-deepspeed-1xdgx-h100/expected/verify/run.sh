#!/usr/bin/env bash
# llama-3.1-8b on dgx-h100 (1 x 8 h100-sxm-80gb): 10 steps of the best 3 layouts, one after the other.
# Written by shardwright.
#
# Each run has its folder, which holds its files and, after it, its log. What its launch.sh needs, this
# needs; further arguments go to every run. A failure stops nothing. A run that ended well or ran out of
# memory is not made again: remove its node-*.log and node-*.exit for that. VERIFY_LIMIT_SECONDS replaces
# the time limits.
# Run this on the node: bash run.sh
# Then, wherever shardwright is installed: shardwright collect DIR, with DIR this folder.

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit

NODE=0
NODES=1
OUT_OF_MEMORY='(CUDA|HIP) (error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED|failure [0-9]* ?'"'"'out of memory'"'"''
RUNS=(
    # Best first, by prediction
    layout-0-3e7f079f
    layout-1-354cad4b
    layout-2-a8a42834
)
LIMITS_SECONDS=(
    # Of each run
    1485
    1489
    1491
)

# Whether a run is not made again: it ran out of memory, or ended well on every node.
finished() {
    grep -qE "$OUT_OF_MEMORY" "$1"/node-*.log 2>/dev/null && return 0
    local node
    for ((node = 0; node < NODES; node++)); do
        [[ -f "$1/node-$node.exit" && "$(<"$1/node-$node.exit")" == 0 ]] || return 1
    done
}

trap 'kill $(jobs -p) 2>/dev/null; wait; exit 130' INT TERM

for index in "${!RUNS[@]}"; do
    run="${RUNS[index]}"
    limit="${VERIFY_LIMIT_SECONDS:-${LIMITS_SECONDS[index]}}"
    if finished "$run"; then
        echo "$run: made before"
        continue
    fi
    rm -f "$run/node-$NODE.exit"
    echo "$run: started, at most $limit seconds"
    timeout --kill-after=120 "$limit" bash "$run/launch.sh" "$@" > "$run/node-$NODE.log" 2>&1 &
    pid=$!
    wait "$pid"
    code=$?
    echo "$code" > "$run/node-$NODE.exit"
    case "$code" in
        0) echo "$run: ended well" ;;
        124) echo "$run: ended by its time limit" ;;
        137) echo "$run: killed, by its time limit or for the host's memory" ;;
        *) echo "$run: failed with exit code $code, see $run/node-$NODE.log" ;;
    esac
done
echo "Read the logs with: shardwright collect ${PWD@Q}"
