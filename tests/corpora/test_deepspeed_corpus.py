"""The rules say of mutated configurations what DeepSpeed says, or name what it does not see."""

import pytest

from planner.rules.rule import Finding, FoundAt, Severity
from tests.corpora.deepspeed_mutations import COUNT, Mutation, mutations
from tests.corpora.deepspeed_verdicts import corpus, findings_of, stored_verdicts

SEEN_BY_THE_CONFIGURATION = frozenset({FoundAt.PARSE, FoundAt.START})
"""What DeepSpeed's configuration object refuses; the rest shows when groups or the model are built, later, or never."""

LEAST_AGREEMENT = 0.97


@pytest.fixture(scope="module")
def findings() -> dict[str, tuple[Finding, ...]]:
    """Return what we find in every configuration of the corpus."""
    return {mutation.name: findings_of(mutation) for mutation in corpus()}


def errors(found: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return the findings that are errors."""
    return tuple(finding for finding in found if finding.severity is Severity.ERROR)


def test_the_corpus_is_the_one_that_was_judged() -> None:
    assert [mutation.name for mutation in corpus()] == list(stored_verdicts())
    near = [mutation for mutation in mutations() if mutation.near]
    assert (len(mutations()), len(near)) == (COUNT, COUNT // 2)
    refused = sum(bool(verdict.error) for verdict in stored_verdicts().values())
    assert 100 < refused < 300


def test_sound_configurations_are_sound(findings: dict[str, tuple[Finding, ...]]) -> None:
    sound = [mutation for mutation in corpus() if mutation.change == "unchanged"]
    assert {mutation.name: findings[mutation.name] for mutation in sound if findings[mutation.name]} == {}
    assert all(not stored_verdicts()[mutation.name].error for mutation in sound)


def test_the_rules_agree_with_deepspeed(findings: dict[str, tuple[Finding, ...]]) -> None:
    others = {}
    for mutation in mutations():
        refused, found = stored_verdicts()[mutation.name].error, errors(findings[mutation.name])
        seen = any(finding.found_at in SEEN_BY_THE_CONFIGURATION for finding in found)
        if (refused and not found) or (seen and not refused):
            others[mutation.name] = (refused, [finding.rule_id for finding in found])
    assert len(others) <= COUNT * (1 - LEAST_AGREEMENT), others


def test_nothing_that_deepspeed_refuses_is_called_sound(findings: dict[str, tuple[Finding, ...]]) -> None:
    refused = [mutation for mutation in mutations() if stored_verdicts()[mutation.name].error]
    assert {mutation.name for mutation in refused if not errors(findings[mutation.name])} == set()


def test_what_deepspeed_takes_and_we_do_not_says_what_would_happen(findings: dict[str, tuple[Finding, ...]]) -> None:
    """Later errors and silent effects: each with its own words, and by far more than a handful."""
    later = [
        finding
        for mutation in mutations()
        if not stored_verdicts()[mutation.name].error
        for finding in errors(findings[mutation.name])
        if finding.found_at not in SEEN_BY_THE_CONFIGURATION
    ]
    assert len(later) > 40
    assert all(finding.prevents for finding in later)
    assert {finding.found_at for finding in later} >= {FoundAt.BUILD, FoundAt.NEVER}


def test_keys_that_deepspeed_ignores_are_found_and_no_others(findings: dict[str, tuple[Finding, ...]]) -> None:
    """`DSP703` and `DSP521` speak of keys that are ignored only beside others."""
    for mutation in mutations():
        verdict = stored_verdicts()[mutation.name]
        if verdict.error:
            continue
        about_keys = {"S031", "S032", "DSP703", "DSP521"}
        said = {f.found.place.path for f in findings[mutation.name] if f.rule_id in about_keys}
        assert {path for path in said if "." not in path} == set(verdict.ignored), mutation.name


def test_a_mutation_is_one_key() -> None:
    for mutation in mutations():
        assert len(changed(mutation)) == 1, mutation.name


def changed(mutation: Mutation) -> set[str]:
    """Return the keys at the top that differ, a key that was renamed or moved counted once."""
    before, after = mutation.base.config, mutation.config
    differ = {key for key in before.keys() | after.keys() if before.get(key, ...) != after.get(key, ...)}
    gone = {key for key in differ if key not in after}
    new = {key for key in differ if key not in before}
    inside = differ - gone - new
    return inside or gone or new
