"""A dense feed-forward: two projections around an activation."""

from planner.models.blocks import DenseFeedForward
from planner.models.graph import Axis, Divisible, Module, Parallel, Region, Saved
from planner.models.layers import eager
from planner.models.layers.builder import GATED, PLAIN, Builder, Part


def feed_forward(builder: Builder, spec: DenseFeedForward, input_name: str, *, fused_norm: bool) -> Part:
    """Return the operators of a dense feed-forward.

    Args:
        builder: What builders share.
        spec: The feed-forward.
        input_name: Name of what it reads.
        fused_norm: A norm in front is a part of its first projection, so that recomputing it drops the norm's output.
    """
    return projections(
        builder,
        spec,
        input_name,
        modules=(Module.MLP,),
        input_dropped_by=(Module.MLP,) if fused_norm else (),
        normed_input=fused_norm,
    )


def projections(  # noqa: PLR0913 - what dense and shared feed-forwards differ in
    builder: Builder,
    spec: DenseFeedForward,
    input_name: str,
    *,
    modules: tuple[Module, ...],
    input_dropped_by: tuple[Module, ...],
    normed_input: bool,
    prefix: str = "",
    keeps_original: bool = False,
    what: str = "intermediate_size",
) -> Part:
    """Return the projections and the activation of a feed-forward that tp splits."""
    width = projected_width(spec)
    fc1 = builder.linear(
        f"{prefix}fc1",
        in_features=builder.hidden,
        out_features=width,
        parallel=Parallel.COLUMN,
        bias=spec.bias,
        input_name=input_name,
        modules=modules,
        input_dropped_by=input_dropped_by,
        normed_input=normed_input,
        keeps_original=keeps_original,
    )
    saved: tuple[Saved, ...] = (
        builder.kept(f"{prefix}activation input", width, region=Region.SHARDED, dropped_by=modules),
    )
    passes, num_kernels = GATED if spec.gated else PLAIN, 1
    if builder.eager:
        saved = eager.activation_saved(builder, spec, prefix=prefix, region=Region.SHARDED, dropped_by=modules)
        passes, num_kernels = eager.activation_work(spec)
    activation = builder.pointwise(
        f"{prefix}{activation_name(spec)}",
        spec.intermediate_size,
        passes,
        region=Region.SHARDED,
        saved=saved,
        modules=modules,
        num_kernels=num_kernels,
    )
    fc2 = builder.linear(
        f"{prefix}fc2",
        in_features=spec.intermediate_size,
        out_features=builder.hidden,
        parallel=Parallel.ROW,
        bias=spec.bias,
        input_name=f"{prefix}activation output",
        modules=modules,
        input_dropped_by=modules,
    )
    return Part(
        operators=(fc1, activation, fc2),
        divisible=(Divisible(what=what, size=spec.intermediate_size, axes=(Axis.TP,)),),
    )


def projected_width(spec: DenseFeedForward) -> int:
    """Return the width of what the first projection gives: gate and up side by side, or up alone."""
    return spec.intermediate_size * (2 if spec.gated else 1)


def activation_name(spec: DenseFeedForward) -> str:
    """Return what the activation's operator is called."""
    return f"gated {spec.activation}" if spec.gated else str(spec.activation)
