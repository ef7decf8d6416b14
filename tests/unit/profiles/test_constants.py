"""Every constant lies in its physical range and says where it comes from."""

import pytest

from profiles import constants
from profiles.constants import Constant, Origin, named_constants, values_tried
from profiles.kernel_constants import named_kernel_constants
from profiles.software import HostPath


@pytest.mark.parametrize("name", named_constants() | named_kernel_constants())
def test_a_constant_lies_in_its_range_and_has_a_source(name: str) -> None:
    constant = (named_constants() | named_kernel_constants())[name]
    assert constant.low <= constant.value <= constant.high
    assert len(constant.source) > 10
    if "carried over" in constant.source or constant.source.startswith("assumption"):
        assert constant.assumed


def test_a_constant_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"constant 1.5 lies outside \[0.0, 1.0\]: a source"):
        Constant(value=1.5, low=0.0, high=1.0, source="a source")


def test_eight_ranks_reach_at_least_as_much_as_two() -> None:
    for entry in constants.PEER_FRACTION.values():
        assert entry.two_ranks.value <= entry.eight_ranks.value


def test_every_architecture_leads_to_one_with_its_own_figures() -> None:
    for architecture, nearest in constants.NEAREST_ARCHITECTURE.items():
        path = (architecture, *nearest)
        assert any((candidate, "bf16") in constants.GEMM for candidate in path)
        assert any(candidate in constants.TILES for candidate in path)
        assert any(candidate in constants.ATTENTION_FRACTION for candidate in path)


def test_fitted_constants_are_few_and_inside_their_ranges() -> None:
    every = (named_constants() | named_kernel_constants()).values()
    fitted = {id(constant): constant for constant in every if constant.origin in (Origin.TRAINED, Origin.KERNELS)}
    assert {constant.origin for constant in fitted.values()} == {Origin.TRAINED, Origin.KERNELS}
    assert len(fitted) <= 25
    assert all(constant.low < constant.high for constant in fitted.values())


def test_values_are_tried_and_put_back_whatever_happens() -> None:
    before = constants.MEMORY_FRACTION.value
    with values_tried({"MEMORY_FRACTION": 0.7}):
        assert constants.MEMORY_FRACTION.value == 0.7
    assert constants.MEMORY_FRACTION.value == before
    with pytest.raises(ValueError, match="outside"), values_tried({"MEMORY_FRACTION": 1.7}):
        pass
    assert constants.MEMORY_FRACTION.value == before


def test_every_way_to_launch_has_its_seconds() -> None:
    assert set(constants.LAUNCH_SECONDS) == {path.value for path in HostPath}
