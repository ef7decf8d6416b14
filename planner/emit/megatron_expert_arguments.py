"""The flags that describe routed experts, their router and what every token visits beside them."""

from planner.emit.megatron_parts import Form, Parts
from planner.emit.megatron_words import Flags, Group, pattern, when
from planner.models.blocks import Router, RouterScore
from planner.requests.routing import Routing

AUX_LOSS_COEFFICIENTS = {False: "1e-2", True: "1e-4"}
"""Coefficient of the loss that balances experts, without and with a correction bias: placeholders (the first is that
of Switch Transformers, arXiv 2101.03961, the second DeepSeek-V3's, arXiv 2412.19437)."""


def experts(parts: Parts, routing: Routing | None) -> Group:
    """Return experts, router and shared experts; no flags for a model without.

    Args:
        parts: What the model is made of.
        routing: What the run says of its routing.
    """
    found = parts.experts
    if found is None:
        return Group(title="Experts: none", flags=())
    mixed = parts.form is not Form.HYBRID and not all(parts.expert_layers)
    shared = found.shared
    return Group(
        title="Experts (the coefficient of the balancing loss is a placeholder: no cost depends on it)",
        flags=(
            ("--num-experts", str(found.num_experts)),
            ("--moe-ffn-hidden-size", str(found.expert.intermediate_size)),
            *when(mixed, "--moe-layer-freq", pattern(parts.expert_layers)),
            *when(shared, "--moe-shared-expert-intermediate-size", str(shared.intermediate_size if shared else 0)),
            *when(found.shared_gate, "--moe-shared-expert-gate"),
            *when(found.latent_size is not None, "--moe-latent-size", str(found.latent_size)),
            ("--moe-router-topk", str(found.experts_per_token)),
            *_router(found.router),
            *_capacity(routing),
            ("--moe-grouped-gemm",),
            ("--moe-permute-fusion",),
            ("--moe-token-dispatcher-type", "alltoall"),
            # `TEGroupedMLP` refuses biases with it when a layer is built (core/transformer/moe/experts.py).
            *when(found.expert.bias, "--no-bias-dropout-fusion"),
        ),
    )


def _router(router: Router) -> Flags:
    """Return the router's flags; softmax behind the choice is normalised over the chosen, before it is not."""
    before = router.score is RouterScore.SOFTMAX and not router.normalized
    groups = router.num_groups > 1
    return (
        ("--moe-router-score-function", router.score.value),
        *when(before, "--moe-router-pre-softmax"),
        ("--moe-router-dtype", "fp32"),
        *when(groups, "--moe-router-num-groups", str(router.num_groups)),
        *when(groups, "--moe-router-group-topk", str(router.groups_per_token)),
        *when(router.correction_bias, "--moe-router-enable-expert-bias"),
        *when(router.weight_factor != 1.0, "--moe-router-topk-scaling-factor", repr(router.weight_factor)),
        ("--moe-router-load-balancing-type", "seq_aux_loss" if router.correction_bias else "aux_loss"),
        ("--moe-aux-loss-coeff", AUX_LOSS_COEFFICIENTS[router.correction_bias]),
    )


def _capacity(routing: Routing | None) -> Flags:
    """Return what drops tokens beyond an expert's capacity; only a run that asks for it has any."""
    if routing is None or routing.capacity_factor is None:
        return ()
    return (
        ("--moe-expert-capacity-factor", repr(routing.capacity_factor)),
        *when(routing.pads_to_capacity, "--moe-pad-expert-input-to-capacity"),
    )
