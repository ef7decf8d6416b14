"""Files that a user's file names: looked at only where they are plain files."""

from pathlib import Path

MAX_YAML_BYTES = 32 << 10
"""Largest YAML that is read; a list of all of Megatron-LM's arguments has half of it."""


def is_regular_file(path: Path) -> bool:
    """Return whether a plain file is here that could be opened: no device, no pipe, no name that no system takes."""
    try:
        return path.is_file()
    except OSError:  # too long a name, a folder that may not be searched
        return False
