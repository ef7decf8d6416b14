"""Models of experts with multi-head latent attention: DeepSeek-V2, -V3 and -V3.2, and those built alike.

Kimi-K2 and Moonlight are published as DeepSeek-V3. Shapes and defaults are those of transformers (`models/deepseek_v2`,
`deepseek_v3`, `glm_moe_dsa`) and of DeepSeek's own configuration; the indexer's those of DeepSeek-V3.2
(arXiv 2512.02556).
"""

from dataclasses import replace

from planner.models.blocks import LatentAttention, Norm, Router, RouterScore, SparseIndexer
from planner.models.decoder import Decoder
from planner.models.specs import Trait
from planner.schema.architecture import Architecture
from planner.schema.architectures.parts import (
    ROUTER_HARMLESS,
    dense_first,
    grouped_router,
    joined,
    read_experts,
    read_mtp,
    require_repeated,
    shared_width,
)
from planner.schema.config_reader import ConfigReader, Inert
from planner.schema.translate import shown


def read_latent(config: ConfigReader, base: Decoder, *, indexer: SparseIndexer | None = None) -> LatentAttention:
    """Return latent attention by DeepSeek's keys."""
    latent = LatentAttention(
        num_attention_heads=base.num_attention_heads,
        q_lora_rank=config.optional_count("q_lora_rank"),
        kv_lora_rank=config.size("kv_lora_rank"),
        qk_nope_head_dim=config.size("qk_nope_head_dim"),
        qk_rope_head_dim=config.size("qk_rope_head_dim"),
        v_head_dim=config.size("v_head_dim"),
        bias=config.flag("attention_bias", default=False),
        indexer=indexer,
    )
    require_repeated(config, "qk_head_dim", latent.qk_head_dim, "the sum of its parts")
    return latent


def _indexer(config: ConfigReader) -> SparseIndexer:
    if config.optional_count("q_lora_rank") is None:
        raise config.error("`q_lora_rank` is missing; the indexer reads the queries' latent.", key="q_lora_rank")
    return SparseIndexer(
        num_heads=config.size("index_n_heads", field="indexer.num_heads"),
        head_dim=config.size("index_head_dim", field="indexer.head_dim"),
        top_k=config.size("index_topk", field="indexer.top_k"),
    )


def _score(config: ConfigReader, *, default: str) -> RouterScore:
    name = config.optional_text("scoring_func") or default
    known = {"softmax": RouterScore.SOFTMAX, "sigmoid": RouterScore.SIGMOID}
    if name not in known:
        raise config.error(
            f"`scoring_func` = {shown(name)} is not understood.",
            key="scoring_func",
            hint=f"Known are {', '.join(known)}.",
        )
    return known[name]


def _with_experts(config: ConfigReader, base: Decoder, latent: LatentAttention, router: Router) -> Decoder:
    experts = read_experts(
        config,
        base,
        count=("n_routed_experts", "num_experts", "num_local_experts"),
        router=router,
        shared_intermediate_size=shared_width(config),
    )
    decoder = replace(
        base, latent_attention=latent, experts=experts, layers=joined(base.layers, dense_first(config, base))
    )
    return read_mtp(config, decoder)


def _deepseek_v2(config: ConfigReader, base: Decoder) -> Decoder:
    """Return DeepSeek-V2; its greedy choice of experts knows no groups."""
    method = config.optional_text("topk_method") or "greedy"
    if method not in ("greedy", "group_limited_greedy"):
        raise config.error(
            f"`topk_method` = {shown(method)} is not understood.",
            key="topk_method",
            hint="Known are greedy and group_limited_greedy.",
        )
    router = grouped_router(config, score=_score(config, default="softmax"), correction_bias=False, normalized=False)
    if method == "greedy":
        router = replace(router, num_groups=1, groups_per_token=1)
    return _with_experts(config, base, read_latent(config, base), router)


def _router_v3(config: ConfigReader) -> Router:
    """Return DeepSeek-V3's router, whose load is balanced by a bias (`noaux_tc`)."""
    return grouped_router(config, score=_score(config, default="sigmoid"), correction_bias=True, normalized=True)


def _deepseek_v3(config: ConfigReader, base: Decoder) -> Decoder:
    return _with_experts(config, base, read_latent(config, base), _router_v3(config))


def _deepseek_v32(config: ConfigReader, base: Decoder) -> Decoder:
    latent = read_latent(config, base, indexer=_indexer(config))
    return _with_experts(config, base, latent, _router_v3(config))


def _glm_moe_dsa(config: ConfigReader, base: Decoder) -> Decoder:
    """Return GLM-5, whose `head_dim` repeats the rotated part of a head."""
    decoder = _deepseek_v32(config, base)
    rotated = config.size("qk_rope_head_dim")
    require_repeated(config, "head_dim", rotated, "`qk_rope_head_dim`")
    return decoder


_NOAUX = {"topk_method": Inert(values=(None, "noaux_tc"), meaning="another way to choose experts")}
_INTERLEAVED = {"rope_interleave": Inert(values=(None, True), meaning="rotation of halves, not of pairs")}

LATENT = (
    Architecture(
        name="DeepseekV2ForCausalLM",
        model_type="deepseek_v2",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        latent=True,
        inert=_INTERLEAVED,
        harmless=ROUTER_HARMLESS | {"pretraining_tp"},
        traits=(Trait.INTERLEAVED_ROTARY,),
        adjust=_deepseek_v2,
    ),
    Architecture(
        name="DeepseekV3ForCausalLM",
        model_type="deepseek_v3",
        other_model_types=frozenset({"kimi_k2"}),
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        latent=True,
        inert={**_NOAUX, **_INTERLEAVED},
        harmless=ROUTER_HARMLESS | {"pretraining_tp"},
        traits=(Trait.INTERLEAVED_ROTARY,),
        adjust=_deepseek_v3,
    ),
    Architecture(
        name="DeepseekV32ForCausalLM",
        model_type="deepseek_v32",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        latent=True,
        inert={**_NOAUX, **_INTERLEAVED},
        harmless=ROUTER_HARMLESS | {"pretraining_tp"},
        traits=(Trait.INTERLEAVED_ROTARY,),
        adjust=_deepseek_v32,
    ),
    Architecture(
        name="GlmMoeDsaForCausalLM",
        model_type="glm_moe_dsa",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        latent=True,
        inert={**_NOAUX, **_INTERLEAVED},
        harmless=ROUTER_HARMLESS | {"pretraining_tp", "indexer_rope_interleave"},
        traits=(Trait.INTERLEAVED_ROTARY,),
        adjust=_glm_moe_dsa,
    ),
)
"""Every class of this file."""
