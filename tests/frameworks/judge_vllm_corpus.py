"""vLLM's verdicts on the corpus of mutations: `python -m tests.frameworks.judge_vllm_corpus` stores them.

Needs vLLM's environment, and some minutes. A command that could not be judged is stored as such, and the next one of
its half takes its place. The verdicts are data beside the corpus, so that the agreement of the rules with them is
tested without any framework; a test of this folder judges a sample again.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from tests.corpora.vllm_bases import bases
from tests.corpora.vllm_mutations import Mutation, drawn, unchanged
from tests.corpora.vllm_verdicts import COUNT, GPUS_PER_NODE, NOT_JUDGED, STORED
from tests.frameworks.vllm_environment import Job, ask_vllm

PUBLISHED = Path(__file__).parents[1] / "unit" / "planner" / "published_configs.jsonl"
LONGEST_ERROR = 200
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""What differs from process to process."""


@cache
def models() -> dict[str, dict[str, Any]]:
    """Return the published config.json of each bundled model."""
    rows = [json.loads(line) for line in PUBLISHED.read_text(encoding="utf-8").splitlines()]
    return {row["bundled"]: row["config"] for row in rows}


def job_of(mutation: Mutation) -> Job:
    """Return what vLLM is asked."""
    return Job(
        arguments=mutation.words,
        config_text=mutation.config_text,
        model=models()[mutation.base.model],
        gpus_per_node=GPUS_PER_NODE,
    )


def judged(runs: Sequence[Mutation]) -> list[dict[str, str]]:
    """Return what is kept of the verdicts on commands."""
    return [
        {
            "run": run.name,
            "failed_level": verdict.failed_level,
            "error": ADDRESS.sub("", " ".join(verdict.error.split()))[:LONGEST_ERROR],
        }
        for run, verdict in zip(runs, ask_vllm([job_of(run) for run in runs]), strict=True)
    ]


def main() -> None:
    """Judge the bases and both halves of the corpus, and store the verdicts."""
    stored = judged([unchanged(base) for base in bases()])
    for near in (True, False):
        stream, missing = drawn(near=near), COUNT // 2
        while missing:
            found = judged(list(islice(stream, missing)))
            missing = sum(verdict["failed_level"] == NOT_JUDGED for verdict in found)
            stored += found
    lines = ",\n".join(json.dumps(verdict) for verdict in stored)
    STORED.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
