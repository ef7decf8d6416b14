"""Megatron-LM: experts, and the router that chooses them."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import above, fact, given, has, on, one_of
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_conditions import FP4, FP8, OP_FUSER
from planner.rules.megatron_sources import ARGUMENTS, CONFIG, EXPERTS, ROUTER
from planner.rules.rule import Found, FoundAt, Rule, listed, nearest_divisors, rule

HAS_EXPERTS = fact("--num-experts", lambda run: run.num_experts is not None, "num_experts")

EXPERT_LAYERS = fact("--num-experts", lambda run: run.has_expert_layers, "num_experts")

BALANCED_BY_LOSS = frozenset({"aux_loss", "seq_aux_loss", "global_aux_loss", "none"})


def _mixes_dense_layers(run: MegatronRun) -> bool:
    frequency = run.said("moe_layer_freq")
    return (isinstance(frequency, list) and 0 in frequency) or (isinstance(frequency, int) and frequency > 1)


def _scores_by_softmax_of_one(run: MegatronRun) -> bool:
    one = run.said("moe_router_topk") == 1 and run.said("moe_router_score_function") == "softmax"
    return one and run.words("moe_router_load_balancing_type") != ("sinkhorn",)


def _has_loss(run: MegatronRun) -> bool:
    return any(float(word) != 0 for word in run.words("moe_aux_loss_coeff"))


QUANTIZED = FP8 | FP4

PADDED = on("--moe-router-padding-for-quantization") | on("--moe-router-padding-for-fp8")


@rule(
    id="MLM301",
    name="experts-divisible",
    framework=Framework.MEGATRON,
    prevents="AssertionError: Number of experts should be a multiple of expert model parallel_size.",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def experts_divisible(run: MegatronRun) -> Iterator[Found]:
    """Ep divides the experts: each rank holds whole ones."""
    if run.num_experts is not None and run.num_experts % run.ep:
        yield Found(
            place=run.place("expert_model_parallel_size", "num_experts"),
            message=f"ep {run.ep} does not divide {run.num_experts} experts.",
            hint=f"ep {listed(nearest_divisors(run.num_experts, run.ep))} would do.",
        )


@rule(
    id="MLM302",
    name="more-choices-than-experts",
    framework=Framework.MEGATRON,
    prevents="RuntimeError: selected index k out of range",
    found_at=FoundAt.STEP,
    source="megatron/core/transformer/moe/moe_utils.py: topk_routing_with_score_function",
)
def more_choices_than_experts(run: MegatronRun) -> Iterator[Found]:
    """A token goes to at least one expert, and to no more than there are.

    With groups (`--moe-router-group-topk`) only the experts of the chosen groups count.
    """
    chosen, experts = run.number("moe_router_topk"), run.num_experts
    if experts is None or chosen is None or not run.has_expert_layers:
        return
    groups, of_groups = run.number("moe_router_num_groups"), run.number("moe_router_group_topk")
    within = experts
    if groups and of_groups and experts % groups == 0 and 0 < of_groups <= groups:
        within = experts // groups * of_groups
    if not 1 <= chosen <= within:
        yield Found(
            place=run.place("moe_router_topk", "num_experts"),
            message=f"A token chooses {chosen} of {within} experts.",
            hint=f"Give --moe-router-topk 1 to {within}.",
        )


@rule(
    id="MLM303",
    name="router-groups",
    framework=Framework.MEGATRON,
    prevents="AssertionError: num_moe_experts (...) should be divisible by moe_router_num_groups (...).",
    found_at=FoundAt.BUILD,
    source=CONFIG,
)
def router_groups(run: MegatronRun) -> Iterator[Found]:
    """Groups of experts are of one size, and no more are chosen than there are.

    `--moe-router-group-topk` needs `--moe-router-num-groups`.
    """
    chosen, groups = run.number("moe_router_group_topk"), run.number("moe_router_num_groups")
    if not chosen:
        return
    place = run.place("moe_router_group_topk", "moe_router_num_groups")
    if run.num_experts is None or not groups:
        missing = "--moe-router-num-groups" if run.num_experts is not None else "--num-experts"
        yield Found(place=place, message=f"--moe-router-group-topk needs {missing}.", hint=f"Give {missing}.")
    elif run.num_experts % groups:
        yield Found(
            place=run.place("moe_router_num_groups"),
            message=f"{groups} groups do not divide {run.num_experts} experts.",
            hint=f"{listed(nearest_divisors(run.num_experts, groups))} groups would do.",
        )
    elif chosen > groups:
        yield Found(place=place, message=f"{chosen} of {groups} groups are chosen.", hint=f"Choose at most {groups}.")


@rule(
    id="MLM304",
    name="one-coefficient-a-loss",
    framework=Framework.MEGATRON,
    prevents="AssertionError: moe_aux_loss_coeff must be a list of the same length as moe_router_load_balancing_type",
    found_at=FoundAt.BUILD,
    source=CONFIG,
)
def one_coefficient_a_loss(run: MegatronRun) -> Iterator[Found]:
    """Several kinds of load balancing take as many coefficients."""
    kinds, coefficients = (run.words(f"moe_{name}") for name in ("router_load_balancing_type", "aux_loss_coeff"))
    if len(kinds) > 1 and len(coefficients) != len(kinds):
        yield Found(
            place=run.place("moe_aux_loss_coeff", "moe_router_load_balancing_type"),
            message=f"{len(kinds)} kinds of load balancing with {len(coefficients)} coefficients.",
            hint=f"Give --moe-aux-loss-coeff {len(kinds)} numbers.",
        )


DEMANDS = (
    Demand(
        id="MLM305",
        name="expert-parallel-needs-experts",
        when=above("--expert-model-parallel-size", 1),
        needs=(HAS_EXPERTS,),
        error="AssertionError: num_experts must be non None to use expert model parallelism",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Only experts are split over ep.",
    ),
    Demand(
        id="MLM306",
        name="expert-width-needs-experts",
        when=given("--moe-ffn-hidden-size"),
        needs=(HAS_EXPERTS | fact("dense layers between (--moe-layer-freq)", _mixes_dense_layers, "moe_layer_freq"),),
        error="ValueError: moe_ffn_hidden_size is set but num_moe_experts is None.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.18",
        why="A dense model has no experts whose width could be said.",
    ),
    Demand(
        id="MLM307",
        name="expert-bias-whole",
        when=HAS_EXPERTS
        & fact(
            "biases (without --disable-bias-linear)", lambda run: run.said("add_bias_linear") is True, "add_bias_linear"
        ),
        needs=(one_of("--expert-tensor-parallel-size", 1),),
        error="AssertionError: Bias in Moe is only supported when ETP==1",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Without --expert-tensor-parallel-size etp is tp. Most models with experts have no biases: "
        "--disable-bias-linear.",
    ),
    Demand(
        id="MLM308",
        name="balancing-bias-score",
        when=on("--moe-router-enable-expert-bias"),
        needs=(one_of("--moe-router-score-function", "sigmoid", "sqrtsoftplus"),),
        error="ValueError: Expert bias for aux-loss-free routing only supports 'sigmoid' and 'sqrtsoftplus' score "
        "functions.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="The bias is added to scores that do not depend on each other.",
    ),
    Demand(
        id="MLM309",
        name="softmax-of-one",
        when=fact("--moe-router-topk 1 with softmax", _scores_by_softmax_of_one, "moe_router_topk"),
        needs=(on("--moe-router-pre-softmax"),),
        error="ValueError: Please use --moe-router-pre-softmax when topk is 1.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="The softmax of one score is 1, and has no gradient.",
    ),
    Demand(
        id="MLM314",
        name="shared-expert-width",
        when=given("--moe-shared-expert-intermediate-size"),
        needs=(above("--moe-shared-expert-intermediate-size", 0),),
        error="ValueError: moe_shared_expert_intermediate_size must be num_shared_experts * "
        "ffn_size_of_each_shared_expert",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="It is the width of all shared experts together.",
    ),
    Demand(
        id="MLM315",
        name="capacity-and-balancing",
        when=given("--moe-expert-capacity-factor"),
        needs=(
            fact(
                "--moe-router-load-balancing-type aux_loss, seq_aux_loss, global_aux_loss or none",
                lambda run: set(run.words("moe_router_load_balancing_type")) <= BALANCED_BY_LOSS,
                "moe_router_load_balancing_type",
            ),
        ),
        error="ValueError: moe_expert_capacity_factor only works with aux_loss, seq_aux_loss, global_aux_loss or none "
        "load balancing",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Other kinds of balancing do not drop tokens.",
    ),
    Demand(
        id="MLM316",
        name="padding-needs-capacity",
        when=on("--moe-pad-expert-input-to-capacity"),
        needs=(
            fact(
                "--moe-expert-capacity-factor of at least 0",
                lambda run: (
                    isinstance(run.said("moe_expert_capacity_factor"), int | float)
                    and float(str(run.said("moe_expert_capacity_factor"))) >= 0
                ),
                "moe_expert_capacity_factor",
            ),
        ),
        error="ValueError: moe_expert_capacity_factor must be set to use moe_pad_expert_input_to_capacity",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="The factor says to how many tokens each expert's input is padded.",
    ),
    Demand(
        id="MLM317",
        name="padding-for-quantization",
        when=PADDED,
        needs=(QUANTIZED,),
        excludes=(one_of("--moe-token-dispatcher-type", "allgather"),),
        error="ValueError: fp8/fp4 must be specified when moe_router_padding_for_quantization is True.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Only quantized matrix products need rows in multiples of 16 or 32.",
    ),
    Demand(
        id="MLM318",
        name="single-grouped-parameters",
        mends=False,
        when=on("--moe-single-grouped-weight") | on("--moe-single-grouped-bias"),
        needs=(on("--moe-grouped-gemm"),),
        error="ValueError: moe_single_grouped_weight and moe_single_grouped_bias require moe_grouped_gemm=True.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="One tensor holds the weights of all experts of a rank.",
    ),
    Demand(
        id="MLM319",
        name="single-grouped-weight",
        when=on("--moe-single-grouped-weight"),
        needs=(OP_FUSER,),
        excludes=(
            FP8 & ~one_of("--fp8-recipe", "mxfp8"),
            FP4 & ~one_of("--fp4-recipe", "nvfp4"),
        ),
        error="ValueError: moe_single_grouped_weight requires use_transformer_engine_op_fuser=True.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        since="0.19",
        why="Without it Transformer Engine splits the tensor into experts again.",
    ),
    Demand(
        id="MLM320",
        name="single-grouped-bias",
        when=on("--moe-single-grouped-bias"),
        excludes=(fact("--disable-bias-linear", lambda run: run.said("add_bias_linear") is False, "add_bias_linear"),),
        error="ValueError: moe_single_grouped_bias requires add_bias_linear=True.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="There is no bias to hold.",
    ),
    Demand(
        id="MLM323",
        name="latent-experts",
        when=given("--moe-latent-size"),
        needs=(above("--moe-latent-size", 0), HAS_EXPERTS),
        error="AssertionError: MoE latent projections are applicable only for MoE models.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Tokens are projected to this width before they go to experts.",
    ),
    Demand(
        id="MLM329",
        name="upcycling-saves",
        when=on("--moe-use-upcycling"),
        needs=(given("--save"),),
        error="AssertionError: When using upcycling, the --save option must be specified.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The model with experts that is made of a dense one is saved first.",
    ),
    Demand(
        id="MLM330",
        name="sinkhorn-without-loss",
        when=EXPERT_LAYERS & has("--moe-router-load-balancing-type", "sinkhorn", "quantile_balancing"),
        excludes=(fact("--moe-aux-loss-coeff", _has_loss, "moe_aux_loss_coeff"),),
        error="AssertionError: Sinkhorn routing does not support aux loss.",
        found_at=FoundAt.STEP,
        source=ROUTER,
        why="These ways to route balance by themselves.",
    ),
    Demand(
        id="MLM331",
        name="quantile-balancing",
        when=EXPERT_LAYERS & has("--moe-router-load-balancing-type", "quantile_balancing"),
        excludes=(on("--moe-router-fusion"), given("--moe-router-num-groups"), given("--moe-router-group-topk")),
        error="AssertionError: Quantile balancing routing does not support moe_router_fusion.",
        found_at=FoundAt.STEP,
        source=ROUTER,
        why="It has a way of its own to choose experts.",
    ),
    Demand(
        id="MLM332",
        name="probabilities-on-input",
        mends=False,
        when=EXPERT_LAYERS & on("--moe-apply-probs-on-input"),
        needs=(one_of("--moe-router-topk", 1),),
        error="AssertionError: `moe_apply_probs_on_input` only works with `moe_router_topk`=1.",
        found_at=FoundAt.STEP,
        source=EXPERTS,
        why="A token that goes to several experts has a probability for each.",
    ),
    Demand(
        id="MLM333",
        name="grouped-biases",
        when=HAS_EXPERTS
        & on("--moe-grouped-gemm")
        & fact(
            "biases (without --disable-bias-linear)", lambda run: run.said("add_bias_linear") is True, "add_bias_linear"
        ),
        needs=(fact("--no-bias-dropout-fusion", lambda run: run.said("bias_dropout_fusion") is False),),
        error="AssertionError: bias_dropout_fusion is not supported in TEGroupedMLP when add_bias_linear=True",
        found_at=FoundAt.BUILD,
        source=EXPERTS,
        why="Most models with experts have no biases: --disable-bias-linear.",
    ),
    Demand(
        id="MLM334",
        name="recompute-of-the-expert-layer",
        when=on("--moe-layer-recompute"),
        excludes=(one_of("--recompute-granularity", "full"),),
        error="ValueError: Do not set --moe-layer-recompute with full recompute granularity.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        why="Full recompute covers the layer already. The flag is an old way to write --recompute-modules moe.",
    ),
    Demand(
        id="MLM336",
        name="expert-width-of-a-dense-model",
        when=given("--moe-ffn-hidden-size"),
        needs=(HAS_EXPERTS,),
        error="AssertionError: moe_ffn_hidden_size must be None when num_experts is not set.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        until="0.18",
        why="A dense model has no experts whose width could be said.",
    ),
    Demand(
        id="MLM339",
        name="single-grouped-weight-in-mxfp8",
        when=on("--moe-single-grouped-weight"),
        needs=(FP8 & one_of("--fp8-recipe", "mxfp8"),),
        excludes=(FP4,),
        error="ValueError: moe_single_grouped_weight is currently supported only with fp8 mode and fp8_recipe='mxfp8'.",
        found_at=FoundAt.BUILD,
        source=CONFIG,
        until="0.19",
        why="The other ways to shard such a weight gave wrong numbers.",
    ),
    Demand(
        id="MLM340",
        name="single-grouped-parameters-and-fsdp",
        when=on("--use-megatron-fsdp"),
        excludes=(on("--moe-single-grouped-weight"), on("--moe-single-grouped-bias")),
        error="ValueError: Megatron-FSDP does not currently support moe_single_grouped_weight or "
        "moe_single_grouped_bias.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.19",
        why="Its shards are cut from plain tensors.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = (
    experts_divisible,
    more_choices_than_experts,
    router_groups,
    one_coefficient_a_loss,
    *rules_of_demands(DEMANDS),
)
