"""Every rule, by framework and by id. Modules are loaded when a file of their framework is judged."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from planner.readers.flag_tables import Framework
from planner.rules.rule import Rule

SPELLING = "planner.rules.spelling"

MODULES: Mapping[Framework, tuple[str, ...]] = {
    Framework.MEGATRON: (
        "planner.rules.megatron_mesh",
        "planner.rules.megatron_pipeline",
        "planner.rules.megatron_hybrid",
        "planner.rules.megatron_experts",
        "planner.rules.megatron_sequence",
        "planner.rules.megatron_optimizer",
        "planner.rules.megatron_recompute",
        "planner.rules.megatron_precision",
        "planner.rules.megatron_training",
    ),
    Framework.DEEPSPEED: (),
    Framework.VLLM: (),
}
"""Modules whose `RULES` look at a run of each framework."""

OTHER_MODULES = (SPELLING,)
"""Modules whose rules look at something else than a run."""


@cache
def rules_of(framework: Framework, version: str) -> tuple[Rule[Any], ...]:
    """Return the rules that look at a run of a framework at a version."""
    found = (rule for name in MODULES[framework] for rule in _rules(name))
    return tuple(rule for rule in found if rule.holds_for(version))


@cache
def spelling_rules(framework: Framework) -> tuple[Rule[Any], ...]:
    """Return the rules that look at the words of a framework's command."""
    return tuple(rule for rule in _rules(SPELLING) if framework in rule.frameworks)


@cache
def all_rules() -> Mapping[str, Rule[Any]]:
    """Return every rule by its id, in the order of the ids."""
    names = dict.fromkeys((*OTHER_MODULES, *(name for modules in MODULES.values() for name in modules)))
    return {rule.id: rule for rule in sorted((rule for name in names for rule in _rules(name)), key=lambda r: r.id)}


def _rules(name: str) -> Iterator[Rule[Any]]:
    yield from import_module(name).RULES
