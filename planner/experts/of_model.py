"""What a model says of its routed experts: how many there are, how a token chooses, what one of them takes."""

from dataclasses import dataclass

from planner.errors import InputError
from planner.experts.traffic import RouterShape
from planner.models.blocks import MixtureOfExperts
from planner.models.specs import ModelSpec

BF16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedExperts:
    """The routed experts of a model.

    Args:
        layers: Which layers have them.
        num_layers_of_model: Layers of the model.
        num_experts: Experts of such a layer.
        router: How a token chooses.
        expert_bytes: Weights of one expert of one layer in bf16.
    """

    layers: tuple[int, ...]
    num_layers_of_model: int
    num_experts: int
    router: RouterShape
    expert_bytes: int


def routed_experts(model: ModelSpec) -> RoutedExperts:
    """Return the routed experts of a model.

    Raises:
        InputError: It has none, or layers differ in them.
    """
    at = {
        layer: block.feed_forward
        for layer, block in enumerate(model.blocks)
        if isinstance(block.feed_forward, MixtureOfExperts)
    }
    found = list(at.values())
    if not found:
        raise InputError(f"{model.name} has no routed experts.", hint="`shardwright models` says which models have.")
    experts = found[0]
    if any(other != experts for other in found):
        raise InputError(f"The layers of {model.name} differ in their experts: no one placement is for all of them.")
    width = experts.latent_size or model.hidden_size
    matrices = 3 if experts.expert.gated else 2
    return RoutedExperts(
        layers=tuple(at),
        num_layers_of_model=len(model.blocks),
        num_experts=experts.num_experts,
        router=RouterShape(
            experts_per_token=experts.experts_per_token,
            num_groups=experts.router.num_groups,
            groups_per_token=experts.router.groups_per_token,
        ),
        expert_bytes=matrices * width * experts.expert.intermediate_size * BF16_BYTES,
    )
