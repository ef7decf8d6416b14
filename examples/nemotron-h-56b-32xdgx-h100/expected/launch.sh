#!/usr/bin/env bash
# nemotron-h-56b on dgx-h100 (32 x 8 h100-sxm-80gb): pretraining. Written by shardwright.
#
# Target: Megatron-LM at megatron-core 0.19.2 (tag core_v0.19.2), with Transformer Engine and APEX.
# NVIDIA's PyTorch containers hold both.
# Without APEX add --no-gradient-accumulation-fusion, which takes more memory than planned.
# Its layers also need mamba-ssm, causal-conv1d.
# MEGATRON_LM_DIR: a checkout of that tag; it holds pretrain_hybrid.py.
# Data: mock tokens and a null tokenizer. For real data, tokenise it with Megatron-LM's tools/preprocess_data.py,
# set workload.data_path and workload.tokenizer_model in the spec, and plan again.
# Any further Megatron-LM flag can be appended: --save DIR --save-interval 500 --load DIR
#
# Run this on each of the 32 nodes, with NODE_RANK 0 to 31 and
# MASTER_ADDR the name of node 0; or submit job.sbatch, which does the same under Slurm.

set -euo pipefail

: "${MEGATRON_LM_DIR:?set it to a checkout of Megatron-LM core_v0.19.2, which holds pretrain_hybrid.py}"
export PYTHONPATH="$MEGATRON_LM_DIR${PYTHONPATH:+:$PYTHONPATH}"

: "${NODE_RANK:?set it to the number of this node, from 0}"
: "${MASTER_ADDR:?set it to the host name of node 0}"

export CUDA_DEVICE_MAX_CONNECTIONS=1

MEGATRON_ARGS=(
    # Architecture
    --transformer-impl transformer_engine
    --num-layers 118
    --hybrid-layer-pattern 'M-M-M-|M*-M-M-|M-M-M*-|M-M-M-M-|M*-M-M-M|-M-M*-M|-M-M-M-M|*-M-M-M-|M-M*-M-M-|M-M-M*-M|-M-M-M-M|*-M-M-M|-M-M*-M|-M-M-M-M|*-M-M-M|-M-M-'
    --hidden-size 8192
    --ffn-hidden-size 32768
    --num-attention-heads 64
    --group-query-attention
    --num-query-groups 8
    --kv-channels 128
    --mamba-num-heads 256
    --mamba-head-dim 64
    --mamba-state-dim 256
    --mamba-num-groups 8
    --squared-relu
    --disable-bias-linear
    --normalization RMSNorm
    --norm-epsilon 1e-05
    --position-embedding-type none
    --max-position-embeddings 8192
    --attention-dropout 0.0
    --hidden-dropout 0.0
    --attention-backend flash
    # Vocabulary: 131072 rows, padded to 131072 (a multiple of 128 x tp)
    --tokenizer-type NullTokenizer
    --vocab-size 131072
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
    # Batch: 192 micro-batches on each of 4 replicas; no token budget given: 100 iterations
    --seq-length 8192
    --micro-batch-size 1
    --global-batch-size 768
    --train-iters 100
    # Parallelism: tp 2, pp 8, vpp 2, cp 4, dp 4
    --tensor-model-parallel-size 2
    --pipeline-model-parallel-size 8
    --context-parallel-size 4
    --cp-comm-type a2a
    # Data parallelism
    --use-distributed-optimizer
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
    --nnodes 32 \
    --nproc-per-node 8 \
    --node-rank "$NODE_RANK" \
    --master-addr "$MASTER_ADDR" \
    --master-port "${MASTER_PORT:-29500}" \
    "$MEGATRON_LM_DIR/pretrain_hybrid.py" "${MEGATRON_ARGS[@]}" "$@"
