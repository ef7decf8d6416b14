"""How sure a plan is of its step times, from published runs."""

from planner.plan import Certainty
from planner.specs import ModelSpec
from profiles.constants import GEMM, RATIO_BAND, TRAINING_BAND, Constant, Origin
from profiles.hardware import Device


def training_band(*, has_experts: bool, device: Device) -> Constant:
    """Return the half width of the band around a step time, as a factor less one.

    Wider for generations of GPUs that no published run has measured, and for mixtures everywhere.
    """
    if has_experts:
        return TRAINING_BAND["experts"]
    constants = GEMM.get((device.architecture, "bf16"))
    measured = constants is not None and constants.sustained_fraction.origin is Origin.TRAINED
    return TRAINING_BAND["dense" if measured else "dense, other hardware"]


def certainty_of(model: ModelSpec, device: Device) -> Certainty:
    """Return how far predicted step times of a model on a GPU may be off."""
    band = training_band(has_experts=model.has_experts, device=device)
    return Certainty(
        half_width=band.value,
        source=band.source,
        ratio_half_width=RATIO_BAND.value,
        ratio_source=RATIO_BAND.source,
    )
