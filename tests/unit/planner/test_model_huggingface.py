"""Hugging Face configs: what is read, and what is refused by name."""

import pytest

from planner.models.blocks import Activation, Norm, PositionEmbedding, QueryKeyNorm
from planner.models.bundled import load_bundled
from planner.models.specs import Trait
from tests.unit.planner.model_inputs import (
    LLAMA_8B,
    MISTRAL,
    QWEN3_8B,
    attention,
    changed,
    feed_forward,
    read,
    refusal,
    window,
    without,
)

GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 1600,
    "n_head": 25,
    "n_layer": 48,
    "n_positions": 1024,
    "vocab_size": 50257,
}

GPTJ = {
    "architectures": ["GPTJForCausalLM"],
    "n_embd": 4096,
    "n_head": 16,
    "n_layer": 28,
    "n_positions": 2048,
    "rotary_dim": 64,
    "vocab_size": 50400,
}

FALCON_180B = {
    "architectures": ["FalconForCausalLM"],
    "alibi": False,
    "bias": False,
    "hidden_size": 14848,
    "multi_query": True,
    "new_decoder_architecture": True,
    "num_attention_heads": 232,
    "num_hidden_layers": 80,
    "num_kv_heads": 8,
    "parallel_attn": True,
    "vocab_size": 65024,
}

FALCON_7B = {
    "architectures": ["FalconForCausalLM"],
    "hidden_size": 4544,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "vocab_size": 65024,
}

OPT = {
    "architectures": ["OPTForCausalLM"],
    "ffn_dim": 28672,
    "hidden_size": 7168,
    "max_position_embeddings": 2048,
    "num_attention_heads": 56,
    "num_hidden_layers": 48,
    "vocab_size": 50272,
    "word_embed_proj_dim": 7168,
}


def test_a_config_equals_the_bundled_model_of_the_same_name() -> None:
    model = read(LLAMA_8B)
    bundled = load_bundled("llama-3.1-8b")
    assert model.runs == bundled.runs
    assert model.rope_scaling == bundled.rope_scaling
    assert (model.rope_theta, model.norm_epsilon) == (bundled.rope_theta, bundled.norm_epsilon)
    assert model.max_position_embeddings == bundled.max_position_embeddings


def test_key_value_heads_of_null_are_the_query_heads() -> None:
    assert attention(read(changed(LLAMA_8B, num_key_value_heads=None))).num_key_value_heads == 32
    assert attention(read(without(LLAMA_8B, "num_key_value_heads"))).num_key_value_heads == 32


def test_absent_key_value_heads_are_refused_where_the_class_has_a_default_of_its_own() -> None:
    error = refusal(without(MISTRAL, "num_key_value_heads"))
    assert str(error) == (
        "config.json:1:1: `num_key_value_heads` is missing; MistralForCausalLM needs it.\n"
        "Correct it, or use the config.json that was published with the model."
    )


def test_head_dim_is_not_derived_when_it_is_there() -> None:
    assert attention(read(LLAMA_8B)).head_dim == 128
    assert attention(read(changed(LLAMA_8B, head_dim=64))).head_dim == 64
    assert attention(read(without(QWEN3_8B, "head_dim"))).head_dim == 128


def test_a_head_dim_that_would_not_be_whole_is_refused() -> None:
    error = refusal(changed(LLAMA_8B, hidden_size=4097))
    assert error.message == (
        "`hidden_size` = 4097 is not a multiple of the number of attention heads, 32, and there is no `head_dim`."
    )


def test_biases_follow_the_class_or_its_keys() -> None:
    llama = read(changed(LLAMA_8B, attention_bias=True, mlp_bias=True))
    assert (attention(llama).qkv_bias, attention(llama).output_bias, feed_forward(llama).bias) == (True, True, True)
    qwen2 = read(
        changed(without(QWEN3_8B, "attention_bias", "model_type", "head_dim"), architectures=["Qwen2ForCausalLM"])
    )
    assert (attention(qwen2).qkv_bias, attention(qwen2).output_bias) == (True, False)
    assert attention(qwen2).qk_norm is QueryKeyNorm.NONE
    assert attention(read(QWEN3_8B)).qk_norm is QueryKeyNorm.HEAD


def test_gpt2_has_learned_positions_tied_embeddings_and_biases_everywhere() -> None:
    model = read(GPT2)
    assert (model.position_embedding, model.num_position_rows) == (PositionEmbedding.LEARNED, 1024)
    assert (model.norm, model.tie_word_embeddings, model.rope_theta) == (Norm.LAYER, True, None)
    assert (feed_forward(model).intermediate_size, feed_forward(model).gated) == (6400, False)
    assert feed_forward(model).activation is Activation.GELU_TANH
    assert attention(model).qkv_bias
    assert attention(model).output_bias
    assert feed_forward(model).bias


def test_gptj_is_parallel_with_one_norm_and_a_biased_head() -> None:
    model = read(GPTJ)
    block = model.runs[0].block
    assert (block.parallel, block.num_norms, model.lm_head_bias, model.rotary_fraction) == (True, 1, True, 0.25)
    assert (attention(model).qkv_bias, feed_forward(model).bias) == (False, True)
    assert model.traits == (Trait.INTERLEAVED_ROTARY,)


def test_falcon_180b_has_grouped_heads_and_two_norms_in_parallel() -> None:
    model = read(FALCON_180B)
    block = model.runs[0].block
    assert (attention(model).num_key_value_heads, block.parallel, block.num_norms) == (8, True, 2)
    assert (feed_forward(model).intermediate_size, model.tie_word_embeddings) == (59392, True)


def test_falcon_7b_has_one_key_value_head_and_one_norm() -> None:
    model = read(FALCON_7B)
    block = model.runs[0].block
    assert (attention(model).num_key_value_heads, block.parallel, block.num_norms) == (1, True, 1)


def test_falcon_with_alibi_is_refused() -> None:
    error = refusal(changed(FALCON_7B, alibi=True))
    assert error.message == "`alibi` = true means ALiBi positions, which is not planned for this class yet."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parallel_attn": False},
            (
                "`parallel_attn` = false contradicts `new_decoder_architecture` = true, "
                "whose attention and feed-forward are parallel."
            ),
        ),
        (
            {"new_decoder_architecture": False, "num_ln_in_parallel_attn": 2},
            "`num_ln_in_parallel_attn` = 2 needs `new_decoder_architecture` = true.",
        ),
    ],
)
def test_contradictions_inside_falcon_are_refused(changes: dict[str, object], message: str) -> None:
    assert refusal(changed(FALCON_180B, **changes)).message == message


def test_opt_has_two_position_rows_more_than_positions() -> None:
    assert read(OPT).num_position_rows == 2050


def test_opt_with_projected_embeddings_is_refused() -> None:
    error = refusal(changed(OPT, word_embed_proj_dim=512))
    assert error.message.startswith("`word_embed_proj_dim` = 512 differs from `hidden_size` = 7168")


def test_gemma_ignores_hidden_act_as_its_class_does() -> None:
    gemma = changed(
        without(LLAMA_8B, "model_type", "mlp_bias", "pretraining_tp"),
        architectures=["GemmaForCausalLM"],
        hidden_act="gelu",
    )
    model = read(gemma)
    assert feed_forward(model).activation is Activation.GELU_TANH
    assert model.traits == (Trait.ZERO_CENTERED_NORM, Trait.SCALED_EMBEDDING)


# Windows


def test_a_window_is_every_layers() -> None:
    assert attention(read(changed(MISTRAL, sliding_window=4096))).window == 4096


def test_an_absent_window_is_the_classes_default() -> None:
    assert attention(read(without(MISTRAL, "sliding_window"))).window == 4096
    assert attention(read(MISTRAL)).window is None


def test_a_window_as_long_as_the_longest_sequence_changes_nothing() -> None:
    assert read(changed(MISTRAL, sliding_window=32768)) == read(MISTRAL)


def test_a_window_that_is_declared_unused_changes_nothing() -> None:
    assert read(changed(QWEN3_8B, sliding_window=4096, use_sliding_window=False)) == read(QWEN3_8B)


def test_a_used_window_starts_at_the_layer_that_is_given() -> None:
    model = read(changed(QWEN3_8B, sliding_window=4096, use_sliding_window=True, max_window_layers=28))
    assert [(run.count, window(run.block)) for run in model.runs] == [(28, None), (8, 4096)]


def test_layer_types_say_where_windows_are() -> None:
    assert read(changed(QWEN3_8B, layer_types=["full_attention"] * 36)) == read(QWEN3_8B)
    mixed = ["full_attention"] * 35 + ["sliding_attention"]
    used = changed(QWEN3_8B, layer_types=mixed, sliding_window=4096, use_sliding_window=True)
    assert [(run.count, window(run.block)) for run in read(used).runs] == [(35, None), (1, 4096)]
    assert refusal(changed(QWEN3_8B, layer_types=mixed)).message == (
        '`layer_types` holds "sliding_attention", and no window is in use.'
    )


def test_a_kind_of_layer_that_the_class_does_not_have_is_refused_with_its_place() -> None:
    error = refusal(changed(QWEN3_8B, layer_types=["full_attention"] * 35 + ["mamba"]))
    assert error.message == '`layer_types[35]` = "mamba" is not a kind of layer that Qwen3ForCausalLM has.'
    assert error.location is not None
    assert error.location.path == "layer_types[35]"
    assert (
        refusal(changed(QWEN3_8B, layer_types=["full_attention"])).message
        == "`layer_types` names 1 layers; the model has 36."
    )


# Rotary embeddings


def test_old_and_new_names_of_the_rotary_embedding_mean_the_same() -> None:
    scaling = LLAMA_8B["rope_scaling"]
    assert isinstance(scaling, dict)
    new = without(LLAMA_8B, "rope_scaling", "rope_theta", "torch_dtype")
    assert read({**new, "rope_parameters": {**scaling, "rope_theta": 500000.0}, "dtype": "bfloat16"}) == read(LLAMA_8B)


def test_two_different_bases_are_a_contradiction() -> None:
    error = refusal(changed(QWEN3_8B, rope_parameters={"rope_type": "default", "rope_theta": 5}))
    assert error.message == "`rope_theta` = 5.0 contradicts 1000000.0 outside of this mapping."
    assert error.location is not None
    assert error.location.path == "rope_parameters.rope_theta"


def test_an_unknown_scaling_and_an_unknown_key_of_one_are_refused() -> None:
    error = refusal(changed(LLAMA_8B, rope_scaling={"rope_type": "mrope"}))
    assert error.message == '`rope_type` = "mrope" is not understood.'
    assert '"warp" is not understood' in refusal(changed(LLAMA_8B, rope_scaling={"type": "yarn", "warp": 3})).message


# What is not understood


def test_an_unknown_key_is_named_with_its_line() -> None:
    error = refusal(changed(LLAMA_8B, hc_mult=4))
    assert str(error) == (
        'config.json:38:14: hc_mult: "hc_mult" is not understood for LlamaForCausalLM; '
        "it may change what the model costs.\n"
        "Remove it if it changes neither shapes nor operations, or describe the model inline."
    )


def test_several_unknown_keys_are_reported_together() -> None:
    text = str(refusal(changed(LLAMA_8B, hc_mult=4, kv_lora_rank=512)))
    assert '"hc_mult" is not understood' in text
    assert '"kv_lora_rank" is not understood' in text


@pytest.mark.parametrize(
    ("key", "inert", "biting", "meaning"),
    [
        ("num_experts", 0, 8, "a mixture of experts"),
        ("num_local_experts", None, 8, "a mixture of experts"),
        ("num_nextn_predict_layers", 0, 1, "layers that predict several tokens"),
        ("sliding_window", None, 4096, "attention in a window"),
        ("add_cross_attention", False, True, "cross-attention"),
        ("final_logit_softcapping", None, 30.0, "capped logits"),
        ("partial_rotary_factor", 1.0, 0.5, "heads that are rotated in part"),
    ],
)
def test_a_known_key_is_inert_or_refused(key: str, inert: object, biting: object, meaning: str) -> None:
    assert read({**LLAMA_8B, key: inert}) == read(LLAMA_8B)
    error = refusal({**LLAMA_8B, key: biting})
    assert error.message.startswith(f"`{key}` = ")
    assert error.message.endswith(f" means {meaning}, which is not planned for this class yet.")


def test_zero_is_not_false_and_one_is_not_true() -> None:
    assert "`add_cross_attention` = 0" in refusal(changed(LLAMA_8B, add_cross_attention=0)).message
    assert "`partial_rotary_factor` = true" in refusal(changed(LLAMA_8B, partial_rotary_factor=True)).message


def test_a_known_quantisation_leaves_the_model_as_it_is() -> None:
    for stored in (None, {}, {"quant_method": "fp8", "weight_block_size": [128, 128]}, {"quant_method": "mxfp4"}):
        assert read({**LLAMA_8B, "quantization_config": stored}) == read(LLAMA_8B)


def test_an_unknown_quantisation_is_refused_by_its_method() -> None:
    error = refusal({**LLAMA_8B, "quantization_config": {"quant_method": "squeeze"}})
    assert error.message == '`quant_method` = "squeeze" is not known; it may change shapes.'
    assert error.location is not None
    assert error.location.path == "quantization_config.quant_method"


def test_prediction_modules_have_the_block_of_the_last_layer() -> None:
    mimo = {
        **without(QWEN3_8B, "model_type"),
        "architectures": ["MiMoForCausalLM"],
        "attention_bias": True,
        "sliding_window": 32768,
        "use_mrope": False,
        "num_nextn_predict_layers": 1,
    }
    model = read(mimo)
    assert model.mtp is not None
    assert (model.mtp.num_modules, model.mtp.block) == (1, model.blocks[-1])
    assert read(changed(mimo, num_nextn_predict_layers=0)).mtp is None


# Classes that are not known, by the keys that their configs have.
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"architectures": ["NewMoeForCausalLM"], "num_experts": 128},
            "it is a mixture of experts of a class that is not known",
        ),
        (
            {"architectures": ["NewForCausalLM"], "kv_lora_rank": 512, "n_routed_experts": 256},
            "it is built on latent attention (MLA) and a mixture of experts of a class that is not known",
        ),
        (
            {
                "architectures": ["NewForConditionalGeneration"],
                "text_config": {"linear_num_key_heads": 16},
                "vision_config": {"depth": 27},
            },
            "it is a hybrid of attention and state-space or linear layers and multimodal of a class that is not known",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "it is not known"),
    ],
)
def test_an_architecture_that_cannot_be_planned_is_named_with_the_reason(
    config: dict[str, object], reason: str
) -> None:
    error = refusal(config)
    assert isinstance(config["architectures"], list)
    assert error.message == f'The architecture "{config["architectures"][0]}" cannot be planned yet: {reason}.'
    assert "Supported are Cohere2ForCausalLM, CohereForCausalLM" in error.hint


def test_a_config_without_architectures_is_known_by_its_model_type() -> None:
    assert read(without(LLAMA_8B, "architectures")) == read(LLAMA_8B)
    error = refusal({"model_type": "llama2", "hidden_size": 8})
    assert error.message == '`model_type` = "llama2" cannot be planned yet: it is not known.'


def test_a_model_type_that_contradicts_the_architecture_is_refused() -> None:
    error = refusal(changed(LLAMA_8B, model_type="mistral"))
    assert error.message == '`model_type` = "mistral" contradicts `architectures`: LlamaForCausalLM has "llama".'


def test_several_architectures_are_refused() -> None:
    error = refusal(changed(LLAMA_8B, architectures=["LlamaForCausalLM", "LlamaModel"]))
    assert error.message == "`architectures` names 2 classes; one is needed."


def test_two_names_of_one_size_must_agree() -> None:
    assert read(changed(GPT2, hidden_size=1600)) == read(GPT2)
    error = refusal(changed(GPT2, hidden_size=1601))
    assert error.message == "`hidden_size` = 1601 contradicts `n_embd` = 1600; both name the same thing."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "4096"}, '`hidden_size` must be a whole number, not "4096".'),
        ({"hidden_size": 4096.0}, "`hidden_size` must be a whole number, not 4096.0."),
        ({"num_hidden_layers": True}, "`num_hidden_layers` must be a whole number, not true."),
        ({"attention_bias": 0}, "`attention_bias` must be true or false, not 0."),
        ({"rms_norm_eps": "small"}, '`rms_norm_eps` must be a number, not "small".'),
        ({"hidden_act": "mish"}, '`hidden_act` = "mish" is not an activation that can be planned.'),
        ({"hidden_act": ["silu"]}, '`hidden_act` must be text, not ["silu"].'),
        ({"rope_scaling": 8}, "`rope_scaling` must be a mapping, not 8."),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` = 0 is outside 1 to 2,048."),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` = 1000000000 is outside 1 to 2,048."),
        ({"vocab_size": -1}, "`vocab_size` = -1 is outside 1 to 33,554,432."),
        ({"num_attention_heads": 0}, "`num_attention_heads` = 0 is outside 1 to 16,384."),
        ({"num_key_value_heads": 7}, "`num_attention_heads` = 32 is not a multiple of `num_key_value_heads` = 7."),
        ({"rms_norm_eps": 2}, "`norm_epsilon` = 2.0 is outside 0 to 1."),
        ({"rope_theta": 0}, "`rope_theta` = 0.0 is not positive."),
        ({"vocab_size": None}, "`vocab_size` is missing; LlamaForCausalLM needs it."),
    ],
)
def test_wrong_types_and_impossible_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    assert refusal(changed(LLAMA_8B, **changes)).message == message


def test_an_impossible_size_is_blamed_on_the_key_it_was_read_from() -> None:
    error = refusal(changed(GPT2, n_layer=5000))
    assert error.location is not None
    assert (error.location.line, error.location.path) == (7, "n_layer")
