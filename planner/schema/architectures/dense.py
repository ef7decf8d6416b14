"""Dense decoders whose layers are all alike, or differ by their windows only.

The defaults are those of the configuration classes of transformers 4.57.1, whose models the tests count. Sizes have no
defaults here: a config without its sizes is incomplete.
"""

from dataclasses import replace

from planner.models.blocks import Norm, QueryKeyNorm
from planner.models.decoder import Decoder, LayerKind
from planner.models.specs import Trait
from planner.schema.architecture import Architecture, Flag, KeyValueHeads, Rotary, Window
from planner.schema.architectures.parts import layer_words, off, read_mtp, trait_of
from planner.schema.config_reader import ConfigReader, Inert


def _sizes(**names: str) -> dict[str, tuple[str, ...]]:
    return {size: (key, size) for size, key in names.items()}


def _falcon(config: ConfigReader, base: Decoder) -> Decoder:
    """Return Falcon's heads and norms: 7B, and the new decoder architecture of 40B and 180B."""
    new_decoder = config.flag("new_decoder_architecture", default=False)
    multi_query = config.flag("multi_query", default=True)
    parallel = config.flag("parallel_attn", default=True)
    norms_in_parallel = config.optional_size("num_ln_in_parallel_attn", field="num_norms")
    grouped = config.optional_size("num_kv_heads", "n_head_kv", field="num_key_value_heads")
    if new_decoder:
        if not parallel:
            raise config.error(
                "`parallel_attn` = false contradicts `new_decoder_architecture` = true, "
                "whose attention and feed-forward are parallel.",
                key="parallel_attn",
            )
        heads, norms = grouped or base.num_attention_heads, norms_in_parallel or 2
    else:
        if norms_in_parallel not in (None, 1):
            raise config.error(
                f"`num_ln_in_parallel_attn` = {norms_in_parallel} needs `new_decoder_architecture` = true.",
                key="num_ln_in_parallel_attn",
            )
        heads, norms = (1 if multi_query else base.num_attention_heads), (1 if parallel else 2)
    return replace(base, num_key_value_heads=heads, parallel=parallel, num_norms=norms)


def _gpt_neox(config: ConfigReader, base: Decoder) -> Decoder:
    return replace(base, parallel=config.flag("use_parallel_residual", default=True))


def _stablelm(config: ConfigReader, base: Decoder) -> Decoder:
    parallel = config.flag("use_parallel_residual", default=False)
    return replace(base, parallel=parallel, num_norms=1 if parallel else 2)


def _gptj(config: ConfigReader, base: Decoder) -> Decoder:
    rotary_dim = config.optional_size("rotary_dim", field="rotary_fraction")
    fraction = 1.0 if rotary_dim is None or base.head_dim is None else rotary_dim / base.head_dim
    return replace(base, rotary_fraction=fraction)


def _opt(config: ConfigReader, base: Decoder) -> Decoder:
    """Return OPT's position table, which has two rows in front of position 0."""
    projected = config.optional_size("word_embed_proj_dim")
    if projected not in (None, base.hidden_size):
        raise config.error(
            f"`word_embed_proj_dim` = {projected} differs from `hidden_size` = {base.hidden_size}: "
            "embeddings that are projected cannot be planned yet.",
            key="word_embed_proj_dim",
            hint="Models whose `word_embed_proj_dim` is the hidden size can be planned.",
        )
    return replace(base, position_offset=2)


def _olmo(config: ConfigReader, base: Decoder) -> Decoder:
    return trait_of(config, base, "clip_qkv", Trait.CLAMPED_QKV, plain=())


def _cohere(config: ConfigReader, base: Decoder) -> Decoder:
    """Return Cohere's model: its logits are scaled by 0.0625 where the key is absent."""
    if not config.has("logit_scale"):
        return replace(base, traits=(*base.traits, Trait.SCALED_LOGITS))
    return trait_of(config, base, "logit_scale", Trait.SCALED_LOGITS, plain=(1.0,))


def _cohere2_layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    """Return windows; layers that see everything do not rotate."""
    pattern = config.optional_size("sliding_window_pattern", field="num_hidden_layers") or 4
    window = config.optional_size("sliding_window", field="window") if config.has("sliding_window") else 4096
    default = tuple(
        "sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(base.num_hidden_layers)
    )
    words = layer_words(config, base, ("full_attention", "sliding_attention"), default=default)
    kinds = {"full_attention": LayerKind(rotary=False), "sliding_attention": LayerKind(window=window)}
    return tuple(kinds[word] for word in words)


_GPT_SIZES = _sizes(
    hidden_size="n_embd",
    num_hidden_layers="n_layer",
    num_attention_heads="n_head",
    intermediate_size="n_inner",
    max_position_embeddings="n_positions",
)

_GPT_HARMLESS = frozenset(
    {
        "n_ctx",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    }
)

_QWEN_WINDOW = Window(needs_flag=True, from_layer=True)

_MROPE = {"use_mrope": off("rotary positions in several dimensions")}

DENSE = (
    Architecture(
        name="LlamaForCausalLM",
        model_type="llama",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        key_value_heads=KeyValueHeads.OPTIONAL_KEY,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        mlp_bias=Flag(key="mlp_bias", default=False),
        harmless=frozenset({"pretraining_tp"}),
    ),
    Architecture(
        name="MistralForCausalLM",
        model_type="mistral",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        window=Window(default=4096),
        inert={"attention_bias": off("biases that the class does not have")},
    ),
    Architecture(
        name="Qwen2ForCausalLM",
        model_type="qwen2",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        qkv_bias=True,
        window=_QWEN_WINDOW,
        inert=_MROPE,
    ),
    Architecture(
        name="Qwen3ForCausalLM",
        model_type="qwen3",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        head_dim=128,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        qk_norm=QueryKeyNorm.HEAD,
        window=_QWEN_WINDOW,
        inert=_MROPE,
    ),
    Architecture(
        name="MiMoForCausalLM",
        model_type="mimo",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        qkv_bias=True,
        window=_QWEN_WINDOW,
        inert={**_MROPE, "attention_bias": Inert(values=(None, True), meaning="no biases, which the class has")},
        adjust=read_mtp,
    ),
    Architecture(
        name="GPT2LMHeadModel",
        model_type="gpt2",
        norm=Norm.LAYER,
        epsilon_key="layer_norm_epsilon",
        epsilon=1e-5,
        gated=False,
        activation_key="activation_function",
        activation="gelu_new",
        tied=True,
        keys=_GPT_SIZES,
        intermediate_factor=4,
        key_value_heads=KeyValueHeads.OWN,
        reads_head_dim=False,
        rotary=None,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        inert={
            "scale_attn_weights": Inert(values=(None, True), meaning="attention without its scale"),
            "scale_attn_by_inverse_layer_idx": off("attention scaled by layer"),
            "reorder_and_upcast_attn": off("attention in fp32"),
        },
        harmless=_GPT_HARMLESS,
    ),
    Architecture(
        name="GPTJForCausalLM",
        model_type="gptj",
        norm=Norm.LAYER,
        epsilon_key="layer_norm_epsilon",
        epsilon=1e-5,
        gated=False,
        activation_key="activation_function",
        activation="gelu_new",
        tied=False,
        keys=_GPT_SIZES,
        intermediate_factor=4,
        key_value_heads=KeyValueHeads.OWN,
        reads_head_dim=False,
        mlp_bias=True,
        lm_head_bias=True,
        traits=(Trait.INTERLEAVED_ROTARY,),
        inert={
            "rotary": Inert(values=(None, True), meaning="no rotary positions"),
            "scale_attn_weights": Inert(values=(None, True), meaning="attention without its scale"),
        },
        parallel=True,
        num_norms=1,
        harmless=_GPT_HARMLESS,
        adjust=_gptj,
    ),
    Architecture(
        name="GPTNeoXForCausalLM",
        model_type="gpt_neox",
        norm=Norm.LAYER,
        epsilon_key="layer_norm_eps",
        epsilon=1e-5,
        gated=False,
        activation_key="hidden_act",
        activation="gelu",
        tied=False,
        key_value_heads=KeyValueHeads.OWN,
        reads_head_dim=False,
        rotary=Rotary(theta_key="rotary_emb_base", fraction_key="rotary_pct", fraction=0.25),
        qkv_bias=Flag(key="attention_bias", default=True),
        output_bias=Flag(key="attention_bias", default=True),
        mlp_bias=True,
        adjust=_gpt_neox,
    ),
    Architecture(
        name="FalconForCausalLM",
        model_type="falcon",
        norm=Norm.LAYER,
        epsilon_key="layer_norm_epsilon",
        epsilon=1e-5,
        gated=False,
        activation_key="activation",
        activation="gelu",
        tied=True,
        keys={
            "hidden_size": ("hidden_size", "n_embed"),
            "num_hidden_layers": ("num_hidden_layers", "n_layer"),
            "num_attention_heads": ("num_attention_heads", "n_head"),
            "intermediate_size": ("ffn_hidden_size",),
        },
        intermediate_factor=4,
        max_positions=2048,
        key_value_heads=KeyValueHeads.OWN,
        reads_head_dim=False,
        qkv_bias=Flag(key="bias", default=False),
        output_bias=Flag(key="bias", default=False),
        mlp_bias=Flag(key="bias", default=False),
        inert={
            "alibi": off("ALiBi positions"),
            "apply_residual_connection_post_layernorm": off("residual connections behind the norms"),
        },
        adjust=_falcon,
    ),
    Architecture(
        name="PhiForCausalLM",
        model_type="phi",
        norm=Norm.LAYER,
        epsilon_key="layer_norm_eps",
        epsilon=1e-5,
        gated=False,
        activation_key="hidden_act",
        activation="gelu_new",
        tied=False,
        key_value_heads=KeyValueHeads.OPTIONAL_KEY,
        rotary=Rotary(fraction_key="partial_rotary_factor", fraction=0.5),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        lm_head_bias=True,
        inert={"qk_layernorm": off("a LayerNorm on queries and keys")},
        parallel=True,
        num_norms=1,
    ),
    Architecture(
        name="Phi3ForCausalLM",
        model_type="phi3",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        key_value_heads=KeyValueHeads.OPTIONAL_KEY,
        rotary=Rotary(fraction_key="partial_rotary_factor", fraction=1.0),
        window=Window(),
        inert={
            "attention_bias": off("biases that the class does not have"),
            "mlp_bias": off("biases that the class does not have"),
            "lm_head_bias": off("a bias that the class does not have"),
            "full_attn_mod": Inert(values=(None, 1), meaning="layers without full attention"),
        },
        harmless=frozenset({"original_max_position_embeddings", "interpolate_factor"}),
    ),
    Architecture(
        name="StableLmForCausalLM",
        model_type="stablelm",
        norm=Norm.LAYER,
        epsilon_key="layer_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        reads_head_dim=False,
        rotary=Rotary(fraction_key="partial_rotary_factor", fraction=0.25),
        qkv_bias=Flag(key="use_qkv_bias", default=False),
        inert={"qk_layernorm": off("a LayerNorm on each head's queries and keys")},
        adjust=_stablelm,
    ),
    Architecture(
        name="Starcoder2ForCausalLM",
        model_type="starcoder2",
        norm=Norm.LAYER,
        epsilon_key="norm_epsilon",
        epsilon=1e-5,
        gated=False,
        activation_key="hidden_act",
        activation="gelu_pytorch_tanh",
        tied=True,
        qkv_bias=Flag(key="use_bias", default=True),
        output_bias=Flag(key="use_bias", default=True),
        mlp_bias=Flag(key="use_bias", default=True),
        window=Window(),
        inert={
            "mlp_type": Inert(values=(None, "default"), meaning="another feed-forward"),
            "norm_type": Inert(values=(None, "layer_norm"), meaning="another norm"),
        },
    ),
    Architecture(
        name="GemmaForCausalLM",
        model_type="gemma",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        tied=True,
        head_dim=256,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        traits=(Trait.ZERO_CENTERED_NORM, Trait.SCALED_EMBEDDING),
        harmless=frozenset({"hidden_act"}),
    ),
    Architecture(
        name="NemotronForCausalLM",
        model_type="nemotron",
        norm=Norm.LAYER,
        epsilon_key="norm_eps",
        epsilon=1e-5,
        gated=False,
        activation_key="hidden_act",
        activation="relu2",
        tied=False,
        key_value_heads=KeyValueHeads.OPTIONAL_KEY,
        rotary=Rotary(fraction_key="partial_rotary_factor", fraction=0.5),
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        mlp_bias=Flag(key="mlp_bias", default=False),
        traits=(Trait.ZERO_CENTERED_NORM,),
    ),
    Architecture(
        name="OPTForCausalLM",
        model_type="opt",
        norm=Norm.LAYER,
        epsilon_key=None,
        epsilon=1e-5,
        gated=False,
        activation_key="activation_function",
        activation="relu",
        tied=True,
        keys={"intermediate_size": ("ffn_dim",)},
        key_value_heads=KeyValueHeads.OWN,
        reads_head_dim=False,
        rotary=None,
        qkv_bias=Flag(key="enable_bias", default=True),
        output_bias=Flag(key="enable_bias", default=True),
        mlp_bias=Flag(key="enable_bias", default=True),
        inert={
            "_remove_final_layer_norm": off("no final norm"),
            "do_layer_norm_before": Inert(values=(None, True), meaning="norms behind the sub-blocks"),
            "layer_norm_elementwise_affine": Inert(values=(None, True), meaning="norms without parameters"),
            "layerdrop": Inert(values=(None, 0, 0.0), meaning="layers skipped at random"),
        },
        adjust=_opt,
    ),
    Architecture(
        name="OlmoForCausalLM",
        model_type="olmo",
        norm=Norm.LAYER_PLAIN,
        epsilon_key=None,
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        key_value_heads=KeyValueHeads.OPTIONAL_KEY,
        reads_head_dim=False,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        adjust=_olmo,
    ),
    Architecture(
        name="Olmo2ForCausalLM",
        model_type="olmo2",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        key_value_heads=KeyValueHeads.OPTIONAL_KEY,
        reads_head_dim=False,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        qk_norm=QueryKeyNorm.WIDTH,
        num_norms=0,
        num_post_norms=2,
    ),
    Architecture(
        name="CohereForCausalLM",
        model_type="cohere",
        norm=Norm.LAYER_UNSHIFTED,
        epsilon_key="layer_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=True,
        key_value_heads=KeyValueHeads.OPTIONAL_KEY,
        reads_head_dim=False,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        num_norms=1,
        parallel=True,
        traits=(Trait.INTERLEAVED_ROTARY,),
        inert={"use_qk_norm": off("a LayerNorm of its own for each head's queries and keys")},
        adjust=_cohere,
    ),
    Architecture(
        name="Cohere2ForCausalLM",
        model_type="cohere2",
        norm=Norm.LAYER_UNSHIFTED,
        epsilon_key="layer_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=True,
        key_value_heads=KeyValueHeads.OPTIONAL_KEY,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        num_norms=1,
        parallel=True,
        traits=(Trait.INTERLEAVED_ROTARY,),
        layers=_cohere2_layers,
        harmless=frozenset({"cache_implementation"}),
        adjust=_cohere,
    ),
)
