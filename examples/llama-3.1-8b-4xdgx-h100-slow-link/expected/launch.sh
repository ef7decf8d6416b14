#!/usr/bin/env bash
# llama-3.1-8b on dgx-h100 (4 x 8 h100-sxm-80gb): pretraining. Written by shardwright.
#
# Target: Megatron-LM at megatron-core 0.19.2 (tag core_v0.19.2), with Transformer Engine and APEX.
# NVIDIA's PyTorch containers hold both.
# Without APEX add --no-gradient-accumulation-fusion, which takes more memory than planned.
# MEGATRON_LM_DIR: a checkout of that tag; it holds pretrain_gpt.py.
# Data: mock tokens and a null tokenizer. For real data, tokenise it with Megatron-LM's tools/preprocess_data.py,
# set workload.data_path and workload.tokenizer_model in the spec, and plan again.
# Any further Megatron-LM flag can be appended: --save DIR --save-interval 500 --load DIR
#
# Run this on each of the 4 nodes, with NODE_RANK its number in the cluster file;
# NODE_ORDER says which of these nodes takes which place in the mesh.
# MASTER_ADDR is the host at place 0, and needs not be set.

set -euo pipefail

: "${MEGATRON_LM_DIR:?set it to a checkout of Megatron-LM core_v0.19.2, which holds pretrain_gpt.py}"
export PYTHONPATH="$MEGATRON_LM_DIR${PYTHONPATH:+:$PYTHONPATH}"

: "${NODE_RANK:?set it to the number of this node in the cluster file, from 0}"
HOSTS=(gpu01 gpu02 gpu03 gpu04)
NODE_ORDER=(0 2 1 3)
for place in "${!NODE_ORDER[@]}"; do
    PLACE_OF_NODE[NODE_ORDER[place]]=$place
done
PLACE="${PLACE_OF_NODE[NODE_RANK]:?there is no such node as NODE_RANK}"
MASTER_ADDR="${HOSTS[NODE_ORDER[0]]:?NODE_HOSTS does not name every node}"

MEGATRON_ARGS=(
    # Architecture
    --transformer-impl transformer_engine
    --num-layers 32
    --hidden-size 4096
    --ffn-hidden-size 14336
    --num-attention-heads 32
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
    # Batch: 16 micro-batches on each of 16 replicas; no token budget given: 100 iterations
    --seq-length 8192
    --micro-batch-size 1
    --global-batch-size 256
    --train-iters 100
    # Parallelism: tp 1, pp 2, vpp 4, cp 1, dp 16
    --tensor-model-parallel-size 1
    --pipeline-model-parallel-size 2
    --pipeline-model-parallel-layout 'Et*2|t*3|t*4|(t*5|)*3t*6|t*2L'
    --context-parallel-size 1
    --use-tp-pp-dp-mapping
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
    --nnodes 4 \
    --nproc-per-node 8 \
    --node-rank "$PLACE" \
    --master-addr "$MASTER_ADDR" \
    --master-port "${MASTER_PORT:-29500}" \
    "$MEGATRON_LM_DIR/pretrain_gpt.py" "${MEGATRON_ARGS[@]}" "$@"
