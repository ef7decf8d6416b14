"""Megatron-LM's verdicts on the corpus of mutations: `python -m tests.frameworks.judge_megatron_corpus` stores them.

Needs the framework environment, and some minutes. The verdicts are data beside the corpus, so that the agreement of the
rules with them is tested without any framework; a test of this folder judges a sample again.
"""

import json
from collections.abc import Sequence

from tests.corpora.megatron_bases import NOT_BUILT
from tests.corpora.megatron_mutations import Mutation
from tests.corpora.megatron_verdicts import STORED, corpus
from tests.frameworks.megatron_environment import Job, Verdict, ask_megatron

HOPPER = (9, 0)
LONGEST_ERROR = 160


def job_of(mutation: Mutation) -> Job:
    """Return what Megatron-LM is asked: every level, and the first and the last stage built where that can be."""
    (stages,) = mutation.flags.get("--pipeline-model-parallel-size", ("1",))[:1] or ("1",)
    last = int(stages) - 1 if stages.isdecimal() else 0
    built = {0, last} if mutation.base.name not in NOT_BUILT else set()
    return Job(
        arguments=mutation.words,
        environment=mutation.environment,
        world_size=mutation.base.world_size,
        gpus_per_node=mutation.base.gpus_per_node,
        capability=HOPPER,
        pipeline_ranks=tuple(sorted(built - {-1})),
    )


def stored_verdict(mutation: Mutation, verdict: Verdict) -> dict[str, str]:
    """Return what is kept of a verdict."""
    error = " ".join(verdict.error.split())[:LONGEST_ERROR]
    return {"run": mutation.name, "failed_level": verdict.failed_level, "error": error}


def judged(runs: Sequence[Mutation]) -> list[dict[str, str]]:
    """Return what is kept of the verdicts on runs."""
    verdicts = ask_megatron([job_of(mutation) for mutation in runs])
    return [stored_verdict(mutation, verdict) for mutation, verdict in zip(runs, verdicts, strict=True)]


def main() -> None:
    """Judge the corpus and its bases, and store the verdicts."""
    lines = ",\n".join(json.dumps(verdict) for verdict in judged(corpus()))
    STORED.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
