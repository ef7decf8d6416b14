"""Lists and patterns of layers in the notation of Megatron-LM's flags."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.readers.megatron_patterns import PatternError, parse_hybrid, parse_list

LISTS = st.recursive(
    st.lists(st.integers(0, 1), max_size=4).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.integers(0, 3)).map(lambda pair: f"({pair[0]})*{pair[1]}"),
        st.tuples(inner, inner).map("+".join),
    ),
    max_leaves=6,
)


@given(text=LISTS)
def test_lists_are_what_python_makes_of_them(text: str) -> None:
    assert list(parse_list(text)) == eval(text, {"__builtins__": {}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "[ is missing"),
        ("[0]*", "more is missing"),
        ("[0]]", "']' is not expected"),
        ("([0]", ") is missing"),
        ("[0]+f()", "'f' is not part of a list"),
        ("[0]*99999", "'99999' is not a small number"),
        ("[0]*4000+[1]*4000", "it has more than 4096 layers"),
        ("(" * 40 + "[0]", "its parentheses are too deep"),
    ],
)
def test_what_is_no_list_is_named(text: str, message: str) -> None:
    with pytest.raises(PatternError, match=re.escape(message)):
        parse_list(text)


def test_a_hybrid_pattern_has_stages_and_modules() -> None:
    found = parse_hybrid("M-|M*E|/*-/*-")
    assert (found.stages, found.modules, found.module, found.letters) == (("M-", "M*E", ""), 2, "*-", "M-M*E")
    assert parse_hybrid("M").modules == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("M|x", "it has 'x'"),
        ("M/*/-", "its prediction modules differ"),
        ("M" * 5000, "it has more than 4096 layers"),
    ],
)
def test_what_is_no_hybrid_pattern_is_named(text: str, message: str) -> None:
    with pytest.raises(PatternError, match=re.escape(message)):
        parse_hybrid(text)
