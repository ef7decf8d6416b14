"""Megatron-LM: what is recomputed and what is offloaded."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import above, at_least, between, exported, fact, given, has, on, one_of, said
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_conditions import FINE_OFFLOADING, FULL, SELECTIVE
from planner.rules.megatron_sources import ARGUMENTS, CONFIG
from planner.rules.rule import Found, FoundAt, Rule, Severity, rule

RECOMPUTED = frozenset(
    {"core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts", "gdn_norm_out"}
)

OFFLOADED = frozenset(
    {"core_attn", "attn_proj", "expert_fc1", "fused_group_mlp", "moe_act", "attn_norm", "mlp_norm", "qkv_linear"}
)

LATER_MODULES = frozenset({"gdn_norm_out", "fused_group_mlp"})
"""Words that are known since 0.19."""

CPU_OFFLOADING = fact(
    "--cpu-offloading-num-layers above 0",
    lambda run: (run.number("cpu_offloading_num_layers") or 0) > 0,
    "cpu_offloading_num_layers",
)


@rule(
    id="MLM601",
    name="recomputed-layers",
    framework=Framework.MEGATRON,
    severity=Severity.WARNING,
    prevents="nothing is said: every layer of the rank is recomputed",
    found_at=FoundAt.NEVER,
    source="megatron/core/transformer/transformer_block.py: TransformerBlock._checkpointed_forward",
)
def recomputed_layers(run: MegatronRun) -> Iterator[Found]:
    """`--recompute-num-layers` is at most the number of layers of a pipeline rank.

    With `block` it is how many layers are recomputed, with `uniform` how many make up a group. Of a virtual stage it is
    meant as well. More than there are count as all.
    """
    number = run.number("recompute_num_layers")
    if number is None or run.value("recompute_granularity") != "full":
        return
    most = -(-run.num_layers // (run.pp * run.vpp))
    if run.layout_stages is not None:
        most = max(stage.count("t") for stage in run.layout_stages)
    elif run.hybrid is not None and len(run.hybrid.stages) > 1:
        most = max(len(stage) for stage in run.hybrid.stages)
    elif run.is_uneven:
        return
    if number > most:
        yield Found(
            place=run.place("recompute_num_layers"),
            message=f"{number} layers are to be recomputed, a stage has {most}.",
            hint=f"Give --recompute-num-layers 1 to {most}.",
        )


@rule(
    id="MLM602",
    name="recomputed-modules",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Invalid choices for recompute_modules",
    found_at=FoundAt.BUILD,
    source=CONFIG,
)
def recomputed_modules(run: MegatronRun) -> Iterator[Found]:
    """`--recompute-modules` takes the words that Megatron knows; its parser takes any."""
    known = RECOMPUTED if run.is_from("0.19") else RECOMPUTED - LATER_MODULES
    unknown = [word for word in run.words("recompute_modules") if word not in known]
    if run.value("recompute_granularity") == "selective" and unknown:
        yield Found(
            place=run.place("recompute_modules"),
            message=f"--recompute-modules {unknown[0]} is not known.",
            hint=f"Write {', '.join(sorted(known))}.",
        )


@rule(
    id="MLM603",
    name="offloaded-modules",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Invalid choices for offload_modules",
    found_at=FoundAt.BUILD,
    source=CONFIG,
)
def offloaded_modules(run: MegatronRun) -> Iterator[Found]:
    """`--offload-modules` takes the words that Megatron knows; its parser takes any."""
    known = OFFLOADED if run.is_from("0.19") else OFFLOADED - LATER_MODULES
    unknown = [word for word in run.words("offload_modules") if word not in known]
    if run.arguments.is_on("fine_grained_activation_offloading") and unknown:
        yield Found(
            place=run.place("offload_modules"),
            message=f"--offload-modules {unknown[0]} is not known.",
            hint=f"Write {', '.join(sorted(known))}.",
        )


@rule(
    id="MLM604",
    name="offloaded-layers",
    framework=Framework.MEGATRON,
    prevents="ValueError: CPU offloading can be done only for layers less than ...",
    found_at=FoundAt.BUILD,
    source=CONFIG,
)
def offloaded_layers(run: MegatronRun) -> Iterator[Found]:
    """`--cpu-offloading-num-layers` is less than the number of layers: the last one is needed at once."""
    number = run.number("cpu_offloading_num_layers") or 0
    if number > 0 and number >= run.num_layers:
        yield Found(
            place=run.place("cpu_offloading_num_layers"),
            message=f"{number} layers are to be offloaded, the model has {run.num_layers}.",
            hint=f"Give at most {run.num_layers - 1}.",
        )


DEMANDS = (
    Demand(
        id="MLM606",
        name="full-recompute-says-how",
        when=FULL,
        needs=(given("--recompute-method"), given("--recompute-num-layers")),
        error='ValueError: Using recompute_granularity: full so recompute_method must be "block" or "uniform"',
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="uniform recomputes groups of that many layers, block that many layers of each rank.",
    ),
    Demand(
        id="MLM607",
        name="selective-recompute-says-modules",
        when=SELECTIVE,
        excludes=(given("--recompute-method"), given("--recompute-num-layers")),
        error="AssertionError: recompute method is not yet supported for selective recomputing granularity",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="--recompute-modules says what is recomputed, in every layer.",
    ),
    Demand(
        id="MLM608",
        name="recompute-without-granularity",
        when=given("--recompute-method")
        | given("--recompute-num-layers")
        | fact("--recompute-modules", lambda run: run.said("recompute_modules") is not None, "recompute_modules"),
        needs=(given("--recompute-granularity"),),
        severity=Severity.WARNING,
        error="nothing is said: nothing is recomputed",
        found_at=FoundAt.NEVER,
        source=CONFIG,
        why="Without a granularity the other flags count for nothing.",
    ),
    Demand(
        id="MLM609",
        name="recompute-of-expert-activation",
        when=SELECTIVE & has("--recompute-modules", "moe_act"),
        needs=(on("--moe-grouped-gemm"),),
        error="ValueError: moe_act in recompute_modules is only supported with moe_grouped_gemm.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="It is the activation between the two grouped products.",
    ),
    Demand(
        id="MLM610",
        name="recompute-of-latent-projection",
        mends=False,
        when=SELECTIVE & has("--recompute-modules", "mla_up_proj"),
        needs=(on("--multi-latent-attention"),),
        error="ValueError: mla_up_proj in recompute_modules is only supported with multi_latent_attention.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Other attention has no such projection.",
    ),
    Demand(
        id="MLM611",
        name="recompute-of-gated-norm",
        mends=False,
        when=SELECTIVE & has("--recompute-modules", "gdn_norm_out"),
        needs=(one_of("--experimental-attention-variant", "gated_delta_net"),),
        error="ValueError: gdn_norm_out in recompute_modules is only supported with "
        "experimental_attention_variant='gated_delta_net'.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Other attention has no such norm.",
    ),
    Demand(
        id="MLM612",
        name="recompute-of-shared-experts",
        when=SELECTIVE & has("--recompute-modules", "shared_experts"),
        excludes=(on("--moe-shared-expert-overlap") & given("--moe-shared-expert-intermediate-size"),),
        error="ValueError: shared_experts recompute cannot work with --moe-shared-expert-overlap.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="With overlap their parts run at different times.",
    ),
    Demand(
        id="MLM613",
        name="recompute-with-delayed-scaling",
        when=SELECTIVE & has("--recompute-modules", "moe_act", "layernorm") & given("--fp8-format", "fp8"),
        excludes=(one_of("--fp8-recipe", "delayed"),),
        error="ValueError: Delayed scaling does not support moe_act and layernorm recompute for fp8.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="The scales of the second pass would be those of the next step. delayed is the recipe without a "
        "word on it.",
    ),
    Demand(
        id="MLM614",
        name="distributed-saved-activations",
        when=on("--distribute-saved-activations"),
        needs=(above("--tensor-model-parallel-size", 1), FULL, given("--recompute-method")),
        excludes=(on("--sequence-parallel"),),
        error="AssertionError: can distribute recomputed activations only across tensor model parallel groups",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The inputs of recomputed layers are split over tp, which --sequence-parallel does anyway.",
    ),
    Demand(
        id="MLM615",
        name="offloaded-layers-alone",
        when=CPU_OFFLOADING,
        excludes=(
            above("--pipeline-model-parallel-size", 1),
            given("--recompute-granularity"),
            fact(
                "CUDA graphs of layers",
                lambda run: run.value("cuda_graph_impl") in {"local", "transformer_engine"},
                "cuda_graph_impl",
            ),
        ),
        error="ValueError: Currently there is no support for Pipeline parallelism with CPU offloading",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Layers go to the host and come back in the order of one pass over all of them.",
    ),
    Demand(
        id="MLM616",
        name="fine-grained-offloading",
        when=FINE_OFFLOADING,
        needs=(one_of("--transformer-impl", "transformer_engine"), said("--offload-modules")),
        excludes=(CPU_OFFLOADING,),
        error="AssertionError: Fine-grained activation offloading is only supported with transformer_engine "
        "implementation",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="--offload-modules says whose inputs go to the host.",
    ),
    Demand(
        id="MLM617",
        name="offloading-of-weights",
        when=FINE_OFFLOADING,
        needs=(exported("NVTE_CPU_OFFLOAD_V1", "1"),),
        error="AssertionError: For fine-grained activation offloading with TE >= 2.10.0, NVTE_CPU_OFFLOAD_V1 should be "
        "set to 1 to avoid offloading weights.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Transformer Engine before 2.10 does not look at the variable; setting it does no harm there.",
    ),
    Demand(
        id="MLM618",
        name="offloaded-projection",
        when=FINE_OFFLOADING & has("--offload-modules", "attn_proj"),
        needs=(has("--offload-modules", "core_attn"),),
        error="ValueError: attn_proj cannot be set to offload_modules alone without core_attn",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Its input is the output of the attention, which the attention's backward pass needs as well.",
    ),
    Demand(
        id="MLM619",
        name="offloading-inside-recompute",
        when=FINE_OFFLOADING & has("--offload-modules", "moe_act", "expert_fc1", "fused_group_mlp"),
        excludes=(SELECTIVE & has("--recompute-modules", "moe"),),
        error="AssertionError: Cannot offload ... while recomputing the entire MoE layer.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.19",
        why="What is recomputed is not kept, so there is nothing to offload.",
    ),
    Demand(
        id="MLM620",
        name="offloading-fused-experts",
        when=FINE_OFFLOADING & has("--offload-modules", "fused_group_mlp"),
        needs=(on("--use-transformer-engine-op-fuser"),),
        excludes=(has("--offload-modules", "expert_fc1", "moe_act"),),
        error="ValueError: fused_group_mlp requires use_transformer_engine_op_fuser.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.19",
        why="It stands for both products and the activation between them.",
    ),
    Demand(
        id="MLM621",
        name="offloading-limits",
        when=FINE_OFFLOADING,
        needs=(
            at_least("--min-offloaded-tensor-size", 0),
            between("--activation-offload-fraction", 0, 1),
            at_least("--delta-offload-bytes-across-pp-ranks", 0),
        ),
        error="AssertionError: activation_offload_fraction must be in range [0, 1].",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.19",
        why="A part of what is there, and sizes in bytes.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = (
    recomputed_layers,
    recomputed_modules,
    offloaded_modules,
    offloaded_layers,
    *rules_of_demands(DEMANDS),
)
