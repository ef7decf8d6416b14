"""For each Megatron-LM rule a script that breaks it and nothing else."""

import shlex
from collections.abc import Mapping

SOUND: Mapping[str, str | None] = {
    "--num-layers": "32",
    "--hidden-size": "4096",
    "--num-attention-heads": "32",
    "--seq-length": "4096",
    "--max-position-embeddings": "4096",
    "--tensor-model-parallel-size": "2",
    "--pipeline-model-parallel-size": "2",
    "--sequence-parallel": None,
    "--use-distributed-optimizer": None,
    "--bf16": None,
    "--micro-batch-size": "1",
    "--global-batch-size": "64",
    "--train-iters": "100",
    "--lr": "3e-4",
    "--mock-data": None,
    "--tokenizer-type": "NullTokenizer",
    "--vocab-size": "32000",
}
"""A run on 16 GPUs that breaks nothing."""

ONE_CONNECTION = "export CUDA_DEVICE_MAX_CONNECTIONS=1"
EXPERTS = "--num-experts 8 --expert-model-parallel-size 4 --disable-bias-linear"
ALONE = "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 1"
HYBRID = "--squared-relu --disable-bias-linear --mamba-num-heads 64"
FSDP = "--use-megatron-fsdp --ckpt-format fsdp_dtensor"
TORCH_FSDP = "--use-torch-fsdp2 --untie-embeddings-and-output-weights --no-gradient-accumulation-fusion"
OFFLOAD = "--fine-grained-activation-offloading"
RL = "--perform-rl-step --global-batch-size 32"
OVERLAP = "--overlap-moe-expert-parallel-comm --moe-token-dispatcher-type alltoall"


def script(
    *drop: str, nodes: int = 2, export: str = "export CUDA_DEVICE_MAX_CONNECTIONS=1", **changed: str | None
) -> str:
    """Return the sound script with flags dropped and changed; `tensor_model_parallel_size="3"` names a flag."""
    flags = {name: value for name, value in SOUND.items() if name not in drop}
    flags |= {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return _written(flags, nodes=nodes, export=export)


def having(text: str, *drop: str, nodes: int = 2, export: str = ONE_CONNECTION) -> str:
    """Return the sound script with more or other flags, written as on a command line; later ones count."""
    flags = {name: value for name, value in SOUND.items() if name not in drop}
    name = ""
    for word in shlex.split(text):
        if word.startswith("--"):
            name, flags[word] = word, None
        else:
            before = flags[name]
            flags[name] = shlex.quote(word) if before is None else f"{before} {shlex.quote(word)}"
    return _written(flags, nodes=nodes, export=export)


def _written(flags: Mapping[str, str | None], *, nodes: int, export: str) -> str:
    words = [f"    {name}" if value is None else f"    {name} {value}" for name, value in flags.items()]
    arguments = "\n".join(words)
    return (
        f"#!/usr/bin/env bash\n{export}\nARGS=(\n{arguments}\n)\n"
        f'torchrun --nnodes {nodes} --nproc-per-node 8 pretrain_gpt.py "${{ARGS[@]}}"\n'
    )


SPELLING: Mapping[str, str] = {
    "S001": script(tensor_model_paralel_size="2"),
    "S011": script(use_legacy_models=None),
    "S004": script(weight_decay=None),
    "S005": script(bf16="true"),
    "S006": script(num_layers="thirty"),
    "S007": script(recompute_granularity="partial"),
    "S009": script(disable_msc=None),
    "S008": script().replace("--bf16", "--bf16 --micro-batch-size 2"),
}

MESH: Mapping[str, str] = {
    "MLM100": script(make_vocab_size_divisible_by="0"),
    "MLM101": script(tensor_model_parallel_size="8", pipeline_model_parallel_size="4"),
    "MLM102": having("--num-experts 16 --expert-model-parallel-size 8 --disable-bias-linear"),
    "MLM103": script(num_attention_heads="31", kv_channels="128"),
    "MLM104": having("--tensor-model-parallel-size 4 --group-query-attention --num-query-groups 6"),
    "MLM105": having("--tensor-model-parallel-size 4 --group-query-attention --num-query-groups 2"),
    "MLM106": script(ffn_hidden_size="11007"),
    "MLM107": script(num_attention_heads="30"),
    "MLM108": script(padded_vocab_size="32001"),
    "MLM109": script("--max-position-embeddings"),
    "MLM110": having(EXPERTS, "--sequence-parallel"),
    "MLM111": script(tensor_model_parallel_size="1"),
    "MLM112": script(tensor_model_parallel_size="16", pipeline_model_parallel_size="1"),
    "MLM113": script(num_distributed_optimizer_instances="3"),
    "MLM114": having(f"{EXPERTS} --num-distributed-optimizer-instances 2"),
    "MLM115": script(tensor_parallel_num_weight_shards="3"),
    "MLM116": having(f"{EXPERTS} --use-tp-pp-dp-mapping"),
    "MLM117": having("--tensor-parallel-num-weight-shards 4 --ddp-average-in-collective"),
    "MLM118": having("--tensor-parallel-num-weight-shards 4 --num-distributed-optimizer-instances 2"),
}

PIPELINE: Mapping[str, str] = {
    "MLM201": script(num_layers="31"),
    "MLM202": having("--num-layers-per-virtual-pipeline-stage 4 --num-virtual-stages-per-pipeline-rank 4"),
    "MLM203": script(num_virtual_stages_per_pipeline_rank="3"),
    "MLM204": having("--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 7"),
    "MLM205": having("--pipeline-model-parallel-layout 'Et*16|t*16|L'"),
    "MLM206": having("--pipeline-model-parallel-layout 'Et*16|t*15L'"),
    "MLM207": having("--pipeline-model-parallel-layout 'Et*16|t*16mL'"),
    "MLM208": having("--pipeline-model-parallel-size 1 --num-layers-per-virtual-pipeline-stage 4"),
    "MLM209": having("--num-layers-per-virtual-pipeline-stage 4 --no-overlap-p2p-communication"),
    "MLM210": having("--num-layers-per-virtual-pipeline-stage 4 --global-batch-size 12"),
    "MLM211": having(
        "--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 8 "
        "--num-layers-per-virtual-pipeline-stage 4"
    ),
    "MLM212": having(
        "--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 8 "
        "--account-for-embedding-in-pipeline-split"
    ),
    "MLM213": having("--pipeline-model-parallel-layout 'Et*16|t*16L' --account-for-loss-in-pipeline-split"),
    "MLM214": having("--defer-embedding-wgrad-compute --wgrad-deferral-limit -1"),
    "MLM215": having("--overlap-p2p-communication-warmup-flush"),
    "MLM216": having("--mtp-num-layers 1"),
}

LISTS: Mapping[str, str] = {
    "MLM220": having(f"{HYBRID} --hybrid-layer-pattern MX*-", "--num-layers"),
    "MLM221": having(f"{HYBRID} --hybrid-layer-pattern 'M*|M-|M-'", "--num-layers"),
    "MLM222": having(f"{HYBRID} --hybrid-layer-pattern M*-", "--num-layers"),
    "MLM223": having(f"{HYBRID} --hybrid-layer-pattern 'M*|M-'"),
    "MLM224": having(f"{HYBRID} --hybrid-layer-pattern 'M*|M-' --mamba-num-heads 60", "--num-layers"),
    "MLM225": having(f"{EXPERTS} --moe-layer-freq '[0]*1+[1]*30'"),
    "MLM226": having(
        "--experimental-attention-variant gated_delta_net --linear-attention-freq 4 --linear-num-value-heads 24"
    ),
    "MLM227": having(f"{HYBRID} --hybrid-layer-pattern 'M*|M-' --account-for-loss-in-pipeline-split", "--num-layers"),
    "MLM228": having(f"{HYBRID} --hybrid-layer-pattern 'M*|M-' --decoder-first-pipeline-num-layers 2", "--num-layers"),
    "MLM229": having(f"{HYBRID} --hybrid-layer-pattern 'M*|M-' --hybrid-override-pattern M*M-", "--num-layers"),
    "MLM230": having("--experimental-attention-variant gated_delta_net"),
    "MLM231": having(
        "--experimental-attention-variant gated_delta_net --linear-attention-freq 4 --context-parallel-size 2"
    ),
}

IN_EXPERTS: Mapping[str, str] = {
    "MLM301": having("--num-experts 6 --expert-model-parallel-size 4 --disable-bias-linear"),
    "MLM302": having(f"{EXPERTS} --moe-router-topk 9"),
    "MLM303": having(f"{EXPERTS} --moe-router-group-topk 2 --moe-router-num-groups 3"),
    "MLM304": having(f"{EXPERTS} --moe-router-load-balancing-type aux_loss seq_aux_loss --moe-aux-loss-coeff 0.1"),
    "MLM305": script(expert_model_parallel_size="4"),
    "MLM306": script(moe_ffn_hidden_size="1024"),
    "MLM307": having("--num-experts 8 --expert-model-parallel-size 4"),
    "MLM308": having(f"{EXPERTS} --moe-router-enable-expert-bias"),
    "MLM309": having(f"{EXPERTS} --moe-router-topk 1"),
    "MLM310": having(f"{EXPERTS} --moe-enable-deepep"),
    "MLM311": having(f"{EXPERTS} --moe-flex-dispatcher-backend ncclep"),
    "MLM312": having(
        f"{EXPERTS} --moe-token-dispatcher-type flex --moe-pad-expert-input-to-capacity "
        "--moe-expert-capacity-factor 1.5"
    ),
    "MLM313": having(f"{EXPERTS} --moe-shared-expert-overlap --moe-shared-expert-intermediate-size 1024"),
    "MLM314": having(f"{EXPERTS} --moe-shared-expert-intermediate-size 0"),
    "MLM315": having(f"{EXPERTS} --moe-expert-capacity-factor 1.5 --moe-router-load-balancing-type sinkhorn"),
    "MLM316": having(f"{EXPERTS} --moe-pad-expert-input-to-capacity"),
    "MLM317": having(f"{EXPERTS} --moe-router-padding-for-quantization --moe-token-dispatcher-type alltoall"),
    "MLM318": having("--num-experts 8 --expert-tensor-parallel-size 1 --moe-single-grouped-bias"),
    "MLM319": having(f"{EXPERTS} --moe-grouped-gemm --moe-single-grouped-weight"),
    "MLM320": having(f"{EXPERTS} --moe-grouped-gemm --moe-single-grouped-bias"),
    "MLM321": having(f"{EXPERTS} --moe-expert-rank-capacity-factor 1.5"),
    "MLM322": having(f"{EXPERTS} --moe-paged-stash"),
    "MLM323": having(f"{EXPERTS} --moe-latent-size 0"),
    "MLM324": having(
        f"{EXPERTS} --moe-latent-size 512 --moe-shared-expert-overlap --moe-token-dispatcher-type alltoall"
    ),
    "MLM325": having(f"{EXPERTS} {OVERLAP}"),
    "MLM326": having("--delay-wgrad-compute"),
    "MLM327": having(
        f"{EXPERTS} {OVERLAP} --num-virtual-stages-per-pipeline-rank 2 --overlap-dispatch-backward-with-experts-wgrad"
    ),
    "MLM328": having("--ep-overlap-early-attn-memory-release"),
    "MLM329": having(f"{EXPERTS} --moe-use-upcycling"),
    "MLM330": having(f"{EXPERTS} --moe-router-load-balancing-type sinkhorn --moe-aux-loss-coeff 0.1"),
    "MLM331": having(f"{EXPERTS} --moe-router-load-balancing-type quantile_balancing --moe-router-fusion"),
    "MLM332": having(f"{EXPERTS} --moe-apply-probs-on-input"),
    "MLM333": having("--num-experts 8 --expert-tensor-parallel-size 1 --moe-grouped-gemm"),
    "MLM334": having(
        f"{EXPERTS} --moe-layer-recompute --recompute-granularity full --recompute-method block "
        "--recompute-num-layers 2"
    ),
    "MLM335": having(f"{EXPERTS} --moe-expert-rank-capacity-factor 1.5 --moe-flex-dispatcher-backend hybridep"),
    "MLM336": script(moe_ffn_hidden_size="1024"),
    "MLM337": having(
        f"{EXPERTS} --moe-shared-expert-overlap --moe-shared-expert-intermediate-size 1024 "
        "--moe-token-dispatcher-type flex"
    ),
    "MLM338": having(
        f"{EXPERTS} {OVERLAP} --mtp-num-layers 1 --pipeline-model-parallel-size 1 --position-embedding-type rope"
    ),
    "MLM339": having(f"{EXPERTS} --moe-grouped-gemm --moe-single-grouped-weight"),
    "MLM340": having(
        f"{FSDP} {ALONE} --num-experts 8 --moe-grouped-gemm --moe-single-grouped-bias --no-bias-dropout-fusion",
        "--sequence-parallel",
        export="",
    ),
}

SEQUENCE: Mapping[str, str] = {
    "MLM401": having(
        "--context-parallel-size 4 --tensor-model-parallel-size 1 --seq-length 4092", "--sequence-parallel"
    ),
    "MLM402": having("--seq-length 4095"),
    "MLM403": having("--context-parallel-size 4 --hierarchical-context-parallel-sizes 2 4"),
    "MLM404": having("--context-parallel-size 2 --cp-comm-type p2p a2a"),
    "MLM405": having("--context-parallel-size 2 --cp-comm-type ring"),
    "MLM406": having("--context-parallel-size 4 --cp-comm-type a2a --group-query-attention --num-query-groups 4"),
    "MLM407": script(max_position_embeddings="2048"),
    "MLM408": having("--context-parallel-size 4 --cp-comm-type a2a+p2p"),
    "MLM409": script(encoder_seq_length="4096"),
    "MLM410": having("--tp-comm-overlap", "--sequence-parallel"),
    "MLM411": having("--hybrid-context-parallel --pipeline-model-parallel-size 1"),
    "MLM412": having("--context-parallel-size 2 --transformer-impl local"),
    "MLM413": having("--position-embedding-type relative --transformer-impl local"),
    "MLM414": having("--position-embedding-type mrope"),
    "MLM415": having("--no-position-embedding"),
    "MLM416": having("--multi-latent-attention --group-query-attention --num-query-groups 4"),
    "MLM417": having("--mla-down-proj-fusion"),
    "MLM418": having("--multi-latent-attention --rotary-interleaved"),
    "MLM419": having("--rope-type yarn"),
    "MLM420": having("--multi-latent-attention --qk-l2-norm"),
    "MLM421": having("--batch-invariant-mode --flash-attention-version 3 --attention-dropout 0.0"),
    "MLM423": having("--no-rope-freq 4 --flash-decode"),
    "MLM424": having("--experimental-attention-variant dsa"),
    "MLM426": having("--experimental-attention-variant dsa --no-rope-fusion --context-parallel-size 2"),
    "MLM427": having("--batch-invariant-mode --attention-backend flash --attention-dropout 0.0"),
}

OPTIMIZER: Mapping[str, str] = {
    "MLM501": having("--overlap-param-gather"),
    "MLM502": having(
        "--overlap-param-gather-with-optimizer-step --overlap-param-gather --overlap-grad-reduce --ckpt-format torch"
    ),
    "MLM503": having(
        f"{TORCH_FSDP} {ALONE} --fp16", "--sequence-parallel", "--use-distributed-optimizer", "--bf16", export=""
    ),
    "MLM504": having(
        f"{TORCH_FSDP} {ALONE}",
        "--sequence-parallel",
        "--use-distributed-optimizer",
    ),
    "MLM505": having(f"--use-megatron-fsdp {ALONE}", "--sequence-parallel", export=""),
    "MLM507": having(
        f"{FSDP} {ALONE} --check-weight-hash-across-dp-replicas-interval 100", "--sequence-parallel", export=""
    ),
    "MLM508": having(
        f"{FSDP} {ALONE} --init-model-with-meta-device --data-parallel-sharding-strategy no_shard",
        "--sequence-parallel",
        export="",
    ),
    "MLM509": having(f"{FSDP} {ALONE} --fsdp-manual-registration", "--sequence-parallel", export=""),
    "MLM510": having("--ckpt-format fsdp_dtensor"),
    "MLM511": having(f"{ALONE} --ckpt-format torch_dcp", "--sequence-parallel"),
    "MLM512": having(
        f"{TORCH_FSDP} {ALONE} --optimizer lion", "--sequence-parallel", "--use-distributed-optimizer", export=""
    ),
    "MLM513": having("--use-precision-aware-optimizer --optimizer sgd"),
    "MLM514": having("--exp-avg-dtype bf16"),
    "MLM515": having("--optimizer-cpu-offload"),
    "MLM516": having("--optimizer-offload-fraction 1.5"),
    "MLM517": having("--accumulate-allreduce-grads-in-fp32 --main-grads-dtype bf16 --use-precision-aware-optimizer"),
    "MLM518": having("--ddp-num-buckets 0"),
    "MLM519": having("--ddp-param-name-patterns-for-fp32-local-accumulation norm"),
    "MLM520": having("--reuse-grad-buf-for-mxfp8-param-ag"),
    "MLM522": having("--disable-gloo-process-groups --ckpt-format torch"),
    "MLM523": having("--num-distributed-optimizer-instances 2", "--use-distributed-optimizer"),
    "MLM524": having(
        "--save out --save-interval 10 --save-params-interval 10 --overlap-param-gather --overlap-grad-reduce"
    ),
    "MLM525": having("--load-main-params-from-ckpt"),
    "MLM526": having(f"{EXPERTS} --moe-token-dispatcher-type flex --fake-process-group"),
    "MLM527": having("--optimizer dist_muon"),
    "MLM528": having(
        "--overlap-param-gather-with-optimizer-step --overlap-param-gather --overlap-grad-reduce --ckpt-format torch "
        "--num-virtual-stages-per-pipeline-rank 2 --reuse-grad-buf-for-mxfp8-param-ag --fp8-format e4m3 "
        "--fp8-param-gather"
    ),
}

RECOMPUTE: Mapping[str, str] = {
    "MLM601": having("--recompute-granularity full --recompute-method block --recompute-num-layers 32"),
    "MLM602": having("--recompute-granularity selective --recompute-modules attention"),
    "MLM603": having(f"{OFFLOAD} --offload-modules attention", export=f"{ONE_CONNECTION} NVTE_CPU_OFFLOAD_V1=1"),
    "MLM604": having("--pipeline-model-parallel-size 1 --cpu-offloading-num-layers 32"),
    "MLM605": having("--inference-cuda-graph-scope layer"),
    "MLM606": having("--recompute-granularity full --recompute-num-layers 4"),
    "MLM607": having("--recompute-granularity selective --recompute-method block"),
    "MLM608": having("--recompute-method block"),
    "MLM609": having("--recompute-granularity selective --recompute-modules moe_act"),
    "MLM610": having("--recompute-granularity selective --recompute-modules mla_up_proj"),
    "MLM611": having("--recompute-granularity selective --recompute-modules gdn_norm_out"),
    "MLM612": having(
        f"{EXPERTS} --moe-shared-expert-overlap --moe-shared-expert-intermediate-size 1024 "
        "--moe-token-dispatcher-type alltoall --recompute-granularity selective --recompute-modules shared_experts"
    ),
    "MLM613": having("--recompute-granularity selective --recompute-modules layernorm --fp8-format e4m3"),
    "MLM614": having(
        "--distribute-saved-activations --recompute-granularity full --recompute-method block --recompute-num-layers 2"
    ),
    "MLM615": having("--cpu-offloading-num-layers 4"),
    "MLM616": having(OFFLOAD, export=f"{ONE_CONNECTION} NVTE_CPU_OFFLOAD_V1=1"),
    "MLM617": having(f"{OFFLOAD} --offload-modules core_attn"),
    "MLM618": having(f"{OFFLOAD} --offload-modules attn_proj", export=f"{ONE_CONNECTION} NVTE_CPU_OFFLOAD_V1=1"),
    "MLM619": having(
        f"{EXPERTS} {OFFLOAD} --offload-modules expert_fc1 --recompute-granularity selective --recompute-modules moe",
        export=f"{ONE_CONNECTION} NVTE_CPU_OFFLOAD_V1=1",
    ),
    "MLM620": having(f"{OFFLOAD} --offload-modules fused_group_mlp", export=f"{ONE_CONNECTION} NVTE_CPU_OFFLOAD_V1=1"),
    "MLM621": having(
        f"{OFFLOAD} --offload-modules core_attn --activation-offload-fraction 2.0",
        export=f"{ONE_CONNECTION} NVTE_CPU_OFFLOAD_V1=1",
    ),
    "MLM622": having("--cuda-graph-impl full_iteration"),
    "MLM623": having("--enable-cuda-graph --external-cuda-graph"),
    "MLM624": having("--cuda-graph-impl local --cuda-graph-scope attn --cuda-graph-modules attn"),
    "MLM625": having("--cuda-graph-impl local --cuda-graph-modules moe_router"),
    "MLM626": having(f"{EXPERTS} --cuda-graph-impl local --cuda-graph-modules moe"),
    "MLM627": having(f"{EXPERTS} --cuda-graph-impl transformer_engine --cuda-graph-modules moe_preprocess"),
    "MLM628": having(f"{EXPERTS} --cuda-graph-impl local --cuda-graph-modules mlp"),
    "MLM629": having(
        "--cuda-graph-impl local --recompute-granularity full --recompute-method block --recompute-num-layers 2"
    ),
    "MLM630": having(
        f"{EXPERTS} {OVERLAP} --num-virtual-stages-per-pipeline-rank 2 --cuda-graph-impl transformer_engine "
        "--cuda-graph-modules mlp --moe-layer-freq 2"
    ),
    "MLM631": having("--cuda-graph-impl local --recompute-granularity selective"),
    "MLM632": having("--cuda-graph-impl local --cuda-graph-modules full attn"),
    "MLM633": having("--cuda-graph-impl local --inference-dynamic-batching-num-cuda-graphs 0"),
    "MLM634": having(
        "--cuda-graph-impl transformer_engine",
        export=f"{ONE_CONNECTION} PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
    ),
    "MLM635": having(
        f"{OFFLOAD} --offload-modules core_attn --cuda-graph-impl local",
        export=f"{ONE_CONNECTION} NVTE_CPU_OFFLOAD_V1=1",
    ),
    "MLM636": having(
        f"{OFFLOAD} --offload-modules core_attn --cuda-graph-impl local",
        export=f"{ONE_CONNECTION} NVTE_CPU_OFFLOAD_V1=1",
    ),
}

PRECISION: Mapping[str, str] = {
    "MLM701": script(export="export CUDA_DEVICE_MAX_CONNECTIONS=8"),
    "MLM702": having(
        "--fp8-format e4m3 --fp8-recipe blockwise --first-last-layers-bf16 --num-layers-at-start-in-bf16 17"
    ),
    "MLM703": having("--swiglu --quick-geglu"),
    "MLM704": having("--fp16"),
    "MLM705": having("--fp4-format e2m1 --fp8-format e4m3"),
    "MLM706": having("--fp4-param-gather"),
    "MLM707": having("--fp8-param-gather"),
    "MLM708": having("--fp8-format e4m3 --fp8-param-gather", "--use-distributed-optimizer"),
    "MLM709": having("--fp8-format e4m3 --first-last-layers-bf16"),
    "MLM710": having("--fp8-format e4m3 --fp8-recipe custom"),
    "MLM711": having("--fp4-format e2m1 --fp4-recipe custom"),
    "MLM712": having("--fp8-output-proj --fp8-recipe mxfp8"),
    "MLM713": having("--fp16-lm-cross-entropy"),
    "MLM714": having("--fp32-residual-connection", "--bf16"),
    "MLM715": having("--cross-entropy-loss-fusion --cross-entropy-fusion-impl te"),
    "MLM716": having("--squared-relu"),
    "MLM717": having("--swiglu --glu-linear-offset 1.0"),
    "MLM718": having("--use-te-activation-func"),
    "MLM719": having("--fused-residual-rmsnorm"),
    "MLM720": having("--qk-clip --qk-clip-alpha 1.0"),
    "MLM721": having("--attention-backend local"),
    "MLM722": having("--apply-query-key-layer-scaling"),
    "MLM723": having("--deterministic-mode --tp-comm-overlap"),
    "MLM729": script(hidden_dropout="2.0"),
    "MLM724": having("--transformer-impl inference_optimized --disable-bias-linear"),
    "MLM725": having(
        f"{EXPERTS} --transformer-impl inference_optimized --normalization RMSNorm --expert-tensor-parallel-size 1"
    ),
    "MLM726": having("--inference-fuse-tp-communication"),
    "MLM727": having("--cuda-graph-impl local --inference-cuda-graph-scope block --fp8-format e4m3"),
    "MLM728": having("--deterministic-mode"),
}

TRAINING: Mapping[str, str] = {
    "MLM801": script(global_batch_size="65"),
    "MLM802": script("--global-batch-size", micro_batch_size="0"),
    "MLM803": having("--rampup-batch-size 32 8 1000"),
    "MLM804": having("--lr-decay-samples 100"),
    "MLM805": script("--train-iters"),
    "MLM806": script(min_lr="1.0"),
    "MLM807": script("--lr"),
    "MLM808": script(save="out"),
    "MLM809": script(start_weight_decay="0.1"),
    "MLM810": script(data_path="data"),
    "MLM811": script(warmup="10"),
    "MLM812": having("--log-interval 10 --log-memory-interval 25"),
    "MLM813": script(log_interval="0"),
    "MLM814": having("--step-batch-size-schedule '8:64 1M:128'", "--global-batch-size"),
    "MLM815": having("--step-batch-size-schedule '0:64 1M:128'"),
    "MLM816": having("--ckpt-convert-format torch_dist --load in"),
    "MLM817": script(non_persistent_ckpt_type="in_memory"),
    "MLM818": script(non_persistent_ckpt_type="local"),
    "MLM819": having("--replication --non-persistent-ckpt-type local --non-persistent-local-ckpt-dir out"),
    "MLM820": having("--verify-integrity --ckpt-format torch"),
    "MLM821": having("--override-ckpt-iteration 10 --finetune"),
    "MLM822": having("--logits-save-dir out --async-save --use-persistent-ckpt-worker"),
    "MLM823": script(num_dataset_builder_threads="0"),
    "MLM824": having("--fim-data"),
    "MLM825": having("--pipeline-model-parallel-size 1 --inference-batch-times-seqlen-threshold 4096"),
    "MLM826": having("--manual-gc --manual-gc-interval -1"),
    "MLM827": having(f"{RL} --rl-training-cuda-graphs"),
    "MLM828": having(f"{RL} --rl-kv-cache-management-mode offload"),
    "MLM829": having(f"{RL} --rl-generation-lag 1"),
    "MLM830": having(f"{RL} --rl-consumption-granularity G"),
    "MLM831": having(f"{RL} --rl-use-sequence-packing --micro-batch-size 2"),
    "MLM832": having("--perform-rl-step --global-batch-size 48"),
    "MLM833": having("--rampup-batch-size 32 12 1000 --train-samples 10000", "--train-iters"),
    "MLM834": having("--use-legacy-models"),
}

CASES: Mapping[str, str] = {
    **SPELLING,
    **MESH,
    **PIPELINE,
    **LISTS,
    **IN_EXPERTS,
    **SEQUENCE,
    **OPTIMIZER,
    **RECOMPUTE,
    **PRECISION,
    **TRAINING,
}

DEPRECATED = frozenset({"MLM229", "MLM415", "MLM623", "MLM624", "MLM803"})
"""Rules about flags that the parser calls deprecated: their cases break S009 as well."""
