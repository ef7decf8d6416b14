"""Sizes that a model can have, wherever they were read."""

from collections.abc import Mapping

MAX_SIZES: Mapping[str, int] = {
    "hidden_size": 1 << 20,
    "num_hidden_layers": 1 << 11,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "intermediate_size": 1 << 23,
    "vocab_size": 1 << 25,
    "max_position_embeddings": 1 << 31,
    "window": 1 << 31,
    "chunk": 1 << 31,
    "mtp_modules": 1 << 6,
    "num_experts": 1 << 14,
    "experts_per_token": 1 << 14,
    "shared_intermediate_size": 1 << 23,
    "latent_size": 1 << 20,
    "num_groups": 1 << 14,
    "groups_per_token": 1 << 14,
    "q_lora_rank": 1 << 20,
    "kv_lora_rank": 1 << 20,
    "qk_nope_head_dim": 1 << 14,
    "qk_rope_head_dim": 1 << 14,
    "v_head_dim": 1 << 14,
    "top_k": 1 << 31,
    "num_heads": 1 << 14,
    "state_size": 1 << 14,
    "conv_kernel": 1 << 10,
    "chunk_size": 1 << 20,
    "num_key_heads": 1 << 14,
    "num_value_heads": 1 << 14,
    "key_head_dim": 1 << 14,
    "value_head_dim": 1 << 14,
}
"""Largest value of each size: at least eight times the largest published model's, and small enough to plan."""

MAY_BE_ZERO = frozenset({"mtp_modules", "conv_kernel"})
"""Sizes that may be 0; all others start at 1."""


class ShapeError(ValueError):
    """A size that no model can have.

    Args:
        message: What is wrong, in a sentence.
        field: The field of `Decoder`, or of one of its parts, to blame.
        part: The part that the field belongs to; empty for a field of `Decoder` itself.
    """

    def __init__(self, message: str, *, field: str, part: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.part = part


def check_size(name: str, size: int, *, part: str = "", shown_as: str = "") -> None:
    """Refuse a size that no model has.

    Args:
        name: The size, as `MAX_SIZES` calls it.
        size: Its value.
        part: The part that it belongs to.
        shown_as: What the message calls it; `name` if not given.
    """
    least, most = 0 if name in MAY_BE_ZERO else 1, MAX_SIZES[name]
    if not least <= size <= most:
        raise ShapeError(f"`{shown_as or name}` = {size} is outside {least} to {most:,}.", field=name, part=part)


def check_experts_per_token(experts_per_token: int, num_experts: int) -> None:
    """Refuse that a token visits no expert, or more than there are."""
    if not 1 <= experts_per_token <= num_experts:
        raise ShapeError(
            f"A token cannot visit {experts_per_token} of {num_experts} experts.",
            field="experts_per_token",
            part="experts",
        )
