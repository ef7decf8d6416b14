"""Megatron-LM: the optimizer's state, and what its communication overlaps with."""

from planner.readers.megatron_run import EMERGING_OPTIMIZERS, MegatronRun
from planner.rules.conditions import above, between, fact, given, on, one_of, said
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_conditions import MEGATRON_FSDP, TORCH_FSDP
from planner.rules.megatron_sources import ARGUMENTS, OPTIMIZER, REPLICAS
from planner.rules.rule import FoundAt, Rule, Severity

SHARDED = on("--use-distributed-optimizer")

EMERGING = fact(
    f"--optimizer {', '.join(sorted(EMERGING_OPTIMIZERS))}",
    lambda run: run.said("optimizer") in EMERGING_OPTIMIZERS,
    "optimizer",
    told=lambda run: f"--optimizer {run.said('optimizer')}",
)

NARROW_STATE = tuple(
    ~one_of(f"--{name.replace('_', '-')}", "fp32", dest=name)
    for name in ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
)

NARROW_STATE_TEXT = "--main-grads-dtype, --main-params-dtype, --exp-avg-dtype or --exp-avg-sq-dtype other than fp32"


def _has_narrow_state(run: MegatronRun) -> bool:
    return any(condition.holds(run) for condition in NARROW_STATE)


DEMANDS = (
    Demand(
        id="MLM501",
        name="overlapped-parameter-gather",
        when=on("--overlap-param-gather"),
        needs=(
            fact(
                "--use-distributed-optimizer, --use-megatron-fsdp or --optimizer dist_muon",
                lambda run: (
                    run.arguments.is_on("use_distributed_optimizer")
                    or run.arguments.is_on("use_megatron_fsdp")
                    or run.said("optimizer") == "dist_muon"
                ),
                "use_distributed_optimizer",
            ),
            on("--overlap-grad-reduce"),
        ),
        error="AssertionError: --overlap-param-gather only supported with distributed optimizer, megatron fsdp, or "
        "dist_muon",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Without a sharded optimizer there is nothing to gather, and both overlaps share the same buckets.",
    ),
    Demand(
        id="MLM502",
        name="gather-with-optimizer-step",
        when=on("--overlap-param-gather-with-optimizer-step"),
        needs=(
            SHARDED,
            on("--overlap-param-gather"),
            fact("interleaving (several virtual stages on a rank)", lambda run: run.vpp > 1),
            one_of("--ckpt-format", "torch"),
        ),
        error="AssertionError: --overlap-param-gather-with-optimizer-step only supported with interleaved pipeline "
        "parallelism",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The first virtual stage is gathered while the others are still updated. Its checkpoints are not "
        "distributed.",
    ),
    Demand(
        id="MLM512",
        name="emerging-optimizer",
        when=EMERGING,
        needs=(one_of("--ckpt-format", "torch", "torch_dist"),),
        excludes=(TORCH_FSDP, MEGATRON_FSDP),
        error="AssertionError: Emerging optimizer does not support Torch-FSDP2 for now.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.18",
        why="It updates whole matrices, so it shards its state layer by layer.",
    ),
    Demand(
        id="MLM513",
        name="precision-aware-optimizer",
        mends=False,
        when=on("--use-precision-aware-optimizer"),
        needs=(one_of("--optimizer", "adam"), SHARDED),
        error="AssertionError: --use-precision-aware-optimizer only supported with distributed optimizer",
        found_at=FoundAt.BUILD,
        source=OPTIMIZER,
        why="It is a kernel of Transformer Engine's Adam over shards of the state.",
    ),
    Demand(
        id="MLM514",
        name="narrow-optimizer-state",
        when=fact(
            NARROW_STATE_TEXT,
            _has_narrow_state,
            "main_grads_dtype",
            "main_params_dtype",
            "exp_avg_dtype",
            "exp_avg_sq_dtype",
        ),
        needs=(on("--use-precision-aware-optimizer"),),
        error="AssertionError: main_grads_dtype can only be fp32 when not using precision-aware optimizer",
        found_at=FoundAt.BUILD,
        source=OPTIMIZER,
        why="Only that optimizer keeps state in other types.",
    ),
    Demand(
        id="MLM515",
        name="optimizer-offload",
        when=on("--optimizer-cpu-offload"),
        needs=(on("--use-precision-aware-optimizer"),),
        excludes=(
            fact(
                "--fp8-param-gather with a recipe other than delayed",
                lambda run: run.arguments.is_on("fp8_param_gather") and run.said("fp8_recipe") != "delayed",
                "fp8_param_gather",
            ),
        ),
        error="AssertionError: The optimizer cpu offload must be used in conjunction with "
        "`--use-precision-aware-optimizer`",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The optimizer that runs on both devices uses its code.",
    ),
    Demand(
        id="MLM516",
        name="offloaded-fraction",
        when=given("--optimizer-offload-fraction"),
        needs=(between("--optimizer-offload-fraction", 0, 1),),
        severity=Severity.WARNING,
        error="nothing is said: above 1 everything is offloaded, below 0 nothing",
        found_at=FoundAt.NEVER,
        source="megatron/core/optimizer/cpu_offloading/hybrid_optimizer.py: HybridDeviceOptimizer",
        why="It is the part of the parameters whose state is on the host.",
    ),
    Demand(
        id="MLM517",
        name="gradient-type",
        when=on("--bf16") & on("--accumulate-allreduce-grads-in-fp32"),
        needs=(one_of("--main-grads-dtype", "fp32"),),
        error="AssertionError: --main-grads-dtype can only be fp32 when --accumulate-allreduce-grads-in-fp32 is set",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Gradients are added up in fp32, so they are kept in it.",
    ),
    Demand(
        id="MLM518",
        name="buckets-said-once",
        when=given("--ddp-num-buckets"),
        needs=(above("--ddp-num-buckets", 0),),
        excludes=(given("--ddp-bucket-size"),),
        error="AssertionError: Cannot specify both num_buckets and bucket_size",
        found_at=FoundAt.BUILD,
        source=REPLICAS,
        since="0.18",
        why="Either the number of buckets is said, or their size.",
    ),
    Demand(
        id="MLM519",
        name="local-accumulation",
        when=said("--ddp-param-name-patterns-for-fp32-local-accumulation"),
        excludes=(on("--accumulate-allreduce-grads-in-fp32"),),
        error="AssertionError: Only need to explicitly specify param_name patterns for FP32 local accumulation if "
        ".main_grads aren't already in FP32",
        found_at=FoundAt.BUILD,
        source=REPLICAS,
        why="In bf16 gradients are added up in fp32 unless --grad-reduce-in-bf16 is given.",
    ),
    Demand(
        id="MLM520",
        name="reused-gradient-buffer",
        mends=False,
        when=on("--reuse-grad-buf-for-mxfp8-param-ag"),
        needs=(on("--fp8-param-gather"),),
        error="AssertionError: Reuse grad buffer only when keeping params in MXFP8.",
        found_at=FoundAt.BUILD,
        source=REPLICAS,
        why="The buffer of the gradients holds parameters in MXFP8 while they are gathered.",
    ),
    Demand(
        id="MLM522",
        name="no-gloo-groups",
        when=fact(
            "--disable-gloo-process-groups",
            lambda run: run.said("use_gloo_process_groups") is False,
            "use_gloo_process_groups",
        )
        & SHARDED,
        excludes=(
            one_of("--ckpt-format", "torch"),
            on("--dist-ckpt-optim-fully-reshardable") & on("--distrib-optim-fully-reshardable-mem-efficient"),
        ),
        error="AssertionError (use_dist_ckpt)",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The older format collects the optimizer's state over those groups.",
    ),
    Demand(
        id="MLM523",
        name="optimizer-instances-need-shards",
        when=above("--num-distributed-optimizer-instances", 1),
        needs=(on("--use-distributed-optimizer"),),
        error="AssertionError: Partial DistOpt cannot be used without DistOpt",
        found_at=FoundAt.BUILD,
        source="megatron/core/distributed/distributed_data_parallel.py: DistributedDataParallel",
        why="Each instance is a copy of the sharded state.",
    ),
    Demand(
        id="MLM524",
        name="saved-parameters-and-gather",
        when=given("--save") & given("--save-params-interval"),
        excludes=(on("--overlap-param-gather"),),
        error="AssertionError (not overlap_param_gather)",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.18",
        why="Parameters are saved while they would be gathered.",
    ),
    Demand(
        id="MLM525",
        name="main-parameters-only",
        when=on("--load-main-params-from-ckpt"),
        needs=(on("--no-load-optim"),),
        error="AssertionError: --load-main-params-from-ckpt must be used with --no-load-optim.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The optimizer's own copy of the parameters would overwrite them.",
    ),
    Demand(
        id="MLM526",
        name="fake-groups",
        when=on("--fake-process-group"),
        excludes=(one_of("--moe-token-dispatcher-type", "flex"),),
        error="AssertionError: Fake process group is not supported with flex token dispatcher.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Its kernels open connections of their own.",
    ),
    Demand(
        id="MLM527",
        name="muon-alone",
        when=one_of("--optimizer", "muon", "dist_muon"),
        needs=(one_of("--ckpt-format", "torch", "torch_dist"),),
        excludes=(
            on("--use-distributed-optimizer"),
            TORCH_FSDP,
            MEGATRON_FSDP,
            one_of("--optimizer", "muon") & (on("--overlap-grad-reduce") | on("--overlap-param-gather")),
        ),
        error="AssertionError: Muon optimizer does not support distributed optimizer for now.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        until="0.18",
        why="It updates whole matrices; dist_muon shards its state layer by layer.",
    ),
    Demand(
        id="MLM528",
        name="early-gather-and-reused-buffer",
        when=on("--overlap-param-gather-with-optimizer-step"),
        excludes=(on("--reuse-grad-buf-for-mxfp8-param-ag"),),
        error="ValueError: overlap_param_gather_with_optimizer_step is not supported with "
        "reuse_grad_buf_for_mxfp8_param_ag.",
        found_at=FoundAt.BUILD,
        source=OPTIMIZER,
        since="0.19",
        why="The buffer still holds gradients when the first parameters would be gathered into it.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = rules_of_demands(DEMANDS)
