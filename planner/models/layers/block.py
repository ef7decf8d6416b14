"""One decoder layer: norms, mixer, feed-forward, residual additions."""

from collections.abc import Sequence
from dataclasses import replace

from planner.models.blocks import (
    Block,
    DenseFeedForward,
    FeedForward,
    LatentAttention,
    LinearAttention,
    Mixer,
    MixtureOfExperts,
    SelfAttention,
    StateSpace,
)
from planner.models.graph import Divisible, LayerGraph, Module, Operator
from planner.models.layers.builder import Builder, Part, share_saved
from planner.models.layers.experts import experts
from planner.models.layers.feed_forward import feed_forward
from planner.models.layers.latent_attention import latent_attention
from planner.models.layers.linear_attention import linear_attention
from planner.models.layers.softmax_attention import softmax_attention
from planner.models.layers.state_space import state_space


def build_mixer(builder: Builder, spec: Mixer, input_name: str) -> Part:
    """Return the operators of a mixer that reads `input_name`."""
    match spec:
        case SelfAttention():
            return softmax_attention(builder, spec, input_name)
        case LatentAttention():
            return latent_attention(builder, spec, input_name)
        case StateSpace():
            return state_space(builder, spec, input_name)
        case LinearAttention():
            return linear_attention(builder, spec, input_name)


def build_feed_forward(builder: Builder, spec: FeedForward, input_name: str, *, own_norm: bool) -> Part:
    """Return the operators of a feed-forward that reads `input_name`, which may come from a norm of its own."""
    match spec:
        case DenseFeedForward():
            return feed_forward(builder, spec, input_name, fused_norm=own_norm)
        case MixtureOfExperts():
            return experts(builder, spec, input_name)


def build_block(builder: Builder, block: Block) -> LayerGraph:
    """Return the graph of one decoder layer."""
    operators: list[Operator] = []
    divisible: list[Divisible] = []
    apart: list[str] = []
    has_norms, has_post_norms = block.num_norms > 0, block.num_post_norms > 0
    if block.mixer is not None:
        if has_norms:
            latent = isinstance(block.mixer, LatentAttention)
            operators.append(builder.norm("attention norm", modules=(Module.LAYER_NORM,) if latent else ()))
            apart += ["attention norm output"] if latent else []
        part = build_mixer(builder, block.mixer, "attention norm output" if has_norms else "attention input")
        operators += part.operators
        divisible += part.divisible
        if has_post_norms:
            operators.append(builder.norm("attention post norm"))
        if not block.parallel or block.feed_forward is None:
            operators.append(builder.residual("attention residual"))
    if block.feed_forward is not None:
        beside = block.parallel and block.mixer is not None
        own_norm = has_norms and not (beside and block.num_norms == 1)
        if own_norm:
            # Megatron-LM's norm is a part of fc1, so recomputing the MLP runs it again and drops its output; the norm
            # in front of experts is a layer of its own.
            dense = isinstance(block.feed_forward, DenseFeedForward)
            operators.append(
                builder.norm(
                    "feed-forward norm",
                    input_name="attention norm input" if beside else "",
                    modules=(Module.MLP,) if dense else (Module.LAYER_NORM,),
                )
            )
            source = "feed-forward norm output"
            apart += [] if dense else [source]
        elif has_norms:
            source = "attention norm output"
        else:
            source = "attention input" if beside else "feed-forward input"
        part = build_feed_forward(builder, block.feed_forward, source, own_norm=own_norm)
        operators += part.operators
        divisible += part.divisible
        if has_post_norms:
            operators.append(builder.norm("feed-forward post norm"))
        operators.append(builder.residual("feed-forward residual"))
    return LayerGraph(
        name="block",
        operators=share_saved([_norms_dropped(operator, apart) for operator in operators]),
        layer_input=builder.stream("layer input"),
        divisible=tuple(dict.fromkeys(divisible)),
    )


def _norms_dropped(operator: Operator, outputs: Sequence[str]) -> Operator:
    """Return an operator that keeps none of some norms' outputs where these norms are run again."""
    saved = tuple(
        replace(part, dropped_by=(*part.dropped_by, Module.LAYER_NORM)) if part.name in outputs else part
        for part in operator.saved
    )
    return replace(operator, saved=saved)
