"""The band around a step time widens with what no published run has measured."""

import pytest

from planner.plans.certainty import training_band
from profiles.catalogue import load_device
from profiles.constants import TRAINING_BAND


@pytest.mark.parametrize("device", ["a100-sxm-80gb", "h100-sxm-80gb", "b200"])
def test_measured_generations_have_the_narrow_band(device: str) -> None:
    assert training_band(has_experts=False, device=load_device(device)) is TRAINING_BAND["dense"]


@pytest.mark.parametrize("device", ["mi300x", "l40s", "v100-sxm-32gb"])
def test_other_generations_have_a_wider_one(device: str) -> None:
    band = training_band(has_experts=False, device=load_device(device))
    assert band is TRAINING_BAND["dense, other hardware"]
    assert band.value > TRAINING_BAND["dense"].value


def test_mixtures_have_the_widest() -> None:
    bands = {training_band(has_experts=True, device=load_device(name)).value for name in ("h100-sxm-80gb", "mi300x")}
    assert bands == {TRAINING_BAND["experts"].value}
    assert min(bands) > TRAINING_BAND["dense, other hardware"].value
