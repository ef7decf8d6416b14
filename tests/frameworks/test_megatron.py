"""Megatron-LM accepts what is emitted, builds the stages that were planned, and holds the parameters that we count."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from planner.emit.megatron import LAUNCH_SCRIPT, emit_megatron
from planner.layout import Granularity, Layout, Offload, Recompute
from planner.models.blocks import Activation, DenseFeedForward, Norm, PositionEmbedding, QueryKeyNorm, SelfAttention
from planner.models.bundled import load_bundled
from planner.models.specs import BlockRun, ModelSpec
from planner.plans.plan import Plan
from planner.readers.megatron import read_megatron
from planner.requests.workload import DType, Lora, Precision, TrainMethod, TrainWorkload
from tests.emitted.plans import (
    LLAMA_8B,
    LLAMA_70B,
    LLAMA_405B,
    cluster_of,
    expressible_plans,
    layout_of_degrees,
    llama,
    plan_of,
)
from tests.frameworks.megatron_counts import counted_parameters, ledger_parameters
from tests.frameworks.megatron_environment import Job, Verdict, ask_megatron, job_of

pytestmark = pytest.mark.frameworks

FULL = Recompute(granularity=Granularity.FULL)
FIRST_TWO = Recompute(granularity=Granularity.FULL, num_layers=2)
SELECTIVE = Recompute(granularity=Granularity.SELECTIVE, modules=("core_attn", "mlp"))

LLAMA_7B = replace(
    llama(
        num_layers=32,
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
    ),
    max_position_embeddings=4096,
    rope_scaling={},
)


def gpt_like() -> ModelSpec:
    """Return a GPT-2-like model: biases, learned positions, LayerNorm, tanh gelu, tied embeddings."""
    block = LLAMA_8B.distinct_blocks[0]
    attention = SelfAttention(
        num_attention_heads=16, num_key_value_heads=16, head_dim=64, qkv_bias=True, output_bias=True
    )
    feed_forward = DenseFeedForward(intermediate_size=4096, gated=False, activation=Activation.GELU_TANH, bias=True)
    return replace(
        LLAMA_8B,
        hidden_size=1024,
        vocab_size=50257,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        norm=Norm.LAYER,
        position_embedding=PositionEmbedding.LEARNED,
        rope_theta=None,
        rope_scaling={},
        runs=(BlockRun(block=replace(block, mixer=attention, feed_forward=feed_forward), count=24),),
    )


def qwen_like(*, qk_norm: bool) -> ModelSpec:
    """Return a small model with a qkv bias or query/key norms, and tied embeddings."""
    block = LLAMA_8B.distinct_blocks[0]
    attention = SelfAttention(
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        qkv_bias=not qk_norm,
        qk_norm=QueryKeyNorm.HEAD if qk_norm else QueryKeyNorm.NONE,
    )
    return replace(
        LLAMA_8B,
        hidden_size=1024,
        vocab_size=151936,
        tie_word_embeddings=True,
        rope_theta=1e6,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        runs=(BlockRun(block=replace(block, mixer=attention), count=28),),
    )


def planned(model: ModelSpec, layout: Layout, *, gpus_per_node: int = 8, **workload: object) -> Plan:
    facts = {"seq_len": 8192, "precision": Precision.BF16, "global_batch_size": layout.global_batch_size} | workload
    cluster = cluster_of(layout.world_size // gpus_per_node, gpus_per_node)
    return plan_of(model, TrainWorkload(**facts), layout, cluster)  # type: ignore[arg-type]


PLANS: Mapping[str, Plan] = {
    "8B on 8": planned(LLAMA_8B, layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=32)),
    "70B on 64, interleaved, selective": planned(
        LLAMA_70B, layout_of_degrees(layers=(4,) * 20, tp=8, pp=4, dp=2, num_microbatches=256, recompute=SELECTIVE)
    ),
    "70B on 64 A100": planned(
        LLAMA_70B,
        layout_of_degrees(layers=(10,) * 8, tp=4, pp=8, dp=2, num_microbatches=256, recompute=FIRST_TWO),
        seq_len=4096,
    ),
    "405B on 1024, uneven": planned(
        LLAMA_405B,
        layout_of_degrees(layers=(7, *(8,) * 14, 7), tp=8, pp=16, dp=8, num_microbatches=64, recompute=FULL),
    ),
    "405B on 16384, uneven and interleaved": planned(
        LLAMA_405B, layout_of_degrees(layers=(0, *(1,) * 126, 0), tp=8, pp=16, dp=128, num_microbatches=16)
    ),
    "7B on 4 without NVLink": planned(
        LLAMA_7B,
        layout_of_degrees(layers=(8,) * 4, pp=4, num_microbatches=64),
        gpus_per_node=4,
        seq_len=4096,
    ),
    "more tp than key/value heads": planned(
        LLAMA_405B,
        layout_of_degrees(layers=(8, *(8,) * 14, 6), tp=16, pp=16, dp=1, num_microbatches=16),
    ),
    "GPT, tied over two stages": planned(
        gpt_like(), layout_of_degrees(layers=(12, 12), tp=2, pp=2, dp=2, num_microbatches=8), seq_len=2048
    ),
    "GPT in fp16 on one stage": planned(
        gpt_like(),
        layout_of_degrees(layers=(24,), tp=2, dp=4, num_microbatches=8, zero_stage=0),
        seq_len=2048,
        precision=Precision.FP16,
        gradient_dtype=DType.FP16,
        attention_dropout=0.1,
        hidden_dropout=0.1,
    ),
    "qkv bias": planned(qwen_like(qk_norm=False), layout_of_degrees(layers=(28,), dp=8, num_microbatches=4)),
    "query and key norms": planned(
        qwen_like(qk_norm=True), layout_of_degrees(layers=(7,) * 4, tp=2, pp=4, num_microbatches=8)
    ),
    "fp8, low-precision states": planned(
        LLAMA_8B,
        layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=32, recompute=FULL),
        precision=Precision.FP8_DELAYED,
        gradient_dtype=DType.BF16,
        moment_dtype=DType.BF16,
    ),
    "fp8 by blocks": planned(
        LLAMA_8B,
        layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=32),
        precision=Precision.FP8_BLOCKWISE,
    ),
    "8B with a tokenizer": planned(
        LLAMA_8B, layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=32), tokenizer_model="/models/tokenizer"
    ),
    "70B with adapters on 8": planned(
        LLAMA_70B,
        layout_of_degrees(layers=(80,), tp=8, num_microbatches=32, recompute=FULL),
        seq_len=4096,
        method=TrainMethod.LORA,
        lora=Lora(rank=16, alpha=32.0, target_modules=("qkv", "proj", "fc1", "fc2")),
    ),
    "fully sharded": planned(LLAMA_8B, layout_of_degrees(layers=(32,), dp=8, num_microbatches=16, zero_stage=3)),
    "gradients sharded": planned(LLAMA_8B, layout_of_degrees(layers=(32,), dp=8, num_microbatches=16, zero_stage=2)),
    "half of the optimizer states on the host": planned(
        LLAMA_8B,
        replace(
            layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=32), offload=Offload(optimizer_fraction=0.5)
        ),
    ),
    "all optimizer states on the host, in fp8": planned(
        LLAMA_8B,
        replace(
            layout_of_degrees(layers=(16, 16), tp=2, pp=2, dp=2, num_microbatches=32),
            offload=Offload(optimizer_fraction=1.0, overlapped=False),
        ),
        precision=Precision.FP8_BLOCKWISE,
    ),
    "activations of half of the layers on the host": planned(
        LLAMA_8B, replace(layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=32), offloaded_layers=16)
    ),
    "modules of interleaved stages on the host, beside recomputed ones": planned(
        LLAMA_8B,
        replace(
            layout_of_degrees(layers=(8, 8, 8, 8), tp=2, pp=2, dp=2, num_microbatches=32),
            offloaded_modules=("qkv_linear", "core_attn", "attn_proj"),
            recompute=Recompute(granularity=Granularity.SELECTIVE, modules=("mlp",)),
        ),
    ),
    "experts on the host": planned(
        load_bundled("mixtral-8x7b"),
        replace(
            layout_of_degrees(layers=(32,), dp=8, num_microbatches=8, ep=8), offloaded_modules=("expert_fc1", "moe_act")
        ),
    ),
    "pipeline ranks next to each other": planned(
        LLAMA_8B,
        layout_of_degrees(
            layers=(16, 16), tp=2, pp=2, dp=2, num_microbatches=16, rank_order="tp-cp-ep-pp-dp", overlap_dp=False
        ),
    ),
    "interleaved without overlapped p2p": planned(
        LLAMA_8B, layout_of_degrees(layers=(4,) * 8, tp=2, pp=4, num_microbatches=16, p2p=False)
    ),
}


def changed(job: Job, **flags: str) -> Job:
    """Return the job with the values of some flags replaced, nothing built; underscores stand for dashes."""
    words = list(job.arguments)
    for name, value in flags.items():
        words[words.index(f"--{name.replace('_', '-')}") + 1] = value
    return replace(job, arguments=tuple(words), pipeline_ranks=())


UNEVEN = job_of(PLANS["405B on 1024, uneven"])
INTERLEAVED = job_of(PLANS["70B on 64, interleaved, selective"])

ON_HOST = job_of(PLANS["activations of half of the layers on the host"])

REFUSED: Mapping[str, tuple[Job, str, str]] = {
    "activations of all layers on the host": (
        changed(ON_HOST, cpu_offloading_num_layers="32"),
        "config",
        "CPU offloading can be done only for layers less than 32",
    ),
    "activations on the host and recomputation": (
        replace(ON_HOST, arguments=(*ON_HOST.arguments, "--recompute-granularity", "selective"), pipeline_ranks=()),
        "config",
        "CPU offloading does not work when activation recomputation is enabled",
    ),
    "no connection limit": (replace(UNEVEN, environment={}), "validate", "CUDA_DEVICE_MAX_CONNECTIONS to 1"),
    "an unknown flag": (replace(UNEVEN, arguments=(*UNEVEN.arguments, "--no-such-flag")), "parse", "--no-such-flag"),
    "a wrong world": (replace(UNEVEN, world_size=1000), "validate", "not divisible by total_model_size"),
    "heads that tp does not divide": (changed(UNEVEN, num_attention_heads="100"), "config", "must be a multiple of"),
    "a layer too many": (
        changed(UNEVEN, pipeline_model_parallel_layout="Et*7|(t*8|)*14t*8L"),
        "config",
        "must match num_layers 126",
    ),
    "a batch that does not divide": (changed(UNEVEN, global_batch_size="510"), "validate", "must be divisible by"),
    "a remainder of micro-batches": (
        changed(INTERLEAVED, global_batch_size="510"),
        "microbatches",
        "interleaved schedule: 255 micro-batches",
    ),
}

WHOLE: Mapping[str, tuple[ModelSpec, int]] = {
    "8B": (LLAMA_8B, 8_030_261_248),
    "70B": (LLAMA_70B, 70_553_706_496),
    "405B": (LLAMA_405B, 405_853_388_800),
}

OTHER_FACTOR = "another factor of llama3 scaling"
OTHER_TOKENIZER = "a tokenizer that knows fewer tokens"


def on_one_gpu_each(model: ModelSpec) -> Plan:
    return planned(model, layout_of_degrees(layers=(model.num_layers,), dp=8, num_microbatches=1))


@pytest.fixture(scope="module")
def verdicts() -> Mapping[str, Verdict]:
    """Return Megatron's verdict on every job above; one process imports Megatron once."""
    jobs = {name: job_of(plan) for name, plan in PLANS.items()}
    jobs |= {name: job for name, (job, _, _) in REFUSED.items()}
    jobs |= {name: job_of(on_one_gpu_each(model)) for name, (model, _) in WHOLE.items()}
    jobs[OTHER_FACTOR] = changed(jobs["8B"], rope_scaling_factor="32.0")
    jobs[OTHER_TOKENIZER] = changed(jobs["8B with a tokenizer"], vocab_size="100000")
    return dict(zip(jobs, ask_megatron(list(jobs.values())), strict=True))


@pytest.mark.parametrize("name", PLANS)
def test_what_is_pushed_through_megatron_is_what_the_emitter_writes(name: str) -> None:
    job = read_megatron(emit_megatron(PLANS[name])[LAUNCH_SCRIPT], file=LAUNCH_SCRIPT)
    written = tuple(word for flag in job.flags for word in (flag.name, *flag.values))
    assert written == job_of(PLANS[name]).arguments


@pytest.mark.parametrize("name", PLANS)
def test_every_level_accepts_the_emitted_arguments(name: str, verdicts: Mapping[str, Verdict]) -> None:
    verdict = verdicts[name]
    assert (verdict.failed_level, verdict.error) == ("", "")


@pytest.mark.parametrize("name", PLANS)
def test_megatron_derives_the_planned_batch(name: str, verdicts: Mapping[str, Verdict]) -> None:
    layout = PLANS[name].best.layout
    assert verdicts[name].data_parallel_size == layout.dp
    assert verdicts[name].num_microbatches == layout.num_microbatches


@pytest.mark.parametrize("name", PLANS)
def test_megatron_builds_the_planned_stages(name: str, verdicts: Mapping[str, Verdict]) -> None:
    layout = PLANS[name].best.layout
    built = {stage.pipeline_rank: stage.layers for stage in verdicts[name].built}
    assert built == {rank: tuple(stage.num_layers for stage in layout.chunks(rank)) for rank in built}
    assert {0, layout.pp - 1} <= built.keys()


@pytest.mark.parametrize("name", PLANS)
def test_parameters_of_each_rank_are_ours(name: str, verdicts: Mapping[str, Verdict]) -> None:
    plan = PLANS[name]
    for stage in verdicts[name].built:
        assert stage.parameters == counted_parameters(plan, stage.pipeline_rank)
        assert stage.parameters == ledger_parameters(plan, stage.pipeline_rank)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_models_have_their_published_size(name: str, verdicts: Mapping[str, Verdict]) -> None:
    assert [stage.parameters for stage in verdicts[name].built] == [WHOLE[name][1]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "8B on 8",
            {
                "activation_func": "silu",
                "gated_linear_unit": "True",
                "add_bias_linear": "False",
                "add_qkv_bias": "False",
                "num_query_groups": "8",
                "kv_channels": "128",
                "normalization": "RMSNorm",
                "layernorm_epsilon": "1e-05",
                "position_embedding_type": "rope",
                "rotary_base": "500000",
                "rope_scaling": "True",
                "share_embeddings_and_output_weights": "False",
                "attention_backend": "flash",
                "hidden_dropout": "0.0",
                "params_dtype": "torch.bfloat16",
                "sequence_parallel": "True",
                "recompute_granularity": "None",
            },
        ),
        (
            "GPT in fp16 on one stage",
            {
                "activation_func": "gelu",
                "gated_linear_unit": "False",
                "bias_activation_fusion": "True",
                "add_bias_linear": "True",
                "add_qkv_bias": "True",
                "normalization": "LayerNorm",
                "position_embedding_type": "learned_absolute",
                "share_embeddings_and_output_weights": "True",
                "attention_dropout": "0.1",
                "params_dtype": "torch.float16",
            },
        ),
        ("qkv bias", {"add_bias_linear": "False", "add_qkv_bias": "True", "position_embedding_type": "yarn"}),
        ("query and key norms", {"qk_layernorm": "True"}),
        ("fp8 by blocks", {"fp8": "e4m3", "fp8_recipe": "blockwise"}),
        ("fp8, low-precision states", {"fp8": "hybrid", "fp8_recipe": "delayed", "recompute_method": "uniform"}),
        (
            "70B on 64, interleaved, selective",
            {
                "recompute_granularity": "selective",
                "recompute_modules": "['core_attn', 'mlp']",
                "overlap_p2p_comm": "True",
            },
        ),
        (
            "70B on 64 A100",
            {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": "2"},
        ),
        ("interleaved without overlapped p2p", {"overlap_p2p_comm": "False"}),
    ],
)
def test_megatron_understands_the_flags_as_they_were_meant(
    name: str, expected: Mapping[str, str], verdicts: Mapping[str, Verdict]
) -> None:
    config = verdicts[name].config
    assert {field: config[field] for field in expected} == expected


@settings(
    max_examples=1,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(plans=st.lists(expressible_plans(), min_size=12, max_size=12))
def test_drawn_plans_are_accepted_and_hold_what_we_count(plans: list[Plan]) -> None:
    for plan, verdict in zip(plans, ask_megatron([job_of(plan) for plan in plans]), strict=True):
        assert (verdict.failed_level, verdict.error) == ("", "")
        for stage in verdict.built:
            assert stage.parameters == counted_parameters(plan, stage.pipeline_rank)


@pytest.mark.parametrize("name", REFUSED)
def test_the_oracle_refuses_what_megatron_refuses(name: str, verdicts: Mapping[str, Verdict]) -> None:
    _, level, words = REFUSED[name]
    assert verdicts[name].failed_level == level
    assert words in verdicts[name].error


def test_the_rows_of_the_vocabulary_are_the_plans_and_not_the_tokenizers(verdicts: Mapping[str, Verdict]) -> None:
    """What Megatron takes from a tokenizer stands in for --vocab-size, so another size stands in for a tokenizer."""
    assert [verdicts[name].padded_vocab_size for name in ("8B with a tokenizer", OTHER_TOKENIZER)] == [128256, 128256]


def test_megatron_still_drops_the_factor_of_llama3_scaling(verdicts: Mapping[str, Verdict]) -> None:
    """The reason why other factors are refused; when this fails, the refusal can go."""
    assert verdicts[OTHER_FACTOR].config["rope_scaling_factor"] == "8.0"
