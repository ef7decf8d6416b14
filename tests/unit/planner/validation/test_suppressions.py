"""Comments hide the rules that they name, where they stand, with a reason; those that hide nothing are found."""

import pytest

from planner.validation.judge import Judged, judged_text
from planner.validation.source import Asked
from planner.validation.sources import read_source
from planner.validation.suppressions import suppressions
from tests.unit.rules.megatron_cases import script

WRONG = "    --tensor-model-parallel-size 8"
BROKEN = script(tensor_model_parallel_size="8", pipeline_model_parallel_size="4")
"""Breaks MLM101, in the line that `WRONG` is."""


def judged(text: str) -> Judged:
    """Return what is wrong with a script."""
    source = read_source(text, file="train.sh", asked=Asked(versions={}))
    return judged_text(source.text, source.runs, file="train.sh")


def ids(text: str) -> tuple[list[str], list[str]]:
    """Return the rules that are shown and those that are hidden."""
    found = judged(text)
    return [finding.rule_id for finding in found.findings], [finding.rule_id for finding in found.hidden]


def test_the_script_is_broken_without_a_comment() -> None:
    assert ids(BROKEN) == (["MLM101"], [])


@pytest.mark.parametrize(
    "text",
    [
        BROKEN.replace(WRONG, f"{WRONG} # shardwright: ignore[MLM101] more nodes come tonight"),
        BROKEN.replace(WRONG, f"    # shardwright: ignore[MLM101] more nodes come tonight\n{WRONG}"),
        BROKEN.replace(WRONG, f"{WRONG} #shardwright:ignore[ mlm101 ]   why"),
        BROKEN.replace(WRONG, f"{WRONG} # see below; # shardwright: ignore[MLM101] why"),
        BROKEN + "# shardwright: ignore-file[MLM101] more nodes come tonight\n",
        BROKEN + "# shardwright: ignore-file[MLM101] more nodes come tonight",
    ],
    ids=["same line", "line above", "loosely written", "behind another comment", "whole file", "last line"],
)
def test_a_comment_with_a_reason_hides_its_rule(text: str) -> None:
    assert ids(text) == ([], ["MLM101"])


def test_a_comment_above_a_command_speaks_of_all_its_lines() -> None:
    words = BROKEN.split("ARGS=(\n")[1].split("\n)")[0]
    continued = " \\\n".join(words.splitlines())
    command = f"torchrun --nnodes 2 --nproc-per-node 8 \\\n  pretrain_gpt.py \\\n{continued}\n"
    export = "export CUDA_DEVICE_MAX_CONNECTIONS=1\n"
    assert ids(export + command) == (["MLM101"], [])
    comment = "# shardwright: ignore[MLM101] more nodes come tonight\n"
    assert ids(export + comment + command) == ([], ["MLM101"])
    # The command ends, and with it what the comment speaks of.
    shown, hidden = ids(export + comment + "echo start\n" + command)
    assert (sorted(shown), hidden) == (["MLM101", "SUP003"], [])


def test_a_comment_elsewhere_hides_nothing() -> None:
    shown, hidden = ids("# shardwright: ignore[MLM101] not here\n" + BROKEN)
    assert (sorted(shown), hidden) == (["MLM101", "SUP003"], [])


def test_a_comment_for_another_rule_hides_nothing() -> None:
    shown, hidden = ids(BROKEN.replace(WRONG, f"{WRONG} # shardwright: ignore[MLM103] why"))
    assert (sorted(shown), hidden) == (["MLM101", "SUP003"], [])


@pytest.mark.parametrize("reason", ["", "   ", '",'])
def test_without_a_reason_nothing_is_hidden(reason: str) -> None:
    found = judged(BROKEN.replace(WRONG, f"{WRONG} # shardwright: ignore[MLM101]{reason}"))
    assert found.hidden == ()
    assert [finding.rule_id for finding in found.findings] == ["MLM101", "SUP001"]
    about = found.findings[1].found
    assert about.message == "This comment hides nothing, because it gives no reason."
    assert about.place.column == len(WRONG) + 2


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("MLM999, MLM101", "There is no rule MLM999."),
        ("XYZ1,, XYZ2,MLM101", "There is no rule XYZ1, XYZ2."),
    ],
)
def test_a_rule_that_is_not_there_is_named(rules: str, message: str) -> None:
    found = judged(BROKEN.replace(WRONG, f"{WRONG} # shardwright: ignore[{rules}] why"))
    assert [finding.rule_id for finding in found.hidden] == ["MLM101"]
    assert [(finding.rule_id, finding.found.message) for finding in found.findings] == [("SUP002", message)]


def test_an_empty_bracket_names_no_rule() -> None:
    found = judged(script() + "# shardwright: ignore[ ] why\n")
    assert [finding.found.message for finding in found.findings] == ["The bracket names no rule."]


def test_only_the_part_that_hides_nothing_is_found() -> None:
    found = judged(BROKEN.replace(WRONG, f"{WRONG} # shardwright: ignore[MLM101,MLM103,MLM102] why"))
    assert [finding.rule_id for finding in found.hidden] == ["MLM101"]
    (left,) = found.findings
    assert left.found.message == "Nothing to hide: MLM103, MLM102 find nothing here."


def test_a_comment_for_a_rule_that_is_not_decided_is_left_alone() -> None:
    text = BROKEN.replace("--nnodes 2", "--nnodes $NODES") + "# shardwright: ignore-file[MLM101] more nodes come\n"
    found = judged(text)
    assert "MLM101" in {one.rule_id for one in found.undecided}
    assert found.findings == ()


def test_rules_about_comments_are_checked_where_there_are_any() -> None:
    assert not [rule_id for rule_id in judged(BROKEN).checked["train.sh"] if rule_id.startswith("SUP")]
    text = BROKEN + "# shardwright: ignore-file[MLM101] why\n"
    assert [rule_id for rule_id in judged(text).checked["train.sh"] if rule_id.startswith("SUP")] == [
        "SUP001",
        "SUP002",
        "SUP003",
    ]


def test_lines_are_counted_as_the_readers_count_them() -> None:
    # Some characters end a line for Python, but not for a shell.
    (comment,) = suppressions("a\x0b\x1c\u2028\nb # shardwright: ignore[S001] why", file="x.sh")
    assert (comment.location.line, comment.location.column, comment.first_line) == (2, 3, 2)


def test_a_json_text_may_hold_a_comment_for_the_whole_file() -> None:
    text = '{\n  "_comment": "# shardwright: ignore-file[DSP101] the launcher adds it",\n  "a": 1\n}\n'
    (comment,) = suppressions(text, file="ds.json")
    assert (comment.rules, comment.reason, comment.first_line) == (("DSP101",), "the launcher adds it", None)
    (empty,) = suppressions(text.replace(" the launcher adds it", ""), file="ds.json")
    assert empty.reason == ""
