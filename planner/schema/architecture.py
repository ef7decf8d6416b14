"""The form in which `planner.schema.architectures` describes one Hugging Face architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from planner.blocks import Norm
from planner.dense_decoder import DenseDecoder
from planner.schema.config_reader import ConfigReader, Inert
from planner.specs import Trait


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
        fraction_key: Key of the rotated part of a head; None where the class rotates whole heads.
        fraction: The class's default for it.
    """

    theta_key: str = "rope_theta"
    fraction_key: str | None = None
    fraction: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How a class uses `sliding_window`.

    Args:
        default: The window where the key is absent; null always means none.
        needs_flag: It is used only where `use_sliding_window` is true.
    """

    default: int | None = None
    needs_flag: bool = False


class KeyValueHeads(StrEnum):
    """Where the number of key/value heads stands."""

    OWN = "every query head has its own"
    KEY = "num_key_value_heads, which must be there; null means one for every query head"
    OPTIONAL_KEY = "num_key_value_heads; absent and null mean one for every query head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One class of dense decoders.

    Args:
        name: Its class.
        model_type: Its `model_type`.
        norm: Kind of its norms.
        epsilon_key: Key of their epsilon; None where the class fixes it.
        epsilon: The class's default for it.
        gated: Its feed-forward has a gate projection.
        activation_key: Key of the activation.
        activation: The class's default for it.
        tied: Default of `tie_word_embeddings`.
        keys: Sizes by other names: field of the model to keys, best first.
        intermediate_factor: Width of the feed-forward in hidden sizes where its key is absent or null.
        max_positions: Default of `max_position_embeddings`, where the class's own is commonly left out.
        key_value_heads: Where the number of key/value heads stands.
        reads_head_dim: It reads `head_dim`; else heads share the hidden size.
        head_dim: The class's default for it; None shares the hidden size.
        rotary: Its rotary embedding; None with learned positions.
        qkv_bias: Biases of query, key and value.
        output_bias: Bias of attention's output projection.
        mlp_bias: Biases of the feed-forward.
        lm_head_bias: Bias of the LM head.
        qk_norm: Queries and keys are normalised per head.
        window: How it uses `sliding_window`; None where it does not.
        traits: What changes results but no cost.
        inert: Keys that are understood only with values that change nothing.
        harmless: Keys of this class that cost nothing.
        adjust: Reads what the fields above cannot say.
    """

    name: str
    model_type: str
    norm: Norm
    epsilon_key: str | None
    epsilon: float
    gated: bool
    activation_key: str
    activation: str
    tied: bool
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    intermediate_factor: int | None = None
    max_positions: int | None = None
    key_value_heads: KeyValueHeads = KeyValueHeads.KEY
    reads_head_dim: bool = True
    head_dim: int | None = None
    rotary: Rotary | None = Rotary()
    qkv_bias: bool | Flag = False
    output_bias: bool | Flag = False
    mlp_bias: bool | Flag = False
    lm_head_bias: bool = False
    qk_norm: bool = False
    window: Window | None = None
    traits: tuple[Trait, ...] = ()
    inert: Mapping[str, Inert] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    adjust: Callable[[ConfigReader, DenseDecoder], DenseDecoder] | None = None
