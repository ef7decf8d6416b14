"""What the README shows is what the commands print, and what it links to is there.

Sessions are as in `tests.sessions`. `--update-golden` rewrites what they print.
"""

import re
from pathlib import Path

import pytest

from cli.exits import MEANINGS
from planner.inputs.load import load_inputs
from tests.sessions import hold_to_sessions

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
YAML = re.compile(r"(?<=^```yaml\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)


def test_the_readme_shows_what_the_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    hold_to_sessions(README, tmp_path, monkeypatch, update=pytestconfig.getoption("--update-golden"))


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
