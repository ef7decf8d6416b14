"""What is read from a parser, and the tables that were written so."""

import argparse
import enum
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.flag_tables import flags_of, table_text

ROOT = Path(__file__).parents[3]
TABLES = ROOT / "planner" / "data" / "flags"
VERSIONS = [
    tuple(line.split()[:2])
    for line in (ROOT / ".ci" / "flags.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


class Backend(enum.Enum):
    FLASH = 1
    UNFUSED = 2


def optional_type(return_type: Callable[[str], Any]) -> Callable[[str], Any]:
    def _optional_type(text: str) -> Any:
        return None if text == "None" else return_type(text)

    return _optional_type


def the_flag(*names: str, **keywords: Any) -> dict[str, Any]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument_group("sizes").add_argument(*names, **keywords)
    (flag,) = flags_of(parser)
    return flag


def test_a_flag_with_a_value() -> None:
    assert the_flag("--tensor-size", "-tp", type=int, default=1, help="Ranks.") == {
        "names": ["--tensor-size", "-tp"],
        "dest": "tensor_size",
        "nargs": None,
        "kind": "value",
        "type": "int",
        "choices": None,
        "default": 1,
        "required": False,
        "group": "sizes",
    }


@pytest.mark.parametrize(
    ("names", "keywords", "kind"),
    [
        (("--fast",), {"action": "store_true"}, "true"),
        (("--no-fast",), {"action": "store_false"}, "false"),
        (("--level",), {"action": "store_const", "const": 3}, "const"),
        (("--hook",), {"action": "append"}, "append"),
        (("--fast",), {"action": argparse.BooleanOptionalAction}, "boolean_optional"),
        (("--count",), {"action": "count"}, "other"),
        (("model",), {"nargs": "?"}, "positional"),
    ],
)
def test_kinds(names: tuple[str, ...], keywords: dict[str, Any], kind: str) -> None:
    assert the_flag(*names, **keywords)["kind"] == kind


@pytest.mark.parametrize(
    ("convert", "choices", "name"),
    [
        (None, None, "str"),
        (float, None, "float"),
        (json.loads, None, "json"),
        (optional_type(int), None, "optional_int"),
        (optional_type(json.loads), None, "optional_json"),
        (lambda text: text.lower().replace("-", "_"), ["flash_infer", "triton"], "folded_str"),
        (str, ["flash_infer", "triton"], "str"),
        (lambda text: text.split(","), None, "<lambda>"),
    ],
)
def test_types(convert: Any, choices: list[str] | None, name: str) -> None:
    assert the_flag("--backend", type=convert, choices=choices)["type"] == name


def test_choices_are_what_a_user_writes() -> None:
    by_name = the_flag("--backend", type=lambda text: Backend[text], choices=list(Backend), default=Backend.FLASH)
    assert (by_name["choices"], by_name["default"]) == (["FLASH", "UNFUSED"], "FLASH")
    assert the_flag("--rank", type=int, choices=[8, 16])["choices"] == ["8", "16"]


def test_a_choice_that_no_word_gives_is_left_out() -> None:
    flag = the_flag("--load", type=optional_type(str), choices=["lazy", "None", None])
    assert flag["choices"] == ["lazy", "None"]
    assert the_flag("--load", type=optional_type(str), choices=["lazy", "None"])["choices"] == ["lazy"]


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("--old", "Deprecated: see --new.", "Deprecated: see --new."),
        ("--old", "[DEPRECATED] Does nothing.", "[DEPRECATED] Does nothing."),
        ("--old", "Use sines or not. Deprecated: use --new.", "Deprecated: use --new."),
        ("--old", "Optimizer. Note: dist_muon is deprecated; use muon.", None),
        ("--old", argparse.SUPPRESS, None),
    ],
)
def test_what_the_help_says_of_a_deprecated_flag(name: str, words: str, said: str | None) -> None:
    assert the_flag(name, help=words).get("deprecated") == said


def test_a_hidden_flag_is_deprecated_where_its_destination_says_so() -> None:
    assert the_flag("--old", dest="old_deprecated", help=argparse.SUPPRESS)["deprecated"] == "stored as old_deprecated"


def test_a_flag_is_deprecated_where_the_parser_warns_of_it() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    warned = parser.add_argument("--task")
    parser.add_argument("--model")
    assert [flag.get("deprecated") for flag in flags_of(parser, deprecated=[warned])] == [
        None,
        "the parser warns that it is",
    ]


def test_a_table_has_one_flag_a_line_in_the_order_of_names() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--b")
    parser.add_argument("-a", "--alpha")
    text = table_text(framework="f", version="1", package="f==1", flags=flags_of(parser))
    assert [json.loads(line.strip(" ,"))["dest"] for line in text.splitlines()[2:4]] == ["alpha", "b"]
    assert json.loads(text).keys() == {"flags", "framework", "package", "version"}


def test_a_table_stands_for_every_version_that_is_named() -> None:
    names = {f"{framework}-{package.rpartition('==')[2]}.json" for framework, package in VERSIONS}
    assert names == {path.name for path in TABLES.iterdir()}


@pytest.mark.parametrize(("framework", "package"), VERSIONS)
def test_a_table_names_its_version(framework: str, package: str) -> None:
    version = package.rpartition("==")[2]
    table = json.loads((TABLES / f"{framework}-{version}.json").read_text(encoding="utf-8"))
    assert (table["framework"], table["package"], table["version"]) == (framework, package, version)


@pytest.mark.parametrize(("framework", "package"), [row for row in VERSIONS if row[0] != "deepspeed"])
def test_no_name_stands_for_two_flags(framework: str, package: str) -> None:
    table = json.loads((TABLES / f"{framework}-{package.rpartition('==')[2]}.json").read_text(encoding="utf-8"))
    names = [name for flag in table["flags"] for name in flag["names"]]
    assert len(names) == len(set(names)) > 150
