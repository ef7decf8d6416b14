"""Files of a folder that cannot be read are counted, and reported where they would have been judged."""

import json
import os
import time
from pathlib import Path

import pytest

from cli.findings.forms import FindingsFormat, rendered
from planner.errors import InputError
from planner.rules.rule import Severity
from planner.validation.judge import Judged, judge
from planner.validation.source import Asked
from tests.unit.rules.megatron_cases import script

EXAMPLES = Path(__file__).parents[4] / "examples"
NOBODY = Asked(versions={})
RULE = "FIL001"

DAMAGED = {
    "train.sh": "torchrun pretrain_gpt.py --bf16 'x\n",
    "serve.sh": 'vllm serve m --kv-cache-dtype "fp8\n',
    "ds.sh": "A=(\ndeepspeed train.py --deepspeed ds.json\n",
    "ds.json": '{"train_batch_size": [}',
    "serve.yaml": "tensor-parallel-size: 8\nmax-model-len: 8192\nmodel: [\n",
    "spec.yaml": "model: llama-3.1-8b\nworkload: {kind: train\n",
    "cut-before-its-workload.yaml": "schema: 1\nmodel: llama-3.1-8b\ncluster: {preset: dgx-h100, no",
    "serving.yaml": "schema_version: 1\ntarget: vllm\nmodel: m\npools:\n  - name: [\n",
    "spec.json": '{"schema": 1, "model": {"name": "}"}, "cluster": {"preset": "dgx-h100"}, "workload": {"kind',
    "large.sh": script() + "#" * (64 << 10),
}
"""Files that would be judged if they could be read."""

FOREIGN = {
    "template.yaml": "{{ if .Values.x }}\nimage: vllm\n",
    "tags.yaml": "Resources: !Ref x\n",
    "tsconfig.json": '{"a": 1, // why\n}',
    "plan.json": '{"format_version": "1.2", "planned_values": {',
    "nested.json": '{"jobs": {"model": 1, "cluster": 2, "workload": 3}, "x": ',
    "other.sh": "# for pretrain_gpt.py\necho 'x\n",
}


def judged(folder: Path, name: str, raw: bytes) -> Judged:
    """Judge a folder that holds a sound script and one more file."""
    (folder / "a").mkdir()
    (folder / "a" / "sound.sh").write_text(script())
    (folder / "a" / name).write_bytes(raw)
    return judge([str(folder / "a")], NOBODY)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_that_would_be_judged_is_an_error(tmp_path: Path, name: str) -> None:
    result = judged(tmp_path, name, DAMAGED[name].encode())
    (found,) = result.findings
    assert (found.rule_id, found.severity) == (RULE, Severity.ERROR)
    (unread,) = result.unread
    assert unread.file == str(tmp_path / "a" / name)
    assert found.found.message == f"Not judged: {unread.error.message}"
    assert (len(result.files), result.skipped) == (1, ())
    with pytest.raises(InputError) as caught:
        judge([unread.file], NOBODY)
    assert str(caught.value) == str(unread.error)


PLANS = (EXAMPLES / "llama-3.1-8b-1xdgx-h100", EXAMPLES / "llama-3.1-70b-serving-1xdgx-h100")


@pytest.mark.parametrize("folder", PLANS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("part", [0.001, 0.02, 0.5, 0.999])
def test_a_plan_that_was_cut_off_is_an_error(tmp_path: Path, folder: Path, part: float) -> None:
    """Wherever it was cut: a plan is known by how it begins."""
    raw = (folder / "expected" / "plan.json").read_bytes()
    (found,) = judged(tmp_path, "run.json", raw[: max(64, int(part * len(raw)))]).findings
    assert found.rule_id == RULE


def test_an_empty_plan_is_known_by_its_lock(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("")
    assert judge([str(tmp_path)], NOBODY).findings == ()
    (tmp_path / "plan.lock.json").write_text("{}")
    (found,) = judge([str(tmp_path)], NOBODY).findings
    assert (found.rule_id, found.found.place.file) == (RULE, str(tmp_path / "plan.json"))


@pytest.mark.parametrize("name", FOREIGN)
def test_a_damaged_file_of_somebody_else_is_counted(tmp_path: Path, name: str) -> None:
    result = judged(tmp_path, name, FOREIGN[name].encode())
    assert (result.findings, result.skipped) == ((), ())
    assert [unread.file for unread in result.unread] == [str(tmp_path / "a" / name)]


def test_quotes_without_an_end_are_looked_through_once(tmp_path: Path) -> None:
    """Else every quote would be the start of another look at all of the rest."""
    started = time.process_time()
    result = judged(tmp_path, "a.json", b'{"a": "' + b'\\"' * 32_000)
    assert (result.findings, len(result.unread)) == ((), 1)
    assert time.process_time() - started < 1


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    result = judged(tmp_path, "train.sh", script().encode() + b"\xff\n")
    assert [one.found.message for one in result.findings] == ["Not judged: The file is no UTF-8 text."]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_opened_is_counted(tmp_path: Path) -> None:
    (tmp_path / "train.sh").write_text(script())
    (tmp_path / "train.sh").chmod(0)
    result = judge([str(tmp_path)], NOBODY)
    assert [unread.error.message for unread in result.unread] == ["The file cannot be read: Permission denied."]


def test_a_comment_hides_it(tmp_path: Path) -> None:
    text = f"# shardwright: ignore-file[{RULE}] written for another shell\n{DAMAGED['train.sh']}"
    result = judged(tmp_path, "train.sh", text.encode())
    assert (result.findings, len(result.hidden), len(result.unread)) == ((), 1, 1)


def test_every_form_says_it(tmp_path: Path) -> None:
    result = judged(tmp_path, "tags.yaml", FOREIGN["tags.yaml"].encode())
    place = f"{tmp_path / 'a' / 'tags.yaml'}:1:12"
    for form in (FindingsFormat.TEXT, FindingsFormat.GITHUB):
        folded = " ".join(rendered(result, form).split())
        assert f"Not read, because they are damaged or too large: 1 file ({place})." in folded
    (unread,) = json.loads(rendered(result, FindingsFormat.JSON))["unread"]
    message = "The tag `!Ref` is not allowed."
    assert (unread["line"], unread["column"], unread["message"]) == (1, 12, message)
    (run,) = json.loads(rendered(result, FindingsFormat.SARIF))["runs"]
    (notification,) = run["invocations"][0]["toolExecutionNotifications"]
    assert notification["message"]["text"].endswith(f"tags.yaml is not read: {message}")
