"""Every DeepSpeed rule has a configuration that breaks it and nothing else, and the sound ones break none."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError
from planner.readers.deepspeed_run import DeepSpeedRun, parse_deepspeed, read_deepspeed_runs
from planner.readers.flag_tables import Framework
from planner.readers.key_tables import KeySpec, key_table
from planner.rules.registry import rules_of
from planner.rules.rule import Finding, Severity
from planner.validation.judge import Judged, judge, judged_text
from planner.validation.source import Asked
from tests.unit.rules.deepspeed_cases import CASES, FILE, NATIVE, SOUND, SOUND_CASES, Case, case

EXAMPLES = Path(__file__).parents[3] / "examples"
NOBODY = Asked(versions={})
STAGE_KEY = "zero_optimization.stage"
OURS = "torchrun --nnodes 2 --nproc-per-node 8 train_deepspeed.py"


def judged(asked: Case) -> Judged:
    """Return what is wrong with a case."""
    return judged_text(asked.text, asked.runs, file=FILE)


def found(asked: Case) -> set[str]:
    """Return the rules that a case breaks."""
    return {finding.rule_id for finding in judged(asked).findings}


def only(asked: Case) -> Finding:
    """Return the one finding of a case."""
    (finding,) = judged(asked).findings
    return finding


@pytest.mark.parametrize("rule_id", CASES)
def test_the_case_of_a_rule_breaks_only_it(rule_id: str) -> None:
    assert found(CASES[rule_id]) == {rule_id}


@pytest.mark.parametrize("name", SOUND_CASES)
def test_sound_configurations_break_nothing(name: str) -> None:
    assert found(SOUND_CASES[name]) == set()


@pytest.mark.parametrize("rule_id", [rule_id for rule_id, asked in CASES.items() if rule_id.startswith("DSP")])
def test_what_is_found_says_where_it_stands(rule_id: str) -> None:
    for finding in judged(CASES[rule_id]).findings:
        assert finding.found.place.file == FILE
        assert finding.found.place.line is not None
        assert finding.found.message.endswith(".")
        assert finding.found.hint.endswith((".", "?"))


def test_a_fix_replaces_what_stands_there_and_mends_it() -> None:
    mended = 0
    for rule_id, asked in CASES.items():
        for finding in judged(asked).findings:
            fix = finding.found.fix
            if fix is None:
                continue
            assert fix.location.line is not None
            assert fix.location.column is not None
            lines = asked.text.splitlines()
            line, start = lines[fix.location.line - 1], fix.location.column - 1
            assert line[start : start + len(fix.old)] == fix.old, rule_id
            lines[fix.location.line - 1] = line[:start] + fix.new + line[start + len(fix.old) :]
            runs = read("\n".join(lines), asked)
            left = judged_text("\n".join(lines), runs, file=FILE).findings
            assert rule_id not in {finding.rule_id for finding in left}
            mended += 1
    assert mended >= 10


def read(text: str, asked: Case) -> tuple[DeepSpeedRun, ...]:
    """Return the runs of another text under the command of a case."""
    launches = [(run.launch, "") for run in asked.runs if run.launch is not None]
    return read_deepspeed_runs(
        parse_deepspeed(text, file=FILE), launches, version=asked.version, num_gpus=asked.gpus, gpus_per_node=8
    )


def test_there_are_rules_for_each_version() -> None:
    numbers = {version: len(rules_of(Framework.DEEPSPEED, version)) for version in ("0.17.6", "0.18.9", "0.19.8")}
    assert numbers["0.19.8"] >= 70
    assert {rule.id for rule in rules_of(Framework.DEEPSPEED, "0.18.9")} >= {"DSP109", "DSP113"}
    assert not {rule.id for rule in rules_of(Framework.DEEPSPEED, "0.19.8")} & {"DSP109", "DSP113"}


def test_what_only_a_run_could_tell_is_not_decided() -> None:
    undecided = {(one.rule_id, one.what) for one in judged(case({STAGE_KEY: "auto"}, gpus=None)).undecided}
    assert ("DSP801", "the number of GPUs") in undecided
    assert ("DSP502", "zero_optimization.stage") not in undecided
    assert ("DSP507", "zero_optimization.stage") in undecided


def test_the_batch_is_wrong_whatever_the_number_of_gpus() -> None:
    finding = only(case({"train_batch_size": 130}, gpus=None))
    assert finding.found.message == (
        "train_batch_size 130 is no multiple of micro-batch x accumulation steps = 8, whatever the number of GPUs."
    )


def test_the_batch_is_a_product() -> None:
    finding = only(case({"train_batch_size": 130}))
    assert finding.found.message == ("train_batch_size 130 is not micro-batch 2 x accumulation 4 x 16 replicas = 128.")
    assert finding.found.hint == "train_batch_size 128 or 256 would do, or leave out gradient_accumulation_steps."
    assert finding.found.place.path == "train_batch_size"


def test_the_batch_of_autotp_is_open_without_the_program() -> None:
    autotp = {"tensor_parallel": {"autotp_size": 2}, "train_batch_size": 64}
    alone = judged(case(autotp))
    assert (alone.findings, [one.rule_id for one in alone.undecided]) == ((), ["DSP801"])
    assert found(case(autotp, command=NATIVE)) == {"DSP801"}
    ours = Case(changed=autotp, command=f"--deepspeed-config {FILE} --layers-per-stage 32", launcher=OURS)
    assert found(ours) == set()


def test_messages_name_the_nearest_key_and_where_it_belongs() -> None:
    near = only(case({"zero_optimisation": {"stage": 3}}))
    assert near.found.message == "DeepSpeed 0.19.8 has no key `zero_optimisation` at the top, and ignores it."
    assert near.found.hint == "Did you mean zero_optimization?"
    elsewhere = only(case({"reduce_bucket_size": 2}))
    assert (elsewhere.rule_id, elsewhere.found.hint) == ("S031", "It belongs into `zero_optimization`.")
    later = only(case({"log_level": "info"}, version="0.18.9"))
    assert later.found.hint == "DeepSpeed 0.19.8 has it; remove it, or judge for that version."
    removed = only(CASES["S034"])
    assert removed.found.message == "DeepSpeed 0.19.8 refuses the key `sparse_gradients`, which it no longer has."


def test_emitted_configurations_break_nothing() -> None:
    configurations = sorted(EXAMPLES.glob("*/expected/ds_config.json"))
    assert configurations
    for configuration in configurations:
        for names in ([configuration.parent / "launch.sh"], [configuration], [configuration.parent / "job.sbatch"]):
            result = judge([str(name) for name in names], NOBODY)
            assert (result.findings, result.undecided) == ((), ())
            assert str(configuration) in result.files


def test_a_script_brings_its_configuration(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(case().text, encoding="utf-8")
    script = tmp_path / "run.sh"
    script.write_text(f"deepspeed --num_gpus=8 train.py --deepspeed_config {FILE}\n", encoding="utf-8")
    result = judge([str(script)], NOBODY)
    assert result.files == (str(script), str(tmp_path / FILE))
    assert [finding.rule_id for finding in result.findings] == ["DSP801"]
    assert judge([str(tmp_path / FILE)], NOBODY).findings == result.findings
    assert judge([str(tmp_path)], NOBODY).findings == result.findings


def test_a_hostfile_tells_the_nodes(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(case().text, encoding="utf-8")
    (tmp_path / "hosts").write_text("# nodes\nworker-0 slots=8\nworker-1 slots=8\n", encoding="utf-8")
    script = tmp_path / "run.sh"
    script.write_text(f"deepspeed --hostfile hosts train.py --deepspeed_config {FILE}\n", encoding="utf-8")
    assert judge([str(script)], NOBODY).findings == ()
    script.write_text(f"deepspeed -H hosts --num_nodes 1 train.py --deepspeed_config {FILE}\n", encoding="utf-8")
    assert [finding.rule_id for finding in judge([str(script)], NOBODY).findings] == ["DSP801"]


def test_a_missing_configuration_is_said(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("deepspeed --num_gpus 8 train.py --deepspeed conf/ds.json\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        judge([str(script)], NOBODY)
    assert error.value.message == "The configuration `conf/ds.json` is not there."
    assert error.value.location is not None
    assert (error.value.location.line, error.value.location.column) == (1, 45)


def test_a_key_of_the_configuration_hides_findings() -> None:
    reason = {"DSP801": "the last node joins later"}
    hidden = judged(case({"train_batch_size": 130, "_shardwright_ignore": reason}))
    assert (hidden.findings, [finding.rule_id for finding in hidden.hidden]) == ((), ["DSP801"])
    unused = only(case({"_shardwright_ignore": {"DSP101": "none"}}))
    assert (unused.rule_id, unused.found.message) == ("SUP003", "Nothing to hide: DSP101 finds nothing here.")
    silent = judged(case({"train_batch_size": 130, "_shardwright_ignore": {"DSP801": ""}})).findings
    assert {finding.found.message for finding in silent} >= {"This comment hides nothing, because it gives no reason."}


def test_comments_and_last_commas_are_read_as_deepspeed_reads_them(tmp_path: Path) -> None:
    lines = case({"train_batch_size": 130}).text.splitlines()
    lines[0] += " // shardwright: ignore-file[DSP804] none"
    lines[1] += "  # shardwright: ignore[DSP801] the scheduler rounds"
    lines[-2] += ","
    path = tmp_path / FILE
    path.write_text("\n".join(lines), encoding="utf-8")
    result = judge([str(path)], Asked(versions={}, num_gpus=16, gpus_per_node=8))
    assert [finding.rule_id for finding in result.hidden] == ["DSP801"]
    assert [finding.rule_id for finding in result.findings] == ["SUP003"]


def test_other_json_is_nothing_of_deepspeed(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"name": "x", "scripts": {}, "checkpoint": 1}', encoding="utf-8")
    assert judge([str(tmp_path)], NOBODY).skipped == (str(tmp_path / "package.json"),)


def test_sound_is_what_the_cases_start_from() -> None:
    assert SOUND["train_batch_size"] == 2 * 4 * 16
    assert all(finding.severity is Severity.ERROR for finding in judged(CASES["DSP801"]).findings)


ODD_VALUES: tuple[Any, ...] = (None, True, 0, -1, 7, 10**25, 0.5, 1e300, "auto", "", "5e8", [], ["a"], {}, {"stage": 3})


def test_no_value_of_any_kind_stops_a_rule() -> None:
    chance = random.Random(20261122)
    paths = list(paths_of(key_table("0.19.8").keys))
    for asked in chance.sample(list(CASES.values()), 60):
        for _ in range(4):
            path = chance.choice(paths)
            judged(replace(asked, changed={**asked.changed, ".".join(path): chance.choice(ODD_VALUES)}))


def paths_of(keys: Mapping[str, KeySpec]) -> Iterator[tuple[str, ...]]:
    """Yield keys at the top and in their sections."""
    for name, spec in keys.items():
        yield (name,)
        yield from ((name, inner) for inner in spec.section or {})
