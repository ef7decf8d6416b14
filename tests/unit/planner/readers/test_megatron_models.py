"""Scripts that others wrote for models of every kind: what is not said, and what plans do not know."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.layout import ContextKind, Layout
from planner.models.blocks import LatentAttention, MixtureOfExperts, SelfAttention, StateSpace
from planner.models.specs import ModelSpec, Trait
from planner.readers.launch_line import LaunchLine
from planner.readers.megatron import layout_of, read_megatron
from planner.readers.megatron_model import model_of
from tests.examples import examples

SIZES = (
    "--num-layers 6 --hidden-size 256 --num-attention-heads 8 --max-position-embeddings 4096 --vocab-size 1000 "
    "--swiglu --disable-bias-linear --normalization RMSNorm --position-embedding-type rope"
)
RUN = "--micro-batch-size 1 --global-batch-size 64"


def job(flags: str, *, sizes: str = SIZES, gpus: int = 8) -> LaunchLine:
    return read_megatron(f"torchrun --nnodes 1 --nproc-per-node {gpus} pretrain_gpt.py {sizes} {flags}", file="job.sh")


def model(flags: str, *, sizes: str = SIZES) -> ModelSpec:
    return model_of(job(flags, sizes=sizes))


def layout(flags: str, *, sizes: str = SIZES, gpus: int = 8) -> Layout:
    return layout_of(job(f"{RUN} {flags}", sizes=sizes, gpus=gpus))


def experts_of(found: ModelSpec) -> list[bool]:
    return [isinstance(block.feed_forward, MixtureOfExperts) for block in found.blocks]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", [True] * 6),
        ("--moe-layer-freq 2", [True, False] * 3),
        ("--moe-layer-freq '([0]*1+[1]*2)*2'", [False, True, True] * 2),
        ("--moe-layer-freq [0,1,1,1,1,1]", [False, True, True, True, True, True]),
    ],
)
def test_a_number_and_a_list_say_which_layers_have_experts(flags: str, expected: list[bool]) -> None:
    assert experts_of(model(f"--num-experts 8 {flags}")) == expected


def test_what_is_not_said_of_experts_is_megatrons_default() -> None:
    found = model("--num-experts 8 --ffn-hidden-size 512 --qk-layernorm").blocks[0].feed_forward
    assert isinstance(found, MixtureOfExperts)
    assert (found.experts_per_token, found.expert.intermediate_size, found.shared) == (2, 512, None)
    assert found.router.normalized
    scores = model("--num-experts 8 --moe-router-pre-softmax").blocks[0].feed_forward
    assert isinstance(scores, MixtureOfExperts)
    assert not scores.router.normalized


def mixers(found: ModelSpec) -> list[SelfAttention]:
    return [block.mixer for block in found.blocks if isinstance(block.mixer, SelfAttention)]


def test_numbers_say_windows_and_rotation_from_the_end_of_a_period() -> None:
    found = mixers(model("--window-size 127,0 --window-attn-skip-freq 3 --no-rope-freq 2"))
    assert [attention.window for attention in found] == [128, 128, None] * 2
    assert [attention.rotary for attention in found] == [True, False] * 3
    everywhere = mixers(model("--window-size '(63,0)'"))
    assert {attention.window for attention in everywhere} == {64}
    assert {attention.window for attention in mixers(model("--window-size -1,0"))} == {None}


def test_linear_attention_leaves_the_last_of_a_period() -> None:
    found = model("--experimental-attention-variant gated_delta_net --linear-attention-freq 3")
    assert [isinstance(block.mixer, SelfAttention) for block in found.blocks] == [False, False, True] * 2


def test_latent_attention_is_rotated_interleaved_and_scaled_by_yarn() -> None:
    found = model("--multi-latent-attention --q-lora-rank 96 --qk-layernorm --rotary-scaling-factor 40")
    assert found.traits == (Trait.INTERLEAVED_ROTARY,)
    assert found.rope_scaling["factor"] == 40.0
    latent = found.blocks[0].mixer
    assert isinstance(latent, LatentAttention)
    assert (latent.kv_lora_rank, latent.qk_nope_head_dim, latent.indexer) == (32, 128, None)


def test_a_hybrid_pattern_stands_for_layers_stages_and_prediction_modules() -> None:
    flags = "--hybrid-layer-pattern 'M-|M*-/*-/*-' --mamba-head-dim 64"
    found = model(flags)
    assert found.num_layers == 5
    mamba = found.blocks[0].mixer
    assert isinstance(mamba, StateSpace)
    assert (mamba.num_heads, mamba.num_groups, mamba.state_size) == (8, 8, 128)
    assert found.mtp is not None
    assert found.mtp.num_modules == 2
    assert found.mtp.block == replace(found.blocks[3], feed_forward=found.blocks[4].feed_forward, num_norms=2)
    split = layout(f"{flags} --pipeline-model-parallel-size 2")
    assert [stage.num_layers for stage in split.stages] == [2, 3]
    assert model("--hybrid-override-pattern M-M*").num_layers == 4
    even = layout("--hybrid-override-pattern M-M* --pipeline-model-parallel-size 2")
    assert [stage.num_layers for stage in even.stages] == [2, 2]


BLOCKS = [
    {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 2.625, "no_op": False}},
    {"attention": {"n_heads_in_group": None, "no_op": True}, "mlp": {"ffn_hidden_size": 512}},
    {"attention": {"n_heads_in_group": 4}, "ffn": {"no_op": True}},
]


def with_blocks(blocks: object) -> str:
    return f"--num-layers 3 --heterogeneous-layers-config-encoded-json '{json.dumps({'block_configs': blocks})}'"


def test_layers_that_differ_are_read_from_their_text() -> None:
    found = model(f"{with_blocks(BLOCKS)} --group-query-attention --num-query-groups 2")
    sizes = [getattr(block.feed_forward, "intermediate_size", None) for block in found.blocks]
    assert sizes == [512, 512, None]
    assert [block.mixer is None for block in found.blocks] == [False, True, False]
    assert [block.num_norms for block in found.blocks] == [2, 1, 1]


@pytest.mark.parametrize(
    ("flags", "kind", "ulysses"),
    [
        ("", None, 1),
        ("--context-parallel-size 4", ContextKind.RING, 1),
        ("--context-parallel-size 4 --cp-comm-type a2a", ContextKind.ULYSSES, 4),
        (
            "--context-parallel-size 4 --cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes 2 2",
            ContextKind.ULYSSES_RING,
            2,
        ),
    ],
)
def test_context_parallelism_is_understood(flags: str, kind: ContextKind | None, ulysses: int) -> None:
    found = layout(flags)
    assert (found.cp_kind, found.ulysses) == (kind, ulysses)


def test_experts_are_split_over_tp_unless_their_degree_is_said() -> None:
    assert layout("--num-experts 8 --tensor-model-parallel-size 2").etp == 2
    said = layout("--num-experts 8 --tensor-model-parallel-size 2 --expert-tensor-parallel-size 1")
    assert (said.etp, said.ep, said.edp) == (1, 1, 8)
    assert layout("--tensor-model-parallel-size 2 --expert-model-parallel-size 4").ep == 1
    assert layout("--use-distributed-optimizer --num-distributed-optimizer-instances 4").state_replicas == 4


PLACE = "job.sh:1:"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--context-parallel-size 2 --cp-comm-type allgather",
            "--cp-comm-type is 'allgather'.\nPlans know p2p, a2a and a2a+p2p.",
        ),
        (
            "--context-parallel-size 4 --cp-comm-type a2a+p2p",
            ("--cp-comm-type needs --hierarchical-context-parallel-sizes.\nGive the sizes of all-to-all and ring."),
        ),
        (
            "--context-parallel-size 4 --cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes 4 2",
            "--hierarchical-context-parallel-sizes is 4 2.\nGive two numbers whose product is cp = 4.",
        ),
        (
            "--num-experts 8 --expert-model-parallel-size 3",
            (
                "ep * etp = 3 does not divide tp * cp * dp = 8.\n"
                "Change --expert-model-parallel-size or --expert-tensor-parallel-size."
            ),
        ),
        (
            "--mtp-num-layers 1 --pipeline-model-parallel-layout 'Et*3|mt*3L' --pipeline-model-parallel-size 2",
            (
                "--pipeline-model-parallel-layout does not place 1 prediction modules (m) directly before L.\n"
                "Plans hold them on the LM head's stage."
            ),
        ),
        (
            "--hybrid-layer-pattern 'M|M|M' --pipeline-model-parallel-size 2",
            "the hybrid pattern has 3 stages, not a multiple of pp = 2.\nAdd or merge stages.",
        ),
    ],
)
def test_layouts_that_plans_do_not_know_are_errors(flags: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        layout(flags)
    assert str(caught.value).endswith(message)
    assert str(caught.value).startswith("job.sh")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--num-experts 8 --moe-layer-freq '[0]*5'",
            "--moe-layer-freq is a list of 5, the model has 6 layers.\nWrite a 0 or 1 a layer.",
        ),
        (
            "--num-experts 8 --moe-layer-freq '[0]*5+__import__'",
            "--moe-layer-freq is no list: '_' is not part of a list.\nWrite, for example, [0]*3+[1]*58.",
        ),
        (
            "--num-experts 8 --moe-layer-freq '[0]*9999'",
            ("--moe-layer-freq is no list: it has more than 4096 layers.\nWrite, for example, [0]*3+[1]*58."),
        ),
        ("--num-experts 8 --moe-layer-freq 0", "--moe-layer-freq takes a list or a positive number.\nWrite one."),
        ("--num-experts 2 --moe-router-topk 3", "3 of 2 experts a token.\nChange --moe-router-topk."),
        (
            "--num-experts 8 --moe-router-score-function sqrtsoftplus",
            "--moe-router-score-function is 'sqrtsoftplus'.\nPlans know softmax, sigmoid.",
        ),
        ("--softmax-type off-by-one", "--softmax-type is 'off-by-one'.\nPlans know vanilla, learnable."),
        ("--window-size 4,4", "--window-size is no window of tokens before a token.\nWrite, for example, 127,0."),
        (
            "--multi-latent-attention --q-lora-rank 96",
            (
                "--multi-latent-attention without --qk-layernorm, so with latents that are not normalised.\n"
                "Plans know latents that are normalised."
            ),
        ),
        (
            "--experimental-attention-variant gated_delta_net",
            (
                "--experimental-attention-variant gated_delta_net without --linear-attention-freq.\n"
                "Say which layers have it."
            ),
        ),
        (
            "--hybrid-layer-pattern MX",
            (
                "--hybrid-layer-pattern is no hybrid pattern: it has 'X'.\n"
                "Write a letter a layer, | between stages, / before modules."
            ),
        ),
        (
            "--hybrid-layer-pattern M+",
            (
                "--hybrid-layer-pattern has latent attention (+), whose latents are not normalised there.\n"
                "Plans know M, G, *, - and E."
            ),
        ),
        (
            "--hybrid-layer-pattern 'M/MM'",
            (
                "--hybrid-layer-pattern has prediction modules 'MM'.\n"
                "Plans know a mixer, a feed-forward, or both in a row."
            ),
        ),
        (
            "--heterogeneous-layers-config-path layers.json",
            (
                "--heterogeneous-layers-config-path names a file, which is not read.\n"
                "Give its text with --heterogeneous-layers-config-encoded-json as well."
            ),
        ),
        (
            "--heterogeneous-layers-config-encoded-json '{'",
            "--heterogeneous-layers-config-encoded-json is not JSON.\nGive the text of the model's configuration.",
        ),
        (
            "--heterogeneous-layers-config-encoded-json '[]'",
            (
                "--heterogeneous-layers-config-encoded-json has no block_configs with an entry for each layer.\n"
                "Write one a layer."
            ),
        ),
        (
            with_blocks([1, 2, 3]),
            "--heterogeneous-layers-config-encoded-json has no attention and ffn in block_configs[0].\nWrite both.",
        ),
        (
            with_blocks([{"attention": {"no_op": True}, "ffn": {"replace_with_linear": True}}] * 3),
            (
                "--heterogeneous-layers-config-encoded-json replaces a sub-block by a linear layer in "
                "block_configs[0].\nPlans do not know such layers."
            ),
        ),
        (
            with_blocks([{"attention": {"no_op": True}, "ffn": {"ffn_mult": "wide"}}] * 3),
            (
                "--heterogeneous-layers-config-encoded-json has no size of the feed-forward in block_configs[0].\n"
                "Write ffn_hidden_size."
            ),
        ),
        (
            "--quick-geglu",
            (
                "--quick-geglu is an activation that plans do not know.\nUse --swiglu, --squared-relu or gelu, or "
                "clamp it at 7.0 with the offset 1.0, as gpt-oss does."
            ),
        ),
        (
            "--group-query-attention --num-query-groups 3",
            "8 attention heads in 3 groups.\nThe groups must divide the heads.",
        ),
    ],
)
def test_models_that_plans_do_not_know_are_errors_with_their_place(flags: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        model(flags)
    assert str(caught.value).startswith(PLACE)
    assert str(caught.value).endswith(message)


FLAGS = (
    "--num-layers",
    "--hidden-size",
    "--num-attention-heads",
    "--num-query-groups",
    "--kv-channels",
    "--num-experts",
    "--moe-router-topk",
    "--moe-layer-freq",
    "--moe-router-group-topk",
    "--moe-router-num-groups",
    "--window-size",
    "--no-rope-freq",
    "--hybrid-layer-pattern",
    "--mamba-head-dim",
    "--mtp-num-layers",
    "--tensor-model-parallel-size",
    "--pipeline-model-parallel-size",
    "--context-parallel-size",
    "--expert-model-parallel-size",
    "--micro-batch-size",
    "--num-virtual-stages-per-pipeline-rank",
    "--recompute-granularity",
    "--recompute-modules",
    "--hierarchical-context-parallel-sizes",
    "--rotary-base",
    "--heterogeneous-layers-config-encoded-json",
)

VALUES = ("", "0", "1", "3", "8", "-1", "999999999999999999", "[0]*6", "M*-|E", "1,0", "selective", "{}", "x", "nan")


@settings(max_examples=examples(few=150, many=400), deadline=None)
@given(
    chosen=st.lists(st.tuples(st.sampled_from(FLAGS), st.sampled_from(VALUES)), max_size=4),
    switches=st.lists(
        st.sampled_from(
            ("--multi-latent-attention", "--qk-layernorm", "--group-query-attention", "--cp-comm-type a2a+p2p")
        ),
        max_size=3,
    ),
)
def test_any_values_are_read_or_refused_with_their_place(chosen: list[tuple[str, str]], switches: list[str]) -> None:
    flags = " ".join([*(f"{name} {value!r}" if value else name for name, value in chosen), *switches])
    found = job(f"{RUN} {flags}")
    refusals: list[str] = []
    for read in (model_of, layout_of):
        try:
            read(found)
        except InputError as error:
            refusals.append(str(error))
    assert all(refusal.startswith("job.sh") for refusal in refusals)
