"""Megatron-LM: number formats."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import fact, given, on, one_of
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_conditions import FP4, FP8
from planner.rules.megatron_sources import ARGUMENTS, CONFIG
from planner.rules.rule import Found, FoundAt, Rule, rule

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"

SIXTEEN_BIT = fact("--bf16 or --fp16", lambda run: run.is_sixteen_bit, "bf16", "fp16")


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
        mends=False,
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
)

RULES: tuple[Rule[MegatronRun], ...] = (
    one_connection,
    layers_in_bf16,
    *rules_of_demands(DEMANDS),
)
