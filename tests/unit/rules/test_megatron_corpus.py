"""The rules agree with Megatron-LM's own verdicts on runs that differ from sound ones in one flag.

The verdicts are stored beside the corpus; `python -m tests.frameworks.judge_megatron_corpus` makes them, and a test of
`tests/frameworks` judges a sample again.
"""

from collections.abc import Mapping
from functools import cache

import pytest

from planner.rules.registry import all_rules
from tests.corpora.megatron_bases import bases
from tests.corpora.megatron_mutations import COUNT, DEGREES, Mutation, mutations, unchanged
from tests.corpora.megatron_verdicts import SEEN_BY_MEGATRON, corpus, errors_of, stored_verdicts

LEAST_AGREEMENT = 0.97

LAYOUT_FLAGS = frozenset(
    {
        *DEGREES,
        "--pipeline-model-parallel-layout",
        "--hybrid-layer-pattern",
        "--hierarchical-context-parallel-sizes",
        "--cp-comm-type",
        "--sequence-parallel",
        "--account-for-embedding-in-pipeline-split",
        "--account-for-loss-in-pipeline-split",
        "--use-tp-pp-dp-mapping",
        "--moe-layer-freq",
        "--moe-ffn-hidden-size",
        "--ffn-hidden-size",
        "--hidden-size",
        "--kv-channels",
        "--group-query-attention",
        "--moe-token-dispatcher-type",
        "--use-distributed-optimizer",
        "--use-megatron-fsdp",
        "--use-torch-fsdp2",
    }
)
"""Flags that say how a run is laid out over its GPUs."""

UNSEEN: Mapping[str, str] = {
    "MLM106": "the layers of Transformer Engine are stood in for, and take any width",
    "MLM729": "some bases are not built, because nothing stands in for their kernels",
    "MLM805": "the schedule of the learning rate is made on a GPU",
    "MLM807": "the schedule of the learning rate is made on a GPU",
}
"""Rules about what Megatron-LM checks before the first step, beyond what is judged without a GPU."""


@cache
def said(mutation_name: str) -> frozenset[str]:
    """Return the rules that a run of the corpus breaks."""
    return frozenset(finding.rule_id for finding in errors_of(corpus_by_name()[mutation_name]))


@cache
def corpus_by_name() -> Mapping[str, Mutation]:
    """Return the bases and the mutations by name."""
    return {mutation.name: mutation for mutation in corpus()}


def test_each_run_has_its_stored_verdict() -> None:
    assert len(mutations()) == COUNT
    assert list(stored_verdicts()) == list(corpus_by_name())


def test_the_rules_agree_with_megatron() -> None:
    verdicts = stored_verdicts()
    differing = [name for name, verdict in verdicts.items() if bool(said(name)) != bool(verdict.failed_level)]
    assert len(differing) <= (1 - LEAST_AGREEMENT) * len(verdicts), differing


@pytest.mark.parametrize("name", [unchanged(base).name for base in bases()])
def test_a_base_is_sound_for_both(name: str) -> None:
    assert stored_verdicts()[name].failed_level == ""
    assert said(name) == frozenset()


def test_no_invalid_layout_is_called_valid() -> None:
    missed = [
        (name, verdict.error)
        for name, verdict in stored_verdicts().items()
        if verdict.failed_level and corpus_by_name()[name].flag in LAYOUT_FLAGS and not said(name)
    ]
    assert missed == []


def test_where_the_rules_are_stricter_megatron_finds_it_later() -> None:
    for name, verdict in stored_verdicts().items():
        if not verdict.failed_level:
            early = {rule for rule in said(name) if all_rules()[rule].found_at in SEEN_BY_MEGATRON}
            assert early <= set(UNSEEN), name


def test_what_is_found_later_is_named() -> None:
    """The corpus shows what a run would only find at a step, or never."""
    found: set[str] = set()
    for name, verdict in stored_verdicts().items():
        found |= set() if verdict.failed_level else set(said(name))
    assert {rule: all_rules()[rule].name for rule in sorted(found)} == {
        "MLM106": "widths-divisible",
        "MLM406": "heads-over-context",
        "MLM729": "probability-of-dropout",
        "MLM807": "learning-rate-schedule",
        "MLM813": "no-log-interval",
    }
