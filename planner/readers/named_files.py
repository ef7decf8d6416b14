"""Files that a user's file names: looked at only where they are plain files."""

from pathlib import Path


def is_regular_file(path: Path) -> bool:
    """Return whether a plain file is here that could be opened: no device, no pipe, no name that no system takes."""
    try:
        return path.is_file()
    except OSError:  # too long a name, a folder that may not be searched
        return False
