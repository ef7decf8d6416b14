"""The pages on the cost and memory model say what the code has: every constant's value, every term by its name."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from planner.evaluation import priced_step
from planner.ranks.step import Term
from planner.serving.step_costs import Term as ServingTerm
from profiles.constants import Constant, named_constants, values_tried
from profiles.estimate import Source
from profiles.kernel_constants import named_kernel_constants
from tests.docs.constants import FIXED, SECTIONS, constants, tables

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "model.md"
CONSTANTS = ROOT / "docs" / "constants.md"
GENERATED = re.compile(r"(?<=<!-- table: )([\w ]+)( -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)
TERMS = re.compile(r"<!-- terms: ([\w ]+) -->\n\n\|[^\n]*\n\|[-|]*\n((?:\|[^\n]*\n)+)")
DECIMAL = re.compile(r"(?<![\d.])\d+\.\d+(?![\d.])")
"""Figures of a formula are whole; a decimal is a constant, a version or an arXiv number."""

NUMBERED = re.compile(r"arXiv\s+\d{4}\.\d{5}|(?:vLLM|TensorRT-LLM|SGLang) \d+\.\d+|section \d+\.\d+")


def filled(text: str) -> str:
    """Return the page with its tables made anew."""
    made = tables()

    def made_table(match: re.Match[str]) -> str:
        return "\n".join([f"{match[1]}{match[2]}", *made[match[1]], "", ""])

    return GENERATED.sub(made_table, text)


def test_the_tables_are_those_of_the_constants(pytestconfig: pytest.Config) -> None:
    text = CONSTANTS.read_text(encoding="utf-8")
    if pytestconfig.getoption("--update-golden"):
        CONSTANTS.write_text(filled(text), encoding="utf-8")
        text = CONSTANTS.read_text(encoding="utf-8")
    assert sorted(match[1] for match in GENERATED.finditer(text)) == sorted(tables())
    assert text == filled(text)


def test_another_value_of_a_constant_is_another_page() -> None:
    text = CONSTANTS.read_text(encoding="utf-8")
    with values_tried({"MEMORY_FRACTION": 0.7}):
        assert filled(text) != text


def test_every_constant_stands_in_one_table() -> None:
    named = [name for units in SECTIONS.values() for name in units]
    assert len(set(named)) == len(named)
    found = {label.partition("[")[0].partition(".")[0] for label in constants()}
    assert found == set(named)
    assert set(named_constants()) | set(named_kernel_constants()) <= set(constants())


def test_every_number_that_is_no_constant_is_named_once() -> None:
    named = [(one.module, one.name) for listed in FIXED.values() for one in listed]
    assert len(set(named)) == len(named)
    values = [getattr(importlib.import_module(module), name) for module, name in named]
    assert not any(isinstance(value, Constant) for value in values)


def strings_of(path: str, *, call: str, keyword: str) -> set[str]:
    """Return the strings that calls of a name are given for a keyword in a module, names of constants resolved."""
    module = importlib.import_module(path)
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{path.replace('.', '/')}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == call:
            (value,) = (given.value for given in node.keywords if given.arg == keyword)
            if isinstance(value, ast.Constant):
                found.add(str(value.value))
            else:
                assert isinstance(value, ast.Name), f"a term of {path} is neither a string nor a name"
                found.add(getattr(module, value.id))
    return found


def terms() -> dict[str, set[str]]:
    """Return the terms of the code by the name of the table that they stand in."""
    of_step = {value for name, value in vars(priced_step).items() if name.isupper() and isinstance(value, str)}
    return {
        "time": {term.value for term in Term} | of_step,
        "memory": strings_of("planner.memory.terms", call="Term", keyword="name"),
        "host": strings_of("planner.memory.host", call="HostLine", keyword="term"),
        "serving time": {value for name, value in vars(ServingTerm).items() if name.isupper()},
        "serving memory": strings_of("planner.serving.ledger", call="Line", keyword="name"),
    }


def test_every_term_is_said_and_no_other() -> None:
    said = {
        match[1]: [row.split("|")[1].strip().strip("`") for row in match[2].splitlines()]
        for match in TERMS.finditer(PAGE.read_text(encoding="utf-8"))
    }
    assert all(len(set(names)) == len(names) for names in said.values())
    assert {table: set(names) for table, names in said.items()} == terms()


def test_every_source_of_a_price_is_said_best_first() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## How a price")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == [source.value for source in Source]


def by_hand(text: str) -> str:
    """Return what of a page is written by hand and shows nothing that a command prints."""
    text = GENERATED.sub("", text)
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", [PAGE, CONSTANTS], ids=lambda path: path.name)
def test_no_value_is_typed_by_hand(path: Path) -> None:
    written = NUMBERED.sub("", by_hand(path.read_text(encoding="utf-8")))
    assert DECIMAL.findall(written) == []


def test_names_of_constants_in_the_text_are_in_a_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    known = {name for units in SECTIONS.values() for name in units}
    known |= {one.name for listed in FIXED.values() for one in listed}
    known |= {"NEAREST_ARCHITECTURE"}
    named = set(re.findall(r"\b_?[A-Z]{2,}(?:_[A-Z]+)+\b", by_hand(text)))
    assert named
    assert named - known == set()
