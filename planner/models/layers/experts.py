"""A mixture of experts: router, dispatch, routed experts, combine; shared experts beside them.

As Megatron-LM's `MoELayer` runs it with the all-to-all dispatcher, fused permutation and grouped products. Its
recompute module `moe` runs the whole layer again from its input, `shared_experts` the shared part from the same input,
and `moe_act` the experts' activation, whose output it drops.
"""

from dataclasses import replace

from planner.models.blocks import Activation, DenseFeedForward, MixtureOfExperts
from planner.models.graph import (
    Axis,
    Combine,
    Dispatch,
    Divisible,
    ExpertLinear,
    Linear,
    Module,
    Operator,
    Parallel,
    Region,
    Saved,
    Weight,
)
from planner.models.layers import eager
from planner.models.layers.builder import GATED, PLAIN, Builder, Part
from planner.models.layers.feed_forward import activation_name, projected_width, projections
from planner.requests.workload import DType

MOE = (Module.MOE,)
ACTIVATION = (Module.MOE, Module.MOE_ACTIVATION)
SHARED = (Module.MOE, Module.SHARED_EXPERTS)

ROUTER_BYTES = DType.FP32.num_bytes  # Megatron-LM's advice and DeepSeek-V3's practice: `--moe-router-dtype fp32`
CHOICE_BYTES = 8 + ROUTER_BYTES  # the index of a chosen expert (int64) and its weight
MAP_BYTES = 4  # entries of the maps between tokens and rows (int32)


def experts(builder: Builder, spec: MixtureOfExperts, input_name: str) -> Part:
    """Return the operators of `spec`, which reads `input_name`."""
    width = builder.hidden if spec.latent_size is None else spec.latent_size
    shared = _shared(builder, spec, input_name)
    operators = [
        *shared.operators,
        *(builder.norm(f"expert norm {index}", dropped_by=MOE, modules=MOE) for index in range(1, spec.num_norms + 1)),
        *_router(builder, spec, input_name),
    ]
    if spec.latent_size is not None:
        operators.append(_latent_projection(builder, "latent down projection", builder.hidden, width, input_name))
    operators += [
        Operator(
            name="dispatch",
            work=Dispatch(
                features=width, num_experts=spec.num_experts, visits=spec.experts_per_token, dtype=builder.dtype
            ),
            saved=eager.rows_saved(builder, spec.experts_per_token) if builder.eager else _maps(spec),
            modules=MOE,
        ),
        *_routed(builder, spec, width),
        Operator(
            name="combine",
            work=Combine(
                features=width, num_experts=spec.num_experts, visits=spec.experts_per_token, dtype=builder.dtype
            ),
            modules=MOE,
        ),
    ]
    if spec.latent_size is not None:
        operators.append(
            _latent_projection(builder, "latent up projection", width, builder.hidden, "latent expert output")
        )
    if spec.shared is not None:
        operators.append(
            builder.pointwise("sum of experts", builder.hidden, GATED, region=Region.RESIDUAL, modules=MOE)
        )
    rules = (
        Divisible(what="num_experts", size=spec.num_experts, axes=(Axis.EP,)),
        Divisible(what="moe_intermediate_size", size=spec.expert.intermediate_size, axes=(Axis.ETP,)),
    )
    return Part(operators=tuple(operators), divisible=(*rules, *shared.divisible))


def _router(builder: Builder, spec: MixtureOfExperts, input_name: str) -> list[Operator]:
    """Return the router's product and the choice of experts; both are whole on every rank, in fp32 from the logits on.

    The product keeps the layer's input in 16 bit, the score function its output over all experts, the choice the
    indices and weights of the chosen (Megatron-LM's `router_gating_linear` and `topk_routing_with_score_function`).
    """
    router, experts_count = spec.router, spec.num_experts
    weights = [builder.weight("router weight", experts_count, builder.hidden)]
    if router.bias:
        weights.append(builder.weight("router bias", experts_count))
    if router.correction_bias:
        # It follows the load by a rule of its own, so no gradient and no optimizer state belong to it.
        weights.append(Weight(name="router correction bias", shape=(experts_count,), split_dim=None, trainable=False))
    if router.scales:
        weights += [
            builder.weight("router input scale", builder.hidden),
            builder.weight("router expert scale", experts_count),
        ]
    product = Linear(
        in_features=builder.hidden,
        out_features=experts_count,
        parallel=Parallel.REPLICATED,
        dtype=builder.dtype,
        trains_weight=builder.base_trains,
    )
    scores = Saved(
        name="router scores",
        features=experts_count,
        element_bytes=ROUTER_BYTES,
        region=Region.RESIDUAL,
        dropped_by=MOE,
    )
    choice = Saved(
        name="expert choice",
        features=spec.experts_per_token,
        element_bytes=CHOICE_BYTES,
        region=Region.RESIDUAL,
        dropped_by=MOE,
    )
    kept: tuple[Saved, ...] = (scores, choice)
    if builder.eager:
        kept = eager.choice_saved(builder, router, num_experts=experts_count, visits=spec.experts_per_token)
    return [
        Operator(
            name="router",
            work=product,
            weights=tuple(weights),
            # Its autograd function keeps the input even where the weight is frozen.
            saved=(replace(builder.stream(input_name), weight_input=builder.base_trains),),
            modules=MOE,
        ),
        # The score function, the choice, and what the load balancing reads.
        builder.pointwise(
            "router scores",
            3 * experts_count,
            PLAIN,
            region=Region.RESIDUAL,
            saved=kept,
            modules=MOE,
            num_kernels=3,
            element_bytes=ROUTER_BYTES,
        ),
    ]


def _maps(spec: MixtureOfExperts) -> tuple[Saved, ...]:
    """Return what permutations keep: a row of the map for each token, and the order of rows by expert, both ways.

    Transformer Engine's mask map has two entries for each expert and a count for each token.
    """
    return (
        Saved(
            name="row map",
            features=2 * spec.num_experts + 1,
            element_bytes=MAP_BYTES,
            region=Region.RESIDUAL,
            dropped_by=MOE,
        ),
        Saved(
            name="row order",
            features=2,
            element_bytes=MAP_BYTES,
            region=Region.ROUTED,
            dropped_by=MOE,
            visits=spec.experts_per_token,
        ),
    )


def _routed(builder: Builder, spec: MixtureOfExperts, width: int) -> list[Operator]:
    """Return the routed experts' projections and activation; the activation multiplies by the router's weights."""
    expert, visits = spec.expert, spec.experts_per_token
    projected, inner = projected_width(expert), expert.intermediate_size
    weights = Saved(
        name="expert weights of rows",
        features=1,
        element_bytes=ROUTER_BYTES,
        region=Region.ROUTED,
        dropped_by=MOE,
        visits=visits,
    )
    activation_input = builder.kept(
        "expert activation input", projected, region=Region.EXPERT, dropped_by=MOE, visits=visits
    )
    saved = (activation_input, weights, *_unfused_activation(builder, expert, visits))
    passes, num_kernels = GATED if expert.gated else PLAIN, 1
    if builder.eager:
        kept = eager.activation_saved(
            builder, expert, prefix="expert ", region=Region.EXPERT, dropped_by=MOE, visits=visits, routed=True
        )
        saved = (replace(weights, element_bytes=builder.width), *kept)
        passes, num_kernels = eager.activation_work(expert, routed=True)
        num_kernels *= spec.num_experts  # one expert after the other
    return [
        _expert_linear(
            builder,
            spec,
            "expert fc1",
            in_features=width,
            out_features=projected,
            parallel=Parallel.COLUMN,
            input_name="expert input",
            dropped_by=MOE,
        ),
        builder.pointwise(
            f"expert {activation_name(expert)}",
            inner,
            passes,
            region=Region.EXPERT,
            saved=saved,
            modules=ACTIVATION,
            num_kernels=num_kernels,
            visits=visits,
        ),
        _expert_linear(
            builder,
            spec,
            "expert fc2",
            in_features=inner,
            out_features=width,
            parallel=Parallel.ROW,
            input_name="expert activation output",
            dropped_by=ACTIVATION,
        ),
    ]


def _unfused_activation(builder: Builder, expert: DenseFeedForward, visits: int) -> list[Saved]:
    """Return what an activation keeps that Megatron-LM does not fuse with its gate and the router's weights.

    It fuses SwiGLU and the squared ReLU (`TEGroupedMLP.forward`). Elsewhere the gate keeps the activation's output,
    and the product with the router's weights what it multiplies.
    """
    if expert.activation is (Activation.SILU if expert.gated else Activation.RELU2):
        return []
    names = ["expert gate output", "unweighted expert output"] if expert.gated else ["unweighted expert output"]
    return [
        builder.kept(name, expert.intermediate_size, region=Region.EXPERT, dropped_by=ACTIVATION, visits=visits)
        for name in names
    ]


def _expert_linear(  # noqa: PLR0913 - a linear layer has this many facts
    builder: Builder,
    spec: MixtureOfExperts,
    name: str,
    *,
    in_features: int,
    out_features: int,
    parallel: Parallel,
    input_name: str,
    dropped_by: tuple[Module, ...],
) -> Operator:
    """Return one projection of all routed experts; a frozen one keeps nothing, since grouped products fuse no norm."""
    column = parallel is Parallel.COLUMN
    weights = [
        builder.weight(
            f"{name} weight",
            spec.num_experts,
            out_features,
            in_features,
            split_dim=1 if column else 2,
            expert_dim=0,
            gemm_operand=True,
        )
    ]
    if spec.expert.bias:
        weights.append(
            builder.weight(
                f"{name} bias", spec.num_experts, out_features, split_dim=1 if column else None, expert_dim=0
            )
        )
    saved = builder.kept(
        input_name,
        in_features,
        region=Region.ROUTED if column else Region.EXPERT,
        dropped_by=dropped_by,
        visits=spec.experts_per_token,
    )
    return Operator(
        name=name,
        work=ExpertLinear(
            in_features=in_features,
            out_features=out_features,
            parallel=parallel,
            dtype=builder.gemm_dtype,
            trains_weight=builder.base_trains,
            num_experts=spec.num_experts,
            visits=spec.experts_per_token,
        ),
        weights=tuple(weights),
        saved=tuple(builder.gemm_copies(replace(saved, weight_input=True))) if builder.base_trains else (),
        modules=MOE,
    )


def _latent_projection(builder: Builder, name: str, in_features: int, out_features: int, input_name: str) -> Operator:
    """Return a projection between the stream and the width that tokens travel in, whole on every rank."""
    entering = out_features < in_features
    return builder.linear(
        name,
        in_features=in_features,
        out_features=out_features,
        parallel=Parallel.REPLICATED,
        bias=False,
        input_name=input_name,
        modules=MOE,
        # The layer's own input outlives every recomputation of it.
        input_dropped_by=MOE,
        shares_input=entering,
    )


def _shared(builder: Builder, spec: MixtureOfExperts, input_name: str) -> Part:
    """Return the experts that every token visits, and their gate.

    With a recipe that scales from the current tensor, the first projection quantises the layer's input again in
    backward, because the router keeps it anyway (Megatron-LM's `SharedExpertMLP`).
    """
    if spec.shared is None:
        return Part(operators=())
    part = projections(
        builder,
        spec.shared,
        input_name,
        modules=SHARED,
        input_dropped_by=SHARED,
        normed_input=False,
        prefix="shared ",
        keeps_original=True,
        what="shared expert's intermediate_size",
    )
    if not spec.shared_gate:
        return part
    gate = Operator(
        name="shared gate",
        work=Linear(
            in_features=builder.hidden,
            out_features=1,
            parallel=Parallel.REPLICATED,
            dtype=builder.dtype,
            trains_weight=builder.base_trains,
        ),
        weights=(builder.weight("shared gate weight", 1, builder.hidden),),
        saved=(replace(builder.stream(input_name), weight_input=True),) if builder.base_trains else (),
        modules=SHARED,
    )
    product = builder.pointwise(
        "gated shared output",
        builder.hidden,
        PLAIN,
        region=Region.RESIDUAL,
        saved=(
            builder.kept("shared output", builder.hidden, region=Region.RESIDUAL, dropped_by=SHARED),
            builder.kept("shared gate output", 1, region=Region.RESIDUAL, dropped_by=SHARED),
        ),
        modules=SHARED,
    )
    return Part(operators=(*part.operators, gate, product), divisible=part.divisible)
