#!/usr/bin/env bash
# llama-3.1-8b on dgx-h100 (1 x 8 h100-sxm-80gb): pretraining. Written by shardwright.
#
# Target: DeepSpeed 0.19.8, checked with torch 2.13.0.
# ds_config.json is DeepSpeed's part of the plan; what it cannot say is told to train_deepspeed.py below.
# Data: mock tokens. For real data append --data FILE, a file of token numbers as --data-type says, or set
# workload.data_path in the spec and plan again.
# Training: the learning rate in ds_config.json is constant, a placeholder; sequences are read in the order of the
# files. Both are yours to change, and no plan depends on them.
# Any further argument of train_deepspeed.py can be appended: --save DIR --save-interval 500 --load DIR
#
# Run this on the node: bash launch.sh

set -euo pipefail

TRAIN_ARGS=(
    # Layout
    --layers-per-stage 32
    --recompute none
    # Model
    --seq-len 8192
    --padded-vocab-size 128256
    --attention flash
    --attention-dropout 0.0
    --hidden-dropout 0.0
    # Run
    --data-type uint32
    --steps 100
    --seed 1234
)

exec torchrun \
    --nnodes 1 \
    --nproc-per-node 8 \
    --node-rank "0" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" \
    --master-port "${MASTER_PORT:-29500}" \
    "$(dirname "${BASH_SOURCE[0]}")/train_deepspeed.py" \
    --deepspeed-config "$(dirname "${BASH_SOURCE[0]}")/ds_config.json" \
    --model-facts "$(dirname "${BASH_SOURCE[0]}")/model.json" \
    "${TRAIN_ARGS[@]}" "$@"
