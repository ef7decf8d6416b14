"""Mixtures of experts that Megatron-LM's flags cannot describe (`core/transformer/moe` of megatron-core 0.19.2)."""

from planner.emit.megatron_parts import Parts
from planner.emit.megatron_refusal import OTHER_TARGET, refuse
from planner.models.blocks import MixtureOfExperts, Router, RouterScore


def require_experts(name: str, parts: Parts) -> None:
    """Refuse experts, shared experts and routers that the flags cannot describe."""
    experts = parts.experts
    if experts is None:
        return
    if experts.num_norms:
        refuse(f"{name} has {experts.num_norms} norms inside its experts (`num_norms`).", OTHER_TARGET)
    if experts.shared is not None and experts.expert.bias:
        refuse(f"{name} has shared experts and biases; Megatron's shared experts have none.", OTHER_TARGET)
    if experts.shared is not None and experts.shared.bias:
        refuse(f"the shared experts of {name} have biases; Megatron's have none.", "Nearest: the same without them.")
    if experts.shared_gate and experts.shared is None:
        refuse(f"{name} gates shared experts that it does not have.", "Set `shared_gate` to false.")
    _require_router(name, experts)


def _require_router(name: str, experts: MixtureOfExperts) -> None:
    router, top_k = experts.router, experts.experts_per_token
    if router.scales:
        refuse(f"the router of {name} has scales (`scales`), for which there is no flag.", OTHER_TARGET)
    if router.correction_bias and router.score is not RouterScore.SIGMOID:
        refuse(
            f"the router of {name} has a correction bias with {router.score}.",
            "--moe-router-enable-expert-bias needs sigmoid scores.",
        )
    if router.score is RouterScore.SIGMOID and router.normalized != (top_k > 1):
        refuse(
            f"the router of {name} has sigmoid scores {'' if router.normalized else 'not '}normalised over {top_k} "
            "experts.",
            "Megatron normalises sigmoid scores of several experts, and not those of one.",
        )
    if router.score is RouterScore.SOFTMAX and router.normalized and top_k == 1:
        refuse(
            f"the router of {name} normalises the weight of one expert, which is then always 1.",
            "Set `normalized` to false.",
        )
    _require_groups(name, experts, router)


def _require_groups(name: str, experts: MixtureOfExperts, router: Router) -> None:
    groups, chosen = router.num_groups, router.groups_per_token
    if groups == 1:
        return
    if experts.num_experts % groups or chosen > groups or experts.experts_per_token % chosen:
        refuse(
            f"{name} chooses {experts.experts_per_token} of {experts.num_experts} experts from {chosen} of {groups} "
            "groups.",
            "The groups must divide the experts, and the chosen groups the chosen experts.",
        )
