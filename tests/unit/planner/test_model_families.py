"""Architectures of which no model is bundled, by the sizes of a published model of each and its published total."""

from collections.abc import Mapping

import pytest

from planner.models.blocks import (
    LatentAttention,
    LinearAttention,
    MixtureOfExperts,
    Norm,
    PositionEmbedding,
    QueryKeyNorm,
    SelfAttention,
)
from planner.models.specs import ModelSpec, Trait
from tests.published.model_totals import mtp_parameters, text_parameters
from tests.unit.planner.model_inputs import changed, read, refusal, window, without

QWEN2_MOE = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "shared_expert_intermediate_size": 5632,
    "vocab_size": 151936,
}

OLMOE = {
    "architectures": ["OlmoeForCausalLM"],
    "clip_qkv": None,
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "max_position_embeddings": 4096,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "vocab_size": 50304,
}

PHIMOE = {
    "architectures": ["PhimoeForCausalLM"],
    "attention_bias": True,
    "hidden_size": 4096,
    "intermediate_size": 6400,
    "lm_head_bias": True,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "sliding_window": 131072,
    "vocab_size": 32064,
}

GLM4_MOE = {
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "topk_group": 1,
    "use_qk_norm": False,
    "vocab_size": 151552,
}

DEEPSEEK_V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "v_head_dim": 128,
    "vocab_size": 102400,
}

DEEPSEEK_V2 = {
    **DEEPSEEK_V2_LITE,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_group": 8,
    "n_routed_experts": 160,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
}

QWEN3_NEXT = {
    "architectures": ["Qwen3NextForCausalLM"],
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "shared_expert_intermediate_size": 512,
    "vocab_size": 151936,
}

KIMI_LINEAR = {
    "architectures": ["KimiLinearForCausalLM"],
    "first_k_dense_replace": 1,
    "head_dim": 72,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "kv_lora_rank": 512,
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "head_dim": 128,
        "kda_layers": [layer for layer in range(1, 27) if layer % 4],
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
    "mla_use_nope": True,
    "model_max_length": 1048576,
    "moe_intermediate_size": 1024,
    "moe_layer_freq": 1,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "num_attention_heads": 32,
    "num_expert_group": 1,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_hidden_layers": 27,
    "num_key_value_heads": 32,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "routed_scaling_factor": 2.446,
    "topk_group": 1,
    "use_grouped_topk": True,
    "v_head_dim": 128,
    "vocab_size": 163840,
}

MINIMAX_01 = {
    "architectures": ["MiniMaxText01ForCausalLM"],
    "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10,
    "head_dim": 128,
    "hidden_size": 6144,
    "intermediate_size": 9216,
    "max_position_embeddings": 10240000,
    "num_attention_heads": 64,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "postnorm": True,
    "rotary_dim": 64,
    "shared_intermediate_size": 0,
    "vocab_size": 200064,
}

GEMMA2_9B = {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "vocab_size": 256000,
}

GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 256,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}

OLMO_7B = {
    "architectures": ["OlmoForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 50304,
}

OLMO2_7B = {
    **OLMO_7B,
    "architectures": ["Olmo2ForCausalLM"],
    "max_position_embeddings": 4096,
    "vocab_size": 100352,
}

COMMAND_R = {
    "architectures": ["CohereForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "logit_scale": 0.0625,
    "max_position_embeddings": 8192,
    "num_attention_heads": 64,
    "num_hidden_layers": 40,
    "num_key_value_heads": 64,
    "vocab_size": 256000,
}

COMMAND_R7B = {
    "architectures": ["Cohere2ForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 132096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "vocab_size": 256000,
}

# Parameters of the published weights (their index files), without prediction modules.
TOTALS = {
    "qwen1.5-moe-a2.7b": (QWEN2_MOE, 14_315_784_192),
    "olmoe-1b-7b": (OLMOE, 6_919_161_856),
    "phi-3.5-moe": (PHIMOE, 41_873_153_344),
    "glm-4.5-air": (GLM4_MOE, 106_852_251_264),
    "deepseek-v2-lite": (DEEPSEEK_V2_LITE, 15_706_484_224),
    "deepseek-v2": (DEEPSEEK_V2, 235_741_434_880),
    "qwen3-next-80b-a3b": (QWEN3_NEXT, 79_674_391_296),
    "kimi-linear-48b-a3b": (KIMI_LINEAR, 49_122_681_728),
    "minimax-text-01": (MINIMAX_01, 456_089_655_296),
    "gemma-2-9b": (GEMMA2_9B, 9_241_705_984),
    "gemma-3-1b": (GEMMA3_1B, 999_885_952),
    "olmo-7b": (OLMO_7B, 6_888_095_744),
    "olmo-2-7b": (OLMO2_7B, 7_298_617_344),
    "command-r": (COMMAND_R, 34_980_831_232),
    "command-r7b": (COMMAND_R7B, 8_028_033_024),
}

# Nemotron-H at small sizes, with what no bundled model of the class has.
NEMOTRON_H = {
    "architectures": ["NemotronHForCausalLM"],
    "chunk_size": 128,
    "conv_kernel": 4,
    "head_dim": 32,
    "hidden_size": 256,
    "hybrid_override_pattern": "ME*E",
    "intermediate_size": 512,
    "mamba_head_dim": 64,
    "mamba_num_heads": 8,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 128,
    "moe_latent_size": 64,
    "moe_shared_expert_intermediate_size": 256,
    "n_groups": 2,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_attention_heads": 8,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_nextn_predict_layers": 1,
    "mtp_hybrid_override_pattern": "*E",
    "ssm_state_size": 16,
    "vocab_size": 1024,
}

DECI = {
    "architectures": ["DeciLMForCausalLM"],
    "block_configs": [
        {"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 2.625}},
        {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": {"ffn_mult": 1.0}},
        {"attention": {"n_heads_in_group": 16}, "ffn": {"no_op": True}},
        {"attention": {"no_op": True}, "ffn": {"no_op": True}},
    ],
    "hidden_size": 8192,
    "intermediate_size": None,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_hidden_layers": 4,
    "num_key_value_heads": None,
    "vocab_size": 128256,
}


def attentions(model: ModelSpec) -> list[SelfAttention]:
    return [block.mixer for block in model.blocks if isinstance(block.mixer, SelfAttention)]


@pytest.mark.parametrize("name", TOTALS)
def test_a_class_is_read_to_the_last_parameter(name: str) -> None:
    config, total = TOTALS[name]
    assert text_parameters(read(config)) == total


def test_shared_experts_of_qwen2_moe_have_a_gate_and_those_of_deepseek_have_none() -> None:
    for config, gate in ((QWEN2_MOE, True), (DEEPSEEK_V2_LITE, False)):
        experts = read(config).blocks[-1].feed_forward
        assert isinstance(experts, MixtureOfExperts)
        assert experts.shared is not None
        assert experts.shared_gate is gate


def test_dense_layers_stand_where_the_keys_say() -> None:
    model = read(changed(QWEN2_MOE, decoder_sparse_step=2, mlp_only_layers=[3]))
    sparse = [index for index, block in enumerate(model.blocks) if isinstance(block.feed_forward, MixtureOfExperts)]
    assert sparse == [1, *range(5, 24, 2)]
    error = refusal(changed(QWEN2_MOE, mlp_only_layers=[3, 24]))
    assert error.message == "`mlp_only_layers[1]` = 24 is not a layer of 24."


def test_groups_of_experts_are_read_only_where_they_are_used() -> None:
    for config, groups in ((DEEPSEEK_V2, (8, 3)), (changed(DEEPSEEK_V2, topk_method="greedy"), (1, 1))):
        experts = read(config).blocks[-1].feed_forward
        assert isinstance(experts, MixtureOfExperts)
        assert (experts.router.num_groups, experts.router.groups_per_token) == groups


def test_prediction_modules_of_glm_are_counted_beside_the_model() -> None:
    with_module = read(GLM4_MOE)
    assert mtp_parameters(with_module) > 0
    assert mtp_parameters(read(without(GLM4_MOE, "num_nextn_predict_layers"))) == 0


def test_kimi_linear_mixes_by_delta_rule_but_in_its_listed_layers_and_knows_no_positions() -> None:
    model = read(KIMI_LINEAR)
    full = [number for number, block in enumerate(model.blocks, start=1) if isinstance(block.mixer, LatentAttention)]
    assert full == [4, 8, 12, 16, 20, 24, 27]
    assert model.position_embedding is PositionEmbedding.NONE
    section = KIMI_LINEAR["linear_attn_config"]
    assert isinstance(section, dict)
    for lists in ({"kda_layers": [1, 2]}, {"full_attn_layers": [1, 4, 8, 12, 16, 20, 24, 27]}):
        error = refusal(changed(KIMI_LINEAR, linear_attn_config={**section, **lists}))
        assert error.message == "`full_attn_layers` and `kda_layers` do not name every layer once."


def test_minimax_01_has_lightning_attention_where_its_list_is_zero() -> None:
    model = read(MINIMAX_01)
    assert [isinstance(block.mixer, LinearAttention) for block in model.blocks[:8]] == [True] * 7 + [False]
    assert (model.rotary_fraction, model.traits) == (0.5, (Trait.SCALED_RESIDUAL,))
    assert "must hold 0 or 1" in refusal(changed(MINIMAX_01, attn_type_list=[0, 2] * 40)).message


def test_gemma_2_has_windows_in_every_other_layer_and_norms_around_both_sub_blocks() -> None:
    model = read(GEMMA2_9B)
    assert [window(block) for block in model.blocks[:4]] == [4096, None, 4096, None]
    assert {(block.num_norms, block.num_post_norms) for block in model.blocks} == {(2, 2)}
    assert Trait.CAPPED_ATTENTION in model.traits
    assert Trait.SCALED_ATTENTION in read(changed(GEMMA2_9B, query_pre_attn_scalar=224)).traits


def test_gemma_3_rotates_by_layer_and_sees_everything_in_every_sixth() -> None:
    model = read(GEMMA3_1B)
    assert [window(block) for block in model.blocks[:6]] == [512] * 5 + [None]
    assert Trait.ROTARY_BY_LAYER in model.traits
    assert Trait.ROTARY_BY_LAYER not in read(changed(GEMMA3_1B, rope_theta=10000)).traits


def test_olmo_has_norms_without_parameters_and_olmo_2_has_them_behind() -> None:
    assert read(OLMO_7B).norm is Norm.LAYER_PLAIN
    assert Trait.CLAMPED_QKV in read(changed(OLMO_7B, clip_qkv=8.0)).traits
    model = read(OLMO2_7B)
    assert (model.blocks[0].num_norms, model.blocks[0].num_post_norms) == (0, 2)
    assert attentions(model)[0].qk_norm is QueryKeyNorm.WIDTH


def test_cohere_2_has_no_positions_where_attention_is_full() -> None:
    model = read(COMMAND_R7B)
    assert [(mixer.window, mixer.rotary) for mixer in attentions(model)[:4]] == [(4096, True)] * 3 + [(None, False)]
    assert {(block.parallel, block.num_norms) for block in model.blocks} == {(True, 1)}
    assert "`use_qk_norm` = true means" in refusal(changed(COMMAND_R, use_qk_norm=True)).message


# Nemotron-H


def test_nemotron_h_has_one_sub_block_a_layer_and_sends_tokens_at_their_latent_width() -> None:
    model = read(NEMOTRON_H)
    assert [(block.mixer is None, block.feed_forward is None) for block in model.blocks] == [
        (False, True),
        (True, False),
        (False, True),
        (True, False),
    ]
    assert {block.num_norms for block in model.blocks} == {1}
    experts = model.blocks[1].feed_forward
    assert isinstance(experts, MixtureOfExperts)
    assert (experts.latent_size, experts.expert.gated) == (64, False)
    assert model.mtp is not None
    assert isinstance(model.mtp.block.mixer, SelfAttention)
    assert model.mtp.block.feed_forward == experts


def test_layers_of_nemotron_h_may_be_words() -> None:
    for words in (["mamba", "moe", "attention", "moe"], ["linear_attention", "moe", "full_attention", "moe"]):
        spelled = {**without(NEMOTRON_H, "hybrid_override_pattern"), "layers_block_type": words}
        assert read(spelled) == read(NEMOTRON_H)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hybrid_override_pattern": "MEXE"}, '`hybrid_override_pattern` holds "X", which is not a kind of layer.'),
        ({"hybrid_override_pattern": "ME*"}, "`hybrid_override_pattern` names 3 layers; the model has 4."),
        (
            {"layers_block_type": ["mamba", "moe", "mlp", "moe"]},
            "`layers_block_type` and `hybrid_override_pattern` contradict each other.",
        ),
        (
            {"hybrid_override_pattern": None},
            "`hybrid_override_pattern` or `layers_block_type` is missing; NemotronH needs one.",
        ),
        (
            {"mtp_hybrid_override_pattern": "M*"},
            "`mtp_hybrid_override_pattern` is not attention followed by experts, which cannot be planned yet.",
        ),
        ({"n_shared_experts": 2}, "`n_shared_experts` = 2: the class has one, `moe_shared_expert_intermediate_size` "),
        ({"mamba_num_heads": 9}, "`num_heads` = 9 is not a multiple of `num_groups` = 2."),
    ],
)
def test_a_wrong_nemotron_h_is_refused(changes: Mapping[str, object], message: str) -> None:
    assert refusal(changed(NEMOTRON_H, **changes)).message.startswith(message)


# DeciLM


def test_layers_of_decilm_have_their_own_sizes_or_miss_a_sub_block() -> None:
    model = read(DECI)
    assert [mixer.num_key_value_heads for mixer in attentions(model)] == [8, 4]
    assert [block.num_norms for block in model.blocks] == [2, 1, 1, 0]
    assert model.blocks[2].feed_forward is None
    assert (model.blocks[3].mixer, model.blocks[3].feed_forward) == (None, None)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("attention", {"replace_with_linear": True}, "`replace_with_linear` = true means a linear layer in place of "),
        ("ffn", {"replace_with_linear": True}, "`replace_with_linear` = true means a linear layer in place of "),
        ("attention", {"window_length": 512}, "`window_length` = 512 means attention in a window"),
        ("attention", {"n_heads_in_group": 7}, "`n_heads_in_group` = 7 does not divide the 64 heads."),
        ("ffn", {"ffn_mult": 0}, "`ffn_mult` = 0.0 gives no width that a feed-forward can have."),
        ("ffn", {"ffn_mult": 1e9}, "`ffn_mult` = 1000000000.0 gives no width that a feed-forward can have."),
        ("ffn", {"moe": 4}, '"moe" is not understood for DeciLMForCausalLM'),
    ],
)
def test_a_block_that_cannot_be_planned_is_refused_with_its_place(
    part: str, changes: Mapping[str, object], message: str
) -> None:
    blocks = DECI["block_configs"]
    assert isinstance(blocks, list)
    first = {**blocks[0], part: {**blocks[0][part], **changes}}
    error = refusal(changed(DECI, block_configs=[first, *blocks[1:]]))
    assert error.message.startswith(message)
    assert error.location is not None
    assert error.location.path.startswith(f"block_configs[0].{part}.")
