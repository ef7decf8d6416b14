"""Megatron-LM: number formats, activation functions, kernels, and what the script must export for them."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import between, fact, given, on, one_of
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_sources import ARGUMENTS, CONFIG, FROM_ARGUMENTS
from planner.rules.rule import Found, FoundAt, Rule, rule

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
FP8, FP4 = given("--fp8-format", "fp8"), given("--fp4-format", "fp4")
SIXTEEN_BIT = fact("--bf16 or --fp16", lambda run: run.is_sixteen_bit, "bf16", "fp16")
BIASES = fact(
    "biases (without --disable-bias-linear)", lambda run: run.said("add_bias_linear") is True, "add_bias_linear"
)
TRANSFORMER_ENGINE = one_of("--transformer-impl", "transformer_engine")
FOR_INFERENCE = one_of("--transformer-impl", "inference_optimized")


@rule(
    id="MLM701",
    name="one-connection",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Using tensor model parallelism or context parallelism require setting the environment "
    "variable CUDA_DEVICE_MAX_CONNECTIONS to 1",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def one_connection(run: MegatronRun) -> Iterator[Found]:
    """Tp or cp above 1 need `CUDA_DEVICE_MAX_CONNECTIONS=1` on GPUs before Blackwell.

    Kernels then start in the order in which they are issued, so that communication comes before the computation that it
    overlaps with. With FSDP, and with overlapped experts, other values are allowed. On Blackwell none is needed: hide
    this finding there.
    """
    if run.tp == 1 and run.cp == 1:
        return
    if any(
        run.arguments.is_on(dest)
        for dest in ("use_torch_fsdp2", "use_megatron_fsdp", "overlap_moe_expert_parallel_comm")
    ):
        return
    value = run.exported(CONNECTIONS)
    if value != "1":
        seen = "is not exported" if value is None else f"is {value}"
        yield Found(
            place=run.place("tensor_model_parallel_size", "context_parallel_size"),
            message=f"{CONNECTIONS} {seen}, with tp {run.tp} and cp {run.cp}.",
            hint=f"Write `export {CONNECTIONS}=1` before the command.",
        )


@rule(
    id="MLM702",
    name="layers-in-bf16",
    framework=Framework.MEGATRON,
    prevents="ValueError: num_layers_at_start_in_bf16 (...) must be between 0 and number of layers per pipeline stage",
    found_at=FoundAt.BUILD,
    source=CONFIG,
)
def layers_in_bf16(run: MegatronRun) -> Iterator[Found]:
    """With `--first-last-layers-bf16` no more layers stay in bf16 at each end than a pipeline stage has."""
    if run.said("fp8") is None or not run.arguments.is_on("first_last_layers_bf16"):
        return
    most = run.num_layers // run.pp
    for dest in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"):
        number = run.number(dest)
        if number is not None and not 0 <= number <= most:
            yield Found(
                place=run.place(dest),
                message=f"--{dest.replace('_', '-')} is {number}, a stage has {most} layers.",
                hint=f"Give 0 to {most}.",
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

DEMANDS = (
    Demand(
        id="MLM704",
        name="one-half-precision",
        when=on("--fp16"),
        excludes=(on("--bf16"),),
        error="AssertionError (not bf16)",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Parameters have one type.",
    ),
    Demand(
        id="MLM705",
        name="one-low-precision",
        when=FP4,
        excludes=(FP8,),
        error="ValueError: --fp4-format and --fp8-format cannot be used simultaneously.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Matrix products have one type.",
    ),
    Demand(
        id="MLM706",
        name="fp4-parameters",
        when=on("--fp4-param-gather"),
        needs=(FP4,),
        error="ValueError: --fp4-param-gather must be used together with --fp4-format.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="What is gathered is what the products take.",
    ),
    Demand(
        id="MLM707",
        name="fp8-parameters",
        when=on("--fp8-param-gather"),
        needs=(FP8,),
        error="ValueError: fp8_param must be used together with fp8 mode.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="What is gathered is what the products take.",
    ),
    Demand(
        id="MLM708",
        name="fp8-parameters-are-sharded",
        when=on("--fp8-param-gather"),
        needs=(
            fact(
                "--use-distributed-optimizer, --use-megatron-fsdp or --use-torch-fsdp2",
                lambda run: (
                    run.arguments.is_on("use_distributed_optimizer")
                    or run.arguments.is_on("use_megatron_fsdp")
                    or run.arguments.is_on("use_torch_fsdp2")
                ),
                "use_distributed_optimizer",
            ),
        ),
        error="AssertionError: --fp8-param-gather only supported with distributed optimizer, torch fsdp2, megatron "
        "fsdp, or inference mode",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Without a sharded optimizer no parameter is gathered.",
    ),
    Demand(
        id="MLM709",
        name="first-and-last-in-bf16",
        when=FP8 & on("--first-last-layers-bf16"),
        excludes=(one_of("--fp8-recipe", "delayed"),),
        error="ValueError: Delayed scaling does not support first / last layer in BF16.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="delayed is the recipe without a word on it.",
    ),
    Demand(
        id="MLM710",
        name="own-fp8-recipe",
        when=FP8 & one_of("--fp8-recipe", "custom"),
        needs=(given("--fp8-quantizer-factory"),),
        error="ValueError: fp8_quantizer_factory must be provided when fp8_recipe is 'custom'.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="It names the Python function that makes the quantizers.",
    ),
    Demand(
        id="MLM711",
        name="own-fp4-recipe",
        when=FP4 & one_of("--fp4-recipe", "custom"),
        needs=(given("--fp4-quantizer-factory"),),
        error="ValueError: fp4_quantizer_factory must be provided when fp4_recipe is 'custom'.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="It names the Python function that makes the quantizers.",
    ),
    Demand(
        id="MLM712",
        name="fp8-output",
        when=on("--fp8-output-proj"),
        needs=(FP8, one_of("--fp8-recipe", "mxfp8")),
        error="ValueError: fp8_output_proj must be used together with fp8 mode.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Only that recipe has a kernel for the output layer.",
    ),
    Demand(
        id="MLM713",
        name="fp16-loss",
        when=on("--fp16-lm-cross-entropy"),
        needs=(on("--fp16"),),
        error="AssertionError: lm cross entropy in fp16 only support in fp16 mode.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The logits have the type of the parameters.",
    ),
    Demand(
        id="MLM714",
        name="wide-residual",
        when=on("--fp32-residual-connection"),
        needs=(SIXTEEN_BIT,),
        error="AssertionError: residual connection in fp32 only supported when using fp16 or bf16.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="In fp32 everything is.",
    ),
    Demand(
        id="MLM715",
        name="fused-loss-of-transformer-engine",
        when=on("--cross-entropy-loss-fusion"),
        excludes=(one_of("--cross-entropy-fusion-impl", "te"),),
        error="AssertionError: Transformer Engine cross entropy loss fusion is disabled due to stability issues.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.18",
        why="The native kernel is the default.",
    ),
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
    Demand(
        id="MLM724",
        name="layers-for-inference",
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
        when=one_of("--inference-cuda-graph-scope", "block") & FP8,
        needs=(FOR_INFERENCE, one_of("--fp8-recipe", "mxfp8")),
        error="AssertionError: fp8 with --inference-cuda-graph-scope=block is only supported with "
        "--transformer-impl=inference_optimized",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.18",
        why="Other layers requantize between the steps of a graph.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = (
    one_connection,
    layers_in_bf16,
    one_activation,
    *rules_of_demands(DEMANDS),
)
