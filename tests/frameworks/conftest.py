"""What the frameworks leave behind is cleared away."""

from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED_MEMORY = Path("/dev/shm")
BUFFERS = "deepspeed_allreduce_buffer_*"
"""DeepSpeed's CPU collectives map 66 MiB a process under such a name, and never remove it."""


@pytest.fixture(autouse=True, scope="module")
def no_buffers_left() -> Iterator[None]:
    """Remove the buffers that a module's processes have made; without that, runs fill the machine's memory."""
    before = set(SHARED_MEMORY.glob(BUFFERS))
    yield
    for path in set(SHARED_MEMORY.glob(BUFFERS)) - before:
        path.unlink(missing_ok=True)
