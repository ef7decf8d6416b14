"""Our verdicts on the corpus, and Megatron-LM's own, which are stored."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from planner.readers.flag_tables import Framework
from planner.rules.rule import Finding, FoundAt, Severity
from planner.validation.judge import judged_text
from planner.validation.source import Asked
from planner.validation.sources import read_source
from tests.corpora.megatron_bases import bases
from tests.corpora.megatron_mutations import VERSION, Mutation, mutations, unchanged

STORED = Path(__file__).parent / f"megatron-{VERSION}.json"

SEEN_BY_MEGATRON = frozenset({FoundAt.PARSE, FoundAt.START, FoundAt.BUILD})
"""What stops a run before its first step; the levels that are judged show it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Megatron-LM's verdict: the level that failed, nothing if none did, and its words."""

    failed_level: str
    error: str


def corpus() -> tuple[Mutation, ...]:
    """Return the bases and everything that is made of them."""
    return (*(unchanged(base) for base in bases()), *mutations())


def stored_verdicts() -> Mapping[str, Stored]:
    """Return the verdicts by the name of the run."""
    entries = json.loads(STORED.read_text(encoding="utf-8"))
    return {entry["run"]: Stored(failed_level=entry["failed_level"], error=entry["error"]) for entry in entries}


def script_of(mutation: Mutation) -> str:
    """Return the launch script of a run."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in mutation.environment.items())
    launcher = f"torchrun --nnodes {mutation.base.num_nodes} --nproc-per-node {mutation.base.gpus_per_node}"
    return f"{exports}{launcher} pretrain_gpt.py {shlex.join(mutation.words)}\n"


def errors_of(mutation: Mutation) -> tuple[Finding, ...]:
    """Return what we say is wrong with a run, warnings left out."""
    text = script_of(mutation)
    source = read_source(text, file="train.sh", asked=Asked(versions={Framework.MEGATRON: VERSION}))
    findings = judged_text(text, source.runs, file="train.sh").findings
    return tuple(finding for finding in findings if finding.severity is Severity.ERROR)
