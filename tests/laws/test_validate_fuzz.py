"""Whatever is done to a file, `validate` judges or refuses it with a message: no traceback, no hang, nothing written.

Files of every kind that is read are damaged in seeded ways; each is judged and printed in one of the forms.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from benchmarks.damaged_files import CASES, SOURCES, damaged_files, form_of, judged_and_printed
from benchmarks.hostile.watch import no_hang, watched
from cli.findings.forms import FindingsFormat
from planner import validation
from planner.errors import InputError
from planner.readers.named_files import MAX_YAML_BYTES
from planner.readers.shell import MAX_SCRIPT_BYTES
from planner.validation.judge import judge
from planner.validation.source import Asked
from planner.validation.sources import MAX_BYTES, MAX_RUNS
from tests.unit.rules.megatron_cases import script

BATCHES = 20
CPU_SECONDS = 1
"""Processor time of this process after which a file is taken to hang, whatever else the machine does."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load what the first file of a kind loads, and the first that is damaged: modules, tables of flags."""
    for _, name, _ in iter_modules(validation.__path__, f"{validation.__name__}."):
        import_module(name)
    for name, text in SOURCES:
        path = tmp_path_factory.mktemp("undamaged") / name
        path.write_text(text)
        for form in FindingsFormat:
            judged_and_printed(path, form=form)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("batch", [0, 1, *(pytest.param(more, marks=pytest.mark.slow) for more in range(2, BATCHES))])
def test_damaged_files_are_judged_or_refused(tmp_path: Path, batch: int) -> None:
    cases = range(batch * CASES // BATCHES, (batch + 1) * CASES // BATCHES)
    refused = 0
    for file in damaged_files(cases):
        path = tmp_path / file.name
        path.write_bytes(file.raw)
        try:
            with watched() as changed, no_hang(CPU_SECONDS):
                is_judged = judged_and_printed(path, form=form_of(file.case), from_folder=file.case % 50 == 0)
        except BaseException as error:
            error.add_note(f"case {file.case}: {file.raw[:2000]!r}")
            raise
        assert changed == [], file.case
        refused += not is_judged
        path.unlink()
    assert 0 < refused < len(cases)


LAUNCH = "torchrun --nproc-per-node 8 pretrain_gpt.py "
VLLM = "vllm serve m "
JSON_KEYS = '{"train_batch_size": 8, '
LARGE: Mapping[str, tuple[str, Callable[[int], str]]] = {
    "unknown flags": ("x.sh", lambda size: LAUNCH + " ".join(f"--tensor-mod{number}" for number in range(size // 18))),
    "unknown flags of vLLM": ("x.sh", lambda size: VLLM + " ".join(f"--tensor-m{n}" for n in range(size // 18))),
    "short unknown flags": ("x.sh", lambda size: LAUNCH + "--x " * (size // 4 - 20)),
    "one long number": ("x.sh", lambda size: f"{LAUNCH}--num-layers {'9' * (size - 100)}"),
    "one long text": ("x.sh", lambda size: f'{LAUNCH}--data-path "{"a" * (size - 100)}"'),
    "escapes": ("x.sh", lambda size: LAUNCH + "\\a" * (size // 3)),
    "references": ("x.sh", lambda size: f"A=x\n{LAUNCH}{'$A ' * (size // 4)}"),
    "a word of references": ("x.sh", lambda size: f"A=x\n{LAUNCH}{'$A' * (size // 3)}"),
    "commands": ("x.sh", lambda size: f"{LAUNCH}\n" * (size // 50)),
    "words of an array": ("x.sh", lambda size: "A+=(--bf16)\n" * (size // 13) + LAUNCH),
    "pieces of a text": ("x.sh", lambda size: "A+=a\n" * (size // 6) + LAUNCH),
    "comments": ("x.sh", lambda size: "# shardwright: ignore[MLM101] x\n" * (size // 34) + LAUNCH),
    "open here-documents": ("x.sh", lambda size: "cat " + "<<A " * (size // 5)),
    "words of YAML": ("x.yaml", lambda size: f"a: {'x ' * (size // 2 - 10)}"),
    "lines of YAML": ("x.yaml", lambda size: "a:\n" + "  x\n" * (size // 4 - 10)),
    "open lists of YAML": ("x.yaml", lambda size: "[" * size),
    "directives of YAML": ("x.yaml", lambda size: "%A b\n" * (size // 5)),
    "keys of YAML": ("x.yaml", lambda size: "".join(f"num_layers{n}: 1\n" for n in range(size // 20))),
    "keys of JSON": ("x.json", lambda size: JSON_KEYS + ",".join(f'"k{n}": 1' for n in range(size // 12)) + "}"),
    "numbers of JSON": ("x.json", lambda size: f'{JSON_KEYS}"x": [{"1," * (size // 2 - 20)}1]}}'),
}
"""Files of nearly the largest size that is read as a script or YAML, of one thing over and over."""


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("what", LARGE)
def test_large_files_do_not_hang(tmp_path: Path, what: str) -> None:
    name, make = LARGE[what]
    most = MAX_YAML_BYTES if name.endswith(".yaml") else MAX_SCRIPT_BYTES
    text = make(most)
    assert most * 0.6 < len(text) <= most
    path = tmp_path / name
    path.write_text(text)
    for form in (FindingsFormat.TEXT, FindingsFormat.SARIF):
        with no_hang(CPU_SECONDS):
            judged_and_printed(path, form=form)


HUGE: Mapping[str, Callable[[int], str]] = {
    "numbers": lambda size: f"[{'1,' * (size // 2 - 2)}1]",
    "an open list": lambda size: f'{{"a": [{"1," * (size // 2 - 10)}',
    "keys": lambda size: "{" + ",".join(f'"k{number}":1' for number in range(size // 14)) + "}",
    "a text": lambda size: f'"{"a" * (size - 2)}"',
}


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("what", HUGE)
def test_large_data_is_passed_over_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(HUGE[what](MAX_BYTES))
    with no_hang(CPU_SECONDS):
        assert not judged_and_printed(path, form=FindingsFormat.TEXT)


@pytest.mark.parametrize(("name", "most"), [("train.sh", 64), ("serve.yaml", 32), ("plan.json", 4096)])
def test_a_file_that_is_too_large_is_refused(tmp_path: Path, name: str, most: int) -> None:
    path = tmp_path / name
    path.write_text("#" * ((most << 10) + 1))
    with pytest.raises(InputError, match=f"The file is larger than {most:,} KiB"):
        judge([str(path)], Asked(versions={}))


@pytest.mark.parametrize("line", ["A=$A$A", "A+=$A"])
def test_variables_that_double_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "train.sh"
    path.write_text("A=--bf16\n" + f"{line}\n" * 60 + script())
    with (
        no_hang(CPU_SECONDS),
        pytest.raises(InputError, match="The references of the script stand for more than 1,048,576"),
    ):
        judge([str(path)], Asked(versions={}))


def test_words_that_double_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.sh"
    path.write_text("A=(--bf16)\n" + 'A=("${A[@]}" "${A[@]}")\n' * 60 + script())
    with (
        no_hang(CPU_SECONDS),
        pytest.raises(InputError, match="The references of the script stand for more than 65,536 words"),
    ):
        judge([str(path)], Asked(versions={}))


@pytest.mark.parametrize(("command", "title"), [(LAUNCH, "Megatron-LM"), (VLLM, "vLLM")], ids=["Megatron-LM", "vLLM"])
def test_a_command_of_which_everything_is_wrong_is_refused(tmp_path: Path, command: str, title: str) -> None:
    path = tmp_path / "train.sh"
    path.write_text(command + "--x " * 1010)
    with pytest.raises(InputError) as caught:
        judge([str(path)], Asked(versions={}))
    column = len(command) + 4 * 1001 + 1
    assert str(caught.value) == (
        f"{path}:1:{column}: {title} would not take more than 1,000 words of this command.\n"
        "Check that it is a command of this framework."
    )


def test_a_file_of_too_many_runs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.sh"
    path.write_text(f"{LAUNCH}\n" * (MAX_RUNS + 1))
    with pytest.raises(InputError) as caught:
        judge([str(path)], Asked(versions={}))
    assert str(caught.value) == f"{path}:501:1: The file starts more than 500 runs.\nSplit it into several."


def test_a_large_configuration_of_a_command_is_refused(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(f"model: m\n# {'x' * MAX_SCRIPT_BYTES}\n")
    path = tmp_path / "serve.sh"
    path.write_text("vllm serve --config serve.yaml\n")
    with pytest.raises(InputError) as caught:
        judge([str(path)], Asked(versions={}))
    message = "serve.yaml is larger than 32 KiB.\nCheck that it is a configuration."
    assert str(caught.value) == f"{path}:1:21: {message}"
