"""Argument lists of Megatron-LM that are sound: what the corpus of mutations starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from planner.readers.flag_tables import Framework, chosen_version
from planner.readers.megatron_run import read_megatron_runs

FOLDER = Path(__file__).parent / "emitted"
EMITTED = (
    "llama-3.1-8b-1xdgx-h100",
    "llama-3.1-70b-8xdgx-h100",
    "llama-3.1-8b-1m-tokens-8xdgx-h100",
    "mixtral-8x22b-8xdgx-h100",
    "qwen3-235b-a22b-32xdgx-h100",
    "nemotron-h-56b-32xdgx-h100",
)
"""Scripts of every kind as they were once emitted, in worlds whose groups are made in seconds: plans change."""

NOT_BUILT = frozenset({"grouped-experts", "offload"})
"""Bases whose layers need kernels that nothing stands in for (DeepEP, FP8): judged up to their groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A sound run.

    Args:
        name: What it is.
        num_nodes: Nodes.
        gpus_per_node: GPUs of a node.
        environment: What the script exports.
        flags: Each flag with its values, in order.
    """

    name: str
    num_nodes: int
    gpus_per_node: int
    environment: Mapping[str, str]
    flags: Mapping[str, tuple[str, ...]]

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        return self.num_nodes * self.gpus_per_node


COMMON = """
    --transformer-impl transformer_engine --attention-backend flash --seq-length 4096 --max-position-embeddings 4096
    --bf16 --lr 3e-4 --min-lr 3e-5 --lr-decay-style cosine --lr-warmup-fraction 0.01 --weight-decay 0.1 --clip-grad 1.0
    --train-iters 100 --eval-iters 0 --log-interval 1 --mock-data --tokenizer-type NullTokenizer --vocab-size 32000
    --ckpt-format torch_dist
"""
LLAMA = """
    --swiglu --disable-bias-linear --normalization RMSNorm --position-embedding-type rope
    --untie-embeddings-and-output-weights --attention-dropout 0.0 --hidden-dropout 0.0
"""
ONE_CONNECTION = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}

WRITTEN: Mapping[str, tuple[int, Mapping[str, str], str]] = {
    "dense": (
        2,
        ONE_CONNECTION,
        """--num-layers 24 --hidden-size 2048 --num-attention-heads 16 --tensor-model-parallel-size 2
        --pipeline-model-parallel-size 2 --sequence-parallel --micro-batch-size 2 --global-batch-size 64
        --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather""",
    ),
    "grouped-query": (
        2,
        ONE_CONNECTION,
        LLAMA
        + """--num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32
        --group-query-attention --num-query-groups 8 --tensor-model-parallel-size 8 --sequence-parallel
        --micro-batch-size 1 --global-batch-size 128 --use-distributed-optimizer --save out --save-interval 100""",
    ),
    "experts": (
        4,
        ONE_CONNECTION,
        LLAMA
        + """--num-layers 16 --hidden-size 2048 --ffn-hidden-size 8192 --num-attention-heads 16 --num-experts 16
        --moe-ffn-hidden-size 1024 --moe-router-topk 4 --moe-router-load-balancing-type aux_loss
        --moe-aux-loss-coeff 1e-2 --moe-token-dispatcher-type alltoall --moe-grouped-gemm
        --moe-shared-expert-intermediate-size 1024 --moe-shared-expert-overlap --tensor-model-parallel-size 2
        --sequence-parallel --expert-model-parallel-size 8 --expert-tensor-parallel-size 2 --micro-batch-size 1
        --global-batch-size 64 --use-distributed-optimizer""",
    ),
    "grouped-experts": (
        2,
        {},
        LLAMA
        + """--num-layers 12 --hidden-size 1536 --ffn-hidden-size 4096 --num-attention-heads 12 --num-experts 64
        --moe-ffn-hidden-size 512 --moe-layer-freq ([0]*2+[1]*10) --moe-router-topk 6 --moe-router-num-groups 8
        --moe-router-group-topk 4 --moe-router-score-function sigmoid --moe-router-enable-expert-bias
        --moe-router-dtype fp32 --moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 1e-3
        --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend deepep --moe-grouped-gemm
        --expert-model-parallel-size 8 --pipeline-model-parallel-size 2 --micro-batch-size 1 --global-batch-size 32
        --use-distributed-optimizer --recompute-granularity selective --recompute-modules moe_act layernorm""",
    ),
    "context": (
        4,
        ONE_CONNECTION,
        LLAMA
        + """--num-layers 24 --hidden-size 3072 --ffn-hidden-size 8192 --num-attention-heads 24
        --group-query-attention --num-query-groups 8 --seq-length 32768 --max-position-embeddings 32768
        --tensor-model-parallel-size 2 --sequence-parallel --context-parallel-size 4 --cp-comm-type a2a+p2p
        --hierarchical-context-parallel-sizes 2 2 --micro-batch-size 1 --global-batch-size 16
        --use-distributed-optimizer --calculate-per-token-loss""",
    ),
    "interleaved": (
        4,
        ONE_CONNECTION,
        """--num-layers 32 --hidden-size 2560 --num-attention-heads 20 --tensor-model-parallel-size 4
        --pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 4 --sequence-parallel
        --micro-batch-size 1 --global-batch-size 32 --use-distributed-optimizer
        --microbatch-group-size-per-virtual-pipeline-stage 4""",
    ),
    "uneven": (
        4,
        {},
        LLAMA
        + """--num-layers 26 --hidden-size 2048 --ffn-hidden-size 5632 --num-attention-heads 16
        --pipeline-model-parallel-size 4 --num-virtual-stages-per-pipeline-rank 2
        --decoder-first-pipeline-num-layers 6 --decoder-last-pipeline-num-layers 4 --micro-batch-size 1
        --global-batch-size 64 --use-distributed-optimizer""",
    ),
    "embedding-counted": (
        2,
        {},
        LLAMA
        + """--num-layers 30 --hidden-size 2048 --ffn-hidden-size 5632 --num-attention-heads 16
        --pipeline-model-parallel-size 4 --account-for-embedding-in-pipeline-split
        --account-for-loss-in-pipeline-split --num-layers-per-virtual-pipeline-stage 4 --micro-batch-size 1
        --global-batch-size 32 --use-distributed-optimizer""",
    ),
    "layout": (
        2,
        {},
        LLAMA
        + """--num-layers 14 --hidden-size 2048 --ffn-hidden-size 5632 --num-attention-heads 16
        --pipeline-model-parallel-size 4 --pipeline-model-parallel-layout Et|(tt|)*5ttt|mL --mtp-num-layers 1
        --micro-batch-size 1 --global-batch-size 16 --use-distributed-optimizer""",
    ),
    "hybrid": (
        2,
        ONE_CONNECTION,
        """--hybrid-layer-pattern M-M-M*-|M-M-M*-|M-M-M*-|M-M-M*- --hidden-size 2048 --ffn-hidden-size 8192
        --num-attention-heads 16 --group-query-attention --num-query-groups 4 --mamba-num-heads 64
        --mamba-head-dim 64 --mamba-state-dim 128 --mamba-num-groups 8 --squared-relu --disable-bias-linear
        --normalization RMSNorm --position-embedding-type none --untie-embeddings-and-output-weights
        --tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 4 --micro-batch-size 1
        --global-batch-size 16 --use-distributed-optimizer""",
    ),
    "fsdp": (
        2,
        {"CUDA_DEVICE_MAX_CONNECTIONS": "8"},
        LLAMA
        + """--num-layers 24 --hidden-size 2048 --ffn-hidden-size 5632 --num-attention-heads 16 --use-megatron-fsdp
        --data-parallel-sharding-strategy optim_grads_params --no-gradient-accumulation-fusion
        --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --ckpt-format fsdp_dtensor
        --micro-batch-size 2 --global-batch-size 64 --init-model-with-meta-device""",
    ),
    "torch-fsdp": (
        1,
        {},
        LLAMA
        + """--num-layers 24 --hidden-size 2048 --ffn-hidden-size 5632 --num-attention-heads 16 --use-torch-fsdp2
        --no-gradient-accumulation-fusion --ckpt-format torch_dist --micro-batch-size 1 --global-batch-size 16""",
    ),
    "recompute": (
        2,
        ONE_CONNECTION,
        """--num-layers 40 --hidden-size 5120 --num-attention-heads 40 --tensor-model-parallel-size 4
        --pipeline-model-parallel-size 2 --sequence-parallel --recompute-granularity full --recompute-method block
        --recompute-num-layers 10 --micro-batch-size 4 --global-batch-size 64 --use-distributed-optimizer
        --use-precision-aware-optimizer --optimizer-cpu-offload --optimizer-offload-fraction 0.5""",
    ),
    "offload": (
        1,
        {"NVTE_CPU_OFFLOAD_V1": "1"},
        LLAMA
        + """--num-layers 12 --hidden-size 2048 --ffn-hidden-size 5632 --num-attention-heads 16
        --fine-grained-activation-offloading --offload-modules core_attn attn_proj --micro-batch-size 1
        --global-batch-size 8 --use-distributed-optimizer --fp8-format hybrid --fp8-recipe blockwise
        --fp8-param-gather""",
    ),
    "latent": (
        2,
        ONE_CONNECTION,
        LLAMA
        + """--num-layers 16 --hidden-size 2048 --ffn-hidden-size 8192 --num-attention-heads 16
        --multi-latent-attention --q-lora-rank 768 --kv-lora-rank 512 --qk-head-dim 128 --qk-pos-emb-head-dim 64
        --v-head-dim 128 --kv-channels 128 --num-experts 32 --moe-ffn-hidden-size 512 --moe-router-topk 4
        --moe-router-pre-softmax --moe-token-dispatcher-type alltoall --moe-grouped-gemm
        --moe-router-load-balancing-type none --moe-permute-fusion --tensor-model-parallel-size 2
        --sequence-parallel --pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2
        --expert-model-parallel-size 4 --expert-tensor-parallel-size 1 --overlap-moe-expert-parallel-comm
        --micro-batch-size 1 --global-batch-size 32 --use-distributed-optimizer""",
    ),
}
"""Nodes of eight GPUs, environment, arguments."""


def bases() -> tuple[Base, ...]:
    """Return every base, the written ones first."""
    written = (
        Base(
            name=name,
            num_nodes=nodes,
            gpus_per_node=8,
            environment=environment,
            flags=_flags((*COMMON.split(), *text.split())),
        )
        for name, (nodes, environment, text) in WRITTEN.items()
    )
    return (*written, *(_emitted(name) for name in EMITTED))


def _flags(words: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word
            found[name] = ()
        else:
            found[name] = (*found[name], word)
    return found


def _emitted(name: str) -> Base:
    path = FOLDER / f"{name}.sh"
    version = chosen_version(Framework.MEGATRON, None)
    run = read_megatron_runs(path.read_text(encoding="utf-8"), file=path.name, version=version)[0]
    assert run.num_nodes is not None
    assert run.gpus_per_node is not None
    return Base(
        name=name,
        num_nodes=run.num_nodes,
        gpus_per_node=run.gpus_per_node,
        environment={
            key: value for key, value in (run.environment or {}).items() if key.startswith(("CUDA_", "NVTE_"))
        },
        flags={use.spelled: use.texts for use in run.arguments.given},
    )
