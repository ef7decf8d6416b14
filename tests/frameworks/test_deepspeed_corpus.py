"""The stored verdicts on the corpus are DeepSpeed's: a sample is judged again."""

import pytest

from tests.corpora.deepspeed_verdicts import corpus, stored_verdicts
from tests.frameworks.judge_deepspeed_corpus import judged

pytestmark = pytest.mark.frameworks

EVERY = 8


def test_a_sample_of_the_verdicts_is_judged_again() -> None:
    sample = corpus()[::EVERY]
    for verdict in judged(sample):
        stored = stored_verdicts()[str(verdict["run"])]
        assert (verdict["error"], verdict["ignored"]) == (stored.error, list(stored.ignored))
