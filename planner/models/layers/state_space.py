"""A Mamba-2 mixer: input projection, causal convolution, recurrence, gated norm, output projection.

As Megatron-LM's `MambaMixer` trains it, with the kernel `mamba_split_conv1d_scan_combined`: of everything between its
input and its output that kernel keeps the whole input and the recurrence's output before the gate, and computes the
convolution, the steps and the states of the chunks again in backward.
"""

from planner.models.blocks import StateSpace
from planner.models.graph import Axis, Divisible, Operator, Parallel, Region, StateScan
from planner.models.layers.builder import PLAIN, Builder, Part


def state_space(builder: Builder, spec: StateSpace, input_name: str) -> Part:
    """Return the operators of `spec`, whose input projection reads `input_name`."""
    inner, heads = spec.inner_size, spec.num_heads
    convolved = inner + 2 * spec.num_groups * spec.state_size
    projected = inner + convolved + heads  # gate, channels with B and C, steps
    convolution = [builder.weight("convolution weight", convolved, spec.conv_kernel, split_dim=0)]
    if spec.conv_bias:
        convolution.append(builder.weight("convolution bias", convolved, split_dim=0))

    operators = (
        builder.linear(
            "input projection",
            in_features=builder.hidden,
            out_features=projected,
            parallel=Parallel.COLUMN,
            bias=spec.projection_bias,
            input_name=input_name,
        ),
        builder.pointwise("convolution", convolved, PLAIN, region=Region.SHARDED, weights=tuple(convolution)),
        Operator(
            name="state scan",
            work=StateScan(
                num_heads=heads,
                num_groups=spec.num_groups,
                key_dim=spec.state_size,
                value_dim=spec.head_dim,
                chunk_size=spec.chunk_size,
                corrects=False,
                in_features=projected,
                dtype=builder.dtype,
            ),
            weights=tuple(builder.weight(name, heads, split_dim=0) for name in ("A_log", "D", "dt_bias")),
            saved=(
                builder.kept("projected input", projected, region=Region.SHARDED),
                builder.kept("scan output", inner, region=Region.SHARDED, granule=spec.head_dim),
            ),
        ),
        # The gate multiplies inside the recurrence's kernel.
        builder.pointwise(
            "gated norm",
            inner,
            PLAIN,
            is_norm=True,
            region=Region.SHARDED,
            weights=(builder.weight("gated norm scale", inner, split_dim=0),),
            saved=(builder.kept("gated norm input", inner, region=Region.SHARDED, granule=spec.head_dim),),
        ),
        builder.linear(
            "output projection",
            in_features=inner,
            out_features=builder.hidden,
            parallel=Parallel.ROW,
            bias=spec.projection_bias,
            input_name="gated norm output",
        ),
    )
    return Part(
        operators=operators,
        divisible=(
            Divisible(what="mamba heads", size=heads, axes=(Axis.TP, Axis.STATE_HEADS)),
            Divisible(what="mamba groups", size=spec.num_groups, axes=(Axis.TP,)),
            # Context parallelism copies a group's B and C where there are fewer groups than ranks.
            Divisible(what="mamba groups", size=spec.num_groups, axes=(Axis.TP, Axis.STATE_HEADS), either_way=True),
        ),
    )
