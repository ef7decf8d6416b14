"""Every rule, by framework and by id. Modules are loaded when a file of their framework is judged."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from planner.readers.flag_tables import Framework
from planner.rules.rule import Rule

SPELLING = "planner.rules.spelling"
SUPPRESSION = "planner.rules.suppression"

MODULES: Mapping[Framework, tuple[str, ...]] = {
    Framework.MEGATRON: (
        "planner.rules.megatron_mesh",
        "planner.rules.megatron_shards",
        "planner.rules.megatron_pipeline",
        "planner.rules.megatron_hybrid",
        "planner.rules.megatron_experts",
        "planner.rules.megatron_dispatch",
        "planner.rules.megatron_sequence",
        "planner.rules.megatron_attention",
        "planner.rules.megatron_optimizer",
        "planner.rules.megatron_fsdp",
        "planner.rules.megatron_recompute",
        "planner.rules.megatron_graphs",
        "planner.rules.megatron_precision",
        "planner.rules.megatron_kernels",
        "planner.rules.megatron_batches",
        "planner.rules.megatron_training",
        "planner.rules.megatron_reinforcement",
    ),
    Framework.DEEPSPEED: (
        "planner.rules.deepspeed_keys",
        "planner.rules.deepspeed_mesh",
        "planner.rules.deepspeed_pipeline",
        "planner.rules.deepspeed_zero",
        "planner.rules.deepspeed_offload",
        "planner.rules.deepspeed_partial_offload",
        "planner.rules.deepspeed_precision",
        "planner.rules.deepspeed_batch",
        "planner.rules.deepspeed_optimizer",
    ),
    Framework.VLLM: (
        "planner.rules.vllm_mesh",
        "planner.rules.vllm_nodes",
        "planner.rules.vllm_experts",
        "planner.rules.vllm_engine",
        "planner.rules.vllm_sections",
    ),
}
"""Modules whose `RULES` look at a run of each framework."""

PRICED = "planner.rules.priced"
SERVED_MEMORY = "planner.rules.served_memory"
HELD_AGAINST_LOCK = "planner.rules.held_against_lock"
SERVED_AGAINST_LOCK = "planner.rules.served_against_lock"

OWN_FILES = "planner.rules.own_files"

UNREAD_FILES = "planner.rules.unread_files"

OTHER_MODULES = (
    SPELLING,
    SUPPRESSION,
    PRICED,
    SERVED_MEMORY,
    HELD_AGAINST_LOCK,
    SERVED_AGAINST_LOCK,
    OWN_FILES,
    UNREAD_FILES,
)
"""Modules whose rules look at something else than a run."""


@cache
def rules_of(framework: Framework, version: str) -> tuple[Rule[Any], ...]:
    """Return the rules that look at a run of a framework at a version, in the order of their ids."""
    found = (rule for name in MODULES[framework] for rule in _rules(name))
    return tuple(sorted((rule for rule in found if rule.holds_for(version)), key=lambda rule: rule.id))


@cache
def spelling_rules(framework: Framework) -> tuple[Rule[Any], ...]:
    """Return the rules that look at the words of a framework's command."""
    return tuple(rule for rule in _rules(SPELLING) if framework in rule.frameworks)


@cache
def priced_rules(framework: Framework) -> tuple[Rule[Any], ...]:
    """Return the rules that look at a priced run of a framework."""
    name = SERVED_MEMORY if framework is Framework.VLLM else PRICED
    return tuple(rule for rule in _rules(name) if framework in rule.frameworks)


@cache
def lock_rules(framework: Framework) -> tuple[Rule[Any], ...]:
    """Return the rules that hold a run of a framework against a lock."""
    name = SERVED_AGAINST_LOCK if framework is Framework.VLLM else HELD_AGAINST_LOCK
    return tuple(rule for rule in _rules(name) if framework in rule.frameworks)


@cache
def own_rules() -> tuple[Rule[Any], ...]:
    """Return the rules that look at specs and plans of our own."""
    return tuple(_rules(OWN_FILES))


@cache
def unread_rules() -> tuple[Rule[Any], ...]:
    """Return the rules that look at files that cannot be read."""
    return tuple(_rules(UNREAD_FILES))


@cache
def all_rules() -> Mapping[str, Rule[Any]]:
    """Return every rule by its id, in the order of the ids."""
    found = (rule for rules in rules_by_subject().values() for rule in rules)
    return {rule.id: rule for rule in sorted(found, key=lambda rule: rule.id)}


@cache
def rules_by_subject() -> Mapping[str, tuple[Rule[Any], ...]]:
    """Return the rules under the subject of their module, which the first line of its docstring says."""
    names = dict.fromkeys((*OTHER_MODULES, *(name for modules in MODULES.values() for name in modules)))
    return {_subject(name): tuple(sorted(_rules(name), key=lambda rule: rule.id)) for name in names}


def _subject(name: str) -> str:
    return (import_module(name).__doc__ or name).splitlines()[0].rstrip(".")


def _rules(name: str) -> Iterator[Rule[Any]]:
    yield from import_module(name).RULES
