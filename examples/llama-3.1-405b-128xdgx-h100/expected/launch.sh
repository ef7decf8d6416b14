#!/usr/bin/env bash
# llama-3.1-405b on dgx-h100 (128 x 8 h100-sxm-80gb): pretraining. Written by shardwright.
#
# Target: Megatron-LM at megatron-core 0.19.2 (tag core_v0.19.2), with Transformer Engine and APEX.
# NVIDIA's PyTorch containers hold both.
# Without APEX add --no-gradient-accumulation-fusion, which takes more memory than planned.
# MEGATRON_LM_DIR: a checkout of that tag; it holds pretrain_gpt.py.
# Data: mock tokens and a null tokenizer. For real data, tokenise it with Megatron-LM's tools/preprocess_data.py,
# set workload.data_path and workload.tokenizer_model in the spec, and plan again.
# Any further Megatron-LM flag can be appended: --save DIR --save-interval 500 --load DIR
#
# Run this on each of the 128 nodes, with NODE_RANK 0 to 127 and
# MASTER_ADDR the name of node 0; or submit job.sbatch, which does the same under Slurm.

set -euo pipefail

: "${MEGATRON_LM_DIR:?set it to a checkout of Megatron-LM core_v0.19.2, which holds pretrain_gpt.py}"
export PYTHONPATH="$MEGATRON_LM_DIR${PYTHONPATH:+:$PYTHONPATH}"

: "${NODE_RANK:?set it to the number of this node, from 0}"
: "${MASTER_ADDR:?set it to the host name of node 0}"

export CUDA_DEVICE_MAX_CONNECTIONS=1

MEGATRON_ARGS=(
    # Architecture
    --transformer-impl transformer_engine
    --num-layers 126
    --hidden-size 16384
    --ffn-hidden-size 53248
    --num-attention-heads 128
    --group-query-attention
    --num-query-groups 8
    --kv-channels 128
    --swiglu
    --disable-bias-linear
    --normalization RMSNorm
    --norm-epsilon 1e-05
    --position-embedding-type rope
    --max-position-embeddings 131072
    --rotary-base 500000
    --rotary-percent 1.0
    --use-rope-scaling
    --rope-scaling-factor 8.0
    --attention-dropout 0.0
    --hidden-dropout 0.0
    --attention-backend flash
    # Vocabulary: 128256 rows, padded to 128256 (a multiple of 128 x tp)
    --tokenizer-type NullTokenizer
    --vocab-size 128256
    --make-vocab-size-divisible-by 128
    --untie-embeddings-and-output-weights
    # Precision
    --bf16
    --accumulate-allreduce-grads-in-fp32
    --cross-entropy-loss-fusion
    --cross-entropy-fusion-impl native
    # Optimizer (learning rate, decay and clipping are placeholders: no cost depends on them)
    --optimizer adam
    --adam-beta1 0.9
    --adam-beta2 0.95
    --adam-eps 1e-08
    --lr 3e-04
    --min-lr 3e-05
    --lr-decay-style cosine
    --lr-warmup-fraction 0.01
    --weight-decay 0.1
    --clip-grad 1.0
    # Batch: 512 micro-batches on each of 1 replicas; no token budget given: 100 iterations
    --seq-length 8192
    --micro-batch-size 1
    --global-batch-size 512
    --train-iters 100
    # Parallelism: tp 2, pp 64, vpp 1, cp 8, dp 1
    --tensor-model-parallel-size 2
    --sequence-parallel
    --pipeline-model-parallel-size 64
    --pipeline-model-parallel-layout 'Et|(t*2|)*62tL'
    --context-parallel-size 8
    --cp-comm-type a2a+p2p
    --hierarchical-context-parallel-sizes 4 2
    # Data parallelism
    --use-distributed-optimizer
    --num-distributed-optimizer-instances 2
    --overlap-grad-reduce
    --overlap-param-gather
    # Data
    --mock-data
    --no-create-attention-mask-in-dataloader
    # Run
    --ckpt-format torch_dist
    --distributed-timeout-minutes 60
    --eval-interval 1000
    --eval-iters 0
    --log-interval 1
    --log-throughput
)

exec torchrun \
    --nnodes 128 \
    --nproc-per-node 8 \
    --node-rank "$NODE_RANK" \
    --master-addr "$MASTER_ADDR" \
    --master-port "${MASTER_PORT:-29500}" \
    "$MEGATRON_LM_DIR/pretrain_gpt.py" "${MEGATRON_ARGS[@]}" "$@"
