"""Megatron-LM: what is captured in CUDA graphs."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import above, exported, fact, given, has, on, one_of, said
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_conditions import FINE_OFFLOADING, FULL, SELECTIVE
from planner.rules.megatron_sources import ARGUMENTS, CONFIG, GRAPHS
from planner.rules.rule import Found, FoundAt, Rule, rule

CAPTURES = fact("CUDA graphs", lambda run: run.value("cuda_graph_impl") != "none", "cuda_graph_impl")

INFERENCE_SCOPES = {
    "none": {"none"},
    "local": {"layer", "block"},
    "transformer_engine": {"none"},
    "full_iteration": {"none"},
}


def _covers_all_but_experts(run: MegatronRun) -> bool:
    return run.num_experts is not None and run.said("moe_layer_freq") == 1


def _drops_and_pads(run: MegatronRun) -> bool:
    capacity = run.said("moe_expert_capacity_factor")
    return (
        isinstance(capacity, int | float) and capacity >= 0 and run.arguments.is_on("moe_pad_expert_input_to_capacity")
    )


LAYER_GRAPHS = one_of("--cuda-graph-impl", "local", "transformer_engine")


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


DEMANDS = (
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
)

RULES: tuple[Rule[MegatronRun], ...] = (
    scope_of_inference_graphs,
    *rules_of_demands(DEMANDS),
)
