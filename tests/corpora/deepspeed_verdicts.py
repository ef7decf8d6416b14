"""Our verdicts on the corpus, and DeepSpeed's own, which are stored."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from planner.emit.deepspeed import CONFIG_FILE
from planner.readers.deepspeed_launch import read_deepspeed_launches
from planner.readers.deepspeed_run import parse_deepspeed, read_deepspeed_runs
from planner.rules.rule import Finding
from planner.validation.judge import judged_text
from tests.corpora.deepspeed_bases import NODE_GPUS, bases
from tests.corpora.deepspeed_mutations import VERSION, Mutation, mutations, unchanged

STORED = Path(__file__).parent / f"deepspeed-{VERSION}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """DeepSpeed's verdict.

    Args:
        error: Why its configuration object refuses it; nothing where it takes it.
        ignored: Keys at the top that it did not look at.
    """

    error: str
    ignored: tuple[str, ...]


def corpus() -> tuple[Mutation, ...]:
    """Return the sound configurations and everything that is made of them."""
    return (*(unchanged(base) for base in bases()), *mutations())


@cache
def stored_verdicts() -> Mapping[str, Stored]:
    """Return the verdicts by the name of the configuration."""
    entries = json.loads(STORED.read_text(encoding="utf-8"))
    return {entry["run"]: Stored(error=entry["error"], ignored=tuple(entry["ignored"])) for entry in entries}


def findings_of(mutation: Mutation) -> tuple[Finding, ...]:
    """Return what we say is wrong with a configuration."""
    text = json.dumps(mutation.config, indent=1)
    launches = read_deepspeed_launches(f"{mutation.base.launcher}\n", file="train.sh")
    runs = read_deepspeed_runs(
        parse_deepspeed(text, file=CONFIG_FILE),
        [(launch, "") for launch in launches],
        version=VERSION,
        num_gpus=mutation.base.world,
        gpus_per_node=NODE_GPUS,
    )
    return judged_text(text, runs, file=CONFIG_FILE).findings
