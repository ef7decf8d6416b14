"""Megatron-LM: how tokens get to experts, and what that overlaps with."""

from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import above, fact, given, has, on, one_of, said
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_conditions import OP_FUSER
from planner.rules.megatron_sources import CONFIG, MOE_LAYER
from planner.rules.rule import FoundAt, Rule

FLEX = one_of("--moe-token-dispatcher-type", "flex")


DEMANDS = (
    Demand(
        id="MLM310",
        name="deepep-needs-flex",
        when=on("--moe-enable-deepep"),
        needs=(FLEX,),
        excludes=(one_of("--moe-flex-dispatcher-backend", "hybridep"),),
        error="ValueError: DeepEP backend is only supported with flex token dispatcher.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="DeepEP is a backend of the flex dispatcher.",
    ),
    Demand(
        id="MLM311",
        name="ncclep-needs-flex",
        when=one_of("--moe-flex-dispatcher-backend", "ncclep"),
        needs=(FLEX,),
        error="ValueError: moe_flex_dispatcher_backend='ncclep' requires moe_token_dispatcher_type='flex'.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="It is a backend of the flex dispatcher.",
    ),
    Demand(
        id="MLM312",
        name="flex-without-padding",
        when=FLEX & on("--moe-pad-expert-input-to-capacity"),
        excludes=(one_of("--moe-flex-dispatcher-backend", "deepep") | on("--moe-enable-deepep"),),
        error="ValueError: Flex token dispatcher with deepep backend does not support moe_pad_expert_input_to_capacity",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="DeepEP sends what there is; deepep is the backend without a word on it.",
    ),
    Demand(
        id="MLM313",
        name="shared-expert-overlap",
        when=on("--moe-shared-expert-overlap") & given("--moe-shared-expert-intermediate-size"),
        needs=(one_of("--moe-token-dispatcher-type", "alltoall", "flex"),),
        error="ValueError: moe_shared_expert_overlap only works with alltoall or flex token dispatcher.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.18",
        why="The shared expert runs while tokens are on their way, which the allgather dispatcher does not know.",
    ),
    Demand(
        id="MLM321",
        name="rank-capacity",
        when=given("--moe-expert-rank-capacity-factor"),
        needs=(
            one_of("--moe-flex-dispatcher-backend", "hybridep", "ncclep"),
            ~one_of("--moe-flex-dispatcher-backend", "hybridep") | OP_FUSER,
        ),
        error="ValueError: moe_expert_rank_capacity_factor requires moe_flex_dispatcher_backend to be 'hybridep' or "
        "'ncclep'.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.19",
        why="Only these backends know a capacity of a rank, and hybridep only with fused operations.",
    ),
    Demand(
        id="MLM322",
        name="paged-stash",
        when=on("--moe-paged-stash"),
        needs=(given("--moe-expert-rank-capacity-factor"),),
        excludes=(
            above("--cpu-offloading-num-layers", 0),
            has("--offload-modules", "expert_fc1", "moe_act", "fused_group_mlp"),
        ),
        error="ValueError: moe_paged_stash requires moe_expert_rank_capacity_factor to be set",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="The stash holds what experts of a rank may get at most, and covers what would be offloaded.",
    ),
    Demand(
        id="MLM324",
        name="latent-experts-and-overlap",
        when=given("--moe-latent-size"),
        excludes=(on("--moe-shared-expert-overlap"),),
        error="AssertionError: Shared expert overlap with MoE latent projections is not supported during training.",
        found_at=FoundAt.STEP,
        source=MOE_LAYER,
        why="The shared expert would need the tokens before they are projected.",
    ),
    Demand(
        id="MLM325",
        name="expert-parallel-overlap",
        when=on("--overlap-moe-expert-parallel-comm"),
        needs=(
            above("--expert-model-parallel-size", 1),
            one_of("--moe-token-dispatcher-type", "alltoall", "flex"),
            fact("--bf16 or --fp16", lambda run: run.is_sixteen_bit, "bf16", "fp16"),
            fact("several virtual stages on a rank, with pp above 1", lambda run: run.pp == 1 or run.vpp > 1),
            fact("at most one prediction module", lambda run: run.mtp_num_layers <= 1, "mtp_num_layers"),
        ),
        excludes=(
            one_of("--recompute-granularity", "full"),
            given("--recompute-method"),
            given("--recompute-num-layers"),
            has("--recompute-modules", "moe"),
            on("--moe-shared-expert-overlap"),
        ),
        error="AssertionError: overlap_moe_expert_parallel_comm is only supported with expert model parallelism",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Two micro-batches take turns: one computes while the tokens of the other are on their way.",
    ),
    Demand(
        id="MLM326",
        name="delayed-weight-gradient",
        mends=False,
        when=on("--delay-wgrad-compute"),
        needs=(on("--overlap-moe-expert-parallel-comm"), one_of("--transformer-impl", "transformer_engine")),
        excludes=(on("--overlap-dispatch-backward-with-experts-wgrad"),),
        error="AssertionError: overlap_moe_expert_parallel_comm must be enabled when enabling delay_wgrad_compute",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="The gradient of the weights is what runs while tokens are on their way.",
    ),
    Demand(
        id="MLM327",
        name="dispatch-overlap",
        when=on("--overlap-dispatch-backward-with-experts-wgrad"),
        excludes=(on("--overlap-moe-expert-parallel-comm"),),
        error="AssertionError: overlap_moe_expert_parallel_comm must be disabled when enabling "
        "overlap_dispatch_backward_with_experts_wgrad.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Both fill the same time.",
    ),
    Demand(
        id="MLM328",
        name="early-release",
        mends=False,
        when=on("--ep-overlap-early-attn-memory-release"),
        needs=(on("--overlap-moe-expert-parallel-comm"),),
        error="AssertionError: overlap_moe_expert_parallel_comm must be enabled when enabling "
        "ep_overlap_early_attn_memory_release",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="It releases memory in the schedule of that overlap.",
    ),
    Demand(
        id="MLM335",
        name="rank-capacity-of-hybridep",
        when=given("--moe-expert-rank-capacity-factor"),
        needs=(one_of("--moe-flex-dispatcher-backend", "hybridep"), OP_FUSER),
        error="ValueError: moe_expert_rank_capacity_factor requires use_transformer_engine_op_fuser to be enabled.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        until="0.19",
        why="Only this backend knows a capacity of a rank.",
    ),
    Demand(
        id="MLM337",
        name="shared-expert-overlap-of-all-to-all",
        when=on("--moe-shared-expert-overlap") & given("--moe-shared-expert-intermediate-size"),
        needs=(one_of("--moe-token-dispatcher-type", "alltoall"),),
        error="ValueError: moe_shared_expert_overlap only works with alltoall token dispatcher.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        until="0.18",
        why="The shared expert runs while tokens are on their way, which other dispatchers did not know yet.",
    ),
    Demand(
        id="MLM338",
        name="expert-overlap-of-modules",
        when=on("--overlap-moe-expert-parallel-comm") & said("--mtp-num-layers"),
        needs=(above("--pipeline-model-parallel-size", 1),),
        error="AssertionError: Pipeline model parallel size must be larger than 1 when enabling "
        "overlap_moe_expert_parallel_comm with MTP layer.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        until="0.18",
        why="The schedule without a pipeline did not know prediction modules.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = rules_of_demands(DEMANDS)
