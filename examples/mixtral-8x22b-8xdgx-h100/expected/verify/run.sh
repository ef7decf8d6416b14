#!/usr/bin/env bash
# mixtral-8x22b on dgx-h100 (8 x 8 h100-sxm-80gb): 10 steps of the best 3 layouts, one after the other.
# Written by shardwright.
#
# Each run has its folder, which holds its files and, after it, its log. What its launch.sh needs, this
# needs; further arguments go to every run. A failure stops nothing. A run that ended well or ran out of
# memory is not made again: remove its node-*.log and node-*.exit for that. VERIFY_LIMIT_SECONDS replaces
# the time limits.
# Run this on each of the 8 nodes, in a folder that all of them share, with NODE_RANK 0 to
# 7 and MASTER_ADDR the name of node 0; or submit job.sbatch, which does the same under Slurm.
# Then, wherever shardwright is installed: shardwright collect DIR, with DIR this folder.

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit

: "${NODE_RANK:?set it to the number of this node, from 0}"
: "${MASTER_ADDR:?set it to the host name of node 0}"
NODE="$NODE_RANK"
NODES=8
POLL_SECONDS="${VERIFY_POLL_SECONDS:-2}"
GRACE_SECONDS="${VERIFY_GRACE_SECONDS:-20}"
OUT_OF_MEMORY='(CUDA|HIP) (error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED|failure [0-9]* ?'"'"'out of memory'"'"''
RUNS=(
    # Best first, by prediction
    layout-0-50c5ce3a
    layout-1-fde7db55
    layout-2-6ea86173
)
LIMITS_SECONDS=(
    # Of each run
    1645
    1645
    1665
)

# Whether a run is not made again: it ran out of memory, or ended well on every node.
finished() {
    grep -qE "$OUT_OF_MEMORY" "$1"/node-*.log 2>/dev/null && return 0
    local node
    for ((node = 0; node < NODES; node++)); do
        [[ -f "$1/node-$node.exit" && "$(<"$1/node-$node.exit")" == 0 ]] || return 1
    done
}

# Whether a node has ended its part of a run since this script started here; with a third word, whether it failed.
touch "node-$NODE.start"
ended() {
    [[ "$1/node-$2.exit" -nt "node-$NODE.start" ]] && [[ -z "${3:-}" || "$(<"$1/node-$2.exit")" != 0 ]]
}

# Ends this node's part of a run soon after another node's has failed.
watch() {
    local node
    while sleep "$POLL_SECONDS"; do
        for ((node = 0; node < NODES; node++)); do
            if ((node != NODE)) && ended "$1" "$node" failed; then
                sleep "$GRACE_SECONDS"
                kill "$2"
                return
            fi
        done
    done
}

# Waits until every node has ended its part of a run.
wait_for_nodes() {
    local node deadline=$((SECONDS + $2))
    for ((node = 0; node < NODES; node++)); do
        until ((node == NODE)) || ended "$1" "$node" || ((SECONDS >= deadline)); do sleep "$POLL_SECONDS"; done
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
    watch "$run" "$pid" &
    watcher=$!
    wait "$pid"
    code=$?
    kill "$watcher" 2>/dev/null
    echo "$code" > "$run/node-$NODE.exit"
    case "$code" in
        0) echo "$run: ended well" ;;
        124) echo "$run: ended by its time limit" ;;
        137) echo "$run: killed, by its time limit or for the host's memory" ;;
        *) echo "$run: failed with exit code $code, see $run/node-$NODE.log" ;;
    esac
    wait_for_nodes "$run" $((limit + 300))
done
echo "Read the logs with: shardwright collect ${PWD@Q}"
