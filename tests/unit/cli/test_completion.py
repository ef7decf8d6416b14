"""What a shell offers: asked for as the script that `--show-completion` prints asks."""

import pytest
from typer.testing import CliRunner

from cli.commands.validate import FailOn, parser
from cli.findings.forms import FindingsFormat
from cli.main import app
from planner.readers.flag_tables import Framework, versions
from planner.rules.registry import all_rules
from profiles.package_data import Section, entry_names


def offered(line: str) -> list[str]:
    """Return what may stand where a line ends."""
    words = {"_SHARDWRIGHT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    result = CliRunner().invoke(app, [], env=words, prog_name="shardwright")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("shardwright validate --format ", list(FindingsFormat)),
        ("shardwright validate train.sh --format j", ["json", "junit"]),
        ("shardwright validate --fail-on ", list(FailOn)),
        ("shardwright validate --cluster dgx-h", ["dgx-h100", "dgx-h200"]),
        ("shardwright validate --against deep", [f"deepspeed=={name}" for name in versions(Framework.DEEPSPEED)]),
        ("shardwright validate --sk", ["--skip-unknown"]),
        ("shardwright rule MEM", [rule_id for rule_id in sorted(all_rules()) if rule_id.startswith("MEM")]),
        ("shardwright init --cluster ", list(entry_names(Section.CLUSTERS))),
        ("shardwright evaluate launch.sh --cluster p4", ["p4d"]),
        # Files are the shell's own to offer.
        ("shardwright validate tra", []),
    ],
)
def test_a_shell_is_told_what_may_follow(line: str, words: list[str]) -> None:
    assert words or "tra" in line
    assert offered(line) == words


def test_every_option_of_validate_is_offered() -> None:
    names = {name for action in parser({}).taken for name in action.option_strings}
    assert set(offered("shardwright validate -")) >= names
    assert "--advice" in names
