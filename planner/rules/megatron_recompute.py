"""Megatron-LM: what is recomputed, what is offloaded, and what is captured in CUDA graphs."""

from collections.abc import Iterator

from planner.readers.arguments import NotSaidError
from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import above, at_least, between, exported, fact, given, has, on, one_of, said
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_sources import ARGUMENTS, CONFIG, GRAPHS
from planner.rules.rule import Found, FoundAt, Rule, Severity, rule

RECOMPUTED = frozenset(
    {"core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts", "gdn_norm_out"}
)
OFFLOADED = frozenset(
    {"core_attn", "attn_proj", "expert_fc1", "fused_group_mlp", "moe_act", "attn_norm", "mlp_norm", "qkv_linear"}
)
LATER_MODULES = frozenset({"gdn_norm_out", "fused_group_mlp"})
"""Words that are known since 0.19."""

FULL, SELECTIVE = (one_of("--recompute-granularity", kind) for kind in ("full", "selective"))
CPU_OFFLOADING = fact(
    "--cpu-offloading-num-layers above 0",
    lambda run: (run.number("cpu_offloading_num_layers") or 0) > 0,
    "cpu_offloading_num_layers",
)
FINE_OFFLOADING = on("--fine-grained-activation-offloading")
CAPTURES = fact("CUDA graphs", lambda run: run.value("cuda_graph_impl") != "none", "cuda_graph_impl")
INFERENCE_SCOPES = {
    "none": {"none"},
    "local": {"layer", "block"},
    "transformer_engine": {"none"},
    "full_iteration": {"none"},
}


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
    try:
        stages = run.pp * run.vpp
    except NotSaidError:
        return
    most = -(-run.num_layers // stages)
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


@rule(
    id="MLM605",
    name="scope-of-inference-graphs",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Invalid inference CUDA graph scope ... for --cuda-graph-impl=...",
    found_at=FoundAt.START,
    source=GRAPHS,
    since="0.18",
)
def scope_of_inference_graphs(run: MegatronRun) -> Iterator[Found]:
    """Graphs for inference exist with `--cuda-graph-impl local` only: of a layer or of a block."""
    scope, kind = run.said("inference_cuda_graph_scope"), str(run.value("cuda_graph_impl"))
    if scope is not None and kind in INFERENCE_SCOPES and scope not in INFERENCE_SCOPES[kind]:
        yield Found(
            place=run.place("inference_cuda_graph_scope", "cuda_graph_impl"),
            message=f"--inference-cuda-graph-scope {scope} with --cuda-graph-impl {kind}.",
            hint=f"Write {' or '.join(sorted(INFERENCE_SCOPES[kind]))}, or remove it.",
        )


def _covers_all_but_experts(run: MegatronRun) -> bool:
    return run.num_experts is not None and run.said("moe_layer_freq") == 1


def _drops_and_pads(run: MegatronRun) -> bool:
    capacity = run.said("moe_expert_capacity_factor")
    return (
        isinstance(capacity, int | float) and capacity >= 0 and run.arguments.is_on("moe_pad_expert_input_to_capacity")
    )


LAYER_GRAPHS = one_of("--cuda-graph-impl", "local", "transformer_engine")

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
    Demand(
        id="MLM622",
        name="graphs-of-an-iteration",
        when=one_of("--cuda-graph-impl", "full_iteration"),
        needs=(
            fact(
                "--no-check-for-nan-in-loss-and-grad",
                lambda run: (
                    run.said("check_for_nan_in_loss_and_grad") is False
                    or (run.arguments.is_on("fp16") and not run.said("loss_scale"))
                ),
                "check_for_nan_in_loss_and_grad",
            ),
        ),
        excludes=(said("--cuda-graph-modules"),),
        error="AssertionError: --no-check-for-nan-in-loss-and-grad should be set with --cuda-graph-impl=full_iteration "
        "for training.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.18",
        why="A graph cannot stop for a check on the host, and holds everything.",
    ),
    Demand(
        id="MLM623",
        name="old-graph-flags",
        when=on("--enable-cuda-graph") | on("--external-cuda-graph"),
        excludes=(
            fact("--cuda-graph-impl", lambda run: run.said("cuda_graph_impl") not in {"none", None}, "cuda_graph_impl"),
            on("--enable-cuda-graph") & on("--external-cuda-graph"),
        ),
        error="AssertionError: Do not use --enable-cuda-graph or --external-cuda-graph with --cuda-graph-impl.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="They are old ways to write --cuda-graph-impl local and transformer_engine.",
    ),
    Demand(
        id="MLM624",
        name="old-graph-scope",
        when=given("--cuda-graph-scope", "cuda_graph_scope_deprecated"),
        excludes=(
            fact("--cuda-graph-modules", lambda run: bool(run.said("cuda_graph_modules")), "cuda_graph_modules"),
        ),
        error="AssertionError: --cuda-graph-scope and --cuda-graph-modules cannot be used together.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.18",
        why="The first is the old name of the second.",
    ),
    Demand(
        id="MLM625",
        name="graphs-of-experts",
        when=LAYER_GRAPHS & has("--cuda-graph-modules", "moe", "moe_router"),
        needs=(above("--num-experts", 1),),
        excludes=(has("--cuda-graph-modules", "moe") & has("--cuda-graph-modules", "moe_router"),),
        error="AssertionError: moe cuda graph is only supported for MoE.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.18",
        why="The router is part of the layer.",
    ),
    Demand(
        id="MLM626",
        name="graphs-of-dropping-experts",
        when=LAYER_GRAPHS & has("--cuda-graph-modules", "moe") & above("--num-experts", 1),
        needs=(fact("--moe-expert-capacity-factor with --moe-pad-expert-input-to-capacity", _drops_and_pads),),
        error="AssertionError: moe cuda graph is only supported with drop-padding MoE.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.18",
        why="A graph needs the same number of tokens in every step.",
    ),
    Demand(
        id="MLM627",
        name="graphs-of-preparation",
        when=one_of("--cuda-graph-impl", "transformer_engine") & has("--cuda-graph-modules", "moe_preprocess"),
        needs=(has("--cuda-graph-modules", "moe_router"),),
        error="AssertionError: moe_preprocess cuda graph is only supported with moe_router cuda graph.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.18",
        why="The preparation follows the router.",
    ),
    Demand(
        id="MLM628",
        name="graphs-of-dense-layers",
        when=LAYER_GRAPHS & has("--cuda-graph-modules", "mlp") & above("--num-experts", 1),
        excludes=(fact("experts in every layer", _covers_all_but_experts, "moe_layer_freq"),),
        error="AssertionError: mlp cuda graph is only supported for dense layers, but not found in the model.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.18",
        why="No layer has such a module.",
    ),
    Demand(
        id="MLM629",
        name="graphs-and-full-recompute",
        when=LAYER_GRAPHS,
        excludes=(FULL,),
        error="AssertionError: full recompute is only supported with full iteration CUDA graph.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.18",
        why="A layer that is recomputed is not the one that was captured.",
    ),
    Demand(
        id="MLM630",
        name="graphs-and-expert-overlap",
        when=one_of("--cuda-graph-impl", "transformer_engine") & on("--overlap-moe-expert-parallel-comm"),
        excludes=(has("--cuda-graph-modules", "moe", "mlp"),),
        error="AssertionError: CUDA graph scope on moe and mlp is not supported with overlap_moe_expert_parallel_comm",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.18",
        why="The overlap splits these modules.",
    ),
    Demand(
        id="MLM631",
        name="graphs-and-recomputed-dropout",
        when=CAPTURES & SELECTIVE & has("--recompute-modules", "core_attn"),
        excludes=(
            fact(
                "captured attention with --attention-dropout above 0",
                lambda run: (
                    run.said("attention_dropout") != 0.0
                    and (not run.words("cuda_graph_modules") or "attn" in run.words("cuda_graph_modules"))
                ),
                "attention_dropout",
            ),
        ),
        error="AssertionError: attention dropout is not supported with graphed attention recomputation.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.18",
        why="A recomputed part that is captured cannot draw the same random numbers again.",
    ),
    Demand(
        id="MLM632",
        name="graphs-and-old-scopes",
        when=fact(
            "--cuda-graph-modules full",
            lambda run: (
                "full" in (*run.words_said("cuda_graph_modules"), *run.words_said("cuda_graph_scope_deprecated"))
            ),
            "cuda_graph_modules",
            "cuda_graph_scope_deprecated",
        ),
        excludes=(
            fact(
                "other modules",
                lambda run: (
                    max(len(run.words_said("cuda_graph_modules")), len(run.words_said("cuda_graph_scope_deprecated")))
                    > 1
                ),
            ),
        ),
        error="AssertionError: full scope cannot be used with other scopes.",
        found_at=FoundAt.START,
        source=GRAPHS,
        since="0.18",
        why="It is the old word for a whole layer, which is what no module means now.",
    ),
    Demand(
        id="MLM633",
        name="number-of-inference-graphs",
        when=one_of("--cuda-graph-impl", "local"),
        needs=(
            fact(
                "--inference-dynamic-batching-num-cuda-graphs above 0, or -1",
                lambda run: (
                    (run.number("inference_dynamic_batching_num_cuda_graphs") or 0) > 0
                    or run.number("inference_dynamic_batching_num_cuda_graphs") == -1
                ),
                "inference_dynamic_batching_num_cuda_graphs",
            ),
        ),
        error="AssertionError: inference_dynamic_batching_num_cuda_graphs should be a positive integer or -1",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="-1 takes as many as the largest batch asks for.",
    ),
    Demand(
        id="MLM636",
        name="graphs-and-all-fine-offloading",
        when=FINE_OFFLOADING & CAPTURES,
        needs=(one_of("--cuda-graph-impl", "transformer_engine", "full_iteration"),),
        excludes=(has("--cuda-graph-modules", "moe"),),
        error="AssertionError: fine-grained activation offloading is only supported with transformer_engine CUDA graph "
        "implementation",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.18",
        until="0.19",
        why="What is captured cannot be offloaded in between.",
    ),
    Demand(
        id="MLM634",
        name="graphs-and-segments",
        when=one_of("--cuda-graph-impl", "transformer_engine")
        & exported("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
        needs=(exported("NCCL_GRAPH_REGISTER", "0"),),
        error="AssertionError: Setting NCCL_GRAPH_REGISTER=0 to avoid illegal memory access when using CUDA Graph with "
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="NCCL would keep addresses of memory that moves.",
    ),
    Demand(
        id="MLM635",
        name="graphs-and-fine-offloading",
        when=FINE_OFFLOADING & CAPTURES,
        needs=(
            fact(
                "--cuda-graph-impl transformer_engine or full_iteration, or local with expert modules only",
                lambda run: (
                    run.value("cuda_graph_impl") != "local"
                    or (
                        set(run.words("offload_modules")) <= {"expert_fc1", "moe_act", "fused_group_mlp"}
                        and bool(run.words("cuda_graph_modules"))
                    )
                ),
                "cuda_graph_impl",
            ),
        ),
        excludes=(has("--cuda-graph-modules", "moe"),),
        error="AssertionError: fine-grained activation offloading is only supported with transformer_engine CUDA graph "
        "implementation",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.19",
        why="What is captured cannot be offloaded in between.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = (
    recomputed_layers,
    recomputed_modules,
    offloaded_modules,
    offloaded_layers,
    scope_of_inference_graphs,
    *rules_of_demands(DEMANDS),
)
