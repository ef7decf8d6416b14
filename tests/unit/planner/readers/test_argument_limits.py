"""Absurd arguments are mistakes with a message, and no rule has to work with them."""

from pathlib import Path

import pytest

from planner.errors import InputError
from planner.readers.argument_parser import MAX_INTEGER, MAX_PROPOSALS
from planner.readers.arguments import NotSaidError
from planner.readers.megatron_run import MegatronRun, read_megatron_runs
from planner.readers.named_files import is_regular_file
from planner.readers.vllm_run import MAX_LEVELS, read_vllm_runs
from planner.rules.rule import MOST_TRIED, nearest_divisors


def run_with(words: str) -> MegatronRun:
    """Return the run that a launcher with these words starts."""
    (run,) = read_megatron_runs(f"torchrun pretrain_gpt.py {words}\n", file="train.sh", version="0.19.2")
    return run


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 4000, "9" * 5000, str(MAX_INTEGER + 1)])
def test_a_number_that_torch_cannot_hold_is_a_mistake(digits: str) -> None:
    arguments = run_with(f"--num-layers {digits}").arguments
    (mistake,) = arguments.mistakes
    assert mistake.kind == "wrong-type"
    with pytest.raises(NotSaidError):
        arguments.integer("num_layers")


def test_the_largest_number_is_taken() -> None:
    arguments = run_with(f"--num-layers {MAX_INTEGER}").arguments
    assert arguments.mistakes == ()
    assert arguments.integer("num_layers") == MAX_INTEGER


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_a_number_that_is_not_finite_is_not_said(text: str) -> None:
    arguments = run_with(f"--lr={text}").arguments
    assert arguments.mistakes == ()  # the framework's parser takes it
    with pytest.raises(NotSaidError):
        arguments.number("lr")


def test_proposals_are_made_for_the_first_mistakes() -> None:
    words = " ".join(["--sequnce-parallel"] * (MAX_PROPOSALS + 5))
    proposed = [bool(mistake.nearest) for mistake in run_with(words).arguments.mistakes]
    assert proposed == [True] * MAX_PROPOSALS + [False] * 5


def test_divisors_of_a_huge_number_are_found_soon() -> None:
    assert nearest_divisors(96, 13) == (12, 16, 8)
    assert set(nearest_divisors(10**4000, 13)) <= {10, 16, 8}
    prime = 2**61 - 1
    assert nearest_divisors(prime, MOST_TRIED) == (1, prime)


@pytest.mark.parametrize(
    "words",
    [
        "--compilation-config " + "[" * 100_000,
        "--compilation-config.a " + "[" * 100_000,
        "--compilation-config" + ".a" * 20_000 + "=1",
        "--compilation-config" + ".a" * MAX_LEVELS + "=1",
        "--max-model-len " + "9" * 400 + "k",
        "--max-model-len 9e9k",
    ],
)
def test_values_that_are_nested_or_long_are_read_or_are_mistakes(words: str) -> None:
    (run,) = read_vllm_runs(f"vllm serve model {words}\n", file="serve.sh", version="0.32.0")
    assert next(given.flag.dest for given in run.arguments.given) == "model"


@pytest.mark.parametrize("named", ["/dev/zero", ".", "missing.yaml", "x" * 5000])
def test_a_configuration_that_is_no_plain_file_is_not_opened(tmp_path: Path, named: str) -> None:
    script = tmp_path / "serve.sh"
    with pytest.raises(InputError) as caught:
        read_vllm_runs(f"vllm serve --config {named}\n", file=str(script), version="0.32.0")
    assert str(caught.value) == f"{script}:1:21: {named} is no file.\nCheck the path."


def test_plain_files_are_told_from_others(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert is_regular_file(tmp_path / "file")
    assert not any(map(is_regular_file, (tmp_path, Path("/dev/null"), tmp_path / ("x" * 5000), tmp_path / "\0")))
