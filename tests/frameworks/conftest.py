"""What the frameworks leave behind is cleared away."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.frameworks.deepspeed_environment import GIVEN_PORTS

SHARED_MEMORY = Path("/dev/shm")
BUFFERS = "deepspeed_allreduce_buffer_*_{port}_*"
"""DeepSpeed's CPU collectives map 66 MiB a process under such a name, and never remove it."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what would be deselected: some modules import torch or make plans to know their tests by name."""
    is_test = collection_path.name.startswith("test_")
    return True if is_test and "not frameworks" in config.getoption("markexpr") else None


@pytest.fixture(autouse=True, scope="module")
def no_buffers_left() -> Iterator[None]:
    """Remove the buffers that a module's processes have made; without that, runs fill the machine's memory.

    Only those: modules of other processes may be running.
    """
    yield
    while GIVEN_PORTS:
        for path in SHARED_MEMORY.glob(BUFFERS.format(port=GIVEN_PORTS.pop())):
            path.unlink(missing_ok=True)
