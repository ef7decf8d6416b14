"""Megatron-LM accepts every kind of model and layout that is emitted; its ranks hold the parameters that we count."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from planner.emit.megatron import LAUNCH_SCRIPT, emit_megatron
from planner.errors import NotExpressibleError
from planner.layout import Granularity, Layout, Recompute
from planner.models.specs import ModelSpec
from planner.plans.plan import Plan
from planner.readers.megatron import read_megatron
from planner.requests.workload import DocumentLengths, Packing, Precision, TrainWorkload
from tests.emitted import models
from tests.emitted.drawn_plans import plans_of_every_kind
from tests.emitted.plans import LLAMA_8B, cluster_of, layout_of_degrees, plan_of
from tests.frameworks.megatron_counts import ledger_expert_parameters, ledger_parameters
from tests.frameworks.megatron_environment import Verdict, ask_megatron, job_of

pytestmark = pytest.mark.frameworks

GPUS_PER_NODE = 8

PACKED = DocumentLengths(lengths=(1024, 4096), weights=(0.5, 0.5), packing=Packing.PACKED)


def planned(model: ModelSpec, layout: Layout, *, documents: DocumentLengths | None = None) -> Plan:
    workload = TrainWorkload(
        seq_len=8192,
        precision=Precision.BF16,
        global_batch_size=layout.global_batch_size,
        documents=documents,
    )
    return plan_of(model, workload, layout, cluster_of(layout.world_size // GPUS_PER_NODE, GPUS_PER_NODE))


def linear_alone() -> ModelSpec:
    """Return a model whose layers all have linear attention."""
    model = models.linear_hybrid()
    return replace(model, runs=models.chain((model.blocks[0], 4)))


def recomputing(*modules: str) -> Recompute:
    return Recompute(granularity=Granularity.SELECTIVE, modules=modules)


PLANS: Mapping[str, Plan] = {
    "Mixtral, experts split": planned(
        models.mixtral(),
        layout_of_degrees(layers=(2, 2), num_microbatches=4, tp=2, pp=2, dp=4, ep=4, etp=2),
    ),
    "Mixtral, experts whole": planned(
        models.mixtral(),
        layout_of_degrees(
            layers=(2, 2), num_microbatches=4, tp=2, pp=2, dp=4, ep=8, recompute=recomputing("moe_act", "core_attn")
        ),
    ),
    "Qwen3 with experts": planned(
        models.qwen3_experts(), layout_of_degrees(layers=(4,), num_microbatches=4, tp=4, dp=4, ep=16)
    ),
    "DeepSeek, uneven": planned(
        models.deepseek(),
        layout_of_degrees(
            layers=(0, 2, 2, 1),
            num_microbatches=8,
            pp=4,
            tp=2,
            dp=8,
            ep=16,
            recompute=recomputing("mla_up_proj", "shared_experts", "mlp"),
        ),
    ),
    "DeepSeek, interleaved": planned(
        models.deepseek(1, 3), layout_of_degrees(layers=(1,) * 4, num_microbatches=8, pp=2, tp=2, dp=4, ep=8)
    ),
    "DeepSeek, the head alone": planned(
        models.deepseek(1, 3), layout_of_degrees(layers=(2, 2, 0), num_microbatches=9, pp=3, dp=8, ep=8)
    ),
    "Kimi": planned(models.kimi(), layout_of_degrees(layers=(4,), num_microbatches=2, tp=8, dp=4, ep=32)),
    "latent attention in a ring": planned(
        models.kimi(), layout_of_degrees(layers=(4,), num_microbatches=2, tp=4, cp=4, dp=2, ep=32)
    ),
    "sparse latent attention": planned(
        models.sparse_latent(), layout_of_degrees(layers=(3,), num_microbatches=2, tp=8, dp=4, ep=32)
    ),
    "gpt-oss": planned(models.gpt_oss(), layout_of_degrees(layers=(1, 3), num_microbatches=2, tp=2, pp=2, dp=4, ep=8)),
    "gpt-oss, heads exchanged": planned(
        models.gpt_oss(), layout_of_degrees(layers=(4,), num_microbatches=2, tp=2, cp=4, ulysses=4, dp=2, ep=16)
    ),
    "Nemotron-H": planned(
        models.nemotron_h(), layout_of_degrees(layers=(0, 4, 6, 0), num_microbatches=4, tp=2, pp=4, dp=2)
    ),
    "Nemotron-H, interleaved": planned(
        models.nemotron_h(), layout_of_degrees(layers=(2, 3, 3, 2), num_microbatches=2, tp=2, pp=2, dp=2, cp=2)
    ),
    "Mamba-2 alone": planned(models.mamba(), layout_of_degrees(layers=(1, 3), num_microbatches=2, pp=2, dp=4)),
    "linear attention alone": planned(
        linear_alone(), layout_of_degrees(layers=(2, 2), num_microbatches=2, tp=2, pp=2, dp=2, ep=4)
    ),
    "Nemotron-3": planned(
        models.nemotron_3(),
        layout_of_degrees(layers=(5, 5), num_microbatches=2, tp=2, pp=2, dp=2, ep=4, recompute=recomputing("moe")),
    ),
    "linear attention": planned(
        models.linear_hybrid(2),
        layout_of_degrees(layers=(3, 5), num_microbatches=2, tp=2, pp=2, dp=2, cp=2, ulysses=1, ep=8),
    ),
    "layers that differ": planned(
        models.nemotron_super(), layout_of_degrees(layers=(1, 5), num_microbatches=2, tp=8, pp=2)
    ),
    "cp in a ring": planned(LLAMA_8B, layout_of_degrees(layers=(16, 16), num_microbatches=4, tp=2, pp=2, cp=8, dp=2)),
    "cp by heads": planned(
        LLAMA_8B, layout_of_degrees(layers=(16, 16), num_microbatches=4, tp=2, pp=2, cp=4, ulysses=4, dp=4)
    ),
    "cp by heads in a ring": planned(
        LLAMA_8B, layout_of_degrees(layers=(32,), num_microbatches=4, tp=2, cp=16, ulysses=4, dp=2)
    ),
    "states in groups": planned(
        LLAMA_8B, layout_of_degrees(layers=(32,), num_microbatches=1, tp=2, cp=2, dp=16, state_replicas=4)
    ),
    "states of experts in groups": planned(
        models.mixtral(), layout_of_degrees(layers=(4,), num_microbatches=1, tp=2, dp=32, ep=8, state_replicas=4)
    ),
    "fully sharded in groups": planned(
        LLAMA_8B, layout_of_degrees(layers=(32,), num_microbatches=1, dp=16, zero_stage=3, state_replicas=2)
    ),
    "packed documents": planned(
        LLAMA_8B, layout_of_degrees(layers=(32,), num_microbatches=4, tp=2, dp=4), documents=PACKED
    ),
}

WHOLE: Mapping[str, tuple[ModelSpec, int]] = {
    "Mixtral-8x7B": (models.mixtral(32), 46_702_792_704),
    "Qwen3-235B-A22B": (models.qwen3_experts(94), 235_093_634_560),
}
"""Whole models with their published parameters (Hugging Face's counts of the checkpoints)."""

NO_PP_LAST = "tp-cp-ep-pp-dp"


LATE: Mapping[str, tuple[Plan, str, str]] = {
    "experts with biases and etp": (
        planned(models.gpt_oss(), layout_of_degrees(layers=(4,), num_microbatches=2, tp=2, dp=4, ep=4, etp=2)),
        "config",
        "Bias in Moe is only supported when ETP==1",
    ),
    "cp with pipeline ranks next to each other": (
        planned(
            LLAMA_8B,
            layout_of_degrees(layers=(16, 16), num_microbatches=4, tp=2, pp=2, cp=2, dp=2, rank_order=NO_PP_LAST),
        ),
        "groups",
        "the data parallel size of the attention and moe layers must be the same",
    ),
    "an expert of the wrong size": (
        planned(models.mixtral(), layout_of_degrees(layers=(4,), num_microbatches=4, dp=16, ep=16)),
        "validate",
        "Number of experts should be a multiple of expert model parallel_size",
    ),
    "groups that do not divide": (
        planned(LLAMA_8B, layout_of_degrees(layers=(32,), num_microbatches=1, dp=8, state_replicas=3)),
        "groups",
        "divisible by partial DistOpt shard factor",
    ),
}
"""Plans that the emitter refuses, the level at which Megatron does, and its words."""


@pytest.fixture(scope="module")
def verdicts() -> Mapping[str, Verdict]:
    """Return Megatron's verdict on every plan above; one process imports Megatron once."""
    jobs = {name: job_of(plan) for name, plan in PLANS.items()}
    jobs |= {name: job_of(plan) for name, (plan, _, _) in LATE.items()}
    jobs |= {name: job_of(on_one_gpu_each(model)) for name, (model, _) in WHOLE.items()}
    return dict(zip(jobs, ask_megatron(list(jobs.values())), strict=True))


def on_one_gpu_each(model: ModelSpec) -> Plan:
    return planned(model, layout_of_degrees(layers=(model.num_layers,), dp=8, num_microbatches=1))


@pytest.mark.parametrize("name", PLANS)
def test_what_is_pushed_through_megatron_is_what_the_emitter_writes(name: str) -> None:
    job = read_megatron(emit_megatron(PLANS[name])[LAUNCH_SCRIPT], file=LAUNCH_SCRIPT)
    assert tuple(word for flag in job.flags for word in (flag.name, *flag.values)) == job_of(PLANS[name]).arguments


@pytest.mark.parametrize("name", PLANS)
def test_every_level_accepts_the_emitted_arguments(name: str, verdicts: Mapping[str, Verdict]) -> None:
    verdict, layout = verdicts[name], PLANS[name].best.layout
    assert (verdict.failed_level, verdict.error) == ("", "")
    assert (verdict.data_parallel_size, verdict.num_microbatches) == (layout.dp, layout.num_microbatches)


@pytest.mark.parametrize("name", PLANS)
def test_ranks_hold_the_planned_layers_and_parameters(name: str, verdicts: Mapping[str, Verdict]) -> None:
    plan = PLANS[name]
    assert verdicts[name].built
    for stage in verdicts[name].built:
        rank = stage.pipeline_rank
        assert stage.layers == tuple(chunk.num_layers for chunk in plan.best.layout.chunks(rank))
        assert stage.parameters == ledger_parameters(plan, rank)
        assert stage.expert_parameters == ledger_expert_parameters(plan, rank)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_models_have_their_published_size(name: str, verdicts: Mapping[str, Verdict]) -> None:
    assert [stage.parameters for stage in verdicts[name].built] == [WHOLE[name][1]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "Mixtral, experts split",
            {
                "moe_layer_freq": "1",
                "moe_router_topk": "2",
                "moe_router_score_function": "softmax",
                "moe_router_pre_softmax": "False",
                "moe_token_dispatcher_type": "alltoall",
                "moe_grouped_gemm": "True",
                "expert_model_parallel_size": "4",
                "expert_tensor_parallel_size": "2",
                "activation_func": "silu",
            },
        ),
        ("Mixtral, experts whole", {"recompute_modules": "['moe_act', 'core_attn']"}),
        (
            "DeepSeek, uneven",
            {
                "moe_layer_freq": "[0, 1, 1, 1, 1]",
                "moe_router_score_function": "sigmoid",
                "moe_router_num_groups": "8",
                "moe_router_group_topk": "4",
                "moe_router_topk_scaling_factor": "2.5",
                "moe_router_enable_expert_bias": "True",
                "mtp_num_layers": "1",
                "rope_type": "yarn",
                "rotary_scaling_factor": "40.0",
                "qk_layernorm": "True",
                "recompute_modules": "['mla_up_proj', 'shared_experts', 'mlp']",
            },
        ),
        (
            "gpt-oss",
            {
                "activation_func": "quick_gelu",
                "activation_func_clamp_value": "7.0",
                "glu_linear_offset": "1.0",
                "gated_linear_unit": "True",
                "add_bias_linear": "True",
                "softmax_type": "learnable",
                "window_size": "(127, 0)",
                "window_attn_skip_freq": "[1, 0, 1, 0]",
                "position_embedding_type": "yarn",
                "yarn_correction_range_round_to_int": "False",
                "attention_backend": "auto",
            },
        ),
        (
            "linear attention",
            {
                "experimental_attention_variant": "gated_delta_net",
                "linear_attention_freq": "[1, 1, 1, 0, 1, 1, 1, 0]",
                "attention_output_gate": "True",
                "layernorm_zero_centered_gamma": "True",
                "rotary_percent": "0.25",
            },
        ),
        ("sparse latent attention", {"experimental_attention_variant": "dsa"}),
        ("cp in a ring", {"cp_comm_type": "p2p"}),
        ("cp by heads", {"cp_comm_type": "a2a"}),
        ("cp by heads in a ring", {"cp_comm_type": "a2a+p2p", "hierarchical_context_parallel_sizes": "[4, 4]"}),
        ("Nemotron-H", {"activation_func": "squared_relu", "position_embedding_type": "none"}),
    ],
)
def test_megatron_understands_the_flags_as_they_were_meant(
    name: str, expected: Mapping[str, str], verdicts: Mapping[str, Verdict]
) -> None:
    config = verdicts[name].config
    assert {field: config[field] for field in expected} == expected


@pytest.mark.parametrize("name", LATE)
def test_what_the_emitter_refuses_megatron_refuses_later(name: str, verdicts: Mapping[str, Verdict]) -> None:
    plan, level, words = LATE[name]
    with pytest.raises(NotExpressibleError):
        emit_megatron(plan)
    assert verdicts[name].failed_level == level
    assert words in verdicts[name].error


@settings(
    max_examples=1,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(plans=st.lists(plans_of_every_kind(), min_size=30, max_size=30))
def test_drawn_plans_are_accepted_and_hold_what_we_count(plans: list[Plan]) -> None:
    for plan, verdict in zip(plans, ask_megatron([job_of(plan) for plan in plans]), strict=True):
        assert (verdict.failed_level, verdict.error) == ("", "")
        for stage in verdict.built:
            assert stage.parameters == ledger_parameters(plan, stage.pipeline_rank)
