"""How sure a plan is of its step times, from published runs."""

from planner.plan import Certainty
from planner.specs import ModelSpec
from profiles.constants import RATIO_BAND, TRAINING_BAND


def certainty_of(model: ModelSpec) -> Certainty:
    """Return how far predicted step times of a model may be off."""
    band = TRAINING_BAND["experts" if model.has_experts else "dense"]
    return Certainty(
        half_width=band.value,
        source=band.source,
        ratio_half_width=RATIO_BAND.value,
        ratio_source=RATIO_BAND.source,
    )
