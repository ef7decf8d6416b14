"""How the Megatron-LM emitter refuses, and facts about GPUs that its rules ask for."""

from typing import NoReturn

from planner.errors import NotExpressibleError
from profiles.hardware import Device

TARGET = "Megatron-LM (megatron-core 0.19.2)"

FIRST_BLACKWELL_CAPABILITY = 10

OTHER_TARGET = "Plan with `target: any`, which holds a plan against no framework."

EDITED = "`shardwright models NAME --format yaml` prints the model to edit."


def refuse(message: str, nearest: str) -> NoReturn:
    """Raise the error that says what cannot be expressed, and the nearest that can."""
    raise NotExpressibleError(message, target=TARGET, hint=nearest)


def capability_major(device: Device) -> int | None:
    """Return the major CUDA compute capability; None on other vendors."""
    return None if device.compute_capability is None else int(device.compute_capability.split(".", maxsplit=1)[0])
