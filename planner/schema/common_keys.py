"""Keys and words that mean the same in every Hugging Face config."""

from collections.abc import Mapping

from planner.models.blocks import Activation
from planner.schema.config_reader import Inert

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "relu2": Activation.RELU2,
}
"""Names of activations in configs."""

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
"""Scalings of the rotary embedding; none of them changes a cost. Phi-3 first called longrope `su`."""

ROPE_NUMBERS = (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "short_mscale",
    "long_mscale",
)
"""Numbers that belong to a scaling."""

HARMLESS = frozenset(
    {
        # What the config is about, who wrote it, and code that goes with it.
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_from_model_config",
        "_name_or_path",
        "architectures",
        "auto_map",
        "finetuning_task",
        "id2label",
        "label2id",
        "model_type",
        "name_or_path",
        "problem_type",
        "task_specific_params",
        "tokenizer_class",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        # Formats of the stored weights and code paths; the workload's precision decides.
        "dtype",
        "gradient_checkpointing",
        "tf_legacy_loss",
        "torch_dtype",
        "torchscript",
        "use_bfloat16",
        "use_cache",
        # Initial weights.
        "init_std",
        "initializer_range",
        # Dropout probabilities; the workload's own decide.
        "activation_dropout",
        "attention_dropout",
        "attn_pdrop",
        "classifier_dropout",
        "dropout",
        "embd_pdrop",
        "embedding_dropout",
        "hidden_dropout",
        "resid_pdrop",
        "residual_dropout",
        # Token ids.
        "audio_token_id",
        "begin_suppress_tokens",
        "boa_token_id",
        "boi_token_id",
        "bos_token_id",
        "decoder_start_token_id",
        "eoa_token_id",
        "eoa_token_index",
        "eoi_token_id",
        "eos_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "image_token_id",
        "image_token_index",
        "pad_token_id",
        "sep_token_id",
        "suppress_tokens",
        "unk_token_id",
        "video_token_id",
        "vision_end_token_id",
        "vision_start_token_id",
        # Sampling and what a call returns.
        "bad_words_ids",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "is_decoder",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "prefix",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    }
)
"""Keys that cost nothing in any architecture."""

QUANTIZATIONS = (
    "fp8",
    "fbgemm_fp8",
    "mxfp4",
    "modelopt",
    "compressed-tensors",
    "awq",
    "gptq",
    "bitsandbytes",
)
"""Methods of storing weights that leave the model's shapes as they are; training needs the shapes only."""

QUANTIZED_FILES = (
    "FP8",
    "FP8_PB_WO",
    "NVFP4",
    "NVFP4_AWQ",
    "INT4_AWQ",
    "W4A16_AWQ",
    "W4A8_AWQ",
    "W8A16",
    "W8A8_SQ_PER_CHANNEL",
)
"""The same in the words of an `hf_quant_config.json` (`quant_algo`, NVIDIA Model Optimizer)."""

_EXPERTS = Inert(values=(None, 0), meaning="a mixture of experts")
_EXTRA_TOKENS = Inert(values=(None, 0), meaning="layers that predict several tokens")
_SOFTCAP = Inert(values=(None,), meaning="capped logits")
_OFF = (None, False)

INERT: Mapping[str, Inert] = {
    "num_experts": _EXPERTS,
    "num_local_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "num_nextn_predict_layers": _EXTRA_TOKENS,
    "num_mtp_layers": _EXTRA_TOKENS,
    "mtp_num_hidden_layers": _EXTRA_TOKENS,
    "num_mtp_modules": _EXTRA_TOKENS,
    "audio_config": Inert(values=(None, {}), meaning="an audio tower"),
    "vision_config": Inert(values=(None, {}), meaning="a vision tower"),
    "sliding_window": Inert(values=(None,), meaning="attention in a window"),
    "use_sliding_window": Inert(values=_OFF, meaning="attention in a window"),
    "partial_rotary_factor": Inert(values=(None, 1, 1.0), meaning="heads that are rotated in part"),
    "attn_logit_softcapping": _SOFTCAP,
    "final_logit_softcapping": _SOFTCAP,
    "is_encoder_decoder": Inert(values=_OFF, meaning="an encoder"),
    "tie_encoder_decoder": Inert(values=_OFF, meaning="an encoder"),
    "add_cross_attention": Inert(values=_OFF, meaning="cross-attention"),
    "cross_attention_hidden_size": Inert(values=(None,), meaning="cross-attention"),
    "pruned_heads": Inert(values=(None, {}), meaning="layers with fewer heads"),
    "chunk_size_feed_forward": Inert(values=(None, 0), meaning="a feed-forward in chunks"),
}
"""Keys that are understood in every architecture, but only with values that change nothing."""
