"""`shardwright validate`: what it takes, where its output goes and what it ends with."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.commands.validate import FORMAT_VARIABLE, SUMMARY_VARIABLE
from cli.commands.validate import validate as command
from cli.exits import guarded
from cli.findings.forms import FindingsFormat
from cli.main import app
from tests.unit.rules.megatron_cases import script

BROKEN = script(num_attention_heads="31", kv_channels="128")
ADVISED = script(tensor_model_parallel_size="1")
"""A warning, and no error."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for variable in (FORMAT_VARIABLE, SUMMARY_VARIABLE, "GITHUB_ACTIONS"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "sound.sh").write_text(script())
    (tmp_path / "broken.sh").write_text(BROKEN)
    (tmp_path / "advised.sh").write_text(ADVISED)
    return tmp_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What the command printed and ended with."""

    returncode: int
    stdout: str
    stderr: str


def validate(*words: str) -> Ended:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            guarded(command)(words)
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Ended(returncode=int(code), stdout=out.getvalue(), stderr=err.getvalue())


def started(module: str, *words: str) -> Ended:
    """Run the command as a process of its own, by the `run` of a module."""
    code = f"import sys, {module}; sys.argv = ['shardwright', 'validate', *{list(words)!r}]; {module}.run()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return Ended(returncode=result.returncode, stdout=result.stdout, stderr=result.stderr)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["sound.sh"], 0),
        (["broken.sh"], 1),
        (["advised.sh"], 0),
        (["advised.sh", "--fail-on", "warning"], 1),
        (["advised.sh", "--fail-on", "note"], 1),
        (["broken.sh", "--fail-on", "never"], 0),
        (["sound.sh", "broken.sh"], 1),
        (["."], 1),
        (["missing.sh"], 2),
        (["sound.sh", "--fail-on", "maybe"], 2),
        (["sound.sh", "--format", "xml"], 2),
        (["sound.sh", "--against", "megatron"], 2),
        (["sound.sh", "--against", "megatron==0.1"], 2),
        (["sound.sh", "--gpus", "0"], 2),
        (["sound.sh", "--gpus", "9999999999"], 2),
        ([], 2),
    ],
)
def test_exit_codes(words: list[str], code: int) -> None:
    result = validate(*words)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert bool(result.stderr) == (code == 2)


def test_usage_errors_are_in_our_words() -> None:
    assert validate().stderr == ("error: No file and no --command is given.\nTry 'shardwright validate --help'.\n")
    assert validate("x.sh", "--gpus", "many").stderr == (
        "error: Argument --gpus: 'many' is not a whole number from 1 to 999,999,999.\n"
        "Try 'shardwright validate --help'.\n"
    )
    # Options are never guessed from their beginnings.
    assert validate("sound.sh", "--gpu", "8").stderr.startswith("error: Unrecognized arguments: --gpu")


def test_a_command_line_is_not_held_against_a_lock() -> None:
    result = validate("--command", script(), "--baseline", "plan.lock.json")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --baseline holds files against a lock, and --command is none")


def test_every_way_in_ends_alike() -> None:
    words = ("broken.sh", "--format", "json")
    direct = validate(*words)
    assert direct.returncode == 1
    assert started("cli.start", *words) == direct
    wrapped = CliRunner().invoke(app, ["validate", *words])
    assert (wrapped.exit_code, wrapped.stdout, wrapped.stderr) == (1, direct.stdout, "")


def test_lists_of_files_that_others_make_may_hold_anything(folder: Path) -> None:
    (folder / "other.json").write_text("{broken")
    (folder / "other.yaml").write_text("!Ref x\n")
    (folder / "other.sh").write_text("echo hello\n")
    names = ("other.json", "other.yaml", "other.sh", "broken.sh")
    assert validate(*names).returncode == 2
    result = validate(*names, "--skip-unknown")
    assert result.returncode == 1
    assert result.stdout.endswith(
        "\n1 file: 1 error.\n"
        "Not read, because they are damaged or too large: 2 files (other.json:1:2,\n"
        "  other.yaml:1:1).\n"
        "Passed over: 1 file that starts nothing that is known.\n"
    )
    assert validate("missing.sh", "--skip-unknown").returncode == 2


def test_options_may_stand_between_files() -> None:
    result = validate("sound.sh", "--format", "concise", "broken.sh", "--fail-on=never", "--", "advised.sh")
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["advised.sh", "broken.sh"]


@pytest.mark.parametrize("form", list(FindingsFormat))
def test_a_file_takes_what_standard_output_would(form: str, folder: Path) -> None:
    shown = validate("broken.sh", "--format", form)
    written = validate("broken.sh", "--format", form, "--output", "findings")
    assert written.returncode == shown.returncode == 1
    assert written.stdout == ""
    assert written.stderr == "findings written. 1 file: 1 error.\n"
    assert (folder / "findings").read_text() == shown.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["advised.sh", "broken.sh", "findings", "sound.sh"]


def test_a_file_that_cannot_be_written_leaves_nothing(folder: Path) -> None:
    result = validate("broken.sh", "--output", "no/such/findings")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no/such/findings: The file cannot be written: No such file or directory.\n")
    assert sorted(path.name for path in folder.iterdir()) == ["advised.sh", "broken.sh", "sound.sh"]


def test_a_command_line_is_judged_as_text() -> None:
    command = "torchrun --nproc-per-node 8 pretrain_gpt.py --sequnce-parallel"
    result = validate("--command", command, "--format", "json", "--fail-on", "never")
    report = json.loads(result.stdout)
    assert report["files"] == ["<command>"]
    found = next(finding for finding in report["findings"] if finding["rule"] == "S001")
    assert (found["file"], found["line"], found["column"]) == ("<command>", 1, command.index("--seq") + 1)
    text = validate("--command", command).stdout
    assert "<command>:1:" in text
    assert "^^^^^^^^^^^^^^^^^^" in text


def test_a_cluster_says_how_many_gpus_a_node_has() -> None:
    command = "vllm serve meta-llama/Llama-3.1-8B-Instruct --tensor-parallel-size 2"
    assert "(--gpus-per-node)" in validate("--command", command).stdout
    assert "--gpus-per-node" not in validate("--command", command, "--cluster", "dgx-h100").stdout


def test_a_command_that_starts_nothing_is_refused() -> None:
    result = validate("--command", "echo hello")
    assert result.returncode == 2
    assert result.stderr.startswith("error: <command>: This starts nothing that is known.\n")


def test_the_form_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "gitlab")
    assert json.loads(validate("broken.sh").stdout)[0]["check_name"] == "MLM103"
    assert validate("broken.sh", "--format", "concise").stdout.startswith("broken.sh:")
    monkeypatch.setenv(FORMAT_VARIABLE, "xml")
    assert validate("broken.sh").stderr == (
        "error: SHARDWRIGHT_FINDINGS_FORMAT=xml is no form.\n"
        "Known: text, concise, json, sarif, junit, github, gitlab.\n"
    )


def test_on_github_the_form_is_text_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    plain = validate("broken.sh").stdout
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv(SUMMARY_VARIABLE, str(folder / "summary.md"))
    assert validate("broken.sh").stdout == plain
    assert not (folder / "summary.md").exists()


def test_a_summary_is_appended_for_github(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    summary = folder / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv(SUMMARY_VARIABLE, str(summary))
    result = validate("broken.sh", "--format", "github")
    assert result.stdout.startswith("::error file=broken.sh,")
    assert summary.read_text().startswith("before\n### shardwright validate\n\n1 file: 1 error.\n")
    monkeypatch.setenv(SUMMARY_VARIABLE, str(folder / "no" / "summary.md"))
    refused = validate("broken.sh", "--format", "github")
    assert refused.returncode == 2
    assert "The summary cannot be written: No such file or directory." in refused.stderr


def test_a_name_that_is_no_text_can_be_printed_in_every_form(folder: Path) -> None:
    hostile = b"a\xff\x1b[2J\n::error::.sh"
    (folder / "broken.sh").unlink()
    with open(bytes(folder) + b"/" + hostile, "w") as stream:  # noqa: PTH123 - a path of bytes
        stream.write(BROKEN)
    for form in FindingsFormat:
        result = validate(".", "--format", form, "--output", "findings")
        assert result.returncode == 1, result.stderr
        assert r"a\xff" in (folder / "findings").read_text().replace("\\\\", "\\").replace("%5C", "\\")


def test_findings_on_a_closed_pipe_are_quiet() -> None:
    code = "import sys, cli.start; sys.argv = ['shardwright', 'validate', 'broken.sh']; cli.start.run()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (141, "")
