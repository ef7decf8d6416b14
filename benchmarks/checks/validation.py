"""Checks of `shardwright validate` and of what is emitted: the frameworks' own parsers, damaged files, CI."""

from benchmarks.checks.check import NOT_LONG, Check, Command, Measure, Suite
from benchmarks.checks.targets import at_most, exactly
from benchmarks.damaged_files import CASES, MOST_SECONDS
from benchmarks.hostile.attempts import INPUTS

AS_FAST = 1.1
"""What "about as fast as" is held to be: not slower by more than a tenth."""


def suite(name: str, about: str, *nodes: str, marker: str = NOT_LONG) -> Check:
    """Return a check of tests."""
    return Check(area="validation", name=name, about=about, run=Suite(nodes=nodes, marker=marker))


CHECKS = (
    suite(
        "corpora",
        "of 400 mutations for each framework at least 97 % are judged as its parser does, none invalid called valid;"
        " where more is refused, the later error is named",
        "tests/corpora",
        "tests/unit/rules/test_megatron_corpus.py",
    ),
    suite(
        "corpora-judged-again",
        "the frameworks' own parsers still say what is stored of the corpora",
        *(f"tests/frameworks/test_{framework}_corpus.py" for framework in ("megatron", "deepspeed", "vllm")),
        marker="frameworks",
    ),
    suite(
        "rules",
        "every rule is broken by an input that breaks only it, and its fix mends it",
        "tests/unit/rules",
    ),
    Check(
        area="validation",
        name="startup",
        about="validating a Megatron script takes about as long as importing numpy",
        run=Command(
            words=("-m", "benchmarks.startup", "--format", "json"),
            measures=(
                Measure(
                    name="validate over import numpy",
                    target=at_most(AS_FAST),
                    read=lambda answer: float(answer.document["validate_over_numpy"]),
                ),
            ),
        ),
    ),
    suite(
        "startup-imports", "nothing heavy is loaded for it, least of all torch", "tests/architecture/test_startup.py"
    ),
    suite(
        "emitted-files",
        "every emitted example passes its framework; two processes take a real step of DeepSpeed and of Megatron-LM",
        *(
            f"tests/frameworks/test_{name}.py"
            for name in ("examples", "vllm_emitted", "deepspeed", "megatron", "megatron_adapters")
        ),
        marker="frameworks",
    ),
    suite(
        "sarif", "findings in SARIF are valid by the public schema, and in every other form", "tests/unit/cli/findings"
    ),
    suite("ci", "the hook and the action run in a clean checkout", "tests/architecture/test_ci_kit.py"),
    suite(
        "damaged-files",
        f"{CASES:,} damaged files: no traceback, no hang, nothing written outside the output folder",
        "tests/laws/test_validate_fuzz.py",
    ),
    Check(
        area="validation",
        name="damaged-files-time",
        about="the slowest of them does not take a second",
        run=Command(
            words=("-m", "benchmarks.damaged_files", "--format", "json"),
            exits=(0, 1),
            measures=(
                Measure(name="files", target=exactly(CASES), read=lambda answer: int(answer.document["files"])),
                Measure(
                    name="processor time of the slowest",
                    target=at_most(MOST_SECONDS, "s"),
                    read=lambda answer: float(max(one["cpu_seconds"] for one in answer.document["slowest"])),
                ),
            ),
        ),
    ),
    Check(
        area="validation",
        name="hostile-inputs",
        about=f"{INPUTS:,} damaged inputs over all commands: no traceback, no hang, no file half written, none written"
        " outside the output folder",
        run=Command(
            words=("-m", "benchmarks.hostile", "--format", "json"),
            exits=(0, 1),
            measures=(
                Measure(name="inputs", target=exactly(INPUTS), read=lambda answer: int(answer.document["inputs"])),
                Measure(name="taken badly", target=exactly(0), read=lambda answer: len(answer.document["taken_badly"])),
            ),
        ),
    ),
    suite(
        "hostile-names",
        "no name or other string of a user's runs as code from an emitted script",
        *(
            f"tests/emitted/test_{name}"
            for name in (
                "megatron_in_bash.py::test_no_user_string_reaches_the_shell_as_code",
                "deepspeed.py::test_no_user_string_reaches_the_shell_as_code",
                "verification_in_bash.py::test_no_user_string_reaches_the_shell_as_code",
                "vllm.py::test_a_hostile_model_name_stays_a_name",
            )
        ),
    ),
)
