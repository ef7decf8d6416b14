"""What measurements are read for."""

from enum import StrEnum


class Use(StrEnum):
    """What a profile prices."""

    TRAINING = "training"
    SERVING = "serving"
    OFFLOADING = "offloading"
    """Inference of which a part lies on hosts and drives."""
