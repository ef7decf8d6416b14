"""vLLM still says of the corpus of mutations what is stored of it."""

import pytest

from tests.corpora.vllm_verdicts import Stored, corpus, stored_verdicts
from tests.frameworks.judge_vllm_corpus import judged

EVERY = 16
"""Of so many commands one is judged again."""

pytestmark = pytest.mark.frameworks


def test_a_sample_is_judged_as_stored() -> None:
    sample = corpus()[::EVERY]
    again = {
        verdict["run"]: Stored(failed_level=verdict["failed_level"], error=verdict["error"])
        for verdict in judged(sample)
    }
    assert again == {mutation.name: stored_verdicts()[mutation.name] for mutation in sample}
