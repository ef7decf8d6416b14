"""The rules agree with vLLM's own verdicts on commands that differ from sound ones in one flag.

The verdicts are stored beside the corpus; `python -m tests.frameworks.judge_vllm_corpus` makes them, and a test of
`tests/frameworks` judges a sample again.
"""

from collections.abc import Mapping

import pytest

from planner.rules.registry import all_rules
from planner.rules.rule import Finding
from tests.corpora.vllm_bases import bases
from tests.corpora.vllm_mutations import DEGREES, SWITCHES, Mutation, unchanged
from tests.corpora.vllm_verdicts import COUNT, SEEN_BY_VLLM, corpus, errors_of, mutations, stored_verdicts

LEAST_AGREEMENT = 0.97
MESH = {flag for flag in DEGREES if not flag.startswith("--max-")}
LAYOUT_FLAGS = frozenset({*MESH, *SWITCHES, "-tp", "-pp", "--eplb-config", "--data-parallel-address"})
"""Flags that say how a server is laid out over its GPUs."""

STRICTER: Mapping[str, str] = {
    "S005": "a second word behind a key of the file is taken for the model, which the judge knows already",
}
"""Rules on what vLLM's parser refuses, that find more than what is judged."""

Findings = Mapping[str, tuple[Finding, ...]]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """Return the errors that we find in every command of the corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    return {mutation.name: errors_of(mutation, folder) for mutation in corpus()}


def is_early(finding: Finding) -> bool:
    """Return whether vLLM would see it at a level that is judged; key/value heads of a rank are asked for there too."""
    return (finding.found_at in SEEN_BY_VLLM and finding.rule_id not in STRICTER) or finding.rule_id == "VLL103"


def mutated() -> tuple[Mutation, ...]:
    """Return both halves of the corpus."""
    return (*mutations(near=True), *mutations(near=False))


def test_the_corpus_is_the_one_that_was_judged() -> None:
    judged = {mutation.name for mutation in corpus()}
    assert judged <= set(stored_verdicts())
    assert [len(mutations(near=near)) for near in (True, False)] == [COUNT // 2, COUNT // 2]
    refused = sum(bool(stored_verdicts()[mutation.name].failed_level) for mutation in mutated())
    assert COUNT // 4 < refused < COUNT * 3 // 4


@pytest.mark.parametrize("name", [unchanged(base).name for base in bases()])
def test_a_base_is_sound_for_both(name: str, findings: Findings) -> None:
    assert stored_verdicts()[name].failed_level == ""
    assert findings[name] == ()


def test_the_rules_agree_with_vllm(findings: Findings) -> None:
    differing = {}
    for mutation in mutated():
        verdict, found = stored_verdicts()[mutation.name], findings[mutation.name]
        if verdict.failed_level and not found:
            differing[mutation.name] = verdict.error
        elif not verdict.failed_level and any(is_early(finding) for finding in found):
            differing[mutation.name] = f"taken; we say {[finding.rule_id for finding in found]}"
    assert len(differing) <= (1 - LEAST_AGREEMENT) * COUNT, differing


def test_what_is_found_later_is_named(findings: Findings) -> None:
    """What vLLM takes and the rules do not: each shows only when workers start, or never."""
    taken = (mutation for mutation in mutated() if not stored_verdicts()[mutation.name].failed_level)
    later = {finding.rule_id for mutation in taken for finding in findings[mutation.name]}
    assert {rule: all_rules()[rule].name for rule in sorted(later - set(STRICTER))} == {
        "VLL131": "local-replicas-fit-the-node",
        "VLL305": "experts-divisible",
    }
    assert set(STRICTER) <= later
    assert all(all_rules()[rule].found_at not in SEEN_BY_VLLM for rule in later - set(STRICTER))


def test_no_invalid_layout_is_called_valid(findings: Findings) -> None:
    missed = {
        mutation.name: stored_verdicts()[mutation.name].error
        for mutation in mutated()
        if mutation.flag in LAYOUT_FLAGS
        and stored_verdicts()[mutation.name].failed_level
        and not findings[mutation.name]
    }
    assert missed == {}
