"""Each rule has a plan that breaks only that rule."""

from dataclasses import replace

import pytest

from planner.evaluation.validate import PRICE_TOLERANCE, violations
from planner.frameworks.capabilities import CAPABILITIES, DEEPSPEED, MEGATRON
from planner.layout import (
    REPLICAS_OUTERMOST,
    Granularity,
    Layout,
    Overlap,
    Recompute,
    Schedule,
    Stage,
    stages_from_counts,
)
from planner.models.blocks import Activation, DenseFeedForward, MixtureOfExperts, Router, SelfAttention
from planner.models.specs import ModelSpec
from planner.plans.plan import PlannedLayout
from planner.requests.request import Bounds, Constraints, PlanRequest, Target
from planner.requests.workload import DType, Lora, Optimizer, Precision, TrainMethod
from tests.builders import tiny_dense_model, tiny_layout, tiny_planned_layout, tiny_request, two_node_cluster


def planned(layout: Layout) -> PlannedLayout:
    return replace(tiny_planned_layout(), layout=layout)


def rules(
    entry: PlannedLayout, *, model: ModelSpec | None = None, request: PlanRequest | None = None
) -> list[tuple[str, str]]:
    found = violations(entry, model or tiny_dense_model(), two_node_cluster(), request or tiny_request())
    return [(violation.rule, violation.message) for violation in found]


def with_workload(**changes: object) -> PlanRequest:
    request = tiny_request()
    return replace(request, workload=replace(request.workload, **changes))  # type: ignore[arg-type]


def with_heads(*, heads: int, groups: int, head_dim: int = 8, intermediate_size: int = 160) -> ModelSpec:
    model = with_width(intermediate_size)
    run = model.runs[0]
    mixer = SelfAttention(num_attention_heads=heads, num_key_value_heads=groups, head_dim=head_dim)
    return replace(model, runs=(replace(run, block=replace(run.block, mixer=mixer)),))


def with_width(intermediate_size: int) -> ModelSpec:
    model = tiny_dense_model()
    run = model.runs[0]
    assert isinstance(run.block.feed_forward, DenseFeedForward)
    feed_forward = replace(run.block.feed_forward, intermediate_size=intermediate_size)
    return replace(model, runs=(replace(run, block=replace(run.block, feed_forward=feed_forward)),))


def with_mixer(**changes: object) -> ModelSpec:
    model = tiny_dense_model()
    run = model.runs[0]
    assert isinstance(run.block.mixer, SelfAttention)
    mixer = replace(run.block.mixer, **changes)  # type: ignore[arg-type]
    return replace(model, runs=(replace(run, block=replace(run.block, mixer=mixer)),))


def with_experts(num_experts: int) -> ModelSpec:
    model = tiny_dense_model()
    run = model.runs[0]
    expert = DenseFeedForward(intermediate_size=160, gated=True, activation=Activation.SILU)
    experts = MixtureOfExperts(num_experts=num_experts, experts_per_token=2, expert=expert, router=Router())
    return replace(model, runs=(replace(run, block=replace(run.block, feed_forward=experts)),))


INTERLEAVED = replace(
    tiny_layout(),
    vpp=2,
    schedule=Schedule.INTERLEAVED,
    stages=stages_from_counts((1, 1, 1, 1)),
    overlap=Overlap(grad_reduce=True, param_gather=True, p2p=True),
)


UNSHARDED = replace(tiny_layout(), zero_stage=0, overlap=Overlap(grad_reduce=True, param_gather=False, p2p=False))


def test_replicas_may_be_outermost_where_they_tile_the_fast_domain() -> None:
    outermost = replace(tiny_layout(), rank_order=REPLICAS_OUTERMOST)
    assert rules(planned(outermost)) == []
    request = replace(tiny_request(), target=Target.DEEPSPEED)
    found = violations(planned(outermost), tiny_dense_model(), two_node_cluster(), request)
    assert "DeepSpeed 0.19.8 has no rank order tp-cp-ep-pp-dp" in {entry.message for entry in found}


def test_a_sound_plan_breaks_no_rule() -> None:
    assert rules(planned(tiny_layout())) == []
    assert rules(planned(INTERLEAVED)) == []


@pytest.mark.parametrize(
    ("layout", "rule", "message"),
    [
        (
            replace(tiny_layout(), dp=1, num_microbatches=16),
            "world",
            "tp cp pp dp = 4 ranks on 8 GPUs",
        ),
        (
            replace(tiny_layout(), num_microbatches=4),
            "batch",
            "micro-batch 1 x 4 x dp 2 = 8 sequences, not 16",
        ),
        (
            replace(tiny_layout(), stages=(tiny_layout().stages[0], replace(tiny_layout().stages[1], num_layers=1))),
            "layers",
            "the stages hold 3 of 4 layers",
        ),
        (
            replace(INTERLEAVED, stages=stages_from_counts((2, 1, 1, 0))),
            "empty-stage",
            "stage 3 holds no layer",
        ),
        (
            replace(
                tiny_layout(),
                stages=(tiny_layout().stages[0], Stage(first_layer=2, num_layers=2, has_embedding=True, has_head=True)),
            ),
            "ends",
            "stage 1 holds the embedding or the head of another stage",
        ),
        (replace(tiny_layout(), schedule=Schedule.INTERLEAVED), "schedule", "interleaved-1f1b with pp 2 and vpp 1"),
        (
            replace(tiny_layout(), pp=1, vpp=2, dp=4, num_microbatches=4, schedule=Schedule.NO_PIPELINE),
            "schedule",
            "vpp 2 without a pipeline",
        ),
        (
            replace(tiny_layout(), overlap=Overlap(grad_reduce=True, param_gather=True, p2p=True)),
            "overlap",
            "transfers overlap only with interleaving",
        ),
        (
            replace(tiny_layout(), zero_stage=0),
            "overlap",
            "parameters are gathered only with zero_stage 1 or more",
        ),
        (
            replace(tiny_layout(), overlap=Overlap(grad_reduce=False, param_gather=True, p2p=False)),
            "overlap",
            "parameter gathering overlaps only where gradient reduction does",
        ),
        (replace(tiny_layout(), ep=2), "experts", "ep 2 and etp 1 without experts"),
        (replace(tiny_layout(), etp=2), "experts", "ep 1 and etp 2 without experts"),
        (replace(tiny_layout(), state_exchange=True), "context", "there are no states to exchange with cp 1"),
        (
            replace(UNSHARDED, state_replicas=2),
            "sharding",
            "there is nothing to shard in groups with zero_stage 0",
        ),
        (replace(tiny_layout(), secondary_shard=2), "sharding", "secondary shards with zero_stage 1; 3 has them"),
        (
            replace(tiny_layout(), rank_order="tp-pp-dp"),
            "unpriced",
            "rank order tp-pp-dp is not priced; tp-cp-ep-dp-pp and tp-cp-ep-pp-dp are",
        ),
        (
            replace(
                tiny_layout(), recompute=Recompute(granularity=Granularity.SELECTIVE, modules=("attention", "mlp"))
            ),
            "recompute",
            (
                "recompute of attention; only core_attn, layernorm, mla_up_proj, mlp, moe, moe_act, shared_experts are"
                " priced"
            ),
        ),
        (
            replace(tiny_layout(), recompute=Recompute(granularity=Granularity.FULL)),
            "constraints",
            "recompute full is not what the constraints allow",
        ),
    ],
)
def test_a_layout_that_breaks_one_rule_is_told_which(layout: Layout, rule: str, message: str) -> None:
    # What a framework lacks is another rule.
    assert rules(planned(layout), request=replace(tiny_request(), target=Target.ANY)) == [(rule, message)]


UNCONSTRAINED = replace(tiny_request(), constraints=Constraints())


@pytest.mark.parametrize("counts", [(0, 4), (4, 0)])
def test_a_stage_at_either_end_of_a_plain_pipeline_may_hold_no_layer(counts: tuple[int, ...]) -> None:
    assert rules(planned(replace(tiny_layout(), stages=stages_from_counts(counts)))) == []


def test_a_stage_between_others_holds_a_layer() -> None:
    gap = replace(tiny_layout(), tp=1, sequence_parallel=False, pp=4, stages=stages_from_counts((2, 0, 1, 1)))
    assert rules(planned(gap), request=UNCONSTRAINED) == [("empty-stage", "stage 1 holds no layer")]


# Frameworks: what one cannot run and no framework in particular can.

LONE = replace(
    tiny_layout(),
    tp=1,
    pp=1,
    dp=8,
    sequence_parallel=False,
    schedule=Schedule.NO_PIPELINE,
    num_microbatches=2,
    recompute=Recompute(granularity=Granularity.NONE),
    stages=stages_from_counts((4,)),
)
CONTEXT = replace(LONE, cp=2, dp=4, num_microbatches=4, zero_stage=1)
SPLIT = replace(LONE, tp=2, sequence_parallel=True, dp=4, num_microbatches=4)
PIPELINE = replace(
    LONE, pp=2, dp=4, num_microbatches=4, schedule=Schedule.ONE_F_ONE_B, stages=stages_from_counts((2, 2))
)
WINDOWED = with_mixer(window=32)
EXPERTS = with_experts(8)


@pytest.mark.parametrize(
    ("target", "layout", "model", "lacks"),
    [
        (Target.MEGATRON, replace(LONE, zero_stage=3, secondary_shard=2), None, "secondary shards"),
        (Target.MEGATRON, replace(PIPELINE, zero_stage=2), None, "zero_stage 2 with pp 2"),
        (Target.MEGATRON, replace(SPLIT, zero_stage=2), None, "zero_stage 2 with tp 2"),
        (Target.MEGATRON, replace(CONTEXT, zero_stage=2), None, "zero_stage 2 with cp 2"),
        (Target.MEGATRON, replace(LONE, zero_stage=2, ep=2), EXPERTS, "zero_stage 2 with ep 2"),
        (Target.MEGATRON, CONTEXT, WINDOWED, "a ring around windows"),
        (Target.MEGATRON, replace(CONTEXT, state_exchange=True), None, "an exchange of states"),
        (Target.DEEPSPEED, replace(CONTEXT, zero_stage=2), None, "ring context parallelism"),
        (Target.DEEPSPEED, replace(LONE, zero_stage=3, state_replicas=2), None, "hybrid sharding"),
        (
            Target.DEEPSPEED,
            replace(LONE, recompute=Recompute(granularity=Granularity.SELECTIVE, modules=("mlp",))),
            None,
            "selective recompute",
        ),
        (
            Target.DEEPSPEED,
            replace(LONE, recompute=Recompute(granularity=Granularity.FULL, num_layers=2)),
            None,
            "partial recompute",
        ),
        (Target.DEEPSPEED, SPLIT, None, "sequence parallelism"),
    ],
)
def test_what_a_framework_lacks_is_named(target: Target, layout: Layout, model: ModelSpec | None, lacks: str) -> None:
    request = replace(UNCONSTRAINED, target=target)
    assert rules(planned(layout), model=model, request=request) == [
        ("target", f"{CAPABILITIES[target].title} has no {lacks}")
    ]
    assert rules(planned(layout), model=model, request=replace(request, target=Target.ANY)) == []


@pytest.mark.parametrize(
    ("layout", "lacks"),
    [
        (
            replace(
                PIPELINE,
                vpp=2,
                schedule=Schedule.INTERLEAVED,
                stages=stages_from_counts((1, 1, 1, 1)),
                overlap=replace(PIPELINE.overlap, p2p=True),
            ),
            ["interleaved stages"],
        ),
        (replace(tiny_layout(), sequence_parallel=False), ["pp with tp", "selective recompute"]),
        (
            replace(PIPELINE, cp=2, ulysses=2, dp=2, num_microbatches=8),
            ["pp with cp", "zero_stage 1 with cp 2, which is too low"],
        ),
        (
            replace(SPLIT, sequence_parallel=False, cp=2, ulysses=2, dp=2, num_microbatches=8, zero_stage=2),
            ["tp with cp"],
        ),
        (replace(CONTEXT, ulysses=2), ["zero_stage 1 with cp 2, which is too low"]),
        (replace(SPLIT, sequence_parallel=False, zero_stage=3), ["zero_stage 3 with tp 2"]),
        (replace(PIPELINE, zero_stage=2), ["zero_stage 2 with pp 2"]),
    ],
)
def test_grids_that_deepspeed_cannot_join_are_named(layout: Layout, lacks: list[str]) -> None:
    request = replace(UNCONSTRAINED, target=Target.DEEPSPEED)
    found = rules(planned(layout), request=request)
    assert sorted(found) == sorted(("target", f"{DEEPSPEED.title} has no {what}") for what in lacks)
    assert rules(planned(layout), request=replace(request, target=Target.ANY)) == []


def test_deepspeed_spreads_no_experts() -> None:
    request = replace(UNCONSTRAINED, target=Target.DEEPSPEED)
    assert rules(planned(replace(LONE, ep=2)), model=EXPERTS, request=request) == [
        ("target", f"{DEEPSPEED.title} has no {what}") for what in ("expert parallelism", "zero_stage 1 with ep 2")
    ]


def test_sequences_split_into_two_pieces_a_context_parallel_rank() -> None:
    request = replace(with_workload(seq_len=130), constraints=Constraints())
    assert rules(planned(replace(CONTEXT, cp=1, dp=8, num_microbatches=2)), request=request) == []
    assert rules(planned(CONTEXT), request=request) == [("sequence", "130 tokens do not split into 2 x cp 2 pieces")]


def test_adapters_are_not_trained_with_context_parallelism() -> None:
    request = with_workload(method=TrainMethod.LORA, lora=Lora(rank=4, alpha=8.0, target_modules=("qkv",)))
    found = rules(planned(CONTEXT), request=replace(request, constraints=Constraints(), target=Target.ANY))
    assert found == [("target", "no framework in particular has no adapters with cp")]


@pytest.mark.parametrize(
    ("ep", "etp", "messages"),
    [
        (4, 2, []),
        (1, 8, []),
        (8, 1, ["num_experts = 4 does not split over ep 8"]),
    ],
)
def test_experts_split_over_ep_and_their_widths_over_etp(ep: int, etp: int, messages: list[str]) -> None:
    layout = replace(LONE, ep=ep, etp=etp)
    found = rules(planned(layout), model=with_experts(4), request=UNCONSTRAINED)
    assert found == [("divisible", message) for message in messages]


def test_experts_with_tp_need_sequence_parallelism() -> None:
    split = replace(SPLIT, sequence_parallel=False)
    assert rules(planned(split), request=UNCONSTRAINED) == []
    assert rules(planned(split), model=EXPERTS, request=UNCONSTRAINED) == [
        ("sequence-parallel", "experts with tp 2 need sequence parallelism")
    ]


def test_groups_of_shards_divide_the_ranks_that_hold_the_same_weights() -> None:
    assert rules(planned(replace(LONE, zero_stage=1, state_replicas=4)), request=UNCONSTRAINED) == []
    found = rules(planned(replace(LONE, zero_stage=1, state_replicas=3)), request=UNCONSTRAINED)
    assert found[0] == ("sharding", "state_replicas 3 does not divide dp x cp = 8")


def test_groups_of_shards_divide_the_ranks_that_hold_the_same_experts() -> None:
    layout = replace(LONE, ep=8, state_replicas=2)
    assert rules(planned(layout), model=EXPERTS, request=UNCONSTRAINED) == [
        ("sharding", "state_replicas 2 does not divide edp = 1")
    ]
    assert rules(planned(replace(layout, ep=4)), model=EXPERTS, request=UNCONSTRAINED) == []


def test_kinds_of_context_parallelism_can_be_pinned() -> None:
    request = replace(UNCONSTRAINED, constraints=Constraints(cp_kind=("ulysses",)))
    assert rules(planned(CONTEXT), request=request) == [
        ("constraints", "cp_kind ring is not what the constraints allow")
    ]
    assert rules(planned(replace(CONTEXT, ulysses=2)), request=request) == []
    assert rules(planned(LONE), request=request) == []


@pytest.mark.parametrize(
    ("num_layers", "message"),
    [
        (0, "full recompute of no layers"),
        (1, None),
        (2, "full recompute of 2 layers where the smallest stage holds 1"),
    ],
)
def test_the_smallest_stage_holds_what_is_recomputed_in_each(num_layers: int, message: str | None) -> None:
    uneven = replace(
        tiny_layout(),
        stages=stages_from_counts((1, 3)),
        recompute=Recompute(granularity=Granularity.FULL, num_layers=num_layers),
    )
    expected = [] if message is None else [("recompute", message)]
    assert rules(planned(uneven), request=UNCONSTRAINED) == expected


def test_a_schedule_that_is_too_long_to_simulate_is_refused() -> None:
    longest = replace(tiny_layout(), num_microbatches=250_000)
    assert rules(planned(longest), request=with_workload(global_batch_size=500_000)) == []
    longer = replace(longest, num_microbatches=250_001)
    assert rules(planned(longer), request=with_workload(global_batch_size=500_002)) == [
        ("schedule", "1000004 passes, of which 1000000 are simulated")
    ]


FITTING_FP8 = with_heads(heads=8, groups=4, head_dim=16, intermediate_size=192)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (FITTING_FP8, {"seq_len": 80}, "40 tokens on a rank are no multiple of {multiple}"),
        (
            replace(FITTING_FP8, hidden_size=72),
            {},
            "width 72 of {operator} over 1 ranks is no multiple of {multiple}",
        ),
        (
            with_heads(heads=8, groups=1, head_dim=8, intermediate_size=192),
            {},
            "width 80 of qkv over 2 ranks is no multiple of {multiple}",
        ),
        (
            with_heads(heads=6, groups=1, head_dim=8, intermediate_size=192),
            {},
            "width 48 of proj over 2 ranks is no multiple of {multiple}",
        ),
        (
            with_heads(heads=8, groups=4, head_dim=16, intermediate_size=176),
            {},
            "width 176 of fc2 over 2 ranks is no multiple of {multiple}",
        ),
    ],
)
@pytest.mark.parametrize(("precision", "multiple"), [(Precision.FP8_BLOCKWISE, 16), (Precision.FP8_MXFP8, 32)])
def test_fp8_products_are_aligned(
    model: ModelSpec, changes: dict[str, object], message: str, precision: Precision, multiple: int
) -> None:
    entry = planned(tiny_layout())
    assert rules(entry, model=FITTING_FP8, request=with_workload(precision=precision)) == []
    assert rules(entry, model=model, request=with_workload(**changes)) == []
    found = rules(entry, model=model, request=with_workload(precision=precision, **changes))
    # A width of the stream is one of four products; gate and up are one product of twice the width.
    operators = ("qkv", "proj", "fc1", "fc2") if "{operator}" in message else ("",)
    expected = [("fp8", message.format(multiple=multiple, operator=operator)) for operator in operators]
    if multiple == 32 and "fc2 over 2" in message:
        expected.insert(0, ("fp8", "width 352 of fc1 over 2 ranks is no multiple of 32"))
    assert found == expected


def test_mxfp8_needs_twice_what_other_recipes_need() -> None:
    entry, request = planned(tiny_layout()), with_workload(precision=Precision.FP8_MXFP8, seq_len=96)
    assert rules(entry, model=FITTING_FP8, request=with_workload(precision=Precision.FP8_DELAYED, seq_len=96)) == []
    assert rules(entry, model=FITTING_FP8, request=request) == [("fp8", "48 tokens on a rank are no multiple of 32")]


def test_stages_that_skip_a_layer_are_named() -> None:
    first, second = tiny_layout().stages
    skipped = replace(tiny_layout(), stages=(replace(first, num_layers=1), second))
    assert rules(planned(skipped)) == [("chain", "stage 1 starts at layer 2, the one before ends at 1")]


def test_interleaving_needs_whole_groups_of_micro_batches() -> None:
    odd = replace(INTERLEAVED, num_microbatches=3)
    request = with_workload(global_batch_size=6)
    assert rules(planned(odd), request=request) == [("interleaving", "3 micro-batches in groups of pp 2")]


@pytest.mark.parametrize(
    ("model", "rule", "message"),
    [
        (with_heads(heads=3, groups=1), "divisible", "num_attention_heads = 3 does not split over tp 2 x ulysses 1"),
        (with_heads(heads=6, groups=3), "divisible", "num_key_value_heads = 3 does not split over tp 2"),
        (with_width(161), "divisible", "intermediate_size = 161 does not split over tp 2"),
    ],
)
def test_a_model_that_tp_does_not_divide_is_told_where(model: ModelSpec, rule: str, message: str) -> None:
    assert rules(planned(tiny_layout()), model=model) == [(rule, message)]


def test_q_k_and_v_together_split_over_tp() -> None:
    # 8 query heads and 1 key/value head of 2: 20 rows split over 4 ranks, not over 8.
    wide = replace(
        tiny_layout(),
        tp=8,
        pp=1,
        dp=1,
        schedule=Schedule.NO_PIPELINE,
        num_microbatches=16,
        stages=stages_from_counts((4,)),
    )
    model = with_heads(heads=8, groups=1, head_dim=2)
    assert rules(planned(wide), model=model, request=UNCONSTRAINED) == [
        ("divisible", "the width of q, k and v together = 20 does not split over tp 8")
    ]
    model = with_heads(heads=8, groups=1, head_dim=4)
    assert rules(planned(wide), model=model, request=UNCONSTRAINED) == []


def test_sequence_parallelism_needs_tp_and_a_sequence_that_splits() -> None:
    alone = replace(tiny_layout(), tp=1, dp=4, num_microbatches=4)
    assert rules(planned(alone)) == [("sequence-parallel", "sequence parallelism needs tp above 1")]
    assert rules(planned(tiny_layout()), request=with_workload(seq_len=127)) == [
        ("sequence", "127 tokens do not split over tp 2 x cp 1")
    ]


def test_low_precision_states_need_a_sharded_optimizer() -> None:
    entry = planned(UNSHARDED)
    assert rules(entry) == []
    assert rules(entry, request=with_workload(moment_dtype=DType.BF16)) == [
        ("optimizer", "optimizer states below fp32 need a sharded optimizer")
    ]


def test_only_adam_is_sharded() -> None:
    request = with_workload(optimizer=Optimizer.SGD)
    assert rules(planned(tiny_layout()), request=request) == [
        ("target", f"{MEGATRON.title} has no zero_stage 1 with sgd")
    ]
    assert rules(planned(UNSHARDED), request=request) == []


def test_adapters_are_not_sharded_with_their_base() -> None:
    lone = replace(
        tiny_layout(),
        tp=1,
        pp=1,
        dp=8,
        sequence_parallel=False,
        schedule=Schedule.NO_PIPELINE,
        num_microbatches=2,
        zero_stage=2,
        stages=stages_from_counts((4,)),
    )
    assert rules(planned(lone)) == []
    request = with_workload(method=TrainMethod.LORA, lora=Lora(rank=4, alpha=8.0, target_modules=("qkv",)))
    assert rules(planned(lone), request=request) == [("target", f"{MEGATRON.title} has no zero_stage 2 with adapters")]


def test_pins_are_kept() -> None:
    request = replace(tiny_request(), constraints=Constraints(degrees={"dp": Bounds(allowed=(4,))}))
    assert rules(planned(tiny_layout()), request=request) == [("constraints", "dp 2 is not what the constraints allow")]
    request = replace(tiny_request(), constraints=Constraints(sequence_parallel=False))
    assert rules(planned(tiny_layout()), request=request) == [("constraints", "sequence_parallel must be False")]


def test_the_peak_may_touch_the_limit_but_not_pass_it() -> None:
    entry = tiny_planned_layout()
    assert rules(replace(entry, memory_limit_bytes=entry.peak_memory_bytes)) == []
    limit = entry.peak_memory_bytes - 1
    assert rules(replace(entry, memory_limit_bytes=limit)) == [
        ("memory", f"{entry.peak_memory_bytes} bytes needed, {limit} allowed")
    ]


def test_search_and_evaluator_must_agree() -> None:
    entry = tiny_planned_layout()
    within = entry.step_seconds * (1.0 + PRICE_TOLERANCE / 2)
    assert rules(replace(entry, reevaluated_step_seconds=within)) == []
    beyond = entry.step_seconds * (1.0 + PRICE_TOLERANCE * 3)
    assert [rule for rule, _ in rules(replace(entry, reevaluated_step_seconds=beyond))] == ["price"]
