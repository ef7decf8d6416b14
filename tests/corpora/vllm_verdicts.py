"""Our verdicts on the corpus, and vLLM's own, which are stored."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from planner.readers.flag_tables import Framework
from planner.rules.rule import Finding, FoundAt, Severity
from planner.validation.judge import judged_text
from planner.validation.source import Asked
from planner.validation.sources import read_source
from tests.corpora.vllm_bases import bases
from tests.corpora.vllm_mutations import VERSION, Mutation, drawn, unchanged

STORED = Path(__file__).parent / f"vllm-{VERSION}.json"
COUNT = 400
GPUS_PER_NODE = 8
NOT_JUDGED = "not_judged"

SEEN_BY_VLLM = frozenset({FoundAt.PARSE, FoundAt.START})
"""What stops a server before its workers start: the levels that are judged show it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """vLLM's verdict: the level that failed, nothing if none did, and its words."""

    failed_level: str
    error: str


@cache
def stored_verdicts() -> Mapping[str, Stored]:
    """Return the verdicts by the name of the command, those that could not be judged among them."""
    entries = json.loads(STORED.read_text(encoding="utf-8"))
    return {entry["run"]: Stored(failed_level=entry["failed_level"], error=entry["error"]) for entry in entries}


@cache
def mutations(*, near: bool) -> tuple[Mutation, ...]:
    """Return one half of the corpus: the first that vLLM could judge."""
    verdicts = stored_verdicts()
    judged = (mutation for mutation in drawn(near=near) if verdicts[mutation.name].failed_level != NOT_JUDGED)
    return tuple(islice(judged, COUNT // 2))


def corpus() -> tuple[Mutation, ...]:
    """Return the bases and everything that is made of them."""
    return (*(unchanged(base) for base in bases()), *mutations(near=True), *mutations(near=False))


def errors_of(mutation: Mutation, folder: Path) -> tuple[Finding, ...]:
    """Return what we say is wrong with a command, warnings left out; its files stand in a folder."""
    if mutation.config_text is not None:
        (folder / "serve.yaml").write_text(mutation.config_text, encoding="utf-8")
    text = f"vllm serve {shlex.join(mutation.words)}\n"
    file = str(folder / "serve.sh")
    asked = Asked(versions={Framework.VLLM: VERSION}, gpus_per_node=GPUS_PER_NODE)
    source = read_source(text, file=file, asked=asked)
    findings = judged_text(text, source.runs, file=file).findings
    return tuple(finding for finding in findings if finding.severity is Severity.ERROR)
