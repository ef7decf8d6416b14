"""How sure a plan is of its step times, from published runs."""

from planner.models.specs import ModelSpec
from planner.plans.plan import Certainty
from profiles.constants import GEMM, RATIO_BAND, TRAINING_BAND, Constant, Origin
from profiles.hardware import Cluster, Device


def training_band(*, has_experts: bool, device: Device) -> Constant:
    """Return the half width of the band around a step time, as a factor less one.

    Wider for generations of GPUs that no published run has measured, and for mixtures everywhere.
    """
    if has_experts:
        return TRAINING_BAND["experts"]
    constants = GEMM.get((device.architecture, "bf16"))
    measured = constants is not None and constants.sustained_fraction.origin is Origin.TRAINED
    return TRAINING_BAND["dense" if measured else "dense, other hardware"]


def certainty_of(model: ModelSpec, cluster: Cluster) -> Certainty:
    """Return how far predicted step times may be off; of several kinds of GPUs the widest band counts."""
    bands = (training_band(has_experts=model.has_experts, device=device) for device, _ in cluster.device_counts)
    band = max(bands, key=lambda constant: constant.value)
    return Certainty(
        half_width=band.value,
        source=band.source,
        ratio_half_width=RATIO_BAND.value,
        ratio_source=RATIO_BAND.source,
    )
