"""Run a command of the README in a copy of what git tracks here, with an environment of its own.

`python -m benchmarks.checks.fresh_copy plan-command` (or `test-command`): the block behind the comment of that name. It
installs from the package index that pip is set to.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.checks.check import ROOT


def copy_to(folder: Path) -> None:
    """Copy every file that git tracks, or would take, as it is now."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        source = ROOT / name
        if source.is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def main() -> int:
    """Return the command's exit code."""
    (name,) = sys.argv[1:]
    command = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "readme_command.py"), name], check=True, capture_output=True, text=True
    ).stdout
    with TemporaryDirectory() as folder:
        copy_to(Path(folder))
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=folder, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
