"""DeepSpeed's verdicts on the corpus of mutations: `python -m tests.frameworks.judge_deepspeed_corpus` stores them.

Needs the framework environment, and some seconds. The verdicts are data beside the corpus, so that the agreement of the
rules with them is tested without any framework; a test of this folder judges a sample again.
"""

import json
from collections.abc import Sequence

from tests.corpora.deepspeed_mutations import Mutation
from tests.corpora.deepspeed_verdicts import STORED, corpus
from tests.frameworks.deepspeed_environment import run_beside_deepspeed

LONGEST_ERROR = 160


def asked(mutation: Mutation) -> dict[str, object]:
    """Return what the oracle is asked; groups are handed over by pipeline stages, and by our own program."""
    base = mutation.base
    question: dict[str, object] = {"config": mutation.config, "world": base.world}
    if base.stages > 1:
        question["dp"] = base.world // base.stages
    return question


def judged(runs: Sequence[Mutation]) -> list[dict[str, object]]:
    """Return what is kept of DeepSpeed's verdicts."""
    answers = run_beside_deepspeed("tests.frameworks.deepspeed_oracle", [asked(run) for run in runs], jobs=1)
    return [
        {
            "run": run.name,
            "error": " ".join(answer["error"].split())[:LONGEST_ERROR],
            "ignored": answer.get("ignored", []),
        }
        for run, answer in zip(runs, answers, strict=True)
    ]


def main() -> None:
    """Judge the corpus, and store the verdicts."""
    lines = ",\n".join(json.dumps(verdict) for verdict in judged(corpus()))
    STORED.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
