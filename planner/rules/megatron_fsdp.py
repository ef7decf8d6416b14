"""Megatron-LM: parameters sharded over data-parallel ranks."""

from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import above, exported, given, on, one_of
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_conditions import GRADIENT_FUSION, MEGATRON_FSDP, TORCH_FSDP
from planner.rules.megatron_sources import ARGUMENTS
from planner.rules.rule import FoundAt, Rule

DEMANDS = (
    Demand(
        id="MLM503",
        name="torch-fsdp",
        when=TORCH_FSDP,
        needs=(
            one_of("--ckpt-format", "torch_dist", "torch_dcp"),
            on("--untie-embeddings-and-output-weights"),
        ),
        excludes=(
            above("--pipeline-model-parallel-size", 1),
            above("--expert-model-parallel-size", 1),
            on("--use-distributed-optimizer", "use_distributed_optimizer"),
            GRADIENT_FUSION,
            on("--fp16"),
        ),
        error="AssertionError: --use-torch-fsdp2 is not supported with pipeline parallelism",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="PyTorch's own sharding replaces Megatron's buckets, and knows fewer layouts.",
    ),
    Demand(
        id="MLM504",
        name="connections-with-fsdp",
        when=TORCH_FSDP | MEGATRON_FSDP,
        excludes=(exported("CUDA_DEVICE_MAX_CONNECTIONS", "1"),),
        error="AssertionError: FSDP requires CUDA_DEVICE_MAX_CONNECTIONS > 1 or unset.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="With one connection the gathers would wait for the computation that they should overlap with.",
    ),
    Demand(
        id="MLM505",
        name="megatron-fsdp",
        when=MEGATRON_FSDP,
        needs=(one_of("--ckpt-format", "fsdp_dtensor"),),
        error="AssertionError: Megatron-FSDP requires the `fsdp_dtensor` checkpointing format.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Its shards are cut across tensors, which other formats cannot say.",
    ),
    Demand(
        id="MLM507",
        name="hashes-of-sharded-weights",
        when=MEGATRON_FSDP & one_of("--data-parallel-sharding-strategy", "optim_grads_params"),
        excludes=(given("--check-weight-hash-across-dp-replicas-interval"),),
        error="AssertionError: check_weight_hash_across_dp_replicas_interval is not supported with optim_grads_params",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="No two ranks hold the same weights.",
    ),
    Demand(
        id="MLM508",
        name="meta-device-needs-shards",
        when=MEGATRON_FSDP & on("--init-model-with-meta-device"),
        excludes=(one_of("--data-parallel-sharding-strategy", "no_shard"),),
        error="ValueError: Meta device initialization is not supported or necessary for the 'no_shard' "
        "sharding strategy.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.18",
        why="Whole weights are made where they stay.",
    ),
    Demand(
        id="MLM509",
        name="manual-registration",
        when=on("--fsdp-manual-registration"),
        needs=(MEGATRON_FSDP, on("--use-nccl-ub", "nccl_ub")),
        error="AssertionError: FSDP manual registration is only supported with Megatron FSDP.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="What is registered are the buffers of that sharding with NCCL.",
    ),
    Demand(
        id="MLM510",
        name="checkpoint-of-megatron-fsdp",
        mends=False,
        when=one_of("--ckpt-format", "fsdp_dtensor"),
        needs=(MEGATRON_FSDP,),
        error="AssertionError: --ckpt-format fsdp_dtensor is only tested with Megatron FSDP.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Other layouts are saved as torch_dist.",
    ),
    Demand(
        id="MLM511",
        name="checkpoint-of-torch-fsdp",
        mends=False,
        when=one_of("--ckpt-format", "torch_dcp"),
        needs=(TORCH_FSDP,),
        excludes=(above("--tensor-model-parallel-size", 1), above("--pipeline-model-parallel-size", 1)),
        error="AssertionError: --ckpt-format torch_dcp is only tested with FSDP.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Other layouts are saved as torch_dist.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = rules_of_demands(DEMANDS)
