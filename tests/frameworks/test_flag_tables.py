"""The tables of flags say what the installed frameworks' own parsers say."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.frameworks.deepspeed_environment import deepspeed_python
from tests.frameworks.megatron_environment import megatron_python
from tests.frameworks.vllm_environment import vllm_python

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "planner" / "data" / "flags"
PINNED = {
    "deepspeed": (deepspeed_python, "deepspeed.txt"),
    "megatron": (megatron_python, "megatron-core.txt"),
    "vllm": (vllm_python, "vllm.txt"),
}

pytestmark = pytest.mark.frameworks


def pinned_version(requirements: str) -> str:
    """Return the version that the framework's requirement file pins, in its first requirement."""
    lines = (ROOT / ".ci" / "frameworks" / requirements).read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if "==" in line and not line.startswith("#")).rpartition("==")[2]


@pytest.mark.parametrize("framework", PINNED)
def test_the_pinned_versions_table_is_what_its_parser_says(framework: str) -> None:
    python: Callable[[], Path]
    python, requirements = PINNED[framework]
    result = subprocess.run(
        [str(python()), "-m", f"tests.frameworks.extract_{framework}"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    table = TABLES / f"{framework}-{pinned_version(requirements)}.json"
    assert result.stdout == table.read_text(encoding="utf-8"), "run `bash .ci/flags.sh`"
