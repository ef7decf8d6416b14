"""What the README shows is what the commands print, and what it links to is there.

Sessions are as in `tests.sessions`. `--update-golden` rewrites what they print.
"""

import os
import re
from pathlib import Path

import pytest

from cli.exits import MEANINGS
from planner.inputs.load import load_inputs
from tests.sessions import replayed

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
YAML = re.compile(r"(?<=^```yaml\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)


def test_the_readme_shows_what_the_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("SHARDWRIGHT_")]:
        monkeypatch.delenv(variable)
    text = README.read_text(encoding="utf-8")
    actual = replayed(text)
    if pytestconfig.getoption("--update-golden"):
        README.write_text(actual, encoding="utf-8")
    else:
        assert text == actual


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links
    assert missing == []


def test_the_specs_shown_can_be_read(tmp_path: Path) -> None:
    whole, cluster, unequal = YAML.findall(README.read_text(encoding="utf-8"))
    path = tmp_path / "spec.yaml"
    path.write_text(whole)
    assert load_inputs(path).cluster.world_size == 64
    path.write_text(re.sub(r"^cluster: .*\n", cluster, whole, flags=re.MULTILINE))
    assert load_inputs(path).cluster.name == "lab"
    path.write_text(re.sub(r"^cluster: .*\n", unequal, whole, flags=re.MULTILINE))
    assert load_inputs(path).cluster.unequal is not None


def test_every_exit_code_is_listed() -> None:
    text = README.read_text(encoding="utf-8")
    for code, meaning in MEANINGS.items():
        assert f"| {int(code)} | {meaning} |\n" in text
