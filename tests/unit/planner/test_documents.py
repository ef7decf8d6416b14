import json
import time
from pathlib import Path

import pytest

from planner.documents import Document, load_document, parse_document, parse_override
from planner.documents.nodes import MAX_BYTES, MAX_DEPTH
from planner.errors import InputError

SPEC = """\
schema: 1
cluster: {preset: dgx-h100, nodes: 8}
workload:
  kind: train
  data_path:
    - first
    - second
"""

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def error_of(text: str, file: str = "spec.yaml") -> str:
    with pytest.raises(InputError) as caught:
        parse_document(text, file=file)
    return str(caught.value)


def test_yaml_follows_the_core_schema_of_version_1_2() -> None:
    text = (
        "a: yes\nb: on\nc: 1_000\nd: 0o17\ne: 0x1F\nf: 1e3\ng: ~\nh:\ni: '8'\nj: -7\nk: .5\nl: True\nm: 012\nn: 12:30\n"
    )
    assert parse_document(text, file="x").data == {
        "a": "yes",
        "b": "on",
        "c": "1_000",
        "d": 15,
        "e": 31,
        "f": 1000.0,
        "g": None,
        "h": None,
        "i": "8",
        "j": -7,
        "k": 0.5,
        "l": True,
        "m": 12,
        "n": "12:30",
    }


def test_an_empty_document_is_null() -> None:
    assert parse_document("", file="x").data is None
    assert parse_document("# nothing\n", file="x").data is None


def test_an_alias_repeats_its_anchor() -> None:
    assert parse_document("a: &x {b: 1}\nc: *x\n", file="x").data == {"a": {"b": 1}, "c": {"b": 1}}


def test_json_reads_as_the_standard_library_does() -> None:
    value = {"a": [1, -2, 1.5e-3, True, None, 'ü\n"\\'], "b": {}, "c": [], "": {"d": [[]]}, "e": 10**20}
    for text in (json.dumps(value), json.dumps(value, indent=3), json.dumps(value, ensure_ascii=False)):
        assert parse_document(f" {text}\r\n", file="x.JSON").data == value


def test_numbers_that_json_does_not_have_are_text() -> None:
    # Python writes them, so published configs hold them, in fields that no plan reads.
    assert parse_document("[NaN, Infinity, -Infinity]", file="x.json").data == ["NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize(
    ("path", "key", "place"),
    [
        ((), False, "spec.yaml:1:1"),
        (("schema",), False, "spec.yaml:1:9: schema"),
        (("schema",), True, "spec.yaml:1:1: schema"),
        (("cluster", "nodes"), False, "spec.yaml:2:36: cluster.nodes"),
        (("cluster", "nodes"), True, "spec.yaml:2:29: cluster.nodes"),
        (("workload", "data_path", 1), False, "spec.yaml:7:7: workload.data_path[1]"),
        (("workload", "missing", "deeper"), False, "spec.yaml:4:3: workload.missing.deeper"),
        (("workload", "data_path", 2), True, "spec.yaml:6:5: workload.data_path[2]"),
    ],
)
def test_every_value_knows_its_place_or_that_of_its_nearest_ancestor(
    path: tuple[str | int, ...], key: bool, place: str
) -> None:
    assert str(parse_document(SPEC, file="spec.yaml").locate(path, key=key)) == place


def test_json_values_know_their_place() -> None:
    document = parse_document('{\n  "a": {"b": [1,\n  22]},\n  "c": 3\n}\n', file="plan.json")
    assert str(document.locate(("a", "b", 1))) == "plan.json:3:3: a.b[1]"
    assert str(document.locate(("c",))) == "plan.json:4:8: c"
    assert str(document.locate(("c",), key=True)) == "plan.json:4:3: c"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "spec.yaml:3:1: The key `a` is given twice; it stands already in line 1."),
        ("a:\n\tb: 1\n", "spec.yaml:2:1: This is not YAML: found character '\\t' that cannot start any token"),
        ("a: [1\nb: 2\n", "spec.yaml:2:2: This is not YAML: expected ',' or ']', but got ':'"),
        ("a: 1\n---\nb: 2\n", "spec.yaml:2:1: A second document starts here."),
        ("8: x\n0x8: y\n", "spec.yaml:2:1: The key `8` is given twice; it stands already in line 1."),
        ("0.5: x\n", "spec.yaml:1:1: The key `0.5` is not text."),
        ("true: x\n", "spec.yaml:1:1: The key `true` is not text."),
        ("null: x\n", "spec.yaml:1:1: The key `null` is not text."),
        ('"a\\tb": x\n', 'spec.yaml:1:1: The key "a\\tb"... is no name.'),
        ("{? [a] : b}\n", "spec.yaml:1:4: A list cannot be a key."),
        ("a: .nan\n", "spec.yaml:1:4: `.nan` is not a finite number."),
        ("a: -.inf\n", "spec.yaml:1:4: `-.inf` is not a finite number."),
        ("a: 1e999\n", "spec.yaml:1:4: The number is not finite."),
        (f"a: {'9' * 5000}\n", "spec.yaml:1:4: The number has 5000 digits."),
        ("a: !!python/object/apply:os.system [x]\n", "spec.yaml:1:4: The tag `tag:yaml.org,2002:python/object/apply"),
        ("a: !mine 1\n", "spec.yaml:1:4: The tag `!mine` is not allowed."),
        ("a: &x [*x]\n", "spec.yaml:1:8: The alias `*x` contains itself."),
        ("a: *x\n", "spec.yaml:1:4: The alias `*x` has no anchor `&x` before it."),
        ("b: &b {c: 1}\na: {<<: *b}\n", "spec.yaml:2:5: Merge keys (`<<`) are not part of YAML 1.2."),
        ("a: 1\nb: \x00\n", "spec.yaml:2:4: The text holds the unprintable character U+0000."),
        ('a: "\\e[31m"\n', "spec.yaml:1:4: The text holds the unprintable character U+001B."),
        ("a: 1\nb: \uffff\n", "spec.yaml:2:4: The unprintable character U+FFFF is not allowed in YAML."),
        ("[" * 200, f"spec.yaml:1:{MAX_DEPTH + 1}: Values are nested more than {MAX_DEPTH} deep."),
        ('a: "\\UFFFFFFFF"\n', "spec.yaml: This is not YAML: "),
        (BOMB, "The document holds more than 20,000 values, repeated aliases included."),
    ],
)
def test_what_is_wrong_with_yaml_is_said_where_it_stands(text: str, message: str) -> None:
    assert message in error_of(text)


def test_a_tab_in_the_indentation_is_explained() -> None:
    assert error_of("a:\n\tb: 1\n").endswith("Indent with spaces; YAML does not allow tabs there.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.json:1:1: This is not JSON: expected a value, found the end of the file."),
        ('{"a": 1,\n "a": 2}', "x.json:2:2: The key `a` is given twice; it stands already in line 1."),
        ('{"a": 1,}', "x.json:1:9: This is not JSON: expected a key in double quotes, found `}`."),
        ('{"a" 1}', "x.json:1:6: This is not JSON: expected `:`, found `1`."),
        ("[1, 2", "x.json:1:6: This is not JSON: expected `,` or `]`, found the end of the file."),
        ("[1] x", "x.json:1:5: This is not JSON: expected the end of the file, found `x`."),
        ("[01]", "x.json:1:3: This is not JSON: expected `,` or `]`, found `1`."),
        ("[Nan]", "x.json:1:2: This is not JSON: expected a value, found `N`."),
        ("[1e999]", "x.json:1:2: The number is not finite."),
        (f"[{'9' * 5000}]", "x.json:1:2: The number has 5000 digits."),
        ('["\\ud800"]', "x.json:1:2: The text holds the unprintable character U+D800."),
        (f'{{"{"k" * 300}": 1}}', f'x.json:1:2: The key "{"k" * 20}"... is no name.'),
        ('["abc', "x.json:1:2: This is not JSON: unterminated string."),
        ('["a\tb"]', "x.json:1:4: This is not JSON: invalid control character."),
        ("[" * 200, f"x.json:1:{MAX_DEPTH + 1}: Values are nested more than {MAX_DEPTH} deep."),
    ],
)
def test_what_is_wrong_with_json_is_said_where_it_stands(text: str, message: str) -> None:
    assert error_of(text, file="x.json").startswith(message)


def load_error(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_document(path)
    return str(caught.value).replace(str(path.parent), "DIR")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert load_error(tmp_path / "no.yaml") == "DIR/no.yaml: There is no such file.\nCheck the path."
    (tmp_path / "folder").mkdir()
    assert load_error(tmp_path / "folder") == "DIR/folder: This is a directory.\nGive the path of a file."
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: caf\xe9\n")
    assert load_error(latin) == (
        "DIR/latin.yaml:2:7: The file is not UTF-8 text: byte 0xe9 does not fit.\nSave it as UTF-8."
    )
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES["YAML"] + 1))
    assert load_error(large) == (
        "DIR/large.yaml: The file is larger than 1 MiB, the most that is read of YAML.\n"
        "Check that this is the file you mean."
    )
    assert "cannot be read" in load_error(tmp_path / ("x" * 5000))


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "bom.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load_document(file).data == {"a": 1}


def overridden(*texts: str) -> Document:
    document = parse_document(SPEC, file="spec.yaml")
    for text in texts:
        override = parse_override(text)
        document = document.with_node(override.path, override.node)
    return document


def test_an_override_replaces_a_value_and_is_blamed_by_its_own_text() -> None:
    document = overridden("cluster.nodes=16", "workload.data_path[1]=third", "constraints.tp=[1, 2]")
    assert document.data == {
        "schema": 1,
        "cluster": {"preset": "dgx-h100", "nodes": 16},
        "workload": {"kind": "train", "data_path": ["first", "third"]},
        "constraints": {"tp": [1, 2]},
    }
    assert str(document.locate(("cluster", "nodes"))) == "--set cluster.nodes=16: cluster.nodes"
    assert str(document.locate(("cluster", "nodes"), key=True)) == "--set cluster.nodes=16: cluster.nodes"
    assert str(document.locate(("cluster", "preset"))) == "spec.yaml:2:19: cluster.preset"
    assert str(document.locate(("constraints", "tp", 1))) == "--set constraints.tp=[1, 2]: constraints.tp[1]"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("nodes", "An override is written path=value.", "For example --set workload.seq_len=8192"),
        ("=3", "An override is written path=value.", "For example --set workload.seq_len=8192"),
        ("a..b=3", "An override is written path=value.", "For example --set workload.seq_len=8192"),
        (
            "cluster.nodes.x=1",
            "`cluster.nodes` is a single value, not a mapping; `cluster.nodes.x` cannot be set.",
            "Set `cluster.nodes` as a whole, or write it out in the file.",
        ),
        (
            "workload.data_path[5]=x",
            "`workload.data_path` is a list of 2; it has no `5`.",
            "Use an index, for example workload.data_path[0].",
        ),
        (
            "cluster[0]=x",
            "`cluster` is not a list; `cluster[0]` cannot be set.",
            "Set `cluster` as a whole, or write it out in the file.",
        ),
    ],
)
def test_an_override_that_fits_nowhere_says_why(text: str, message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        overridden(text)
    assert str(caught.value) == f"--set {text}: {message}\n{hint}"


def test_an_override_with_bad_yaml_names_the_override() -> None:
    with pytest.raises(InputError, match=r"^--set a=\[: This is not YAML: "):
        parse_override("a=[")


def test_a_long_spec_parses_in_milliseconds() -> None:
    text = "\n".join(f"key{index}: {{a: 1, b: two}}" for index in range(100))
    parse_document(text, file="warm-up")
    start = time.process_time()
    parse_document(text, file="spec.yaml")
    # Measured 25 ms on a slow shared core; the bound only catches a change of complexity.
    assert time.process_time() - start < 0.25
