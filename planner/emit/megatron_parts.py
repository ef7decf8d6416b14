"""A chain of blocks as Megatron-LM sees it: one of each part, and which layer has which.

The flags describe one attention, one dense feed-forward, one mixture of experts and so on, and lists of zeros and ones
say where each stands. Three model classes build the chain:

- `GPTModel`: every layer has attention (or linear attention) and a feed-forward;
- `HybridModel`: every layer is one sub-block, a letter of `--hybrid-layer-pattern`;
- `GPTModel` with layers from a JSON text: sub-blocks are missing, or feed-forwards differ in size.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from planner.emit.megatron_refusal import OTHER_TARGET, refuse
from planner.models.blocks import (
    Block,
    DenseFeedForward,
    LatentAttention,
    LinearAttention,
    LinearRule,
    MixtureOfExperts,
    SelfAttention,
    StateSpace,
)
from planner.models.specs import ModelSpec

Part = TypeVar("Part")

MAMBA, DELTA, ATTENTION, DENSE, EXPERTS = "M", "G", "*", "-", "E"
"""Letters of a hybrid pattern (`core/models/hybrid/hybrid_layer_allocation.py`); MLA and DSA layers there have no
norms of their latents, so they are not used."""


class Form(StrEnum):
    """Which of Megatron's model classes builds the chain."""

    GPT = "gpt"
    HYBRID = "hybrid"
    HETEROGENEOUS = "heterogeneous"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a model is made of; a part is None where no layer has it.

    Args:
        form: Which model class builds it.
        attention: Attention, as if without window and with rotation.
        window: Tokens that windowed layers see.
        latent: Multi-head latent attention.
        linear: Linear attention.
        state_space: Mamba-2 mixers.
        dense: The dense feed-forward; where sizes differ, the largest.
        experts: The routed experts.
        windowed: For each layer: its attention has the window.
        unrotated: For each layer: its attention is not rotated.
        linear_layers: For each layer: it has linear attention.
        expert_layers: For each layer: it has experts.
        letters: For hybrids: the letter of each layer.
        mtp_letters: For hybrids: the letters of one prediction module.
    """

    form: Form
    attention: SelfAttention | None
    window: int | None
    latent: LatentAttention | None
    linear: LinearAttention | None
    state_space: StateSpace | None
    dense: DenseFeedForward | None
    experts: MixtureOfExperts | None
    windowed: tuple[bool, ...]
    unrotated: tuple[bool, ...]
    linear_layers: tuple[bool, ...]
    expert_layers: tuple[bool, ...]
    letters: str = ""
    mtp_letters: str = ""

    @property
    def num_attention_heads(self) -> int:
        """Return the heads that `--num-attention-heads` says; without attention those of the other mixers."""
        if self.attention is not None:
            return self.attention.num_attention_heads
        if self.latent is not None:
            return self.latent.num_attention_heads
        if self.linear is not None:
            return self.linear.num_value_heads
        return self.state_space.num_heads if self.state_space is not None else 1

    @property
    def head_dim(self) -> int:
        """Return the width of a head of a model without attention."""
        if self.linear is not None:
            return self.linear.value_head_dim
        return self.state_space.head_dim if self.state_space is not None else 1

    @property
    def has_bias(self) -> bool:
        """Return whether every linear layer has a bias."""
        if self.attention is not None:
            return self.attention.output_bias
        feed_forward = self.dense or (self.experts.expert if self.experts else None)
        return feed_forward is not None and feed_forward.bias

    @property
    def feed_forward(self) -> DenseFeedForward | None:
        """Return the feed-forward whose activation is the model's."""
        return self.dense or (self.experts.expert if self.experts else None)


def parts_of(model: ModelSpec) -> Parts:
    """Return the parts of a model, or refuse one that needs two of a kind."""
    blocks = model.blocks
    every = (*model.distinct_blocks, *((model.mtp.block,) if model.mtp else ()))
    form = _form(model, every)
    for block in every:
        _require_block(model.name, block, form)
    mixers = [block.mixer for block in every]
    feed_forwards = [block.feed_forward for block in every]
    attentions = [mixer for mixer in mixers if isinstance(mixer, SelfAttention)]
    dense = [part for part in feed_forwards if isinstance(part, DenseFeedForward)]
    largest = max((part.intermediate_size for part in dense), default=0)
    if form is Form.HETEROGENEOUS:
        dense = [replace(part, intermediate_size=largest) for part in dense]
    parts = Parts(
        form=form,
        attention=_only(model, "attention", [replace(part, window=None, rotary=True) for part in attentions]),
        window=_only(model, "window", [part.window for part in attentions if part.window is not None]),
        latent=_only(model, "latent attention", [part for part in mixers if isinstance(part, LatentAttention)]),
        linear=_only(model, "linear attention", [part for part in mixers if isinstance(part, LinearAttention)]),
        state_space=_only(model, "state-space mixer", [part for part in mixers if isinstance(part, StateSpace)]),
        dense=_only(model, "dense feed-forward", dense),
        experts=_only(
            model, "mixture of experts", [part for part in feed_forwards if isinstance(part, MixtureOfExperts)]
        ),
        windowed=tuple(isinstance(b.mixer, SelfAttention) and b.mixer.window is not None for b in blocks),
        unrotated=tuple(isinstance(b.mixer, SelfAttention) and not b.mixer.rotary for b in blocks),
        linear_layers=tuple(isinstance(b.mixer, LinearAttention) for b in blocks),
        expert_layers=tuple(isinstance(b.feed_forward, MixtureOfExperts) for b in blocks),
        letters="".join(_letters(model.name, block) for block in blocks) if form is Form.HYBRID else "",
        mtp_letters=_letters(model.name, model.mtp.block) if form is Form.HYBRID and model.mtp else "",
    )
    if parts.attention is not None and parts.latent is not None:
        refuse(f"{model.name} has multi-head latent attention and other attention.", OTHER_TARGET)
    return parts


def _form(model: ModelSpec, every: Iterable[Block]) -> Form:
    chain = model.distinct_blocks
    whole = [block for block in every if block.mixer is not None and block.feed_forward is not None]
    if all((block.mixer is None) != (block.feed_forward is None) for block in chain):
        return Form.HYBRID
    if any(isinstance(block.mixer, StateSpace) for block in whole):
        refuse(
            f"{model.name} has layers with a state-space mixer and a feed-forward.",
            "A layer of Megatron's hybrid models is one sub-block: write such a layer as two.",
        )
    plain = all(
        isinstance(block.mixer, SelfAttention | None) and isinstance(block.feed_forward, DenseFeedForward | None)
        for block in chain
    )
    sizes = {
        block.feed_forward.intermediate_size for block in chain if isinstance(block.feed_forward, DenseFeedForward)
    }
    missing = any(block.mixer is None or block.feed_forward is None for block in chain)
    if missing and not plain:
        refuse(
            f"some layers of {model.name} lack a sub-block, and others have more than attention and a dense "
            "feed-forward.",
            OTHER_TARGET,
        )
    return Form.HETEROGENEOUS if plain and (missing or len(sizes) > 1) else Form.GPT


def _require_block(name: str, block: Block, form: Form) -> None:
    """Refuse what no layer of Megatron's is."""
    if block.parallel:
        refuse(
            f"{name} runs attention and feed-forward in parallel; a Megatron layer runs them in sequence.",
            "Nearest: the same sizes with sequential blocks, which is another architecture.",
        )
    expected = (block.mixer is not None) + (block.feed_forward is not None)
    if block.num_norms != expected or block.num_post_norms:
        behind = f" and {block.num_post_norms} behind them" if block.num_post_norms else ""
        refuse(
            f"a layer of {name} has {block.num_norms} norms in front of its sub-blocks{behind}; a Megatron layer has "
            f"{expected}, one in front of each.",
            "Use pre-norm layers.",
        )
    if form is Form.GPT and expected != 2:
        refuse(f"a layer of {name} lacks attention or a feed-forward.", "Use layers that have both.")


def _letters(name: str, block: Block) -> str:
    """Return the letters of a hybrid's layer; a prediction module may have a mixer and a feed-forward."""
    letters = ""
    if isinstance(block.mixer, StateSpace):
        letters += MAMBA
    elif isinstance(block.mixer, SelfAttention):
        letters += ATTENTION
    elif isinstance(block.mixer, LinearAttention) and block.mixer.rule is LinearRule.GATED_DELTA:
        letters += DELTA
    elif block.mixer is not None:
        refuse(
            f"a hybrid layer of {name} has {block.mixer.kind}.",
            "Layers of a hybrid are Mamba-2, gated delta, attention without latents, or a feed-forward.",
        )
    if isinstance(block.feed_forward, DenseFeedForward):
        letters += DENSE
    elif block.feed_forward is not None:
        letters += EXPERTS
    return letters


def _only(model: ModelSpec, what: str, found: list[Part]) -> Part | None:
    """Return what all of `found` are, None of nothing, or refuse several."""
    kinds = list(dict.fromkeys(found))
    if len(kinds) > 1:
        refuse(
            f"{model.name} has {len(kinds)} different kinds of {what}; the flags describe one.",
            f"Use a model with one kind of {what}, or `target: any`.",
        )
    return kinds[0] if kinds else None
