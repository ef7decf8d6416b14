"""`shardwright rule` lists the rules by subject and explains one."""

import json

from typer.testing import CliRunner

from cli.main import app
from planner.rules.registry import all_rules, rules_by_subject

RUNNER = CliRunner()


def test_every_rule_is_listed_once_under_its_subject() -> None:
    result = RUNNER.invoke(app, ["rule"])
    assert result.exit_code == 0
    listed = [words[0] for line in result.stdout.splitlines() if (words := line.split()) and words[0] in all_rules()]
    assert sorted(listed) == sorted(all_rules())
    assert listed == [rule.id for rules in rules_by_subject().values() for rule in rules]
    lines = result.stdout.splitlines()
    assert lines[0].startswith("All frameworks: flags that their parser does not take")
    assert max(map(len, lines)) <= 80


def test_json_lists_every_rule() -> None:
    report = json.loads(RUNNER.invoke(app, ["rule", "--format", "json"]).stdout)
    assert [rule["id"] for rule in report["rules"]] == list(all_rules())


def test_a_rule_is_explained() -> None:
    result = RUNNER.invoke(app, ["rule", "sup002"])
    assert result.exit_code == 0
    assert result.stdout.startswith(
        "SUP002 suppression-of-no-rule\n\nA comment that hides rules names rules that there"
    )
    assert "  For          Megatron-LM, DeepSpeed, vLLM\n" in result.stdout


def test_a_rule_that_is_not_there_is_an_error() -> None:
    result = RUNNER.invoke(app, ["rule", "XYZ1"])
    assert result.exit_code == 2
    assert result.stderr == "error: There is no rule XYZ1.\n`shardwright rule` lists them.\n"
    number = RUNNER.invoke(app, ["rule", "mlm10"])
    assert number.stderr.startswith("error: There is no rule mlm10.\nDid you mean MLM100, MLM101, ")
