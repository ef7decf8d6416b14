# ruff: noqa: PLC0415 - Megatron can be imported only after what it lacks here has been stood in for
"""Runs in Megatron's own environment: writes the table of the flags that its parser takes to standard output.

The parser is that of `megatron.training.arguments.parse_args`. `pretrain_gpt.py` adds to it only what an installed
model optimizer brings, which the wheel does not hold.
"""

import argparse
import contextlib
import sys
from importlib.metadata import version

from tests.frameworks.flag_tables import flags_of, table_text
from tests.frameworks.megatron_oracle import prepare_imports
from tests.frameworks.megatron_transformer_engine import install


def table() -> str:
    """Return the table of the megatron-core that is installed here."""
    prepare_imports()
    install()
    from megatron.training.arguments import add_megatron_arguments

    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_megatron_arguments(parser)
    found = version("megatron-core")
    return table_text(framework="megatron", version=found, package=f"megatron-core=={found}", flags=flags_of(parser))


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        text = table()
    sys.stdout.write(text)
