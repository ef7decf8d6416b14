"""Megatron-LM: activation functions and kernels, and what the script must export for them."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import between, fact, given, on, one_of
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_conditions import FP8
from planner.rules.megatron_sources import ARGUMENTS, CONFIG, FROM_ARGUMENTS
from planner.rules.rule import Found, FoundAt, Rule, rule

BIASES = fact(
    "biases (without --disable-bias-linear)", lambda run: run.said("add_bias_linear") is True, "add_bias_linear"
)

TRANSFORMER_ENGINE = one_of("--transformer-impl", "transformer_engine")

FOR_INFERENCE = one_of("--transformer-impl", "inference_optimized")


def _fuses_activation(run: MegatronRun) -> bool:
    """Return whether bias and activation are one kernel."""
    if run.arguments.is_on("swiglu"):
        return run.said("bias_swiglu_fusion") is True
    return run.said("bias_gelu_fusion") is True and run.said("add_bias_linear") is True


FUSED_ACTIVATION = fact(
    "fused bias and activation (without --no-bias-gelu-fusion or --no-bias-swiglu-fusion)",
    _fuses_activation,
    "bias_gelu_fusion",
    "bias_swiglu_fusion",
)


@rule(
    id="MLM703",
    name="one-activation",
    framework=Framework.MEGATRON,
    prevents="AssertionError (not swiglu)",
    found_at=FoundAt.BUILD,
    source=FROM_ARGUMENTS,
)
def one_activation(run: MegatronRun) -> Iterator[Found]:
    """`--swiglu`, `--squared-relu` and `--quick-geglu` are kinds of activation; a model has one."""
    given_ones = [dest for dest in ("swiglu", "squared_relu", "quick_geglu") if run.arguments.is_on(dest)]
    if "swiglu" in given_ones and len(given_ones) > 1:
        other = f"--{given_ones[1].replace('_', '-')}"
        yield Found(
            place=run.place(given_ones[1]), message=f"--swiglu and {other} are both given.", hint="Keep one of them."
        )


DEMANDS = (
    Demand(
        id="MLM716",
        name="fused-squared-relu",
        when=on("--squared-relu") & FUSED_ACTIVATION,
        needs=(fact("--no-bias-gelu-fusion or --disable-bias-linear", lambda run: not _fuses_activation(run)),),
        error="ValueError: When bias_activation_fusion is True, activation function should be either gelu, swiglu, or "
        "quick_geglu",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="The fused kernels know gelu, swiglu and quick_geglu.",
    ),
    Demand(
        id="MLM717",
        name="offset-of-the-linear-unit",
        mends=False,
        when=FUSED_ACTIVATION
        & fact(
            "--glu-linear-offset other than 0",
            lambda run: run.said("glu_linear_offset") not in {0.0, None},
            "glu_linear_offset",
        ),
        needs=(on("--quick-geglu"),),
        error="ValueError: When bias_activation_fusion is True and glu_linear_offset is non-zero, activation function "
        "must be quick_gelu.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="The other fused kernels know no offset.",
    ),
    Demand(
        id="MLM718",
        name="activation-of-transformer-engine",
        when=on("--use-te-activation-func"),
        excludes=(FUSED_ACTIVATION, on("--squared-relu"), on("--quick-geglu")),
        error="ValueError: bias_activation_fusion and use_te_activation_func cannot be both true.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Either kernel computes the activation.",
    ),
    Demand(
        id="MLM719",
        name="fused-residual-norm",
        mends=False,
        when=on("--fused-residual-rmsnorm"),
        needs=(one_of("--normalization", "RMSNorm"),),
        error="ValueError: fused_residual_rmsnorm is only supported when normalization is RMSNorm.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="There is one such kernel.",
    ),
    Demand(
        id="MLM720",
        name="clipped-attention",
        when=on("--qk-clip"),
        needs=(
            fact(
                "--qk-clip-alpha between 0 and 1",
                lambda run: (
                    isinstance(run.said("qk_clip_alpha"), float) and 0 < float(str(run.said("qk_clip_alpha"))) < 1
                ),
                "qk_clip_alpha",
            ),
            fact(
                "--qk-clip-threshold above 0",
                lambda run: float(str(run.said("qk_clip_threshold"))) > 0,
                "qk_clip_threshold",
            ),
        ),
        error="AssertionError: --qk-clip-alpha must be between 0.0 and 1.0 when using --qk-clip.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Alpha says how the correction is shared by queries and keys.",
    ),
    Demand(
        id="MLM721",
        name="local-attention",
        when=one_of("--attention-backend", "local"),
        needs=(fact("--spec local", lambda run: run.words("spec")[:1] == ("local",), "spec"),),
        error="AssertionError: --attention-backend local is only supported with --spec local",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Other layers are built with Transformer Engine's attention.",
    ),
    Demand(
        id="MLM722",
        name="scaled-queries",
        when=on("--apply-query-key-layer-scaling") & TRANSFORMER_ENGINE,
        needs=(
            fact(
                "NVTE_APPLY_QK_LAYER_SCALING=1",
                lambda run: run.exported("NVTE_APPLY_QK_LAYER_SCALING") == "1",
                "apply_query_key_layer_scaling",
            ),
        ),
        error="ValueError: apply_query_key_layer_scaling is True but environment variable NVTE_APPLY_QK_LAYER_SCALING "
        "is None.",
        found_at=FoundAt.BUILD,
        source="megatron/core/extensions/transformer_engine.py: TEDotProductAttention",
        why="Transformer Engine takes this setting from the environment.",
    ),
    Demand(
        id="MLM723",
        name="deterministic-mode",
        when=on("--deterministic-mode"),
        needs=(
            fact(
                "NCCL_ALGO Ring, CollnetDirect, CollnetChain or ^NVLS, if it is exported",
                lambda run: (
                    {part.strip() for part in (run.exported("NCCL_ALGO") or "Ring").split(",") if part.strip()}
                    <= {"Ring", "CollnetDirect", "CollnetChain", "^NVLS"}
                ),
            ),
            fact(
                "NVTE_ALLOW_NONDETERMINISTIC_ALGO=0, if it is exported",
                lambda run: run.exported("NVTE_ALLOW_NONDETERMINISTIC_ALGO") in {None, "0"},
            ),
        ),
        excludes=(on("--cross-entropy-loss-fusion"), on("--tp-comm-overlap")),
        error="AssertionError: --deterministic-mode requires: cross_entropy_loss_fusion=False, tp_comm_overlap=False",
        found_at=FoundAt.START,
        source="megatron/training/determinism.py: apply_determinism_to_args",
        since="0.19",
        why="These add up in an order that changes.",
    ),
    Demand(
        id="MLM724",
        name="layers-for-inference",
        mends=False,
        when=FOR_INFERENCE,
        needs=(one_of("--normalization", "RMSNorm"),),
        excludes=(BIASES, on("--add-qkv-bias"), on("--apply-layernorm-1p", "layernorm_zero_centered_gamma")),
        error="AssertionError (normalization == 'RMSNorm')",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="These layers know few models.",
    ),
    Demand(
        id="MLM725",
        name="experts-for-inference",
        when=FOR_INFERENCE & fact("--num-experts", lambda run: run.num_experts is not None, "num_experts"),
        needs=(one_of("--expert-tensor-parallel-size", 1), one_of("--moe-router-dtype", "fp32")),
        excludes=(
            given("--moe-expert-capacity-factor"),
            on("--moe-router-padding-for-quantization"),
            on("--swiglu"),
            on("--quick-geglu"),
        ),
        error="ValueError: Inference-optimized MoE layers does not support expert tensor parallelism.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.18",
        why="These layers know few models.",
    ),
    Demand(
        id="MLM726",
        name="fused-communication-for-inference",
        mends=False,
        when=on("--inference-fuse-tp-communication") | on("--inference-disable-triton-nvls-kernels"),
        needs=(FOR_INFERENCE,),
        error="AssertionError: inference_fuse_tp_communication is only supported for inference_optimized transformer "
        "implementation.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="They are kernels of those layers.",
    ),
    Demand(
        id="MLM727",
        name="block-graphs-in-fp8",
        mends=False,
        when=one_of("--inference-cuda-graph-scope", "block") & FP8,
        needs=(FOR_INFERENCE, one_of("--fp8-recipe", "mxfp8")),
        error="AssertionError: fp8 with --inference-cuda-graph-scope=block is only supported with "
        "--transformer-impl=inference_optimized",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.18",
        why="Other layers requantize between the steps of a graph.",
    ),
    Demand(
        id="MLM728",
        name="deterministic-mode-before",
        when=on("--deterministic-mode"),
        needs=(
            fact(
                "NCCL_ALGO Tree, Ring, CollnetDirect, CollnetChain or ^NVLS",
                lambda run: run.exported("NCCL_ALGO") in {"Tree", "Ring", "CollnetDirect", "CollnetChain", "^NVLS"},
            ),
        ),
        excludes=(on("--use-flash-attn"), on("--cross-entropy-loss-fusion")),
        error="AssertionError: NCCL_ALGO must be one of ...",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        until="0.19",
        why="Sums must be added up in the same order in every run.",
    ),
    Demand(
        id="MLM729",
        name="probability-of-dropout",
        when=given("--attention-dropout") | given("--hidden-dropout"),
        needs=(between("--attention-dropout", 0, 1), between("--hidden-dropout", 0, 1)),
        error="ValueError: dropout probability has to be between 0 and 1",
        found_at=FoundAt.BUILD,
        source="torch/nn/modules/dropout.py, and the attention of Transformer Engine",
        why="It is a probability.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = (
    one_activation,
    *rules_of_demands(DEMANDS),
)
