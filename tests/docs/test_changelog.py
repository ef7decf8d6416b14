"""The changelog has the form of Keep a Changelog, speaks of the version of the package, and names real options."""

import re
import tomllib
from pathlib import Path

from tests.docs.command_pages import commands, with_parts

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_newest_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = re.findall(r"^## (.*)$", TEXT, flags=re.MULTILINE)
    assert re.fullmatch(rf"\[{re.escape(project['version'])}\] - (Unreleased|\d{{4}}-\d\d-\d\d)", versions[0])
    assert set(re.findall(r"^### (.*)$", TEXT, flags=re.MULTILINE)) <= KINDS


def test_options_are_those_of_the_command_line() -> None:
    known = {name for one in with_parts(commands()) for option in one.parameters for name in option.names}
    named = set(re.findall(r"`(--[a-z-]+)", TEXT))
    assert named
    assert named - known == set()
