"""Quoting for bash."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.emit.shell import array, comment, job_name, quote
from planner.errors import InputError

ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def bash(script: str) -> list[str]:
    """Return the NUL-separated words that a script prints."""
    result = subprocess.run(
        ["/bin/bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}, timeout=60
    )
    return result.stdout.decode().split("\0")[:-1]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(ANY_TEXT, min_size=1, max_size=20))
def test_quoted_words_come_out_of_bash_unchanged(words: list[str]) -> None:
    assert bash('printf "%s\\0" ' + " ".join(quote(word, what="a word") for word in words)) == words


@settings(max_examples=60, deadline=None)
@given(title=ANY_TEXT, words=st.lists(ANY_TEXT, min_size=1, max_size=20))
def test_an_array_holds_its_words_whatever_its_comment_says(title: str, words: list[str]) -> None:
    lines = array("WORDS", [(title, [("--flag", *words)])])
    assert bash("\n".join([*lines, 'printf "%s\\0" "${WORDS[@]}"'])) == ["--flag", *words]


@given(text=ANY_TEXT)
def test_a_comment_is_one_line_of_printable_characters(text: str) -> None:
    line = comment(text)
    assert line.startswith("#")
    assert line.isprintable()
    assert len(line.splitlines()) == 1


def test_control_characters_show_as_escapes() -> None:
    assert comment("a\nb\x1b[31m\u202ec") == r"# a\nb\x1b[31m\u202ec"


def test_a_batch_job_has_a_plain_name() -> None:
    assert job_name("Llama 3.1/70B\n#SBATCH --wrap=x") == "Llama-3.1-70B-SBATCH---wrap-x"
    assert job_name("数") == "job"


def test_a_nul_character_is_an_error_that_names_the_value() -> None:
    with pytest.raises(InputError) as caught:
        quote("a\0b", what="the value of --data-path")
    assert str(caught.value) == (
        "the value of --data-path holds a NUL character, which no program can be given as an argument.\nRemove it."
    )


def test_a_lone_surrogate_is_an_error_that_names_the_value() -> None:
    with pytest.raises(InputError) as caught:
        quote("a\ud800", what="the value of --data-path")
    assert str(caught.value) == (
        "the value of --data-path is not valid text: surrogates not allowed.\nWrite it in UTF-8."
    )
