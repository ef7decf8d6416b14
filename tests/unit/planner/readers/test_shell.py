"""The words of a script are those that bash itself makes of it."""

import re
import shlex
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.readers.shell import MAX_EXPANDED, MAX_EXPANDED_WORDS, Script, read_script

RECORD = 'record() { printf "%s\\0" "$@"; }\n'

SNIPPETS = [
    "record a b   c",
    "record 'a b' \"c d\" e\\ f",
    "record a'b'\"c\"d",
    "record '' \"\" x",
    "record a \\\n  b # a comment\n",
    "record a#b '#c'",
    'A="1 2"; record $A "$A" x$A',
    "A=(1 '2 3' \"4\"); record ${A[@]}",
    'A=(1 "2 3"); record "${A[@]}" "x${A[@]}y"',
    'A=(1\n  # why\n  2\n  3); A+=(4 "5 6"); record "${A[@]}"',
    'A=x; A+=y; record "$A"',
    'A=(); record "${A[@]}" end',
    'record "${UNSET_NAME:-fall back}" ${UNSET_NAME:-fall back}',
    'A=1; record "${A:-2}"',
    'A="--one 1 --two 2"; B="$A --three \'3\'"; record $B',
    'A=1; B=(--x $A); C=("${B[@]}" --y); record "${C[@]}"',
    "record a >&1; record b 2>&1 | cat",
    "record a 2> /dev/null b",
    "cat <<EOF > /dev/null\nrecord not this 'one\nEOF\nrecord this",
    "cat <<\\EOF > /dev/null\nrecord not this (one\nEOF\nrecord this",
    "A=1 record b",
    "export A=5; record $A",
    "if true; then record inside; fi > /dev/null; record outside",
    'record "a\\"b" "c\\$d" "e\\f"',
    "record a;record b&&record c",
    "record --flag=value --list 1 2",
    "read -r X < <(printf x); record y",
    'unset A; record "${A-gone}"',
    "for i in 1 2; do X=$i; done; record done",
]


def recorded(script: Script) -> list[str]:
    """Return the words that the script's `record` commands are given, in order."""
    return [word.text for command in script.commands if command.words[0].text == "record" for word in command.words[1:]]


def bash(script: str) -> list[str]:
    result = subprocess.run(
        ["/bin/bash", "-c", RECORD + script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}, timeout=60
    )
    return result.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_words_are_those_of_bash(snippet: str) -> None:
    assert recorded(read_script(snippet, file="x.sh")) == bash(snippet)


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=10))
def test_quoted_words_are_read_as_they_were(words: list[str]) -> None:
    quoted = " ".join(shlex.quote(word) for word in words)
    assert recorded(read_script(f"record {quoted}", file="x.sh")) == words
    assert recorded(read_script(f'A=(\n{quoted}\n)\nrecord "${{A[@]}}"', file="x.sh")) == words


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("ab1 $'\"\\(){}[]#=+;&|<>\n@*-:`!~?,%^/."), max_size=60))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    try:
        read_script(text, file="x.sh")
    except InputError as error:
        refusal = str(error)
    else:
        return
    assert re.match(r"x\.sh:\d+:\d+: ", refusal)


def test_every_word_knows_where_it_was_written() -> None:
    script = read_script('A=(--one 1\n  --two "2 3")\nB="--three 3"\nrun "${A[@]}" $B', file="x.sh")
    places = [(word.text, word.line, word.column) for word in script.commands[0].words]
    assert places == [
        ("run", 4, 1),
        ("--one", 1, 4),
        ("1", 1, 10),
        ("--two", 2, 3),
        ("2 3", 2, 10),
        ("--three", 3, 4),
        ("3", 3, 12),
    ]


def test_exports_are_kept_and_unset_ones_dropped() -> None:
    script = read_script("export A=1 B='2 3'\nC=4\nexport C\nD=5\nexport E=6\nunset E", file="x.sh")
    assert script.exports == {"A": "1", "B": "2 3", "C": "4"}


def test_an_open_quote_is_an_error_at_its_place() -> None:
    with pytest.raises(InputError) as caught:
        read_script("ok\nrecord 'open", file="job.sh")
    assert str(caught.value) == "job.sh:2:8: ' is missing.\nRun `bash -n` on the file."


def test_an_open_array_is_an_error_at_its_place() -> None:
    with pytest.raises(InputError) as caught:
        read_script("A=(1 2", file="job.sh")
    assert str(caught.value) == "job.sh:1:3: the array A is not closed.\nRun `bash -n` on the file."


def test_an_array_inside_an_array_is_an_error_at_it() -> None:
    with pytest.raises(InputError) as caught:
        read_script("A=(1 B=(2))", file="job.sh")
    assert str(caught.value) == "job.sh:1:8: ( stands inside the array A.\nRun `bash -n` on the file."


def test_what_references_stand_for_is_limited() -> None:
    doubling = "A=0123456789\n" + "A=$A$A\n" * 40
    with pytest.raises(InputError) as caught:
        read_script(doubling, file="job.sh")
    assert str(caught.value) == (
        f"job.sh:1:3: The references of the script stand for more than {MAX_EXPANDED:,} characters.\n"
        "Check for a variable that is put into itself."
    )
    assert read_script("A=0123456789\n" + "A=$A$A\n" * 12, file="job.sh").variables["A"][0].text == "0123456789" * 2**12


def test_the_words_that_references_stand_for_are_limited() -> None:
    doubling = "A=(0)\n" + 'A=("${A[@]}" "${A[@]}")\n' * 40
    with pytest.raises(InputError) as caught:
        read_script(doubling, file="job.sh")
    assert str(caught.value) == (
        f"job.sh:1:4: The references of the script stand for more than {MAX_EXPANDED_WORDS:,} words.\n"
        "Check for a variable that is put into itself."
    )
