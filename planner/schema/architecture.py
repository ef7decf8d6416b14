"""The form in which `planner.schema.architectures` describes one Hugging Face architecture.

A fact is either fixed by the class or read from a key with the class's own default. What the table cannot say, a
function reads: `layers` what layers have of their own, `adjust` experts, latent attention and the like.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from planner.models.blocks import Norm, PositionEmbedding, QueryKeyNorm
from planner.models.decoder import Decoder, LayerKind
from planner.models.specs import Trait, VisionTower
from planner.schema.config_reader import ConfigReader, Inert


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A truth value read from `key`, which is `default` when the key is absent."""

    key: str
    default: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """Where the rotary embedding's facts stand.

    Args:
        theta_key: Key of the base.
        theta: The class's default for it.
        fraction_key: Key of the rotated part of a head; None where the class rotates whole heads.
        fraction: The class's default for it.
    """

    theta_key: str = "rope_theta"
    theta: float = 10000.0
    fraction_key: str | None = None
    fraction: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How a class uses `sliding_window`.

    Args:
        default: The window where the key is absent; null always means none.
        needs_flag: It is used only where `use_sliding_window` is true.
        from_layer: It is used from layer `max_window_layers` on, unless `layer_types` says where.
    """

    default: int | None = None
    needs_flag: bool = False
    from_layer: bool = False


class KeyValueHeads(StrEnum):
    """Where the number of key/value heads stands."""

    OWN = "every query head has its own"
    KEY = "num_key_value_heads, which must be there; null means one for every query head"
    OPTIONAL_KEY = "num_key_value_heads; absent and null mean one for every query head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One class of decoders.

    Args:
        name: Its class.
        model_type: Its `model_type`.
        other_model_types: Others that configs of this class are published with.
        norm: Kind of its norms.
        epsilon_key: Key of their epsilon; None where the class fixes it.
        epsilon: The class's default for it.
        gated: Its feed-forward has a gate projection.
        activation_key: Key of the activation.
        activation: The class's default for it.
        tied: Default of `tie_word_embeddings`.
        keys: Sizes by other names: field of the model to keys, best first.
        dense_width: It reads `intermediate_size` for dense feed-forwards; else `adjust` reads what it needs.
        intermediate_factor: Width of the feed-forward in hidden sizes where its key is absent or null.
        max_positions: Default of `max_position_embeddings`, where the class's own is commonly left out.
        key_value_heads: Where the number of key/value heads stands.
        reads_head_dim: It reads `head_dim`; else heads share the hidden size.
        head_dim: The class's default for it; None shares the hidden size.
        latent: Its attention is latent, which `adjust` reads; `num_key_value_heads` only repeats the heads.
        rotary: Its rotary embedding; None without one.
        unrotated: How positions enter where `rotary` is None.
        qkv_bias: Biases of query, key and value.
        output_bias: Bias of attention's output projection.
        mlp_bias: Biases of the feed-forward.
        lm_head_bias: Bias of the LM head.
        qk_norm: How queries and keys are normalised.
        num_norms: Norms in front of a layer's sub-blocks.
        num_post_norms: Norms behind them.
        parallel: Attention and feed-forward are parallel.
        window: How it uses `sliding_window`; None where it does not.
        layers: Reads what layers have of their own; None where `window` and `layer_types` say it.
        traits: What changes results but no cost.
        inert: Keys that are understood only with values that change nothing.
        harmless: Keys of this class that cost nothing.
        adjust: Reads what the fields above cannot say.
        text_section: The model's text part stands in `text_config`.
        vision: Counts the tower that `vision_config` describes; None where none is known.
    """

    name: str
    model_type: str
    other_model_types: frozenset[str] = frozenset()
    norm: Norm
    epsilon_key: str | None
    epsilon: float
    gated: bool
    activation_key: str
    activation: str
    tied: bool
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dense_width: bool = True
    intermediate_factor: int | None = None
    max_positions: int | None = None
    key_value_heads: KeyValueHeads = KeyValueHeads.KEY
    reads_head_dim: bool = True
    head_dim: int | None = None
    latent: bool = False
    rotary: Rotary | None = Rotary()
    unrotated: PositionEmbedding = PositionEmbedding.LEARNED
    qkv_bias: bool | Flag = False
    output_bias: bool | Flag = False
    mlp_bias: bool | Flag = False
    lm_head_bias: bool | Flag = False
    qk_norm: QueryKeyNorm = QueryKeyNorm.NONE
    num_norms: int = 2
    num_post_norms: int = 0
    parallel: bool = False
    window: Window | None = None
    layers: Callable[[ConfigReader, Decoder], tuple[LayerKind, ...]] | None = None
    traits: tuple[Trait, ...] = ()
    inert: Mapping[str, Inert] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    adjust: Callable[[ConfigReader, Decoder], Decoder] | None = None
    text_section: bool = False
    vision: Callable[[ConfigReader, Decoder], VisionTower] | None = None
