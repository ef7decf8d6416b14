"""`shardwright schema` prints or writes schemas, and `init` names the one that its spec is checked by."""

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft7Validator
from typer.testing import CliRunner

from cli.commands.schema import schema_name
from cli.main import app
from planner.documents import load_document
from planner.schema.json_schemas import URIS
from planner.schema.kinds import Draft, Kind

RUNNER = CliRunner()


@pytest.mark.parametrize("draft", Draft)
def test_a_schema_is_printed(draft: Draft) -> None:
    result = RUNNER.invoke(app, ["schema", "workload", "--draft", draft.value])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["$schema"] == URIS[draft]


def test_all_are_written_where_init_looks_for_one(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    assert RUNNER.invoke(app, ["init", str(spec)]).exit_code == 0
    result = RUNNER.invoke(app, ["schema", "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["spec.yaml", *(schema_name(kind) for kind in Kind)]
    )
    named = re.search(r"^# yaml-language-server: \$schema=(\S+)$", spec.read_text(), re.MULTILINE)
    assert named is not None
    schema = json.loads((spec.parent / named[1]).read_text())
    Draft7Validator(schema).validate(load_document(spec).data)


def test_files_are_kept_unless_forced(tmp_path: Path) -> None:
    (tmp_path / schema_name("plan")).write_text("mine")
    words = ["schema", "plan", "--out", str(tmp_path)]
    assert RUNNER.invoke(app, words).exit_code == 2
    assert (tmp_path / schema_name("plan")).read_text() == "mine"
    assert RUNNER.invoke(app, [*words, "--force"]).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [schema_name("plan")]


def test_a_kind_or_a_folder_is_needed() -> None:
    result = RUNNER.invoke(app, ["schema"])
    assert result.exit_code == 2
    assert result.stderr == (
        "error: The kind of file is missing.\nName one of spec, model, cluster, workload, plan, or --out DIR.\n"
    )
