"""Print a command of the README: the fenced block behind the comment `<!-- NAME -->`."""

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCK = r"^<!-- {name} -->\n+```(?:bash|sh|shell)\n(.*?)^```$"


def command(name: str) -> str:
    """Return the block's text; exactly one block may carry the name."""
    pattern = re.compile(BLOCK.format(name=re.escape(name)), re.DOTALL | re.MULTILINE)
    blocks = pattern.findall(README.read_text(encoding="utf-8"))
    if len(blocks) != 1:
        sys.exit(f"{README}: {len(blocks)} commands are marked <!-- {name} -->, expected 1")
    return str(blocks[0])


if __name__ == "__main__":
    sys.stdout.write(command(sys.argv[1]))
