"""What the Megatron-LM rules say, where they are silent, and that their changes mend what they name."""

from pathlib import Path
from typing import Any

import pytest

from planner.readers.flag_tables import Framework, versions
from planner.rules.registry import all_rules, rules_of
from planner.rules.rule import Finding, Rule, listed, nearest_divisors, nearest_multiples
from planner.validation.judge import Judged, judged_text
from planner.validation.source import Asked
from planner.validation.sources import read_source
from tests.corpora.megatron_bases import Base, bases
from tests.corpora.megatron_mutations import unchanged
from tests.corpora.megatron_verdicts import script_of
from tests.unit.rules.megatron_cases import CASES, having, script

EXAMPLES = Path(__file__).parents[3] / "examples"
EMITTED = sorted(
    str(path.relative_to(EXAMPLES))
    for path in EXAMPLES.glob("*/expected/*")
    if path.name in {"launch.sh", "job.sbatch"} and "pretrain_" in path.read_text(encoding="utf-8")
)


def judged(text: str, *, file: str = "train.sh", version: str | None = None) -> Judged:
    """Return what is said of a text."""
    asked = Asked(versions={Framework.MEGATRON: version} if version else {})
    return judged_text(text, read_source(text, file=file, asked=asked).runs, file=file)


def only(text: str, *, version: str | None = None) -> Finding:
    """Return the one thing that is said of a text."""
    (finding,) = judged(text, version=version).findings
    return finding


def test_there_are_emitted_scripts() -> None:
    assert len(EMITTED) >= 10


@pytest.mark.parametrize("path", EMITTED)
def test_what_the_planner_writes_breaks_nothing(path: str) -> None:
    found = judged((EXAMPLES / path).read_text(encoding="utf-8"), file=path)
    assert (found.findings, found.undecided) == ((), ())


@pytest.mark.parametrize("base", bases(), ids=lambda base: base.name)
def test_sound_runs_of_several_kinds_break_nothing(base: Base) -> None:
    found = judged(script_of(unchanged(base)))
    assert (found.findings, found.undecided) == ((), ())


@pytest.mark.parametrize("version", versions(Framework.MEGATRON))
def test_each_version_has_its_rules(version: str) -> None:
    assert judged(script(), version=version).findings == ()
    assert len(rules_of(Framework.MEGATRON, version)) > 150


def test_rules_of_two_versions_do_not_hold_at_once() -> None:
    newest, oldest = (
        {rule.id for rule in rules_of(Framework.MEGATRON, version)}
        for version in (versions(Framework.MEGATRON)[0], versions(Framework.MEGATRON)[-1])
    )
    assert {"MLM803", "MLM321"} <= newest - oldest
    assert {"MLM833", "MLM335"} <= oldest - newest


def test_messages_give_the_numbers_and_what_would_do() -> None:
    said = only(script(num_layers="31")).found
    assert said.message == "pp 2 does not divide 31 layers."
    assert said.hint == "pp 1 would do, 30 or 32 layers, or --pipeline-model-parallel-layout."
    assert (said.place.line, said.place.column) == (10, 5)


def test_a_demand_names_both_sides() -> None:
    said = only(having("--overlap-param-gather")).found
    assert said.message == "--overlap-param-gather needs --overlap-grad-reduce."
    assert said.hint == "Give --overlap-grad-reduce, or leave out --overlap-param-gather."


def test_a_demand_names_what_holds_of_several_things() -> None:
    said = only(CASES["MLM504"]).found
    assert said.message == "--use-torch-fsdp2 and CUDA_DEVICE_MAX_CONNECTIONS=1 exclude each other."


def test_the_expert_mesh_is_told_with_degrees_that_fit() -> None:
    said = only(having("--num-experts 16 --expert-model-parallel-size 8 --disable-bias-linear")).found
    assert said.message == "16 GPUs are not a multiple of etp 2 x ep 8 x pp 2 = 32."
    assert said.hint == "ep 4, 2 or 1 would do, or etp 1 with ep 8, 4 or 2."


def test_interleaved_micro_batches_are_told_with_batches_that_fit() -> None:
    said = only(having("--num-layers-per-virtual-pipeline-stage 4 --global-batch-size 12")).found
    assert said.message == "3 micro-batches in groups of 2 leave 1, fewer than pp 2."
    assert said.hint == "A global batch of 8 or 16 would do."


def test_a_removed_flag_is_named_with_its_versions() -> None:
    said = only(script(use_legacy_models=None)).found
    assert said.message == "Megatron-LM 0.19.2 has no flag `--use-legacy-models`; 0.17.1 has it."
    assert said.hint.startswith("It is gone since 0.17.1.")


def test_a_flag_to_come_is_named_with_its_version() -> None:
    said = only(script(override_ckpt_iteration="3"), version="0.18.2").found
    assert said.message == "Megatron-LM 0.18.2 has no flag `--override-ckpt-iteration`; 0.19.2 has it."
    assert said.hint.startswith("It comes with 0.19.2.")


def test_what_only_a_run_could_tell_is_not_decided() -> None:
    found = judged(script(tensor_model_parallel_size="$TP"))
    assert found.findings == ()
    assert {"MLM101", "MLM103", "MLM801"} <= {undecided.rule_id for undecided in found.undecided}


def test_flags_in_an_unknown_word_are_not_missed() -> None:
    text = script("--lr").replace("pretrain_gpt.py", "pretrain_gpt.py $OPTIMIZER_ARGS")
    assert ("MLM807", "$OPTIMIZER_ARGS") in {(each.rule_id, each.what) for each in judged(text).undecided}
    assert judged(text).findings == ()


def test_without_a_number_of_gpus_the_mesh_is_not_decided() -> None:
    text = script().replace("--nnodes 2 ", "--nnodes $N ")
    undecided = {each.rule_id: each.what for each in judged(text).undecided}
    assert undecided["MLM101"] == "the number of GPUs"
    assert judged(text).findings == ()


@pytest.mark.parametrize("rule", [rule for rule_id, rule in all_rules().items() if rule_id.startswith("MLM")])
def test_a_source_names_a_file_of_the_framework_or_of_what_it_stands_on(rule: Rule[Any]) -> None:
    assert any(package in rule.source for package in ("megatron/", "transformer_engine/", "torch/"))


def test_a_batch_below_zero_has_no_micro_batches() -> None:
    findings = judged(script(global_batch_size="-63")).findings
    (found,) = (finding.found for finding in findings if "is not a multiple" in finding.found.message)
    assert found.message.startswith("A global batch of -63 is not a multiple of micro-batch")
    assert found.hint is not None
    assert "a micro-batch of" not in found.hint


@pytest.mark.parametrize(("number", "wanted", "divisors"), [(12, 5, (4, 6, 3)), (1, 7, (1,)), (0, 3, ()), (-6, 2, ())])
def test_the_nearest_divisors(number: int, wanted: int, divisors: tuple[int, ...]) -> None:
    assert nearest_divisors(number, wanted) == divisors


@pytest.mark.parametrize(
    ("base", "wanted", "multiples"), [(4, 9, (8, 12)), (4, 8, (8, 12)), (4, 1, (4,)), (4, 0, (4,)), (4, -9, (4,))]
)
def test_the_nearest_multiples(base: int, wanted: int, multiples: tuple[int, ...]) -> None:
    assert nearest_multiples(base, wanted) == multiples


def test_that_there_is_no_number_is_said() -> None:
    assert [listed(numbers) for numbers in ((), (4,), (4, 8), (4, 8, 2))] == ["no number", "4", "4 or 8", "4, 8 or 2"]
