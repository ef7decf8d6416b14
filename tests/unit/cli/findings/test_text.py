"""What a person reads: the line, a mark under the place, and nothing wider than a terminal."""

import re

from cli.findings.text import WIDTH, render
from tests.unit.cli.findings.samples import HOSTILE, ONE_LINE, finding, judged, made
from tests.unit.rules.megatron_cases import script

FIELD = re.compile(r"^ +(?:\d+)? \| (.*)$")


def snippets(text: str) -> list[tuple[str, str]]:
    """Return each source line that is shown with the marks under it."""
    shown = [match[1] for line in text.splitlines() if (match := FIELD.match(line))]
    return list(zip(shown[::2], shown[1::2], strict=True))


def marked(text: str) -> list[str]:
    """Return what stands above the marks."""
    return [source[marks.index("^") : len(marks)] for source, marks in snippets(text)]


def test_a_finding_is_shown_with_its_line() -> None:
    text = render(judged(script(tensor_model_paralel_size="2")))
    assert text == (
        "train.sh:21:5\n"
        "   21 | --tensor-model-paralel-size 2\n"
        "      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "  error S001 unknown-flag: Megatron-LM 0.19.2 has no flag\n"
        "    `--tensor-model-paralel-size`.\n"
        "    Did you mean --tensor-model-parallel-size or --expert-model-parallel-size or\n"
        "      --model-parallel-size?\n"
        "    Prevents: error: unrecognized arguments: ... (its parser, when the program\n"
        "      starts)\n"
        "\n"
        "1 file: 1 error.\n"
    )


def test_findings_of_one_line_stand_together() -> None:
    text = render(judged(ONE_LINE))
    assert text.count("train.sh:") == 2
    assert marked(text) == ["--seq-length", "--tensor-model-parallel-size", "--sequnce-parallel"]
    assert [text.index(rule_id) for rule_id in ("MLM101", "MLM103", "S001")] == sorted(
        text.index(rule_id) for rule_id in ("MLM101", "MLM103", "S001")
    )


def test_findings_of_one_place_share_its_mark() -> None:
    texts = {"train.sh": "torchrun x.py\n"}
    text = render(made(finding(), finding(rule_id="MLM102", message="So is this."), texts=texts))
    assert marked(text) == ["torchrun"]
    assert text.index("MLM101") < text.index("MLM102")


def test_a_long_line_is_cut_around_the_place() -> None:
    line = "--one " * 60 + "--here 3 " + "--two " * 60
    column = line.index("--here") + 1
    text = render(made(finding(column=column), texts={"train.sh": line}))
    assert marked(text) == ["--here"]
    ((source, _),) = snippets(text)
    assert source.startswith("...")
    assert source.endswith("...")
    assert max(map(len, text.splitlines())) <= WIDTH


def test_marks_stand_under_wide_characters_and_tabs() -> None:
    line = "\t模型 --here x"
    text = render(made(finding(column=line.index("--here") + 1), texts={"train.sh": line}))
    ((source, marks),) = snippets(text)
    assert source == "模型 --here x"
    # Two columns for each wide character.
    assert marks == " " * 5 + "^" * 6


def test_a_place_that_is_blank_or_gone_is_not_marked() -> None:
    text = render(made(finding(column=1), finding(line=9), finding(line=None), texts={"train.sh": "   here\n"}))
    assert "^" not in text
    assert text.count("MLM101") == 3


def test_hostile_text_cannot_reach_the_terminal() -> None:
    text = render(made(finding(file=HOSTILE, message=HOSTILE, hint=HOSTILE), texts={HOSTILE: HOSTILE}))
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_name_that_cannot_be_folded_is_not() -> None:
    name = "x" * 200
    assert name in render(made(finding(message=f"There is no {name}.")))
