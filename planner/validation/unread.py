"""Whether a file that cannot be read would have been judged: does what can be seen of it name a framework?"""

import re
from collections.abc import Iterator
from pathlib import Path

from planner.errors import InputError
from planner.readers.flag_tables import Framework
from planner.readers.shell import MAX_SCRIPT_BYTES
from planner.rules.unread_files import UnreadFile
from planner.validation.deepspeed_files import names_keys
from planner.validation.own_files import is_damaged_plan, own_kind
from planner.validation.source import Asked
from planner.validation.sources import MAPPING

LAUNCH = re.compile(
    r"^[^#\n]*(?:\bpretrain_\w+\.py\b|\bvllm serve\b|\bvllm\.entrypoints\b|--deepspeed\b)", re.MULTILINE
)
"""A line of a script, outside a comment, that starts a framework's program."""

KEY = re.compile(r"^([A-Za-z_][\w-]*):", re.MULTILINE)
"""A key at the top of a YAML file."""

JSON_PARTS = re.compile(r'"((?:[^"\\\n]|\\.)*)"?(\s*:)?|[{}\[\]]')
"""Strings of a JSON text, keys with their colon, and its brackets. A string that is not closed ends with its line, so
that no text is looked through twice."""


def unread_file(path: Path, error: InputError, *, file: str) -> UnreadFile:
    """Return what is known of a file that cannot be read.

    Args:
        path: The file.
        error: Why it cannot.
        file: What messages call it.
    """
    return UnreadFile(file=file, error=error, text=visible_text(path))


def visible_text(path: Path) -> str:
    """Return the beginning of a file, with marks for bytes that are no text; nothing where it may not be opened."""
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_SCRIPT_BYTES).decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    except (OSError, ValueError):
        return ""


def is_for_us(text: str, path: Path, asked: Asked) -> bool:
    """Return whether a damaged text starts a framework's program, or holds options of one or a spec of ours."""
    if not MAPPING.search(path.name):
        return LAUNCH.search(text) is not None
    if path.name.lower().endswith(".json"):
        is_spec = own_kind(dict.fromkeys(_json_keys(text))) is not None
        return is_spec or names_keys(text) or is_damaged_plan(text, path)
    from planner.readers.vllm_run import looks_like_config  # noqa: PLC0415 - most files are not damaged

    keys = KEY.findall(text)
    return own_kind(dict.fromkeys(keys)) is not None or looks_like_config(keys, asked.version(Framework.VLLM))


def _json_keys(text: str) -> Iterator[str]:
    """Yield the keys at the top of a JSON text, as far as its brackets can be counted."""
    depth = 0
    for part in JSON_PARTS.finditer(text):
        if part.group() in {"{", "["}:
            depth += 1
        elif part.group() in {"}", "]"}:
            depth -= 1
        elif depth == 1 and part.group(2):
            yield part.group(1)
