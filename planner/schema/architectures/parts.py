"""Parts that several architectures read in the same way."""

from collections.abc import Sequence
from dataclasses import fields, replace

from planner.models.blocks import Activation, DenseFeedForward, MixtureOfExperts, Router, RouterScore
from planner.models.decoder import Decoder, FeedForwardKind, LayerKind
from planner.models.sizes import check_experts_per_token
from planner.models.specs import Trait
from planner.schema.common_keys import ACTIVATIONS
from planner.schema.config_reader import ConfigReader, Inert, same
from planner.schema.translate import shown

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers, as `layer_types` calls them."""

DENSE, EXPERTS = LayerKind(feed_forward=FeedForwardKind.DENSE), LayerKind(feed_forward=FeedForwardKind.EXPERTS)

ROUTER_HARMLESS = frozenset(
    {
        "aux_loss_alpha",
        "ep_size",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "router_z_loss_coef",
        "seq_aux",
    }
)
"""Keys of experts that change the loss, or where experts stood when the model was trained, and no cost of a layer."""


def off(meaning: str) -> Inert:
    """Return a switch that is understood only when it is off."""
    return Inert(values=(None, False), meaning=meaning)


def on(meaning: str) -> Inert:
    """Return a switch that is understood only when it is on; `meaning` says what off would mean."""
    return Inert(values=(None, True), meaning=meaning)


def read_activation(config: ConfigReader, key: str, *, default: str) -> Activation:
    """Return the activation that a key names."""
    name = config.optional_text(key) or default
    if name not in ACTIVATIONS:
        raise config.error(
            f"`{key}` = {shown(name)} is not an activation that can be planned.",
            key=key,
            hint=f"Known are {', '.join(ACTIVATIONS)}.",
        )
    return ACTIVATIONS[name]


def layer_words(
    config: ConfigReader, base: Decoder, known: Sequence[str], *, default: tuple[str, ...]
) -> tuple[str, ...]:
    """Return what `layer_types` calls each layer."""
    return config.words("layer_types", known, length=base.num_hidden_layers) or default


def joined(*chains: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """Return what layers have of their own by several chains; an empty chain says nothing."""
    given = [chain for chain in chains if chain]
    if not given:
        return ()
    found = tuple(
        LayerKind(
            **{
                field.name: next((own for kind in kinds if (own := getattr(kind, field.name)) is not None), None)
                for field in fields(LayerKind)
            }
        )
        for kinds in zip(*given, strict=True)
    )
    return found if set(found) != {LayerKind()} else ()


def trait_of(config: ConfigReader, base: Decoder, key: str, trait: Trait, *, plain: tuple[float, ...]) -> Decoder:
    """Return the model with a trait if a number is there and is not one of the `plain` ones."""
    number = config.optional_number(key)
    return base if number is None or number in plain else replace(base, traits=(*base.traits, trait))


def read_mtp(config: ConfigReader, base: Decoder) -> Decoder:
    """Return the model with its multi-token prediction: `num_nextn_predict_layers` modules, one layer each."""
    modules = config.optional_count("num_nextn_predict_layers", "num_mtp_layers", field="mtp_modules")
    return replace(base, mtp_modules=modules or 0)


def read_experts(  # noqa: PLR0913 - experts have this many facts
    config: ConfigReader,
    base: Decoder,
    *,
    count: tuple[str, ...] = ("num_experts", "num_local_experts"),
    per_token: tuple[str, ...] = ("num_experts_per_tok",),
    width: str = "moe_intermediate_size",
    router: Router,
    shared_intermediate_size: int | None = None,
    shared_gate: bool = False,
    latent_size: int | None = None,
    num_norms: int = 0,
    bias: bool = False,
) -> MixtureOfExperts:
    """Return the experts whose numbers and width stand under these keys."""
    num_experts = config.size(*count, field="experts.num_experts")
    experts_per_token = config.size(*per_token, field="experts.experts_per_token")
    check_experts_per_token(experts_per_token, num_experts)
    expert = DenseFeedForward(
        intermediate_size=config.size(width, field="experts.intermediate_size"),
        gated=base.gated,
        activation=base.hidden_act,
        bias=bias,
    )
    shared = None
    if shared_intermediate_size is not None:
        shared = replace(expert, intermediate_size=shared_intermediate_size)
    return MixtureOfExperts(
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        expert=expert,
        router=router,
        shared=shared,
        shared_gate=shared_gate and shared is not None,
        latent_size=latent_size,
        num_norms=num_norms,
    )


def shared_width(config: ConfigReader, *, count: str = "n_shared_experts") -> int | None:
    """Return the width of shared experts that are as wide as the routed ones; None without any."""
    num_shared = config.optional_count(count, field="num_experts")
    width = config.size("moe_intermediate_size", field="experts.intermediate_size")
    return None if num_shared is None else num_shared * width


def grouped_router(config: ConfigReader, *, score: RouterScore, correction_bias: bool, normalized: bool) -> Router:
    """Return a router with groups of experts, as DeepSeek names its keys; `normalized` is the class's default."""
    return Router(
        score=score,
        num_groups=config.optional_size("n_group", "num_expert_group", field="router.num_groups") or 1,
        groups_per_token=config.optional_size("topk_group", field="router.groups_per_token") or 1,
        correction_bias=correction_bias,
        normalized=config.flag("norm_topk_prob", default=normalized),
        weight_factor=weight_factor(config),
    )


def weight_factor(config: ConfigReader) -> float:
    """Return the factor of the chosen experts' weights."""
    factor = config.optional_number("routed_scaling_factor", field="router.weight_factor")
    return 1.0 if factor is None else factor


def require_repeated(config: ConfigReader, key: str, expected: object, meaning: str) -> None:
    """Refuse a key that should only repeat what other keys say, and says something else."""
    found = config.value(key)
    if found is not None and not same(found, expected):
        raise config.error(f"`{key}` = {shown(found)} contradicts {meaning}, {shown(expected)}.", key=key)


def sparse_layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    """Return which layers are dense by Qwen's keys: experts every `decoder_sparse_step`, less `mlp_only_layers`."""
    step = config.optional_size("decoder_sparse_step", field="num_hidden_layers") or 1
    only = listed_layers(config, base, "mlp_only_layers")
    chain = tuple(DENSE if layer in only or (layer + 1) % step else EXPERTS for layer in range(base.num_hidden_layers))
    return () if DENSE not in chain else chain


def listed_layers(config: ConfigReader, base: Decoder, key: str, *, first: int = 0) -> frozenset[int]:
    """Return the layers, counted from 0, that a list names by their numbers; its own count starts at `first`."""
    found = config.optional_sizes(key) or ()
    for index, layer in enumerate(found):
        if not first <= layer < base.num_hidden_layers + first:
            raise config.item_error(
                f"`{key}[{index}]` = {layer} is not a layer of {base.num_hidden_layers}.", key=key, index=index
            )
    return frozenset(layer - first for layer in found)


def dense_first(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    """Return which layers are dense by DeepSeek's keys: the first few, and those that `moe_layer_freq` leaves out."""
    num_dense = config.optional_count("first_k_dense_replace", field="num_hidden_layers") or 0
    every = config.optional_size("moe_layer_freq", field="num_hidden_layers") or 1
    chain = tuple(
        EXPERTS if layer >= num_dense and layer % every == 0 else DENSE for layer in range(base.num_hidden_layers)
    )
    return chain if DENSE in chain else ()
