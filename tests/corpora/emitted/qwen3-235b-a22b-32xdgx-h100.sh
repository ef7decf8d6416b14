#!/usr/bin/env bash
# qwen3-235b-a22b on dgx-h100 (32 x 8 h100-sxm-80gb): pretraining. Written by shardwright.
#
# Target: Megatron-LM at megatron-core 0.19.2 (tag core_v0.19.2), with Transformer Engine and APEX.
# NVIDIA's PyTorch containers hold both.
# Without APEX add --no-gradient-accumulation-fusion, which takes more memory than planned.
# MEGATRON_LM_DIR: a checkout of that tag; it holds pretrain_gpt.py.
# Data: mock tokens and a null tokenizer. For real data, tokenise it with Megatron-LM's tools/preprocess_data.py,
# set workload.data_path and workload.tokenizer_model in the spec, and plan again.
# Any further Megatron-LM flag can be appended: --save DIR --save-interval 500 --load DIR
#
# Run this on each of the 32 nodes, with NODE_RANK 0 to 31 and
# MASTER_ADDR the name of node 0; or submit job.sbatch, which does the same under Slurm.

set -euo pipefail

: "${MEGATRON_LM_DIR:?set it to a checkout of Megatron-LM core_v0.19.2, which holds pretrain_gpt.py}"
export PYTHONPATH="$MEGATRON_LM_DIR${PYTHONPATH:+:$PYTHONPATH}"

: "${NODE_RANK:?set it to the number of this node, from 0}"
: "${MASTER_ADDR:?set it to the host name of node 0}"

MEGATRON_ARGS=(
    # Architecture
    --transformer-impl transformer_engine
    --num-layers 94
    --hidden-size 4096
    --ffn-hidden-size 1536
    --num-attention-heads 64
    --group-query-attention
    --num-query-groups 4
    --kv-channels 128
    --qk-layernorm
    --swiglu
    --disable-bias-linear
    --normalization RMSNorm
    --norm-epsilon 1e-06
    --position-embedding-type rope
    --max-position-embeddings 40960
    --rotary-base 1000000
    --rotary-percent 1.0
    --attention-dropout 0.0
    --hidden-dropout 0.0
    --attention-backend flash
    # Experts (the coefficient of the balancing loss is a placeholder: no cost depends on it)
    --num-experts 128
    --moe-ffn-hidden-size 1536
    --moe-router-topk 8
    --moe-router-score-function softmax
    --moe-router-dtype fp32
    --moe-router-load-balancing-type aux_loss
    --moe-aux-loss-coeff 1e-2
    --moe-grouped-gemm
    --moe-permute-fusion
    --moe-token-dispatcher-type alltoall
    # Vocabulary: 151936 rows, padded to 151936 (a multiple of 128 x tp)
    --tokenizer-type NullTokenizer
    --vocab-size 151936
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
    # Batch: 16 micro-batches on each of 32 replicas; no token budget given: 100 iterations
    --seq-length 4096
    --micro-batch-size 2
    --global-batch-size 1024
    --train-iters 100
    # Parallelism: tp 1, pp 8, vpp 6, cp 1, dp 32; experts: etp 1, ep 8, edp 4
    --tensor-model-parallel-size 1
    --pipeline-model-parallel-size 8
    --pipeline-model-parallel-layout 'Et*2|(t*2|)*6t|(t*2|)*39tL'
    --context-parallel-size 1
    --expert-model-parallel-size 8
    --expert-tensor-parallel-size 1
    # Data parallelism
    --use-distributed-optimizer
    --num-distributed-optimizer-instances 2
    --overlap-grad-reduce
    --overlap-param-gather
    # Recompute: full
    --recompute-granularity full
    --recompute-method uniform
    --recompute-num-layers 1
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
    "$MEGATRON_LM_DIR/pretrain_gpt.py" "${MEGATRON_ARGS[@]}" "$@"
